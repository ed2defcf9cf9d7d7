# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A connection to Redis. Runs on the host with nothing but the standard library."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, BinaryIO

REPLY_SECONDS = 5.0
RETRY_SECONDS = 0.2


class RedisFault(Exception):
    """Redis cannot be reached or answers with an error; the message holds no secret."""


class Redis:
    """A connection that speaks RESP2, authenticated as one user.

    Args:
        connect: Opens the socket.
        user: The user.
        passwords: Tried in turn: after a rotation the running Redis may know only one of them.

    Raises:
        RedisFault: It does not answer, or accepts none of the passwords.
    """

    def __init__(self, connect: Callable[[], socket.socket], user: str, passwords: list[str]) -> None:
        try:
            self._socket = connect()
        except OSError as error:
            raise RedisFault(f"Redis does not answer: {error.strerror or error}") from error
        self._file: BinaryIO = self._socket.makefile("rb")
        refusal: RedisFault | None = None
        for password in passwords:
            try:
                self.command("AUTH", user, password)
                return
            except RedisFault as error:
                refusal = error
        self.close()
        raise RedisFault(
            f"Redis refuses the passwords of {user} ({refusal}); `systemctl restart gatehouse-redis` makes it read its "
            "users again"
        )

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def command(self, *words: str) -> Any:
        """Send a command and return its answer: text, number, list or None.

        Raises:
            RedisFault: The answer is an error, or there is none.
        """
        parts = [word.encode() for word in words]
        sent = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        try:
            self._socket.sendall(sent)
            return self._answer()
        except OSError as error:
            raise RedisFault(f"Redis does not answer: {error.strerror or error}") from error

    def _answer(self) -> Any:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise RedisFault("Redis closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"+":
            return rest
        if kind == b"-":
            # Only the code, such as WRONGPASS: the rest may quote what was sent.
            raise RedisFault(rest.split(" ", 1)[0])
        if kind == b":":
            return int(rest)
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self._file.read(length + 2)[:-2].decode()
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))] if int(rest) >= 0 else None
        raise RedisFault("Redis answers in a protocol that is not its own")


def on_socket(path: str) -> socket.socket:
    """Connect to Redis' own socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(REPLY_SECONDS)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def reach(connect: Callable[[], socket.socket], user: str, passwords: list[str], seconds: float) -> Redis:
    """Connect within a time.

    Raises:
        RedisFault: It did not answer in time; or it did, and refused.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            redis = Redis(connect, user, passwords)
            redis.command("PING")
            return redis
        except RedisFault:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
