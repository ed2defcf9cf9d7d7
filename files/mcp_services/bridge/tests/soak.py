"""Opens sessions and drops them in every rude way, and looks at what is left: processes, memory, descriptors, cgroups.

    python tests/soak.py --sessions 10000

One life of the bridge for nine tenths of the sessions; then ten lives, each ended by kill -9 with its sessions open. Prints a
table, and ends with status 1 where something is left or grows.
"""

import argparse
import asyncio
import http.client
import json
import math
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from conftest import HERE, Bridge, descendants, environment, eventually
from gatehouse_bridge.cgroup import _mount

QUICK = [sys.executable, "-I", "-S", str(HERE / "quick.py")]
AT_ONCE = 16
LIVES = 10
IDLE_SECONDS = 2.0
TCP_REPAIR = 19  # linux/tcp.h; root may
# Python's allocator keeps some of what it had; what grows beyond this is lost.
GROWTH_KIB = 2048
SETTLE_SECONDS = 60.0


class Connection:
    """One TCP connection, with just enough HTTP to be rude on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.session = ""

    def send(self, method: str, body: dict[str, Any] | None = None, cut: int | None = None) -> None:
        """Send a request; with `cut`, only that much of its body."""
        data = b"" if body is None else json.dumps({"jsonrpc": "2.0", **body}).encode()
        fields = {
            "Host": "127.0.0.1",
            "Accept": "application/json, text/event-stream",
            "X-Gatehouse-User": "local:soak",
            "Content-Type": "application/json",
            "Content-Length": len(data),
        } | ({"Mcp-Session-Id": self.session} if self.session else {})
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"{method} /mcp HTTP/1.1\r\n{head}\r\n".encode() + data[:cut])

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body; of an event stream its head alone."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.session = fields.get("mcp-session-id", self.session)
        size = int(fields.get("content-length", "0"))
        return int(first.split()[1]), await self.reader.readexactly(size)

    async def call(self, tool: str) -> Any:
        """A tool's answer."""
        self.send("POST", request("tools/call", {"name": tool}))
        _, body = await self.answer()
        while not body:  # it became an event stream
            body = (await self.reader.readuntil(b"\n")).partition(b"data: {")[2]
            body = body and b"{" + body
        return json.loads(body)

    def close(self, reset: bool = False) -> None:
        """Close it; with `reset` as a client that is gone does it, without a word."""
        if reset:
            raw = self.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.close()


def request(method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"id": 1, "method": method, "params": params or {}}


