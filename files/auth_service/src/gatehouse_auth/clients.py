"""Clients by their identifier: from inventory, by metadata document, or from registration."""

import re

from gatehouse_auth.documents import Documents, is_document_url
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.settings import Secrets, Settings
from gatehouse_auth.store import Store, digest

REGISTERED = re.compile(r"ghc_[A-Za-z0-9_-]{22}\Z")


class Clients:
    """Finds clients."""

    def __init__(
        self, settings: Settings, secrets: Secrets, store: Store, documents: Documents | None
    ) -> None:
        self._store = store
        self._documents = documents
        self._known = {
            client_id: Client(
                client_id,
                {
                    "client_name": known.client_name,
                    "redirect_uris": list(known.redirect_uris),
                    "token_endpoint_auth_method": known.token_endpoint_auth_method,
                    "grant_types": sorted(known.grant_types),
                },
                secret_digest=digest(secrets.clients[client_id]) if client_id in secrets.clients else "",
            )
            for client_id, known in settings.clients.items()
        }

    async def get(self, client_id: str | None) -> Client | None:
        """The client, or None where there is none.

        Raises:
            StoreUnavailable: it cannot be known.
            DocumentUnavailable: likewise.
        """
        if client_id is None:
            return None
        if client_id in self._known:
            return self._known[client_id]
        if self._documents is not None and is_document_url(client_id):
            return await self._documents.client(client_id)
        if not REGISTERED.match(client_id):
            return None
        record = await self._store.client(client_id)
        return None if record is None else Client.from_record(client_id, record)
