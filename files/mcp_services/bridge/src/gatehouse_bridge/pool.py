"""The children: started ahead of need, counted, shared as configured, and ended when nobody needs them."""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from gatehouse_bridge import tree
from gatehouse_bridge.child import Child, ChildError
from gatehouse_bridge.launch import Launcher
from gatehouse_bridge.log import Log
from gatehouse_bridge.metrics import Metrics
from gatehouse_bridge.process import Process
from gatehouse_bridge.repeat import repeat
from gatehouse_bridge.settings import MissingSecretError

# Who shares a child: the user first, and what else tells him who may from another; nothing where all may.
Key = tuple[str, ...]

SWEEP_SECONDS = 5.0
# A child that several share and that has not read what was sent to it for so long reads no more. One with a single thread may
# be at work on a long call before that.
DEAF_SECONDS = 900.0
# A child that ends this soon did not start well; the next is then started only when it is needed.
SHORT_LIFE_SECONDS = 5.0
START_PAUSE_SECONDS = 30.0
# A child that starts takes the processor from the first requests of the session that took the last one.
REFILL_PAUSE_SECONDS = 0.5


class Pool:
    """All children of the bridge.

    Args:
        launcher: Starts them.
        log: The log.
        metrics: The metrics.
        most: How many processes may run at once.
        warm: How many are kept ready that nobody uses yet.
        idle_seconds: After how long a shared child without users ends.
        make_room: Asked to have a child end that can be done without, if there is one, for a user who needs the place.
    """

    def __init__(
        self,
        launcher: Launcher,
        log: Log,
        metrics: Metrics,
        most: int,
        warm: int,
        idle_seconds: float,
        make_room: Callable[[str], None],
    ) -> None:
        """See the class."""
        self._launcher = launcher
        self._log = log
        self._metrics = metrics
        self._most = most
        # Who will need one is not known ahead of need, and so neither are his secrets.
        self._warm_wanted = 0 if launcher.secrets.personal else warm
        self._idle_seconds = idle_seconds
        self._make_room = make_room
        self._processes: dict[int, Process] = {}
        self._warm: list[Process] = []
        # By who shares it, and whether it speaks 2026-07-28: a process speaks with all its clients as with the first.
        self._joint: dict[tuple[Key, bool], asyncio.Task[Child]] = {}
        # Whether the server can; None until one was asked.
        self._modern: bool | None = None
        self._probing = asyncio.Lock()
        self._warm_not_before = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._refilling = asyncio.Lock()
        self._closed = False

    @property
    def count(self) -> int:
        """How many processes run."""
        return len(self._processes)

    @property
    def warm(self) -> int:
        """How many of them nobody uses yet."""
        return len(self._warm)

    @property
    def probed(self) -> bool:
        """Whether it is known if the server speaks 2026-07-28."""
        return self._modern is not None

    @property
    def ancient(self) -> bool:
        """Whether the server is known to speak no revision but earlier ones."""
        return self._modern is False

    def begin(self) -> None:
        """Start what is started ahead of need, and the sweeper."""
        self._spawn(repeat(min(SWEEP_SECONDS, self._idle_seconds), self._sweep))
        self._spawn(self._refill())

    async def close(self) -> None:
        """End every child. Takes about two seconds at most."""
        self._closed = True
        for task in [*self._tasks, *self._joint.values()]:
            task.cancel()
        while self._processes:
            await asyncio.gather(*(process.stop(grace=0.5) for process in [*self._processes.values()]))

    async def own(self, user: str) -> Child:
        """A child for one client, which makes the handshake itself.

        Args:
            user: Whose it is.

        Raises:
            ChildError: there are too many, it does not start, or the user has no credentials for it.
        """
        return Child(await self._take(user), self._log, self._metrics, _not_shared, shared=False)

    async def joint(
        self, key: Key, user: str, capabilities: Mapping[str, Any], modern: bool = False
    ) -> Child:
        """The child that all who have this key share, ready for requests; started if there is none.

        Args:
            key: Names it.
            user: Who asks for it; of a child with secrets of one user's own, its only user.
            capabilities: What it is offered in the handshake.
            modern: Whether it is for requests of 2026-07-28. Where the server speaks that itself, the child is another
                than that of the sessions.

        Raises:
            ChildError: there are too many, or it does not start.
        """
        if modern and self._modern is None:
            async with self._probing:
                if self._modern is None:
                    await self._probe(key, user, capabilities)
        return await self._shared((key, modern and bool(self._modern)), user, capabilities)

    async def _shared(self, name: tuple[Key, bool], user: str, capabilities: Mapping[str, Any]) -> Child:
        task = self._joint.get(name)
        if task is None or (task.done() and _running(task) is None):
            self._hold_to_share(name[0])
            task = self._begin(name, self._start_joint(name, user, capabilities))
        # Others wait for it too: it is not one client's to cancel.
        return await asyncio.shield(task)

    def existing(self, key: Key, modern: bool = False) -> Child | None:
        """The child that all who have this key share, if it runs."""
        return _running(self._joint.get((key, modern and bool(self._modern))))

    def joint_children(self) -> list[tuple[Key, Child]]:
        """The children that run and are not one client's own, and who shares each."""
        running = [(key, _running(task)) for (key, _), task in self._joint.items()]
        return [(key, child) for key, child in running if child is not None]

    def serves(self, user: str) -> bool:
        """Whether a process runs that was taken for this user."""
        return any(process.user == user for process in self._processes.values())

    def release(self, child: Child) -> None:
        """A child is needed no more."""
        self._gone(child)
        child.process.stop()

    async def _probe(self, key: Key, user: str, capabilities: Mapping[str, Any]) -> None:
        """Ask a child what it speaks, and keep it for those who share it."""
        try:
            child = await self._joint_child(user)
        except ChildError:
            # It may be that there is no place for one more. Then theirs who have sessions has to do, for as long as it runs.
            if self.existing(key) is None:
                raise
            return
        child.process.on_trial = True
        try:
            self._modern = await child.discover()
        except ChildError:
            # It ended on being asked. Where the next one runs, which gets the handshake, the question was why.
            await self._shared((key, False), user, capabilities)
            self._modern = False
            return
        child.process.on_trial = False
        name = (key, self._modern)
        if name in self._joint:
            child.process.stop()
        else:
            self._begin(name, self._greeted(child, capabilities))

    def _hold_to_share(self, key: Key) -> None:
        """Half of all places at most are one user's, however many clients he has, and whatever they say they can be asked."""
        own = [task for (other, _), task in self._joint.items() if key and other[:1] == key[:1]]
        if len(own) < max(2, self._most // 2):
            return
        idle = [child for child in map(_running, own) if child is not None and child.idle]
        if not idle:
            raise ChildError("too_many_children", "You have half of all places; try again later")
        self.release(min(idle, key=lambda child: child.idle_since))

    def _begin(self, name: tuple[Key, bool], work: Coroutine[Any, Any, Child]) -> asyncio.Task[Child]:
        task = self._joint[name] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(partial(self._started, name))
        return task

    async def _start_joint(self, name: tuple[Key, bool], user: str, capabilities: Mapping[str, Any]) -> Child:
        child = await self._joint_child(user)
        if name[1]:
            await child.discover()
        return await self._greeted(child, capabilities)

    async def _joint_child(self, user: str) -> Child:
        return Child(await self._take(user), self._log, self._metrics, self._gone, shared=True)

    async def _greeted(self, child: Child, capabilities: Mapping[str, Any]) -> Child:
        try:
            if not child.modern:
                await child.handshake(capabilities)
        except BaseException:
            child.process.stop()
            raise
        return child

    def _started(self, name: tuple[Key, bool], task: asyncio.Task[Child]) -> None:
        if (task.cancelled() or task.exception()) and self._joint.get(name) is task:
            del self._joint[name]

    def _gone(self, child: Child) -> None:
        for name, task in [*self._joint.items()]:
            if task.done() and not task.cancelled() and not task.exception() and task.result() is child:
                del self._joint[name]

    async def _take(self, user: str) -> Process:
        try:
            environment = self._launcher.environment(user)
        except MissingSecretError as error:
            text = f"You have no {error} for this service; ask its operator, who sets it in secrets_per_user"
            raise ChildError("no_credentials", text, {"missing": error.names}) from None
        while self._warm:
            process = self._warm.pop(0)
            if process.usable:
                process.user = user
                self._spawn(self._refill(REFILL_PAUSE_SECONDS))
                return process
        while self.count >= self._most:
            if not any(process.stopping for process in self._processes.values()):
                self._make_room(user)
            leaving = [process.stop() for process in self._processes.values() if process.stopping]
            if not leaving:
                raise ChildError("too_many_children", "All places are taken; try again later")
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
        process = await self._start(environment, user)
        self._spawn(self._refill(REFILL_PAUSE_SECONDS))
        return process

    async def _start(self, environment: dict[str, str], user: str | None = None) -> Process:
        if self._closed:
            raise ChildError("child_not_started", "The service is stopping")
        process = None
        try:
            process = Process(self._launcher, environment, self._log, self._metrics, self._processes)
            process.user = user
            await process.connect()
        except OSError as error:
            if process is not None:
                process.stop()
            self._log("child_not_started", "error", error=error.strerror)
            raise ChildError("child_not_started", "The MCP server could not be started") from None
        return process

    async def _refill(self, pause: float = 0) -> None:
        await asyncio.sleep(pause)
        async with self._refilling:
            for process in [process for process in self._warm if not process.usable]:
                self._cooled(process)
            while (
                len(self._warm) < self._warm_wanted
                and self.count < self._most
                and time.monotonic() >= self._warm_not_before
            ):
                try:
                    process = await self._start(self._launcher.environment(""))
                except ChildError:
                    self._warm_not_before = time.monotonic() + START_PAUSE_SECONDS
                    return
                process.on_end = partial(self._cooled, process)
                self._warm.append(process)

    def _cooled(self, process: Process) -> None:
        """A child ended that nobody had used yet."""
        if process in self._warm:
            self._warm.remove(process)
        now = time.monotonic()
        if now - process.started < SHORT_LIFE_SECONDS:
            self._warm_not_before = now + START_PAUSE_SECONDS

    async def _sweep(self) -> None:
        """Reap orphans, kill those that no living child can be shown to own, end what is idle or reads no more."""
        orphans = tree.adopted(self._processes)
        if orphans:
            entries = tree.snapshot()
            for pid in orphans & entries.keys():
                mark, session = tree.mark_of(pid), entries[pid].session
                if not any(process.owns(pid, mark, session) for process in self._processes.values()):
                    self._log("orphan_killed", "warning", pid=pid)
                    self._metrics.orphans.inc()
                    tree.send([pid], signal.SIGKILL)
        now = time.monotonic()
        for _, child in self.joint_children():
            if child.process.deaf_since is not None and now - child.process.deaf_since >= DEAF_SECONDS:
                self._log("child_deaf", "warning", pid=child.process.pid)
                self.release(child)
            elif child.idle and now - child.idle_since >= self._idle_seconds:
                self.release(child)
        await self._refill()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _not_shared(_: Child) -> None:
    """A child of one client's own has gone: its session sees to that."""


def _running(task: asyncio.Task[Child] | None) -> Child | None:
    """What has been started, as long as it runs."""
    if task is None or not task.done() or task.cancelled() or task.exception():
        return None
    return task.result() if task.result().process.usable else None
