"""Fetching from real sites on loopback: what is followed, what is refused, and what ends."""

import asyncio
import gzip
import socket
import ssl
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpcore
import pytest
from sites import NAME, USER, Site, fetcher, loopback_only, to_loopback, write_certificate

from gatehouse_fetch import FetchError, fetching
from gatehouse_fetch.fetching import BYTES_LIMIT, REDIRECTS, Fetcher, Page
from gatehouse_fetch.policy import Policy
from gatehouse_fetch.workers import Workers


async def refusal(url: str, *sites: Site, trust: ssl.SSLContext | None = None) -> str:
    """The sentence with which a URL is refused."""
    with pytest.raises(FetchError) as refused:
        await fetcher(*sites, trust=trust).fetch(url, USER)
    return str(refused.value)


async def test_a_page_is_fetched(site: Site) -> None:
    page = await fetcher(site).fetch(site.html("/page", "<p>hällo</p>") + "?q=1#part", USER)
    assert str(page.url) == f"{site.origin}/page?q=1"
    assert (page.media_type, page.charset, page.body.decode()) == ("text/html", "utf-8", "<p>hällo</p>")
    assert site.asked == ["/robots.txt", "/page?q=1"]
    assert site.headers["Host"] == f"{NAME}:{site.port}"
    assert site.headers["User-Agent"].startswith("gatehouse-fetch/")
    assert not {"Cookie", "Authorization", "Referer"} & set(site.headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "localhost"])
async def test_addresses_that_are_not_public_are_not_connected_to(site: Site, host: str) -> None:
    """With the guard as it is outside of tests."""
    site.html("/", "internal")
    guarded = Fetcher(Policy("public", str(site.port)), Workers())
    with pytest.raises(FetchError, match="may not be fetched from: its address is not public"):
        await guarded.fetch(f"http://{host}:{site.port}/", USER)
    assert site.asked == []


async def test_a_host_that_is_not_allowed_is_not_even_resolved(site: Site) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        raise AssertionError(host)

    picky = Fetcher(Policy("docs.test", str(site.port)), Workers(), resolver)
    with pytest.raises(FetchError, match=r"site\.test is not among the hosts"):
        await picky.fetch(site.html("/", "x"), USER)


async def test_an_ipv6_address_is_named_in_brackets(site: Site) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        assert host == "2001:db8::1"
        return ["127.0.0.1"]

    site.html("/x", "x")
    page = await Fetcher(Policy("public", str(site.port)), Workers(), resolver, loopback_only).fetch(
        f"http://[2001:DB8::1]:{site.port}/x", USER
    )
    assert site.headers["Host"] == f"[2001:db8::1]:{site.port}"
    assert str(page.url) == f"http://[2001:db8::1]:{site.port}/x"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(site: Site, status: int) -> None:
    site.html("/b", "there")
    page = await fetcher(site).fetch(site.redirect("/a", "b?x=1", status), USER)
    assert (str(page.url), page.body) == (f"{site.origin}/b?x=1", b"there")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://10.0.0.1:{port}/", "10.0.0.1 may not be fetched from"),
        ("http://169.254.169.254:{port}/latest/meta-data/", "169.254.169.254 may not be fetched from"),
        ("http://[::1]:{port}/", "::1 may not be fetched from"),
        ("http://[::ffff:7f00:1]:{port}/", "may not be fetched from"),
        ("http://site.test/", "Port 80 is not fetched from"),
        ("http://user@site.test:{port}/", "user name"),
        ("http://2130706433:{port}/", "four decimal numbers"),
        ("file:///etc/passwd", "Only http and https"),
        ("gopher://site.test:{port}/", "Only http and https"),
        ("http://site.test:{port}/\\@x", "not a URL"),
    ],
)
async def test_every_hop_is_judged(site: Site, location: str, said: str) -> None:
    url = site.redirect("/a", location.format(port=site.port))
    assert said in await refusal(url, site)
    assert site.asked == ["/robots.txt", "/a"]


async def test_a_name_that_moves_between_two_hops_is_judged_again(site: Site) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    url = site.redirect("/a", "/b")
    guarded = Fetcher(Policy("public", str(site.port)), Workers(), rebinding, loopback_only)
    with pytest.raises(FetchError, match=r"site\.test may not be fetched from"):
        await guarded.fetch(url, USER)
    assert site.asked == ["/robots.txt", "/a"]


