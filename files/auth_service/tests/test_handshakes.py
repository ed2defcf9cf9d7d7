"""The handshakes of clients in the field, step by step: the challenge, the documents that it leads to,
identification, sign-in, tokens, a call, refreshes. What each sends is from its vendor's documentation and bug
reports.
"""

import json
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import ECHO, ISSUER, Browser, Fleet, Node, answer_of
from joserfc.jwk import ECKey
from test_assertions import TYPE, public, signed

from gatehouse_auth.documents import parse
from gatehouse_auth.store import digest, keys_name

KEY = ECKey.generate_key("P-256", {"kid": "chatgpt"})


@dataclass(frozen=True)
class Client:
    """A client in the field. With `document` it is known by that address, otherwise it registers."""

    redirects: list[str]
    uses: str
    document: str = ""
    registers: dict[str, Any] = field(default_factory=dict)
    kept: list[str] | None = None
    scope: str | None = "mcp"
    by_key: bool = False
    names_resource_at_refresh: bool = True

    @property
    def metadata(self) -> dict[str, Any]:
        method = "private_key_jwt" if self.by_key else "none"
        keys = {"jwks_uri": "https://chatgpt.com/oauth/jwks.json"} if self.by_key else {}
        return {
            "client_name": "In the field",
            "redirect_uris": self.redirects,
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": method,
            **keys,
            **self.registers,
        }


CLAUDE = ["https://claude.ai/api/mcp/auth_callback", "https://claude.com/api/mcp/auth_callback"]
VS_CODE = [
    "https://insiders.vscode.dev/redirect",
    "https://vscode.dev/redirect",
    "http://127.0.0.1/",
    "http://127.0.0.1:33418/",
]
CURSOR = [
    "cursor://anysphere.cursor-mcp/oauth/callback",
    "https://www.cursor.com/agents/mcp/oauth/callback",
    "http://localhost:8787/callback",
]
CLIENTS = {
    "Claude, by document": Client(
        CLAUDE, CLAUDE[0], "https://claude.ai/oauth/mcp-oauth-client-metadata", scope="mcp offline_access"
    ),
    "Claude, registering": Client(CLAUDE, CLAUDE[1], registers={"scope": "mcp"}),
    "Claude Code, by document": Client(
        ["http://localhost/callback", "http://127.0.0.1/callback"],
        "http://localhost:54212/callback",
        "https://claude.ai/oauth/claude-code-client-metadata",
        names_resource_at_refresh=False,
    ),
    "Claude Code, registering": Client(
        ["http://localhost:51763/callback"],
        "http://localhost:51763/callback",
        registers={"application_type": "native"},
        scope=None,
    ),
    "ChatGPT": Client(
        ["https://chatgpt.com/connector_platform_oauth_redirect", "https://chatgpt.com/connector/oauth/abc"],
        "https://chatgpt.com/connector_platform_oauth_redirect",
        "https://chatgpt.com/oauth/client.json",
        by_key=True,
    ),
    "Codex": Client(
        ["http://127.0.0.1/callback/x1"],
        "http://127.0.0.1:1455/callback/x1",
        "https://chatgpt.com/oauth/codex/client.json",
    ),
    "VS Code, by document": Client(
        VS_CODE, "http://127.0.0.1:49817/", "https://vscode.dev/oauth/client-metadata.json"
    ),
    "VS Code, registering": Client(
        VS_CODE,
        VS_CODE[3],
        registers={"grant_types": ["authorization_code", "refresh_token", "urn:x:future"]},
    ),
    "Cursor": Client(CURSOR, CURSOR[0]),
    "Cursor, on the web": Client(CURSOR, CURSOR[1]),
    "mcp-remote": Client(
        ["http://localhost:3335/oauth/callback"],
        "http://localhost:3335/oauth/callback",
        registers={"client_uri": "https://github.com/modelcontextprotocol/mcp-cli", "software_version": "1"},
    ),
    "MCP Inspector": Client(
        ["http://localhost:6274/oauth/callback", "http://localhost:6274/oauth/callback/debug"],
        "http://localhost:6274/oauth/callback",
        names_resource_at_refresh=False,
    ),
    "one of whose addresses cannot be kept": Client(
        ["http://evil.example/callback", "https://client.example/callback"],
        "https://client.example/callback",
        kept=["https://client.example/callback"],
    ),
}


