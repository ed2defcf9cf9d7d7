"""Gets a page over HTTP, within bounds: of address, redirects, time, size and type, and of the site's robots.txt."""

import asyncio
import re
import socket
import ssl
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import httpcore
from anyio import BrokenWorkerProcess

from gatehouse_fetch import VERSION, FetchError
from gatehouse_fetch.policy import Policy, Url, parse
from gatehouse_fetch.robots import AGENT, allows
from gatehouse_fetch.workers import Workers
from gatehouse_service.guard import AddressRefused, GuardedBackend, NotResolved, Permits, Resolve

# One call, all its redirects and robots.txt included.
FETCH_SECONDS = 20.0
CONNECT_SECONDS = 5.0
RESOLVE_SECONDS = 5.0
# A thread stays for about half a minute with a name that no server answers for, long after its call has given up. So
# many there are when all calls at once do nothing else.
RESOLVERS = ThreadPoolExecutor(128, "resolver")
REDIRECTS = 5
BYTES_LIMIT = 5 * 1024 * 1024
# More of a robots.txt is not read (RFC 9309 section 2.5).
ROBOTS_LIMIT = 500 * 1024
ROBOTS_SECONDS = 10.0
HEADERS = [
    ("User-Agent", f"{AGENT}/{VERSION}"),
    ("Accept", "text/markdown, text/html;q=0.9, application/xhtml+xml;q=0.9, text/*;q=0.8, */*;q=0.1"),
    ("Accept-Encoding", "gzip"),
]
REDIRECTING = (301, 302, 303, 307, 308)
HTML = ("text/html", "application/xhtml+xml")
TEXT = re.compile(
    r"text/[\w.+-]+|application/(?:json|xml|yaml|toml|javascript|ecmascript|x-ndjson|[\w.-]+\+(?:json|xml|yaml))"
)
CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([\w.:-]{1,40})""", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """What a server answered.

    Attributes:
        url: Where it was in the end.
        status: The HTTP status.
        location: Where a redirect leads; None where it is none.
        media_type: As the server names it, in lower case; `""` where it does not.
        charset: As the server names it.
        body: The content; `b""` for a redirect or an error.
    """

    url: Url
    status: int
    location: str | None
    media_type: str
    charset: str | None
    body: bytes


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, the preferred one first (RFC 6724).

    Raises:
        OSError: it has none, or they cannot be had in time.
    """
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    async with asyncio.timeout(RESOLVE_SECONDS):
        found = await asyncio.get_running_loop().run_in_executor(RESOLVERS, ask)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Fetches pages."""

    def __init__(
        self,
        policy: Policy,
        workers: Workers,
        resolver: Resolve = resolve,
        permits: Permits | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """See the class.

        Args:
            policy: What may be fetched.
            workers: Read robots.txt.
            resolver: Gives the addresses of a host.
            permits: Judges each of them; the policy, unless told otherwise.
            trust: Whose certificates are trusted; those of the system, unless told otherwise.
        """
        self._policy = policy
        self._workers = workers
        self._pool = httpcore.AsyncConnectionPool(
            trust or ssl.create_default_context(),
            # As many as there are calls.
            max_connections=None,
            # The next request is a new decision.
            max_keepalive_connections=0,
            network_backend=GuardedBackend(resolver, permits or policy.permits),
        )

    async def fetch(self, text: str, user: str) -> Page:
        """The page at a URL, after all redirects.

        Args:
            text: The URL.
            user: Who wants it.

        Raises:
            FetchError: there is none, or it may not be fetched.
        """
        url = parse(text)
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                page = await self._follow(url, BYTES_LIMIT, user)
        except TimeoutError:
            raise FetchError(
                f"{url.host} did not give the page within {FETCH_SECONDS:.0f} seconds."
            ) from None
        if not 200 <= page.status < 300:
            raise FetchError(f"{page.url.host} answered with status {page.status}.")
        return page

    async def _follow(self, url: Url, limit: int, user: str | None) -> Page:
        """What is at a URL; `user` is None for a robots.txt, which is asked for without asking another."""
        for _ in range(REDIRECTS + 1):
            self._policy.check(url)
            if user is not None:
                await self._ask_robots(url, user)
            page = await self._get(url, limit, page=user is not None)
            if page.location is None:
                return page
            url = url.join(page.location)
        raise FetchError(f"{url.host} redirects more than {REDIRECTS} times.")

    async def _ask_robots(self, url: Url, user: str) -> None:
        """Ask the site whether it wants to be fetched (RFC 9309).

        Raises:
            FetchError: it does not, or its robots.txt cannot be had or read, which counts as that (section 2.3.1.4).
        """
        robots = await self._follow(url.sibling("/robots.txt"), ROBOTS_LIMIT, None)
        if robots.status >= 500 or robots.status == 429:
            raise FetchError(
                f"{url.host} answered with status {robots.status} for its robots.txt, so nothing is fetched from it."
            )
        if not 200 <= robots.status < 300:
            return
        try:
            allowed = await self._workers.run(user, ROBOTS_SECONDS, allows, robots.body, str(url))
        except (TimeoutError, BrokenWorkerProcess):
            raise FetchError(
                f"The robots.txt of {url.host} is too much to read, so nothing is fetched from it."
            ) from None
        if not allowed:
            raise FetchError(f"The robots.txt of {url.host} asks not to fetch this page.")

    async def _get(self, url: Url, limit: int, *, page: bool) -> Page:
        """One request. What is no `page` may have any type, and is cut where it is too long."""
        where = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        timeouts = {"connect": CONNECT_SECONDS}
        try:
            async with self._pool.stream(
                "GET", where, headers=[("Host", url.authority), *HEADERS], extensions={"timeout": timeouts}
            ) as response:
                headers = {name.lower(): value for name, value in reversed(response.headers)}
                content_type = headers.get(b"content-type", b"").decode("latin-1")
                media_type = content_type.partition(";")[0].strip().lower()
                location, body = None, b""
                if response.status in REDIRECTING and b"location" in headers:
                    location = headers[b"location"].decode("utf-8", "replace")
                elif 200 <= response.status < 300:
                    if page and media_type and media_type not in HTML and not TEXT.fullmatch(media_type):
                        raise FetchError(
                            f"{url.host} gives a file of the type {media_type[:80]!r}, and only text is fetched."
                        )
                    body = await _body(url, response, headers, limit, cut=not page)
                charset = CHARSET.search(content_type)
                return Page(url, response.status, location, media_type, charset and charset[1], body)
        except AddressRefused:
            raise FetchError(
                f"{url.host} may not be fetched from: its address is not public, or not among those that are allowed."
            ) from None
        except NotResolved:
            raise FetchError(f"{url.host} cannot be found.") from None
        except httpcore.ConnectTimeout:
            raise FetchError(f"{url.host} does not answer.") from None
        except httpcore.ConnectError as error:
            raise FetchError(_connect_fault(url, error)) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
            raise FetchError(f"The connection to {url.host} broke, or its answer is not HTTP.") from None


class _Gunzip:
    """Unpacks gzip. One member may follow another (RFC 1952 section 2.2).

    Attributes:
        left: Whether something else has followed, which is none of the content.
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.left = False

    @property
    def whole(self) -> bool:
        """Whether no member is open."""
        return self._member.eof

    def unpack(self, packed: bytes, limit: int) -> bytes:
        """What comes of the next piece, of which there is no more once there are `limit` bytes.

        Raises:
            zlib.error: it is no gzip.
        """
        unpacked = bytearray()
        while packed and len(unpacked) < limit:
            if self._member.eof:
                if not packed.startswith(b"\x1f"):
                    self.left = True
                    break
                self._member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            unpacked += self._member.decompress(packed, limit - len(unpacked))
            packed = self._member.unused_data
        return bytes(unpacked)


