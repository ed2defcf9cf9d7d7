"""A bridge as systemd would start it: a process of its own, on a loopback port."""

import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings

# The same examples in every run of `make test`; `make fuzz` looks for new ones.
settings.register_profile("test", derandomize=True, database=None, deadline=None)
settings.register_profile("fuzz", max_examples=5000, database=None, deadline=None)
settings.load_profile("test")
HERE = Path(__file__).parent
NASTY = [sys.executable, str(HERE / "nasty.py")]
ACCEPT = {"Accept": "application/json, text/event-stream"}
MODERN = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(command: list[str], **settings: Any) -> dict[str, str]:
    """Of a bridge; settings are JSON where they are not strings."""
    given: dict[str, Any] = {
        "LISTEN": f"127.0.0.1:{free_port()}",
        "SERVICE": "test",
        "PUBLIC_URL": "https://test.example.com/mcp",
    }
    given |= {"BRIDGE_COMMAND": command, **settings}
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        **{f"GATEHOUSE_{k}": v if isinstance(v, str) else json.dumps(v) for k, v in given.items()},
    }


def descendants(pid: int) -> set[int]:
    """The living processes below one."""
    parents = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents[int(name)] = int(parent)
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def none_alive(pids: list[int]) -> bool:
    return not any(map(alive, pids))


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def drop_capabilities() -> None:
    """Between fork and exec: what starts has none, as a unit of ours; root could look into every process."""
    for capability in range(64):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


class Session:
    """A session by hand, message by message."""

    def __init__(self, http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> None:
        self.http, self.url, self.headers = http, f"{url}/mcp", ACCEPT | headers
        self._numbers = 0

    async def initialize(self, version: str = "2025-11-25", capabilities: Any = None) -> httpx.Response:
        hello = {
            "protocolVersion": version,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "test", "version": "1"},
        }
        answer = await self.post({"id": 0, "method": "initialize", "params": hello})
        if "mcp-session-id" in answer.headers:
            self.headers["Mcp-Session-Id"] = answer.headers["mcp-session-id"]
            self.headers["MCP-Protocol-Version"] = answer.json()["result"]["protocolVersion"]
            assert (await self.post({"method": "notifications/initialized"})).status_code == 202
        return answer

    async def post(self, message: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.http.post(
            self.url, json={"jsonrpc": "2.0", **message}, headers=self.headers | headers
        )

    def tool(self, name: str, identifier: Any = None, token: Any = None, **arguments: Any) -> dict[str, Any]:
        self._numbers += 1
        params: dict[str, Any] = {"name": name, "arguments": arguments}
        if token is not None:
            params["_meta"] = {"progressToken": token}
        return {
            "id": self._numbers if identifier is None else identifier,
            "method": "tools/call",
            "params": params,
        }

    async def call(self, name: str, **arguments: Any) -> Any:
        """The text of a tool's answer."""
        message = answer(await self.post(self.tool(name, **arguments)))
        assert "result" in message, message
        return message["result"]["content"][0]["text"]

    @asynccontextmanager
    async def stream(
        self, message: dict[str, Any] | None = None, after: str | None = None
    ) -> "AsyncIterator[Events]":
        """The answer to a POST, or the session's own stream, as events."""
        body = None if message is None else {"jsonrpc": "2.0", **message}
        method = "GET" if message is None else "POST"
        headers = self.headers if after is None else self.headers | {"Last-Event-ID": after}
        async with self.http.stream(method, self.url, json=body, headers=headers) as response:
            yield Events(response)

    async def delete(self) -> int:
        return (await self.http.delete(self.url, headers=self.headers)).status_code


class Events:
    """Server-sent events, one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.ids: list[str] = []
        self._lines = response.aiter_lines()

    async def next(self) -> Any:
        """The next message; None at the end."""
        async for line in self._lines:
            if line.startswith("id: "):
                self.ids.append(line[4:])
            elif line.startswith("data: "):
                return json.loads(line[6:])
        return None

    async def rest(self) -> list[Any]:
        """All messages to the end."""
        messages = []
        while (message := await self.next()) is not None:
            messages.append(message)
        return messages


def answer(response: httpx.Response) -> Any:
    """The JSON-RPC response in an HTTP one, whichever form it has."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == "application/json":
        return response.json()
    return json.loads([line for line in response.text.splitlines() if line.startswith("data: ")][-1][6:])


class Bridge:
    """A running bridge; `user` is who asks where a test does not say."""

    user = ""
    program = ("-m", "gatehouse_bridge")

    def __init__(self, env: dict[str, str], log: Path, before: Callable[[], object] | None = None) -> None:
        self.url = f"http://{env['GATEHOUSE_LISTEN']}"
        self._log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *self.program],
                env={"TMPDIR": str(log.parent), **env},  # where a killed one leaves its children's folders
                stdout=file,
                preexec_fn=before,
            )
        self.http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the bridge ended"
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def health(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/health", timeout=60).json())

    def figure(self, name: str) -> float:
        """One of its metrics."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.search(rf"^gatehouse_bridge_{name} (\S+)", text, re.MULTILINE)
        assert found
        return float(found[1])

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines()]

    def session(self, user: str = "", client: str = "") -> Session:
        identity = {"X-Gatehouse-User": user or self.user, "X-Gatehouse-Client": client}
        return Session(self.http, self.url, {name: value for name, value in identity.items() if value})

    async def open(self, user: str = "", **hello: Any) -> Session:
        session = self.session(user)
        response = await session.initialize(**hello)
        assert response.status_code == 200, response.text
        assert "mcp-session-id" in response.headers, response.text
        return session

    async def stateless(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        user: str = "",
        headers: Mapping[str, str | None] | None = None,
    ) -> httpx.Response:
        """A request of 2026-07-28; headers that are None are left out."""
        params = {"_meta": META, **(params or {})}
        sent: dict[str, str | None] = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, **ACCEPT}
        name = params.get("name", params.get("uri"))
        sent |= {"Mcp-Name": name, "X-Gatehouse-User": user or self.user or None, **(headers or {})}
        return await self.http.post(
            f"{self.url}/mcp",
            json={"jsonrpc": "2.0", "id": "a", "method": method, "params": params},
            headers={k: v for k, v in sent.items() if v is not None},
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; none of its descendants may be left."""
        below = descendants(self.process.pid)
        self.process.send_signal(number)
        code = self.process.wait(40)
        if number != signal.SIGKILL:
            assert not [pid for pid in below if alive(pid)]
        for pid in below:  # what a killed bridge leaves, systemd would end
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        return code


class Guest(Bridge):
    """A bridge that other tests use as well, each as a user of its own. Its sessions end with the test."""

    def __init__(self, host: Bridge) -> None:
        self.url, self.process, self._log = host.url, host.process, host._log
        self.http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))
        self.user = f"local:{secrets.token_hex(4)}"
        self._sessions: list[Session] = []

    def session(self, user: str = "", client: str = "") -> Session:
        self._sessions.append(super().session(user, client))
        return self._sessions[-1]

    def leave(self) -> None:
        for session in self._sessions:
            if "Mcp-Session-Id" in session.headers:
                httpx.delete(session.url, headers=session.headers)


