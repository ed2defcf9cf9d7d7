"""The decisions of the last while, where operators can see those of all nodes. The audit log is the record;
this is a window on it, small and allowed to miss what a flood brings.
"""

import asyncio
import json
import time
from typing import Any

from gatehouse_auth.store import Store, StoreUnavailable

SHOWN = (
    "account",
    "client",
    "consent",
    "crowded_out",
    "device",
    "disconnect",
    "introspection",
    "registration",
    "registration_management",
    "replay",
    "revocation",
    "signin",
    "token",
    "withdrawn",
)
EVERY_SECONDS = 1.0
AT_ONCE = 50


class Decisions:
    """Gathers decisions and hands them over now and then."""

    def __init__(self) -> None:
        self._gathered: list[str] = []

    def note(self, record: dict[str, Any]) -> None:
        """Take an event of the log, if it is a decision that an operator asks about."""
        if record["event"] in SHOWN and len(self._gathered) < AT_ONCE:
            self._gathered.append(json.dumps({"time": int(time.time()), **record}))

    async def run(self, store: Store) -> None:
        """Hand over until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.hand_over(store)

    async def hand_over(self, store: Store) -> None:
        """Hand over what was gathered; what Redis does not take is in the log all the same."""
        gathered, self._gathered = self._gathered, []
        if gathered:
            try:
                await store.note_decisions(gathered)
            except StoreUnavailable:
                return
