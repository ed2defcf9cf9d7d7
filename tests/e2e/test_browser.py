"""Consent and sign-in in a real browser. Pictures of each page are left in `.cache/screenshots`."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from browserless import Person
from clients.driver import node_modules
from conftest import CACHE, ROOT
from gateway import Gateway
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SCREENSHOTS = ROOT / ".cache" / "screenshots"
# Markup in a name must stay a name.
CLIENT_NAME = "Notes <b>for</b> & by Ana"
SCHEMES = ("light", "dark")
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "narrow": (320, 640)}


class Callback(http.server.BaseHTTPRequestHandler):
    """The client's own page, where the sign-in ends."""

    def do_GET(self) -> None:
        body = b"<!doctype html><html lang=en><title>Done</title><link rel=icon href=data:,><h1>Done</h1>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class SignIn:
    """One authorization request of a client that has just registered."""

    client_id: str
    redirect_uri: str
    resource: str
    issuer: str
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    state: str = field(default_factory=secrets.token_urlsafe)

    @property
    def url(self) -> str:
        challenge = (
            base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).decode().rstrip("=")
        )
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "resource": self.resource,
            "scope": "mcp",
            "state": self.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{self.issuer}/authorize?{urlencode(query)}"


@dataclass
class Watched:
    """A page, and everything in it that went wrong."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
        )

    def _console(self, message: Any) -> None:
        # The status of a page that says what is wrong is no fault in it.
        if (
            message.type in ("error", "warning")
            and "the server responded with a status of 4" not in message.text
        ):
            self.problems.append(f"console: {message.text}")

    def _failed(self, request: Any) -> None:
        self.problems.append(f"{request.method} {request.url.partition('?')[0]}: {request.failure}")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, ca_file: Path) -> Iterator[Browser]:
    """Debian's Chromium, in a home of its own that trusts the gateway's CA: TLS errors are errors."""
    home = tmp_path_factory.mktemp("home")
    store = home / ".pki" / "nssdb"
    store.mkdir(parents=True)
    for arguments in (["-N", "--empty-password"], ["-A", "-n", "gateway", "-t", "C,,", "-i", str(ca_file)]):
        subprocess.run(["certutil", "-d", f"sql:{store}", *arguments], check=True, capture_output=True)
    environment = {**os.environ, "HOME": str(home)}
    environment.pop("XDG_DATA_HOME", None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(FLAGS), env=dict(environment)
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which is evaluated in the page: its CSP stays as it is."""
    return (node_modules(CACHE) / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def redirect_uri() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Callback) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/callback"
        server.shutdown()


@pytest.fixture(scope="module")
def sign_in(gateway: Gateway, redirect_uri: str) -> Callable[[], SignIn]:
    registered = gateway.http.post(
        f"{gateway.issuer}/register",
        json={
            "client_name": CLIENT_NAME,
            "redirect_uris": [redirect_uri],
            "token_endpoint_auth_method": "none",
        },
    )
    assert registered.status_code == 201
    client_id: str = registered.json()["client_id"]
    return lambda: SignIn(client_id, redirect_uri, gateway.echo, gateway.issuer)


@contextmanager
def opened(
    chromium: Browser, scheme: str = "light", size: str = "desktop"
) -> Iterator[tuple[BrowserContext, Watched]]:
    width, height = SIZES[size]
    context = chromium.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": height},
        device_scale_factor=2 if size != "desktop" else 1,
        locale="en-GB",
    )
    context.set_default_timeout(15_000)
    try:
        yield context, Watched(context.new_page())
    finally:
        context.close()


def press_allow(page: Page) -> None:
    page.get_by_role("button", name="Allow").click()


def fill_in(page: Page, user: str, password: str) -> None:
    page.get_by_label("User name").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def answer(watched: Watched, redirect_uri: str) -> dict[str, str]:
    """What came back to the client."""
    page = watched.page
    try:
        page.wait_for_url(f"{redirect_uri}?*")
    except PlaywrightError as error:
        raise AssertionError(f"{watched.problems} {page.url} {page.inner_text('body')}") from error
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def test_sign_in_from_the_first_page_to_a_tool(
    chromium: Browser, gateway: Gateway, sign_in: Callable[[], SignIn], person: Person
) -> None:
    asked = sign_in()
    with opened(chromium) as (context, watched):
        page = watched.page
        page.goto(asked.url)
        text = page.inner_text("main")
        assert CLIENT_NAME in text, "the client's name, as text"
        assert urlsplit(asked.redirect_uri).netloc in text, "where the person will be sent"
        assert "Echo" in text
        assert gateway.echo in text
        assert "mcp" in page.locator("main li").all_inner_texts()
        cookies = context.cookies()
        assert cookies
        for cookie in cookies:
            assert cookie["name"].startswith("__Host-")
            assert cookie["secure"] and cookie["httpOnly"]
            assert cookie["sameSite"] == "Lax"
        press_allow(page)
        fill_in(page, person.user, person.password)
        back = answer(watched, asked.redirect_uri)
        assert watched.problems == []
    assert back["state"] == asked.state
    assert back["iss"] == gateway.issuer
    tokens = gateway.http.post(
        f"{gateway.issuer}/token",
        data={
            "grant_type": "authorization_code",
            "code": back["code"],
            "redirect_uri": asked.redirect_uri,
            "client_id": asked.client_id,
            "code_verifier": asked.verifier,
            "resource": asked.resource,
        },
    )
    assert tokens.status_code == 200
    identity = json.loads(gateway.call(gateway.echo, "whoami", token=tokens.json()["access_token"]))
    assert identity["user"] == person.user