@pytest.fixture(scope="module")
def node(fleet: Fleet) -> Node:
    return fleet.start(client_documents="true")


@pytest.fixture
def browser(node: Node) -> Iterator[Browser]:
    with node.browser() as client:
        yield client


def publish(fleet: Fleet, client: Client) -> None:
    """Let the service have read what a client publishes, as it would from the vendor's site."""
    document = json.dumps({"client_id": client.document, **client.metadata}).encode()
    metadata = parse(client.document, document, frozenset())
    until = time.time() + 600
    fresh = {"fresh_until": until, "again_from": until}
    for name, record in (
        (client.document, {"metadata": metadata}),
        (keys_name(client.document), {"url": client.metadata.get("jwks_uri"), "jwks": public(KEY)}),
    ):
        fleet.redis.admin.set(f"gh:document:{digest(name)}", json.dumps({**record, **fresh}), ex=600)


# covers: iss, refresh-answer, clients-field
@pytest.mark.parametrize("name", CLIENTS)
def test_it_signs_in_and_stays_so(name: str, fleet: Fleet, node: Node, browser: Browser) -> None:
    client = CLIENTS[name]

    # 1. A call without a token says where to look.
    refused = node.check(None)
    challenge = refused.headers["www-authenticate"]
    assert refused.status_code == 401
    found = re.search(r'resource_metadata="([^"]+)"', challenge)
    assert found is not None
    assert found[1] == "https://echo.example.test/.well-known/oauth-protected-resource/mcp"

    # 2. The resource names its server, in so many letters.
    resource = node.http.get(f"{node.base}/internal/resource/echo").json()
    assert resource["resource"] == ECHO
    (issuer,) = resource["authorization_servers"]
    assert "offline_access" not in resource["scopes_supported"]

    # 3. The server says what it can.
    metadata = browser.get("/.well-known/oauth-authorization-server").json()
    assert metadata["issuer"] == issuer == ISSUER
    assert "S256" in metadata["code_challenge_methods_supported"]
    assert "none" in metadata["token_endpoint_auth_methods_supported"]

    # 4. The client says who it is.
    if client.document:
        assert metadata["client_id_metadata_document_supported"] is True
        publish(fleet, client)
        client_id = client.document
    else:
        registered = browser.post(metadata["registration_endpoint"], json=client.metadata)
        assert registered.status_code == 201, registered.text
        assert registered.json()["redirect_uris"] == (client.kept or client.redirects)
        assert registered.json()["registration_client_uri"].startswith(issuer)
        assert registered.json()["registration_access_token"]
        client_id = registered.json()["client_id"]

    # 5. The person agrees and signs in.
    changes = {"redirect_uri": client.uses, "scope": client.scope}
    signed_in = browser.sign_in(browser.consent(browser.authorize(client_id, **changes)))
    assert signed_in.headers["location"].startswith(f"{client.uses}?")
    answer = answer_of(signed_in)
    assert (answer["iss"], answer["state"]) == (ISSUER, "st-1")

    # 6. Tokens, a call, and two refreshes.
    def proof() -> dict[str, str]:
        if not client.by_key:
            return {}
        assertion = signed(client_id, KEY, aud=metadata["token_endpoint"])
        return {"client_assertion_type": TYPE, "client_assertion": assertion}

    tokens = browser.exchange(
        client_id, answer["code"], redirect_uri=client.uses, resource=ECHO, **proof()
    ).json()
    for _ in range(2):
        assert tokens["token_type"] == "Bearer"
        assert tokens["expires_in"] == 3600
        claims = json.loads(urlsafe_b64decode(tokens["access_token"].split(".")[1] + "=="))
        assert (claims["aud"], claims["client_id"]) == (ECHO, client_id)
        assert node.check(tokens["access_token"]).status_code == 200
        named = {"resource": ECHO} if client.names_resource_at_refresh else {}
        refreshed = browser.refresh(client_id, tokens["refresh_token"], **named, **proof())
        assert refreshed.status_code == 200, refreshed.text
        assert refreshed.json()["refresh_token"] != tokens["refresh_token"]
        tokens = refreshed.json()
