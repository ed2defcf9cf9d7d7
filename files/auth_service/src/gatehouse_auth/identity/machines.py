"""Clients from inventory that act for themselves, without a person (RFC 6749 section 4.4)."""

from collections.abc import Mapping

from gatehouse_auth.identity.base import Identity
from gatehouse_auth.settings import MACHINES, StaticClient


class Machines:
    """Vouches for clients that the inventory gives the client credentials grant.

    As an identity a client is `client:<client_id>`. A person's name has no colon, or another provider's
    name before it.
    """

    title = "Machines"

    def __init__(self, clients: Mapping[str, StaticClient]) -> None:
        self._known = {
            client_id: Identity(MACHINES, f"{MACHINES}:{client_id}", client.client_name)
            for client_id, client in clients.items()
            if "client_credentials" in client.grant_types
        }

    def identity(self, client_id: str) -> Identity | None:
        """Whom a client acts as, if it may act for itself."""
        return self._known.get(client_id)

    def current(self, identity: Identity) -> Identity | None:
        """The same as the inventory has it now."""
        return self._known.get(identity.user.removeprefix(f"{MACHINES}:"))