def test_saying_no_goes_back_to_the_client(
    chromium: Browser, gateway: Gateway, sign_in: Callable[[], SignIn]
) -> None:
    asked = sign_in()
    with opened(chromium) as (_, watched):
        watched.page.goto(asked.url)
        watched.page.get_by_role("button", name="Cancel").click()
        back = answer(watched, asked.redirect_uri)
        assert watched.problems == []
    assert back["error"] == "access_denied"
    assert back["state"] == asked.state
    assert back["iss"] == gateway.issuer
    assert "code" not in back


def test_wrong_password_can_be_corrected(
    chromium: Browser, sign_in: Callable[[], SignIn], person: Person
) -> None:
    asked = sign_in()
    with opened(chromium) as (_, watched):
        page = watched.page
        page.goto(asked.url)
        press_allow(page)
        fill_in(page, person.user, "not the password")
        assert "wrong" in page.get_by_role("alert").inner_text()
        assert page.get_by_label("User name").input_value() == person.user
        assert page.get_by_label("Password").input_value() == ""
        fill_in(page, person.user, person.password)
        assert "code" in answer(watched, asked.redirect_uri)
        assert watched.problems == []


def test_reload_and_a_second_tab_do_no_harm(
    chromium: Browser, sign_in: Callable[[], SignIn], person: Person
) -> None:
    first, second = sign_in(), sign_in()
    with opened(chromium) as (context, watched):
        page = watched.page
        page.goto(first.url)
        page.reload()
        other = context.new_page()
        other.goto(second.url)
        for tab, asked in ((page, first), (other, second)):
            press_allow(tab)
            fill_in(tab, person.user, person.password)
            assert answer(Watched(tab), asked.redirect_uri)["state"] == asked.state


def test_sign_in_belongs_to_one_browser(chromium: Browser, sign_in: Callable[[], SignIn]) -> None:
    """A link to somebody else's consent page is worth nothing."""
    with opened(chromium) as (_, watched):
        watched.page.goto(sign_in().url)
        theirs = watched.page.url
    with opened(chromium) as (_, watched):
        response = watched.page.goto(theirs)
        assert response is not None
        assert response.status == 400
        assert watched.page.get_by_role("button").count() == 0


def test_keyboard_alone_is_enough(chromium: Browser, sign_in: Callable[[], SignIn], person: Person) -> None:
    asked = sign_in()
    with opened(chromium) as (_, watched):
        page = watched.page
        page.goto(asked.url)
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText").startswith("Allow"):
                break
        with page.expect_navigation(url="**/signin/**"):
            page.keyboard.press("Enter")
        # The first field gets the focus by itself, a moment after the page is there.
        page.locator("input:focus").wait_for()
        page.keyboard.type(person.user)
        page.keyboard.press("Tab")
        page.keyboard.type(person.password)
        page.keyboard.press("Enter")
        assert "code" in answer(watched, asked.redirect_uri)


def test_pages_cannot_be_framed_and_run_no_script(gateway: Gateway, sign_in: Callable[[], SignIn]) -> None:
    response = gateway.http.get(sign_in().url, follow_redirects=True)
    policy = response.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "<script" not in response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] in ("no-referrer", "same-origin")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_page_is_accessible(
    chromium: Browser,
    gateway: Gateway,
    sign_in: Callable[[], SignIn],
    person: Person,
    axe: str,
    scheme: str,
    size: str,
) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    violations = {}

    def look(watched: Watched, name: str) -> None:
        page = watched.page
        page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{size}.png", full_page=True)
        page.evaluate(axe)
        found = page.evaluate("axe.run()")["violations"]
        violations[name] = [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in found]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        assert watched.problems == []

    asked = sign_in()
    with opened(chromium, scheme, size) as (_, watched):
        page = watched.page
        page.goto(asked.url)
        look(watched, "consent")
        press_allow(page)
        look(watched, "sign-in")
        fill_in(
            page, f"nobody-{scheme}-{size}", "not the password"
        )  # a name of its own: attempts are counted
        look(watched, "sign-in-wrong")
        fill_in(page, person.user, person.password)
        answer(watched, asked.redirect_uri)
        page.goto(asked.url.replace(asked.client_id, "unknown"))
        look(watched, "unknown-client")
    assert violations == {name: [] for name in violations}
