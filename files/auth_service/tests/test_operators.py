"""The operators' page: for whom the configuration names, and nobody else."""

import time
from collections.abc import Iterator

import httpx
import pytest
from conftest import FILES, ISSUER, Browser, Fleet, Node, wait_for
from test_account import account, buttons

from gatehouse_auth.store import PEOPLE


@pytest.fixture
def node(own_fleet: Fleet) -> Node:
    return own_fleet.start(operators={"groups": ["staff"]}, allow={"everyone": True})


@pytest.fixture
def operator(node: Node) -> Iterator[Browser]:
    with node.browser() as browser:
        assert 'href="/operators"' in account(browser).text
        yield browser


@pytest.fixture
def bob(node: Node) -> Iterator[Browser]:
    with node.browser() as browser:
        yield browser


def files(browser: Browser) -> str:
    """Bob connects an app to a service; its access token."""
    client_id = browser.register(client_name="App <i>")["client_id"]
    resource = "https://files.example.test/mcp"
    return browser.tokens(client_id, "bob", resource=resource, scope=None).access


# covers: operators
def test_operators_see_and_end_what_others_have_connected(
    operator: Browser, bob: Browser, node: Node
) -> None:
    token = files(bob)
    page = operator.get("/operators")
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-store"
    assert 'href="/operators/person?user=bob"' in page.text
    assert "App &lt;i&gt;" in page.text
    assert "<i>" not in page.text
    theirs = operator.get("/operators/person", params={"user": "bob"})
    assert "bob@example.com" in theirs.text
    fields = {**operator.fields(theirs), "connection": buttons(theirs)[0]}
    assert fields["user"] == "bob"
    done = operator.post("/operators/disconnect", data=fields)
    assert done.headers["location"] == f"{ISSUER}/operators"
    assert node.check(token, "files").status_code == 401
    (record,) = node.records("disconnect")
    assert (record["by"], record["user"], record["service"]) == ("ana", "bob", "files")
    assert "Nothing is connected" in operator.get("/operators/person?user=bob").text


# covers: operators
def test_an_app_is_removed_with_all_that_it_was_given(operator: Browser, bob: Browser, node: Node) -> None:
    client_id = bob.register(client_name="Gone")["client_id"]
    tokens = bob.tokens(client_id, "bob", resource=FILES, scope=None)
    assert node.check(tokens.access, "files").status_code == 200
    page = operator.get("/operators")
    assert f'name="client" value="{client_id}"' in page.text
    form = {**operator.fields(page), "client": client_id}
    for csrf in ("", "forged"):
        assert operator.post("/operators/remove", data={**form, "csrf": csrf}).status_code == 400
    assert node.check(tokens.access, "files").status_code == 200
    done = operator.post("/operators/remove", data=form)
    assert (done.status_code, done.headers["location"]) == (303, f"{ISSUER}/operators")
    assert node.check(tokens.access, "files").status_code == 401
    assert bob.refresh(client_id, tokens.refresh).json()["error"] == "invalid_client"
    assert client_id not in operator.get("/operators").text.split("<h2>Last decisions")[0]
    (record,) = node.records("registration_management")
    assert (record["by"], record["client"], record["action"]) == ("ana", client_id, "REMOVE")


# covers: operators
def test_only_an_operator_removes_an_app_and_only_a_registration(
    operator: Browser, bob: Browser, node: Node
) -> None:
    client_id = bob.register()["client_id"]
    own = bob.fields(account(bob, "bob"))
    assert bob.post("/operators/remove", data={**own, "client": client_id}).status_code == 403
    fields = operator.fields(operator.get("/account"))
    for client in ("machine", "https://app.example.test/client.json", "", "ghc_x"):
        assert operator.post("/operators/remove", data={**fields, "client": client}).status_code == 400
    assert bob.tokens(client_id, "bob", resource=FILES, scope=None).access


def test_the_last_decisions_are_shown(operator: Browser, bob: Browser) -> None:
    files(bob)
    wait_for(lambda: "user bob" in operator.get("/operators").text)
    text = operator.get("/operators").text
    for event in ("signin", "consent", "token", "registration"):
        assert f"<td>{event}</td>" in text


# covers: operators
@pytest.mark.parametrize("path", ["/operators", "/operators/person?user=ana"])
def test_nobody_else_sees_it(bob: Browser, node: Node, path: str) -> None:
    assert bob.get(path).headers["location"] == f"{ISSUER}/account"
    page = account(bob, "bob")
    assert "/operators" not in page.text
    refused = bob.get(path)
    assert refused.status_code == 403
    assert "ana" not in refused.text
    assert node.records("operators")[0]["user"] == "bob"


# covers: operators
def test_nobody_else_ends_anything(bob: Browser, operator: Browser, node: Node) -> None:
    token = operator.tokens(operator.register()["client_id"]).access
    files(bob)
    own = bob.fields(account(bob, "bob"))
    form = {**own, "user": "ana", "connection": "all"}
    assert bob.post("/operators/disconnect", data=form).status_code == 403
    for csrf in ("", "forged", own["csrf"]):
        forged = operator.post("/operators/disconnect", data={**form, "csrf": csrf})
        assert forged.status_code == 400
    assert node.check(token).status_code == 200


def test_without_operators_there_is_no_page(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        account(browser)
        assert browser.get("/operators").status_code == 403


@pytest.mark.parametrize("user", ["", "nobody", "x" * 5000, "<script>", "a\x00b", "é"])
def test_names_that_nobody_has(operator: Browser, user: str) -> None:
    page: httpx.Response = operator.get("/operators/person", params={"user": user})
    assert page.status_code == 200
    assert "Nothing is connected" in page.text
    assert "<script" not in page.text


def test_a_flood_of_people_does_not_fill_the_memory(own_fleet: Fleet, node: Node, bob: Browser) -> None:
    now = int(time.time() * 1000) - 60_000
    own_fleet.redis.admin.zadd("gh:people", {f"p{number}": now for number in range(PEOPLE)})
    files(bob)
    assert own_fleet.redis.admin.zcard("gh:people") == PEOPLE
    assert own_fleet.redis.admin.zscore("gh:people", "bob") is not None
