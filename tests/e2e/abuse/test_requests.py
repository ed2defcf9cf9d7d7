"""Request smuggling, host and forwarded-header spoofing, paths that lead around (RFC 9112 section 11.2)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from attack import Attacker
from gateway import Gateway

SMUGGLED = "POST /mcp HTTP/1.1\r\nHost: {host}\r\nX-Gatehouse-User: root\r\nContent-Length: 2\r\n\r\n{{}}"


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked\r\nContent-Length: 5",
        "Transfer-Encoding : chunked\r\nContent-Length: 5",
        "Transfer-Encoding:\x0bchunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 0",
        "Content-Length: +5",
        "Content-Length: 5, 0",
    ],
    ids=repr,
)
def test_no_request_hides_in_another(attacker: Attacker, tokens: dict[str, Any], framing: str) -> None:
    """Whatever the framing means to whom, what follows is never answered as somebody else's."""
    host = f"echo.{attacker.gateway.domain}"
    outer = (
        f"POST /mcp HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {tokens['access_token']}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n0\r\n\r\n"
    )
    answer = attacker.raw(host, (outer + SMUGGLED.format(host=host)).encode("latin-1"))
    statuses = re.findall(rb"HTTP/1\.1 (\d{3})", answer)
    assert b"root" not in answer
    assert b"200" not in statuses, "neither was a call"
    assert statuses[1:] in ([], [b"401"]), "the second one, if it is one, had no token"


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Uri", "/internal/health"),
        ("X-Forwarded-Method", "GET"),
        ("X-Original-URL", "/internal/health"),
        ("X-Rewrite-URL", "/internal/health"),
        ("Forwarded", "host=evil.example;proto=http"),
        ("X-HTTP-Method-Override", "DELETE"),
    ],
)
def test_no_header_says_where_we_are(gateway: Gateway, header: tuple[str, str]) -> None:
    document = gateway.http.get(f"{gateway.issuer}/.well-known/oauth-authorization-server", headers=[header])
    assert document.json()["issuer"] == gateway.issuer
    refused = gateway.http.post(gateway.echo, json={}, headers=[header])
    assert refused.status_code == 401
    assert "evil.example" not in refused.headers["www-authenticate"] + document.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1:18000", "localhost", "evil.example", "auth.evil.example", "a b", ""]
)
def test_no_other_host_is_served(attacker: Attacker, host: str) -> None:
    name = f"auth.{attacker.gateway.domain}"
    request = f"GET /internal/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = attacker.raw(name, request.encode())
    assert re.match(rb"HTTP/1\.1 (400|404|421)", answer), answer[:100]
    assert b"keyring" not in answer


def test_the_wrong_service_s_host_does_not_choose_the_rules(
    attacker: Attacker, tokens: dict[str, Any]
) -> None:
    """TLS for one host, a request for another: its own rules hold."""
    request = (
        f"POST /mcp HTTP/1.1\r\nHost: time.{attacker.gateway.domain}\r\n"
        f"Authorization: Bearer {tokens['access_token']}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    )
    answer = attacker.raw(f"echo.{attacker.gateway.domain}", request.encode())
    assert re.match(rb"HTTP/1\.1 (401|421)", answer), answer[:100]
