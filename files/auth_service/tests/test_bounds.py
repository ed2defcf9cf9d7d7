"""Nothing that Redis holds for the service stays for ever, or grows without bound."""

from conftest import ECHO, Fleet
from test_account import account

from gatehouse_auth.oauth.server import DeviceGrant

# Lists that scripts cut to a length (CLIENTS, PEOPLE, UNUSED_CLIENTS).
BOUNDED = {"gh:clients", "gh:people", "gh:clients:unused", "gh:dataset"}
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
