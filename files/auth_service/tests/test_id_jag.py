"""Enterprise-managed authorization: an app brings the word of a person's provider (ID-JAG)."""

import json
import secrets
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import ECHO, FILES, ISSUER, REDIRECT, Browser, Fleet, Node, fleet_in, named, start_with_openid
from joserfc import jwt
from joserfc.jwk import Key, OctKey, RSAKey
from openid_stand_in import CLIENT_ID, CLIENT_SECRET, Lies, OpenIDStandIn

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
BASIC = {"Authorization": "Basic " + b64encode(b"app:" + b"s" * 32).decode()}


@pytest.fixture(scope="module")
def upstream() -> Iterator[OpenIDStandIn]:
    stand_in = OpenIDStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture(scope="module")
def node(upstream: OpenIDStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with fleet_in(tmp_path_factory.mktemp("id-jag")) as fleet:
        fleet.credentials |= {"oidc_okta_client_secret": CLIENT_SECRET, "client_app": "s" * 32}
        provider = {"issuer": upstream.issuer, "client_id": CLIENT_ID, "assertions": True}
        fleet.environment["GATEHOUSE_PROVIDERS"] = json.dumps({"oidc": {"okta": provider}})
        app = {
            "client_name": "App",
            "redirect_uris": [REDIRECT],
            "token_endpoint_auth_method": "client_secret_basic",
            "grant_types": ["authorization_code", GRANT],
        }
        fleet.environment["GATEHOUSE_CLIENTS"] = json.dumps({"app": app})
        fleet.environment["GATEHOUSE_ALLOW"] = json.dumps({})
        del fleet.credentials["client_machine"]
        resources = {
            "echo": {"resource": ECHO, "allow": {"users": ["ana"], "groups": ["staff"]}},
            "files": {"resource": FILES, "allow": {"emails": ["ana@example.com"]}},
        }
        yield fleet.start(resources=resources)


@pytest.fixture
def browser(node: Node) -> Iterator[Browser]:
    with node.browser() as client:
        yield client


def signed(
    upstream: OpenIDStandIn, key: Key | None = None, header: dict[str, Any] | None = None, **changes: Any
) -> str:
    now = int(time.time())
    claims = {
        "iss": upstream.issuer,
        "aud": ISSUER,
        "sub": "ana",
        "client_id": "app",
        "resource": ECHO,
        "scope": "mcp",
        "iat": now,
        "exp": now + 120,
        "jti": secrets.token_hex(8),
        **changes,
    }
    head = {"alg": "RS256", "typ": "oauth-id-jag+jwt", "kid": "first", **(header or {})}
    filled = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(head, filled, key or upstream.key, algorithms=[head["alg"]])


def exchange(
    browser: Browser, assertion: str, headers: dict[str, str] = BASIC, **form: str
) -> httpx.Response:
    data = {"grant_type": GRANT, "assertion": assertion, **form}
    return browser.post("/token", data=data, headers=headers)


# covers: id-jag
def test_the_providers_word_opens_a_service(browser: Browser, node: Node, upstream: OpenIDStandIn) -> None:
    answer = exchange(
        browser, signed(upstream, email="ana@example.com", email_verified=True, groups=["staff"])
    )
    assert answer.status_code == 200, answer.text
    assert "refresh_token" not in answer.json()
    headers = node.check(answer.json()["access_token"]).headers
    assert headers["x-gatehouse-user"] == "okta:ana"
    assert headers["x-gatehouse-groups"] == "okta:staff"
    assert headers["x-gatehouse-client"] == "app"
    metadata = browser.get("/.well-known/oauth-authorization-server").json()
    assert GRANT in metadata["grant_types_supported"]
    assert metadata["authorization_grant_profiles_supported"] == [
        "urn:ietf:params:oauth:grant-profile:id-jag"
    ]


def test_it_counts_once(browser: Browser, upstream: OpenIDStandIn) -> None:
    assertion = signed(upstream)
    assert exchange(browser, assertion).status_code == 200
    assert exchange(browser, assertion).json()["error"] == "invalid_grant"


# covers: id-jag
@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"aud": "https://evil.example"},
        {"aud": f"{ISSUER}/token"},
        {"aud": None},
        {"sub": None},
        {"sub": "mallory"},
        {"sub": "ANA"},
        {"sub": "a b"},
        {"client_id": "another"},
        {"client_id": None},
        {"exp": 1_700_000_000},
        {"exp": 4_000_000_000},
        {"exp": None},
        {"jti": None},
        {"jti": ""},
        {"tenant": "t1"},
        {"cnf": {"jkt": "x"}},
        {"header": {"typ": "JWT"}},
        {"header": {"kid": "unknown"}},
        {"key": RSAKey.generate_key(2048, {"kid": "first"})},
        {"key": OctKey.import_key(CLIENT_SECRET), "header": {"alg": "HS256"}},
    ],
    ids=named,
)
def test_words_that_are_worth_nothing(
    browser: Browser, upstream: OpenIDStandIn, changes: dict[str, Any]
) -> None:
    answer = exchange(browser, signed(upstream, **changes))
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("changes", "form", "error"),
    [
        ({"resource": None}, {}, "invalid_target"),
        ({"resource": "https://evil.example/mcp"}, {}, "invalid_target"),
        ({}, {"resource": FILES}, "invalid_target"),
        ({}, {"scope": "root"}, "invalid_scope"),
        ({"scope": "root"}, {}, "invalid_scope"),
        ({"scope": ""}, {}, "invalid_scope"),
        ({"scope": "offline_access"}, {}, "invalid_scope"),
        ({"scope": "offline_access"}, {"scope": "offline_access"}, "invalid_scope"),
        ({"scope": 7}, {}, "invalid_grant"),
        ({"resource": FILES, "scope": None, "email": "ana@example.com"}, {}, "invalid_grant"),
    ],
)
def test_what_it_can_be_used_for(
    browser: Browser, upstream: OpenIDStandIn, changes: dict[str, Any], form: dict[str, str], error: str
) -> None:
    assert exchange(browser, signed(upstream, **changes), BASIC, **form).json()["error"] == error


