"""The guard that this service and the auth service share: which addresses are public, and what is connected to."""

import ipaddress
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse_service.guard import (
    AddressRefused,
    GuardedBackend,
    NotResolved,
    is_public,
    is_reachable,
    resolve,
)

PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2a00:1450:4001:829::200e"]
# Operators may allow these networks.
INTERNAL = [
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.9", "192.0.2.1", "192.88.99.1", "fd00::1", "2001:db8::1", "2001:20::1", "2001:2::1", "3fff::1",
    "5f00::1", "100::1",
]  # fmt: skip
UNREACHABLE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.170.2", "168.63.129.16",
    "100.100.100.200", "192.0.0.192", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:93.184.215.14", "::127.0.0.1", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::93.184.215.14", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:5db8:d70e::1",
    "2001:0:1::1", "2001:0:53aa:64c:0:0:80ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)
    assert is_reachable(address)


@pytest.mark.parametrize("address", INTERNAL)
def test_addresses_that_only_an_operator_can_allow(address: str) -> None:
    assert not is_public(address)
    assert is_reachable(address)


@pytest.mark.parametrize("address", UNREACHABLE)
def test_addresses_that_nobody_can_allow(address: str) -> None:
    assert not is_public(address)
    assert not is_reachable(address)


def carriers(v4: ipaddress.IPv4Address) -> list[str]:
    """The IPv6 addresses that stand for an IPv4 one."""
    number = int(v4)
    return [
        str(ipaddress.IPv6Address(bits))
        for bits in (
            number,
            0xFFFF << 32 | number,
            0xFFFF << 48 | number,
            0x64FF9B << 96 | number,
            (0x64FF9B0001 << 80 | 0xABCD << 32) << 0 | number,
            0x2002 << 112 | number << 80 | 1,
            0x20010000 << 96 | number << 64 | 0xFFFFFFFF,
            0x20010000 << 96 | 0x5DB8D70E << 64 | (number ^ 0xFFFFFFFF),
        )
    ]


# covers: cimd-ssrf
@given(st.ip_addresses(v=4))
def test_no_ipv6_address_that_stands_for_an_ipv4_one_is_reached(v4: ipaddress.IPv4Address) -> None:
    assert not any(is_reachable(address) for address in carriers(v4))


@given(st.ip_addresses())
def test_public_is_what_python_takes_for_public_and_less(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not any((address.is_private, address.is_loopback, address.is_link_local))
        assert is_reachable(str(address))


def answers(*found: str) -> Callable[[str, int], Coroutine[Any, Any, list[str]]]:
    async def resolver(host: str, port: int) -> list[str]:
        return list(found)

    return resolver


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["::1"], []])
async def test_every_address_of_a_name_has_to_be_permitted(found: list[str]) -> None:
    backend = GuardedBackend(answers(*found), lambda _host, address: is_public(address))
    with pytest.raises(AddressRefused):
        await backend.connect_tcp("name.test", 80)


# covers: cimd-ssrf
async def test_what_was_judged_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["93.184.215.14"] if len(asked) == 1 else ["127.0.0.1"]

    connected: list[str] = []

    async def connect(backend: Any, host: str, *rest: Any) -> None:
        connected.append(host)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    backend = GuardedBackend(rebinding, lambda _host, address: is_public(address))
    await backend.connect_tcp("rebinding.test", 80)
    assert (asked, connected) == (["rebinding.test"], ["93.184.215.14"])
    with pytest.raises(AddressRefused):
        await backend.connect_tcp("rebinding.test", 80)
    assert connected == ["93.184.215.14"]


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        backend = GuardedBackend(answers("127.0.0.2", "127.0.0.1"), lambda _host, _address: True)
        stream = await backend.connect_tcp("name.test", port)
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
        await stream.aclose()
    with pytest.raises(httpcore.ConnectError):
        await backend.connect_tcp("name.test", port)


async def test_a_name_that_dns_cannot_have() -> None:
    backend = GuardedBackend(resolve, lambda _host, _address: True)
    with pytest.raises(NotResolved):
        await backend.connect_tcp("x" * 300, 80)


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost"])
async def test_a_spelling_that_the_resolver_takes_for_an_address_is_judged_as_that(spelling: str) -> None:
    backend = GuardedBackend(resolve, lambda _host, address: is_public(address))
    with pytest.raises(AddressRefused):
        await backend.connect_tcp(spelling, 80)
