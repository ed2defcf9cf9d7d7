"""Processes for what strangers' texts are parsed with.

One text can keep a parser busy for minutes, or make it take gigabytes. A process can be stopped, a thread cannot.
"""

import os
import resource
from asyncio import timeout
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_process

from gatehouse_fetch.turns import Turns

PROCESSES = 2
# Of each. Together, and with the pages of all calls under way, less than the service's MemoryMax of 1 GiB.
MEMORY_LIMIT = 300 * 1024 * 1024

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Workers:
    """The processes; those that are idle are kept. No user has all of them."""

    def __init__(self) -> None:
        self._turns = Turns(PROCESSES, PROCESSES - 1)
        # anyio's own is as many as there are processors.
        self._limiter = CapacityLimiter(PROCESSES)

    async def run(
        self, user: str, seconds: float, work: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> Result:
        """What `work` returns, in a process.

        Raises:
            FetchError: no process is free.
            TimeoutError: it takes longer than `seconds`, and is stopped.
            BrokenWorkerProcess: it takes too much memory, or ends its process.
        """
        async with self._turns.of(user), timeout(seconds):
            return await to_process.run_sync(
                _limited, work, arguments, cancellable=True, limiter=self._limiter
            )


def _limited(work: Callable[[*Arguments], Result], arguments: tuple[*Arguments]) -> Result:
    """What a process does."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    try:
        return work(*arguments)
    except MemoryError:
        # What the parser leaves behind is anybody's guess, so the process ends with it.
        os._exit(1)
