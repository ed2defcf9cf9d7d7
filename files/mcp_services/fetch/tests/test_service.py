"""The service as a client sees it: a real process, real connections, both eras of the protocol."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from sites import ARTICLE, NAME, Site

ACCEPT = {"Accept": "application/json, text/event-stream"}
SERVICE = ["-m", "gatehouse_fetch"]


def environment(port: int, **changes: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GATEHOUSE_LISTEN": f"127.0.0.1:{port}",
        "GATEHOUSE_SERVICE": "fetch-native",
        "GATEHOUSE_PUBLIC_URL": "https://fetch.example.com/mcp",
        **changes,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A process of the service."""

    def __init__(self, *command: str, **changes: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env=environment(port, **changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/health")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError

    def stop(self) -> str:
        """What it logged."""
        self._process.terminate()
        said, _ = self._process.communicate(timeout=30)
        return said


@dataclass
class Answer:
    text: str
    failed: bool


async def call(running: Running, mode: str = "2026-07-28", tool: str = "fetch", **arguments: Any) -> Answer:
    async with (
        httpx2.AsyncClient(timeout=60) as http,
        Client(streamable_http_client(f"{running.url}/mcp", http_client=http), mode=mode) as client,
    ):
        result = await client.call_tool(tool, arguments)
        (content,) = result.content
        assert content.type == "text"
        return Answer(content.text, bool(result.is_error))


@pytest.fixture(scope="module")
def origin() -> Iterator[Site]:
    site = Site()
    site.html("/article", ARTICLE)
    site.html("/empty", "<script>document.write('x')</script>")
    site.pages["/letters"] = (200, {"Content-Type": "text/plain"}, b"abcdefghij")
    yield site
    site.close()


@pytest.fixture(scope="module")
def running(origin: Site) -> Iterator[Running]:
    started = Running(str(Path(__file__).with_name("served.py")), str(origin.port))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    """The service as it is outside of tests."""
    started = Running(*SERVICE)
    yield started
    started.stop()


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_page_as_markdown(running: Running, origin: Site, mode: str) -> None:
    answer = await call(running, mode, url=f"{origin.origin}/article")
    assert not answer.failed
    assert answer.text.startswith(
        f"URL: {origin.origin}/article\nTitle: An article\n\n# An article\n\nParagraph 0"
    )
    assert "never shown" not in answer.text


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_what_there_is_no_page_for_is_a_tool_error(running: Running, origin: Site, mode: str) -> None:
    answer = await call(running, mode, url=f"{origin.origin}/missing")
    assert answer == Answer(f"{NAME} answered with status 404.", failed=True)


async def test_a_part_of_a_page(running: Running, origin: Site) -> None:
    url = f"{origin.origin}/letters"
    assert await call(running, url=url) == Answer(f"URL: {url}\n\nabcdefghij", failed=False)
    first = (await call(running, url=url, max_length=4)).text
    assert first == f"URL: {url}\n\nabcd\n\n[6 of 10 characters are left; fetch them with start_index 4.]"
    assert (await call(running, url=url, start_index=8, max_length=2)).text == f"URL: {url}\n\nij"
    after = await call(running, url=url, start_index=10)
    assert after == Answer("The page has 10 characters, so there is nothing from 10 on.", failed=True)


async def test_the_source_of_a_page(running: Running, origin: Site) -> None:
    assert "alert" in (await call(running, url=f"{origin.origin}/article", raw=True)).text
    empty = await call(running, url=f"{origin.origin}/empty")
    assert empty.failed
    assert "raw shows the page's source" in empty.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "The argument url: Field required."),
        ({"url": 1}, "The argument url: Input should be a valid string."),
        (
            {"url": "https://example.com/", "max_length": 0},
            "The argument max_length: Input should be greater",
        ),
        ({"url": "https://example.com/", "start_index": -1}, "The argument start_index:"),
        ({"url": "https://example.com/", "more": 1}, "The argument more: Extra inputs"),
        ({"url": "https://example.com/" + "x" * 3000}, "The argument url: String should have at most 2048"),
        ({"url": "ftp://example.com/"}, "Only http and https URLs can be fetched."),
    ],
)
async def test_arguments_that_are_wrong(guarded: Running, arguments: dict[str, Any], said: str) -> None:
    answer = await call(guarded, **arguments)
    assert answer.failed
    assert answer.text.startswith(said)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0.0.0.0/", "http://[::]/", "http://[::ffff:7f00:1]/",
        "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://10.0.0.1/", "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/", "http://168.63.129.16/metadata",
    ],
)  # fmt: skip
async def test_what_only_this_host_can_reach_is_not_fetched(guarded: Running, url: str) -> None:
    answer = await call(guarded, url=url)
    assert answer.failed
    assert "may not be fetched from: its address is not public" in answer.text


