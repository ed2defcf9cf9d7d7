"""RFC 8414, RFC 9207, RFC 9728: what clients discover."""

import pytest
from conftest import ECHO, ISSUER, Browser, Node

PATHS = [
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/mcp",
    "/.well-known/oauth-authorization-server/echo/mcp",
    "/mcp/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
    "/.well-known/openid-configuration/mcp",
    "/mcp/.well-known/openid-configuration",
]


# covers: as-metadata
@pytest.mark.parametrize("path", PATHS)
def test_metadata_in_every_place_where_clients_look(browser: Browser, path: str) -> None:
    response = browser.get(path, headers={"Origin": "https://anywhere.example.test"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"
    document = response.json()
    assert document["issuer"] == ISSUER
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert document["authorization_response_iss_parameter_supported"] is True
    assert "none" in document["token_endpoint_auth_methods_supported"]
    assert ("subject_types_supported" in document) == ("openid" in path)


# covers: as-endpoints
def test_every_advertised_endpoint_answers(browser: Browser) -> None:
    document = browser.get(PATHS[0]).json()
    endpoints = {name: url for name, url in document.items() if name.endswith(("_endpoint", "_uri"))}
    assert len(endpoints) == 7
    for name, url in endpoints.items():
        get = name in ("jwks_uri", "authorization_endpoint")
        response = browser.get(url) if get else browser.post(url)
        assert response.status_code in (200, 400), name


# covers: as-jwks
def test_jwks_has_public_parts_of_every_key(browser: Browser) -> None:
    keys = browser.get("/jwks.json").json()["keys"]
    assert [key["kid"] for key in keys] == ["key-0", "key-1"]
    assert all(set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"} for key in keys)


# covers: scopes
def test_a_services_document_names_this_issuer(node: Node) -> None:
    document = node.http.get(f"{node.base}/internal/resource/echo").json()
    assert document["resource"] == ECHO
    assert document["authorization_servers"] == [ISSUER]
    assert document["bearer_methods_supported"] == ["header"]
    assert "offline_access" not in document["scopes_supported"]


def test_health_in_public_has_no_details(browser: Browser, node: Node) -> None:
    assert browser.get("/health").json() == {"status": "ok"}
    assert node.http.get(f"{node.base}/internal/health").json() == {
        "status": "ok",
        "checks": {"keyring": "ok", "redis": "ok"},
    }


# covers: cors
@pytest.mark.parametrize(
    "path", ["/token", "/register", "/revoke", "/.well-known/oauth-authorization-server"]
)
def test_preflight_is_answered(browser: Browser, path: str) -> None:
    response = browser.options(
        path, headers={"Origin": "https://a.example.test", "Access-Control-Request-Method": "POST"}
    )
    assert response.status_code == 204
    assert "Authorization" in response.headers["access-control-allow-headers"]


# covers: pages-safe
def test_pages_are_not_for_other_origins(browser: Browser) -> None:
    response = browser.get("/authorize", headers={"Origin": "https://a.example.test"})
    assert "access-control-allow-origin" not in response.headers


# covers: oauth-errors
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/token", 405),
        ("GET", "/nothing", 404),
        ("DELETE", "/register", 405),
        ("POST", "/jwks.json", 405),
    ],
)
def test_errors_are_oauth_errors(browser: Browser, method: str, path: str, status: int) -> None:
    response = browser.request(method, path)
    assert response.status_code == status
    assert set(response.json()) == {"error", "error_description"}


# covers: limits
def test_bodies_are_limited(browser: Browser, node: Node) -> None:
    assert browser.post("/register", content=b"x" * 70_000).status_code == 413
    chunks = (b"x" * 10_000 for _ in range(10))
    assert node.http.post(f"{node.base}/token", content=chunks).status_code in (400, 413)
    chunks = (b"x" * 10_000 for _ in range(10))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert node.http.post(f"{node.base}/token", content=chunks, headers=headers).status_code == 413
