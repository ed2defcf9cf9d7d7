"""What the check costs at the front door: the same Traefik and the same service, with and without ForwardAuth.

    make bench-front

Both ways in one run, over TLS, rounds alternating, medians; wrk, Traefik, the service and the auth service share the machine. The
middlewares are those of `roles/traefik` that matter for it. Also counts the sockets in TIME-WAIT before and after: a connection for
each check would leave one behind each time. Prints a table for docs/measurements.md; ends by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

AUTH = Path(__file__).parents[2] / "files" / "auth_service"
sys.path[:0] = [str(AUTH / "tests"), str(AUTH / "src"), str(AUTH.parent / "service" / "src")]

import httpx  # noqa: E402
from check import BARE, Load, parse_wrk  # noqa: E402
from conftest import end, fleet_in, free_port, wait_for  # noqa: E402
from test_check import forge, signing_key  # noqa: E402


def wrk(url: str, seconds: int, connections: int, token: str) -> Load:
    """Ask one URL as fast as it answers.

    Raises:
        SystemExit: An answer was not 2xx, or none came.
    """
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-H",
        f"Authorization: Bearer {token}",
    ]
    return parse_wrk(url, subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout)


def time_wait() -> int:
    """Sockets that wait for their peer's last words."""
    listed = subprocess.run(
        ["ss", "--no-header", "--tcp", "--numeric", "state", "time-wait"],
        capture_output=True,
        text=True,
        check=True,
    )
    return len(listed.stdout.splitlines())


def ready(url: str) -> bool:
    """Whether Traefik knows its routes, and the service answers."""
    try:
        return httpx.get(url, timeout=1, trust_env=False, verify=False).is_success  # noqa: S501 - loopback
    except httpx.TransportError:
        return False


@dataclass
class Way:
    """One way through Traefik."""

    name: str
    url: str
    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)


def configuration(folder: Path, port: int, service: int, check: str) -> Path:
    """Traefik's static configuration; the dynamic one stands beside it."""
    router = {"entryPoints": ["web"], "service": "mcp", "tls": {}}
    dynamic = {
        "http": {
            "routers": {
                "without": {**router, "rule": "PathPrefix(`/without`)", "middlewares": ["no-token"]},
                "with": {**router, "rule": "PathPrefix(`/with`) && !PathPrefix(`/without`)", "middlewares": ["check", "no-token"]},
            },
            "middlewares": {
                "no-token": {"headers": {"customRequestHeaders": {"Authorization": ""}}},
                "check": {
                    "forwardAuth": {
                        "address": check,
                        "trustForwardHeader": False,
                        "maxResponseBodySize": 65536,
                        "authRequestHeaders": ["Authorization", "Origin", "X-Request-Id"],
                        "authResponseHeadersRegex": "^X-Gatehouse-",
                    }
                },
            },
            "services": {"mcp": {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{service}"}]}}},
        }
    }  # fmt: skip
    (folder / "dynamic.yml").write_text(json.dumps(dynamic))
    static = folder / "traefik.yml"
    static.write_text(
        json.dumps(
            {
                "entryPoints": {"web": {"address": f"127.0.0.1:{port}"}},
                "providers": {"file": {"filename": str(folder / "dynamic.yml")}},
                "log": {"level": "ERROR"},
            }
        )
    )
    return static


@contextmanager
def running(*command: str, folder: Path) -> Iterator[None]:
    """A process, until the block ends."""
    process = subprocess.Popen([*command], cwd=folder, stdout=subprocess.DEVNULL, text=True)
    try:
        yield
    finally:
        end(process)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traefik", required=True, type=Path, help="the program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, fleet_in(Path(name)) as fleet:
        folder = Path(name)
        (folder / "bare.py").write_text(BARE)
        auth, token = fleet.start(), forge(signing_key(fleet), jti="bench")
        service, port = free_port(), free_port()
        uvicorn = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(service), "--loop", "uvloop"]
        uvicorn += ["--no-access-log", "--log-level", "error"]
        static = configuration(folder, port, service, f"{auth.base}/internal/check/echo")
        with (
            running(*uvicorn, folder=folder),
            running(str(options.traefik.absolute()), f"--configFile={static}", folder=folder),
        ):
            ways = [
                Way("without", f"https://127.0.0.1:{port}/without"),
                Way("with", f"https://127.0.0.1:{port}/with"),
            ]
            wait_for(lambda: ready(ways[0].url), 20)
            for way in ways:
                wrk(way.url, 1, options.connections, token)
            waiting = time_wait()
            for _ in range(options.rounds):
                for way in ways:
                    load = wrk(way.url, options.seconds, options.connections, token)
                    way.rates.append(load.rate)
                    way.p50s.append(load.p50)
                    way.p99s.append(load.p99)
            left = time_wait() - waiting
    without, checked = (
        (statistics.median(way.rates), statistics.median(way.p50s), statistics.median(way.p99s))
        for way in ways
    )
    print(
        f"| through Traefik over TLS, {options.connections} connections | requests/s | p50 | p99 |\n|---|---|---|---|"
    )
    for title, (rate, p50, p99) in (("without the check", without), ("with the check", checked)):
        print(f"| {title} | {rate:,.0f} | {p50:,.0f} µs | {p99:,.0f} µs |")
    print(
        f"\nWith the check: {checked[0] / without[0]:.2f} of the requests (aim: 0.45), p99 {checked[2] / without[2]:.1f} times"
        f" (aim: 2.5 at most); {left} more sockets in TIME-WAIT than before."
    )


if __name__ == "__main__":
    main()
