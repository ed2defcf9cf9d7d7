"""What a client in Python and the driver say to each other, and what these clients have in common."""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
import sys
from abc import ABC, abstractmethod
from typing import Any

import anyio
from names import resolve_below


def say(message: dict[str, Any]) -> None:
    """One line to the driver."""
    print(json.dumps(message), flush=True)


def hear_now() -> dict[str, Any]:
    """One line from the driver; none means that it is gone."""
    line = sys.stdin.readline()
    return json.loads(line) if line else {"do": "close"}


async def hear() -> dict[str, Any]:
    """One line from the driver, while other tasks go on."""
    return await anyio.to_thread.run_sync(hear_now, abandon_on_cancel=True)


class Connection(ABC):
    """One service, signed in to when it is first asked for something."""

    session: Any

    def __init__(self, url: str, setting: dict[str, Any]) -> None:
        self.url = url
        self.setting = setting
        self.trust = ssl.create_default_context(cafile=setting["ca_file"])

    @abstractmethod
    async def open(self, stack: contextlib.AsyncExitStack, mode: str | None) -> None:
        """Begin a session, of the client's own choice or of the protocol era that is meant by `mode`.

        An earlier session stays open meanwhile: its task group can end only after those begun later.
        """

    @abstractmethod
    async def obey(self, order: dict[str, Any]) -> Any: ...


async def _main(kind: type[Connection]) -> None:
    setting = await hear()
    resolve_below(setting["domain"])
    connections: dict[str, Connection] = {}
    async with contextlib.AsyncExitStack() as stack:
        while (order := await hear())["do"] != "close":
            url = order["url"]
            try:
                if url not in connections or order["do"] == "connect":
                    connection = connections.get(url) or kind(url, setting)
                    # A sign-in that fails takes the SDK's task group with it, and that one alone.
                    async with contextlib.AsyncExitStack() as opening:
                        await connection.open(opening, order.get("mode"))
                        stack.push_async_exit(opening.pop_all())
                    connections[url] = connection
                say({"result": None if order["do"] == "connect" else await connections[url].obey(order)})
            except Exception as error:
                say({"error": "; ".join(_causes(error))})


def _causes(error: Exception) -> list[str]:
    """The errors inside the groups that the SDK's task groups make."""
    if isinstance(error, ExceptionGroup):
        return [cause for inner in error.exceptions for cause in _causes(inner)]
    return [f"{type(error).__name__}: {error}"]


def serve(kind: type[Connection]) -> None:
    """Obey the driver until it goes."""
    logging.disable()
    anyio.run(_main, kind)
