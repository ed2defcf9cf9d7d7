"""A person at a browser, played by code: it follows redirects, keeps cookies, and fills in the forms that it is shown.

It knows HTML forms, and nothing about the server: not a path, not a field's name.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import TracebackType
from urllib.parse import urljoin

import httpx2

AGREE = re.compile(
    r"\b(allow|accept|agree|approve|authori[sz]e|continue|yes|sign in|log in)\b", re.IGNORECASE
)
REFUSE = re.compile(r"\b(deny|do not|don.t|cancel|refuse|reject|decline|no)\b", re.IGNORECASE)
PAGES = 20
SECONDS = 30.0
PATIENCE = 60  # seconds that a person waits when told to


class BrowserError(Exception):
    """The person cannot go on; the message says on which page, and what it says."""


@dataclass(frozen=True)
class Person:
    """Who is at the browser."""

    user: str
    password: str = field(repr=False)


@dataclass
class Form:
    """A form as it stands in a page. `fields` are (type, name, value), `buttons` (label, name, value)."""

    action: str
    method: str
    fields: list[tuple[str, str, str]] = field(default_factory=list)
    buttons: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def asks_password(self) -> bool:
        """Whether it is a sign-in."""
        return any(kind == "password" for kind, _, _ in self.fields)

    def button(self, *, agree: bool) -> tuple[str, str, str] | None:
        """The button that says yes, or the one that says no."""
        for label, name, value in self.buttons:
            refuses = REFUSE.search(label) is not None
            if refuses != agree and (refuses or AGREE.search(label)):
                return label, name, value
        return None


@dataclass
class Visit:
    """One answer that the browser got. `page` is what it showed, unless it only sent the browser on."""

    method: str
    url: httpx2.URL
    status: int
    page: Page | None


class Page(HTMLParser):
    """What a person sees of a page: its title, its text, its forms."""

    SILENT = ("script", "style", "head")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.title = ""
        self.forms: list[Form] = []
        self._words: list[str] = []
        self._inside: list[str] = []
        self._button: tuple[str, str] | None = None
        self._label: list[str] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        """Its words, with single spaces."""
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes forms, their fields and their buttons."""
        given = {name: value or "" for name, value in attrs}
        if tag in (*self.SILENT, "title"):
            self._inside.append(tag)
        elif tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get").upper()))
        elif not self.forms:
            return
        elif tag == "input":
            kind, name, value = given.get("type", "text"), given.get("name", ""), given.get("value", "")
            if kind == "submit":
                self.forms[-1].buttons.append((value, name, value))
            elif name and not (kind in ("checkbox", "radio") and "checked" not in given):
                self.forms[-1].fields.append((kind, name, value))
        elif tag == "button" and given.get("type", "submit") == "submit":
            self._button, self._label = (given.get("name", ""), given.get("value", "")), []

    def handle_endtag(self, tag: str) -> None:
        """Notes a button's label."""
        if tag in self._inside:
            self._inside.remove(tag)
        elif tag == "button" and self._button:
            self.forms[-1].buttons.append((" ".join("".join(self._label).split()), *self._button))
            self._button = None

    def handle_data(self, data: str) -> None:
        """Notes words."""
        if "title" in self._inside:
            self.title += data.strip()
        elif not self._inside:
            self._words.append(data)
            if self._button:
                self._label.append(data)


class Browser:
    """Takes a person from an authorization URL to the client's redirect URI. Cookies stay between visits.

    Args:
        person: who signs in.
        trust: the certificates that the browser trusts.
        visited: called with each answer, as it comes.
    """

    def __init__(
        self, person: Person, trust: ssl.SSLContext, visited: Callable[[Visit], None] = lambda _: None
    ) -> None:
        self._person = person
        self._visited = visited
        self._http = httpx2.Client(verify=trust, timeout=SECONDS, headers={"Accept": "text/html"})

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def authorize(self, url: str, redirect_uri: str, *, agree: bool = True) -> str:
        """Open `url`, sign in where asked, and agree (or not) on every page that asks.

        Returns:
            The URL at `redirect_uri` to which the browser was sent; it is not opened.

        Raises:
            BrowserError: a page has no way on, or the sign-in was refused.
        """
        request = self._http.build_request("GET", url)
        signed_in = False
        for _ in range(PAGES):
            response = self._http.send(request)
            page = None if response.has_redirect_location else Page(response.text)
            self._visited(Visit(request.method, request.url, response.status_code, page))
            if page is None:
                target = urljoin(str(response.url), response.headers["location"])
                if target.partition("?")[0] == redirect_uri:
                    return target
                if response.next_request is None:
                    raise BrowserError(f"{_bare(response.url)} redirects nowhere.")
                request = response.next_request
                continue
            wait = response.headers.get("retry-after", "")
            if response.status_code == 429 and wait.isdigit() and int(wait) <= PATIENCE:
                time.sleep(int(wait))
                continue
            where = f"{_bare(response.url)} ({response.status_code}, «{page.title}»)"
            if response.is_error:
                raise BrowserError(f"{where} says: {page.text}")
            form = next((form for form in page.forms if form.button(agree=agree)), None)
            if form is None:
                raise BrowserError(f"{where} has no button to go on with: {page.text}")
            if form.asks_password and signed_in:
                raise BrowserError(f"The sign-in was refused. {where} says: {page.text}")
            signed_in = signed_in or form.asks_password
            request = self._submit(form, str(response.url), agree=agree)
        raise BrowserError(f"After {PAGES} pages still not at {redirect_uri}.")

    def _submit(self, form: Form, page_url: str, *, agree: bool) -> httpx2.Request:
        pressed = form.button(agree=agree)
        data = {}
        for kind, name, value in form.fields:
            typed = self._person.password if kind == "password" else self._person.user
            data[name] = value if kind in ("hidden", "checkbox", "radio") else typed
        if pressed and pressed[1]:
            data[pressed[1]] = pressed[2]
        # What a browser adds, and what a server may check.
        origin = httpx2.URL(page_url)
        headers = {"Origin": f"{origin.scheme}://{origin.netloc.decode()}", "Sec-Fetch-Site": "same-origin"}
        action = urljoin(page_url, form.action)
        if form.method == "POST":
            return self._http.build_request("POST", action, data=data, headers=headers)
        return self._http.build_request("GET", action, params=data)


def _bare(url: httpx2.URL) -> str:
    """An address without its query, which may carry a code."""
    return str(url.copy_with(query=None, fragment=None))
