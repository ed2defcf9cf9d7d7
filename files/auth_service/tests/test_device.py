"""The device grant (RFC 8628): a terminal shows a code, a person enters it in a browser."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import ECHO, FILES, ISSUER, PASSWORD, Browser, Fleet, Node

GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@pytest.fixture
def node(own_fleet: Fleet) -> Node:
    return own_fleet.start()


@pytest.fixture
def terminal(node: Node) -> Iterator[Browser]:
    with node.browser() as client:
        yield client


@pytest.fixture
def person(node: Node) -> Iterator[Browser]:
    with node.browser() as browser:
        yield browser


def registered(terminal: Browser) -> str:
    answer = terminal.post(
        "/register",
        json={
            "client_name": "Terminal <b>",
            "token_endpoint_auth_method": "none",
            "grant_types": [GRANT, "refresh_token"],
        },
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["grant_types"] == [GRANT, "refresh_token"]
    client_id: str = answer.json()["client_id"]
    return client_id


def start(terminal: Browser, client_id: str, **changes: str) -> dict[str, Any]:
    form = {"client_id": client_id, "resource": ECHO, "scope": "mcp", **changes}
    answer = terminal.post("/device_authorization", data=form)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    started: dict[str, Any] = answer.json()
    return started


def poll(terminal: Browser, client_id: str, code: str, **changes: str) -> httpx.Response:
    form = {"grant_type": GRANT, "client_id": client_id, "device_code": code, **changes}
    return terminal.post("/token", data=form)


def enter(person: Browser, code: str) -> httpx.Response:
    return person.post("/activate", data={"user_code": code})


# covers: device
def test_a_terminal_is_let_in(terminal: Browser, person: Browser, node: Node) -> None:
    client_id = registered(terminal)
    started = start(terminal, client_id)
    assert (started["expires_in"], started["interval"]) == (600, 5)
    assert started["verification_uri"] == f"{ISSUER}/activate"
    assert re.fullmatch(r"[B-Z]{4}-[B-Z]{4}", started["user_code"])
    assert poll(terminal, client_id, started["device_code"]).json()["error"] == "authorization_pending"
    assert poll(terminal, client_id, started["device_code"]).json()["error"] == "slow_down"

    # The link from the terminal brings the code along, and does nothing by itself.
    page = person.get(started["verification_uri_complete"])
    assert f'value="{started["user_code"]}"' in page.text
    typed = started["user_code"].lower().replace("-", " ")
    entered = enter(person, typed)
    consent = person.get(entered.headers["location"])
    assert started["user_code"] in consent.text
    assert "Terminal &lt;b&gt;" in consent.text
    assert "on another device" in consent.text
    assert consent.headers["content-security-policy"].endswith("form-action 'self'")
    done = person.sign_in(person.consent(entered))
    assert done.status_code == 200
    assert "Terminal &lt;b&gt; is connected" in done.text

    tokens = poll(terminal, client_id, started["device_code"], resource=ECHO)
    assert tokens.status_code == 200, tokens.text
    assert tokens.json()["scope"] == "mcp"
    assert node.check(tokens.json()["access_token"]).headers["x-gatehouse-user"] == "ana"
    refreshed = terminal.refresh(client_id, tokens.json()["refresh_token"])
    assert refreshed.status_code == 200

    # Shown a second time, the code has been copied: what it gave is over.
    assert poll(terminal, client_id, started["device_code"]).json()["error"] == "invalid_grant"
    assert node.check(refreshed.json()["access_token"]).status_code == 401
    assert enter(person, started["user_code"]).status_code == 400


# covers: device
def test_a_person_says_no(terminal: Browser, person: Browser) -> None:
    client_id = registered(terminal)
    started = start(terminal, client_id)
    answer = person.consent(enter(person, started["user_code"]), "deny")
    assert answer.status_code == 403
    assert "Nothing was connected" in answer.text
    assert poll(terminal, client_id, started["device_code"]).json()["error"] == "access_denied"
    assert enter(person, started["user_code"]).status_code == 400


def test_whoever_may_not_use_the_service_cannot_let_it_in(terminal: Browser, person: Browser) -> None:
    client_id = registered(terminal)
    started = start(terminal, client_id, resource=FILES, scope="")
    answer = person.sign_in(person.consent(enter(person, started["user_code"])), "bob")
    assert "may not use this service" in answer.text
    assert poll(terminal, client_id, started["device_code"]).json()["error"] == "access_denied"


def test_a_code_is_one_clients_and_one_services(terminal: Browser, person: Browser) -> None:
    client_id, other = registered(terminal), registered(terminal)
    started = start(terminal, client_id)
    person.sign_in(person.consent(enter(person, started["user_code"])))
    code = started["device_code"]
    assert poll(terminal, other, code).json()["error"] == "expired_token"
    assert poll(terminal, client_id, code, resource=FILES).json()["error"] == "invalid_target"
    # It is no authorization code, and an authorization code is none of it.
    assert terminal.exchange(client_id, code, redirect_uri="").json()["error"] in (
        "invalid_grant",
        "unauthorized_client",
    )
    assert poll(terminal, client_id, code).status_code == 200


@pytest.mark.parametrize("code", ["", "x", "BCDF-GHJK", "é" * 8, "A" * 5000, "*"])
def test_codes_that_there_are_not(terminal: Browser, person: Browser, code: str) -> None:
    client_id = registered(terminal)
    answer = poll(terminal, client_id, code)
    assert answer.status_code in (400, 401)
    assert answer.json()["error"] in ("expired_token", "invalid_request")
    page = enter(person, code)
    assert page.status_code == 400
    assert "no such code" in page.text


# covers: device
def test_codes_cannot_be_tried_out(person: Browser) -> None:
    answers = [enter(person, "BCDF-GHJK").status_code for _ in range(15)]
    assert answers[:10] == [400] * 10
    assert 429 in answers[10:]


# covers: device
def test_entering_a_code_is_not_agreeing(terminal: Browser, person: Browser, node: Node) -> None:
    """Somebody else's page can send a browser to our form. The person still sees what it is about."""
    client_id = registered(terminal)
    started = start(terminal, client_id)
    entered = enter(person, started["user_code"])
    flow = entered.headers["location"].partition("flow=")[2]
    assert "/consent" in person.get(f"/signin/local?flow={flow}").headers["location"]
    with node.browser() as stranger:
        assert stranger.get(f"/consent?flow={flow}").status_code == 400
    person.consent(entered)
    form = person.fields(person.get(f"/signin/local?flow={flow}"))
    wrong = person.post("/signin/local", data={**form, "username": "ana", "password": "wrong"})
    assert wrong.status_code == 401
    assert poll(terminal, client_id, started["device_code"]).json()["error"] == "authorization_pending"
    right = person.post("/signin/local", data={**form, "username": "ana", "password": PASSWORD})
    assert right.status_code == 200


