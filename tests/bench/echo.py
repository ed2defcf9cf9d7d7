"""Stateless `echo` beside the MCP SDK's own high-level server, for both ages of the protocol.

    make bench-echo        # sets up what is needed, runs this with echo's environment

Both in one run, one process each, on one core, with wrk on another: each request calls the tool `echo`. The SDK's server is
`MCPServer` with the same tool, on uvicorn with uvloop and httptools as ours is, `json_response` and `stateless_http`. A bare ASGI
function on the same uvicorn, which reads the body and answers with fixed bytes, is the limit of what any of them could
be. Requests per second of the server's own CPU time say what a core gives where other work takes some of it. Rounds
alternate, medians count. Prints a table for docs/measurements.md. Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = Path(__file__).parents[2] / "files"
SOURCES = os.pathsep.join(
    str(FILES / part / "src") for part in (Path("mcp_services", "echo"), Path("service"))
)
SERVER_CORE, LOAD_CORE = "0", "1"
CONNECTIONS = 32
BARE_SIDE, HIGH_SIDE, OUR_SIDE = "bare ASGI function", "the SDK's `MCPServer`", "`echo`"
# The figures of each round, by revision and side.
Figures = dict[tuple[str, str], list[tuple[float, ...]]]
BARE = """
async def app(scope, receive, send):
    message = await receive()
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while message.get("more_body"):
        message = await receive()
    body = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"hello"}],"isError":false}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
HIGH_LEVEL = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("echo", log_level="ERROR")


@server.tool()
def echo(text: str) -> str:
    "Returns the text that it is given."
    return text


app = server.streamable_http_app(json_response=True, stateless_http=True)
"""
CALL: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "echo", "arguments": {"text": "hello"}},
}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
# Body and headers of a call, by revision.
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "2025-06-18": (CALL, {}),
    "2026-07-28": (
        {**CALL, "params": {**CALL["params"], "_meta": META}},
        {"Mcp-Method": "tools/call", "Mcp-Name": "echo"},
    ),
}
# An answer that is not the tool's is counted and makes the run fail.
SCRIPT = """
wrk.method = "POST"
wrk.body = [==[%s]==]
%s
local threads = {}
wrong = 0
setup = function(thread) table.insert(threads, thread) end
response = function(status, headers, body)
  if status ~= 200 or not string.find(body, '"text": ?"hello"') then wrong = wrong + 1 end
end
done = function()
  for _, thread in ipairs(threads) do print("Wrong answers: " .. thread:get("wrong")) end
end
"""


def script(version: str, folder: Path) -> Path:
    """What wrk sends, and how it judges what comes back."""
    body, headers = REQUESTS[version]
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
        **headers,
    }
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    path = folder / f"{version}.lua"
    path.write_text(SCRIPT % (json.dumps(body), lines))
    return path


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Side:
    """One of the servers that are compared."""

    name: str
    url: str
    pid: int


def load(side: Side, seconds: int, connections: int, sent: Path) -> tuple[float, float, float, float]:
    """Requests per second of CPU time and of the clock, and p50 and p99 in microseconds.

    Raises:
        SystemExit: An answer was not the tool's.
    """
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    before = cpu_seconds(side.pid)
    said = subprocess.run(
        [*command, "-s", str(sent), side.url], capture_output=True, text=True, check=True
    ).stdout
    taken = cpu_seconds(side.pid) - before
    if "Wrong answers: 0" not in said or "Socket errors" in said:
        sys.exit(f"{side.url}: not every answer was good\n{said}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    p50, p99 = (re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", said) for percent in (50, 99))
    count = re.search(r"(\d+) requests in", said)
    assert rate and p50 and p99 and count, said
    unit = {"us": 1.0, "ms": 1e3, "s": 1e6}
    latencies = float(p50[1]) * unit[p50[2]], float(p99[1]) * unit[p99[2]]
    return int(count[1]) / taken, float(rate[1]), *latencies


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    name: str, command: list[str], environment: dict[str, str], port: int, folder: Path
) -> Iterator[Side]:
    """A server process on its core, until the block ends."""
    process = subprocess.Popen(
        ["taskset", "-c", SERVER_CORE, *command],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline:
                sys.exit(f"{command}: does not listen")
            time.sleep(0.1)
        yield Side(name, f"http://127.0.0.1:{port}/mcp", process.pid)
    finally:
        process.terminate()
        process.wait(30)


def uvicorn(module: str, port: int) -> list[str]:
    """The command that serves a module's `app` as ours is served."""
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port), "--loop", "uvloop"]
    return [*command, "--http", "httptools", "--no-access-log", "--log-level", "error", "--no-server-header"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "bare.py").write_text(BARE)
        (folder / "high.py").write_text(HIGH_LEVEL)
        sent = {version: script(version, folder) for version in REQUESTS}
        ports = [free_port() for _ in range(3)]
        ours = {
            "PYTHONPATH": SOURCES,
            "GATEHOUSE_LISTEN": f"127.0.0.1:{ports[2]}",
            "GATEHOUSE_SERVICE": "echo",
            "GATEHOUSE_PUBLIC_URL": "https://echo.example.com/mcp",
        }
        commands = {
            BARE_SIDE: (uvicorn("bare", ports[0]), {}),
            HIGH_SIDE: (uvicorn("high", ports[1]), {}),
            OUR_SIDE: ([sys.executable, "-m", "gatehouse_echo"], ours),
        }
        sides = [
            stack.enter_context(serving(name, command, environment, port, folder))
            for (name, (command, environment)), port in zip(commands.items(), ports, strict=True)
        ]
        figures: Figures = {}
        for _ in range(options.rounds):
            for version, request in sent.items():
                for side in sides:
                    many = load(side, options.seconds, CONNECTIONS, request)
                    *_, alone, _ = load(side, 1, 1, request)
                    figures.setdefault((version, side.name), []).append((*many, alone))
    report(figures)


def report(figures: Figures) -> None:
    """Print the table and the ratios."""
    print(
        f"| `tools/call` of | one core | requests per CPU second | requests/s, {CONNECTIONS} connections | p50 | p99 "
        "| p50, 1 connection |\n|---|---|---|---|---|---|---|"
    )
    for (version, side), rounds in figures.items():
        of_cpu, rate, *micros = (statistics.median(column) for column in zip(*rounds, strict=True))
        latencies = " | ".join(f"{value:,.0f} µs" for value in micros)
        print(f"| {version} | {side} | {of_cpu:,.0f} | {rate:,.0f} | {latencies} |")
    for version in REQUESTS:
        pairs = zip(figures[version, OUR_SIDE], figures[version, HIGH_SIDE], strict=True)
        each = sorted(ours[0] / high[0] for ours, high in pairs)
        print(
            f"\n{version}: {statistics.median(each):.1f} times the SDK's requests per CPU second "
            f"(rounds: {each[0]:.1f} to {each[-1]:.1f})."
        )


if __name__ == "__main__":
    main()
