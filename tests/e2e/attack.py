"""What an attacker has: a client that they registered, and requests that no client sends."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import secrets
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
from browserless import Browser, Person
from gateway import Gateway

REDIRECT = "https://client.example/callback"


def query_of(url: str) -> dict[str, str]:
    """The parameters of an authorization response."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of a page's form."""
    return {
        name: html.unescape(value)
        for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)
    }


@dataclass
class Attacker:
    """Knows the protocol, and keeps to it where it pleases."""

    gateway: Gateway
    trust: ssl.SSLContext
    person: Person
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    @property
    def challenge(self) -> str:
        """The PKCE challenge (RFC 7636)."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def browser(self) -> httpx2.Client:
        """A browser of their own: cookies, and no redirect followed unseen."""
        return httpx2.Client(verify=self.trust, timeout=30, headers={"Accept": "text/html"})

    def register(self, **metadata: Any) -> dict[str, Any]:
        """A registration."""
        body = {"client_name": "App", "redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none"}
        answer = self.gateway.http.post(f"{self.gateway.issuer}/register", json={**body, **metadata})
        assert answer.status_code == 201, answer.text
        registered: dict[str, Any] = answer.json()
        return registered

    def url(self, client_id: str, **changes: str | None) -> str:
        """An authorization request; None leaves a parameter out."""
        query = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": REDIRECT,
            "scope": "mcp",
            "state": "st",
            "resource": self.gateway.echo,
            "code_challenge": self.challenge,
            "code_challenge_method": "S256",
            **changes,
        }
        given = {name: value for name, value in query.items() if value is not None}
        return f"{self.gateway.issuer}/authorize?{urlencode(given)}"

    def code(self, client_id: str, **changes: str | None) -> str:
        """A code for what the person, deceived or not, agreed to."""
        redirect = changes.get("redirect_uri") or REDIRECT
        with Browser(self.person, self.trust) as browser:
            back = browser.authorize(self.url(client_id, **changes), redirect)
        assert query_of(back)["iss"] == self.gateway.issuer
        return query_of(back)["code"]

    def token(self, **form: str | None) -> httpx2.Response:
        """A request to the token endpoint."""
        given = {name: value for name, value in form.items() if value is not None}
        return self.gateway.http.post(f"{self.gateway.issuer}/token", data=given)

    def exchange(self, client_id: str, code: str, **changes: str | None) -> httpx2.Response:
        """The code for tokens."""
        form = {
            "grant_type": "authorization_code",
            "client_id": client_id,
            "code": code,
            "redirect_uri": REDIRECT,
            "code_verifier": self.verifier,
        }
        return self.token(**{**form, **changes})

    def refresh(self, client_id: str, refresh_token: str, **changes: str | None) -> httpx2.Response:
        """The refresh token for tokens."""
        form = {"grant_type": "refresh_token", "client_id": client_id, "refresh_token": refresh_token}
        return self.token(**{**form, **changes})

    def tokens(self, client_id: str, **changes: str | None) -> dict[str, Any]:
        """Tokens, as anyone gets them."""
        answer = self.exchange(client_id, self.code(client_id, **changes))
        assert answer.status_code == 200, answer.text
        given: dict[str, Any] = answer.json()
        return given

    def opens(self, token: str, url: str | None = None) -> bool:
        """Whether a token opens a service."""
        return self.gateway.post(url or self.gateway.echo, "tools/list", token=token).status_code == 200

    def raw(self, host: str, request: bytes) -> bytes:
        """What comes back for these bytes, over TLS."""
        with (
            socket.create_connection((host, 443), timeout=10) as plain,
            self.trust.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.sendall(request)
            connection.settimeout(15)
            answer = b""
            try:
                while part := connection.recv(65536):
                    answer += part
                    connection.settimeout(3)
            except TimeoutError:
                return answer
        return answer