async def test_redirects_have_an_end(site: Site) -> None:
    url = site.redirect("/loop", "/loop")
    assert await refusal(url, site) == f"site.test redirects more than {REDIRECTS} times."
    assert site.asked.count("/loop") == REDIRECTS + 1


@pytest.mark.parametrize("status", [404, 403, 500, 503, 304])
async def test_a_status_that_is_no_page(site: Site, status: int) -> None:
    site.pages["/x"] = (status, {}, b"")
    assert await refusal(f"{site.origin}/x", site) == f"site.test answered with status {status}."


@pytest.mark.parametrize(
    ("robots", "path", "fetched"),
    [
        ("User-agent: *\nDisallow: /private", "/private/x", False),
        ("User-agent: *\nDisallow: /private", "/public", True),
        ("User-agent: *\nDisallow: /\nAllow: /public", "/public", True),
        ("User-agent: gatehouse-fetch\nDisallow: /", "/x", False),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("\ufeffUser-agent: *\nDisallow: /", "/x", False),
        ("<html>not found</html>", "/x", True),
        ("User-agent: *\nDisallow: /*?q=", "/x?q=secret", False),
    ],
)
async def test_robots_txt_is_honoured(site: Site, robots: str, path: str, fetched: bool) -> None:
    site.pages["/robots.txt"] = (200, {"Content-Type": "application/octet-stream"}, robots.encode())
    url = site.html(path.partition("?")[0], "x") + path[len(path.partition("?")[0]) :]
    if fetched:
        assert (await fetcher(site).fetch(url, USER)).body == b"x"
    else:
        assert await refusal(url, site) == "The robots.txt of site.test asks not to fetch this page."
        assert site.asked == ["/robots.txt"]


@pytest.mark.parametrize(
    ("status", "fetched"), [(404, True), (403, True), (429, False), (500, False), (503, False)]
)
async def test_a_robots_txt_that_cannot_be_had(site: Site, status: int, fetched: bool) -> None:
    """RFC 9309 section 2.3.1: what is not there forbids nothing; what cannot be known forbids all."""
    site.pages["/robots.txt"] = (status, {}, b"")
    url = site.html("/x", "x")
    if fetched:
        assert (await fetcher(site).fetch(url, USER)).body == b"x"
    else:
        assert "so nothing is fetched" in await refusal(url, site)


async def test_the_robots_txt_of_every_hop_is_asked(site: Site) -> None:
    other = Site()
    try:
        other.pages["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /")
        url = site.redirect("/a", other.html("/b", "never"))
        assert "asks not to fetch" in await refusal(url, site, other)
        assert other.asked == ["/robots.txt"]
    finally:
        other.close()


async def test_a_robots_txt_may_be_elsewhere_but_not_inside(site: Site) -> None:
    site.redirect("/robots.txt", "/real-robots.txt")
    site.pages["/real-robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /x")
    assert "asks not to fetch" in await refusal(site.html("/x", "x"), site)
    site.redirect("/robots.txt", f"http://10.0.0.1:{site.port}/")
    assert "10.0.0.1 may not be fetched from" in await refusal(site.html("/x", "x"), site)


async def test_only_the_beginning_of_a_huge_robots_txt_is_read(site: Site) -> None:
    def endless() -> Iterable[bytes]:
        yield b"User-agent: *\nDisallow: /x\n"
        while not site.closing.is_set():
            yield b"# more\n" * 1000

    site.pages["/robots.txt"] = (200, {}, endless)
    assert "asks not to fetch" in await refusal(site.html("/x", "x"), site)
    assert (await fetcher(site).fetch(site.html("/y", "y"), USER)).body == b"y"


