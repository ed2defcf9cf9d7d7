"""Who goes first: few at once, and fewer of any one user, so that nobody can keep all others waiting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from gatehouse_fetch import FetchError

# Clients give a call a minute. It may wait twice, fetch for 20 seconds, and be read for 20.
WAIT_SECONDS = 10.0


class Turns:
    """Turns at something."""

    def __init__(self, at_once: int, per_user: int) -> None:
        """See the class.

        Args:
            at_once: How many have their turn at once.
            per_user: How many of these may be one user's.
        """
        self._all = asyncio.Semaphore(at_once)
        self._per_user = per_user
        # A user's is forgotten with the last who holds it or waits for it.
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, user: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it.

        Raises:
            FetchError: it did not come in time.
        """
        own = self._own.setdefault(user, asyncio.Semaphore(self._per_user))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    # In this order: whoever waits for their own turns is in nobody else's way.
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise FetchError(
                    "Too many pages are being fetched; try again in a minute, and fewer at once."
                ) from None
            yield
