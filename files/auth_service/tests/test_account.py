"""The account page: what a person sees of their connections, and how they end them."""

import base64
import json
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from conftest import FILES, ISSUER, PASSWORD, Browser, Fleet, end

from gatehouse_auth.store import CONNECTIONS, digest

COOKIE = "__Host-gatehouse-account"


@pytest.fixture
def person(own_fleet: Fleet) -> Iterator[Browser]:
    """A browser at a service that nobody else has connected anything to."""
    with own_fleet.start().browser() as browser:
        yield browser


def sign_in(browser: Browser, user: str = "ana", password: str = PASSWORD) -> httpx.Response:
    """To the account, by the link that the page offers."""
    page = browser.get("/account")
    assert page.status_code == 200
    link = re.search(r'href="(/signin/local[^"]+)"', page.text)
    assert link is not None, page.text
    form = browser.get(link[1])
    return browser.post(
        "/signin/local", data={**browser.fields(form), "username": user, "password": password}
    )


def account(browser: Browser, user: str = "ana") -> httpx.Response:
    answer = sign_in(browser, user)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{ISSUER}/account")
    return browser.get("/account")


def buttons(page: httpx.Response) -> list[str]:
    return re.findall(r'name="connection" value="([^"]+)"', page.text)


# covers: account
def test_a_person_sees_what_is_connected_and_disconnects_it(person: Browser) -> None:
    client_id = person.register(client_name="Notes <b>")["client_id"]
    kept, ended = person.tokens(client_id), person.tokens(client_id, resource=FILES, scope=None)
    page = account(person)
    assert "Notes &lt;b&gt;" in page.text
    assert "<b>" not in page.text
    assert "Echo &lt;service&gt;" in page.text
    assert FILES in page.text
    assert time.strftime("%B %Y", time.gmtime()) in page.text
    assert page.headers["cache-control"] == "no-store"
    connections = buttons(page)
    assert len(connections) == 3
    assert connections[-1] == "all"

    person.refresh(client_id, ended.refresh)  # used last, so it stands first
    connections = buttons(person.get("/account"))
    fields = person.fields(page)
    done = person.post("/account/disconnect", data={**fields, "connection": connections[0]})
    assert (done.status_code, done.headers["location"]) == (303, f"{ISSUER}/account")
    assert person.node.check(ended.access, "files").status_code == 401
    assert person.refresh(client_id, ended.refresh).json()["error"] == "invalid_grant"
    assert person.node.check(kept.access).status_code == 200
    assert len(buttons(person.get("/account"))) == 1, "one is left, and nothing to end all of it"
    records = person.node.records("disconnect")
    assert [(record["user"], record["service"]) for record in records] == [("ana", "files")]


# covers: account
def test_the_connection_that_was_used_last_stands_first(own_fleet: Fleet) -> None:
    """Used, which is more than having been given tokens; and on which node does not matter."""
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = [browser.tokens(client_id) for _ in range(3)]
        before = buttons(account(browser))[:-1]
        oldest = before[-1]
        assert node.check(tokens[0].access).status_code == 200
    end(node.process)  # else it says so every half minute
    with own_fleet.start().browser() as browser:
        assert buttons(account(browser))[:-1] == [oldest, *before[:-1]]


def test_all_at_once(person: Browser) -> None:
    client_id = person.register()["client_id"]
    tokens = [person.tokens(client_id).access for _ in range(3)]
    page = account(person)
    person.post("/account/disconnect", data={**person.fields(page), "connection": "all"})
    assert {person.node.check(token).status_code for token in tokens} == {401}
    assert "No app is connected" in person.get("/account").text


# covers: account
def test_nobody_sees_or_ends_what_is_anothers(own_fleet: Fleet) -> None:
    node = own_fleet.start(allow={"everyone": True})
    with node.browser() as ana, node.browser() as bob:
        tokens = ana.tokens(ana.register()["client_id"])
        hers = buttons(account(ana))[0]
        page = account(bob, "bob")
        assert buttons(page) == []
        assert (
            bob.post("/account/disconnect", data={**bob.fields(page), "connection": hers}).status_code == 303
        )
        assert node.check(tokens.access).status_code == 200


