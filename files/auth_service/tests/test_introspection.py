"""Token introspection (RFC 7662)."""

import time
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from conftest import ECHO, ISSUER, RESOURCES, Browser, Fleet, Node, Tokens, tokens_of
from test_check import forge, signing_key

INACTIVE = {"active": False}


@dataclass
class Asker:
    """A client with a secret, and its tokens."""

    browser: Browser
    client_id: str
    secret: str
    tokens: Tokens

    def ask(self, token: str | None, **changes: str) -> httpx.Response:
        form = {"client_id": self.client_id, "client_secret": self.secret, **changes}
        return self.browser.post("/introspect", data=form if token is None else {**form, "token": token})

    def refresh(self) -> Tokens:
        answer = self.browser.refresh(self.client_id, self.tokens.refresh, client_secret=self.secret)
        return tokens_of(answer)


def asker_at(browser: Browser) -> Asker:
    registered = browser.register(token_endpoint_auth_method="client_secret_post")
    client_id, secret = registered["client_id"], registered["client_secret"]
    answer = browser.exchange(client_id, browser.code(client_id), client_secret=secret)
    return Asker(browser, client_id, secret, tokens_of(answer))


@pytest.fixture
def asker(browser: Browser) -> Asker:
    return asker_at(browser)


# covers: introspection
def test_an_access_token(asker: Asker) -> None:
    answer = asker.ask(asker.tokens.access)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    told: dict[str, Any] = answer.json()
    assert 3500 < told.pop("exp") - time.time() <= 3600
    assert told.pop("jti")
    assert told == {
        "active": True, "token_type": "Bearer", "iss": ISSUER, "client_id": asker.client_id,
        "sub": "ana", "username": "ana", "aud": ECHO, "scope": "mcp",
    }  # fmt: skip


def test_a_refresh_token_is_active_until_it_is_used(asker: Asker) -> None:
    told = asker.ask(asker.tokens.refresh, token_type_hint="refresh_token").json()
    assert told["active"] is True
    assert "token_type" not in told
    following = asker.refresh()
    assert asker.ask(asker.tokens.refresh).json() == INACTIVE
    assert asker.ask(following.refresh).json()["active"] is True
    # To ask is not to use.
    assert tokens_of(
        asker.browser.refresh(asker.client_id, following.refresh, client_secret=asker.secret)
    ).access


@pytest.mark.parametrize("hint", ["refresh_token", "access_token", "what"])
def test_a_hint_changes_nothing(asker: Asker, hint: str) -> None:
    assert asker.ask(asker.tokens.access, token_type_hint=hint).json()["active"] is True


def test_what_has_ended_is_inactive(asker: Asker, fleet: Fleet) -> None:
    form = {"client_id": asker.client_id, "client_secret": asker.secret}
    asker.browser.post("/revoke", data={**form, "token": asker.tokens.access})
    assert asker.ask(asker.tokens.access).json() == INACTIVE
    assert asker.ask(asker.tokens.refresh).json()["active"] is True
    asker.browser.post("/revoke", data={**form, "token": asker.tokens.refresh})
    assert asker.ask(asker.tokens.refresh).json() == INACTIVE
    key = signing_key(fleet)
    over = forge(key, client_id=asker.client_id, exp=int(time.time()) - 60)
    assert asker.ask(over).json() == INACTIVE
    assert asker.ask(forge(key, client_id=asker.client_id)).json()["active"] is True


@pytest.mark.parametrize("token", ["x", "a.b.c", "ghr_" + "A" * 65, ""])
def test_nonsense_is_inactive_or_no_request(asker: Asker, token: str) -> None:
    answer = asker.ask(token)
    assert answer.json() == INACTIVE if token else answer.json()["error"] == "invalid_request"


# covers: introspection
def test_others_tokens_are_as_unknown_as_none(asker: Asker, browser: Browser, fleet: Fleet) -> None:
    other = browser.tokens(browser.register()["client_id"])
    unknown = asker.ask("a.b.c")
    for token in (other.access, other.refresh, forge(signing_key(fleet), client_id="someone")):
        answer = asker.ask(token)
        assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content)
    assert "www-authenticate" not in unknown.headers


# covers: introspection
def test_whoever_asks_has_to_prove_who_it_is(asker: Asker, browser: Browser) -> None:
    public = browser.register()["client_id"]
    for form in (
        {"client_id": asker.client_id},
        {"client_id": asker.client_id, "client_secret": "wrong"},
        {"client_id": public},
        {"client_id": "ghc_" + "A" * 22, "client_secret": "x"},
        {},
    ):
        answer = browser.post("/introspect", data={**form, "token": asker.tokens.access})
        assert answer.status_code in (400, 401), form
        assert "active" not in answer.json()
    assert asker.ask(None).json()["error"] == "invalid_request"


def test_a_person_who_may_no_longer_is_inactive(fleet: Fleet, node: Node) -> None:
    closed = fleet.start(resources={**RESOURCES, "echo": {"resource": ECHO, "allow": {"users": ["bob"]}}})
    with node.browser() as browser, closed.browser() as elsewhere:
        asker = asker_at(browser)
        asker.browser = elsewhere
        assert asker.ask(asker.tokens.access).json() == INACTIVE
        assert asker.ask(asker.tokens.refresh).json() == INACTIVE


def test_redis_away_is_not_inactive(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        asker = asker_at(browser)
        own_fleet.redis.stop()
        assert asker.ask(asker.tokens.access).status_code == 503
