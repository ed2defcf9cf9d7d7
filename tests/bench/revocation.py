"""How long after a revocation another node still lets the token in.

    make bench-revocation

Two auth services share one Redis. A token is revoked at one; the other is asked about it again and again until it refuses, and
the time is taken from when the first node has answered. Once with both in touch with Redis, once with the other node's
stream of revocations cut off without a word, so that it has to notice by itself, and once with the primary killed under both:
the token is revoked as soon as the first node can, once three sentinels have made another server the primary. Then, too,
what it costs that a replica has to have each write. Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AUTH = Path(__file__).parents[2] / "files" / "auth_service"
sys.path[:0] = [str(AUTH / "tests"), str(AUTH / "src"), str(AUTH.parent / "service" / "src")]

from conftest import Browser, Fleet, Node, end, fleet_in, free_port, tokens_of, wait_for  # noqa: E402
from watched import Watched, watched_in  # noqa: E402


class Proxy:
    """Between a node and Redis. Once cut, the connections that have subscribed carry nothing more, and stay open."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.cut = False
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            subscribed = threading.Event()
            for source, sink in ((client, server), (server, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._carry, args=(source, sink, subscribed), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, subscribed: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if b"SUBSCRIBE" in data:
                    subscribed.set()
                if not (self.cut and subscribed.is_set()):
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


def until_refused(node: Node, token: str) -> float:
    """Ask again and again; when the answer was not yes any more (`time.perf_counter`)."""
    request = (
        f"GET /internal/check/echo HTTP/1.1\r\nHost: 127.0.0.1:{node.port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", node.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.perf_counter() + 60
        while time.perf_counter() < deadline:
            connection.sendall(request)
            if connection.recv(65536).startswith(b"HTTP/1.1 401"):
                return time.perf_counter()
            time.sleep(0.0002)  # the cores are few, and the nodes need them
    sys.exit("the token was never refused")


def delay(client: Browser, client_id: str, other: Node, before: Callable[[], None]) -> float:
    """Milliseconds from the answer to one revocation to the other node's first refusal."""
    token = client.tokens(client_id).access
    wait_for(lambda: other.check(token).status_code == 200)
    with ThreadPoolExecutor(1) as asking:
        refused = asking.submit(until_refused, other, token)
        time.sleep(0.05)
        before()
        form = {"token": token, "client_id": client_id}
        while client.post("/revoke", data=form).status_code == 503:
            time.sleep(0.002)
        answered = time.perf_counter()
        return max(0.0, (refused.result() - answered) * 1000)


def delays(first: Node, other: Node, count: int, before: Callable[[], None]) -> list[float]:
    """The same, so many times."""
    with first.browser() as client:
        client_id = client.register()["client_id"]
        return [delay(client, client_id, other, before) for _ in range(count)]


def row(name: str, found: list[float], aim: float) -> str:
    """A row of the table."""
    p99 = statistics.quantiles(found, n=100, method="inclusive")[98]
    figures = f"{statistics.median(found):.1f} ms | {p99:.1f} ms | {max(found):.1f} ms"
    return f"| {name} | {len(found)} | {figures} | {aim:.0f} ms |"


def silently(fleet: Fleet, first: Node, count: int) -> list[float]:
    """The same with a node whose stream is cut off each time, without a word."""
    found = []
    for _ in range(count):
        proxy = Proxy(fleet.redis.port)
        other = fleet.start(redis_url=f"redis://auth@127.0.0.1:{proxy.port}/0")

        def cut(proxy: Proxy = proxy) -> None:
            proxy.cut = True

        found += delays(first, other, 1, cut)
        other.process.terminate()
        other.process.wait(10)
        proxy.close()
    return found


def failed_over(fleet: Fleet, watched: Watched, count: int) -> list[float]:
    """The same with the primary killed each time."""
    first, other = fleet.start(), fleet.start()
    found = []
    for _ in range(count):
        old = watched.primary
        found += delays(first, other, 1, old.kill)
        # It comes back as a replica at once; left alone, the sentinels see to that within ten seconds.
        while watched.primary is old:
            time.sleep(0.05)
        old.configuration = f"{watched.account}replicaof 127.0.0.1 {watched.named()}\n"
        old.start()
        wait_for(watched.healthy, 60)
    return found


def refreshes(node: Node, count: int) -> float:
    """The median of so many refreshes, in milliseconds."""
    with node.browser() as client:
        client_id = client.register()["client_id"]
        token = client.tokens(client_id).refresh
        found = []
        for _ in range(count):
            begun = time.perf_counter()
            answer = client.refresh(client_id, token)
            found.append((time.perf_counter() - begun) * 1000)
            token = tokens_of(answer).refresh
    return statistics.median(found)


def main() -> None:
    """Measure, and print a table for docs/measurements.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="revocations (default: %(default)s)")
    parser.add_argument("--cuts", type=int, default=20, help="cut connections (default: %(default)s)")
    parser.add_argument("--failovers", type=int, default=20, help="failovers (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, fleet_in(Path(folder)) as fleet:
        first, other = fleet.start(), fleet.start()
        together = delays(first, other, options.count, lambda: None)
        alone = silently(fleet, first, options.cuts)
        for node in (first, other):
            end(node.process)
        with tempfile.TemporaryDirectory() as another, watched_in(Path(another)) as (watching, watched):
            # The same servers: what differs is whether the node waits for a replica.
            single, replicated = watching.start(redis_url=watched.primary.url), watching.start()
            turns = [(refreshes(single, 100), refreshes(replicated, 100)) for _ in range(5)]
            for node in (single, replicated):
                end(node.process)
            after = failed_over(watching, watched, options.failovers)
    print(
        "| after the revoking node has answered, another refuses | times | p50 | p99 | worst | aim for p99 |"
    )
    print("|---|---|---|---|---|---|")
    print(row("in touch with Redis", together, 5))
    print(row("its stream cut off at that moment, without a word", alone, 150))
    print(row("the primary of Redis killed at that moment; from the first revocation after it", after, 150))
    one, three = (statistics.median(turn) for turn in zip(*turns, strict=True))
    print(
        f"\nA refresh takes {one:.1f} ms, and {three:.1f} ms when a replica has to have it: {three / one:.2f} times."
    )


if __name__ == "__main__":
    main()
