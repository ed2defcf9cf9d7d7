"""What the gateway answers to whoever comes: documents, refusals, and nothing that is not meant for outside."""

from __future__ import annotations

import re
import socket
import ssl

import httpx2
import pytest
from clients.driver import McpClient
from gateway import Gateway, message

SERVICES = ("echo", "time")


def challenge(response: httpx2.Response) -> dict[str, str]:
    """The parameters of a Bearer challenge (RFC 9110 section 11.6.1)."""
    scheme, _, parameters = response.headers["www-authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'(\w+)="([^"]*)"', parameters))


def resource_document(gateway: Gateway, name: str) -> str:
    return f"https://{name}.{gateway.domain}/.well-known/oauth-protected-resource/mcp"


# covers: prm
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
@pytest.mark.parametrize("name", SERVICES)
def test_no_token_is_told_where_to_get_one(gateway: Gateway, name: str, method: str) -> None:
    response = gateway.http.request(method, gateway.service(name))
    assert response.status_code == 401
    assert challenge(response) == {"resource_metadata": resource_document(gateway, name), "scope": "mcp"}


# covers: challenge
@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbmEifQ."])
def test_bad_token_is_named_invalid(gateway: Gateway, token: str) -> None:
    response = gateway.post(gateway.echo, "tools/list", token=token)
    assert response.status_code == 401
    assert challenge(response)["error"] == "invalid_token"
    assert challenge(response)["resource_metadata"] == resource_document(gateway, "echo")


# covers: prm
@pytest.mark.parametrize("path", ["/mcp", ""])
@pytest.mark.parametrize("name", SERVICES)
def test_resource_document(gateway: Gateway, name: str, path: str) -> None:
    url = f"https://{name}.{gateway.domain}/.well-known/oauth-protected-resource{path}"
    response = gateway.http.get(url, headers={"Origin": "https://browser-client.example"})
    assert response.status_code == 200
    document = response.json()
    assert document["resource"] == gateway.service(name), "the URL that people paste"
    assert document["authorization_servers"] == [gateway.issuer]
    assert "offline_access" not in document["scopes_supported"]
    assert response.headers["access-control-allow-origin"] == "*"


# covers: as-metadata
@pytest.mark.parametrize("suffix", ["", "/mcp"])
@pytest.mark.parametrize("kind", ["oauth-authorization-server", "openid-configuration"])
def test_server_document(gateway: Gateway, kind: str, suffix: str) -> None:
    document = gateway.http.get(f"{gateway.issuer}/.well-known/{kind}{suffix}").json()
    assert document["issuer"] == gateway.issuer
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert "none" in document["token_endpoint_auth_methods_supported"]
    assert document["authorization_response_iss_parameter_supported"] is True


# covers: as-endpoints
def test_every_endpoint_in_the_server_document_works(gateway: Gateway) -> None:
    document = gateway.http.get(f"{gateway.issuer}/.well-known/oauth-authorization-server").json()
    endpoints = {name: url for name, url in document.items() if name.endswith(("_endpoint", "_uri"))}
    assert {"authorization_endpoint", "token_endpoint", "registration_endpoint", "jwks_uri"} <= set(endpoints)
    for name, url in endpoints.items():
        assert url.startswith(f"{gateway.issuer}/"), name
        asks = "GET" if name in ("authorization_endpoint", "jwks_uri") else "POST"
        status = gateway.http.request(asks, url).status_code
        assert status == 200 or 400 <= status < 404, f"{name} says {status}"


# covers: as-jwks
def test_keys_are_public_halves(gateway: Gateway) -> None:
    keys = gateway.http.get(f"{gateway.issuer}/jwks.json").json()["keys"]
    assert keys
    for key in keys:
        assert set(key) <= {"kty", "crv", "x", "y", "kid", "alg", "use", "key_ops"}


# covers: cors
@pytest.mark.parametrize("name", ["echo", "auth"])
def test_preflight_needs_no_token(gateway: Gateway, name: str) -> None:
    url = gateway.echo if name == "echo" else f"{gateway.issuer}/token"
    response = gateway.http.options(
        url,
        headers={
            "Origin": "https://browser-client.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,mcp-protocol-version",
        },
    )
    assert response.status_code in (200, 204)


# covers: cors
def test_foreign_origin_is_refused(gateway: Gateway, fresh_client: McpClient) -> None:
    fresh_client.tools(gateway.echo)
    token = fresh_client.credentials(gateway.echo)["access_token"]
    foreign = [("Origin", "https://evil.example")]
    assert gateway.post(gateway.echo, "tools/list", token=token).status_code == 200
    refused = gateway.post(gateway.echo, "tools/list", token=token, headers=foreign)
    assert refused.status_code == 403
    assert "tools" not in refused.text


@pytest.mark.parametrize("name", ["echo", "auth"])
def test_plain_http_only_redirects(gateway: Gateway, name: str) -> None:
    response = gateway.http.get(f"http://{name}.{gateway.domain}/mcp", headers={"Authorization": "Bearer x"})
    assert response.status_code in (301, 308)
    assert response.headers["location"] == f"https://{name}.{gateway.domain}/mcp"


def test_browsers_are_told_to_stay_with_https(gateway: Gateway) -> None:
    for url in (gateway.echo, f"{gateway.issuer}/health"):
        response = gateway.http.get(url)
        assert int(re.findall(r"max-age=(\d+)", response.headers["strict-transport-security"])[0]) >= 31536000


HEALTH_IN_DISGUISE = (
    "/health",
    "/mcp/../health",
    "/mcp/..%2fhealth",
    "/%2e%2e/health",
    "/.well-known/oauth-protected-resource/../../health",
)
TARGETS = (
    "//mcp",
    "/./mcp",
    "/%6dcp",
    "/MCP",
    "/mcp/",
    "/mcp;x",
    "/.well-known/oauth-protected-resource/../../mcp",
    "/internal/health",
    "/internal/check/echo",
    "//internal/health",
    "/x/../internal/health",
    "/%69nternal/health",
)
HOSTS = ("echo.{}", "127.0.0.1:18000", "localhost", "unknown.{}")
# The auth service's own /health is public.
AROUND = [
    *((host, target) for host in HOSTS for target in HEALTH_IN_DISGUISE + TARGETS),
    *(("auth.{}", target) for target in TARGETS),
]


@pytest.mark.parametrize(("host", "target"), AROUND)
def test_no_path_leads_around_the_check(
    gateway: Gateway, trust: ssl.SSLContext, host: str, target: str
) -> None:
    """The target and the Host are sent as they stand, which HTTP libraries do not do."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}'
    head = (
        f"POST {target} HTTP/1.1\r\nHost: {host.format(gateway.domain)}\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    for request in (head.encode() + body, head.replace("POST", "GET", 1).encode() + body):
        with (
            socket.create_connection((f"echo.{gateway.domain}", 443), timeout=10) as plain,
            trust.wrap_socket(plain, server_hostname=f"echo.{gateway.domain}") as tls,
        ):
            tls.sendall(request)
            answer = b"".join(iter(lambda: tls.recv(65536), b""))
        status = int(answer.split(b" ", 2)[1])
        assert status in (301, 308, 400, 401, 404, 405, 421), answer[:500]
        assert b'"tools"' not in answer


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-Host", "echo.{}"),
        ("X-Forwarded-Uri", "/internal/check/echo"),
        ("X-Original-URL", "/mcp"),
        ("X-Forwarded-Prefix", "/echo"),
        ("Forwarded", "host=echo.{}"),
    ],
)
def test_no_header_chooses_the_audience(gateway: Gateway, echo_token: str, header: tuple[str, str]) -> None:
    headers = [(header[0], header[1].format(gateway.domain))]
    own = gateway.post(gateway.echo, "tools/list", token=echo_token, headers=headers)
    assert own.status_code == 200, "its own service takes the token all the same"
    other = gateway.post(gateway.time, "tools/list", token=echo_token, headers=headers)
    assert other.status_code == 401


def test_revoked_refresh_token_ends_the_sign_in(gateway: Gateway, fresh_client: McpClient) -> None:
    fresh_client.tools(gateway.echo)
    held = fresh_client.credentials(gateway.echo)
    assert "tools" in message(gateway.post(gateway.echo, "tools/list", token=held["access_token"]))["result"]
    revoked = gateway.http.post(
        f"{gateway.issuer}/revoke", data={"token": held["refresh_token"], "client_id": held["client_id"]}
    )
    assert revoked.status_code == 200
    refused = gateway.post(gateway.echo, "tools/list", token=held["access_token"])
    assert refused.status_code == 401
    assert challenge(refused)["error"] == "invalid_token"
    refreshed = gateway.http.post(
        f"{gateway.issuer}/token",
        data={
            "grant_type": "refresh_token",
            "refresh_token": held["refresh_token"],
            "client_id": held["client_id"],
        },
    )
    assert refreshed.status_code == 400
    assert refreshed.json()["error"] == "invalid_grant"


# covers: revocation
def test_revoked_access_token_is_refused_at_once(gateway: Gateway, fresh_client: McpClient) -> None:
    fresh_client.tools(gateway.echo)
    held = fresh_client.credentials(gateway.echo)
    assert gateway.post(gateway.echo, "tools/list", token=held["access_token"]).status_code == 200
    revoked = gateway.http.post(
        f"{gateway.issuer}/revoke", data={"token": held["access_token"], "client_id": held["client_id"]}
    )
    assert revoked.status_code == 200
    assert gateway.post(gateway.echo, "tools/list", token=held["access_token"]).status_code == 401