async def test_its_own_ports_are_not_fetched(guarded: Running) -> None:
    answer = await call(guarded, url=f"{guarded.url}/health")
    assert answer.failed
    assert "is not fetched from; allowed are 80, 443." in answer.text


def test_a_request_is_no_larger_than_it_need_be(guarded: Running) -> None:
    def sent(size: int) -> int:
        params = {"name": "fetch", "arguments": {"url": "x" * size}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return httpx.post(f"{guarded.url}/mcp", json=body, headers=ACCEPT).status_code

    assert (sent(63 * 1024), sent(64 * 1024)) == (200, 413)


async def test_logs_name_hosts_and_outcomes_and_no_more(origin: Site) -> None:
    started = Running(str(Path(__file__).with_name("served.py")), str(origin.port))
    await call(started, url=f"{origin.origin}/letters?tell-no-one=1#tell-no-one")
    await call(started, url=f"{origin.origin}/empty?tell-no-one=1")
    await call(started, url=f"{origin.origin}/tell-no-one?tell-no-one=1")
    await call(started, url="https://tell-no-one@example.com/")
    said = started.stop()
    assert "tell-no-one" not in said
    assert "abcdefghij" not in said
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["message"] for line in lines] == [
        f"{NAME}:{origin.port}: fetched",
        f"{NAME}:{origin.port}: The page has no text. A script may write it in the browser; raw shows the page's source.",
        f"{NAME}:{origin.port}: {NAME} answered with status 404.",
        "no host: A URL with a user name or password in it is not fetched.",
    ]
    assert {line["service"] for line in lines} == {"fetch-native"}


# covers: tool-rules
def test_a_person_without_the_tool_neither_sees_nor_calls_it() -> None:
    started = Running(*SERVICE, GATEHOUSE_TOOLS='{"deny": ["*"], "groups": {"readers": ["fetch"]}}')
    try:
        for groups, names in (("", []), ("readers", ["fetch"])):
            headers = ACCEPT | {"MCP-Protocol-Version": "2025-11-25", "X-Gatehouse-Groups": groups}
            body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            listed = httpx.post(f"{started.url}/mcp", json=body, headers=headers).json()
            assert [tool["name"] for tool in listed["result"]["tools"]] == names
            params = {"name": "fetch", "arguments": {"url": "http://127.0.0.1/"}}
            body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
            answer = httpx.post(f"{started.url}/mcp", json=body, headers=headers).json()
            assert ("result" if names else "error") in answer
    finally:
        started.stop()


def test_its_endpoints(guarded: Running) -> None:
    assert httpx.get(f"{guarded.url}/health").json() == {"status": "ok", "service": "fetch-native"}
    assert httpx.get(f"{guarded.url}/mcp", headers=ACCEPT).status_code == 405
    assert httpx.get(f"{guarded.url}/health", headers={"Host": "evil.example"}).status_code == 421
    assert httpx.get(f"{guarded.url}/health", headers={"Host": "fetch.example.com"}).status_code == 200


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FETCH_ALLOW", "tell-no-one:80", "FETCH_ALLOW: must be public, names such as"),
        ("FETCH_ALLOW", "127.0.0.0/8", "FETCH_ALLOW: must not name loopback"),
        ("FETCH_PORTS", "tell-no-one", "FETCH_PORTS: must be ports such as 80,443"),
        ("GATEHOUSE_LISTEN", "tell-no-one", "GATEHOUSE_LISTEN: must be an address"),
    ],
)
def test_wrong_configuration_is_named_and_never_quoted(variable: str, value: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, *SERVICE],
        env=environment(1, **{variable: value}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 78
    assert done.stderr.startswith(said)
    assert "tell-no-one" not in done.stderr + done.stdout


def test_systemd_learns_of_start_and_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)
        env = environment(free_port(), NOTIFY_SOCKET=str(tmp_path / "notify"))
        process = subprocess.Popen([sys.executable, *SERVICE], env=env)
        try:
            assert notify.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert notify.recv(100) == b"STOPPING=1"
            assert process.wait(30) in (0, -signal.SIGTERM)
        finally:
            process.kill()
            process.wait()
