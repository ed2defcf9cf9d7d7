"""The log: one JSON object a line on standard output. Never a token, code, secret, or body.

Every MCP request makes a line: those of one turn of the event loop are written together, at its end.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO


class Log:
    """Writes audit records and events."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._lines: list[str] = []
        self._second = 0
        self._stamp = ""
        # Hears of each event, but not of the hot path's lines.
        self.listener: Callable[[dict[str, Any]], None] | None = None

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one record; fields that are None are left out. JSON keeps a newline from starting a line."""
        named = {name: value for name, value in fields.items() if value is not None}
        if self.listener is not None:
            self.listener({"event": event, **named})
        self.line(json.dumps({"level": level, "event": event, **named})[1:])

    def line(self, rest: str) -> None:
        """Write a record of which all but the time is formatted: the hot path's way in."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(self._second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        self._lines.append(f'{{"ts":"{self._stamp}.{int((now - second) * 1000):03d}Z",{rest}\n')
        if len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:  # no loop: start or end of the process
                self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._lines:
            text, self._lines = "".join(self._lines), []
            self._stream.write(text)
            self._stream.flush()
