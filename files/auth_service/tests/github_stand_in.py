"""A small OAuth server that speaks as GitHub does: authorization, token, user, e-mails, organisations, teams.

It checks what GitHub checks (client, secret, redirect URI, PKCE, code used once), so a client that passes
here does the protocol right. `outage` makes it fail.
"""

import hashlib
import json
import secrets
import threading
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT_ID = "Iv1.gatehouse"
CLIENT_SECRET = "github-client-secret"


@dataclass
class Person:
    login: str
    name: str | None = None
    emails: list[dict[str, Any]] = field(default_factory=list)
    orgs: list[str] = field(default_factory=list)
    teams: list[str] = field(default_factory=list)


class GitHubStandIn:
    """Runs on a loopback port; `person` is who is signed in there."""

    def __init__(self) -> None:
        self.person = Person("nobody")
        self.outage = ""
        self.callback = ""
        self._codes: dict[str, dict[str, str]] = {}
        self.tokens: dict[str, Person] = {}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.get(self)

            def do_POST(self) -> None:
                stand_in.post(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/login/oauth/authorize":
            self.authorize(handler, query)
            return
        person = self.tokens.get(handler.headers.get("Authorization", "").removeprefix("Bearer "))
        if self.outage == "api" or person is None:
            self.answer(handler, 502 if person is not None else 401, {"message": "no"})
            return
        first = query.get("page", "1") == "1"
        pages: dict[str, Any] = {
            "/user": {"login": person.login, "id": 1, "name": person.name},
            "/user/emails": person.emails if first else [],
            "/user/orgs": [{"login": org} for org in person.orgs] if first else [],
            "/user/teams": [
                {"organization": {"login": team.split("/")[0]}, "slug": team.split("/")[1]}
                for team in person.teams
            ]
            if first
            else [],
        }
        self.answer(handler, 200, b"<html>" if self.outage == "html" else pages[url.path])

    def authorize(self, handler: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        if query["client_id"] != CLIENT_ID or query["redirect_uri"] != self.callback:
            self.answer(handler, 404, {"message": "no such app"})
            return
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_hex(10)
        self._codes[code] = query
        answer = {"code": code, "state": query["state"], "iss": "https://evil.example.test"}
        if self.outage == "denied":
            answer = {"error": "access_denied", "error_description": "no", "state": query["state"]}
        self.answer(handler, 302, b"", Location=f"{self.callback}?{urlencode(answer)}")

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        form = {
            name: values[0]
            for name, values in parse_qs(
                handler.rfile.read(int(handler.headers["Content-Length"])).decode()
            ).items()
        }
        if self.outage == "token":
            self.answer(handler, 503, b"")
            return
        begun = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if form.get("client_id") != CLIENT_ID or form.get("client_secret") != CLIENT_SECRET:
            self.answer(handler, 200, {"error": "incorrect_client_credentials"})
        elif (
            begun is None
            or begun["redirect_uri"] != form.get("redirect_uri")
            or begun["code_challenge"] != urlsafe_b64encode(digest).rstrip(b"=").decode()
        ):
            self.answer(handler, 200, {"error": "bad_verification_code"})
        else:
            token = f"gho_{secrets.token_hex(16)}"
            self.tokens[token] = self.person
            self.answer(
                handler, 200, {"access_token": token, "token_type": "bearer", "scope": begun["scope"]}
            )
