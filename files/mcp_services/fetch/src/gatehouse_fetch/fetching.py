"""Gets a page over HTTP, within bounds: of address, redirects, time, size and type, and of the site's robots.txt."""

import asyncio
import re
import ssl
import zlib
from dataclasses import dataclass

import httpcore
from protego import Protego

from gatehouse_fetch import VERSION, FetchError
from gatehouse_fetch.policy import Policy, Url, parse
from gatehouse_service.guard import AddressRefused, GuardedBackend, NotResolved, Permits, Resolve, resolve

AGENT = "gatehouse-fetch"
# One call, all its redirects and robots.txt included.
FETCH_SECONDS = 20.0
CONNECT_SECONDS = 5.0
REDIRECTS = 5
BYTES_LIMIT = 5 * 1024 * 1024
# More of a robots.txt is not read (RFC 9309 section 2.5).
ROBOTS_LIMIT = 500 * 1024
# Calls at once, each of which may hold a page in memory; others wait.
AT_ONCE = 16
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


class Fetcher:
    """Fetches pages."""

    def __init__(
        self,
        policy: Policy,
        resolver: Resolve = resolve,
        permits: Permits | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """See the class.

        Args:
            policy: What may be fetched.
            resolver: Gives the addresses of a host.
            permits: Judges each of them; the policy, unless told otherwise.
            trust: Whose certificates are trusted; those of the system, unless told otherwise.
        """
        self._policy = policy
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._pool = httpcore.AsyncConnectionPool(
            trust or ssl.create_default_context(),
            max_connections=2 * AT_ONCE,
            # The next request is a new decision.
            max_keepalive_connections=0,
            network_backend=GuardedBackend(resolver, permits or policy.permits),
        )

    async def fetch(self, text: str) -> Page:
        """The page at a URL, after all redirects.

        Raises:
            FetchError: there is none, or it may not be fetched.
        """
        url = parse(text)
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                async with self._slots:
                    page = await self._follow(url, BYTES_LIMIT, polite=True)
        except TimeoutError:
            raise FetchError(
                f"{url.host} did not give the page within {FETCH_SECONDS:.0f} seconds."
            ) from None
        if not 200 <= page.status < 300:
            raise FetchError(f"{page.url.host} answered with status {page.status}.")
        return page

    async def _follow(self, url: Url, limit: int, *, polite: bool) -> Page:
        for _ in range(REDIRECTS + 1):
            self._policy.check(url)
            if polite:
                await self._ask_robots(url)
            page = await self._get(url, limit, page=polite)
            if page.location is None:
                return page
            url = url.join(page.location)
        raise FetchError(f"{url.host} redirects more than {REDIRECTS} times.")

    async def _ask_robots(self, url: Url) -> None:
        """Ask the site whether it wants to be fetched (RFC 9309).

        Raises:
            FetchError: it does not, or its robots.txt cannot be had, which counts as that (section 2.3.1.4).
        """
        robots = await self._follow(url.sibling("/robots.txt"), ROBOTS_LIMIT, polite=False)
        if robots.status >= 500 or robots.status == 429:
            raise FetchError(
                f"{url.host} answered with status {robots.status} for its robots.txt, so nothing is fetched from it."
            )
        if 200 <= robots.status < 300 and not await asyncio.to_thread(_allows, robots.body, str(url)):
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


def _allows(robots: bytes, url: str) -> bool:
    return Protego.parse(robots.decode("utf-8-sig", "replace")).can_fetch(url, AGENT)


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
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if coding.endswith(b"gzip") else None
    body, received = bytearray(), 0
    async for chunk in response.aiter_stream():
        received += len(chunk)
        try:
            body += unpacker.decompress(chunk, limit + 1 - len(body)) if unpacker else chunk
        except zlib.error:
            raise FetchError(f"{url.host} gives something else than the gzip that it announces.") from None
        if max(received, len(body)) > limit:
            if cut:
                return bytes(body[:limit])
            raise FetchError(f"The page is longer than {limit // 1024 // 1024} MiB.")
        if unpacker and unpacker.eof:
            return bytes(body)
    if unpacker and received:
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