async def _body(
    url: Url, response: httpcore.Response, headers: dict[bytes, bytes], limit: int, *, cut: bool
) -> bytes:
    """The content, unpacked; never more than `limit` bytes of it are in memory.

    Raises:
        FetchError: it is longer (unless it may be `cut`), or packed in a way that was not asked for.
    """
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"identity", b"", b"gzip", b"x-gzip"):
        raise FetchError(f"{url.host} packs its answer in a way that was not asked for.")
    gunzip = _Gunzip() if coding.endswith(b"gzip") else None
    body, received = bytearray(), 0
    async for chunk in response.aiter_stream():
        received += len(chunk)
        try:
            body += gunzip.unpack(chunk, limit + 1 - len(body)) if gunzip else chunk
        except zlib.error:
            raise FetchError(f"{url.host} gives something else than the gzip that it announces.") from None
        if max(received, len(body)) > limit:
            if cut:
                return bytes(body[:limit])
            raise FetchError(f"The page is longer than {limit // 1024 // 1024} MiB.")
        if gunzip and gunzip.left:
            return bytes(body)
    if gunzip and received and not gunzip.whole:
        raise FetchError(f"The answer of {url.host} ends too early.")
    return bytes(body)


def _connect_fault(url: Url, error: httpcore.ConnectError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"The certificate of {url.host} is not valid: {cause.verify_message}."
        if isinstance(cause, ssl.SSLError):
            return f"{url.host} does not speak TLS as it should."
        cause = cause.__cause__ or cause.__context__
    return f"{url.host} does not accept connections."
