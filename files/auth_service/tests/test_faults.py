"""What fails around the service, and the service itself: nothing is lost, and no 401 is our doing."""

import contextlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from between import Between
from conftest import (
    Fleet,
    Node,
    RedisServer,
    answer_of,
    end,
    free_port,
    reachable,
    start_with_openid,
    tokens_of,
    wait_for,
)
from openid_stand_in import Lies, OpenIDStandIn
from test_openid import ANA, come_back

from gatehouse_auth.identity.oidc import PAUSE_SECONDS
from gatehouse_auth.store import digest

# Ends a program that first changes something.
AS_MAIN = "import runpy; runpy.run_module('gatehouse_auth', run_name='__main__')"


# covers: fault-redis-away, no-fault-consumes
def test_redis_away(own_fleet: Fleet) -> None:
    node = own_fleet.start(redis_grace_seconds="4")
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        known, unseen = browser.tokens(client_id), browser.tokens(client_id)
        assert node.check(known.access).status_code == 200
        own_fleet.redis.stop()
        stopped = time.monotonic()
        # Verified before: goes on. Everything else: 503, never 401.
        assert node.check(known.access).status_code == 200
        assert node.check(unseen.access).status_code == 503
        assert node.check("forged").status_code == 401
        refused = browser.refresh(client_id, known.refresh)
        assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
        assert refused.headers["retry-after"]
        assert (
            browser.post("/register", json={"redirect_uris": ["https://a.example.test/"]}).status_code == 503
        )
        page = browser.authorize(client_id)
        assert page.status_code == 503
        assert "location" not in page.headers
        assert browser.get("/health").status_code == 503
        health = node.http.get(f"{node.base}/internal/health")
        assert (health.status_code, health.json()["checks"]["redis"]) == (503, "does not answer")
        time.sleep(max(0.0, 5 - (time.monotonic() - stopped)))
        assert node.check(known.access).status_code == 503
        own_fleet.redis.start()
        wait_for(lambda: node.check(known.access).status_code == 200)
        assert node.check(unseen.access).status_code == 200
        # The refresh that failed has consumed nothing.
        assert browser.refresh(client_id, known.refresh).status_code == 200


