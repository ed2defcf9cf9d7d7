"""The official time server, unchanged, behind the bridge, and the SDKs' own clients in front of it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from conftest import HERE, Bridge, descendants

# One worker makes the environment.
pytestmark = pytest.mark.xdist_group("clients")
CATALOGUE = HERE.parents[1] / "catalogue"


@pytest.fixture(scope="session")
def time_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the catalogue installs; the SDK 1.x is in it too."""
    folder = tmp_path_factory.mktemp("time")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "-p", sys.executable, folder / "venv"], check=True)
    lock = CATALOGUE / "time" / "requirements.lock"
    install: list[str | Path] = [
        "pip",
        "install",
        "-q",
        "--require-hashes",
        "-p",
        folder / "venv",
        "-r",
        lock,
    ]
    subprocess.run([*uv, *install], check=True)
    return folder / "venv" / "bin"


@pytest.fixture
def bridge(start: Callable[..., Bridge], time_environment: Path) -> Bridge:
    return start([str(time_environment / "mcp-server-time"), "--local-timezone", "Europe/Vienna"])


# covers: eras
@pytest.mark.parametrize(
    ("mode", "version"), [("legacy", "2025-11-25"), ("2026-07-28", "2026-07-28"), ("auto", "2026-07-28")]
)
async def test_sdk_2(bridge: Bridge, mode: str, version: str) -> None:
    async with Client(f"{bridge.url}/mcp", mode=mode) as client:
        assert client.protocol_version == version
        assert {tool.name for tool in (await client.list_tools()).tools} == {
            "get_current_time",
            "convert_time",
        }
        result = await client.call_tool("get_current_time", {"timezone": "UTC"})
        assert result.content[0].type == "text"
        assert json.loads(result.content[0].text)["timezone"] == "UTC"
        failed = await client.call_tool("get_current_time", {"timezone": "Nowhere/None"})
        assert failed.is_error


# covers: eras
async def test_sdk_1(bridge: Bridge, time_environment: Path) -> None:
    arguments = json.dumps({"timezone": "Asia/Tokyo"})
    process = await asyncio.create_subprocess_exec(
        time_environment / "python",
        HERE / "client1.py",
        f"{bridge.url}/mcp",
        "get_current_time",
        arguments,
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(output)
    assert json.loads(found.pop("text"))["timezone"] == "Asia/Tokyo"
    assert found == {
        "version": "2025-11-25",
        "session": True,
        "tools": ["get_current_time", "convert_time"],
        "error": False,
    }


async def test_many_at_once_and_none_is_left(bridge: Bridge) -> None:
    async def one(number: int) -> str:
        async with (
            httpx2.AsyncClient(timeout=60, headers={"X-Gatehouse-User": f"local:u{number % 3}"}) as http,
            Client(streamable_http_client(f"{bridge.url}/mcp", http_client=http), mode="legacy") as client,
        ):
            result = await client.call_tool("get_current_time", {"timezone": "UTC"})
            return str(result.content[0].type)

    assert await asyncio.gather(*(one(number) for number in range(6))) == ["text"] * 6
    assert bridge.health["sessions"] == 0
    below = descendants(bridge.process.pid)
    bridge.stop()
    assert below
    assert not [pid for pid in below if os.path.exists(f"/proc/{pid}")]
