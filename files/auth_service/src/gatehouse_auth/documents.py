"""Client ID Metadata Documents: a client whose identifier is the https URL of its own description.

The URL comes from strangers, so fetching it is guarded (draft-ietf-oauth-client-id-metadata-document, its
security considerations): https on the default port only, no redirects, no address that is not public, the
address that was checked is the one that is connected to, and size and time are bounded.
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpcore
from authlib.oauth2.rfc6749 import OAuth2Error
from joserfc.jwk import Key

from gatehouse_auth.limits import Limiter, Rate
from gatehouse_auth.oauth.assertions import METHOD
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.oauth.keys import public_keys
from gatehouse_auth.oauth.messages import parsed_json
from gatehouse_auth.oauth.registration import acceptable_metadata
from gatehouse_auth.redirects import is_plain_host
from gatehouse_auth.store import Store
from gatehouse_service.guard import AddressRefused, GuardedBackend, Resolve, is_public, resolve

URL_LIMIT = 512
BYTES_LIMIT = 16 * 1024
FETCH_SECONDS = 5.0
FRESH_SECONDS = (300, 86400)
MAX_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})")
# A signature by a key that is not known lets the keys be read again after this long.
KEYS_SECONDS = 30
NEVER_FRESH = re.compile(r"\bno-(?:store|cache)\b")


class DocumentUnavailable(Exception):  # noqa: N818 - it is an answer: try again later
    """The document cannot be had right now."""


class DocumentRefused(Exception):  # noqa: N818 - it is an answer: there is no such client
    """There is no such document, or it is not one of a client that can be accepted."""


def is_document_url(client_id: str) -> bool:
    """Whether a client identifier is the URL of a document: https, with a path, and in plain form."""
    if len(client_id) > URL_LIMIT or not re.match(r"https://[\x21-\x7e]+\Z", client_id):
        return False
    try:
        parts = urlsplit(client_id)
        port = parts.port
    except ValueError:
        return False
    return (
        port is None
        and parts.netloc == parts.hostname
        and is_plain_host(parts.netloc)
        and len(parts.path) > 1
        and "#" not in client_id
        and "\\" not in client_id
        and not {".", ".."} & set(parts.path.lower().replace("%2e", ".").split("/"))
    )


class Fetcher:
    """Fetches one document, within bounds."""

    def __init__(
        self,
        resolver: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            trust or ssl.create_default_context(),
            max_connections=8,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(resolver, lambda _host, address: allowed(address)),
        )

    async def fetch(self, url: str) -> tuple[bytes, str]:
        """The document's bytes and its `Cache-Control`.

        Raises:
            DocumentRefused: not found, a redirect, too large, or at an address that is not public.
            DocumentUnavailable: no answer in time, or a server's fault.
        """
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                self._pool.stream("GET", url, headers=[("Accept", "application/json")]) as response,
            ):
                if response.status >= 500 or response.status == 429:
                    raise DocumentUnavailable(str(response.status))
                if response.status != 200:
                    raise DocumentRefused(str(response.status))
                body = b""
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) > BYTES_LIMIT:
                        raise DocumentRefused("too large")
                headers = {name.lower(): value for name, value in response.headers}
                return body, headers.get(b"cache-control", b"").decode("latin-1").lower()
        except AddressRefused as error:
            raise DocumentRefused("address") from error
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise DocumentUnavailable(type(error).__name__) from error
        except (TimeoutError, OSError) as error:
            raise DocumentUnavailable(type(error).__name__) from error

    async def close(self) -> None:
        """Close what is open."""
        await self._pool.aclose()


def lifetime(cache_control: str) -> int:
    """For how many seconds a document counts as fresh: as its server says, within bounds."""
    least, most = FRESH_SECONDS
    match = MAX_AGE.search(cache_control)
    if NEVER_FRESH.search(cache_control) or match is None:
        return least
    return max(least, min(most, int(match[1])))


def parse(url: str, body: bytes, custom: frozenset[str]) -> dict[str, Any]:
    """The client's metadata.

    Raises:
        DocumentRefused: not a document of a client that can be accepted.
    """
    try:
        document: Any = parsed_json(body)
        if document["client_id"] != url or not isinstance(document["client_name"], str):
            raise DocumentRefused("client_id or client_name")
        method = document.get("token_endpoint_auth_method", "none")
        kept = acceptable_metadata(document, custom, fetches=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OAuth2Error):
        raise DocumentRefused("content") from None
    # No secret can be shared with the whole world (section 4.1 of the draft): a key, or nothing.
    by_key = method == METHOD
    if (method != "none" and not by_key) or "client_secret" in document:
        raise DocumentRefused("token_endpoint_auth_method")
    names = ["client_name", "redirect_uris", "grant_types", "response_types"]
    names += [name for name in ("jwks", "jwks_uri") if by_key and name in kept]
    return {**{name: kept[name] for name in names}, "token_endpoint_auth_method": method}


class Documents:
    """Clients by document, with a copy that the nodes share: fresh as long as its server says, and the last
    good one while the server cannot be reached."""

    def __init__(self, store: Store, custom: frozenset[str], fetcher: Fetcher) -> None:
        self._store = store
        self._custom = custom
        self._fetcher = fetcher
        self._hosts = Limiter(Rate(burst=20, per_second=0.5))
        self._all = Limiter(Rate(burst=100, per_second=5))
        self._under_way: dict[str, asyncio.Lock] = {}

    async def client(self, url: str) -> Client | None:
        """The client, or None where its document says that there is none.

        Raises:
            DocumentUnavailable: it cannot be known right now.
            StoreUnavailable: likewise.
        """
        lock = self._under_way.setdefault(url, asyncio.Lock())
        try:
            async with lock:
                return await self._client(url)
        finally:
            if not lock.locked():
                self._under_way.pop(url, None)

    async def _client(self, url: str) -> Client | None:
        copy = await self._store.document(url)
        if copy is not None and time.time() < copy["fresh_until"]:
            return Client(url, copy["metadata"])
        try:
            if self._hosts.take(str(urlsplit(url).hostname)) or self._all.take("all"):
                raise DocumentUnavailable("limit")
            body, cache_control = await self._fetcher.fetch(url)
            metadata = parse(url, body, self._custom)
        except DocumentUnavailable:
            if copy is None:
                raise
            return Client(url, copy["metadata"])
        except DocumentRefused:
            await self._store.forget_document(url)
            return None
        await self._store.save_document(
            url, {"metadata": metadata, "fresh_until": time.time() + lifetime(cache_control)}
        )
        return Client(url, metadata)

    async def keys(self, url: str, *, again: bool = False) -> list[Key]:
        """A client's keys (RFC 7517 section 5): read again when they may have changed, though not at once.

        Raises:
            DocumentUnavailable: they cannot be known right now.
            StoreUnavailable: likewise.
        """
        # A name of its own: the same URL may be a client's.
        name, now = f"keys {url}", time.time()
        copy = await self._store.document(name)
        if copy is not None and now < copy["again_from" if again else "fresh_until"]:
            return public_keys(copy["jwks"])
        try:
            if self._hosts.take(str(urlsplit(url).hostname)) or self._all.take("all"):
                raise DocumentUnavailable("limit")
            body, cache_control = await self._fetcher.fetch(url)
            jwks = json.loads(body)
            keys = public_keys(jwks)
        except DocumentUnavailable:
            if copy is None:
                raise
            return public_keys(copy["jwks"])
        except (DocumentRefused, ValueError, RecursionError):
            return []
        await self._store.save_document(
            name,
            {"jwks": jwks, "fresh_until": now + lifetime(cache_control), "again_from": now + KEYS_SECONDS},
        )
        return keys

    async def close(self) -> None:
        """Close what is open."""
        await self._fetcher.close()
