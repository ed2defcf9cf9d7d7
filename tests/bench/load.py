"""MCP sessions over raw HTTP/1.1, as many as asked for, each asking again as soon as it is answered.

    python load.py http://127.0.0.1:PORT/mcp/ CLIENTS SECONDS

Prints one JSON object: requests per second, median and 99th percentile in microseconds. Every answer is checked. It
polls and never sleeps, and checks an answer when the next request is on its way: what it does in between would be counted as the
gateway's.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

VERSION = "2025-06-18"
SETTLE_SECONDS = 2
OPEN_SECONDS = 60
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


class Client:
    """A session, on one connection at a time.

    Args:
        url: Where the server is.
    """

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._place = place.hostname, place.port
        self._head = (
            f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\n"
        )
        self._number = 0
        self._request = b""
        self._response = b""
        self._begun = 0.0

    def connect(self) -> None:
        """Open a connection, the session's next."""
        self.socket = socket.create_connection(self._place)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def open(self) -> None:
        """Open the session: initialize, and have the first call answered.

        Raises:
            OSError: the server is not there, closes the connection, or takes too long.
            RuntimeError: it answers something else.
        """
        self.connect()
        response = self._exchange(INITIALIZE)
        if b" 200 " not in response[:15] or b'"protocolVersion"' not in response:
            raise RuntimeError(f"initialize: {response[:500]!r}")
        for line in response.split(b"\r\n\r\n")[0].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"mcp-session-id":
                self._head += f"Mcp-Session-Id: {value.decode().strip()}\r\n"
        self._head += f"MCP-Protocol-Version: {VERSION}\r\n"
        self._exchange(INITIALIZED)
        self._exchange(CALL % (0, 0))
        self._prepare()

    def ask(self) -> None:
        """Send the next call."""
        response = self._response
        self._send(self._request)
        self._check(response)
        self._number += 1
        self._prepare()

    def answered(self) -> float | None:
        """Read on; the seconds that the answer took, if it is whole now."""
        if not self._read():
            return None
        return time.perf_counter() - self._begun

    def check(self) -> None:
        """Look at the last answer.

        Raises:
            RuntimeError: it is not the one to the last call.
        """
        self._check(self._response)

    def close(self) -> None:
        """Drop the connection; the session stays."""
        self.check()
        self.socket.close()

    def _exchange(self, body: str) -> bytes:
        self._send(self._request_of(body))
        while not self._read():
            if time.perf_counter() - self._begun > OPEN_SECONDS:
                raise TimeoutError("no answer")
        return self._response

    def _request_of(self, body: str) -> bytes:
        return f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def _prepare(self) -> None:
        self._request = self._request_of(CALL % (self._number + 1, self._number + 1))

    def _send(self, request: bytes) -> None:
        self._response = b""
        self._begun = time.perf_counter()
        if self.socket.send(request) < len(request):
            raise RuntimeError("the server does not read")

    def _read(self) -> bool:
        """Read what there is; whether the response is whole."""
        try:
            more = self.socket.recv(1 << 16)
        except BlockingIOError:
            return False
        if not more:
            raise ConnectionError("the server closed the connection")
        self._response += more
        head, end, body = self._response.partition(b"\r\n\r\n")
        head = head.lower()
        _, has_length, rest = head.partition(b"content-length:")
        if has_length:
            return bool(end) and len(body) >= int(rest.partition(b"\r\n")[0])
        return bool(end) and (b"chunked" not in head or body.endswith(b"0\r\n\r\n"))

    def _check(self, response: bytes) -> None:
        if b" 200 " not in response[:15] or b"hello %d" % self._number not in response:
            raise RuntimeError(f"tools/call {self._number}: {response[:500]!r}")


def sessions(url: str, count: int) -> list[Client]:
    """That many open sessions, without their connections: some servers close them before all are there."""
    clients = [Client(url) for _ in range(count)]
    for client in clients:
        client.open()
        client.close()
    return clients


class Load:
    """Sessions that ask side by side, each again as soon as it is answered.

    Args:
        url: Where the server is.
        count: How many.
    """

    def __init__(self, url: str, count: int) -> None:
        self._clients: dict[int, Client] = {}
        self._poll = select.epoll()
        for client in sessions(url, count):
            client.connect()
            self._clients[client.socket.fileno()] = client
            self._poll.register(client.socket, select.EPOLLIN)

    def run(self, goes_on: Callable[[int], bool]) -> tuple[list[float], float]:
        """Ask for as long as `goes_on`, which gets the number of requests so far.

        Returns:
            The seconds that each answer took, in order of their length, and those that all together took.
        """
        took: list[float] = []
        begun = time.perf_counter()
        for client in self._clients.values():
            client.ask()
        asked = waiting = len(self._clients)
        while waiting:
            for file, _ in self._poll.poll(0):
                client = self._clients[file]
                answer = client.answered()
                if answer is None:
                    continue
                took.append(answer)
                if goes_on(asked):
                    client.ask()
                    asked += 1
                else:
                    waiting -= 1
        wall = time.perf_counter() - begun
        # Not before: the others' answers would have waited for it.
        for client in self._clients.values():
            client.check()
        return sorted(took), wall


def load(url: str, count: int, seconds: float) -> dict[str, float]:
    """Ask, and say how it went."""
    clients = Load(url, count)
    # With 256 servers on a core, one that has just started is made to wait for up to two seconds: presumably it owes the others the time that
    # its start took (EEVDF).
    time.sleep(SETTLE_SECONDS)
    until = time.perf_counter() + seconds
    took, wall = clients.run(lambda _: time.perf_counter() < until)
    return {
        "rate": len(took) / wall,
        "p50": took[len(took) // 2] * 1e6,
        "p99": took[len(took) * 99 // 100] * 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
