"""One child process: its pipes, its log, its end."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

from gatehouse_bridge import tree
from gatehouse_bridge.launch import Launcher, discard
from gatehouse_bridge.log import Log
from gatehouse_bridge.metrics import Metrics

MAX_MESSAGE = 10 * 1024 * 1024
# How much may wait in the pipe to a child before the next message has to wait, and for how long it does.
WRITE_HIGH = 1024 * 1024
WRITE_SECONDS = 30.0
# Messages of one turn of the event loop are written together up to this size.
WRITE_TOGETHER = 64 * 1024
# Of a line that is too long, enough is kept at both ends to find the id in it.
EDGE = 512
OOM_SCORE_ADJUST = "500"
# The log of a child: the longest line, and how many lines in a second.
STDERR_LINE = 4096
STDERR_RATE = 100
# How long a child's end and the end of its output, which descendants may keep open, may lie apart.
LAST_WORDS_SECONDS = 0.5


def _nothing(*_: bytes) -> None:
    """What is called before there is anything to call; a function for each child would take its room."""


class BusyError(Exception):
    """The child has not read what was sent before."""


class Process:
    """A running child.

    Args:
        launcher: Starts it.
        environment: Its environment, as the launcher gives it.
        log: Where its standard error goes, and news of it.
        metrics: The metrics.
        processes: Every process of this bridge; it adds itself, and takes itself out when its tree is gone.
    """

    def __init__(
        self,
        launcher: Launcher,
        environment: Mapping[str, str],
        log: Log,
        metrics: Metrics,
        processes: "dict[int, Process]",
    ) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self._log = log
        self._metrics = metrics
        self._processes = processes
        self._mark = secrets.token_hex(8)
        started = launcher.start(environment, self._mark)
        self._popen, self._group, self._temporary = started.popen, started.group, started.temporary
        self.pid = self._popen.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            # Nobody would learn of its end. What it may have started by now is an orphan, and is found as one.
            with self._popen:
                self._popen.kill()
            if self._group is not None:
                self._group.remove()
            raise
        # Where memory runs out, a child is to go and not the bridge, which all others need.
        with suppress(OSError), open(f"/proc/{self.pid}/oom_score_adj", "w") as file:
            file.write(OOM_SCORE_ADJUST)
        processes[self.pid] = self
        self.started = time.monotonic()
        self.on_end: Callable[[], None] = _nothing
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.code: int | None = None
        # Whether it is started to see if it takes a question: that it ends is then an answer, and no crash.
        self.on_trial = False
        # Whom it was taken for first; None as long as nobody uses it.
        self.user: str | None = None
        self._stdin = _Stdin()
        self._stdout = _Lines(_nothing, _nothing, self._output_ended)
        self._stderr = _Lines(self._print, self._print_beginning, _nothing, STDERR_LINE)
        self._printed, self._printing_since = 0, 0.0
        self._output_open = True
        self._paused = False
        self._stopping: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect the pipes. Until then nothing is read."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._exited)
        stdin, stdout, stderr = self._popen.stdin, self._popen.stdout, self._popen.stderr
        await loop.connect_write_pipe(lambda: self._stdin, stdin)
        await loop.connect_read_pipe(lambda: self._stdout, stdout)
        await loop.connect_read_pipe(lambda: self._stderr, stderr)
        self._log("child_started", pid=self.pid)
        self._metrics.started.inc()

    def listen(self, on_line: Callable[[bytes], None], on_long_line: Callable[[bytes, bytes], None]) -> None:
        """Say who takes what it writes: its lines, and of one that is too long both ends."""
        self._stdout.on_line, self._stdout.on_long_line = on_line, on_long_line

    @property
    def usable(self) -> bool:
        """Whether messages can still be exchanged with it."""
        return self._output_open and self.code is None and self._stopping is None

    @property
    def ready(self) -> bool:
        """Whether it takes a message at once."""
        return self.usable and self._stdin.drained

    @property
    def deaf_since(self) -> float | None:
        """Since when what was sent to it waits to be read; None while there is not much that does."""
        return self._stdin.full_since

    @property
    def stopping(self) -> bool:
        """Whether it is being ended."""
        return self._stopping is not None

    async def write(self, text: str) -> None:
        """Send a message.

        Raises:
            BusyError: the child has not read earlier ones in time; nothing was sent.
        """
        if not await self._stdin.ready():
            raise BusyError
        self._stdin.write(text.encode() + b"\n")

    def write_now(self, text: str, at_once: bool = False) -> None:
        """Send a message, whatever waits before it.

        Args:
            text: The message.
            at_once: Whether it is not to wait for others of this turn of the event loop.
        """
        self._stdin.write(text.encode() + b"\n", at_once)

    def pause(self) -> None:
        """Read no more of its output: the one who reads it is slow."""
        self._paused = True
        self._stdout.pause()

    def resume(self) -> None:
        """Read its output again."""
        self._paused = False
        self._stdout.resume()
        if self.code is not None:
            self._await_last_words()

    def stop(self, grace: float = 2.0) -> "asyncio.Task[None]":
        """End it and all that it started: by closing its input, then asking, then killing.

        Args:
            grace: Seconds for each of the first two.
        """
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(grace))
        return self._stopping

    async def _stop(self, grace: float) -> None:
        self._stdin.close()
        self.resume()
        for number in (None, signal.SIGTERM):
            if number is not None:
                tree.send(self._members(), number)
            await asyncio.wait([self._ended], timeout=grace)
            if self._ended.done():
                break
        members, pause = self._members(), 0.02
        while members:
            if self._group is None or not self._group.kill():
                tree.send(members, signal.SIGKILL)
            await asyncio.sleep(pause)
            members, pause = self._members(), min(2 * pause, 0.5)
        self._stdout.close()
        await asyncio.wait([self._ended])
        self._stderr.close()
        # Its descendants were adopted by the bridge as they died: none may stay a zombie.
        tree.adopted(self._processes)
        while self._group is not None and not self._group.remove():
            self._group.kill()
            await asyncio.sleep(0.02)
        await discard(self._temporary)
        self._processes.pop(self.pid, None)

    def _members(self) -> set[int]:
        if self._group is not None:
            return self._group.members()
        return tree.members(self.pid, self._mark, self._processes)

    def owns(self, pid: int, mark: str | None, session: int) -> bool:
        """Whether an adopted orphan is of this child's tree."""
        if mark == self._mark or session == self.pid:
            return True
        return self._group is not None and pid in self._group.members()

    def _exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.code = self._popen.wait()
        self._log("child_exited", pid=self.pid, status=self.code)
        if self._stopping is None and not self.on_trial:
            self._metrics.crashed.inc()
        if self._output_open:
            self._await_last_words()
        else:
            self._end()

    def _await_last_words(self) -> None:
        if not self._paused:
            asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self._end_unless_paused)

    def _end_unless_paused(self) -> None:
        if not self._paused:
            self._end()

    def _output_ended(self) -> None:
        self._output_open = False
        if self.code is None:
            # It is about to exit; or it runs on, but without its output it is of no use.
            asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self._give_up)
        else:
            self._end()

    def _give_up(self) -> None:
        if self.code is None:
            self.stop()
            self._tell()

    def _end(self) -> None:
        if not self._ended.done():
            self._output_open = False
            self._ended.set_result(None)
            self.stop()
            self._tell()

    def _tell(self) -> None:
        on_end, self.on_end = self.on_end, _nothing
        on_end()

    def _print_beginning(self, head: bytes, _tail: bytes) -> None:
        self._print(head, cut=True)

    def _print(self, line: bytes, cut: bool = False) -> None:
        now = time.monotonic()
        if now - self._printing_since >= 1:
            if self._printed > STDERR_RATE:
                self._log(
                    "child_stderr_suppressed", "warning", pid=self.pid, lines=self._printed - STDERR_RATE
                )
            self._printed, self._printing_since = 0, now
        self._printed += 1
        if line and self._printed <= STDERR_RATE:
            text = line.decode("utf-8", "replace")
            # The last character may be cut as well.
            text = self._log.clean(text.rstrip("\ufffd") if cut else text, cut)
            self._log("child_stderr", pid=self.pid, text=text)