# covers: device
@pytest.mark.parametrize(
    ("headers", "goes_on"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": ECHO.removesuffix("/mcp")}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": ISSUER}, True),
        ({"Origin": ISSUER}, True),
    ],
    ids=str,
)
def test_only_the_person_enters_the_code(
    terminal: Browser, person: Browser, headers: dict[str, str], goes_on: bool
) -> None:
    started = start(terminal, registered(terminal))
    entered = person.post("/activate", data={"user_code": started["user_code"]}, headers=headers)
    assert entered.status_code == (303 if goes_on else 403)
    if not goes_on:
        assert "set-cookie" not in entered.headers
        assert f'value="{started["user_code"]}"' in entered.text, "they can still go on themselves"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"resource": ""}, "invalid_target"),
        ({"resource": "https://evil.example/mcp"}, "invalid_target"),
        ({"scope": "root"}, "invalid_scope"),
        ({"client_id": "unknown"}, "invalid_client"),
    ],
)
def test_requests_that_are_refused(terminal: Browser, changes: dict[str, str], error: str) -> None:
    client_id = registered(terminal)
    form = {"client_id": client_id, "resource": ECHO, **changes}
    answer = terminal.post(
        "/device_authorization", data={name: value for name, value in form.items() if value}
    )
    assert answer.status_code in (400, 401)
    assert answer.json()["error"] == error


def test_a_client_registers_for_it(terminal: Browser) -> None:
    client_id = terminal.register()["client_id"]
    answer = terminal.post("/device_authorization", data={"client_id": client_id, "resource": ECHO})
    assert answer.json()["error"] == "unauthorized_client"
    assert poll(terminal, client_id, "x").json()["error"] == "unauthorized_client"
    # Without a redirect URI it cannot ask for a code.
    by_device = registered(terminal)
    assert terminal.authorize(by_device).status_code == 400


def test_a_device_that_forgot_its_service_is_told_in_time(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as terminal, node.browser() as person:
        client_id = registered(terminal)
        started = start(terminal, client_id)
        own_fleet.redis.admin.delete(*own_fleet.redis.admin.keys("gh:device:*"))
        assert enter(person, started["user_code"]).status_code == 400
        assert poll(terminal, client_id, started["device_code"]).json()["error"] == "expired_token"
