"""Client ID Metadata Documents, and the guard around fetching them: a real TLS server, real sockets."""

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
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
from joserfc.jwk import ECKey

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
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.store import Store, digest

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
        self.headers: dict[str, str] = {}
        self.drip = 0.0
        self.asked = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
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
def site(tmp_path: Path) -> Iterator[Site]:
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
    with pytest.raises(DocumentRefused):
        asyncio.run(Fetcher(addresses(*found)).fetch(URL))


def test_a_document_is_fetched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.headers = {"Cache-Control": "Max-Age=600"}
    body, cache_control = asyncio.run(site.fetcher(monkeypatch).fetch(URL))
    assert json.loads(body) == DOCUMENT
    assert lifetime(cache_control) == 600


# covers: cimd-ssrf
@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        (302, {"Location": "https://127.0.0.1/x"}, b"", DocumentRefused),
        (404, {}, b"", DocumentRefused),
        (500, {}, b"", DocumentUnavailable),
        (200, {}, b"x" * 20_000, DocumentRefused),
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
    since = time.monotonic()
    with pytest.raises(DocumentUnavailable):
        asyncio.run(site.fetcher(monkeypatch).fetch(URL))
    assert time.monotonic() - since < 2


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


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"[" * 10_000])
def test_what_is_not_a_document(body: bytes) -> None:
    with pytest.raises(DocumentRefused):
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


# covers: cimd
def test_the_copy_is_used_while_fresh_and_the_last_good_one_in_an_outage(
    site: Site, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk() -> list[Client | None]:
        redis = connect(fleet.redis.url, fleet.redis.password).commands
        store = Store(redis, access_seconds=3600, refresh_seconds=3600, grace_seconds=30)
        known = Documents(store, frozenset(), site.fetcher(monkeypatch))
        seen = list(await asyncio.gather(*(known.client(URL) for _ in range(5))))
        assert site.asked == 1
        record = await store.document(URL)
        assert record is not None
        await store.save_document(URL, {**record, "fresh_until": 0})
        site.status = 503
        seen.append(await known.client(URL))
        assert site.asked == 2
        site.status = 404
        seen.append(await known.client(URL))
        site.status = 500
        with pytest.raises(DocumentUnavailable):
            await known.client(URL)
        await known.close()
        await redis.aclose()
        return seen

    *good, gone = asyncio.run(walk())
    assert all(client is not None and client.check_redirect_uri(REDIRECT) for client in good)
    assert gone is None


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
        redis = connect(fleet.redis.url, fleet.redis.password).commands
        store = Store(redis, access_seconds=3600, refresh_seconds=3600, grace_seconds=30)
        known = Documents(store, frozenset(), site.fetcher(monkeypatch))

        async def kids(*, again: bool = False) -> list[Any]:
            return [key.get("kid") for key in await known.keys(keys_url, again=again)]

        def publish(kid: str) -> None:
            key = ECKey.generate_key("P-256", {"kid": kid}).as_dict(private=False)
            site.body = {"keys": [key, {"kty": "future"}]}

        publish("one")
        assert await kids() == ["one"]
        publish("two")
        assert await kids() == ["one"]
        assert await kids(again=True) == ["one"], "not again at once"
        monkeypatch.setattr(documents, "KEYS_SECONDS", 0)
        record = await store.document(f"keys {keys_url}")
        assert record is not None
        await store.save_document(f"keys {keys_url}", {**record, "again_from": 0})
        assert await kids(again=True) == ["two"]
        site.status = 503
        assert await kids(again=True) == ["two"]
        site.status, site.body = 200, b"[]"
        assert await kids(again=True) == []
        assert await kids() == ["two"], "what is no key set replaces none"
        await known.close()
        await redis.aclose()

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
        assert page.status_code == 400
        assert "not known here" in page.text


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
