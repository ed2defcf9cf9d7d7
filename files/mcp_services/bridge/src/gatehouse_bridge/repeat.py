"""What is done again and again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable


async def repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do it every so many seconds. A fault is logged, and ends one time of it and not all."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            logging.getLogger(__name__).exception("It will be tried again")
