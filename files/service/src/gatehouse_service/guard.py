"""Connections to addresses that strangers name, without reaching what only we can reach (SSRF).

A name is resolved here, every one of its addresses is judged, and what was judged is what is connected to: between the
check and the connection nothing is resolved again. For services whose environment has httpcore.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable

import httpcore

Resolve = Callable[[str, int], Awaitable[list[str]]]
# Whether a host's address may be connected to.
Permits = Callable[[str, str], bool]

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# Whoever may be reached besides the public internet, these are not: the host itself, its links, what only looks like
# one address and is another, and the endpoints at which clouds hand out a machine's credentials.
NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
        "::/8",  # unspecified, loopback, IPv4-compatible and -mapped, and NAT64 (RFC 6052, RFC 8215)
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fd00:ec2::254",  # Amazon EC2
        "fd20:ce::254",  # Google Cloud
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)
# Not public, though Python's ipaddress takes some of them for it, depending on its version (RFC 6890 and its registries).
SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
)
# A name may have many addresses; waiting for this many that do not answer is enough.
TRIES = 3


class AddressRefused(Exception):
    """A host has an address that may not be connected to; the message is the host."""


class NotResolved(httpcore.ConnectError):
    """A host has no address."""


def is_reachable(address: str) -> bool:
    """Whether an address may be connected to at all, when someone who may has allowed its network."""
    parsed = ipaddress.ip_address(address)
    return not any(parsed in network for network in NEVER)


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and stands for no other address."""
    parsed = ipaddress.ip_address(address)
    return (
        is_reachable(address)
        and parsed.is_global
        and not (parsed.is_private or parsed.is_reserved or parsed.is_multicast or parsed.is_link_local)
        and (parsed.version == 4 or parsed in GLOBAL_UNICAST)
        and not any(parsed in network for network in SPECIAL)
    )


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, the preferred one first (RFC 6724)."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to permitted addresses only. Every address of a name has to be one."""

    def __init__(self, resolver: Resolve, permits: Permits) -> None:
        """See the class.

        Args:
            resolver: Gives the addresses of a host.
            permits: Judges each of them.
        """
        self._resolve = resolver
        self._permits = permits
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, judge, and connect to what was judged.

        Raises:
            AddressRefused: one of the addresses is not permitted, or there is none.
            NotResolved: the host cannot be resolved.
            httpcore.ConnectError: it does not accept a connection.
            httpcore.ConnectTimeout: likewise, in time.
        """
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that DNS cannot have
            raise NotResolved(host) from error
        if not addresses or not all(self._permits(host, address) for address in addresses):
            raise AddressRefused(host)
        *others, last = addresses[:TRIES]
        for address in others:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(last, port, timeout, local_address, socket_options)
