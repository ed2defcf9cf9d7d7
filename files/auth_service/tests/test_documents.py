"""Client ID Metadata Documents, and the guard around fetching them: a real TLS server, real sockets."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpcore
import pytest
from conftest import REDIRECT, Browser, Fleet
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey, RSAKey

import gatehouse_auth.store
from gatehouse_auth import documents
from gatehouse_auth.connections import connect
from gatehouse_auth.documents import (
    DocumentRefused,
    Documents,
    DocumentUnavailable,
    Fetcher,
    is_document_url,
    lifetime,
    parse,
)
from gatehouse_auth.store import Store, digest, keys_name

URL = "https://client.example.test/oauth/client.json"
DOCUMENT = {
    "client_id": URL,
    "client_name": "Client",
    "redirect_uris": [REDIRECT],
    "token_endpoint_auth_method": "none",
}


class Site:
    """An https site on loopback for `client.example.test`, which misbehaves on request."""

    def __init__(self, folder: Path) -> None:
        self.body: Any = DOCUMENT
        self.status = 200
        self.headers = {"Content-Type": "application/json"}
        self.drip = 0.0
        self.silent = False
        self.asked = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
                while site.silent:
                    time.sleep(0.05)
                body = site.body if isinstance(site.body, bytes) else json.dumps(site.body).encode()
                self.send_response(site.status)
                for name, value in site.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if not site.drip:
                    self.wfile.write(body)
                    return
                for byte in body:
                    try:
                        self.wfile.write(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(site.drip)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client.example.test")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("client.example.test")]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .sign(key, hashes.SHA256())
        )
        path = folder / "site.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        self.trust = ssl.create_default_context(cafile=path)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetcher(self, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
        """A fetcher for which this site is at a public address, on port 443."""
        inner = httpcore.AnyIOBackend.connect_tcp

        async def here(backend: Any, host: str, port: int, *rest: Any) -> httpcore.AsyncNetworkStream:
            assert (host, port) == ("192.88.98.7", 443)
            return await inner(backend, "127.0.0.1", self.port, *rest)

        monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", here)
        return Fetcher(addresses("192.88.98.7"), lambda address: address == "192.88.98.7", self.trust)


def addresses(*found: str) -> Callable[[str, int], Coroutine[Any, Any, list[str]]]:
    async def resolver(host: str, port: int) -> list[str]:
        return list(found)

    return resolver


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    # Only where it is the point is a site too slow.
    monkeypatch.setattr(documents, "FETCH_SECONDS", 120)
    monkeypatch.setattr(documents, "PATIENCE_SECONDS", 60)
    made = Site(tmp_path)
    yield made
    made.close()


# covers: cimd
@pytest.mark.parametrize(
    ("url", "good"),
    [
        (URL, True),
        ("https://claude.ai/oauth/mcp-oauth-client-metadata", True),
        ("https://chatgpt.com/oauth/abc/client.json?x=1", True),
        ("http://client.example.test/c", False),
        ("https://client.example.test", False),
        ("https://client.example.test/", False),
        ("https://client.example.test:8443/c", False),
        ("https://user@client.example.test/c", False),
        ("https://client.example.test/c#x", False),
        ("https://client.example.test/a/../c", False),
        ("https://client.example.test/a/%2E%2e/c", False),
        ("https://client.example.test\\@evil/c", False),
        ("https://CLIENT.example.test/c", False),
        ("https://client.example.test/" + "x" * 600, False),
        ("https://client.example.test/ c", False),
    ],
)
def test_which_identifiers_are_documents(url: str, good: bool) -> None:
    assert is_document_url(url) is good


# covers: cimd-ssrf
@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["::1"], []])
def test_a_name_with_any_address_that_is_not_public_is_refused(found: list[str]) -> None:
    with pytest.raises(DocumentUnavailable):
        asyncio.run(Fetcher(addresses(*found)).fetch(URL))


def test_a_document_is_fetched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.headers = {"Cache-Control": "Max-Age=600", "Content-Type": "Application/JSON; charset=utf-8"}
    published = asyncio.run(site.fetcher(monkeypatch).fetch(URL))
    assert json.loads(published.body) == DOCUMENT
    assert published.media_type == "application/json"
    assert lifetime(published.cache_control) == 600


# covers: cimd-ssrf
@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        (302, {"Location": "https://127.0.0.1/x"}, b"", DocumentUnavailable),
        (404, {}, b"", DocumentRefused),
        (410, {}, b"", DocumentRefused),
        (403, {}, b"", DocumentUnavailable),
        (429, {}, b"", DocumentUnavailable),
        (500, {}, b"", DocumentUnavailable),
        (200, {}, b"x" * 20_000, DocumentUnavailable),
    ],
)
def test_answers_that_are_no_document(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    headers: dict[str, str],
    body: bytes,
    error: type[Exception],
) -> None:
    site.status, site.headers, site.body = status, headers, body
    with pytest.raises(error):
        asyncio.run(site.fetcher(monkeypatch).fetch(URL))


# covers: cimd-ssrf
def test_a_slow_drip_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "FETCH_SECONDS", 0.5)
    site.drip = 0.1
    with pytest.raises(DocumentUnavailable):
        asyncio.run(site.fetcher(monkeypatch).fetch(URL))


def test_a_certificate_that_is_not_trusted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.trust = ssl.create_default_context()
    with pytest.raises(DocumentUnavailable):
        asyncio.run(site.fetcher(monkeypatch).fetch(URL))


# covers: cimd
@pytest.mark.parametrize(
    "change",
    [
        {"client_id": URL + "x"},
        {"client_id": None},
        {"client_name": None},
        {"client_name": 1},
        {"redirect_uris": []},
        {"redirect_uris": ["http://evil.example/"]},
        {"token_endpoint_auth_method": "client_secret_basic"},
        {"client_secret": "x"},
    ],
)
def test_documents_that_are_refused(change: dict[str, Any]) -> None:
    document = {name: value for name, value in {**DOCUMENT, **change}.items() if value is not None}
    with pytest.raises(DocumentRefused):
        parse(URL, json.dumps(document).encode(), frozenset())


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"{}"])
def test_what_is_not_a_document(body: bytes) -> None:
    with pytest.raises(DocumentRefused):
        parse(URL, body, frozenset())


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 10_000, b"<html>", b'{"client_id": '])
def test_what_says_nothing_of_the_document(body: bytes) -> None:
    with pytest.raises(DocumentUnavailable):
        parse(URL, body, frozenset())


# covers: cimd
@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        ("", 300),
        ("max-age=0", 300),
        ("public, max-age=7200", 7200),
        ("max-age=999999999", 86400),
        ("no-store, max-age=9000", 300),
    ],
)
def test_how_long_a_document_is_fresh(cache_control: str, seconds: int) -> None:
    assert lifetime(cache_control) == seconds


@asynccontextmanager
async def known_by(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Documents, Store]]:
    """What is known of the site's documents, of which nothing was before."""
    redis = connect(fleet.redis.url, fleet.redis.password).commands
    store = Store(redis, access_seconds=3600, refresh_seconds=3600, grace_seconds=30)
    known = Documents(store, frozenset(), site.fetcher(monkeypatch))
    await store.forget_document(URL)
    yield known, store
    site.silent = False
    await known.close()
    await store.forget_document(URL)
    await redis.aclose()