async def test_a_robots_txt_that_is_made_to_be_costly(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules for each of very many agents, in 63 KB: half a minute, and half a gigabyte."""
    monkeypatch.setattr(fetching, "ROBOTS_SECONDS", 2.0)
    agents = "\n".join(f"user-agent: a{number}" for number in range(2200))
    rules = "\n".join(f"allow: /{number}" for number in range(2600))
    site.pages["/robots.txt"] = (200, {}, f"{agents}\n{rules}".encode())
    said = "The robots.txt of site.test is too much to read, so nothing is fetched from it."
    assert await refusal(site.html("/x", "x"), site) == said
    assert site.asked == ["/robots.txt"]


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "text/markdown", "application/json", "application/ld+json", "application/atom+xml", "TEXT/HTML", ""],
)  # fmt: skip
async def test_text_is_fetched(site: Site, media_type: str) -> None:
    site.pages["/x"] = (200, {"Content-Type": media_type} if media_type else {}, b"x")
    page: Page = await fetcher(site).fetch(f"{site.origin}/x", USER)
    assert (page.media_type, page.body) == (media_type.lower(), b"x")


@pytest.mark.parametrize(
    "media_type", ["image/png", "application/pdf", "application/octet-stream", "video/mp4"]
)
async def test_what_is_no_text_is_not_fetched(site: Site, media_type: str) -> None:
    site.pages["/x"] = (200, {"Content-Type": media_type}, b"x")
    assert f"of the type '{media_type}'" in await refusal(f"{site.origin}/x", site)


def announced(site: Site) -> Iterable[bytes]:
    """Nothing of what was announced."""
    site.closing.wait()
    return []


async def test_a_page_that_is_too_long(site: Site) -> None:
    site.pages["/just"] = (200, {"Content-Type": "text/plain"}, b"x" * BYTES_LIMIT)
    assert len((await fetcher(site).fetch(f"{site.origin}/just", USER)).body) == BYTES_LIMIT
    site.pages["/long"] = (200, {"Content-Type": "text/plain"}, b"x" * (BYTES_LIMIT + 1))
    assert await refusal(f"{site.origin}/long", site) == "The page is longer than 5 MiB."

    def endless() -> Iterable[bytes]:
        while not site.closing.is_set():
            yield b"x" * 65536

    site.pages["/endless"] = (200, {"Content-Type": "text/plain"}, endless)
    assert await refusal(f"{site.origin}/endless", site) == "The page is longer than 5 MiB."


async def test_a_packed_page_is_unpacked(site: Site) -> None:
    body = b"unpacked " * 100_000
    assert (await fetcher(site).fetch(site.gzipped("/x", body), USER)).body == body
    assert site.headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_page_that_is_packed_in_parts_is_unpacked_whole(site: Site, size: int) -> None:
    """A gzip file may have several members, and they may begin and end anywhere in what comes."""
    packed = b"".join(gzip.compress(part) for part in (b"one ", b"", b"two ", b"three"))
    site.pages["/x"] = (
        200,
        {"Content-Type": "text/plain", "Content-Encoding": "gzip"},
        lambda: (packed[start : start + size] for start in range(0, len(packed), size)),
    )
    assert (await fetcher(site).fetch(f"{site.origin}/x", USER)).body == b"one two three"


async def test_a_bomb_in_parts_does_not_go_off(site: Site) -> None:
    part = gzip.compress(bytes(1024 * 1024))
    site.pages["/x"] = (200, {"Content-Type": "text/html", "Content-Encoding": "gzip"}, part * 256)
    assert await refusal(f"{site.origin}/x", site) == "The page is longer than 5 MiB."


async def test_a_bomb_does_not_go_off(site: Site) -> None:
    """256 MiB of zeros, packed: no more of them than the limit is ever unpacked."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    zeros = bytes(1024 * 1024)
    bomb = b"".join(packer.compress(zeros) for _ in range(256)) + packer.flush()
    site.pages["/x"] = (200, {"Content-Type": "text/html", "Content-Encoding": "gzip"}, bomb)
    assert await refusal(f"{site.origin}/x", site) == "The page is longer than 5 MiB."


@pytest.mark.parametrize(
    ("coding", "body", "said"),
    [
        ("br", b"x", "in a way that was not asked for"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x")), "in a way that was not asked for"),
        ("deflate", zlib.compress(b"x"), "in a way that was not asked for"),
        ("gzip", b"not packed at all", "something else than the gzip"),
        ("gzip", gzip.compress(b"x" * 1000)[:-12], "ends too early"),
        ("gzip", gzip.compress(b"x") + gzip.compress(b"y" * 1000)[:-12], "ends too early"),
    ],
)
async def test_packing_that_is_refused(site: Site, coding: str, body: bytes, said: str) -> None:
    site.pages["/x"] = (200, {"Content-Type": "text/plain", "Content-Encoding": coding}, body)
    assert said in await refusal(f"{site.origin}/x", site)


async def test_what_follows_the_packed_page_is_not_read(site: Site) -> None:
    def endless() -> Iterable[bytes]:
        yield gzip.compress(b"page")
        while not site.closing.is_set():
            yield bytes(65536)

    site.pages["/x"] = (200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, endless)
    assert (await fetcher(site).fetch(f"{site.origin}/x", USER)).body == b"page"


async def test_a_slow_drip_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 0.5)

    def drip() -> Iterable[bytes]:
        while not site.closing.wait(0.05):
            yield b"."

    site.pages["/x"] = (200, {"Content-Type": "text/plain"}, drip)
    assert "did not give the page within" in await refusal(f"{site.origin}/x", site)


async def test_a_site_that_says_nothing_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 0.5)
    site.pages["/robots.txt"] = (200, {}, lambda: announced(site))
    assert "did not give the page within" in await refusal(site.html("/x", "x"), site)


