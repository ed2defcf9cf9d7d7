"""Nothing that Redis holds for the service stays for ever, or grows without bound."""

import asyncio
import itertools
import time

import pytest
from conftest import ECHO, REDIRECT, Browser, Fleet, answer_of
from test_account import account

import gatehouse_auth.store
from gatehouse_auth.connections import connect
from gatehouse_auth.oauth.server import DeviceGrant
from gatehouse_auth.store import Flow, Store

# Lists that scripts cut to a length (CLIENTS, PEOPLE, UNUSED_CLIENTS, FLOWS).
BOUNDED = {"gh:clients", "gh:people", "gh:clients:unused", "gh:flows", "gh:dataset"}
# One of each kind that the service writes without anything of another host.
KINDS = {
    "client",
    "code",
    "decisions",
    "device",
    "family",
    "flow",
    "person",
    "polled",
    "revoked",
    "session",
    "sessions",
    "usercode",
}


def test_every_key_has_a_time_to_live_or_a_bound(own_fleet: Fleet) -> None:
    node = own_fleet.start(operators={"groups": ["staff"]})
    with node.browser() as browser:
        registered = browser.register(
            grant_types=["authorization_code", "refresh_token", DeviceGrant.GRANT_TYPE]
        )
        client_id = registered["client_id"]
        unused, rotated, ended = (browser.tokens(client_id) for _ in range(3))
        assert browser.refresh(client_id, rotated.refresh).status_code == 200
        for token in (ended.refresh, unused.access):
            assert browser.post("/revoke", data={"client_id": client_id, "token": token}).status_code == 200
        browser.code(client_id)
        browser.authorize(client_id)
        asked = browser.post("/device_authorization", data={"client_id": client_id, "resource": ECHO})
        assert asked.status_code == 200
        waiting = {
            "grant_type": DeviceGrant.GRANT_TYPE,
            "client_id": client_id,
            "device_code": asked.json()["device_code"],
        }
        assert browser.post("/token", data=waiting).json()["error"] == "authorization_pending"
        browser.register()
        assert account(browser).status_code == 200
        admin = own_fleet.redis.admin
        node.process.terminate()
        node.process.wait(30)
    held = set(admin.scan_iter("*"))
    assert held >= BOUNDED
    assert {key.split(":")[1] for key in held - BOUNDED} == KINDS
    assert [key for key in held - BOUNDED if admin.ttl(key) <= 0] == []


# covers: sign-in-flood
def test_the_newest_sign_ins_make_room_for_themselves(
    own_fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatehouse_auth.store, "FLOWS", 3)
    flow = Flow("c", "C", REDIRECT, "state", "mcp", "echo", "challenge", "browser")

    async def walk() -> None:
        redis = connect(own_fleet.redis.url, own_fleet.redis.password).commands
        store = Store(redis, access_seconds=3600, refresh_seconds=3600, grace_seconds=30)
        monkeypatch.setattr(time, "time", itertools.count(2_000_000_000).__next__)
        for number in range(5):
            await store.save_flow(str(number), flow)
        kept = [await store.flow(str(number)) for number in range(5)]
        assert kept == [None, None, flow, flow, flow]
        assert await store.update_flow("0", flow) is False
        await redis.aclose()

    asyncio.run(walk())


# covers: sign-in-flood
def test_a_request_that_is_too_long_to_be_kept(browser: Browser, client_id: str) -> None:
    for changes in ({"state": "s" * 4097}, {"ui_locales": "l" * 8000}):
        page = browser.authorize(client_id, **changes)
        assert page.status_code == 400
        assert "too long" in page.text
    state = "s" * 4096
    assert answer_of(browser.consent(browser.authorize(client_id, state=state), "no"))["state"] == state