# covers: id-jag
@pytest.mark.parametrize("scope", ["mcp", "offline_access mcp", None])
def test_a_provider_may_allow_what_the_service_needs_or_leave_it_open(
    browser: Browser, upstream: OpenIDStandIn, scope: str | None
) -> None:
    answer = exchange(browser, signed(upstream, scope=scope))
    assert answer.status_code == 200, answer.text
    assert answer.json()["scope"] == "mcp"


@pytest.mark.parametrize(
    ("resource", "status"),
    [([ECHO], 200), ([FILES, ECHO], 200), ([FILES], 400), ([], 400), ({}, 400), (7, 400), ([7], 400)],
    ids=str,
)
def test_a_list_of_services_holds_as_well(
    browser: Browser, upstream: OpenIDStandIn, resource: Any, status: int
) -> None:
    answer = exchange(browser, signed(upstream, resource=resource), BASIC, resource=ECHO)
    assert answer.status_code == status
    assert answer.json().get("error") == (None if status == 200 else "invalid_grant")


def test_the_app_proves_who_it_is_and_is_entitled_to_the_grant(
    browser: Browser, upstream: OpenIDStandIn
) -> None:
    assert exchange(browser, signed(upstream), headers={}, client_id="app").status_code == 401
    registered = browser.register(token_endpoint_auth_method="client_secret_post")
    proof: dict[str, Any] = {
        "client_id": registered["client_id"],
        "client_secret": registered["client_secret"],
    }
    mine = signed(upstream, client_id=registered["client_id"])
    assert exchange(browser, mine, {}, **proof).json()["error"] == "unauthorized_client"
    assert exchange(browser, signed(upstream), {}, **proof).json()["error"] in (
        "invalid_grant",
        "unauthorized_client",
    )
    assert exchange(browser, "x").json()["error"] == "invalid_grant"


MACHINE = {"Authorization": "Basic " + b64encode(b"machine:machine-secret").decode()}


# covers: no-fault-consumes
def test_a_provider_that_is_down_is_not_the_apps_fault(own_fleet: Fleet, own_upstream: OpenIDStandIn) -> None:
    own_upstream.lies = Lies(status={"keys": 503})
    with start_with_openid(own_fleet, own_upstream, assertions=True).browser() as browser:
        answer = exchange(browser, signed(own_upstream, client_id="machine"), MACHINE)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")


# covers: id-jag
def test_it_is_off_unless_the_inventory_turns_it_on(own_fleet: Fleet, own_upstream: OpenIDStandIn) -> None:
    with start_with_openid(own_fleet, own_upstream).browser() as browser:
        metadata = browser.get("/.well-known/oauth-authorization-server").json()
        assert GRANT not in metadata["grant_types_supported"]
        answer = exchange(browser, signed(own_upstream, client_id="machine"), MACHINE)
        assert answer.json()["error"] == "invalid_grant"
        assert own_upstream.asked == [], "an issuer that is not trusted is not asked for anything"
