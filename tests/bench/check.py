"""The check that ForwardAuth makes, beside the reference implementation and beside doing nothing at all.

    make bench-check       # sets up both, runs this with the auth service's environment

All sides in one run, one worker each, on one core, with wrk on another: a bare ASGI function on the same server (the limit
for a check that is an application; ours is answered before that, by the server's protocol), our check of a token that is
known and of tokens never seen before (all of one person), and `mcp-oauth-dynamicclient` 0.2.0, the reference
implementation of the gateway pattern, with a token that it knows. Rounds alternate, medians count. Prints a table for
docs/measurements.md. Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AUTH = Path(__file__).parents[2] / "files" / "auth_service"
sys.path[:0] = [str(AUTH / "tests"), str(AUTH / "src"), str(AUTH.parent / "service" / "src")]

import httpx  # noqa: E402
from conftest import Fleet, end, fleet_in, free_port, wait_for  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402
from joserfc import jwt  # noqa: E402
from joserfc.jwk import RSAKey  # noqa: E402
from redis import Redis  # noqa: E402
from test_check import forge, signing_key  # noqa: E402

SERVER_CORE, LOAD_CORE = "0", "1"
DOMAIN = "example.test"
BARE = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""
REFERENCE = """
import sys
import uvicorn
from mcp_oauth_dynamicclient.config import Settings
from mcp_oauth_dynamicclient.server import create_app
uvicorn.run(create_app(Settings()), port=int(sys.argv[1]), log_level="error", access_log=False)
"""
# Each request takes the next token; a connection's thread is the only one, so that none is taken twice.
NEXT_TOKEN = """
local tokens, at = {}, 0
for line in io.lines("%s") do tokens[#tokens + 1] = line end
request = function()
  at = at + 1
  return wrk.format("GET", nil, {["Authorization"] = "Bearer " .. tokens[(at - 1) %% #tokens + 1]})
end
"""


@dataclass
class Side:
    """One of the things that are compared."""

    name: str
    url: str
    token: str = ""
    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    single_p50s: list[float] = field(default_factory=list)

    def measure(self, seconds: int, connections: int) -> None:
        """One round: many connections, then one."""
        many = wrk(self.url, seconds, connections, self.token)
        self.rates.append(many.rate)
        self.p50s.append(many.p50)
        self.p99s.append(many.p99)
        self.single_p50s.append(wrk(self.url, seconds, 1, self.token).p50)


@dataclass(frozen=True)
class Load:
    """What wrk measured: requests per second, latencies in microseconds."""

    rate: float
    p50: float
    p99: float


def wrk(url: str, seconds: float, connections: int, token: str = "", script: Path | None = None) -> Load:
    """Ask one URL as fast as it answers.

    Raises:
        SystemExit: An answer was not 2xx, or none came.
    """
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-H", f"Authorization: Bearer {token}"] if token else []
    command += ["-s", str(script)] if script else []
    return parse_wrk(url, subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout)


def parse_wrk(url: str, said: str) -> Load:
    """What wrk printed of one URL.

    Raises:
        SystemExit: An answer was not 2xx, or none came.
    """
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"{url}: not every answer was good\n{said}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    p50, p99 = (re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", said) for percent in (50, 99))
    assert rate and p50 and p99, said
    unit = {"us": 1.0, "ms": 1e3, "s": 1e6}
    return Load(float(rate[1]), float(p50[1]) * unit[p50[2]], float(p99[1]) * unit[p99[2]])


def cold(fleet: Fleet, base: str, count: int, folder: Path) -> float:
    """Requests per second with tokens that the service has never seen."""
    key = signing_key(fleet)
    tokens = folder / "tokens"
    tokens.write_text("\n".join(forge(key, jti=secrets.token_urlsafe(12)) for _ in range(count)))
    script = folder / "next.lua"
    script.write_text(NEXT_TOKEN % tokens)
    # One second is short enough that none is asked about twice; the count says whether it was.
    load = wrk(f"{base}/internal/check/echo", 1, 32, script=script)
    if load.rate > count:
        sys.exit(f"{count} tokens are too few for {load.rate:.0f} a second")
    return load.rate


@contextmanager
def serving(
    command: list[str], environment: dict[str, str], url: str, folder: Path, core: str = SERVER_CORE
) -> Iterator[int]:
    """A server process on its core, until the block ends; its id."""
    with (folder / f"{secrets.token_hex(4)}.log").open("w") as log:
        process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            env={"PATH": os.environ["PATH"], **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        try:
            wait_for(lambda: answers(url), 60)
            yield process.pid
        finally:
            end(process)


def answers(url: str) -> bool:
    """Whether something listens."""
    try:
        httpx.get(url, timeout=1, trust_env=False)
    except httpx.TransportError:
        return False
    return True


def reference_token(key: RSAKey, redis: Redis) -> str:
    """A token as the reference issues them, known to its Redis."""
    now = int(time.time())
    made = {
        "sub": "1", "username": "ana", "jti": secrets.token_urlsafe(16), "iat": now, "exp": now + 3600,
        "iss": f"https://auth.{DOMAIN}", "aud": f"https://auth.{DOMAIN}", "scope": "mcp", "client_id": "c",
    }  # fmt: skip
    redis.set(f"oauth:token:{made['jti']}", json.dumps(made), ex=3600)
    return jwt.encode({"alg": "RS256"}, made, key, algorithms=["RS256"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--reference", required=True, type=Path, help="Python that has the reference implementation"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "bare.py").write_text(BARE)
        fleet = stack.enter_context(fleet_in(folder))
        ours = fleet.start()
        subprocess.run(
            ["taskset", "-acp", SERVER_CORE, str(ours.process.pid)], check=True, capture_output=True
        )

        bare_port, reference_port = free_port(), free_port()
        uvicorn = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(bare_port), "--loop", "uvloop"]
        uvicorn += ["--http", "httptools", "--no-access-log", "--log-level", "error", "--no-server-header"]
        bare_url = f"http://127.0.0.1:{bare_port}/"
        stack.enter_context(serving(uvicorn, {}, bare_url, folder))

        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        reference_url = f"http://127.0.0.1:{reference_port}/verify"
        environment: dict[str, Any] = {
            "GITHUB_CLIENT_ID": "x", "GITHUB_CLIENT_SECRET": "x", "JWT_SECRET": "x" * 32, "JWT_ALGORITHM": "RS256",
            "JWT_PRIVATE_KEY_B64": base64.b64encode(pem).decode(), "BASE_DOMAIN": DOMAIN,
            "REDIS_URL": f"redis://admin:{fleet.redis.password}@127.0.0.1:{fleet.redis.port}/1",
            "REDIS_PASSWORD": fleet.redis.password, "ACCESS_TOKEN_LIFETIME": "3600",
            "REFRESH_TOKEN_LIFETIME": "86400", "SESSION_TIMEOUT": "300", "CLIENT_LIFETIME": "0",
            "ALLOWED_GITHUB_USERS": "ana", "MCP_PROTOCOL_VERSION": "2025-06-18", "LOG_LEVEL": "ERROR",
        }  # fmt: skip
        (folder / "reference.py").write_text(REFERENCE)
        command = [str(options.reference.absolute()), "reference.py", str(reference_port)]
        stack.enter_context(serving(command, environment, reference_url, folder))
        redis = Redis(
            port=fleet.redis.port,
            username="admin",
            password=fleet.redis.password,
            db=1,
            decode_responses=True,
        )
        token = forge(signing_key(fleet), jti="bench")
        sides = [
            Side("bare ASGI function", bare_url, token),
            Side("Gatehouse, known token", f"{ours.base}/internal/check/echo", token),
            Side("mcp-oauth-dynamicclient", reference_url, reference_token(RSAKey.import_key(pem), redis)),
        ]
        never_seen = []
        for _ in range(options.rounds):
            for side in sides:
                side.measure(options.seconds, 32)
            never_seen.append(cold(fleet, ours.base, 20_000, folder))
    report(sides, statistics.median(never_seen))


def report(sides: list[Side], never_seen: float) -> None:
    """Print the table and the ratios."""
    print(
        "| one worker, one core | requests/s, 32 connections | p50 | p99 | p50, 1 connection |\n|---|---|---|---|---|"
    )
    median = statistics.median
    for side in sides:
        figures = (f"{median(values):,.0f} µs" for values in (side.p50s, side.p99s, side.single_p50s))
        print(f"| {side.name} | {median(side.rates):,.0f} | {' | '.join(figures)} |")
    print(f"| Gatehouse, tokens never seen before | {never_seen:,.0f} | | | |")
    bare, ours, reference = sides
    rates = [median(side.rates) for side in sides]
    print(
        f"\nKnown token: {rates[1] / rates[0]:.2f} of bare ASGI, {rates[1] / rates[2]:.1f} times the reference; "
        f"p50 at one client {median(ours.single_p50s) / median(bare.single_p50s):.2f} times bare ASGI's. "
        f"Never seen: {never_seen / rates[2]:.1f} times the reference ({reference.name})."
    )


if __name__ == "__main__":
    main()