# covers: fault-redis-away, no-fault-consumes
def test_redis_paused(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        known, unseen = browser.tokens(client_id), browser.tokens(client_id)
        assert node.check(known.access).status_code == 200
        own_fleet.redis.signal(signal.SIGSTOP)
        deadline = time.monotonic() + 3
        took = []
        while time.monotonic() < deadline:
            response = node.check(known.access)
            assert response.status_code == 200
            took.append(response.elapsed.total_seconds())
        assert statistics.median(took) < 0.2, "each waits for Redis"
        assert node.check(unseen.access).status_code == 503
        own_fleet.redis.signal(signal.SIGCONT)
        wait_for(lambda: node.check(unseen.access).status_code == 200)


# covers: revocation
def test_a_revocation_that_the_stream_missed_still_counts(own_fleet: Fleet) -> None:
    node, other = own_fleet.start(), own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
        assert node.check(tokens.access).status_code == other.check(tokens.access).status_code == 200
        admin = own_fleet.redis.admin
        # Cut every stream and revoke before the nodes can listen again.
        admin.client_pause(1000, all=False)
        admin.client_kill_filter(_type="pubsub")
        admin.client_unpause()
        assert (
            browser.post("/revoke", data={"client_id": client_id, "token": tokens.refresh}).status_code == 200
        )
        for one in (node, other):
            wait_for(lambda here=one: here.check(tokens.access).status_code == 401)  # type: ignore[misc]


# covers: revocation
def test_a_revocation_reaches_other_nodes_at_once(own_fleet: Fleet) -> None:
    node, other = own_fleet.start(), own_fleet.start()
    took = []
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        for _ in range(10):
            tokens = browser.tokens(client_id)
            assert other.check(tokens.access).status_code == 200
            browser.post("/revoke", data={"client_id": client_id, "token": tokens.access})
            since = time.monotonic()
            wait_for(lambda token=tokens.access: other.check(token).status_code == 401)  # type: ignore[misc]
            took.append(time.monotonic() - since)
    assert statistics.median(took) < 0.5


# covers: fault-redis-restart
def test_restart_forgets_nothing(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
        code = browser.code(client_id)
        verifier = browser.verifier
    end(node.process)
    own_fleet.redis.stop()
    own_fleet.redis.start()
    again = own_fleet.start()
    assert again.check(tokens.access).status_code == 200
    with again.browser() as browser:
        browser.verifier = verifier
        assert tokens_of(browser.exchange(client_id, code)).access
        assert browser.refresh(client_id, tokens.refresh).status_code == 200


# covers: fault-redis-away
def test_it_starts_without_redis(own_fleet: Fleet) -> None:
    own_fleet.redis.stop()
    node = own_fleet.start()
    assert node.http.get(f"{node.base}/internal/health").status_code == 503
    own_fleet.redis.start()
    wait_for(lambda: node.http.get(f"{node.base}/internal/health").status_code == 200)


def redis_says(node: Node) -> str:
    said: str = node.http.get(f"{node.base}/internal/health").json()["checks"]["redis"]
    return said


def is_our_fault(response: httpx.Response) -> bool:
    return response.status_code == 503 and response.headers["retry-after"] != ""


def restart_with(redis: RedisServer, data: str, keep: str) -> None:
    """Start Redis on other data (or none of that name), and keep what it had under a name."""
    redis.stop()
    current = redis.folder / "appendonlydir"
    current.rename(redis.folder / keep)
    if (redis.folder / data).exists():
        (redis.folder / data).rename(current)
    redis.start()


# covers: fault-redis-empty, no-fault-consumes
def test_a_redis_without_its_data_is_one_that_is_away(own_fleet: Fleet) -> None:
    node, other = own_fleet.start(), own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        known, unseen, revoked = (browser.tokens(client_id) for _ in range(3))
        browser.post("/revoke", data={"client_id": client_id, "token": revoked.access})
        code = browser.code(client_id)
        assert node.check(known.access).status_code == 200
        restart_with(own_fleet.redis, "nothing", keep="lost")
        wait_for(lambda: redis_says(node) == redis_says(other) == "has lost its data")
        assert node.check(known.access).status_code == 200
        # Nobody is told that what they have is void, and nothing that was revoked comes back.
        for token in (unseen, revoked):
            assert is_our_fault(node.check(token.access))
            assert is_our_fault(other.check(token.access))
        assert is_our_fault(browser.refresh(client_id, known.refresh))
        assert is_our_fault(browser.exchange(client_id, code))
        assert is_our_fault(browser.authorize(client_id))
        assert is_our_fault(browser.post("/register", json={"redirect_uris": ["https://a.example.test/"]}))
        # The operator restores it: everything is as it was.
        restart_with(own_fleet.redis, "lost", keep="empty")
        wait_for(lambda: redis_says(node) == redis_says(other) == "ok")
        wait_for(lambda: node.check(unseen.access).status_code == 200)
        assert node.check(revoked.access).status_code == 401
        assert browser.exchange(client_id, code).status_code == 200
        assert browser.refresh(client_id, known.refresh).status_code == 200


# covers: fault-redis-empty
def test_a_node_that_starts_takes_the_data_that_it_finds(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
    restart_with(own_fleet.redis, "nothing", keep="lost")
    wait_for(lambda: redis_says(node) == "has lost its data")
    # The operator gives it up: one node that starts is enough for all.
    again = own_fleet.start()
    wait_for(lambda: redis_says(again) == redis_says(node) == "ok")
    for one in (node, again):
        with one.browser() as browser:
            assert browser.refresh(client_id, tokens.refresh).json()["error"] == "invalid_client"
            assert browser.tokens(browser.register()["client_id"]).access


# covers: fault-redis-full, no-fault-consumes
def test_a_full_redis(own_fleet: Fleet) -> None:
    node, other = own_fleet.start(), own_fleet.start()
    admin = own_fleet.redis.admin
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        known, unseen, gone = (browser.tokens(client_id) for _ in range(3))
        code = browser.code(client_id)
        flow = browser.authorize(client_id)
        assert node.check(known.access).status_code == node.check(gone.access).status_code == 200
        admin.config_set("maxmemory", 1)
        # What was issued is as good as ever, also on a node that has just started.
        nodes = (node, other, own_fleet.start())
        for one in nodes:
            assert one.check(known.access).status_code == one.check(unseen.access).status_code == 200
            assert redis_says(one) == "ok"
        # A revocation counts.
        form = {"client_id": client_id, "token": gone.refresh}
        assert browser.post("/revoke", data=form).status_code == 200
        for one in nodes:
            wait_for(lambda here=one: here.check(gone.access).status_code == 401)  # type: ignore[misc]
        assert is_our_fault(browser.refresh(client_id, known.refresh))
        assert is_our_fault(browser.exchange(client_id, code))
        assert is_our_fault(browser.authorize(client_id))
        assert is_our_fault(browser.consent(flow))
        assert is_our_fault(browser.post("/register", json={"redirect_uris": ["https://a.example.test/"]}))
        admin.config_set("maxmemory", 0)
        # Nothing was used up.
        assert browser.refresh(client_id, known.refresh).status_code == 200
        assert browser.exchange(client_id, code).status_code == 200
        assert "code=" in browser.sign_in(browser.consent(flow)).headers["location"]


@pytest.fixture
def between(own_fleet: Fleet) -> Iterator[Between]:
    """A way to Redis that can be broken; nodes that start take it."""
    way = Between(own_fleet.redis.port)
    own_fleet.environment["GATEHOUSE_REDIS_URL"] = way.url
    yield way
    way.close()


# covers: fault-redis-slow, no-fault-consumes
def test_a_slow_redis(own_fleet: Fleet, between: Between) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        known, unseen = browser.tokens(client_id), browser.tokens(client_id)
        assert node.check(known.access).status_code == 200
        # Within what a command may take, and too slow for the stream of revocations.
        between.seconds = 0.3
        wait_for(lambda: is_our_fault(node.check(unseen.access)))
        took = []
        for _ in range(31):
            response = node.check(known.access)
            assert response.status_code == 200
            took.append(response.elapsed.total_seconds())
        assert sorted(took)[15] < 0.2, "each waits for Redis"
        slowly = browser.refresh(client_id, known.refresh)
        assert slowly.status_code == 200 or is_our_fault(slowly)
        # Slower than it may be.
        between.seconds = 2.0
        assert is_our_fault(browser.refresh(client_id, unseen.refresh))
        assert is_our_fault(browser.post("/register", json={"redirect_uris": ["https://a.example.test/"]}))
        assert is_our_fault(browser.authorize(client_id))
        assert node.check(known.access).status_code == 200
        between.seconds = 0.0
        wait_for(lambda: node.check(unseen.access).status_code == 200)
        assert browser.refresh(client_id, known.refresh).status_code == 200
        assert browser.refresh(client_id, unseen.refresh).status_code == 200


# covers: fault-redis-slow, fault-redis-away, no-fault-consumes
def test_what_nobody_waits_for_any_more_is_not_done(own_fleet: Fleet, between: Between) -> None:
    node = own_fleet.start(refresh_grace_seconds="1")
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
        tokens = tokens_of(browser.refresh(client_id, tokens.refresh))
        code = browser.code(client_id)
        flow = browser.consent(browser.authorize(client_id))
        uses: list[Callable[[], httpx.Response]] = [
            lambda: browser.refresh(client_id, tokens.refresh),
            lambda: browser.exchange(client_id, code),
            lambda: browser.sign_in(flow),
        ]
        for use in uses:
            # Redis stops at the very moment, and does what it was asked when it goes on.
            between.hold(between.questions, b"EVALSHA")
            assert is_our_fault(use())
            between.hold(between.questions, b"")
            between.questions.set()
            wait_for(lambda: redis_says(node) == "ok")
        time.sleep(1.1)
        assert browser.refresh(client_id, tokens.refresh).status_code == 200
        assert browser.exchange(client_id, code).status_code == 200
        assert "code=" in browser.sign_in(flow).headers["location"]


# covers: fault-clocks
@pytest.mark.parametrize("seconds", [-55, 55])
def test_clocks_that_differ_by_less_than_a_minute(own_fleet: Fleet, seconds: int) -> None:
    right, wrong = own_fleet.start(), own_fleet.start(program=off_by(seconds))
    with right.browser() as browser, wrong.browser() as elsewhere:
        elsewhere.verifier = browser.verifier
        client_id = browser.register()["client_id"]
        # Each ends what the other has begun, and honours what the other has issued.
        for here, there in ((browser, elsewhere), (elsewhere, browser)):
            tokens = tokens_of(there.exchange(client_id, here.code(client_id)))
            assert {node.check(tokens.access).status_code for node in (right, wrong)} == {200}
            rotated = tokens_of(here.refresh(client_id, tokens.refresh))
            assert {node.check(rotated.access).status_code for node in (right, wrong)} == {200}
            there.post("/revoke", data={"client_id": client_id, "token": rotated.refresh})
            for token in (tokens, rotated):
                for node in (right, wrong):
                    wait_for(lambda one=node, access=token.access: one.check(access).status_code == 401)  # type: ignore[misc]


# covers: fault-provider, fault-clocks
def test_a_provider_that_is_down_then_slow_then_of_another_time(
    own_fleet: Fleet, own_upstream: OpenIDStandIn
) -> None:
    own_upstream.person = dict(ANA)
    own_upstream.lies = Lies(status={"openid-configuration": 503})
    node = start_with_openid(own_fleet, own_upstream)
    with node.browser() as browser, node.browser() as another:
        client_id = browser.register()["client_id"]
        page = browser.consent(browser.authorize(client_id), "okta").headers["location"]
        # The app is told so, and may begin again.
        assert answer_of(browser.get(page))["error"] == "temporarily_unavailable"
        own_upstream.lies = Lies()
        time.sleep(PAUSE_SECONDS)
        code = answer_of(come_back(browser, client_id))["code"]
        tokens = tokens_of(browser.exchange(client_id, code))
        # Who waits for the provider waits alone, and not for ever.
        asked = own_upstream.asked.count("token")
        own_upstream.lies = Lies(slow={"token": 12})
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(come_back(another, client_id)))
        thread.start()
        wait_for(lambda: own_upstream.asked.count("token") > asked)
        assert node.check(tokens.access).status_code == 200
        tokens = tokens_of(browser.refresh(client_id, tokens.refresh))
        assert not answers
        thread.join(20)
        assert answer_of(answers[0])["error"] == "temporarily_unavailable"
        # Its clock may differ from ours.
        now = int(time.time())
        for claims in ({"iat": now + 50}, {"exp": now - 30}):
            own_upstream.lies = Lies(claims=claims)
            assert "code" in answer_of(come_back(another, client_id))


# covers: fault-clocks, no-fault-consumes
def test_a_clock_that_is_far_ahead_costs_nobody_their_token(own_fleet: Fleet) -> None:
    right, wrong = own_fleet.start(), own_fleet.start(program=off_by(300))
    with wrong.browser() as browser:
        tokens = browser.tokens(browser.register()["client_id"])
    assert wrong.check(tokens.access).status_code == 200
    for _ in range(2):
        assert is_our_fault(right.check(tokens.access))
    assert right.records("access")[-1]["reason"] == "issued_later"
    # Only what we have signed can be our fault.
    head, _, _ = tokens.access.rpartition(".")
    assert right.check(f"{head}.{'A' * 86}").status_code == 401


def off_by(seconds: int) -> tuple[str, str]:
    """The service with a clock that differs by so many seconds; it knows nothing of it."""
    clock = f"import time; right = time.time; time.time = lambda: right() + ({seconds});"
    return "-c", f"{clock} {AS_MAIN}"


@contextmanager
def unanswered(ask: Callable[[], httpx.Response]) -> Iterator[None]:
    """A request under way, to which no answer comes."""

    def wait() -> None:
        with contextlib.suppress(httpx.TransportError):
            answers.append(ask())

    answers: list[httpx.Response] = []
    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join(20)
    assert not answers


# covers: fault-killed, refresh-rotation
def test_killed_before_the_answer_to_a_refresh(own_fleet: Fleet, between: Between) -> None:
    node = own_fleet.start()
    other = own_fleet.start(redis_url=own_fleet.redis.url)
    admin = own_fleet.redis.admin
    with node.browser() as browser, other.browser() as elsewhere:
        client_id = browser.register()["client_id"]
        first = browser.tokens(client_id)
        [family] = admin.scan_iter("gh:family:*")
        tokens = tokens_of(browser.refresh(client_id, first.refresh))
        before = admin.hget(family, "current")
        between.hold(between.answers, b"EVALSHA")
        with unanswered(lambda: browser.refresh(client_id, tokens.refresh)):
            wait_for(lambda: admin.hget(family, "current") != before)
            node.process.kill()
        # The client asks again, wherever, and has what it would have had.
        successors = [tokens_of(elsewhere.refresh(client_id, tokens.refresh)) for _ in range(2)]
        assert len({one.refresh for one in successors}) == 1
        assert {other.check(one.access).status_code for one in successors} == {200}
        assert elsewhere.refresh(client_id, successors[0].refresh).status_code == 200


# covers: fault-killed, code-once
@pytest.mark.parametrize("used", [False, True])
def test_killed_before_the_answer_to_a_code(own_fleet: Fleet, between: Between, used: bool) -> None:
    node = own_fleet.start()
    other = own_fleet.start(redis_url=own_fleet.redis.url)
    admin = own_fleet.redis.admin
    with node.browser() as browser, other.browser() as elsewhere:
        client_id = browser.register()["client_id"]
        browser.tokens(client_id)
        code = browser.code(client_id)
        elsewhere.verifier = browser.verifier
        gate = between.answers if used else between.questions
        between.hold(gate, b"EVALSHA")

        def is_there() -> bool:
            written = str(admin.get(f"gh:code:{digest(code)}")).startswith("used:")
            return written is used and not gate.is_set()

        with unanswered(lambda: browser.exchange(client_id, code)):
            wait_for(is_there)
            node.process.kill()
        again = elsewhere.exchange(client_id, code)
        # A code counts once. Where its use was written down, the person signs in again.
        assert again.json().get("error") == ("invalid_grant" if used else None)
        assert elsewhere.tokens(client_id).access


def descriptors(node: Node) -> int:
    return len(os.listdir(f"/proc/{node.process.pid}/fd"))


def limit_descriptors(process: int, count: int) -> None:
    _, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (count, hard))


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """All that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit_descriptors(0, hard)
    yield
    limit_descriptors(0, soft)


# covers: fault-silent
@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize(("count", "seconds"), [(1000, 15), pytest.param(10_000, 60, marks=pytest.mark.long)])
def test_connections_that_send_nothing(own_fleet: Fleet, count: int, seconds: int) -> None:
    patience = (
        f"from gatehouse_service import serving; serving.KEEP_ALIVE_SECONDS = {seconds};"
        f"from gatehouse_auth import direct; direct.HEAD_SECONDS = {seconds};"
    )
    node = own_fleet.start(program=("-c", f"{patience} {AS_MAIN}"))
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(node.browser())
        known = browser.tokens(browser.register()["client_id"])
        assert node.check(known.access).status_code == 200
        before = descriptors(node)
        links = []
        for number in range(count):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            links.append(link)
            if number % 2:
                link.sendall(b"GET /internal/check/echo HTTP/1.1\r\nX-Slow: ")
        wait_for(lambda: descriptors(node) >= before + count)
        # Nobody else notices.
        answers = [node.check(known.access) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {200}
        assert statistics.median(answer.elapsed.total_seconds() for answer in answers) < 1
        assert browser.tokens(browser.register()["client_id"]).access
        assert descriptors(node) >= before + count
        # The service ends it, not the peers.
        wait_for(lambda: descriptors(node) < before + 20, seconds + 60)
        for link in links:
            link.settimeout(5)
            assert link.recv(1) == b""


# covers: fault-silent
def test_a_node_without_descriptors_goes_on_with_what_it_has(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        tokens = browser.tokens(browser.register()["client_id"])
    assert node.check(tokens.access).status_code == 200
    limit_descriptors(node.process.pid, descriptors(node) + 20)
    links = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(100)]
    for _ in range(20):
        assert node.check(tokens.access).status_code == 200
    for link in links:
        link.close()
    # Who comes now is let in. Who had to wait was turned away: that takes no descriptor.
    with node.browser() as browser:
        wait_for(lambda: reachable(node, browser))


# covers: fault-redis-away, no-fault-consumes
def test_wrong_redis_password_is_our_fault(own_fleet: Fleet) -> None:
    own_fleet.credentials["redis_password"] = "wrong"
    node = own_fleet.start()
    assert node.http.get(f"{node.base}/internal/health").status_code == 503
    assert "wrong" not in node.log.read_text().replace("WRONGPASS", "")


def test_sigterm_finishes_what_is_under_way(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
    body = f"grant_type=refresh_token&client_id={client_id}&refresh_token=x".encode()
    with socket.create_connection(("127.0.0.1", node.port)) as link:
        link.sendall(
            b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        with node.browser() as later:
            assert reachable(node, later), "who came before has been heard"
        node.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not listens(node))
        link.sendall(body)
        assert link.recv(1000).split()[1] == b"400"
    assert node.process.wait(30) in (0, -signal.SIGTERM)


def listens(node: Node) -> bool:
    try:
        socket.create_connection(("127.0.0.1", node.port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_systemd_is_told(own_fleet: Fleet, tmp_path: Path) -> None:
    for address in (str(tmp_path / "notify"), f"@gatehouse-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(address.replace("@", "\0"))
            channel.settimeout(10)
            own_fleet.environment["NOTIFY_SOCKET"] = address
            own_fleet.environment["WATCHDOG_USEC"] = "400000"
            node = own_fleet.start()
            messages = [channel.recv(100) for _ in range(4)]
            node.process.terminate()
            while messages[-1] != b"STOPPING=1":
                messages.append(channel.recv(100))
        assert messages.count(b"READY=1") == 1
        assert messages.count(b"WATCHDOG=1") >= 2


def test_a_node_whose_background_work_has_ended_is_started_again(own_fleet: Fleet, tmp_path: Path) -> None:
    """Systemd does that (`WatchdogSec=`) with a service that it hears no more of."""
    broken = (
        "from gatehouse_auth.verifier import RevocationStream\n"
        "async def run(self):\n"
        "    raise RuntimeError('the-password')\n"
        f"RevocationStream.run = run\n{AS_MAIN}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        own_fleet.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        own_fleet.environment["WATCHDOG_USEC"] = "200000"
        node = own_fleet.start(program=("-c", broken))
        wait_for(lambda: bool(node.records("fault")))
        channel.settimeout(1)
        with contextlib.suppress(TimeoutError):
            for _ in range(30):
                channel.recv(100)
        with pytest.raises(TimeoutError):
            channel.recv(100)
    (fault,) = node.records("fault")
    assert fault["error"] == "RuntimeError"
    assert "the-password" not in node.log.read_text()


def test_a_port_that_is_taken(own_fleet: Fleet) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run(own_fleet, "gatehouse_auth", GATEHOUSE_LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
    assert result.returncode == 1
    assert "GATEHOUSE_LISTEN" in result.stderr


def run(fleet: Fleet, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = fleet.folder / "run-credentials"
    folder.mkdir(exist_ok=True)
    for name, value in fleet.credentials.items():
        (folder / name).write_text(value)
    values = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CREDENTIALS_DIRECTORY": str(folder),
        "GATEHOUSE_LISTEN": f"127.0.0.1:{free_port()}",
        **fleet.environment,
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", *command], env=values, capture_output=True, text=True, timeout=30, check=False
    )


def test_probe_token(own_fleet: Fleet) -> None:
    node: Node = own_fleet.start()
    result = run(own_fleet, "gatehouse_auth.admin", "probe-token", "--service", "echo")
    assert result.returncode == 0, result.stderr
    answer = node.check(result.stdout.strip())
    assert answer.status_code == 200
    assert answer.headers["x-gatehouse-user"] == "gatehouse-probe"
    assert node.check(result.stdout.strip(), "files").status_code == 401
    assert run(own_fleet, "gatehouse_auth.admin", "probe-token", "--service", "none").returncode == 2


def test_hash_password(own_fleet: Fleet) -> None:
    command = [sys.executable, "-m", "gatehouse_auth.admin", "hash-password"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        command, input="secret\n", env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("$argon2id$")
    empty = subprocess.run(command, input="\n", env=environment, capture_output=True, text=True, check=False)
    assert empty.returncode == 2
