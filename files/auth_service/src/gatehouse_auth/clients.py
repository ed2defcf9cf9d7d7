"""Clients by their identifier: from inventory, by metadata document, or from registration."""

import re

from authlib.oauth2.rfc6749 import InvalidClientError
from joserfc.jwk import Key

from gatehouse_auth.documents import Documents, is_document_url
from gatehouse_auth.oauth.assertions import Assertion, UnknownKeyError, prove
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.oauth.keys import public_keys
from gatehouse_auth.oauth.messages import Request
from gatehouse_auth.settings import Secrets, Settings
from gatehouse_auth.store import Store, digest

REGISTERED = re.compile(r"ghc_[A-Za-z0-9_-]{22}\Z")


def is_registered(client_id: str) -> bool:
    """Whether a client of this name can have registered itself."""
    return REGISTERED.match(client_id) is not None


class Clients:
    """Finds clients."""

    def __init__(
        self, settings: Settings, secrets: Secrets, store: Store, documents: Documents | None
    ) -> None:
        self._issuer = settings.issuer
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
                    **({"jwks": known.jwks} if known.jwks is not None else {}),
                },
                secret_digest=digest(secrets.clients[client_id]) if client_id in secrets.clients else "",
            )
            for client_id, known in settings.clients.items()
        }

    async def prove(self, client: Client | None, asked: Request) -> None:
        """Judge the assertion that a request brings, and let it count once.

        Raises:
            InvalidClientError: it is not one of the client's, or has been used.
            StoreUnavailable: it cannot be known.
            DocumentUnavailable: likewise.
        """
        if client is None:
            raise InvalidClientError(description="The client does not exist on this server.")
        try:
            assertion = Assertion(self._issuer, await self._keys(client))
            prove(assertion, client, asked)
        except UnknownKeyError:
            assertion = Assertion(self._issuer, await self._keys(client, again=True))
            prove(assertion, client, asked)
        name, seconds = assertion.used
        if not await self._store.first_use(client.client_id, name, seconds):
            raise InvalidClientError(description="The assertion has been used.")
        asked.proven = True

    async def _keys(self, client: Client, *, again: bool = False) -> list[Key]:
        """The client's keys, from its metadata or from where it publishes them."""
        if "jwks" in client.metadata:
            return public_keys(client.metadata["jwks"])
        url = client.metadata.get("jwks_uri")
        if self._documents is None or not isinstance(url, str) or not is_document_url(url):
            return []
        return await self._documents.keys(client.client_id, url, again=again)

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
        if not is_registered(client_id):
            return None
        record = await self._store.client(client_id)
        return None if record is None else Client.from_record(client_id, record)
