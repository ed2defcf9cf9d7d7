"""Signing in through GitHub, against a stand-in that checks what GitHub checks."""

import json
from collections.abc import Iterator

import httpx
import pytest
from conftest import ECHO, FILES, ISSUER, Browser, Fleet, Node, answer_of, fleet_in, tokens_of
from github_stand_in import CLIENT_ID, CLIENT_SECRET, GitHubStandIn, Person

OCTOCAT = Person(
    "OctoCat",
    "The Cat",
    [
        {"email": "other@example.com", "primary": False, "verified": True},
        {"email": "cat@example.com", "primary": True, "verified": True},
    ],
    ["Acme", "secret-hobby"],
    ["acme/Devs", "acme/ops"],
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[GitHubStandIn]:
    stand_in = GitHubStandIn()
    stand_in.callback = f"{ISSUER}/signin/github/callback"
    yield stand_in
    stand_in.close()


@pytest.fixture(scope="module")
def github(upstream: GitHubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with fleet_in(tmp_path_factory.mktemp("github")) as fleet:
        fleet.credentials["github_client_secret"] = CLIENT_SECRET
        provider = {
            "client_id": CLIENT_ID,
            "base_url": upstream.url,
            "api_url": upstream.url,
            "orgs": ["acme"],
        }
        fleet.environment["GATEHOUSE_PROVIDERS"] = json.dumps({"github": provider, "local": {}})
        resources = {
            "echo": {"resource": ECHO, "allow": {"groups": ["github:acme/devs", "staff"]}},
            "files": {"resource": FILES, "allow": {"users": ["octocat"], "emails": ["Other@example.com"]}},
        }
        yield fleet.start(resources=resources)


@pytest.fixture
def person(github: Node) -> Iterator[Browser]:
    with github.browser() as browser:
        yield browser


def at_github(browser: Browser, client_id: str, **changes: str | None) -> httpx.Response:
    """Consent, and what GitHub sends the browser back with."""
    consented = browser.consent(browser.authorize(client_id, **changes), "github")
    sent = browser.get(consented.headers["location"])
    assert sent.status_code == 200
    return httpx.get(sent.headers["refresh"].removeprefix("0; url="))


# covers: provider-github
def test_a_team_member_gets_in(person: Browser, github: Node, upstream: GitHubStandIn) -> None:
    upstream.person = OCTOCAT
    client_id = person.register()["client_id"]
    back = at_github(person, client_id)
    answer = answer_of(person.get(back.headers["location"]))
    assert answer["iss"] == ISSUER
    tokens = tokens_of(person.exchange(client_id, answer["code"]))
    headers = github.check(tokens.access).headers
    assert headers["x-gatehouse-user"] == "github:octocat"
    assert headers["x-gatehouse-email"] == "cat@example.com"
    # Groups that the configuration does not name stay private.
    assert headers["x-gatehouse-groups"] == "github:acme,github:acme/devs"
    assert person.refresh(client_id, tokens.refresh).status_code == 200


def test_a_local_users_name_is_not_a_github_login(person: Browser, upstream: GitHubStandIn) -> None:
    upstream.person = OCTOCAT
    back = at_github(person, person.register()["client_id"], resource=FILES)
    assert answer_of(person.get(back.headers["location"]))["error"] == "access_denied"


# covers: provider-github
@pytest.mark.parametrize("orgs", [[], ["staff"], ["github:acme"]])
def test_outsiders_stay_out(person: Browser, upstream: GitHubStandIn, orgs: list[str]) -> None:
    upstream.person = Person("ana", "Ana", [], orgs)
    back = at_github(person, person.register()["client_id"])
    assert answer_of(person.get(back.headers["location"]))["error"] == "access_denied"


# covers: provider-github
def test_an_unverified_address_opens_nothing(person: Browser, upstream: GitHubStandIn) -> None:
    emails = [{"email": "other@example.com", "primary": True, "verified": False}]
    upstream.person = Person("mallory", None, emails, ["acme"])
    back = at_github(person, person.register()["client_id"], resource=FILES)
    assert answer_of(person.get(back.headers["location"]))["error"] == "access_denied"


def test_a_verified_address_does(person: Browser, upstream: GitHubStandIn) -> None:
    emails = [{"email": "OTHER@example.com", "primary": True, "verified": True}]
    upstream.person = Person("eve", None, emails, ["acme"])
    back = at_github(person, person.register()["client_id"], resource=FILES, scope=None)
    assert "code" in answer_of(person.get(back.headers["location"]))


# covers: provider-github, fault-provider
@pytest.mark.parametrize(
    ("outage", "error"),
    [
        ("denied", "access_denied"),
        ("token", "temporarily_unavailable"),
        ("api", "temporarily_unavailable"),
        ("html", "temporarily_unavailable"),
    ],
)
def test_githubs_faults(person: Browser, upstream: GitHubStandIn, outage: str, error: str) -> None:
    upstream.person = OCTOCAT
    upstream.outage = outage
    try:
        back = at_github(person, person.register()["client_id"])
        answer = answer_of(person.get(back.headers["location"]))
    finally:
        upstream.outage = ""
    assert (answer["error"], answer["iss"], answer["state"]) == (error, ISSUER, "st-1")


def test_the_answer_counts_once_and_in_one_browser(
    person: Browser, github: Node, upstream: GitHubStandIn
) -> None:
    upstream.person = OCTOCAT
    back = at_github(person, person.register()["client_id"]).headers["location"]
    with github.browser() as victim:
        assert victim.get(back).status_code == 400
    for forged in (
        back.replace("state=", "state=x"),
        back.replace("&iss", "x&iss"),
        f"{ISSUER}/signin/github/callback?code=x",
    ):
        assert person.get(forged).status_code == 400
    assert "code" in answer_of(person.get(back))
    assert person.get(back).status_code == 400


def test_consent_comes_first_and_both_providers_are_offered(person: Browser) -> None:
    started = person.authorize(person.register()["client_id"])
    page = person.get(started.headers["location"])
    assert "sign in with GitHub" in page.text
    assert "sign in with Local account" in page.text
    assert "127.0.0.1" not in page.headers["content-security-policy"]
    flow = person.fields(page)["flow"]
    assert "/consent" in person.get(f"/signin/github?flow={flow}").headers["location"]


def test_names_without_a_prefix_are_githubs_where_there_is_no_other_provider(
    fleet: Fleet, upstream: GitHubStandIn
) -> None:
    upstream.person = OCTOCAT
    fleet.credentials["github_client_secret"] = CLIENT_SECRET
    provider = {"client_id": CLIENT_ID, "base_url": upstream.url, "api_url": upstream.url}
    node = fleet.start(
        providers={"github": provider}, allow={"users": ["OctoCat"]}, resources={"echo": {"resource": ECHO}}
    )
    with node.browser() as browser:
        back = at_github(browser, browser.register()["client_id"])
        assert "code" in answer_of(browser.get(back.headers["location"]))
