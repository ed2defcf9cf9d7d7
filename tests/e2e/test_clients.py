"""Clients that other teams wrote, each from nothing to a tool's answer, on a native and on a stdio service."""

from __future__ import annotations

import json

import pytest
from clients.driver import ClientError, McpClient
from conftest import ClientFactory
from gateway import Gateway

NEWEST = "2026-07-28"


def test_person_who_says_no_lets_no_client_in(client: McpClient, gateway: Gateway) -> None:
    client.agrees = False
    with pytest.raises(ClientError, match=r"(?i)access(_| was )denied"):
        client.tools(gateway.echo)
    client.agrees = True
    assert client.sign_ins == 1


# covers: clients-sdk, clients-sdk-2, clients-fastmcp, clients-mcp-remote, clients-openid
def test_signs_in_and_calls_a_tool_on_both_services(client: McpClient, gateway: Gateway) -> None:
    asked_before = client.sign_ins
    assert {"echo", "whoami", "headers"} <= set(client.tools(gateway.echo))
    assert client.call(gateway.echo, "echo", text="grüß Gott") == "grüß Gott"
    assert "get_current_time" in client.tools(gateway.time)
    now = json.loads(client.call(gateway.time, "get_current_time", timezone="Europe/Vienna"))
    assert now["timezone"] == "Europe/Vienna"
    assert client.sign_ins == asked_before + 2


def test_service_learns_who_signed_in(client: McpClient, gateway: Gateway, clients: ClientFactory) -> None:
    identity = json.loads(client.call(gateway.echo, "whoami"))
    held = client.credentials(gateway.echo)
    assert identity["user"] == clients.person.user
    assert identity["client"] == held["client_id"]
    assert identity["scope"].split() == held["scope"].split()


# covers: refresh-answer, clients-sdk, clients-sdk-2, clients-fastmcp, clients-mcp-remote, clients-openid
def test_refreshes_without_the_person(client: McpClient, gateway: Gateway) -> None:
    before = client.credentials(gateway.echo)
    signed_in = client.sign_ins
    client.expire(gateway.echo)
    assert client.call(gateway.echo, "echo", text="after the refresh") == "after the refresh"
    after = client.credentials(gateway.echo)
    assert after["access_token"] != before["access_token"]
    assert after["refresh_token"] != before["refresh_token"], "refresh tokens are rotated"
    assert after["client_id"] == before["client_id"]
    assert client.sign_ins == signed_in


# covers: eras, clients-sdk, clients-sdk-2, clients-fastmcp, clients-mcp-remote
def test_speaks_its_protocols_with_one_sign_in(client: McpClient, gateway: Gateway) -> None:
    signed_in = client.sign_ins
    modes = ("legacy",) if client.kind.endswith("-1") else ("legacy", "auto")
    for mode in modes:
        client.connect(gateway.echo, mode)
        received = json.loads(client.call(gateway.echo, "headers"))
        assert (received["mcp-protocol-version"] == NEWEST) == (mode == "auto")
        client.connect(gateway.time, mode)
        assert "convert_time" in client.tools(gateway.time)
        now = json.loads(client.call(gateway.time, "get_current_time", timezone="Asia/Tokyo"))
        assert now["timezone"] == "Asia/Tokyo"
    assert client.sign_ins == signed_in


# covers: resource
def test_token_of_one_service_opens_no_other(client: McpClient, gateway: Gateway) -> None:
    for own, other in ((gateway.echo, gateway.time), (gateway.time, gateway.echo)):
        token = client.credentials(own)["access_token"]
        assert gateway.post(own, "tools/list", token=token).status_code != 401
        refused = gateway.post(other, "tools/list", token=token)
        assert refused.status_code == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]


# covers: identity-headers
def test_authorization_never_reaches_the_service(client: McpClient, gateway: Gateway) -> None:
    received = client.call(gateway.echo, "headers")
    held = client.credentials(gateway.echo)
    assert "x-gatehouse-user" in received.lower()
    assert "authorization" not in received.lower()
    assert held["access_token"] not in received
    assert held["access_token"].rpartition(".")[2] not in received
