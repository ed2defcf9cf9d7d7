"""People are asked about again on a schedule: what ends, what changes, and what an outage does not do.

The schedule's clock is its queue in Redis: the tests make somebody due instead of waiting for them to be.
"""

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    start_with_openid,
    tokens_of,
    wait_for,
)
from github_stand_in import CLIENT_ID, CLIENT_SECRET, GitHubStandIn, Person
from openid_stand_in import Lies, OpenIDStandIn
from test_github import at_github
from test_openid import ANA, come_back, leave

from gatehouse_auth.rechecks import Vault
from gatehouse_auth.store import LEASE_SECONDS


@pytest.fixture
def upstream(own_upstream: OpenIDStandIn) -> OpenIDStandIn:
    own_upstream.person, own_upstream.offline = dict(ANA), True
    return own_upstream


class Signed:
    """A person who has signed in, with the tokens that they have now."""

    def __init__(self, browser: Browser, node: Node, back: Any = come_back, **changes: str | None) -> None:
        self.browser, self.node = browser, node
        self.client_id = browser.register()["client_id"]
        answer = answer_of(back(browser, self.client_id, **changes))
        self.tokens = tokens_of(browser.exchange(self.client_id, answer["code"]))

    def status(self, service: str = "echo") -> int:
        return self.node.check(self.tokens.access, service).status_code

    def refresh(self) -> str | None:
        """The error of a refresh."""
        response = self.browser.refresh(self.client_id, self.tokens.refresh)
        if response.status_code == 200:
            self.tokens = tokens_of(response)
        error: str | None = response.json().get("error")
        return error


@pytest.fixture
def node(own_fleet: Fleet, upstream: OpenIDStandIn) -> Node:
    return start_with_openid(own_fleet, upstream)


@pytest.fixture
def ana(node: Node) -> Iterator[Signed]:
    with node.browser() as browser:
        yield Signed(browser, node)


def make_due(fleet: Fleet) -> int:
    """Everybody's time has come; how many that are."""
    with fleet.redis.admin as redis:
        names = redis.zrange("gh:due", 0, -1)
        for name in names:
            redis.zadd("gh:due", {name: 0})
        return len(names)


def due_in(fleet: Fleet) -> float:
    """The seconds until the one person who there is is asked about."""
    with fleet.redis.admin as redis:
        [(_, at)] = redis.zrange("gh:due", 0, -1, withscores=True)
        return float(at) - time.time()


def ask(fleet: Fleet, node: Node) -> dict[str, Any]:
    """Have the one person asked about, and what came of it."""
    done = len(node.records("recheck"))
    assert make_due(fleet) == 1
    wait_for(lambda: len(node.records("recheck")) > done)
    return node.records("recheck")[-1]


def kept(fleet: Fleet) -> list[str]:
    with fleet.redis.admin as redis:
        return [*redis.scan_iter("gh:upstream:*"), *redis.zrange("gh:due", 0, -1)]


# covers: access-schedule
def test_who_leaves_a_group_is_out(own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed) -> None:
    assert (ana.status(), ana.refresh(), ana.status()) == (200, None, 200)
    assert ask(own_fleet, ana.node)["outcome"] == "allow"
    assert ana.status() == 200
    upstream.person["groups"] = ["Visitors"]
    assert ask(own_fleet, ana.node)["outcome"] == "allow", "the provider still knows her"
    assert (ana.status(), ana.refresh()) == (401, "invalid_grant")
    [ended] = ana.node.records("withdrawn")
    assert (ended["user"], ended["client"], ended["service"]) == ("okta:00uA|Ana", ana.client_id, "echo")
    assert ended["reason"] == "not_allowed"
    assert not kept(own_fleet), "with the last grant goes what she was asked about with"


