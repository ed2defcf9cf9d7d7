"""The bridge beside other gateways from stdio to streamable HTTP, each in front of the same servers.

    make bench-bridge      # sets up all of them, runs this with the bridge's environment

All sides in one run: each gateway, with all its processes, on one core, the client on the other (`load.py`). Rounds
alternate, medians count. Prints tables for docs/measurements.md. Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "files" / "mcp_services" / "bridge" / "tests"), str(HERE)]

from conftest import free_port  # noqa: E402
from load import CALL, INITIALIZE, INITIALIZED, Client, sessions  # noqa: E402

SERVER_CORE, LOAD_CORE = 0, 1
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
CLIENTS = (1, 16, 256)
IDLE = 40
FAST, SDK = ["/usr/bin/perl", str(HERE / "stdio_fast.pl")], [sys.executable, str(HERE / "stdio_sdk.py")]
ON_ITS_CORE = ["taskset", "--cpu-list", str(SERVER_CORE)]


@dataclass
class Gateway:
    """One of what is compared; `{port}` and the server's command are filled in."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/mcp"
    # Whether its sessions share one server.
    shared: bool = False
    # By number of clients: requests per second, medians in microseconds.
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50s: dict[int, list[float]] = field(default_factory=dict)
    p99s: dict[int, list[float]] = field(default_factory=dict)
    sdk_rate: float = 0
    # Seconds until a new session has its first answer; KiB per idle session, of the gateway alone and with its servers, None
    # where it cannot be measured.
    first: list[float] = field(default_factory=list)
    first_fast: list[float] = field(default_factory=list)
    own_memory: float | None = None
    memory: float | None = None


@contextmanager
def scheduled_as_a_unit() -> Iterator[None]:
    """Have the kernel share a core among processes, as within a systemd unit.

    Outside one it shares it among sessions (`sched(7)`, the autogroup feature). A gateway that gives each server a session of its
    own would be one in 257 then, and one that does not, one in two.
    """
    before = AUTOGROUP.read_text() if AUTOGROUP.exists() else None
    if before is not None:
        AUTOGROUP.write_text("0")
    try:
        yield
    finally:
        if before is not None:
            AUTOGROUP.write_text(before)


@contextmanager
def without_halts() -> Iterator[None]:
    """Have an idle core wait at the ready (the kernel's PM QoS, `/dev/cpu_dma_latency`: 0 µs, for as long as it is held open).

    Else each request also measures how the machine halts: on a virtual one that costs as much as a gateway's own work.
    """
    with ExitStack() as held:
        try:
            held.enter_context(open("/dev/cpu_dma_latency", "wb", buffering=0)).write(bytes(4))
        except OSError as error:
            print(f"Idle cores halt: {error}", file=sys.stderr)
        yield