# covers: account
@pytest.mark.parametrize("csrf", ["", "forged", "é"])
def test_a_form_of_another_page_does_nothing(person: Browser, csrf: str) -> None:
    tokens = person.tokens(person.register()["client_id"])
    page = account(person)
    for path in ("/account/disconnect", "/account/signout"):
        assert person.post(path, data={"csrf": csrf, "connection": "all"}).status_code == 400
        assert person.post(path, json={}).status_code == 400
    assert person.node.check(tokens.access).status_code == 200
    assert len(buttons(person.get("/account"))) == len(buttons(page)) == 1


def test_signing_out_ends_the_session_and_nothing_else(person: Browser) -> None:
    tokens = person.tokens(person.register()["client_id"])
    page = account(person)
    secret = person.cookies[COOKIE]
    done = person.post("/account/signout", data=person.fields(page))
    assert "You are signed out" in done.text
    assert COOKIE not in person.cookies
    stolen = person.get("/account", headers={"Cookie": f"{COOKIE}={secret}"})
    assert "Sign in with" in stolen.text
    assert person.node.check(tokens.access).status_code == 200


# covers: account
def test_the_session_is_new_at_each_sign_in_and_a_given_one_is_none(person: Browser) -> None:
    person.cookies.set(COOKIE, "fixed", domain="auth.example.test")
    assert "Sign in with" in person.get("/account").text
    account(person)
    first = person.cookies.get(COOKIE, domain="auth.example.test", path="/")
    sign_in_again = Browser(person.node)
    with sign_in_again as other:
        account(other)
        assert other.cookies[COOKIE] not in (first, "fixed")


def test_a_wrong_password_opens_no_account(person: Browser) -> None:
    answer = sign_in(person, password="wrong")
    assert answer.status_code == 401
    assert COOKIE not in person.cookies


def test_a_sign_in_to_the_account_is_one_browsers_and_gives_no_code(person: Browser) -> None:
    page = person.get("/account")
    link = re.search(r"flow=([\w-]+)", page.text)
    assert link is not None
    with person.node.browser() as other:
        assert other.get(f"/signin/local?flow={link[1]}").status_code == 400
    assert person.get(f"/consent?flow={link[1]}").status_code == 400
    form = person.fields(person.get(f"/signin/local?flow={link[1]}"))
    assert person.post("/consent", data={**form, "choice": "local"}).status_code == 400
    answer = person.post("/signin/local", data={**form, "username": "ana", "password": PASSWORD})
    assert answer.headers["location"] == f"{ISSUER}/account"
    again = person.post("/signin/local", data={**form, "username": "ana", "password": PASSWORD})
    assert again.status_code == 400, "it is used up"


def test_a_registration_that_is_gone_is_connected_no_more(person: Browser) -> None:
    registered = person.register()
    person.tokens(registered["client_id"])
    assert len(buttons(account(person))) == 1
    deleted = person.delete(
        registered["registration_client_uri"],
        headers={"Authorization": f"Bearer {registered['registration_access_token']}"},
    )
    assert deleted.status_code == 204
    assert "No app is connected" in person.get("/account").text


def test_the_longest_unused_of_too_many_connections_makes_room(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        oldest = browser.tokens(client_id)
        now = int(time.time() * 1000)
        others = {f"other-{number}": now for number in range(CONNECTIONS - 1)}
        own_fleet.redis.admin.zadd(f"gh:person:{digest('ana')}", others)
        own_fleet.redis.admin.zincrby(f"gh:person:{digest('ana')}", -60_000, _family(browser, oldest.access))
        newest = browser.tokens(client_id)
        assert node.check(oldest.access).status_code == 401
        assert node.check(newest.access).status_code == 200
        assert own_fleet.redis.admin.zcard(f"gh:person:{digest('ana')}") == CONNECTIONS
        assert node.records("crowded_out")[0]["user"] == "ana"


def _family(browser: Browser, token: str) -> str:

    payload = token.split(".")[1]
    family: str = json.loads(base64.urlsafe_b64decode(payload + "=="))["fam"]
    return family
