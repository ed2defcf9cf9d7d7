"""Redirect tricks: no address but the client's own ever gets a code (RFC 9700 section 4.1)."""

from __future__ import annotations

import pytest
from attack import REDIRECT, Attacker

TRICKS = [
    "https://client.example.evil.example/callback",
    "https://client.example@evil.example/callback",
    "https://client.example:443@evil.example/callback",
    "https://evil.example/https://client.example/callback",
    "https://evil.example#https://client.example/callback",
    "https://client.example/callback#@evil.example",
    "https://client.example/callback/../../evil",
    "https://client.example/callback%2f..%2fevil",
    "https://client.example/callback?x=y",
    "https://client.example/callback/",
    "https://client.example/Callback",
    "https://CLIENT.example/callback",
    "https://client.example./callback",
    "https://client.example:8443/callback",
    "http://client.example/callback",
    "//client.example/callback",
    "https:/client.example/callback",
    "https:\\\\client.example\\callback",
    "https://cl\u0131ent.example/callback",
    "https://client\u3002example/callback",
    "https://client.example/callback\r\nLocation: https://evil.example",
    "https://client.example/callback\x00",
    " https://client.example/callback",
    "javascript:alert(1)",
    "data:text/html,x",
    "file:///etc/passwd",
    "",
]


@pytest.mark.parametrize("redirect_uri", TRICKS)
def test_nobody_is_sent_there(attacker: Attacker, client_id: str, redirect_uri: str) -> None:
    answer = attacker.gateway.http.get(
        attacker.url(client_id, redirect_uri=redirect_uri), follow_redirects=False
    )
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert "evil.example" not in answer.text, "not even as a link"


def test_two_redirect_uris_are_none(attacker: Attacker, client_id: str) -> None:
    url = f"{attacker.url(client_id)}&redirect_uri=https%3A%2F%2Fevil.example"
    assert attacker.gateway.http.get(url, follow_redirects=False).status_code == 400


@pytest.mark.parametrize(
    "redirect_uri",
    [
        *TRICKS[1:3],
        *TRICKS[-6:-1],
        "http://evil.example/",
        "http://localhost.evil.example/",
        "http://127.0.0.2/",
    ],
)
def test_such_an_address_cannot_be_registered(attacker: Attacker, redirect_uri: str) -> None:
    answer = attacker.gateway.http.post(
        f"{attacker.gateway.issuer}/register",
        json={"redirect_uris": [redirect_uri], "token_endpoint_auth_method": "none"},
    )
    assert answer.status_code == 400
    mixed = attacker.register(redirect_uris=[redirect_uri, REDIRECT])
    assert mixed["redirect_uris"] == [REDIRECT]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_loopback_address_may_change_its_port_and_nothing_else(attacker: Attacker, host: str) -> None:
    client_id = attacker.register(redirect_uris=[f"http://{host}:1/cb"])["client_id"]
    for uri, status in (
        (f"http://{host}:65535/cb", 303),
        (f"http://{host}:1/cb2", 400),
        (f"http://{host}.evil.example:1/cb", 400),
        (f"http://{host}:1@evil.example/cb", 400),
        (f"https://{host}:1/cb", 400),
        ("http://127.0.0.2:1/cb", 400),
    ):
        answer = attacker.gateway.http.get(attacker.url(client_id, redirect_uri=uri), follow_redirects=False)
        assert answer.status_code == status, uri