async def test_answers_that_are_not_http_or_break_off(site: Site) -> None:
    site.pages["/short"] = (200, {"Content-Type": "text/plain", "Content-Length": "100"}, b"x")
    assert "broke" in await refusal(f"{site.origin}/short", site)
    site.pages["/wide"] = (200, {"Content-Type": "text/plain", "X": "y" * 200_000}, b"x")
    assert "broke" in await refusal(f"{site.origin}/wide", site)


async def test_names_that_are_not_there(site: Site) -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    lost = Fetcher(Policy("public", str(site.port)), Workers(), nowhere, loopback_only)
    with pytest.raises(FetchError, match=r"site\.test cannot be found"):
        await lost.fetch(f"{site.origin}/", USER)
    port = site.port
    site.close()
    silent = Fetcher(Policy("public", str(port)), Workers(), to_loopback, loopback_only)
    with pytest.raises(FetchError, match=r"site\.test does not accept connections"):
        await silent.fetch(f"{site.origin}/", USER)


async def test_names_that_no_server_answers_for_keep_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "RESOLVE_SECONDS", 60.0)
    over = threading.Event()
    known = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **more: Any) -> Any:
        if host == "silent.test":
            over.wait()
        return known("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    # More than asyncio's own threads are on any machine.
    waiting = [asyncio.create_task(fetching.resolve("silent.test", 80)) for _ in range(40)]
    await asyncio.sleep(0.1)
    try:
        async with asyncio.timeout(30):
            assert await fetching.resolve("other.test", 80) == ["127.0.0.1"]
        assert not any(task.done() for task in waiting)
        monkeypatch.setattr(fetching, "RESOLVE_SECONDS", 0.1)
        lost = Fetcher(Policy("public", "80"), Workers(), permits=loopback_only)
        with pytest.raises(FetchError, match=r"silent\.test cannot be found"):
            await lost.fetch("http://silent.test/", USER)
    finally:
        over.set()
        await asyncio.gather(*waiting)


async def test_tls_is_for_the_name_and_not_for_the_address(tmp_path: Path) -> None:
    path = tmp_path / "site.pem"
    write_certificate(path, NAME)
    trust = ssl.create_default_context(cafile=path)
    site = Site(path)
    try:
        url = site.html("/x", "x")
        assert (await fetcher(site, trust=trust).fetch(url, USER)).body == b"x"
        assert "certificate of other.test is not valid" in await refusal(
            url.replace(NAME, "other.test"), site, trust=trust
        )
        assert "certificate of 127.0.0.1 is not valid" in await refusal(
            url.replace(NAME, "127.0.0.1"), site, trust=trust
        )
        assert "certificate of site.test is not valid" in await refusal(url, site)
        assert await refusal(url.replace("https", "http"), site, trust=trust)
    finally:
        site.close()


async def test_tls_with_a_site_that_does_not_speak_it(site: Site) -> None:
    url = site.html("/x", "x").replace("http:", "https:")
    assert await refusal(url, site) == "site.test does not speak TLS as it should."


async def test_the_name_is_sent_in_the_handshake(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[Any] = []
    inner = httpcore.AnyIOBackend.connect_tcp

    async def connect(backend: Any, host: str, *rest: Any) -> httpcore.AsyncNetworkStream:
        stream = await inner(backend, host, *rest)

        async def start_tls(**given: Any) -> Any:
            names.append((host, given["server_hostname"]))
            raise httpcore.ConnectError

        monkeypatch.setattr(stream, "start_tls", start_tls)
        return stream

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    await refusal(site.html("/x", "x").replace("http:", "https:"), site)
    assert names == [("127.0.0.1", NAME)]
