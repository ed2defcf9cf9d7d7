"""Long streams through the whole path: Traefik, the auth service's check, and a service, on a gateway that is there.

    make soak-streams      # boots a lab, rolls out, runs this, removes the lab

At once, for ten minutes: an event stream on which nothing happens, and then one event; a tool call of `echo-stateful`; a tool
call through the bridge that says nothing meanwhile. Before that, for a minute: events of 16 KiB, 64 a second (1 MiB/s), each
with the time of its sending, measured at their coming with the same machine's clock. Prints a table for
docs/measurements.md, and ends with status 1 where a stream broke or an event is missing; how long one took decides nothing.
"""

from __future__ import annotations

import argparse
import json
import ssl
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "e2e")]

import httpx2  # noqa: E402
from attack import Attacker  # noqa: E402
from browserless import Person  # noqa: E402
from clients.names import resolve_below  # noqa: E402
from gateway import Gateway  # noqa: E402

VERSION = "2025-11-25"
COUNTER = "session://counter"
PER_SECOND, SIZE = 64, 16 * 1024
LIMIT_MS = 50.0


@dataclass
class Session:
    """A session of one service, on connections of its own."""

    url: str
    token: str
    trust: ssl.SSLContext
    id: str = ""
    _last: int = field(default=0)

    def __post_init__(self) -> None:
        hello = {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": {"name": "soak", "version": "1"},
        }
        self.call("initialize", hello)
        with self._client() as http:
            body = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            http.post(self.url, headers=self._headers(), json=body).raise_for_status()

    def _client(self) -> httpx2.Client:
        # No limit on how long it is silent: that is what is tried.
        return httpx2.Client(verify=self.trust, timeout=httpx2.Timeout(30, read=None))

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": VERSION,
            **({"Mcp-Session-Id": self.id} if self.id else {}),
        }

    def messages(self, method: str, params: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        """A request's messages as they come, each with the time of its coming."""
        self._last += 1
        body = {"jsonrpc": "2.0", "id": self._last, "method": method, "params": params}
        with (
            self._client() as http,
            http.stream("POST", self.url, headers=self._headers(), json=body) as response,
        ):
            self.id = response.headers.get("mcp-session-id", self.id)
            if response.status_code != 200:
                raise RuntimeError(f"{self.url} says {response.status_code}: {response.read()[:200]!r}")
            if response.headers["content-type"].startswith("application/json"):
                yield time.time(), json.loads(response.read())
                return
            yield from events(response)

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """A request's answer.

        Raises:
            RuntimeError: The stream ended before it, or it is an error.
        """
        for _, message in self.messages(method, params):
            if "result" in message:
                result: dict[str, Any] = message["result"]
                return result
            if "error" in message:
                raise RuntimeError(f"{method}: {message['error']}")
        raise RuntimeError(f"{method}: the stream ended without an answer")

    def tool(self, name: str, **arguments: Any) -> str:
        """The text that a tool answers."""
        text: str = self.call("tools/call", {"name": name, "arguments": arguments})["content"][0]["text"]
        return text

    def listen(self, while_open: Callable[[], object]) -> dict[str, Any]:
        """The first message on the session's own stream; `while_open` is called once that is open.

        Raises:
            RuntimeError: The stream ended before it.
        """
        with (
            self._client() as http,
            http.stream("GET", self.url, headers=self._headers()) as response,
            ThreadPoolExecutor(1) as beside,
        ):
            if response.status_code != 200:
                raise RuntimeError(f"GET {self.url} says {response.status_code}")
            done = beside.submit(while_open)
            for _, message in events(response):
                done.result()
                return message
        raise RuntimeError("the stream ended before anything came")


def events(response: httpx2.Response) -> Iterator[tuple[float, dict[str, Any]]]:
    """The messages of an event stream, each with the time of its coming."""
    for line in response.iter_lines():
        if line.startswith("data:") and line[5:].strip():
            came = time.time()
            yield came, json.loads(line[5:])


def idle_stream(session: Session, seconds: int) -> None:
    """A stream on which nothing happens, until something does."""
    session.call("resources/subscribe", {"uri": COUNTER})

    def later() -> None:
        time.sleep(seconds)
        session.tool("count")

    told = session.listen(later)
    if told.get("method") != "notifications/resources/updated":
        raise RuntimeError(f"something else came: {told}")


def long_call(session: Session, tool: str, expected: str, **arguments: Any) -> None:
    """A call that takes long."""
    said = session.tool(tool, **arguments)
    if expected not in said:
        raise RuntimeError(f"{tool} says {said[:200]}")


def fast_stream(session: Session, seconds: int) -> list[float]:
    """Milliseconds that each event of a full stream took."""
    arguments = {"seconds": seconds, "per_second": PER_SECOND, "bytes": SIZE}
    params = {"name": "stream", "arguments": arguments, "_meta": {"progressToken": "soak"}}
    took = []
    for came, message in session.messages("tools/call", params):
        if message.get("method") == "notifications/progress":
            took.append((came - json.loads(message["params"]["message"])["sent"]) * 1000)
        elif "result" in message and len(took) == seconds * PER_SECOND:
            return took
    raise RuntimeError(f"{len(took)} of {seconds * PER_SECOND} events came")


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", required=True)
    parser.add_argument("--ca-file", required=True, type=Path)
    parser.add_argument("--user", default="ana")
    parser.add_argument("--password-file", required=True, type=Path)
    parser.add_argument("--seconds", type=int, default=600, help="of what is long")
    parser.add_argument("--full-seconds", type=int, default=60, help="of the full stream")
    options = parser.parse_args()
    resolve_below(options.domain)
    trust = ssl.create_default_context(cafile=options.ca_file)
    person = Person(options.user, options.password_file.read_text().strip())
    with Gateway(options.domain, trust) as gateway:
        attacker = Attacker(gateway, trust, person)
        client_id = attacker.register()["client_id"]

        def session(service: str) -> Session:
            url = gateway.service(service)
            return Session(url, attacker.tokens(client_id, resource=url)["access_token"], trust)

        took = fast_stream(session("echo-stateful"), options.full_seconds)
        seconds = options.seconds
        wanted: dict[str, tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]] = {
            "an event stream without an event, then one": (
                idle_stream,
                (session("echo-stateful"), seconds),
                {},
            ),
            "a tool call of `echo-stateful`": (
                long_call,
                (session("echo-stateful"), "wait", "waited_seconds"),
                {"seconds": seconds},
            ),
            "a tool call through the bridge, silent meanwhile": (
                long_call,
                (session("everything"), "trigger-long-running-operation", "completed"),
                {"duration": seconds, "steps": 1},
            ),
        }
        with ThreadPoolExecutor(len(wanted)) as beside:
            begun = {
                name: beside.submit(run, *positional, **named)
                for name, (run, positional, named) in wanted.items()
            }
            broken = {name: future.exception() for name, future in begun.items()}
    sys.exit(report(took, options.full_seconds, broken, seconds))


def report(
    took: list[float], full_seconds: int, broken: dict[str, BaseException | None], seconds: int
) -> int:
    """Print the tables; 1 where something broke."""
    print(f"| for {seconds} s through Traefik, the check, and the service | survived |\n|---|---|")
    for name, error in broken.items():
        print(f"| {name} | {'yes' if error is None else f'no: {error}'} |")
    p50, p99 = (statistics.quantiles(took, n=100)[at] for at in (49, 98))
    late = sum(value > LIMIT_MS for value in took)
    print(
        f"\n| 1 MiB/s for {full_seconds} s: {len(took)} events of {SIZE // 1024} KiB, none missing | p50 | p99 | worst "
        f"| later than {LIMIT_MS:.0f} ms |\n|---|---|---|---|---|"
    )
    print(f"| from sending to coming | {p50:.1f} ms | {p99:.1f} ms | {max(took):.1f} ms | {late} |")
    return 1 if any(broken.values()) else 0


if __name__ == "__main__":
    main()