HELLO = request("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}})


# The ways to end a session. Each gets a connection on which one is open.


async def ends_it(c: Connection) -> None:
    c.send("DELETE")
    assert (await c.answer())[0] == 204
    c.close()


async def says_nothing(c: Connection) -> None:
    c.close()


async def resets_while_a_call_is_under_way(c: Connection) -> None:
    c.send("POST", request("tools/call", {"name": "hang"}))
    await c.writer.drain()
    await asyncio.sleep(0.01)
    c.close(reset=True)


async def resets_an_open_stream(c: Connection) -> None:
    c.send("GET")
    assert (await c.answer())[0] == 200
    c.close(reset=True)


async def vanishes_with_an_open_stream(c: Connection) -> None:
    """Half-open: the client's kernel forgets the connection and tells nobody, as a host does that loses its power."""
    c.send("GET")
    assert (await c.answer())[0] == 200
    c.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    c.writer.transport.abort()


async def closes_half_and_waits(c: Connection) -> None:
    c.send("POST", request("tools/call", {"name": "hang"}))
    c.writer.write_eof()
    await asyncio.sleep(0.5)
    c.close(reset=True)


async def sends_half_a_request_and_waits(c: Connection) -> None:
    c.send("POST", request("tools/call", {"name": "hang"}), cut=20)
    await asyncio.sleep(0.5)
    c.close(reset=True)


async def kills_its_child(c: Connection) -> None:
    answer = await c.call("pid")
    os.kill(int(answer["result"]["content"][0]["text"]), signal.SIGKILL)
    c.close()


async def crashes_its_child_which_has_a_family(c: Connection) -> None:
    await c.call("family")
    assert (await c.call("crash"))["error"]["data"]["reason"] == "child_exited"
    c.close()


async def leaves_a_family_behind(c: Connection) -> None:
    await c.call("family")
    c.close(reset=True)


Way = Callable[[Connection], Awaitable[None]]
WAYS: tuple[Way, ...] = (
    ends_it,
    says_nothing,
    resets_while_a_call_is_under_way,
    resets_an_open_stream,
    closes_half_and_waits,
    sends_half_a_request_and_waits,
    kills_its_child,
    crashes_its_child_which_has_a_family,
    leaves_a_family_behind,
)
# It is noticed when the next keep-alive comment finds nobody.
PATIENT_WAYS = (*WAYS, vanishes_with_an_open_stream)


def client(port: int, sessions: int, ready: int) -> None:
    """A client that holds sessions with open streams until it is killed."""
    held = []
    for _ in range(sessions):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        connection.request("POST", "/mcp", json.dumps({"jsonrpc": "2.0", **HELLO}), headers)
        response = connection.getresponse()
        response.read()
        headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
        connection.request("GET", "/mcp", headers=headers)
        held.append((connection, connection.getresponse()))
    os.write(ready, b".")
    time.sleep(600)


def killed_client(port: int, sessions: int) -> None:
    """Open sessions in a process of their own, and kill it with -9."""
    theirs, ours = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            client(port, sessions, ours)
        finally:
            os._exit(1)
    os.close(ours)
    said = os.read(theirs, 1)
    os.close(theirs)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert said == b"."


class Sample(NamedTuple):
    """What there is of a bridge when nobody uses it."""

    sessions: int
    rss_kib: int
    descriptors: int
    processes: int
    cgroups: int

    @classmethod
    def of(cls, done: int, bridge: Bridge, cgroup: Path | None) -> "Sample":
        proc = Path(f"/proc/{bridge.process.pid}")
        rss = int((proc / "status").read_text().partition("VmRSS:")[2].split()[0])
        groups = len([*cgroup.glob("child-*")]) if cgroup else 0
        return cls(done, rss, len(os.listdir(proc / "fd")), len(descendants(bridge.process.pid)), groups)


class Soak:
    """A run.

    Args:
        folder: For the log.
        cgroup: Delegated to the bridge; None where there is none.
        ways: How sessions end.
        idle_seconds: After which one that nobody uses has ended.
    """

    def __init__(
        self,
        folder: Path,
        cgroup: Path | None,
        ways: Sequence[Way] = WAYS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.cgroup = cgroup
        self._ends = ways
        self.samples: list[Sample] = []
        self.ways: Counter[str] = Counter()
        self.problems: list[str] = []
        self._log = folder / "bridge.log"
        self._env = environment(
            QUICK, BRIDGE_ENV={}, BRIDGE_MAX_CHILDREN=500, BRIDGE_IDLE_SECONDS=idle_seconds, BRIDGE_WARM=4
        )
        self._port = int(self._env["GATEHOUSE_LISTEN"].rpartition(":")[2])

    async def run(self, sessions: int, samples: int) -> None:
        """One long life, then short ones."""
        lives = min(LIVES, sessions // 100)
        last = sessions // 10 // lives
        bridge = self._start()
        for _ in range(samples):
            await self._rude((sessions - last * lives) // samples)
            self.samples.append(await asyncio.to_thread(self._settle, bridge))
            print(*self.samples[-1], sep="\t", flush=True)
        await asyncio.to_thread(bridge.stop)
        for _ in range(lives):
            await self._life(last)
        self._judge()

    def _start(self) -> Bridge:
        enter = partial((self.cgroup / "cgroup.procs").write_text, "0") if self.cgroup else None
        return Bridge(self._env, self._log, enter)

    async def _open(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self._port))
        connection.send("POST", HELLO)
        status, body = await connection.answer()
        assert status == 200, body
        assert connection.session, body
        return connection

    async def _rude(self, sessions: int) -> None:
        """Open so many, and end each in the next way."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(way: Way) -> None:
            async with gate:
                await way(await self._open())
                self.ways[way.__name__] += 1

        killed = sessions // 10
        await asyncio.gather(
            *(one(self._ends[number % len(self._ends)]) for number in range(sessions - killed))
        )
        for held in [AT_ONCE] * (killed // AT_ONCE) + [killed % AT_ONCE]:
            if held:
                await asyncio.to_thread(killed_client, self._port, held)
                self.ways["is_killed_with_9"] += held

    def _settle(self, bridge: Bridge) -> Sample:
        """Wait until only what is started ahead of need is left, and what closes has closed (in a thread: closes take a turn of the loop)."""
        most = max((sample.descriptors for sample in self.samples), default=math.inf)
        left = Sample.of(0, bridge, self.cgroup)

        def settled() -> bool:
            nonlocal left
            health = bridge.health
            left = Sample.of(sum(self.ways.values()), bridge, self.cgroup)
            groups = left.cgroups if self.cgroup else 4
            only = (health["sessions"], health["children"], left.processes, groups) == (0, 4, 4, 4)
            return only and left.descriptors <= most

        with suppress(AssertionError):
            eventually(settled, SETTLE_SECONDS)
        return left

    async def _life(self, sessions: int) -> None:
        """Open sessions, and kill the bridge with -9."""
        bridge = self._start()
        opened = [await self._open() for _ in range(sessions)]
        for connection in opened[::5]:
            await connection.call("family")
        below = descendants(bridge.process.pid)
        await asyncio.to_thread(bridge.process.send_signal, signal.SIGKILL)
        bridge.process.wait()
        # What systemd does with what is left of a unit (KillMode=mixed).
        if self.cgroup:
            (self.cgroup / "cgroup.kill").write_text("1")
        else:
            for pid in below:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for connection in opened:
            connection.close()
        self.ways["its_bridge_is_killed_with_9"] += sessions
        again = await asyncio.to_thread(self._start)
        late = Connection(*await asyncio.open_connection("127.0.0.1", self._port))
        late.session = opened[0].session
        late.send("POST", request("tools/call", {"name": "pid"}))
        if (await late.answer())[0] != 404:
            self.problems.append("after a restart a session of before is not 404")
        late.close()
        left = await asyncio.to_thread(self._settle, again)
        if left.processes != 4 or (self.cgroup and left.cgroups != 4):
            self.problems.append(f"after kill -9 of the bridge: {left}")
        await asyncio.to_thread(again.stop)

    def _judge(self) -> None:
        for sample in self.samples:
            if sample.processes != 4 or (self.cgroup and sample.cgroups != 4):
                self.problems.append(f"processes or cgroups are left: {sample}")
        # By a third of the way it has what it needs to hold.
        first, last = self.samples[(len(self.samples) - 1) // 3], self.samples[-1]
        if last.rss_kib - first.rss_kib > GROWTH_KIB:
            self.problems.append(f"memory grows: {first.rss_kib} to {last.rss_kib} KiB")
        if last.descriptors > first.descriptors:
            self.problems.append(f"descriptors grow: {first.descriptors} to {last.descriptors}")


def delegated() -> Path | None:
    """A cgroup as systemd would delegate it, where one can be made."""
    mount = _mount(Path("/proc/self/mountinfo").read_text().splitlines())
    try:
        path = Path(mount[1] if mount else "/nonexistent", f"gatehouse-soak-{os.getpid()}")
        path.mkdir()
        os.setxattr(path, "user.delegate", b"1")
    except OSError:
        return None
    return path


def remove(cgroup: Path) -> None:
    """End what is in it, and remove it."""
    (cgroup / "cgroup.kill").write_text("1")
    eventually(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())
    for below in cgroup.iterdir():
        if below.is_dir():
            below.rmdir()
    cgroup.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=9)
    arguments = parser.parse_args()
    cgroup = delegated()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), cgroup, PATIENT_WAYS)
        print(*Sample._fields, sep="\t", flush=True)
        try:
            asyncio.run(soak.run(arguments.sessions, arguments.samples))
        finally:
            if cgroup:
                remove(cgroup)
    for way, number in soak.ways.items():
        print(f"{number}\t{way}")
    print(*soak.problems or ["nothing is left, and nothing grows"], sep="\n")
    return bool(soak.problems)


if __name__ == "__main__":
    sys.exit(main())
