"""Machines: clients from inventory that act for themselves (RFC 6749 section 4.4)."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import ECHO, FILES, RESOURCES, Browser, Fleet, Node
from test_check import forge, signing_key
from test_faults import run

CLIENTS = {
    "nightly": {
        "client_name": "Nightly report",
        "token_endpoint_auth_method": "client_secret_basic",
        "grant_types": ["client_credentials"],
    },
    "other": {
        "client_name": "Other",
        "token_endpoint_auth_method": "client_secret_post",
        "grant_types": ["client_credentials"],
    },
    "person-only": {
        "client_name": "For people",
        "redirect_uris": ["https://client.example.test/callback"],
        "token_endpoint_auth_method": "client_secret_basic",
    },
}
OPEN: dict[str, Any] = {
    "echo": {**RESOURCES["echo"], "allow": {"users": ["ana"], "clients": ["nightly", "person-only"]}},
    "files": {**RESOURCES["files"], "allow": {"everyone": True}},
}
SECRETS = {name: f"{name}-secret" for name in CLIENTS}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, fleet: Fleet) -> Iterator[Node]:
    before = dict(fleet.credentials)
    fleet.credentials |= {f"client_{name}": secret for name, secret in SECRETS.items()}
    yield fleet.start(resources=OPEN, clients=CLIENTS)
    fleet.credentials = before


@pytest.fixture
def asking(machines: Node) -> Iterator[Browser]:
    with machines.browser() as browser:
        yield browser


def ask(
    browser: Browser, client_id: str = "nightly", secret: str | None = None, **changes: str
) -> httpx.Response:
    form = {"grant_type": "client_credentials", "resource": ECHO, **changes}
    auth = (client_id, SECRETS[client_id] if secret is None else secret)
    return browser.post("/token", data={name: value for name, value in form.items() if value}, auth=auth)


# covers: client-credentials
def test_a_machine_gets_an_access_token_and_nothing_else(asking: Browser, machines: Node) -> None:
    answer = ask(asking)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert set(told) == {"access_token", "token_type", "expires_in", "scope"}
    assert told["scope"] == "mcp"
    checked = machines.check(told["access_token"])
    assert checked.status_code == 200
    assert checked.headers["x-gatehouse-user"] == "client:nightly"
    assert checked.headers["x-gatehouse-client"] == "nightly"
    assert checked.headers["x-gatehouse-name"] == "Nightly report"
    assert checked.headers["x-gatehouse-groups"] == ""
    # For the one service that it was asked for.
    assert machines.check(told["access_token"], "files").status_code == 401


def test_it_can_be_revoked_and_asked_about(asking: Browser, machines: Node) -> None:
    token = ask(asking).json()["access_token"]
    auth = ("nightly", SECRETS["nightly"])
    told = asking.post("/introspect", data={"token": token}, auth=auth).json()
    assert (told["active"], told["sub"], told["client_id"]) == (True, "client:nightly", "nightly")
    assert asking.post("/revoke", data={"token": token}, auth=auth).status_code == 200
    assert machines.check(token).status_code == 401
    assert asking.post("/introspect", data={"token": token}, auth=auth).json() == {"active": False}


# covers: client-credentials
@pytest.mark.parametrize(
    ("client_id", "changes", "status", "error"),
    [
        ("nightly", {"secret": "wrong"}, 401, "invalid_client"),
        ("nightly", {"resource": ""}, 400, "invalid_target"),
        ("nightly", {"resource": "https://unknown.example.test/mcp"}, 400, "invalid_target"),
        ("nightly", {"scope": "admin"}, 400, "invalid_scope"),
        # Everyone means people.
        ("nightly", {"resource": FILES}, 400, "unauthorized_client"),
        ("other", {}, 401, "invalid_client"),  # it has to use the form
        ("person-only", {}, 400, "unauthorized_client"),
    ],
)
def test_what_is_refused(
    asking: Browser, client_id: str, changes: dict[str, str], status: int, error: str
) -> None:
    answer = ask(asking, client_id, **changes)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert "access_token" not in answer.json()


def test_a_client_that_no_service_names_gets_nothing(asking: Browser) -> None:
    form = {
        "grant_type": "client_credentials", "resource": ECHO,
        "client_id": "other", "client_secret": SECRETS["other"],
    }  # fmt: skip
    assert asking.post("/token", data=form).json()["error"] == "unauthorized_client"


def test_two_resources_are_not_one(asking: Browser) -> None:
    form = [("grant_type", "client_credentials"), ("resource", ECHO), ("resource", FILES)]
    body = "&".join(f"{name}={value}" for name, value in form)
    answer = asking.post(
        "/token",
        content=body,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        auth=("nightly", SECRETS["nightly"]),
    )
    assert answer.json()["error"] == "invalid_target"


# covers: client-credentials
def test_nobody_registers_as_a_machine(asking: Browser) -> None:
    registered = asking.register(
        token_endpoint_auth_method="client_secret_basic",
        grant_types=["authorization_code", "client_credentials"],
    )
    assert "client_credentials" not in registered["grant_types"]
    SECRETS[registered["client_id"]] = registered["client_secret"]
    answer = ask(asking, registered["client_id"])
    assert (answer.status_code, answer.json()["error"]) == (400, "unauthorized_client")


def test_a_machine_whose_entry_is_gone_is_nobody(fleet: Fleet, asking: Browser) -> None:
    token = ask(asking).json()["access_token"]
    assert fleet.start(resources=OPEN).check(token).status_code == 401
    narrower = {**OPEN, "echo": RESOURCES["echo"]}
    assert fleet.start(resources=narrower, clients=CLIENTS).check(token).status_code == 403


def test_a_person_is_no_machine_and_a_machine_no_person(fleet: Fleet, machines: Node) -> None:
    key = signing_key(fleet)
    # A local user who is called like a machine, were there one, is none.
    assert machines.check(forge(key, sub="client:nightly")).status_code == 401
    # And a machine that is called like a person is not let in by a person's name.
    assert machines.check(forge(key, sub="ana", idp="client")).status_code == 401


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"client_name": "x"}, "redirect_uris"),
        ({"client_name": "x", "grant_types": ["client_credentials"]}, "token_endpoint_auth_method"),
        ({"client_name": "x", "grant_types": ["password"]}, "grant_types"),
    ],
)
def test_an_entry_that_cannot_work(fleet: Fleet, entry: dict[str, Any], said: str) -> None:
    result = run(fleet, "gatehouse_auth", GATEHOUSE_CLIENTS=json.dumps({"m": entry}))
    assert result.returncode == 78
    assert "GATEHOUSE_CLIENTS[m]" in result.stderr
    assert said in result.stderr
