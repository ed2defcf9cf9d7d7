"""Client ID Metadata Documents: a client whose identifier is the https URL of its own description.

The URL comes from strangers, so fetching it is guarded (draft-ietf-oauth-client-id-metadata-document, its
security considerations): https on the default port only, no redirects, no address that is not public, the
address that was checked is the one that is connected to, and size and time are bounded.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from gatehouse_auth.oauth.registration import acceptable_keys, acceptable_metadata, bounded
from gatehouse_auth.redirects import is_plain_host
from gatehouse_auth.store import Store, keys_name
from gatehouse_service.guard import AddressRefused, GuardedBackend, Resolve, is_public, resolve

URL_LIMIT = 512
BYTES_LIMIT = 16 * 1024
FETCH_SECONDS = 5.0
# How long somebody waits for news of what there is a copy of.
PATIENCE_SECONDS = 1.0
FRESH_SECONDS = (300, 86400)
# Nothing is asked for again sooner: neither what could not be had, nor keys for a signature by another one.
AGAIN_SECONDS = 30
# As many as the limits of `Documents` let be under way at once: nobody waits behind a stranger's slow site.
CONNECTIONS = 150
MAX_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})")
NEVER_FRESH = re.compile(r"\bno-(?:store|cache)\b")
JSON = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json\Z")

Record = dict[str, Any]


class DocumentUnavailable(Exception):  # noqa: N818 - it is an answer: try again later
    """What the document says cannot be known right now."""


class DocumentRefused(Exception):  # noqa: N818 - it is an answer: there is no such client
    """There is no such document, or it is not one of a client that can be accepted."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a site answered."""

    body: bytes
    media_type: str = ""
    cache_control: str = ""


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
            max_connections=CONNECTIONS,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(resolver, lambda _host, address: allowed(address)),
        )

    async def fetch(self, url: str) -> Published:
        """What is at a URL. Only a site that says so has nothing there: a challenge to prove that one is no
        robot, a redirect, or a name server that is wrong say nothing of the document.

        Raises:
            DocumentRefused: it is not there, or not any more.
            DocumentUnavailable: any other answer than the document, or none in time.
        """
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                self._pool.stream("GET", url, headers=[("Accept", "application/json")]) as response,
            ):
                if response.status in (404, 410):
                    raise DocumentRefused(str(response.status))
                if response.status != 200:
                    raise DocumentUnavailable(str(response.status))
                body = b""
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) > BYTES_LIMIT:
                        raise DocumentUnavailable("too large")
                headers = {name.lower(): value.decode("latin-1").lower() for name, value in response.headers}
                return Published(
                    body,
                    headers.get(b"content-type", "").partition(";")[0].strip(),
                    headers.get(b"cache-control", ""),
                )
        except AddressRefused as error:
            raise DocumentUnavailable("address") from error
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


def _json(body: bytes) -> Any:
    try:
        return parsed_json(body)
    except OAuth2Error:
        raise DocumentUnavailable("no JSON") from None


def parse(url: str, body: bytes, custom: frozenset[str]) -> dict[str, Any]:
    """The client's metadata.

    Raises:
        DocumentRefused: not a document of a client that can be accepted.
        DocumentUnavailable: no document at all.
    """
    document = _json(body)
    try:
        if document["client_id"] != url or not isinstance(document["client_name"], str):
            raise DocumentRefused("client_id or client_name")
        method = document.get("token_endpoint_auth_method", "none")
        kept = acceptable_metadata(document, custom, fetches=True)
        # No secret can be shared with the whole world (section 4.1 of the draft): a key, or nothing.
        by_key = method == METHOD
        if (method != "none" and not by_key) or "client_secret" in document:
            raise DocumentRefused("token_endpoint_auth_method")
        names = ["client_name", "redirect_uris", "grant_types", "response_types"]
        names += [name for name in ("jwks", "jwks_uri") if by_key and name in kept]
        return bounded({**{name: kept[name] for name in names}, "token_endpoint_auth_method": method})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OAuth2Error):
        raise DocumentRefused("content") from None


