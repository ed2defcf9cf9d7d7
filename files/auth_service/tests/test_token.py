"""The token endpoint: codes, refresh, and what is refused."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ECHO, FILES, ISSUER, REDIRECT, Browser, Fleet, Node, tokens_of, wait_for

from gatehouse_auth.connections import DATA_SET, connect
from gatehouse_auth.store import Store


# covers: code-once
def test_a_code_works_once_and_its_replay_revokes_what_it_gave(
    browser: Browser, node: Node, client_id: str
) -> None:
    code = browser.code(client_id)
    tokens = tokens_of(browser.exchange(client_id, code))
    assert node.check(tokens.access).status_code == 200
    replay = browser.exchange(client_id, code)
    assert (replay.status_code, replay.json()["error"]) == (400, "invalid_grant")
    assert node.check(tokens.access).status_code == 401
    assert browser.refresh(client_id, tokens.refresh).json()["error"] == "invalid_grant"


# covers: code-once
def test_two_exchanges_at_once_give_one_grant(browser: Browser, node: Node, client_id: str) -> None:
    code = browser.code(client_id)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: browser.exchange(client_id, code), range(8)))
    good = [answer for answer in answers if answer.status_code == 200]
    assert len(good) <= 1
    assert {answer.json()["error"] for answer in answers if answer.status_code != 200} == {"invalid_grant"}


# covers: pkce
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": "x" * 43}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_request"),
        ({"code_verifier": "short"}, "invalid_request"),
        ({"redirect_uri": "https://client.example.test/other"}, "invalid_grant"),
        ({"resource": FILES}, "invalid_target"),
        ({"code": "wrong"}, "invalid_grant"),
        ({"code": ""}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "\u00fc"}, "invalid_request"),
        ({"grant_type": ""}, "unsupported_grant_type"),
    ],
)
def test_a_failed_exchange_is_refused_and_consumes_nothing(
    browser: Browser, client_id: str, changes: dict[str, str], error: str
) -> None:
    code = browser.code(client_id)
    refused = browser.exchange(client_id, code, **changes)
    assert (refused.status_code, refused.json()["error"]) == (400, error)
    assert refused.headers["cache-control"] == "no-store"
    assert browser.exchange(client_id, code, resource=ECHO).status_code == 200


# covers: token-redirect
def test_the_redirect_uri_may_be_left_out(browser: Browser, client_id: str) -> None:
    assert browser.exchange(client_id, browser.code(client_id), redirect_uri="").status_code == 200


# covers: code-once
def test_a_code_is_bound_to_its_client(browser: Browser, client_id: str) -> None:
    code = browser.code(client_id)
    other = browser.register()["client_id"]
    assert browser.exchange(other, code).json()["error"] == "invalid_grant"
    assert browser.exchange(client_id, code).status_code == 200


# covers: code-once
def test_a_code_lives_for_a_minute(browser: Browser, fleet: Fleet, client_id: str) -> None:
    redis = fleet.redis.admin
    # The fleet's Redis is shared: only the keys that this code brought are of this test.
    before = set(redis.scan_iter("gh:code:*"))
    browser.code(client_id)
    [key] = set(redis.scan_iter("gh:code:*")) - before
    assert 50 < int(str(redis.ttl(key))) <= 60


# covers: stale-client
def test_a_stale_client_is_invalid_client(browser: Browser, client_id: str) -> None:
    code = browser.code(client_id)
    refused = browser.exchange("ghc_" + "A" * 22, code)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    assert browser.refresh("ghc_" + "A" * 22, "x").status_code == 401
    assert browser.post("/token", data={"grant_type": "authorization_code"}).status_code == 401


def test_a_confidential_client_has_to_prove_itself(browser: Browser, node: Node) -> None:
    registered = browser.register(token_endpoint_auth_method="client_secret_post")
    client_id, secret = registered["client_id"], registered["client_secret"]
    code = browser.code(client_id)
    for changes in ({}, {"client_secret": "wrong"}):
        refused = browser.exchange(client_id, code, **changes)
        assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
        assert "www-authenticate" not in refused.headers
    tokens = tokens_of(browser.exchange(client_id, code, client_secret=secret))
    assert browser.refresh(client_id, tokens.refresh).status_code == 401
    assert browser.refresh(client_id, tokens.refresh, client_secret=secret).status_code == 200


def test_a_client_from_inventory_uses_basic(browser: Browser) -> None:
    code = browser.code("machine")
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": REDIRECT,
        "code_verifier": browser.verifier,
    }
    wrong = browser.post("/token", data=form, auth=("machine", "wrong"))
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"].startswith("Basic")
    twice = browser.post("/token", data={**form, "client_id": "other"}, auth=("machine", "machine-secret"))
    assert twice.json()["error"] == "invalid_request"
    assert browser.post("/token", data=form, auth=("machine", "machine-secret")).status_code == 200


# covers: oauth-errors
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{}", "application/json"),
        (b"grant_type=a&grant_type=b", "application/x-www-form-urlencoded"),
        (b"\xff", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % number for number in range(100)), "application/x-www-form-urlencoded"),
        (b"", ""),
    ],
)
def test_malformed_requests_are_invalid_request(browser: Browser, content: bytes, kind: str) -> None:
    for path in ("/token", "/revoke"):
        response = browser.post(path, content=content, headers={"Content-Type": kind})
        assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


# covers: refresh-rotation
def test_refresh_rotates_and_the_grace_window_gives_the_same_successor(
    browser: Browser, node: Node, client_id: str
) -> None:
    first = browser.tokens(client_id)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: browser.refresh(client_id, first.refresh), range(4)))
    successors = {answer.json()["refresh_token"] for answer in answers}
    assert len(successors) == 1
    assert first.refresh not in successors
    second = tokens_of(browser.refresh(client_id, successors.pop()))
    assert node.check(second.access).status_code == 200


# covers: refresh-rotation
def test_a_refresh_token_from_before_revokes_the_family(browser: Browser, node: Node, client_id: str) -> None:
    first = browser.tokens(client_id)
    second = tokens_of(browser.refresh(client_id, first.refresh))
    third = tokens_of(browser.refresh(client_id, second.refresh))
    assert node.check(third.access).status_code == 200
    assert browser.refresh(client_id, first.refresh).json()["error"] == "invalid_grant"
    assert node.check(third.access).status_code == 401
    assert browser.refresh(client_id, third.refresh).json()["error"] == "invalid_grant"
    assert node.records("replay")


# covers: refresh-rotation
def test_reuse_after_the_grace_window_revokes_the_family(fleet: Fleet) -> None:
    node = fleet.start(refresh_grace_seconds="1")
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        first = browser.tokens(client_id)
        second = tokens_of(browser.refresh(client_id, first.refresh))
        time.sleep(1.2)
        assert browser.refresh(client_id, first.refresh).json()["error"] == "invalid_grant"
        assert node.check(second.access).status_code == 401


# covers: no-fault-consumes, refresh-rotation
def test_a_rotation_whose_reply_was_lost_is_no_replay_even_without_a_grace_window(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        browser.tokens(browser.register()["client_id"])
    [name] = own_fleet.redis.admin.scan_iter("gh:family:*")

    async def outcomes() -> list[tuple[str, str]]:
        redis = connect(own_fleet.redis.url, own_fleet.redis.password).commands
        store = Store(redis, access_seconds=60, refresh_seconds=3600, grace_seconds=0)
        family = await store.family(name.removeprefix("gh:family:"))
        assert family is not None
        found = []
        for successor, salt in (("next", "salt"), ("next", "salt"), ("other", "pepper")):
            found.append(await store.rotate_refresh(family, family.current, successor, salt))
            await asyncio.sleep(0.01)
        await redis.aclose()
        return found

    assert asyncio.run(outcomes()) == [("done", "salt"), ("done", "salt"), ("replayed", "")]


# covers: resource
def test_refresh_keeps_to_the_grants_resource_and_a_failed_one_consumes_nothing(
    browser: Browser, client_id: str
) -> None:
    token = browser.tokens(client_id).refresh
    assert browser.refresh(client_id, token, resource=FILES).json()["error"] == "invalid_target"
    assert browser.refresh(client_id, token, scope="mcp admin").json()["error"] == "invalid_scope"
    other = browser.register()["client_id"]
    assert browser.refresh(other, token).json()["error"] == "invalid_grant"
    assert browser.refresh(client_id, token[:-1]).json()["error"] == "invalid_grant"
    assert browser.refresh(client_id, "").json()["error"] == "invalid_request"
    assert browser.refresh(client_id, token, resource=ECHO).status_code == 200


# covers: access-again
def test_refresh_asks_again_whether_the_person_may(fleet: Fleet) -> None:
    strict = {"echo": {"resource": ECHO, "allow": {"users": ["bob"]}}}
    before, after = fleet.start(), fleet.start(resources=strict)
    with before.browser() as browser, after.browser() as later:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
        assert later.refresh(client_id, tokens.refresh).json()["error"] == "invalid_grant"
        assert after.check(tokens.access).status_code == 403
        # Nothing was consumed: whoever is let in again goes on.
        assert browser.refresh(client_id, tokens.refresh).status_code == 200


def test_a_client_that_did_not_register_for_refresh_gets_none(browser: Browser) -> None:
    client_id = browser.register(grant_types=["authorization_code"])["client_id"]
    response = browser.exchange(client_id, browser.code(client_id))
    assert "refresh_token" not in response.json()


def test_redis_knows_only_digests(browser: Browser, fleet: Fleet, client_id: str) -> None:
    code = browser.code(client_id)
    tokens = tokens_of(browser.exchange(client_id, code))
    redis = fleet.redis.admin
    kept = []
    for key in redis.scan_iter("gh:*"):
        kind = str(redis.type(key))
        readers = {"hash": redis.hgetall, "string": redis.get}
        kept.append(str((key, readers[kind](key) if kind in readers else "")))
        if kind != "zset" and key != DATA_SET:
            assert int(str(redis.ttl(key))) != -1, key  # -2: expired since the scan
    text = "\n".join(kept)
    for secret in (code, tokens.refresh, tokens.refresh[26:], tokens.refresh[4:26], tokens.access):
        assert secret not in text


def test_another_node_honours_codes_and_tokens(fleet: Fleet, browser: Browser, client_id: str) -> None:
    other = fleet.start()
    with other.browser() as elsewhere:
        elsewhere.verifier = browser.verifier
        tokens = tokens_of(elsewhere.exchange(client_id, browser.code(client_id)))
        assert other.check(tokens.access).status_code == 200
        assert tokens_of(browser.refresh(client_id, tokens.refresh)).access


# covers: revocation
def test_revoking_a_refresh_token_ends_the_grant_on_every_node(
    browser: Browser, node: Node, fleet: Fleet, client_id: str
) -> None:
    other = fleet.start()
    tokens = browser.tokens(client_id)
    assert node.check(tokens.access).status_code == other.check(tokens.access).status_code == 200
    response = browser.post("/revoke", data={"client_id": client_id, "token": tokens.refresh})
    assert response.status_code == 200
    assert node.check(tokens.access).status_code == 401
    wait_for(lambda: other.check(tokens.access).status_code == 401)
    assert browser.refresh(client_id, tokens.refresh).json()["error"] == "invalid_grant"


# covers: revocation
def test_revoking_an_access_token_leaves_the_grant(browser: Browser, node: Node, client_id: str) -> None:
    tokens = browser.tokens(client_id)
    assert node.check(tokens.access).status_code == 200
    hint = {"token_type_hint": "nonsense"}
    assert (
        browser.post("/revoke", data={"client_id": client_id, "token": tokens.access, **hint}).status_code
        == 200
    )
    assert node.check(tokens.access).status_code == 401
    assert browser.refresh(client_id, tokens.refresh).status_code == 200


# covers: revocation
def test_revocation_asks_who_and_gives_nothing_away(browser: Browser, node: Node, client_id: str) -> None:
    tokens = browser.tokens(client_id)
    other = browser.register()["client_id"]
    assert browser.post("/revoke", data={"token": tokens.refresh}).status_code == 401
    assert browser.post("/revoke", data={"client_id": other, "token": tokens.refresh}).status_code == 400
    assert browser.post("/revoke", data={"client_id": client_id}).json()["error"] == "invalid_request"
    assert browser.post("/revoke", data={"client_id": client_id, "token": "unknown"}).status_code == 200
    assert browser.post("/revoke", data={"client_id": client_id, "token": "a.b.c"}).status_code == 200
    assert node.check(tokens.access).status_code == 200


# covers: audit
def test_audit_says_who_and_why(browser: Browser, node: Node, client_id: str) -> None:
    browser.tokens(client_id)
    browser.exchange(client_id, "wrong")
    records = [record for record in node.records("token") if record.get("client") == client_id]
    assert records[0]["outcome"] == "allow"
    assert records[0]["user"] == "ana"
    assert records[-1] == {**records[-1], "outcome": "deny", "reason": "invalid_grant"}
    assert ISSUER not in records[0].values()


# covers: revocation
def test_what_is_revoked_stays_so_when_tokens_have_become_short(own_fleet: Fleet) -> None:
    long, short = own_fleet.start(access_token_seconds="86400"), own_fleet.start(access_token_seconds="60")
    admin = own_fleet.redis.admin

    def lasts() -> int:
        """The life of the one mark that there is, which goes."""
        [mark] = admin.scan_iter("gh:revoked:*")
        seconds = int(admin.ttl(mark))
        admin.delete(mark)
        return seconds

    with long.browser() as browser, short.browser() as later:
        registered = browser.register()
        client_id = registered["client_id"]
        old, new = browser.tokens(client_id), later.tokens(client_id)
        for token in (old.access, old.refresh, new.refresh):
            assert later.post("/revoke", data={"client_id": client_id, "token": token}).status_code == 200
            assert lasts() > 86400
        assert later.post("/revoke", data={"client_id": client_id, "token": new.access}).status_code == 200
        assert lasts() <= 60 + 120, "no longer than the token"
        # Strangers register and go as often as they like: what was never used leaves no such mark.
        for app, most in ((registered, 86520), (browser.register(), 180)):
            management = {"Authorization": f"Bearer {app['registration_access_token']}"}
            path = app["registration_client_uri"].removeprefix(ISSUER)
            assert later.delete(path, headers=management).status_code == 204
            assert most - 10 < lasts() <= most
