"""A service may believe its identity headers: nobody outside can set, add to, or remove one."""

from __future__ import annotations

import json

import pytest
from browserless import Person
from gateway import Gateway

SMUGGLED = "smuggled-root"
SPELLINGS = [
    "X-Gatehouse-User",
    "x-gatehouse-user",
    "X-GATEHOUSE-USER",
    "X_Gatehouse_User",
    "X-Gatehouse_User",
    "X.Gatehouse.User",
    "X-Gatehouse-Name",
    "X-Gatehouse-Email",
    "X-Gatehouse-Groups",
    "X-Gatehouse-Client",
    "X-Gatehouse-Scope",
    "X-Gatehouse-Role",
]


# covers: identity-headers
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_header_from_outside_never_arrives(
    gateway: Gateway, echo_token: str, person: Person, spelling: str
) -> None:
    forged = [(spelling, SMUGGLED)]
    probe = gateway.post(gateway.echo, "tools/list", token=echo_token, headers=forged)
    if probe.status_code == 400:
        return  # refused altogether, which is as good
    for headers in (forged, [*forged, *forged]):
        identity = json.loads(gateway.call(gateway.echo, "whoami", token=echo_token, headers=headers))
        assert identity["user"] == person.user
        assert SMUGGLED not in gateway.call(gateway.echo, "headers", token=echo_token, headers=headers)


# covers: identity-headers
@pytest.mark.parametrize("listed", ["X-Gatehouse-User", "close, x-gatehouse-user, X-Gatehouse-Groups"])
def test_connection_header_cannot_remove_the_identity(
    gateway: Gateway, echo_token: str, person: Person, listed: str
) -> None:
    """`Connection` names headers that a proxy drops on the way (RFC 9110 section 7.6.1)."""
    identity = json.loads(
        gateway.call(gateway.echo, "whoami", token=echo_token, headers=[("Connection", listed)])
    )
    assert identity["user"] == person.user


def test_identity_without_a_token_is_nobody(gateway: Gateway) -> None:
    forged = [(spelling, SMUGGLED) for spelling in SPELLINGS]
    assert gateway.post(gateway.echo, "tools/list", headers=forged).status_code in (400, 401)


def test_two_authorization_headers_are_refused(gateway: Gateway, echo_token: str) -> None:
    second = [("Authorization", "Bearer other")]
    response = gateway.post(gateway.echo, "tools/list", token=echo_token, headers=second)
    assert response.status_code in (400, 401)


# covers: identity-headers
def test_credentials_stay_at_the_edge(gateway: Gateway, echo_token: str) -> None:
    extra = [("Proxy-Authorization", "Bearer other-secret")]
    received = gateway.call(gateway.echo, "headers", token=echo_token, headers=extra)
    assert echo_token not in received
    assert "other-secret" not in received
    assert "authorization" not in received.lower()