class Documents:
    """Clients by document, with a copy that the nodes share: fresh as long as its server says, and the last
    good one until its server says something else."""

    def __init__(self, store: Store, custom: frozenset[str], fetcher: Fetcher) -> None:
        self._store = store
        self._custom = custom
        self._fetcher = fetcher
        # Each twice: what people use does not wait for what strangers name.
        self._hosts = Limiter(Rate(burst=20, per_second=0.5))
        self._all = Limiter(Rate(burst=50, per_second=5))
        self._under_way: dict[str, asyncio.Task[Record | None]] = {}

    async def client(self, url: str) -> Client | None:
        """The client, or None where its document says that there is none.

        Raises:
            DocumentUnavailable: it cannot be known right now.
            StoreUnavailable: likewise.
        """
        copy = await self._store.document(url)
        if copy is None or copy["fresh_until"] <= time.time():
            copy = await self._news(url, url, copy, self._described, PATIENCE_SECONDS)
        return None if copy is None else Client(url, copy["metadata"])

    async def keys(self, client_id: str, url: str, *, again: bool = False) -> list[Key]:
        """A client's keys (RFC 7517 section 5): read again when they may have changed, though not at once.

        Raises:
            DocumentUnavailable: they cannot be known right now.
            StoreUnavailable: likewise.
        """
        name = keys_name(client_id)
        copy = await self._store.document(name)
        if copy is not None and copy["url"] != url:
            copy = None
        if copy is None or copy["again_from" if again else "fresh_until"] <= time.time():
            # With the copy alone, whoever has a new key would be told that it is wrong.
            patience = None if again else PATIENCE_SECONDS
            copy = await self._news(name, url, copy, _key_set, patience)
        return [] if copy is None else public_keys(copy["jwks"])

    async def _news(
        self,
        name: str,
        url: str,
        copy: Record | None,
        judge: Callable[[str, Published], Record],
        patience: float | None,
    ) -> Record | None:
        """What is published now: one question for all who want to know. Where that takes long, the copy."""
        asking = self._under_way.get(name)
        if asking is None:
            asking = asyncio.create_task(self._ask(name, url, copy, judge))
            self._under_way[name] = asking
            asking.add_done_callback(partial(self._asked, name))
        await asyncio.wait([asking], timeout=patience if copy is not None else None)
        return asking.result() if asking.done() else copy

    def _asked(self, name: str, asking: "asyncio.Task[Record | None]") -> None:
        del self._under_way[name]
        if not asking.cancelled():
            asking.exception()  # told to whoever still waits, if anyone does

    async def _ask(
        self, name: str, url: str, copy: Record | None, judge: Callable[[str, Published], Record]
    ) -> Record | None:
        try:
            lane = "used" if copy is not None and await self._store.document_used(name) else "new"
            if self._hosts.take(f"{lane} {urlsplit(url).hostname}") or self._all.take(lane):
                raise DocumentUnavailable("limit")
            published = await self._fetcher.fetch(url)
            record = judge(url, published)
        except DocumentUnavailable:
            if copy is None:
                raise
            again = time.time() + AGAIN_SECONDS
            copy = {**copy, "fresh_until": max(copy["fresh_until"], again), "again_from": again}
            await self._store.replace_document(name, copy)
            return copy
        except DocumentRefused:
            await self._store.forget_document(name)
            return None
        now = time.time()
        record |= {"fresh_until": now + lifetime(published.cache_control), "again_from": now + AGAIN_SECONDS}
        await self._store.save_document(name, record)
        return record

    def _described(self, url: str, published: Published) -> Record:
        # The draft wants it said: not everybody who may leave a text on a site speaks for it.
        if not JSON.match(published.media_type):
            raise DocumentUnavailable("media type")
        return {"metadata": parse(url, published.body, self._custom)}

    async def close(self) -> None:
        """Close what is open."""
        asking = list(self._under_way.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._fetcher.close()


def _key_set(url: str, published: Published) -> Record:
    try:
        return {"url": url, "jwks": bounded(acceptable_keys(_json(published.body)))}
    except OAuth2Error:
        raise DocumentRefused("keys") from None
