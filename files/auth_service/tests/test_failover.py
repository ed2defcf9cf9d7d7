"""Redis fails over to a replica: what was acknowledged is known after it, and no 401 is our doing."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import Fleet, Node, tokens_of, wait_for
from watched import Watched, watched_in

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Watched]]:
    with watched_in(tmp_path_factory.mktemp("watched")) as made:
        yield made


@pytest.fixture
def watched(both: tuple[Fleet, Watched]) -> Watched:
    wait_for(both[1].healthy)
    return both[1]


@pytest.fixture(scope="module")
def nodes(both: tuple[Fleet, Watched]) -> tuple[Node, Node]:
    return both[0].start(refresh_grace_seconds="1"), both[0].start(refresh_grace_seconds="1")


@contextmanager
def asked_all_along(ask: Callable[[], int]) -> Iterator[set[int]]:
    """Ask again and again in the background; gives the statuses that came."""
    seen: set[int] = set()
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            seen.add(ask())
            time.sleep(0.02)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join(10)


def serves(node: Node) -> bool:
    return node.http.get(f"{node.base}/internal/health").status_code == 200


# covers: fault-redis-moved, no-fault-consumes, failover
def test_what_no_replica_has_is_not_acknowledged(watched: Watched, nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens, code = browser.tokens(client_id), browser.code(client_id)
        flow = browser.consent(browser.authorize(client_id))
        replicas = watched.replicas
        for replica in replicas:
            replica.signal(signal.SIGSTOP)
        try:
            for attempt in (
                browser.exchange(client_id, code),
                browser.refresh(client_id, tokens.refresh),
                browser.sign_in(flow),
                browser.post("/register", json={"redirect_uris": ["https://a.example.test/"]}),
            ):
                assert (attempt.status_code, attempt.headers["retry-after"]) == (503, "2")
            # Reading goes on.
            assert node.check(tokens.access).status_code == 200
            revoked = browser.post("/revoke", data={"token": tokens.access, "client_id": client_id})
            assert revoked.status_code == 503
            assert node.check(tokens.access).status_code == 401, "a revocation is never undone"
            time.sleep(1.1)  # longer than the grace in which a refresh token gives its successor again
        finally:
            for replica in replicas:
                replica.signal(signal.SIGCONT)
        wait_for(watched.healthy)
        # Nothing was used up.
        wait_for(lambda: browser.refresh(client_id, tokens.refresh).status_code == 200)
        assert browser.exchange(client_id, code).status_code == 200
        assert "code=" in browser.sign_in(flow).headers["location"]


# covers: fault-redis-moved, failover
def test_sentinels_that_are_lost(watched: Watched, nodes: tuple[Node, Node]) -> None:
    # More than half have to name the primary: it could be an old one.
    first, second, _ = watched.sentinels
    node, _ = nodes
    with node.browser() as browser:
        tokens = browser.tokens(browser.register()["client_id"])
        assert node.check(tokens.access).status_code == 200
        first.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(0.6)
            wait_for(lambda: serves(node))
            second.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: not serves(node))
            assert node.check(tokens.access).status_code == 200, "verified, and within the grace"
        finally:
            first.process.send_signal(signal.SIGCONT)
            second.process.send_signal(signal.SIGCONT)
        wait_for(lambda: serves(node))


# covers: fault-redis-moved, no-fault-consumes, revocation, failover
def test_a_primary_that_is_killed(watched: Watched, nodes: tuple[Node, Node]) -> None:
    node, other = nodes
    with node.browser() as browser, other.browser() as elsewhere:
        client_id = browser.register()["client_id"]
        known, gone, later = (browser.tokens(client_id) for _ in range(3))
        unseen = browser.tokens(client_id)
        rotated = tokens_of(browser.refresh(client_id, known.refresh))
        for one in nodes:
            assert {one.check(token.access).status_code for token in (known, gone, later)} == {200}
        old = watched.primary
        revoked = browser.post("/revoke", data={"token": gone.access, "client_id": client_id})
        assert revoked.status_code == 200
        old.kill()
        with (
            asked_all_along(lambda: other.check(known.access).status_code) as verified,
            asked_all_along(lambda: other.check(gone.access).status_code) as ended,
            asked_all_along(lambda: node.check(unseen.access).status_code) as not_verified,
        ):
            refused = elsewhere.refresh(client_id, rotated.refresh)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            wait_for(lambda: watched.primary is not old)
            wait_for(lambda: serves(node) and serves(other))
            wait_for(lambda: node.check(unseen.access).status_code == 200)
        assert verified == {200}
        assert not_verified <= {200, 503}
        assert ended <= {401, 503}
        for one in nodes:
            assert one.check(gone.access).status_code == 401
            assert one.check(known.access).status_code == 200
        # With one replica left, writes go on.
        wait_for(lambda: elsewhere.refresh(client_id, rotated.refresh).status_code == 200)
        assert browser.refresh(client_id, unseen.refresh).status_code == 200
        again = browser.post("/revoke", data={"token": later.access, "client_id": client_id})
        assert again.status_code == 200
        wait_for(lambda: other.check(later.access).status_code == 401)
        # The old one comes back as it was, and becomes a replica. Nobody asks it before.
        with asked_all_along(lambda: other.check(later.access).status_code) as after:
            old.start()
            wait_for(lambda: bool(old.admin.role()[0] == "slave"))
            wait_for(watched.healthy)
        assert after <= {401, 503}
        assert watched.primary is not old


# covers: fault-redis-moved, revocation, failover
def test_a_primary_that_was_only_paused_is_not_asked(watched: Watched, nodes: tuple[Node, Node]) -> None:
    node, other = nodes
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
        assert node.check(tokens.access).status_code == other.check(tokens.access).status_code == 200
        old = watched.primary
        old.signal(signal.SIGSTOP)
        try:
            wait_for(lambda: watched.primary is not old)
            form = {"token": tokens.access, "client_id": client_id}
            wait_for(lambda: browser.post("/revoke", data=form).status_code == 200)
            wait_for(lambda: other.check(tokens.access).status_code == 401)
        finally:
            old.signal(signal.SIGCONT)
        # It wakes as a primary that knows nothing of the revocation, until a sentinel tells it.
        with (
            asked_all_along(lambda: node.check(tokens.access).status_code) as here,
            asked_all_along(lambda: other.check(tokens.access).status_code) as there,
        ):
            time.sleep(2)
        assert here | there <= {401, 503}