# covers: access-schedule
def test_what_else_changes_counts_at_the_next_refresh(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    upstream.person |= {"name": "Ana B.", "email": "ana.b@example.com"}
    assert ask(own_fleet, ana.node)["outcome"] == "allow"
    assert (ana.status(), ana.refresh()) == (200, None)
    headers = ana.node.check(ana.tokens.access).headers
    assert (headers["x-gatehouse-name"], headers["x-gatehouse-email"]) == ("Ana B.", "ana.b@example.com")
    assert not ana.node.records("withdrawn")


# covers: access-schedule
def test_whom_the_provider_no_longer_vouches_for_is_out(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    upstream.refreshing.clear()
    assert ask(own_fleet, ana.node)["reason"] == "provider_withdrew"
    assert not kept(own_fleet)
    assert (ana.status(), ana.refresh()) == (401, "invalid_grant")
    assert [record["reason"] for record in ana.node.records("withdrawn")] == ["provider_withdrew"]


# covers: access-schedule
def test_whom_the_provider_no_longer_vouches_for_is_signed_out(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    browsers = [ana.browser, ana.node.browser()]
    for browser in browsers:
        link = re.search(r'href="(/signin/okta[^"]+)"', browser.get("/account").text)
        assert link is not None
        sent = browser.get(link[1]).headers["refresh"].removeprefix("0; url=")
        assert browser.get(httpx.get(sent).headers["location"]).status_code == 303
        assert "okta:00uA|Ana" in browser.get("/account").text
    upstream.lies = Lies(status={"token": 503})
    assert ask(own_fleet, ana.node)["outcome"] == "unknown"
    assert all("okta:00uA|Ana" in browser.get("/account").text for browser in browsers)
    upstream.lies = Lies()
    upstream.refreshing.clear()
    assert ask(own_fleet, ana.node)["reason"] == "provider_withdrew"
    assert not any("okta:00uA|Ana" in browser.get("/account").text for browser in browsers)
    browsers[1].close()


# covers: access-schedule
def test_a_no_to_what_a_new_sign_in_has_replaced_is_none(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    upstream.refreshing.clear()
    gate = threading.Event()
    upstream.lies.gate = {"token": gate}
    asked = upstream.asked.count("token")
    make_due(own_fleet)
    wait_for(lambda: upstream.asked.count("token") > asked)
    upstream.lies.gate = {}
    again = Signed(ana.browser, ana.node)
    gate.set()
    wait_for(lambda: bool(ana.node.records("recheck")))
    assert ana.node.records("recheck")[-1]["reason"] == "superseded"
    assert (ana.status(), ana.refresh(), again.status()) == (200, None, 200)
    assert ask(own_fleet, ana.node)["outcome"] == "allow"


# covers: access-schedule
def test_without_an_id_token_what_only_it_tells_is_as_it_was(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    upstream.lies = Lies(tokens={"id_token": None})
    upstream.info = {"name": "Ana B."}
    assert ask(own_fleet, ana.node)["outcome"] == "allow"
    assert (ana.status(), ana.refresh()) == (200, None)
    headers = ana.node.check(ana.tokens.access).headers
    assert (headers["x-gatehouse-name"], headers["x-gatehouse-groups"]) == ("Ana B.", "okta:Staff")
    upstream.info["groups"] = []
    assert ask(own_fleet, ana.node)["outcome"] == "allow"
    assert ana.status() == 401


# covers: access-schedule
def test_an_outage_changes_nothing(own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed) -> None:
    outages = [
        Lies(status={"token": 500}),
        Lies(status={"token": 401}),
        Lies(cut="token"),
        Lies(flood="token"),
        Lies(tokens={"id_token": "a.b.c"}),
        Lies(claims={"sub": "somebody else", "groups": []}),
        Lies(claims={"iss": "https://evil.example", "groups": []}),
        Lies(claims={"name": None, "groups": []}, status={"userinfo": 401}),
    ]
    for number, upstream.lies in enumerate(outages):
        assert ask(own_fleet, ana.node)["outcome"] == "unknown", upstream.lies
        assert 0 < due_in(own_fleet) <= 60 * 2**number, upstream.lies
        assert ana.status() == 200
    assert ana.refresh() is None
    upstream.lies = Lies()
    assert ask(own_fleet, ana.node)["outcome"] == "allow"
    assert due_in(own_fleet) > 3000
    assert not ana.node.records("withdrawn")


# covers: access-schedule
@pytest.mark.parametrize(("wait", "least", "most"), [("1200", 1100, 1200), ("99999", 3500, 3600)])
def test_a_provider_may_say_how_long_to_wait_within_reason(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed, wait: str, least: int, most: int
) -> None:
    upstream.lies = Lies(status={"token": 429}, headers={"Retry-After": wait})
    assert ask(own_fleet, ana.node)["outcome"] == "unknown"
    assert least < due_in(own_fleet) <= most


# covers: access-schedule
def test_refresh_tokens_that_are_good_once(own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed) -> None:
    upstream.rotates = True
    for _ in range(2):
        assert ask(own_fleet, ana.node)["outcome"] == "allow"
    upstream.lies = Lies(claims={"name": None}, status={"userinfo": 500})
    assert ask(own_fleet, ana.node)["outcome"] == "unknown"
    upstream.lies = Lies()
    assert ask(own_fleet, ana.node)["outcome"] == "allow", "the successor was kept before all else"
    upstream.refreshing.clear()
    assert ask(own_fleet, ana.node)["outcome"] == "deny", "and nothing is in doubt"


# covers: access-schedule
def test_a_successor_that_nobody_heard_of_ends_the_asking_alone(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    upstream.rotates, upstream.lies = True, Lies(cut="token")
    assert ask(own_fleet, ana.node)["outcome"] == "unknown"
    upstream.lies = Lies(status={"token": 503})
    assert ask(own_fleet, ana.node)["outcome"] == "unknown"
    upstream.lies = Lies()
    assert ask(own_fleet, ana.node)["reason"] == "credential_lost"
    assert not kept(own_fleet)
    assert (ana.status(), ana.refresh()) == (200, None)


# covers: access-schedule
def test_a_provider_that_cannot_be_reached_casts_no_doubt(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    upstream.lies = Lies(status={"token": 503})
    assert ask(own_fleet, ana.node)["outcome"] == "unknown"
    upstream.lies = Lies()
    upstream.refreshing.clear()
    assert ask(own_fleet, ana.node)["reason"] == "provider_withdrew"
    assert ana.status() == 401


# covers: access-schedule
def test_redis_is_away_when_the_successor_comes(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    gate = threading.Event()
    upstream.rotates, upstream.lies = True, Lies(gate={"token": gate})
    asked = upstream.asked.count("token")
    make_due(own_fleet)
    wait_for(lambda: upstream.asked.count("token") > asked)
    own_fleet.redis.signal(signal.SIGSTOP)
    before = set(upstream.refreshing)
    gate.set()
    wait_for(lambda: set(upstream.refreshing) != before)
    time.sleep(4)  # longer than a command waits for Redis, with its repetition
    own_fleet.redis.signal(signal.SIGCONT)
    wait_for(lambda: [record["outcome"] for record in ana.node.records("recheck")] == ["allow"])
    assert ask(own_fleet, ana.node)["outcome"] == "allow"


# covers: access-schedule
def test_two_nodes_ask_once_about_each(own_fleet: Fleet, upstream: OpenIDStandIn, node: Node) -> None:
    other = start_with_openid(own_fleet, upstream)
    with node.browser() as browser:
        for number in range(6):
            upstream.person["sub"] = f"person-{number}"
            Signed(browser, node)
    asked = upstream.asked.count("token")
    upstream.lies.slow = {"token": 0.3}
    assert make_due(own_fleet) == 6
    wait_for(lambda: len(node.records("recheck") + other.records("recheck")) >= 6)
    time.sleep(1.5)  # each node has looked again for somebody who is due
    assert upstream.asked.count("token") == asked + 6
    found = [record["user"] for record in node.records("recheck") + other.records("recheck")]
    assert sorted(found) == [f"okta:person-{number}" for number in range(6)]


# covers: access-schedule
def test_what_a_node_that_died_had_taken_up_is_done_by_another(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    asked = upstream.asked.count("token")
    gate = threading.Event()
    upstream.lies.gate = {"token": gate}
    make_due(own_fleet)
    wait_for(lambda: upstream.asked.count("token") > asked)
    ana.node.process.kill()
    ana.node.process.wait(30)
    upstream.lies = Lies()
    gate.set()
    assert 0 < due_in(own_fleet) <= LEASE_SECONDS
    other = start_with_openid(own_fleet, upstream)
    assert ask(own_fleet, other)["outcome"] == "allow"
    assert due_in(own_fleet) > LEASE_SECONDS


def files_of(redis: Path) -> bytes:
    """Everything that Redis was ever told."""
    return b"".join(path.read_bytes() for path in redis.rglob("*.aof"))


# covers: access-schedule, audit
def test_nobody_who_reads_redis_or_the_log_can_ask(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    upstream.rotates = True
    before = set(upstream.refreshing)
    assert ask(own_fleet, ana.node)["outcome"] == "allow"
    written, log = files_of(own_fleet.redis.folder), ana.node.log.read_text()
    assert b"gh:upstream:" in written
    for token in before | set(upstream.refreshing):
        assert token.encode() not in written
        assert token not in log


# covers: access-schedule
def test_of_another_key_it_is_as_if_it_were_not_there(
    own_fleet: Fleet, upstream: OpenIDStandIn, ana: Signed
) -> None:
    ana.node.process.terminate()
    ana.node.process.wait(20)
    own_fleet.credentials["recheck_key"] = "another"
    ana.node = start_with_openid(own_fleet, upstream)
    asked = upstream.asked.count("token")
    make_due(own_fleet)
    wait_for(lambda: not kept(own_fleet))
    assert upstream.asked.count("token") == asked
    assert ana.status() == 200


def test_it_is_of_one_person_and_one_client_of_a_provider() -> None:
    vault = Vault("key")
    sealed = vault.seal("okta:ana", "https://okta.example client", "secret")
    assert vault.open("okta:ana", "https://okta.example client", sealed) == "secret"
    assert vault.open("okta:bob", "https://okta.example client", sealed) is None
    assert vault.open("okta:ana", "https://okta.example other", sealed) is None
    assert Vault("other").open("okta:ana", "https://okta.example client", sealed) is None
    assert vault.open("okta:ana", "https://okta.example client", "no token") is None


# covers: access-schedule
def test_disconnecting_the_last_app_forgets_it(own_fleet: Fleet, ana: Signed) -> None:
    assert len(kept(own_fleet)) == 2
    second = Signed(ana.browser, ana.node)
    revoked = {"client_id": ana.client_id, "token": ana.tokens.refresh}
    assert ana.browser.post("/revoke", data=revoked).status_code == 200
    assert len(kept(own_fleet)) == 2
    revoked = {"client_id": second.client_id, "token": second.tokens.refresh}
    assert ana.browser.post("/revoke", data=revoked).status_code == 200
    assert not kept(own_fleet)


# covers: access-schedule
@pytest.mark.parametrize("off", [{"recheck_seconds": 0}, {"scopes": ["openid", "groups"]}], ids=str)
def test_switched_off_nothing_is_asked_for_or_kept(
    own_fleet: Fleet, upstream: OpenIDStandIn, off: dict[str, Any]
) -> None:
    if "recheck_seconds" in off:
        own_fleet.environment["GATEHOUSE_RECHECK_SECONDS"] = "0"
        del own_fleet.credentials["recheck_key"]
        off = {}
    node = start_with_openid(own_fleet, upstream, **off)
    with node.browser() as browser:
        assert "offline_access" not in leave(browser, browser.register()["client_id"])
        assert Signed(browser, node).status() == 200
        assert not kept(own_fleet)


@pytest.fixture
def github(own_fleet: Fleet) -> Iterator[tuple[GitHubStandIn, Node]]:
    stand_in = GitHubStandIn()
    stand_in.callback = f"{ISSUER}/signin/github/callback"
    emails = [{"email": "cat@example.com", "primary": True, "verified": True}]
    stand_in.person = Person("OctoCat", "The Cat", emails, ["acme"], ["acme/devs"])
    own_fleet.credentials["github_client_secret"] = CLIENT_SECRET
    provider = {"client_id": CLIENT_ID, "base_url": stand_in.url, "api_url": stand_in.url, "orgs": ["acme"]}
    resources = {
        "echo": {"resource": ECHO, "allow": {"groups": ["github:acme/devs"]}},
        "files": {"resource": FILES, "allow": {"emails": ["cat@example.com"]}},
    }
    yield stand_in, own_fleet.start(resources, providers={"github": provider}, allow={})
    stand_in.close()


def by_github(browser: Browser, client_id: str, **changes: str | None) -> Any:
    return browser.get(at_github(browser, client_id, **changes).headers["location"])


# covers: access-schedule
def test_who_leaves_a_team_loses_what_the_team_may(
    own_fleet: Fleet, github: tuple[GitHubStandIn, Node]
) -> None:
    stand_in, node = github
    with node.browser() as browser:
        echo, files = (
            Signed(browser, node, by_github),
            Signed(browser, node, by_github, resource=FILES, scope=None),
        )
        stand_in.outage = "api"
        assert ask(own_fleet, node)["outcome"] == "unknown"
        assert (echo.status(), files.status("files")) == (200, 200)
        stand_in.outage = ""
        stand_in.person.teams = []
        assert ask(own_fleet, node)["outcome"] == "allow"
        assert (echo.status(), files.status("files")) == (401, 200)
        assert (echo.refresh(), files.refresh()) == ("invalid_grant", None)
        assert [record["service"] for record in node.records("withdrawn")] == ["echo"]
        assert b"gho_" not in files_of(own_fleet.redis.folder)


# covers: access-schedule
@pytest.mark.parametrize("change", ["token", "organisation", "login"])
def test_whom_github_no_longer_vouches_for_is_out(
    own_fleet: Fleet, github: tuple[GitHubStandIn, Node], change: str
) -> None:
    stand_in, node = github
    with node.browser() as browser:
        person = Signed(browser, node, by_github)
        if change == "token":
            stand_in.tokens.clear()
        elif change == "organisation":
            stand_in.person.orgs, stand_in.person.teams = [], []
        else:
            stand_in.person.login = "octodog"
        assert ask(own_fleet, node)["outcome"] == "deny"
        assert not kept(own_fleet)
        assert (person.status(), person.refresh()) == (401, "invalid_grant")
