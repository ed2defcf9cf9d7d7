"""What may be fetched: URLs in one plain form, and the hosts, addresses and ports that are allowed."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import idna

from gatehouse_fetch import FetchError
from gatehouse_service.guard import NEVER, is_public, is_reachable

URL_LIMIT = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}
LABEL = "(?!-)[a-z0-9_-]{1,63}"
NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*\Z")
# What makes resolvers take a name for an IPv4 address, in one of its many spellings (WHATWG URL, «ends in a number»).
NUMBER = re.compile(r"(?:\d+|0x[0-9a-f]*)\Z")
# Without a zone, which would choose one of the host's links.
BRACKETED = re.compile(r"\[([0-9a-fA-F:.]+)\](?::\d*)?\Z")
UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")
KEPT = "/%:@!$&'()*+,;=~-._"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Url:
    """An http or https URL whose parts can mean one thing only.

    Attributes:
        scheme: `http` or `https`.
        host: A DNS name in lower case, or an address in its canonical form (IPv6 without brackets).
        port: The port.
        target: Path and query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and, where it is not the usual one, port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """The URL in plain form."""
        return f"{self.scheme}://{self.authority}{self.target}"

    def sibling(self, target: str) -> "Url":
        """Another path of the same origin."""
        return Url(self.scheme, self.host, self.port, target)

    def join(self, reference: str) -> "Url":
        """Where a redirect leads.

        Raises:
            FetchError: to nothing that can be fetched.
        """
        reference = reference.strip().replace(" ", "%20")
        if UNPRINTABLE.search(reference):
            raise FetchError(f"{self.host} redirects to something that is not a URL.")
        try:
            return parse(urljoin(str(self), reference))
        except ValueError:
            raise FetchError(f"{self.host} redirects to something that is not a URL.") from None


def parse(text: str) -> Url:
    """A URL as a model or a redirect names it.

    Raises:
        FetchError: it is not one that can be fetched; the message says why.
    """
    text = text.strip().replace(" ", "%20")
    if len(text) > URL_LIMIT:
        raise FetchError(f"The URL is longer than {URL_LIMIT} characters.")
    if UNPRINTABLE.search(text):
        raise FetchError("The URL has a control character or a backslash; percent-encode it.")
    try:
        parts = urlsplit(text)
        port = parts.port
        target = quote(parts.path or "/", safe=KEPT)
        if parts.query:
            target += f"?{quote(parts.query, safe=KEPT + '?')}"
    except ValueError:
        raise FetchError("This is not a URL; write one such as https://example.com/page.") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise FetchError("Only http and https URLs can be fetched.")
    if "@" in parts.netloc:
        raise FetchError("A URL with a user name or password in it is not fetched.")
    host = _address(parts.netloc) if "[" in parts.netloc else _name(parts.hostname or "")
    return Url(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port, target)


def _address(authority: str) -> str:
    bracketed = BRACKETED.match(authority)
    try:
        return str(ipaddress.IPv6Address(bracketed[1] if bracketed else ""))
    except ValueError:
        raise FetchError("The URL's host is not an IPv6 address.") from None


def _name(host: str) -> str:
    """A name in lower case and ASCII, or an IPv4 address; other spellings of one are refused rather than guessed."""
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except UnicodeError:
            raise FetchError("The URL's host is not a valid name.") from None
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not NAME.match(host):
        raise FetchError("The URL's host is not a valid name.")
    if NUMBER.match(host.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise FetchError("An IPv4 address is fetched as four decimal numbers only.") from None
    return host


class Policy:
    """What the operator lets this service reach."""

    def __init__(self, allow: str, ports: str) -> None:
        """See the class.

        Args:
            allow: Separated by commas: `public` for every public address, names (`docs.example.com`, or `*.example.com`
                for all below it) for these hosts at public addresses, networks (`10.20.0.0/16`) that are not public.
            ports: Ports, separated by commas.

        Raises:
            ValueError: not of this form; the message says what to write.
        """
        entries = set(_entries(allow))
        self.networks: frozenset[Network] = frozenset(e for e in entries if not isinstance(e, str))
        names = {entry for entry in entries if isinstance(entry, str)}
        self.public = "public" in names
        self.names = frozenset(names - {"public"})
        self.ports = frozenset(_ports(ports))

    def permits(self, host: str, address: str) -> bool:
        """Whether a host may be connected to at one of its addresses."""
        if not is_reachable(address):
            return False
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self.networks) or (
            is_public(address) and (self.public or self._names(host))
        )

    def check(self, url: Url) -> None:
        """What can be said before anything is resolved.

        Raises:
            FetchError: the host or its port is not allowed.
        """
        if url.port not in self.ports:
            raise FetchError(
                f"Port {url.port} is not fetched from; allowed are {', '.join(map(str, sorted(self.ports)))}."
            )
        if not (self.public or self.networks or self._names(url.host)):
            raise FetchError(f"{url.host} is not among the hosts that this service may fetch from.")

    def _names(self, host: str) -> bool:
        return host in self.names or any(
            name.startswith("*.") and host.endswith(name[1:]) for name in self.names
        )


def _entries(allow: str) -> Iterator[str | Network]:
    for entry in (part.strip().lower() for part in allow.split(",")):
        if entry == "public" or (
            NAME.match(entry.removeprefix("*.")) and not NUMBER.match(entry.rpartition(".")[2])
        ):
            yield entry
            continue
        try:
            network = ipaddress.ip_network(entry)
        except ValueError:
            raise ValueError(
                "must be public, names such as docs.example.com or *.example.com, and networks such as 10.20.0.0/16,"
                " with commas between"
            ) from None
        if any(network.version == never.version and network.subnet_of(never) for never in NEVER):  # type: ignore[arg-type]
            raise ValueError(
                "must not name loopback, link-local, multicast, translated or metadata addresses, which are never fetched"
            )
        yield network


def _ports(ports: str) -> Iterator[int]:
    for port in (part.strip() for part in ports.split(",")):
        if not re.fullmatch(r"[1-9]\d{0,4}", port) or int(port) > 65535:
            raise ValueError("must be ports such as 80,443")
        yield int(port)
