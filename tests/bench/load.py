"""MCP sessions over raw HTTP/1.1, as many as asked for, each asking again as soon as it is answered.

    python load.py http://127.0.0.1:PORT/mcp/ CLIENTS SECONDS

Prints one JSON object: requests per second, median and 99th percentile in microseconds. Every answer is checked.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

import uvloop

VERSION = "2025-06-18"
SETTLE_SECONDS = 2
CALL = (
    '{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello %d"}}}'
)
INITIALIZE = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": {"name": "load", "version": "1"},
        },
    }
)
INITIALIZED = '{"jsonrpc":"2.0","method":"notifications/initialized"}'


class Connection(asyncio.Protocol):
    """One connection with one session."""

    def __init__(self, host: str, path: str) -> None:
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\n"
        )
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._until = 0.0
        self._number = 0
        self._begun = 0.0
        self.took: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._begun == 0 and self._answer is None:
            # Between the opening of its session and its own use.
            return
        for waiting in (self._answer, self.done):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionError("the server closed the connection"))

    def _send(self, body: str) -> None:
        self._transport.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"content-length:")
        if at >= 0:
            stop = head.find(b"\r\n", at)
            whole = end + 4 + int(head[at + 15 : stop if stop >= 0 else len(head)])
            if len(self._buffer) < whole:
                return
        elif b"chunked" in head and not self._buffer.endswith(b"0\r\n\r\n"):
            return
        response = bytes(self._buffer)
        self._buffer.clear()
        if self._answer is not None:
            self._answer.set_result(response)
        else:
            self._next(response)

    async def _ask(self, body: str) -> bytes:
        self._answer = asyncio.get_running_loop().create_future()
        self._send(body)
        response = await self._answer
        self._answer = None
        return response

    async def open(self) -> None:
        """Initialize, and have the first call answered."""
        response = await self._ask(INITIALIZE)
        if b" 200 " not in response[:15] or b'"protocolVersion"' not in response:
            raise RuntimeError(f"initialize: {response[:500]!r}")
        for line in response.split(b"\r\n\r\n")[0].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"mcp-session-id":
                self._head += f"Mcp-Session-Id: {value.decode().strip()}\r\n"
        self._head += f"MCP-Protocol-Version: {VERSION}\r\n"
        await self._ask(INITIALIZED)
        self._check(await self._ask(CALL % (0, 0)))

    def begin(self, until: float) -> None:
        """Ask until then."""
        self._until = until
        self._begun = time.perf_counter()
        self._send(CALL % (self._number, self._number))

    def _check(self, response: bytes) -> None:
        if b" 200 " not in response[:15] or b"hello %d" % self._number not in response:
            raise RuntimeError(f"tools/call {self._number}: {response[:500]!r}")

    def _next(self, response: bytes) -> None:
        now = time.perf_counter()
        try:
            self._check(response)
        except RuntimeError as error:
            self.done.set_exception(error)
            return
        self.took.append(now - self._begun)
        if now >= self._until:
            self.done.set_result(None)
            return
        self._number += 1
        self._begun = now
        self._send(CALL % (self._number, self._number))

    def close(self) -> None:
        """Drop the connection; the session stays."""
        self._transport.close()


async def sessions(url: str, count: int) -> list[Connection]:
    """That many open sessions; few are opened at once, for a child may have to start for each."""
    place = urlsplit(url)
    gate = asyncio.Semaphore(4)

    async def one() -> Connection:
        loop = asyncio.get_running_loop()
        async with gate:
            _, connection = await loop.create_connection(
                lambda: Connection(place.netloc, place.path), place.hostname, place.port
            )
            await connection.open()
        return connection

    return await asyncio.gather(*(one() for _ in range(count)))


async def load(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Ask, and say how it went."""
    connections = await sessions(url, clients)
    place = urlsplit(url)
    for connection in connections:
        # A new one: some servers have closed theirs by the time that all sessions are there.
        connection.close()
        await asyncio.get_running_loop().create_connection(
            lambda connection=connection: connection, place.hostname, place.port
        )
    # With 256 servers on a core, one that has just started is made to wait for up to two seconds: presumably it owes the others the time that
    # its start took (EEVDF).
    await asyncio.sleep(SETTLE_SECONDS)
    begun = time.perf_counter()
    for connection in connections:
        connection.begin(begun + seconds)
    await asyncio.gather(*(connection.done for connection in connections))
    took = sorted(each for connection in connections for each in connection.took)
    wall = time.perf_counter() - begun
    return {
        "rate": len(took) / wall,
        "p50": took[len(took) // 2] * 1e6,
        "p99": took[len(took) * 99 // 100] * 1e6,
        "cpu": time.process_time() / wall,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(load(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
