"""Questions to Redis that go together: those of one turn of the event loop share one round trip.

A question costs the service more than Redis, and most of that is paid once for all that go together.
"""

import asyncio
from typing import Any

from redis.asyncio import Redis

Question = tuple[tuple[str | int, ...], asyncio.Future[Any]]


class Together:
    """Asks what may be asked again when an answer is lost: all of a round trip is repeated then."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._waiting: list[Question] = []
        self._rounds: set[asyncio.Task[None]] = set()

    async def ask(self, *command: str | int) -> Any:
        """What Redis answers to a command.

        Raises:
            RedisError, OSError: as redis-py raises them.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, answer))
        if len(self._waiting) == 1:
            loop.call_soon(self._begin)
        return await answer

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        task = asyncio.create_task(self._ask(waiting))
        self._rounds.add(task)
        task.add_done_callback(self._rounds.discard)

    async def _ask(self, waiting: list[Question]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for command, _ in waiting:
            pipeline.execute_command(*command)
        try:
            said = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # theirs, each of them
            said = [error] * len(waiting)
        for (_, answer), value in zip(waiting, said, strict=True):
            if answer.done():
                continue  # who asked has gone
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)
