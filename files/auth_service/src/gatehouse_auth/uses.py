"""When each connection was last used, for those who look at it. The check notes it in memory and asks nobody;
now and then it is handed over.
"""

import asyncio

from gatehouse_auth.oauth.tokens import AccessToken
from gatehouse_auth.store import Store, StoreUnavailable

EVERY_SECONDS = 30.0
# Connections of one such while: what goes beyond is noted in the next.
NOTED = 50_000


class Uses:
    """Gathers the connections that were used."""

    def __init__(self) -> None:
        self._gathered: dict[str, tuple[str, str]] = {}

    def note(self, token: AccessToken) -> None:
        """A token has opened its service. A machine's belongs to no connection."""
        if token.family and len(self._gathered) < NOTED:
            self._gathered[token.family] = (token.identity.user, token.client_id)

    async def run(self, store: Store) -> None:
        """Hand over until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.hand_over(store)

    async def hand_over(self, store: Store) -> None:
        """Hand over what was gathered. What Redis does not take is noted again at the next use."""
        gathered, self._gathered = self._gathered, {}
        if gathered:
            try:
                await store.note_uses(gathered)
            except StoreUnavailable:
                return
