"""What the check costs at the front door: the same Traefik and the same service, with and without ForwardAuth.

    make bench-front

Both ways in one run, over TLS, rounds alternating, medians; wrk, Traefik, the service and the auth service share the machine. The
routes are those that `roles/traefik` writes. Also counts the sockets in TIME-WAIT before and after: a connection for
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
from typing import Any

ROOT = Path(__file__).parents[2]
AUTH = ROOT / "files" / "auth_service"
ROLE = ROOT / "roles" / "traefik"
sys.path[:0] = [str(AUTH / "tests"), str(AUTH / "src"), str(AUTH.parent / "service" / "src")]

import httpx  # noqa: E402
import jinja2  # noqa: E402
from check import BARE, Load, parse_wrk  # noqa: E402
from conftest import Node, end, fleet_in, free_port, wait_for  # noqa: E402
from test_check import forge, signing_key  # noqa: E402

# As plugins/filter/services.py has them.
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 34)]
POST = Path(__file__).parent / "post.lua"
HOSTS = {"without": "without.bench", "with": "with.bench"}


def wrk(port: int, way: str, seconds: int, connections: int, token: str) -> Load:
    """Ask one way as fast as it answers.

    Raises:
        SystemExit: An answer was not 2xx, or none came.
    """
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(POST),
        "-H",
        f"Authorization: Bearer {token}",
        "-H",
        f"Host: {HOSTS[way]}",
    ]
    url = f"https://127.0.0.1:{port}/mcp"
    return parse_wrk(way, subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout)


def time_wait() -> int:
    """Sockets that wait for their peer's last words."""
    listed = subprocess.run(
        ["ss", "--no-header", "--tcp", "--numeric", "state", "time-wait"],
        capture_output=True,
        text=True,
        check=True,
    )
    return len(listed.stdout.splitlines())


def ready(port: int, host: str, token: str) -> bool:
    """Whether Traefik knows its routes, and something behind it answers."""
    headers = {"Host": host, "Authorization": f"Bearer {token}"}
    url = f"https://127.0.0.1:{port}/mcp"
    try:
        answer = httpx.get(url, headers=headers, timeout=1, trust_env=False, verify=False)  # noqa: S501 - loopback
    except httpx.TransportError:
        return False
    # A service of MCP may refuse such a request as it likes.
    return answer.status_code not in (401, 403, 404) and answer.status_code < 500


@dataclass
class Way:
    """One way through Traefik."""

    name: str
    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)


def render_routes(auth: Node, services: dict[str, dict[str, Any]]) -> str:
    """The routes to services as `roles/traefik` writes them; without its certificates Traefik takes one of its own."""
    templates = jinja2.Environment(  # noqa: S701 - YAML, not HTML
        loader=jinja2.FileSystemLoader(ROLE / "templates"), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    templates.filters["to_json"] = json.dumps
    checks = [f"http://{address}:{auth.port}" for address in ADDRESSES[1:]]
    dynamic = templates.get_template("dynamic.yml.j2").render(
        traefik_auth={"host": "auth.bench", "url": auth.base, "checks": checks},
        traefik_services=services,
        traefik_generation="bench",
        traefik_identity_headers=["X-Gatehouse-User", "X-Gatehouse-Instance"],
        traefik_tls="acme",
    )
    return dynamic.partition("\ntls:")[0]


def way_round(server: str) -> str:
    """A route like that of `echo`, less the check."""
    router = {
        "rule": f"Host(`{HOSTS['without']}`) && (Path(`/mcp`) || PathPrefix(`/mcp/`))",
        "middlewares": ["cors.echo", "no-token", "whole-request"],
        "service": "without",
    }
    balancer = {"servers": [{"url": server}], "responseForwarding": {"flushInterval": "-1ms"}}
    return json.dumps(
        {"http": {"routers": {"without": router}, "services": {"without": {"loadBalancer": balancer}}}}
    )


@contextmanager
def start_traefik(program: Path, folder: Path, port: int, routes: dict[str, str]) -> Iterator[None]:
    """A Traefik with these files of routes, until the block ends."""
    (folder / "dynamic").mkdir()
    for name, text in routes.items():
        (folder / "dynamic" / name).write_text(text)
    static = folder / "traefik.yml"
    static.write_text(
        json.dumps(
            {
                "entryPoints": {
                    "websecure": {
                        "address": f"127.0.0.1:{port}",
                        "asDefault": True,
                        "http": {"tls": {}, "middlewares": ["no-identity@file", "secure@file"]},
                    },
                    "traefik": {"address": f"127.0.0.1:{free_port()}"},
                },
                "providers": {"file": {"directory": str(folder / "dynamic")}},
                "log": {"level": "ERROR"},
            }
        )
    )
    with running(str(program.absolute()), f"--configFile={static}", folder=folder):
        yield


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
        listen = free_port()
        auth = fleet.start(port=listen, listen=",".join(f"{address}:{listen}" for address in ADDRESSES))
        token = forge(signing_key(fleet), jti="bench")
        service, port = free_port(), free_port()
        uvicorn = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(service), "--loop", "uvloop"]
        uvicorn += ["--no-access-log", "--log-level", "error"]
        server = f"http://127.0.0.1:{service}"
        echo = {"host": HOSTS["with"], "servers": [server], "origins": [], "health_path": "", "instances": []}
        routes = {"gatehouse.yml": render_routes(auth, {"echo": echo}), "without.yml": way_round(server)}
        with (
            running(*uvicorn, folder=folder),
            start_traefik(options.traefik, folder, port, routes),
        ):
            ways = [Way(name) for name in HOSTS]
            for way in ways:
                wait_for(lambda name=way.name: ready(port, HOSTS[name], token), 20)
                wrk(port, way.name, 1, options.connections, token)
            waiting = time_wait()
            for _ in range(options.rounds):
                for way in ways:
                    load = wrk(port, way.name, options.seconds, options.connections, token)
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
