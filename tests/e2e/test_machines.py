"""A machine: a client from inventory that calls a tool by itself, without a person."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator

import pytest
from clients.driver import ClientError
from conftest import ClientFactory
from fleet import Fleet
from gateway import Gateway

NAME = "nightly"


@pytest.fixture(scope="module")
def machine(fleet: Fleet) -> Iterator[tuple[str, str]]:
    """Its secret, and what the rollout said; the fleet is as the inventory says afterwards."""
    secret = secrets.token_urlsafe(32)
    variables = {
        "gatehouse_clients": {
            NAME: {
                "client_name": "Nightly report",
                "client_secret": secret,
                "grant_types": ["client_credentials"],
            }
        },
        "gatehouse_allow": {"groups": ["staff"], "clients": [NAME]},
    }
    played = fleet.play("site.yml", variables, "-vvv", "--diff")
    assert played.status == 0, played.output[-3000:]
    yield secret, played.output
    assert fleet.play("site.yml").status == 0


def basic(secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{NAME}:{secret}".encode()).decode()}


# covers: client-credentials
def test_a_machine_calls_a_tool(gateway: Gateway, fleet: Fleet, machine: tuple[str, str]) -> None:
    secret, output = machine
    form = {"grant_type": "client_credentials", "resource": gateway.echo}
    granted = gateway.http.post(f"{gateway.issuer}/token", data=form, headers=basic(secret))
    assert granted.status_code == 200, granted.text
    assert "refresh_token" not in granted.json()
    token = granted.json()["access_token"]
    assert gateway.call(gateway.echo, "echo", token=token, text="by itself") == "by itself"
    assert gateway.post(gateway.time, "tools/list", token=token).status_code == 401, "another service"

    told = gateway.http.post(f"{gateway.issuer}/introspect", data={"token": token}, headers=basic(secret))
    assert (told.json()["active"], told.json()["sub"]) == (True, f"client:{NAME}")
    gateway.http.post(f"{gateway.issuer}/revoke", data={"token": token}, headers=basic(secret))
    assert gateway.post(gateway.echo, "tools/list", token=token).status_code == 401

    assert secret not in output
    for host in fleet.hosts("gateway_edge"):
        journal = host.check_output("journalctl --no-pager --output cat")
        shown = host.check_output("systemctl show 'gatehouse-auth@*'; cat /etc/gatehouse/auth/.env")
        assert secret not in journal + shown
    assert gateway.http.post(f"{gateway.issuer}/token", data=form, headers=basic("x")).status_code == 401


# covers: client-credentials, introspection, revocation, clients-openid
def test_openid_client_is_a_machine(
    clients: ClientFactory, gateway: Gateway, machine: tuple[str, str]
) -> None:
    secret, _ = machine
    with clients.start("openid-client") as client:
        client.order("machine", gateway.echo, client_id=NAME, client_secret=secret)
        assert client.call(gateway.echo, "echo", text="by itself") == "by itself"
        told = client.order("introspect", gateway.echo, token="access_token")
        assert (told["active"], told["client_id"], told["aud"]) == (True, NAME, gateway.echo)
        client.order("revoke", gateway.echo, token="access_token")
        assert client.order("introspect", gateway.echo, token="access_token") == {"active": False}
        with pytest.raises(ClientError, match="challenge"):
            client.order("machine", gateway.echo, client_id=NAME, client_secret="x")
        assert client.sign_ins == 0