def clean(bridge: Bridge) -> None:
    """Nothing is left of it, and no message is in its log."""
    if bridge.process.poll() is None:
        bridge.stop()
    assert not re.search(r"jsonrpc|progressToken|Traceback", bridge.log)


@pytest.fixture(scope="session")
def common_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    env = environment(NASTY, BRIDGE_ENV={}, BRIDGE_MAX_CHILDREN=500)
    bridge = Bridge(env, tmp_path_factory.mktemp("common") / "bridge.log")
    yield bridge
    clean(bridge)


@pytest.fixture
def common(common_host: Bridge) -> Iterator[Bridge]:
    """A bridge with the nasty server behind it, for tests that have no settings of their own."""
    guest = Guest(common_host)
    yield guest
    guest.leave()


@pytest.fixture(scope="session")
def untouched_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    bridge = Bridge(
        environment(NASTY, BRIDGE_ENV={}, BRIDGE_WARM=0), tmp_path_factory.mktemp("untouched") / "bridge.log"
    )
    yield bridge
    clean(bridge)


@pytest.fixture
def untouched(untouched_host: Bridge) -> Bridge:
    """A bridge that has no child, for tests of what must not start one."""
    return Guest(untouched_host)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bridge]]:
    """Starts bridges with the nasty server behind them, or another `command`; they are stopped, and checked
    for leaks and for messages in their logs, when the test ends."""
    bridges: list[Bridge] = []

    def begin(
        command: list[str] = NASTY, before: Callable[[], object] | None = None, **settings: Any
    ) -> Bridge:
        env = environment(command, **{"BRIDGE_ENV": {}, **settings})
        if "CREDENTIALS" in settings:
            env["CREDENTIALS_DIRECTORY"] = env.pop("GATEHOUSE_CREDENTIALS")
        bridges.append(Bridge(env, tmp_path / f"bridge-{len(bridges)}.log", before))
        return bridges[-1]

    yield begin
    for bridge in bridges:
        clean(bridge)