@contextmanager
def running(gateway: Gateway, server: list[str], log: Path) -> Iterator[tuple[str, int]]:
    """A gateway in front of a server, until the block ends: its URL and its process."""
    port = free_port()
    filled = {
        "{port}": str(port),
        "{program}": server[0],
        "{script}": server[1],
        "{server}": shlex.join(server),
        "{list}": json.dumps(server),
    }

    def fill(text: str) -> str:
        for name, value in filled.items():
            text = text.replace(name, value)
        return text

    with log.open("ab") as output:
        process = subprocess.Popen(
            [*ON_ITS_CORE, *map(fill, gateway.command)],
            env={
                "PATH": os.environ["PATH"],
                **{name: fill(value) for name, value in gateway.environment.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}{gateway.path}"
            wait_until_it_answers(url)
            yield url, process.pid
        finally:
            below = tree(process.pid)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            # Some leave their servers behind.
            for pid in {process.pid, *below}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def wait_until_it_answers(url: str) -> None:
    """Until a session can be had."""
    deadline = time.monotonic() + 60
    while True:
        try:
            first_answer(url)
            return
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def first_answer(url: str) -> float:
    """Seconds from connecting to the first answer to a call."""
    client = Client(url)
    begun = time.perf_counter()
    client.open()
    took = time.perf_counter() - begun
    client.close()
    return took


def tree(pid: int) -> list[int]:
    """The processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *tree(child)]
    return found


def memory(pid: int) -> tuple[int, int]:
    """KiB: what a process has for itself, and with all below it, each its share of what is shared.

    Its share alone would not do for the gateway: the more servers map the same libraries, the less of them is its own.
    """

    def of(process: int, *kinds: str) -> int:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(kinds))

    own = of(pid, "Private_Clean:", "Private_Dirty:")
    return own, sum(of(process, "Pss:") for process in (pid, *tree(pid)))


def load(url: str, clients: int, seconds: float) -> dict[str, float]:
    """One run of the client."""
    command = [
        "taskset",
        "-c",
        str(LOAD_CORE),
        sys.executable,
        str(HERE / "load.py"),
        url,
        str(clients),
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def polled(source: int) -> bytes:
    """What comes next."""
    while True:
        with suppress(BlockingIOError):
            return os.read(source, 1 << 16)


def raw(seconds: float) -> float:
    """Median in microseconds of a call over the bare pipe, by a client that does not sleep either."""
    with subprocess.Popen(
        [*ON_ITS_CORE, *FAST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout
        source, target = process.stdout.fileno(), process.stdin.fileno()
        os.write(target, f"{INITIALIZE}\n{INITIALIZED}\n".encode())
        os.read(source, 1 << 16)
        os.set_blocking(source, False)
        took = []
        until = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < until:
            os.write(target, f"{CALL % (len(took), len(took))}\n".encode())
            if b"hello" not in polled(source):
                sys.exit("the server did not answer")
            took.append(time.perf_counter() - begun)
        process.stdin.close()
    return statistics.median(took) * 1e6


def idle_sessions(gateway: Gateway, log: Path) -> None:
    """What a session costs that nobody uses: the slope from one batch of them to three.

    The first batch brings what is there once. Where memory does not grow with the rest, a collector has
    cleared more than they took, and nothing can be said.
    """
    with running(gateway, FAST, log) as (url, pid):

        def settled_after(count: int) -> tuple[int, int]:
            sessions(url, count)
            time.sleep(2)
            return memory(pid)

        before, after = settled_after(IDLE), settled_after(2 * IDLE)
        slopes = [(after[n] - before[n]) / (2 * IDLE) for n in (0, 1)]
        gateway.own_memory, gateway.memory = (slope if slope > 0 else None for slope in slopes)


def new_sessions(gateway: Gateway, server: list[str], times: int, log: Path) -> list[float]:
    """Seconds until new sessions, one after the other, have their first answers."""
    with running(gateway, server, log) as (url, _):
        took = []
        for _ in range(times):
            time.sleep(2)
            took.append(first_answer(url))
        return took


def bridge(root: Path, isolation: str) -> Gateway:
    """The bridge of a checkout."""
    sources = [root / "files" / "mcp_services" / "bridge" / "src", root / "files" / "service" / "src"]
    environment = {
        "GATEHOUSE_LISTEN": "127.0.0.1:{port}",
        "GATEHOUSE_SERVICE": "bench",
        "GATEHOUSE_PUBLIC_URL": "http://localhost/mcp",
        "GATEHOUSE_BRIDGE_COMMAND": "{list}",
        "GATEHOUSE_BRIDGE_ISOLATION": isolation,
        "GATEHOUSE_BRIDGE_MAX_CHILDREN": "300",
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
    }
    return Gateway(
        f"Gatehouse, `{isolation}`",
        [sys.executable, "-m", "gatehouse_bridge"],
        environment,
        shared=isolation == "shared",
    )


def gateways(options: argparse.Namespace) -> list[Gateway]:
    """All of them."""
    node = options.supergateway / "node_modules" / "supergateway" / "dist" / "index.js"
    return [
        bridge(ROOT, "shared"),
        bridge(ROOT, "per_session"),
        Gateway(
            "mcp-proxy 0.13",
            [
                *(str(options.mcp_proxy.absolute()), "-m", "mcp_proxy"),
                *("--port", "{port}", "--log-level", "ERROR", "--", "{program}", "{script}"),
            ],
            path="/mcp/",
            shared=True,
        ),
        Gateway(
            "supergateway 4",
            [
                *(
                    options.node,
                    str(node),
                    "--stdio",
                    "{server}",
                    "--outputTransport",
                    "streamableHttp",
                ),
                *("--stateful", "--port", "{port}", "--logLevel", "none"),
            ],
        ),
        Gateway(
            "mcp-streamablehttp-proxy 0.2",
            [
                str(options.streamable.absolute().parent / "mcp-streamablehttp-proxy"),
                *("--port", "{port}", "--log-level", "error", "{program}", "{script}"),
            ],
        ),
    ]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Where the other gateways are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mcp-proxy", required=True, type=Path, help="Python that has mcp-proxy")
    parser.add_argument(
        "--streamable", required=True, type=Path, help="Python that has mcp-streamablehttp-proxy"
    )
    parser.add_argument(
        "--supergateway", required=True, type=Path, help="folder with supergateway's node_modules"
    )
    parser.add_argument("--node", required=True, help="the program node")
    return parser


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", default="", help="gateways with this in their names")
    options = parser.parse_args()
    # Ended from outside it puts the kernel's setting back as well, and ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.sched_setaffinity(0, {LOAD_CORE})
    sides = [side for side in gateways(options) if options.only in side.name]
    pipe = []
    with tempfile.TemporaryDirectory() as folder, scheduled_as_a_unit(), without_halts():
        log = Path(folder) / "log"
        for _ in range(options.rounds):
            pipe.append(raw(1))
            for side in sides:
                for clients in CLIENTS:
                    with running(side, FAST, log) as (url, _):
                        try:
                            measured = load(url, clients, options.seconds)
                        except (RuntimeError, subprocess.TimeoutExpired) as error:
                            print(f"{side.name}, {clients} clients: {str(error)[-300:]}", file=sys.stderr)
                            continue
                    side.rates.setdefault(clients, []).append(measured["rate"])
                    side.p50s.setdefault(clients, []).append(measured["p50"])
                    side.p99s.setdefault(clients, []).append(measured["p99"])
        for side in sides:
            with running(side, SDK, log) as (url, _):
                side.sdk_rate = load(url, 16, options.seconds)["rate"]
            idle_sessions(side, log)
            side.first = new_sessions(side, SDK, 7, log)
            side.first_fast = new_sessions(side, FAST, 7, log)
    report(sides, statistics.median(pipe))


def report(sides: list[Gateway], pipe: float) -> None:
    """Print the tables."""
    median = statistics.median

    def at(values: dict[int, list[float]], clients: int, scale: float = 1) -> str:
        return f"{median(values[clients]) * scale:,.0f}" if clients in values else "failed"

    print(
        "| one core | requests/s, 1 client | 16 | 256 | p99 at 256 | added to the pipe's p50 | SDK server, 16 clients |"
    )
    print("|---|---|---|---|---|---|---|")
    for side in sides:
        rates = " | ".join(at(side.rates, clients) for clients in CLIENTS)
        added = median(side.p50s[1]) - pipe if 1 in side.p50s else float("nan")
        print(
            f"| {side.name} | {rates} | {at(side.p99s, 256, 1e-3)} ms | {added:,.0f} µs | {side.sdk_rate:,.0f} |"
        )
    print(f"\nThe bare pipe's p50: {pipe:,.0f} µs.\n")

    def kib(value: float | None) -> str:
        return "not measurable" if value is None else f"{value:,.0f} KiB"

    print(
        f"| an idle session (of {3 * IDLE}) | its server | gateway's own memory | with servers | first answer, SDK server | fast server |"
    )
    print("|---|---|---|---|---|---|")
    for side in sides:
        served = "one for all" if side.shared else "its own"
        print(
            f"| {side.name} | {served} | {kib(side.own_memory)} | {kib(side.memory)} "
            f"| {median(side.first) * 1e3:,.1f} ms | {median(side.first_fast) * 1e3:,.1f} ms |"
        )
    others = [side for side in sides if not side.name.startswith("Gatehouse")]
    for side in sides:
        if side in others or not others:
            continue
        best = {
            c: max(found)
            for c in CLIENTS
            if (found := [median(other.rates[c]) for other in others if c in other.rates])
        }
        ratios = " / ".join(f"{median(side.rates[c]) / best[c]:.1f}" for c in best if c in side.rates)
        alike = [other for other in others if other.shared == side.shared]
        known = [other.own_memory for other in alike if other.own_memory is not None]
        measured = side.own_memory is not None and known
        memories = f"{side.own_memory / min(known):.2f}" if measured else "not measurable"
        first = median(side.first) / min(median(o.first) for o in alike)
        first_fast = median(side.first_fast) / min(median(o.first_fast) for o in alike)
        print(
            f"\n{side.name}: {ratios} times the requests of the best at 1 / 16 / 256 clients (aim: 5); an idle session "
            f"{memories} (aim: 0.5) and a first answer {first:.2f} with the SDK's and {first_fast:.2f} with the fast server (aim: 0.5) of the best of those that share servers, or do not, as it does."
        )


if __name__ == "__main__":
    main()
