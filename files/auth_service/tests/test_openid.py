"""Signing in through an OpenID provider, and what becomes of one that is down, slow, or lying."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from conftest import (
    ECHO,
    FILES,
    ISSUER,
    Browser,
    Fleet,
    Node,
    answer_of,
    fleet_in,
    named,
    start_with_openid,
    tokens_of,
    wait_for,
)
from joserfc.jwk import ECKey, OctKey, RSAKey
from openid_stand_in import CLIENT_ID, CLIENT_SECRET, Lies, OpenIDStandIn

ANA = {
    "sub": "00uA|Ana",
    "name": "Ana\nX-Evil: 1",
    "email": "ana@example.com",
    "email_verified": True,
    "groups": ["Staff", "hobby: kites", "ä,ö", 7],
}


@pytest.fixture(scope="module")
def shared() -> Iterator[OpenIDStandIn]:
    stand_in = OpenIDStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture(scope="module")
def node(shared: OpenIDStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with fleet_in(tmp_path_factory.mktemp("openid")) as fleet:
        fleet.credentials |= {f"oidc_{name}_client_secret": CLIENT_SECRET for name in ("okta", "other")}
        provider = {"issuer": shared.issuer, "client_id": CLIENT_ID}
        fleet.environment["GATEHOUSE_PROVIDERS"] = json.dumps(
            {
                "local": {"title": "Lab users"},
                "oidc": {
                    "okta": {"title": "Example & Co", **provider},
                    "other": {
                        "title": 'Müller "GmbH"',
                        **provider,
                        "trust_emails": True,
                        "scopes": ["openid"],
                    },
                },
            }
        )
        resources = {
            "echo": {"resource": ECHO, "allow": {"groups": ["okta:Staff"]}, "groups": ["okta:ä,ö"]},
            "files": {
                "resource": FILES,
                "allow": {"users": ["okta:00uA|Ana", "ana"], "emails": ["typed@example.com"]},
            },
        }
        yield fleet.start(resources=resources)


@pytest.fixture
def upstream(shared: OpenIDStandIn) -> OpenIDStandIn:
    shared.person, shared.info, shared.lies = dict(ANA), {}, Lies()
    return shared


@pytest.fixture
def person(node: Node, upstream: OpenIDStandIn) -> Iterator[Browser]:
    with node.browser() as browser:
        yield browser


def leave(browser: Browser, client_id: str, provider: str = "okta", **changes: str | None) -> str:
    """Consent, and where the browser is then sent."""
    consented = browser.consent(browser.authorize(client_id, **changes), provider)
    page = browser.get(consented.headers["location"])
    assert page.status_code == 200, page.text
    return page.headers["refresh"].removeprefix("0; url=")


def come_back(
    browser: Browser, client_id: str, provider: str = "okta", **changes: str | None
) -> httpx.Response:
    """The whole way to the provider and back."""
    back = httpx.get(leave(browser, client_id, provider, **changes))
    return browser.get(back.headers["location"])


# covers: iss, provider-oidc
def test_a_person_signs_in(person: Browser, node: Node) -> None:
    client_id = person.register()["client_id"]
    answer = answer_of(come_back(person, client_id))
    assert answer["iss"] == ISSUER, "ours, whatever the provider sent"
    tokens = tokens_of(person.exchange(client_id, answer["code"]))
    headers = node.check(tokens.access).headers
    assert headers["x-gatehouse-user"] == "okta:00uA|Ana"
    assert headers["x-gatehouse-name"] == "Ana X-Evil: 1"
    assert headers["x-gatehouse-email"] == "ana@example.com"
    assert headers["x-gatehouse-groups"] == "okta:Staff,okta:%C3%A4%2C%C3%B6", "no group that nothing names"
    assert person.refresh(client_id, tokens.refresh).status_code == 200


def test_the_request_is_whole(person: Browser, upstream: OpenIDStandIn) -> None:
    url = leave(person, person.register()["client_id"])
    query = parse_qs(urlsplit(url).query)
    assert all(len(values) == 1 for values in query.values())
    assert query["scope"] == ["openid profile email"]
    assert query["redirect_uri"] == [f"{ISSUER}/signin/okta/callback"]
    assert query["nonce"] != query["code_challenge"]


def test_the_page_in_between_can_be_left_by_hand(person: Browser) -> None:
    consented = person.consent(person.authorize(person.register()["client_id"]), "okta")
    page = person.get(consented.headers["location"])
    assert "Continue to Example &amp; Co" in page.text
    assert page.headers["refresh"].removeprefix("0; url=").replace("&", "&amp;") in page.text
    assert "form-action 'self'" in page.headers["content-security-policy"]


def test_a_name_is_as_long_as_the_provider_says_and_a_group_new_to_us_counts_at_the_next_refresh(
    person: Browser, node: Node
) -> None:
    before = node.resources.read_text()
    client_id = person.register()["client_id"]
    tokens = tokens_of(person.exchange(client_id, answer_of(come_back(person, client_id))["code"]))
    resources = json.loads(before)
    resources["echo"]["allow"]["groups"].append("okta:hobby: kites")
    node.reload(json.dumps(resources))
    try:
        again = tokens_of(person.refresh(client_id, tokens.refresh))
        assert "okta:hobby: kites" in node.check(again.access).headers["x-gatehouse-groups"]
    finally:
        node.reload(before)


# covers: provider-oidc
def test_what_the_id_token_lacks_the_userinfo_endpoint_has(
    person: Browser, node: Node, upstream: OpenIDStandIn
) -> None:
    upstream.person = {"sub": "thin"}
    upstream.info = {"preferred_username": "thin.ana", "groups": "Staff", "email": "x@example.com"}
    client_id = person.register()["client_id"]
    tokens = tokens_of(person.exchange(client_id, answer_of(come_back(person, client_id))["code"]))
    headers = node.check(tokens.access).headers
    assert headers["x-gatehouse-name"] == "thin.ana"
    assert headers["x-gatehouse-groups"] == "okta:Staff"
    assert headers["x-gatehouse-email"] == "", "it was never verified"


# covers: provider-oidc
@pytest.mark.parametrize(
    ("claims", "provider", "allowed"),
    [
        ({"sub": "00uA|Ana"}, "okta", True),
        ({"sub": "00UA|ANA"}, "okta", False),  # a subject is case-sensitive
        ({"sub": "ana"}, "okta", False),  # a local user's name is none here
        ({"sub": "00uA|Ana"}, "other", False),  # nor is another provider's
        ({"sub": "x", "email": "Typed@example.com", "email_verified": True}, "okta", True),
        ({"sub": "x", "email": "typed@example.com", "email_verified": "true"}, "okta", True),
        ({"sub": "x", "email": "typed@example.com", "email_verified": False}, "okta", False),
        ({"sub": "x", "email": "typed@example.com", "email_verified": None}, "okta", False),
        ({"sub": "x", "email": "typed@example.com", "email_verified": None}, "other", True),
    ],
)
def test_who_gets_in(
    person: Browser, upstream: OpenIDStandIn, claims: dict[str, Any], provider: str, allowed: bool
) -> None:
    upstream.lies.claims = claims
    answer = answer_of(
        come_back(person, person.register()["client_id"], provider, resource=FILES, scope=None)
    )
    assert ("code" in answer) is allowed
    assert answer.get("error") == (None if allowed else "access_denied")


OTHER_KEY = RSAKey.generate_key(2048, {"kid": "first"})


# covers: provider-lies, fault-provider
@pytest.mark.parametrize(
    "lies",
    [
        Lies(claims={"iss": "https://evil.example"}),
        Lies(claims={"aud": "another"}),
        Lies(claims={"aud": ["gate:house", "another"]}),
        Lies(claims={"aud": ["gate:house", "another"], "azp": "another"}),
        Lies(claims={"azp": "another"}),
        Lies(claims={"nonce": "replayed"}),
        Lies(claims={"nonce": None}),
        Lies(claims={"exp": 1_700_000_000}),
        Lies(claims={"exp": None}),
        Lies(claims={"iat": 4_000_000_000}),
        Lies(claims={"sub": None}),
        Lies(claims={"sub": 7}),
        Lies(claims={"sub": "a b"}),
        Lies(claims={"sub": "x" * 256}),
        Lies(claims={"at_hash": "AAAA"}),
        Lies(key=OTHER_KEY),
        Lies(header={"kid": "unknown"}),
        Lies(header={"alg": "none"}),
        Lies(key=OctKey.import_key(CLIENT_SECRET)),
        Lies(key=ECKey.generate_key("P-256", {"kid": "first"})),
        Lies(tokens={"id_token": None}),
        Lies(tokens={"id_token": "a.b.c"}),
        Lies(tokens={"id_token": {}}),
        Lies(userinfo={"sub": "someone else"}, claims={"name": None}),
        Lies(status={"token": 503}),
        Lies(status={"token": 401}),
        Lies(status={"userinfo": 500}, claims={"name": None}),
        Lies(flood="token"),
        Lies(answer={"code": None, "error": "temporarily_unavailable"}),
    ],
    ids=named,
)
def test_a_provider_that_lies_or_fails_lets_no_one_in_and_burns_nothing(
    person: Browser, upstream: OpenIDStandIn, node: Node, lies: Lies
) -> None:
    client_id = person.register()["client_id"]
    tokens = tokens_of(person.exchange(client_id, answer_of(come_back(person, client_id))["code"]))
    upstream.lies = lies
    answer = answer_of(come_back(person, client_id))
    assert (answer["error"], answer["iss"]) == ("temporarily_unavailable", ISSUER)
    assert node.check(tokens.access).status_code == 200
    assert person.refresh(client_id, tokens.refresh).status_code == 200


# covers: mix-up
@pytest.mark.parametrize("provider", ["okta", "other"])
@pytest.mark.parametrize(
    "lies",
    [
        Lies(answer={"iss": "https://evil.example"}),
        Lies(answer={"iss": None}),  # its description says that it always sends one
        Lies(answer={"code": "forged"}),
        Lies(answer={"code": None, "error": "access_denied"}),
        Lies(answer={"error": "access_denied"}),
    ],
    ids=str,
)
def test_answers_that_are_a_no(person: Browser, upstream: OpenIDStandIn, lies: Lies, provider: str) -> None:
    upstream.lies = lies
    asked = upstream.asked.count("token")
    answer = answer_of(come_back(person, person.register()["client_id"], provider))
    assert answer["error"] == "access_denied"
    if "iss" in lies.answer:
        assert upstream.asked.count("token") == asked, "the code went nowhere"


# covers: mix-up
def test_an_answer_for_one_provider_is_none_for_another(person: Browser, upstream: OpenIDStandIn) -> None:
    back = httpx.get(leave(person, person.register()["client_id"])).headers["location"]
    assert person.get(back.replace("/signin/okta/", "/signin/other/")).status_code == 400
    assert "code" in answer_of(person.get(back))


# covers: provider-oidc
def test_keys_change_without_a_word(person: Browser, upstream: OpenIDStandIn) -> None:
    client_id = person.register()["client_id"]
    assert "code" in answer_of(come_back(person, client_id))
    before = upstream.key
    upstream.key = ECKey.generate_key("P-256", {"kid": "second"})
    try:
        # They are not read again on every wrong key.
        wait_for(lambda: "code" in answer_of(come_back(person, client_id)))
    finally:
        upstream.key = before


# covers: provider-lies
@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://evil.example/"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"token_endpoint": "ftp://x"},
        {"jwks_uri": None},
        {"authorization_endpoint": "https://x/\r\nSet-Cookie: a=b"},
        {"token_endpoint_auth_methods_supported": ["tls_client_auth"]},
    ],
    ids=str,
)
def test_a_description_that_is_wrong_is_not_used(
    own_fleet: Fleet, own_upstream: OpenIDStandIn, discovery: dict[str, Any]
) -> None:
    own_upstream.person, own_upstream.lies = dict(ANA), Lies(discovery=discovery)
    with start_with_openid(own_fleet, own_upstream).browser() as browser:
        client_id = browser.register()["client_id"]
        consented = browser.consent(browser.authorize(client_id), "okta")
        answer = answer_of(browser.get(consented.headers["location"]))
        assert answer["error"] == "temporarily_unavailable"
        asked = len(own_upstream.asked)
        consented = browser.consent(browser.authorize(client_id), "okta")
        assert answer_of(browser.get(consented.headers["location"]))["error"] == "temporarily_unavailable"
        assert len(own_upstream.asked) == asked, "it is not asked again at once"


def test_the_secret_goes_into_the_form_where_the_provider_wants_it_there(
    own_fleet: Fleet, own_upstream: OpenIDStandIn
) -> None:
    own_upstream.person = dict(ANA)
    own_upstream.lies = Lies(discovery={"token_endpoint_auth_methods_supported": ["client_secret_post"]})
    node = start_with_openid(own_fleet, own_upstream)
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        answer = answer_of(come_back(browser, client_id))
        assert "code" in answer, "a name without a prefix is the only provider's"
        own_upstream.lies.slow = {"token": 12}
        answer = answer_of(come_back(browser, client_id))
        assert answer["error"] == "temporarily_unavailable"
        secret = [CLIENT_SECRET, "oidc+client"]
        assert not any(text in node.log.read_text() for text in secret)
