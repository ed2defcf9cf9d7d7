"""What the auth service's parsers promise, for any bytes. Driven by hypothesis in `make test`, by atheris in `make fuzz`.

Each takes bytes, and raises AssertionError, or what a parser should not raise, when a promise is broken.
"""

import asyncio
import json
import random
import re
import time
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlencode

import httpx
from ada_url import URL
from authlib.oauth2.rfc6749 import InvalidRequestError, OAuth2Error
from conftest import ECHO, ISSUER
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from gatehouse_auth import redirects
from gatehouse_auth.check import header_value
from gatehouse_auth.documents import DocumentRefused, DocumentUnavailable, parse
from gatehouse_auth.identity.base import ProviderUnavailable
from gatehouse_auth.identity.oidc import Description, OpenID, _nonce
from gatehouse_auth.keyring import Keyring
from gatehouse_auth.oauth.messages import Parameters, parsed_json, presented_client_id
from gatehouse_auth.oauth.metadata import server_metadata
from gatehouse_auth.oauth.registration import Registration, acceptable_metadata, answer, json_request
from gatehouse_auth.oauth.tokens import AccessToken, InvalidAccessToken, TokenVerifier
from gatehouse_auth.routes.responses import send
from gatehouse_auth.settings import OpenIDProvider, Settings
from test_direct import Connection, Service
from test_verifier import KEYS, RING, signed
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CUSTOM = frozenset({"cursor://anysphere.cursor-mcp/oauth/callback"})
DOCUMENT_URL = "https://client.example.test/client.json"
# RFC 6749 section 5.2: what an error's text may have.
ERROR_TEXT = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]*\Z")
HEAD = b'{"alg":"ES256","typ":"at+jwt","kid":"key-0"}'

_folder = TemporaryDirectory()
_service = Service(Path(_folder.name))
_direct = _service.direct
SETTINGS = Settings(
    issuer=ISSUER,
    resources=f"{_folder.name}/resources.json",  # type: ignore[arg-type]
    providers={"local": {}},  # type: ignore[arg-type]
)
_loop = asyncio.new_event_loop()
_keyring = Keyring.parse(RING)
# The first token under a header is judged in another way than those that follow.
_seasoned = TokenVerifier(ISSUER, _keyring, ECHO)


def _claims() -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": ISSUER, "aud": ECHO, "sub": "ana", "client_id": "c", "scope": "mcp", "jti": "j", "iat": now,
        "exp": now + 600, "idp": "local", "name": "", "email": "", "groups": [], "fam": "f",
    }  # fmt: skip


GOOD = signed(HEAD, json.dumps(_claims() | {"exp": 4_000_000_000}).encode())
_seasoned.verify(GOOD)


def _verdict(verifier: TokenVerifier, token: str) -> AccessToken | None:
    try:
        return verifier.verify(token)
    except InvalidAccessToken:
        return None


