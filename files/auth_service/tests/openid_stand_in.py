"""A small OpenID provider that checks what providers check, and can be made to fail and to lie.

The end-to-end tests sign in through a certified one; what that one never does is tried against this.
"""

import hashlib
import json
import secrets
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, RSAKey

CLIENT_ID = "gate:house"
CLIENT_SECRET = "oidc client secret/+"


def digest(text: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@dataclass
class Lies:
    """What the provider says otherwise than it should. A value replaces, None leaves out."""

    claims: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    discovery: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] = field(default_factory=dict)
    key: Key | None = None
    status: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    cut: str = ""
    slow: dict[str, float] = field(default_factory=dict)
    flood: str = ""
    gate: dict[str, threading.Event] = field(default_factory=dict)


def said(honest: dict[str, Any], lies: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**honest, **lies}.items() if value is not None}


class OpenIDStandIn:
    """Runs on a loopback port; `person` is who is signed in there. With `offline` it offers offline access,
    by refresh tokens (`refreshing`) that are good once if it `rotates` them."""

    def __init__(self) -> None:
        self.person: dict[str, Any] = {}
        self.offline = False
        self.rotates = False
        self.refreshing: dict[str, str] = {}
        self.info: dict[str, Any] = {}
        self.lies = Lies()
        self.key: Key = RSAKey.generate_key(2048, {"kid": "first", "use": "sig"})
        self.asked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.serve(self)

            def do_POST(self) -> None:
                stand_in.serve(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}/realm/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        name = url.path.rpartition("/")[2]
        slow, gate = self.lies.slow.get(name, 0), self.lies.gate.get(name)
        self.asked.append(name)  # whoever waits for this may change the lies from here on
        time.sleep(slow)
        if gate is not None:
            gate.wait(30)
        form = handler.rfile.read(int(handler.headers.get("Content-Length", 0))).decode()
        values = {key: value[0] for key, value in parse_qs(form or url.query).items()}
        status, content, headers = 404, {}, {}
        if name == "openid-configuration" and url.path == "/realm/.well-known/openid-configuration":
            status, content = 200, self.discovery()
        elif name == "keys":
            public = [self.key.as_dict(private=False), {"kty": "future", "kid": "x"}]
            status, content = 200, {"keys": public}
        elif name == "authorize":
            status, headers = 302, {"Location": self.authorize(values)}
        elif name == "token" and name not in self.lies.status:
            status, content = self.token(values, handler.headers.get("Authorization", ""))
        elif name == "userinfo":
            assert handler.headers["Authorization"] == "Bearer upstream"
            status, content = 200, said({"sub": self.person["sub"], **self.info}, self.lies.userinfo)
        body = json.dumps(content).encode()
        if self.lies.flood == name:
            body = b'"' + b"x" * 3_000_000
        if self.lies.cut == name:
            return
        handler.send_response(self.lies.status.get(name, status))
        for header, value in {"Content-Type": "application/json", **headers, **self.lies.headers}.items():
            handler.send_header(header, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def discovery(self) -> dict[str, Any]:
        base = self.issuer + "protocol"
        return said(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{base}/authorize?tenant=a",
                "token_endpoint": f"{base}/token",
                "userinfo_endpoint": f"{base}/userinfo",
                "jwks_uri": f"{base}/keys",
                "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none"],
                "authorization_response_iss_parameter_supported": True,
                **({"scopes_supported": ["openid", "offline_access"]} if self.offline else {}),
            },
            self.lies.discovery,
        )

    def authorize(self, query: dict[str, str]) -> str:
        assert query["client_id"] == CLIENT_ID
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert query["tenant"] == "a"
        assert query["nonce"]
        code = secrets.token_hex(10)
        self._codes[code] = query
        answer = said({"code": code, "state": query["state"], "iss": self.issuer}, self.lies.answer)
        return f"{query['redirect_uri']}?{urlencode(answer)}"

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        given = (form.get("client_id", ""), form.get("client_secret", ""))
        if authorization:
            name, _, secret = b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
            given = unquote_plus(name), unquote_plus(secret)
        if given != (CLIENT_ID, CLIENT_SECRET):
            return 401, {"error": "invalid_client"}
        if form["grant_type"] == "refresh_token":
            subject = self.refreshing.get(form["refresh_token"])
            if subject is None:
                return 400, {"error": "invalid_grant"}
            if self.rotates:
                del self.refreshing[form["refresh_token"]]
            return 200, self.tokens({**self.person, "sub": subject}, refresh=self.rotates)
        begun = self._codes.pop(form.get("code", ""), None)
        if (
            begun is None
            or begun["redirect_uri"] != form["redirect_uri"]
            or begun["code_challenge"] != digest(form["code_verifier"])
        ):
            return 400, {"error": "invalid_grant"}
        refresh = "offline_access" in begun["scope"].split()
        return 200, self.tokens({**self.person, "nonce": begun["nonce"]}, refresh=refresh)

    def tokens(self, person: dict[str, Any], *, refresh: bool) -> dict[str, Any]:
        now = int(time.time())
        claims = said(
            {
                "iss": self.issuer,
                "aud": CLIENT_ID,
                "iat": now,
                "exp": now + 60,
                **person,
            },
            self.lies.claims,
        )
        key = self.lies.key or self.key
        algorithm = {RSAKey: "RS256", ECKey: "ES256", OctKey: "HS256"}[type(key)]
        header = said({"alg": algorithm, "kid": key.get("kid")}, self.lies.header)
        if header["alg"] == "none":
            parts = [json.dumps(part).encode() for part in (header, claims)]
            token = ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."
        else:
            token = jwt.encode(header, claims, key, algorithms=[header["alg"]])
        honest = {"id_token": token, "access_token": "upstream"}
        if refresh:
            honest["refresh_token"] = f"upstream-{secrets.token_hex(20)}"
            self.refreshing[honest["refresh_token"]] = person["sub"]
        return said(honest, self.lies.tokens)
