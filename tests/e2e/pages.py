"""Pages in a real browser: Debian's Chromium, what went wrong in it, and what a sign-in needs around it."""

from __future__ import annotations

import base64
import hashlib
import http.server
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
from clients.driver import node_modules
from gateway import Gateway
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

ROOT = Path(__file__).parent.parent.parent
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
    return (node_modules(ROOT / ".cache" / "e2e") / "node_modules" / "axe-core" / "axe.min.js").read_text()


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
    chromium: Browser, scheme: str = "light", size: str = "desktop", **options: Any
) -> Iterator[tuple[BrowserContext, Watched]]:
    width, height = SIZES[size]
    context = chromium.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": height},
        device_scale_factor=2 if size != "desktop" else 1,
        locale="en-GB",
        **options,
    )
    context.set_default_timeout(60_000)
    try:
        yield context, Watched(context.new_page())
    finally:
        context.close()


def press_allow(page: Page, provider: str = "") -> None:
    """Agree, and sign in at a provider."""
    page.get_by_role("button", name="Allow").filter(has_text=provider).click()


def fill_in(page: Page, user: str, password: str) -> None:
    """Sign in with a password."""
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


def exchanged(gateway: Gateway, asked: SignIn, back: dict[str, str]) -> dict[str, Any]:
    """The tokens that a sign-in gives in the end."""
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
    assert tokens.status_code == 200, tokens.text
    found: dict[str, Any] = tokens.json()
    return found


@dataclass
class Looks:
    """Looks at pages: a picture of each is kept, and what axe-core finds in it."""

    axe: str
    violations: dict[str, list[str]] = field(default_factory=dict)

    def at(self, watched: Watched, name: str) -> None:
        """Look at a page as it is now."""
        page = watched.page
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
        page.evaluate(self.axe)
        found = page.evaluate("axe.run()")["violations"]
        self.violations[name] = [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in found]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        assert watched.problems == []


@pytest.fixture
def looks(axe: str) -> Iterator[Looks]:
    """Looks, of which none may find anything wrong."""
    looks = Looks(axe)
    yield looks
    assert looks.violations == {name: [] for name in looks.violations}