def really_signed(token: str) -> bool:
    """Whether one of our keys has signed these very bytes: found with `cryptography` alone."""
    told, _, signature = token.rpartition(".")
    raw = urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    kid = json.loads(urlsafe_b64decode(told.split(".")[0] + "=="))["kid"]
    key = next(key for key in KEYS if key.get("kid") == kid)
    try:
        dss = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        key.public_key.verify(dss, told.encode(), ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return len(raw) == 64


def token(data: bytes) -> None:
    """What is accepted as an access token is signed by us, for this service, and in time."""
    text = data.decode("latin-1")
    accepted = _verdict(_seasoned, text)
    assert accepted == _verdict(TokenVerifier(ISSUER, _keyring, ECHO), text)
    if accepted is not None:
        assert really_signed(text)
        payload = json.loads(urlsafe_b64decode(text.split(".")[1] + "=="))
        assert payload["iss"] == ISSUER
        assert payload["aud"] == ECHO or ECHO in payload["aud"]
        assert payload["exp"] > time.time() - 60
        assert payload["sub"] == accepted.identity.user


def token_claims(data: bytes) -> None:
    """The same for what carries our signature: header and payload, parted by a zero byte."""
    header, zero, payload = data.partition(b"\0")
    token((signed(header, payload) if zero else signed(HEAD, data)).encode("latin-1"))


def token_changed(data: bytes) -> None:
    """A good token with some bytes changed is no token."""
    changed = bytearray(GOOD.encode())
    for at in range(0, len(data) - 2, 3):
        changed[int.from_bytes(data[at : at + 2], "big") % len(changed)] ^= data[at + 2]
    text = bytes(changed).decode("latin-1")
    token(bytes(changed))
    assert text == GOOD or _verdict(_seasoned, text) is None


def can_be_told(error: OAuth2Error) -> None:
    assert ERROR_TEXT.match(error.description or "")


def form(data: bytes) -> None:
    """A form that is taken has each parameter once, in printable ASCII; a refusal can be said in an answer."""
    try:
        parameters = Parameters.parse(data)
        parameters.check()
        presented_client_id({}, parameters)
    except OAuth2Error as error:
        can_be_told(error)
        return
    for name, values in parameters.datalist.items():
        assert all(values)
        assert len(values) == 1 or name == "resource"
        assert name == "client_name" or all(re.fullmatch(r"[\x20-\x7e]*", value) for value in values)
    pairs = [(name, value) for name, values in parameters.datalist.items() for value in values]
    assert Parameters.parse(urlencode(pairs).encode()).datalist == parameters.datalist


def authorization(data: bytes) -> None:
    """Any `Authorization` header names a client, or none, or is refused."""
    header = data.decode("latin-1")
    try:
        named = presented_client_id({"authorization": header}, Parameters([]))
    except InvalidRequestError as error:
        can_be_told(error)
        return
    assert (named is not None) == (header.partition(" ")[0].lower() == "basic")
    if named is not None:
        b64decode(header.partition(" ")[2], validate=True).decode()


def where_a_browser_goes(uri: str) -> None:
    """A redirect URI that may be registered: a browser goes to the very host that a person is shown."""
    if uri in CUSTOM:
        return
    url = URL(uri)
    assert url.protocol == "https:" or url.hostname in ("localhost", "127.0.0.1", "[::1]")
    assert not url.username
    assert not url.password
    assert not url.hash
    shown = re.sub(r":\d*\Z", "", redirects.host(uri)).lower()
    assert url.hostname == shown or IPv6Address(url.hostname[1:-1]) == IPv6Address(shown[1:-1])
    assert not set(redirects.form_action(uri)) & set(";,' ")


def registration(data: bytes) -> None:
    """A registration is refused with an OAuth error, or what is kept is acceptable and can be told."""
    endpoint = Registration(server_metadata(SETTINGS), ISSUER)
    try:
        kept = acceptable_metadata(parsed_json(data), CUSTOM, fetches=True)
        reply = answer(endpoint, json_request("POST", ISSUER, kept))
    except OAuth2Error as error:
        can_be_told(error)
        return
    assert endpoint.client is not None
    told = json.loads(send(reply).body)
    assert told["redirect_uris"] == endpoint.client.metadata["redirect_uris"]
    for uri in told["redirect_uris"]:
        where_a_browser_goes(uri)
    assert (
        set(told["grant_types"]) >= {"authorization_code"}
        or not told["redirect_uris"]
        or "device_code" in str(told)
    )
    assert not any("d" in key for key in told.get("jwks", {}).get("keys", []))


def document(data: bytes) -> None:
    """A client's document is refused, or is one that says of itself what it is."""
    try:
        kept = parse(DOCUMENT_URL, data, CUSTOM)
    except (DocumentRefused, DocumentUnavailable):
        return
    read = json.loads(data)
    assert read["client_id"] == DOCUMENT_URL
    assert "client_secret" not in read
    assert kept["token_endpoint_auth_method"] in ("none", "private_key_jwt")
    assert kept["client_name"].isprintable()
    json.dumps(kept, ensure_ascii=False, allow_nan=False).encode()
    for uri in kept["redirect_uris"]:
        assert uri in read["redirect_uris"]
        where_a_browser_goes(uri)


class _Provider(OpenID):
    """A provider whose description and key are known, and whose ID token is given."""

    def __init__(self) -> None:
        settings = OpenIDProvider(issuer=PROVIDER, client_id="c")
        super().__init__("okta", settings, "secret", f"{ISSUER}/signin/okta/callback", httpx.AsyncClient())
        where = [f"{PROVIDER}/{name}" for name in ("authorize", "token", "keys", "userinfo", "end")]
        self._described = Description(
            *where, basic=True, algorithms=("ES256",), names_issuer=True, scopes=("openid",)
        )

    async def _key(self, header: Any) -> Any:
        fits = header.get("alg") == "ES256" and header.get("kid") in ("key-0", None)
        return KEYS[0] if fits else None

    def claims(self, token: str) -> dict[str, Any]:
        """Judge an ID token.

        Raises:
            ProviderUnavailable: it is not good.
        """
        return _loop.run_until_complete(self._id_token({"id_token": token}, NONCE))


PROVIDER = "https://okta.example.test"
_provider = _Provider()
NONCE = _nonce("verifier")


def id_token(data: bytes) -> None:
    """What is accepted as an ID token is signed by the provider, for us, for this sign-in, and in time."""
    text = data.decode("latin-1")
    try:
        claims = _provider.claims(text)
        identity = _provider.identity(claims)
    except ProviderUnavailable:
        return
    assert really_signed(text)
    assert claims["iss"] == PROVIDER
    assert claims["aud"] == "c" or "c" in claims["aud"]
    assert claims["nonce"] == NONCE
    assert claims["exp"] > time.time() - 120
    assert identity.user == f"okta:{claims['sub']}"
    carried(identity.name, identity.email, *identity.groups)


def id_token_claims(data: bytes) -> None:
    """The same for what carries the provider's signature: header and payload, parted by a zero byte; or what
    is said besides what a provider says."""
    header, zero, payload = data.partition(b"\0")
    if zero:
        id_token(signed(header, payload).encode("latin-1"))
        return
    now = int(time.time())
    honest = {"iss": PROVIDER, "aud": "c", "sub": "ana", "nonce": NONCE, "iat": now, "exp": now + 600}
    more = data.strip()[1:-1]
    payload = json.dumps(honest).encode()[:-1] + (b"," + more if more else b"") + b"}"
    id_token(signed(HEAD.replace(b"at+jwt", b"JWT"), payload).encode("latin-1"))


def carried(*texts: str) -> None:
    """A header can carry a text, and who reads it gets the text back; a page can show it."""
    for text in texts:
        value = header_value(text)
        assert re.fullmatch(r"[\x20-\x2b\x2d-\x7e]*", value)
        assert value == value.strip()
        text.encode()
        assert unquote(value) == text.strip(" ")


class Peer(Connection):
    """As transports do, drops what is written once it is closed."""

    def write(self, data: Any) -> None:
        """Take what is written while open."""
        if not self.closed:
            super().write(data)


def _answers(sent: bytes) -> list[tuple[list[bytes], bytes]]:
    """What was answered, whatever the order of headers."""
    parts = [part.partition(b"\r\n\r\n") for part in sent.split(b"HTTP/1.1 ")]
    return [(sorted(head.split(b"\r\n")), rest) for head, _, rest in parts]


def _is_part(some: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in some)


async def _connection(kind: type[Any], chunks: list[bytes]) -> tuple[list[tuple[list[bytes], bytes]], bool]:
    connection = _service.connect(kind, transport=Peer)
    for chunk in chunks:
        if connection.closed:
            break
        connection.protocol.data_received(chunk)
        for _ in range(4):
            await asyncio.sleep(0)
    for _ in range(40):
        await asyncio.sleep(0)
    result = _answers(connection.sent), connection.closed
    connection.protocol.connection_lost(None)
    await asyncio.sleep(0)
    return result


def http(data: bytes) -> None:
    """However a peer's bytes are divided, the answers are those that the server gives without the direct way
    in when it can answer each request before the next; but what cannot be parsed may end a connection before
    a request under way has its answer."""
    _loop.run_until_complete(_compare(data.replace(b"{token}", GOOD.encode())))


async def _compare(data: bytes) -> None:
    expected, closed = await _connection(HttpToolsProtocol, [data[at : at + 1] for at in range(len(data))])
    seed = random.Random(data)  # noqa: S311 - the same cuts each time
    for most in (1, 7, 60, len(data) + 1):
        at, chunks = 0, []
        while at < len(data):
            size = most if most > len(data) else seed.randint(1, most)
            chunks.append(data[at : at + size])
            at += size
        answered, ended = await _connection(_direct, chunks)
        assert ended == closed
        if expected[-1][0][0].startswith(b"400"):
            assert answered[-1] == expected[-1]
            assert _is_part(answered, expected)
        else:
            assert answered == expected


PROMISES: dict[str, Callable[[bytes], None]] = {
    made.__name__: made
    for made in (
        token, token_claims, token_changed, form, authorization, registration, document, id_token,
        id_token_claims, http,
    )
}  # fmt: skip