class _Stdin(asyncio.BaseProtocol):
    """The pipe to the child.

    The messages of one turn of the event loop are written together at its end: each write for itself wakes the child, which may take
    the processor from what else the turn would bring. Where nothing else is to be expected, the end of the turn is not waited for: that
    takes up to a twelfth of what a request takes.
    """

    def __init__(self) -> None:
        # To ask which one runs takes a system call.
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        # Set when it has room again; None while it has. Since when it has none.
        self._room: asyncio.Event | None = None
        self.full_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()

    def pause_writing(self) -> None:
        self._room = self._room or asyncio.Event()
        self.full_since = time.monotonic()

    def resume_writing(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = self.full_since = None

    @property
    def drained(self) -> bool:
        return self._room is None

    async def ready(self) -> bool:
        if self._room is None:
            return True
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                # Of several that wait, the first to write may fill it again.
                while self._room is not None:
                    await self._room.wait()
        except TimeoutError:
            return False
        return True

    def write(self, data: bytes, at_once: bool = False) -> None:
        if at_once and not self._waiting:
            self._send(data)
            return
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += data
        if len(self._waiting) > WRITE_TOGETHER:
            self._flush()

    def _flush(self) -> None:
        data, self._waiting = self._waiting, bytearray()
        if data:
            self._send(data)

    def _send(self, data: bytes | bytearray) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        # Not close(): that waits until a child that reads no more has read the rest.
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()


class _Lines(asyncio.Protocol):
    """A pipe from the child, cut into lines. A line longer than `limit` is thrown away as it comes."""

    def __init__(
        self,
        on_line: Callable[[bytes], None],
        on_long_line: Callable[[bytes, bytes], None],
        on_end: Callable[[], None],
        limit: int = MAX_MESSAGE,
    ) -> None:
        self.on_line, self.on_long_line, self._on_end, self._limit = on_line, on_long_line, on_end, limit
        self._transport: asyncio.ReadTransport | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._head: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        rest, self._buffer = bytes(self._buffer), bytearray()
        if rest and self._head is None:
            self.on_line(rest)
        self._on_end()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        if not buffer and self._head is None and data.find(b"\n") == len(data) - 1 <= self._limit:
            # One whole line, as nearly always.
            self.on_line(data[:-1])
            return
        buffer += data
        while (end := buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(memoryview(buffer)[:end])
            del buffer[: end + 1]
            self._searched = 0
            if self._head is not None or len(line) > self._limit:
                self.on_long_line(self._head or line[:EDGE], line[-EDGE:])
                self._head = None
            else:
                self.on_line(line)
        if len(buffer) > self._limit:
            self._head = self._head or bytes(buffer[:EDGE])
            del buffer[:-EDGE]
        self._searched = len(buffer)

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