async def age(store: Store, name: str = URL) -> None:
    """The copy is not fresh any more, and what could not be had may be asked for again."""
    record = await store.document(name)
    assert record is not None
    await store.save_document(name, {**record, "fresh_until": 0, "again_from": 0})


# covers: cimd
def test_the_copy_is_used_while_fresh_and_the_last_good_one_in_an_outage(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk() -> None:
        async with known_by(site, fleet, monkeypatch) as (known, store):
            seen = list(await asyncio.gather(*(known.client(URL) for _ in range(5))))
            assert site.asked == 1
            assert all(client is not None and client.check_redirect_uri(REDIRECT) for client in seen)
            await age(store)
            site.status = 503
            assert await known.client(URL) is not None
            assert await known.client(URL) is not None
            assert site.asked == 2, "what could not be had is not asked for again at once"
            await age(store)
            site.status = 404
            assert await known.client(URL) is None
            site.status = 500
            with pytest.raises(DocumentUnavailable):
                await known.client(URL)

    asyncio.run(walk())


# covers: cimd
def test_nobody_waits_long_for_a_site_that_does_not_answer(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PATIENCE_SECONDS", 0.3)

    async def walk() -> None:
        async with known_by(site, fleet, monkeypatch) as (known, store):
            await known.client(URL)
            await age(store)
            site.silent = True
            async with asyncio.timeout(60):
                assert None not in await asyncio.gather(*(known.client(URL) for _ in range(60)))
            assert site.asked == 2, "one question for all"
            site.body, site.silent = {**DOCUMENT, "client_name": "Renamed"}, False
            for _ in range(100):
                client = await known.client(URL)
                assert client is not None
                if client.name == "Renamed":
                    break
                await asyncio.sleep(0.02)
            assert client is not None
            assert client.name == "Renamed", "the answer counts, though nobody has waited for it"
            assert site.asked == 2

    asyncio.run(walk())


# covers: cimd
@pytest.mark.parametrize(
    ("status", "kind", "body", "kept"),
    [
        (403, "text/html", b"are you a robot?", True),
        (401, "application/json", b"{}", True),
        (302, "text/html", b"", True),
        (200, "text/html", b"<html>back soon</html>", True),
        (200, "application/json", b'{"client_id": ', True),
        (200, "text/plain", json.dumps(DOCUMENT).encode(), True),
        (200, "application/client+json", json.dumps(DOCUMENT).encode(), True),
        (404, "text/html", b"", False),
        (410, "text/html", b"", False),
        (200, "application/json", json.dumps({**DOCUMENT, "redirect_uris": []}).encode(), False),
    ],
)
def test_only_its_own_site_ends_a_document(
    site: Site,
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: str,
    body: bytes,
    kept: bool,
) -> None:
    async def walk() -> None:
        async with known_by(site, fleet, monkeypatch) as (known, store):
            await known.client(URL)
            await age(store)
            site.status, site.headers, site.body = status, {"Content-Type": kind}, body
            assert (await known.client(URL) is not None) is kept
            assert (await store.document(URL) is not None) is kept

    asyncio.run(walk())


# covers: cimd
def test_a_document_that_others_may_have_left_there_is_none(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk() -> None:
        async with known_by(site, fleet, monkeypatch) as (known, _):
            site.headers = {"Content-Type": "text/plain"}
            with pytest.raises(DocumentUnavailable):
                await known.client(URL)

    asyncio.run(walk())


# covers: cimd
def test_strangers_do_not_use_up_what_people_need(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk() -> None:
        async with known_by(site, fleet, monkeypatch) as (known, store):
            await known.client(URL)
            fleet.redis.admin.expire(f"gh:document:{digest(URL)}", 30 * 86400)  # a grant came of it
            site.status = 404
            refusals = 0
            for number in range(30):
                try:
                    assert await known.client(f"{URL}?{number}") is None
                except DocumentUnavailable:
                    refusals += 1
            assert refusals >= 5, "a host is not asked as often as strangers like"
            site.status, site.body = 200, {**DOCUMENT, "client_name": "Renamed"}
            await age(store)
            client = await known.client(URL)
            assert client is not None
            assert client.name == "Renamed"

    asyncio.run(walk())


# covers: cimd
@pytest.mark.parametrize(
    ("keys", "method"),
    [
        ({"jwks_uri": "https://client.example.test/keys.json"}, "private_key_jwt"),
        ({"jwks": {"keys": [ECKey.generate_key("P-256").as_dict(private=False)]}}, "private_key_jwt"),
        ({}, None),
    ],
    ids=["published", "inside", "none"],
)
def test_a_document_with_keys(keys: dict[str, Any], method: str | None) -> None:
    """What ChatGPT's is like."""
    body = json.dumps({**DOCUMENT, "token_endpoint_auth_method": "private_key_jwt", **keys}).encode()
    if method is None:
        with pytest.raises(DocumentRefused):
            parse(URL, body, frozenset())
        return
    kept = parse(URL, body, frozenset())
    assert kept["token_endpoint_auth_method"] == method
    assert keys.keys() <= kept.keys()


def test_keys_are_read_again_when_they_may_have_changed(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_url = "https://client.example.test/keys.json"

    async def walk() -> None:
        async with known_by(site, fleet, monkeypatch) as (known, store):

            async def kids(url: str = keys_url, *, again: bool = False) -> list[Any]:
                return [key.get("kid") for key in await known.keys(URL, url, again=again)]

            def publish(kid: str) -> None:
                key = ECKey.generate_key("P-256", {"kid": kid}).as_dict(private=False)
                site.body = {"keys": [key, {"kty": "future"}]}

            publish("one")
            assert await kids() == ["one"]
            publish("two")
            assert await kids() == ["one"]
            assert await kids(again=True) == ["one"], "not again at once"
            await age(store, keys_name(URL))
            assert await kids(again=True) == ["two"]
            await age(store, keys_name(URL))
            site.status = 503
            assert await kids(again=True) == ["two"]
            assert await kids() == ["two"]
            await age(store, keys_name(URL))
            site.status, site.body = 200, b"<html>back soon</html>"
            assert await kids(again=True) == ["two"]
            publish("three")
            assert await kids(f"{keys_url}?elsewhere") == ["three"]
            await age(store, keys_name(URL))
            site.body = {"keys": []}
            assert await kids(f"{keys_url}?elsewhere") == []
            assert await store.document(keys_name(URL)) is None

    asyncio.run(walk())


@pytest.mark.parametrize(
    "keys",
    [
        [ECKey.generate_key("P-256").as_dict(private=False)] * 11,
        [RSAKey.generate_key(4096).as_dict(private=False)] * 6,
        [ECKey.generate_key("P-256").as_dict(private=True)],
    ],
    ids=["many", "long", "secret"],
)
def test_key_sets_that_are_refused(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, keys: list[Any]
) -> None:
    async def walk() -> None:
        async with known_by(site, fleet, monkeypatch) as (known, _):
            site.body = {"keys": keys}
            assert await known.keys(URL, "https://client.example.test/keys.json") == []

    asyncio.run(walk())


# covers: cimd-ssrf
def test_it_is_advertised_and_internal_addresses_are_not_reached(fleet: Fleet, browser: Browser) -> None:
    path = "/.well-known/oauth-authorization-server"
    assert browser.get(path).json()["client_id_metadata_document_supported"] is False
    assert browser.authorize("https://localhost/client.json").status_code == 400
    node = fleet.start(client_documents="true")
    with node.browser() as guarded:
        assert guarded.get(path).json()["client_id_metadata_document_supported"] is True
        page = guarded.authorize("https://localhost/client.json")
        assert page.status_code == 503
        assert "cannot be fetched" in page.text


# covers: cimd
def test_a_client_with_a_document_signs_in(fleet: Fleet) -> None:
    node = fleet.start(client_documents="true")
    metadata = parse(URL, json.dumps(DOCUMENT).encode(), frozenset())
    record = json.dumps({"metadata": metadata, "fresh_until": time.time() + 600})
    fleet.redis.admin.set(f"gh:document:{digest(URL)}", record, ex=600)
    with node.browser() as browser:
        page = browser.get(browser.authorize(URL).headers["location"])
        assert "The name comes from <code>client.example.test</code>" in page.text
        tokens = browser.tokens(URL)
        assert node.check(tokens.access).headers["x-gatehouse-client"] == URL
        assert browser.refresh(URL, tokens.refresh).status_code == 200
    fleet.redis.admin.delete(f"gh:document:{digest(URL)}")


# covers: dcr-flood
def test_a_document_lives_for_a_day_and_with_its_grants(own_fleet: Fleet) -> None:
    node = own_fleet.start(client_documents="true")
    redis = own_fleet.redis.admin
    own, keys = (f"gh:document:{digest(name)}" for name in (URL, keys_name(URL)))

    def unused() -> None:
        for key in (own, keys):
            redis.set(key, json.dumps(record), ex=86400)
            redis.zadd("gh:clients:unused", {key: time.time()})

    def used() -> bool:
        return all(redis.ttl(key) > 37 * 86400 - 60 for key in (own, keys)) and not redis.exists(
            "gh:clients:unused"
        )

    metadata = parse(URL, json.dumps(DOCUMENT).encode(), frozenset())
    record = {"metadata": metadata, "fresh_until": time.time() + 600}
    unused()
    with node.browser() as browser:
        tokens = browser.tokens(URL)
        assert used()
        assert redis.zscore("gh:clients", URL) is not None
        unused()
        assert browser.refresh(URL, tokens.refresh).status_code == 200
        assert used()


# covers: dcr-flood
def test_documents_that_nobody_uses_are_counted(
    site: Site, own_fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatehouse_auth.store, "UNUSED_CLIENTS", 3)

    async def walk() -> None:
        async with known_by(site, own_fleet, monkeypatch) as (known, store):
            for number in range(5):
                url = f"{URL}?{number}"
                site.body = {**DOCUMENT, "client_id": url}
                assert await known.client(url) is not None
                assert 0 < own_fleet.redis.admin.ttl(f"gh:document:{digest(url)}") <= 86400
            kept = [await store.document(f"{URL}?{number}") for number in range(5)]
            assert [record is not None for record in kept].count(True) == 3

    asyncio.run(walk())
