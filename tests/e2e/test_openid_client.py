"""openid-client, a certified relying party that takes nothing on trust: what other clients leave out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from browserless import Person
from clients.driver import ClientError, McpClient
from conftest import ClientFactory
from gateway import Gateway
from pages import fill_in, opened, press_allow
from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def party(clients: ClientFactory) -> Iterator[McpClient]:
    with clients.start("openid-client") as started:
        yield started


# covers: as-metadata, dcr, clients-openid
def test_both_documents_say_the_same_of_the_server(party: McpClient, gateway: Gateway) -> None:
    found = party.order("documents", gateway.echo)
    assert found["oauth2"]["issuer"] == gateway.issuer
    # What OpenID Connect requires beyond OAuth may stand in its own document.
    assert found["oauth2"].items() <= found["oidc"].items()


# covers: iss, mix-up, clients-openid
def test_answer_of_another_issuer_is_not_redeemed(party: McpClient, gateway: Gateway) -> None:
    signed_in = party.sign_ins
    for refused in party.order("other-issuer", gateway.time):
        assert '"iss"' in refused
    assert "get_current_time" in party.tools(gateway.time), "the genuine answer was still good"
    assert party.sign_ins == signed_in + 1


# covers: introspection, revocation, refresh-answer, clients-openid
def test_client_with_a_secret_asks_about_its_tokens_and_ends_them(
    party: McpClient, gateway: Gateway, person: Person
) -> None:
    party.tools(gateway.echo)
    signed_in = party.sign_ins
    held = party.credentials(gateway.echo)
    told = party.order("introspect", gateway.echo, token="access_token")
    assert (told["active"], told["sub"], told["aud"]) == (True, person.user, gateway.echo)
    assert (told["iss"], told["client_id"]) == (gateway.issuer, held["client_id"])
    party.order("refresh", gateway.echo)
    renewed = party.credentials(gateway.echo)
    assert renewed["refresh_token"] != held["refresh_token"]
    party.order("revoke", gateway.echo, token="refresh_token")
    for token in ("access_token", "refresh_token"):
        assert party.order("introspect", gateway.echo, token=token) == {"active": False}
    for token in (held["access_token"], renewed["access_token"]):
        assert gateway.post(gateway.echo, "tools/list", token=token).status_code == 401
    with pytest.raises(ClientError, match="invalid_grant"):
        party.order("refresh", gateway.echo)
    assert party.sign_ins == signed_in


# covers: device, clients-openid
def test_device_calls_a_tool(
    clients: ClientFactory, gateway: Gateway, chromium: Browser, person: Person
) -> None:
    with clients.start("openid-client") as client:
        shown = client.order("device", gateway.echo)
        with opened(chromium) as (_, watched):
            page = watched.page
            page.goto(shown["verification_uri_complete"])
            page.get_by_role("button", name="Continue").click()
            assert shown["user_code"] in page.inner_text("main")
            press_allow(page)
            fill_in(page, person.user, person.password)
            assert "is connected" in page.get_by_role("status").inner_text()
        client.order("poll", gateway.echo)
        assert json.loads(client.call(gateway.echo, "whoami"))["user"] == person.user
        client.expire(gateway.echo)
        assert client.call(gateway.echo, "echo", text="after the refresh") == "after the refresh"
        assert client.sign_ins == 0
