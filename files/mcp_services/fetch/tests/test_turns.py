"""Whose turn it is, and what is in memory meanwhile."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mcp_types import CallToolResult
from sites import USER

from gatehouse_fetch import FetchError, turns
from gatehouse_fetch.fetching import Fetcher, Page
from gatehouse_fetch.policy import Policy, Url
from gatehouse_fetch.reading import Reader, Reading
from gatehouse_fetch.tools import AT_ONCE, PER_USER, Fetching
from gatehouse_fetch.turns import Turns
from gatehouse_fetch.workers import Workers
from gatehouse_service.native import Context

BUSY = "Too many pages are being fetched; try again in a minute, and fewer at once."


class Held:
    """A fetcher whose pages are there at once, and a reader that does not give them back before it is told to.

    Attributes:
        users: Whose pages are in memory.
        read: Set when they may be read.
    """

    def __init__(self) -> None:
        self.users: list[str] = []
        self.read = asyncio.Event()
        held = self

        class Fetches(Fetcher):
            async def fetch(self, text: str, user: str) -> Page:
                held.users.append(user)
                return Page(Url("http", "site.test", 80, "/"), 200, None, "text/plain", None, b"x")

        class Reads(Reader):
            async def read(self, user: str, *page: Any, **more: Any) -> Reading:
                await held.read.wait()
                held.users.remove(user)
                return Reading("", "x", 1)

        workers = Workers()
        self._tool = Fetching(Fetches(Policy("public", "80"), workers), Reads(workers))

    def call(self, headers: Mapping[str, str]) -> asyncio.Task[CallToolResult]:
        ctx = cast(Context, SimpleNamespace(request=SimpleNamespace(headers=headers)))
        return asyncio.create_task(self._tool.call("fetch", {"url": "http://site.test/"}, ctx))


async def test_so_many_pages_are_in_memory_until_they_are_read() -> None:
    held = Held()
    calls = [held.call({"x-gatehouse-user": f"user-{number}"}) for number in range(3 * AT_ONCE)]
    await asyncio.sleep(0.1)
    assert len(held.users) == AT_ONCE
    held.read.set()
    assert not any(result.is_error for result in await asyncio.gather(*calls))


@pytest.mark.parametrize("headers", [{"x-gatehouse-user": "eve"}, {}])
async def test_one_user_cannot_take_all_turns(headers: dict[str, str]) -> None:
    held = Held()
    calls = [held.call(headers) for _ in range(3 * AT_ONCE)]
    await asyncio.sleep(0.1)
    calls.append(held.call({"x-gatehouse-user": "ana"}))
    await asyncio.sleep(0.1)
    assert sorted(held.users) == sorted(["ana", *PER_USER * [headers.get("x-gatehouse-user", "")]])
    held.read.set()
    assert not any(result.is_error for result in await asyncio.gather(*calls))


async def test_whoever_waits_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.1)
    held = Held()
    calls = [held.call({"x-gatehouse-user": "eve"}) for _ in range(PER_USER + 1)]
    (told,) = (await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED))[0]
    assert told.result().is_error
    assert BUSY in str(told.result().content)
    held.read.set()
    await asyncio.gather(*calls)


async def test_turns_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """From what failed, and from what was given up while it waited."""
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.1)
    one = Turns(1, 1)

    async def fail() -> None:
        async with one.of(USER):
            for user in (USER, "eve"):
                with pytest.raises(FetchError):
                    await one.of(user).__aenter__()
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await fail()
    async with one.of("eve"):
        pass
