"""What parses what strangers send keeps its promises for any input."""

import asyncio
import ipaddress
import json
from base64 import b64encode
from urllib.parse import quote_plus, unquote, urlsplit

import auth_promises as promises
import pytest
from ada_url import URL
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gatehouse_auth import limits, redirects
from gatehouse_auth.documents import is_document_url
from gatehouse_auth.limits import Limiter, Rate, address_key
from gatehouse_auth.oauth.messages import Parameters, presented_client_id
from gatehouse_auth.oauth.server import canonical, service_of
from gatehouse_auth.settings import GitHubProvider, LocalProvider, OpenIDProvider, Providers
from gatehouse_service.guard import is_public, resolve

# Pieces of which URLs go wrong.
PIECES = [
    "https://", "http://", "https:", "//", "/", "\\", "@", ":", "#", "?", ";", ",", "'", "%", "%2e", "%2f",
    "%40",
    "%00", "%61", "[::1]", "[", "]", "localhost", "LOCALHOST", "127.0.0.1", "127.1", "0x7f000001",
    "0177.0.0.1",
    "2130706433", "localhost.evil.example", ".", "..", "evil.example", "a.example", "xn--", "user", ":80",
    ":0",
    ":99999", ":443", "cb", "callback", "\t", "\n", "\r", " ", "\0", "é", "。", "\uff11",
    "cursor://anysphere.cursor-mcp",
]  # fmt: skip
URLS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=10).map("".join)
HTTPS = URLS.map("https://{}".format)
LOOPBACK = st.builds(
    "http://{}{}".format, st.sampled_from(["localhost", "127.0.0.1", "[::1]"]), URLS
)  # fmt: skip
ANY_URL = URLS | HTTPS | LOOPBACK
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | ANY_URL,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def said(names: list[str], values: st.SearchStrategy[object]) -> st.SearchStrategy[bytes]:
    """JSON objects with some of these members."""
    return st.dictionaries(st.sampled_from(names), values, max_size=6).map(lambda d: json.dumps(d).encode())


# covers: redirect-match, untrusted-bytes
@given(ANY_URL)
@example("https://ex%61mple.test/cb")
@example("https://a.example;sandbox/cb")
@example("https://a.example,b.example/cb")
@example("https://x[::1]/cb")
def test_what_may_be_registered_leads_where_a_person_reads(uri: str) -> None:
    if redirects.acceptable(uri, promises.CUSTOM):
        promises.where_a_browser_goes(uri)


# covers: redirect-match, untrusted-bytes
@given(LOOPBACK, LOOPBACK)
@example("http://localhost:1/cb", "http://localhost:2/cb")
def test_what_matches_goes_to_the_same_place_save_for_the_port(registered: str, requested: str) -> None:
    if redirects.acceptable(registered, frozenset()) and redirects.matches(registered, requested):
        ours, theirs = URL(registered), URL(requested)
        ours.port = theirs.port = ""
        assert ours.href == theirs.href
        assert registered == requested or ours.hostname in ("localhost", "127.0.0.1", "[::1]")


# covers: redirect-match
@given(
    st.sampled_from(["localhost", "127.0.0.1", "[::1]"]),
    st.lists(st.sampled_from(["/", "cb", "?", "%20", "@", ":1"])).map("".join).map("/{}".format),
    st.integers(1, 65535),
)
def test_a_loopback_address_may_have_any_port(host: str, path: str, port: int) -> None:
    assert redirects.acceptable(f"http://{host}{path}", frozenset())
    assert redirects.matches(f"http://{host}{path}", f"http://{host}:{port}{path}")
    assert redirects.matches(f"http://{host}:{port}{path}", f"http://{host}{path}")


# covers: cimd, untrusted-bytes
@given(HTTPS)
@example("https://ex%61mple.test/x")
def test_a_documents_url_names_the_host_that_is_asked(url: str) -> None:
    if is_document_url(url):
        parsed = URL(url)
        assert redirects.host(url) == parsed.host == urlsplit(url).hostname
        assert not parsed.port


# covers: resource
@given(ANY_URL)
def test_only_a_lone_slash_at_the_root_is_overlooked(resource: str) -> None:
    same = canonical(resource)
    assert same in (resource, resource.removesuffix("/"))
    assert canonical(same) == same or same.endswith("/")
    if same != resource:
        assert resource.split("/")[3:] == [""]


# covers: resource
@given(ANY_URL)
def test_no_other_resource_is_a_services(resource: str) -> None:
    known = {promises.SETTINGS.resources[name].resource: name for name in promises.SETTINGS.resources}
    assert service_of(promises.SETTINGS, resource) == known.get(resource)


# covers: untrusted-bytes
@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_basic_credentials_name_whom_they_were_made_for(name: str, secret: str) -> None:
    credentials = b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode()).decode()
    assert presented_client_id({"authorization": f"Basic {credentials}"}, Parameters([])) == name


# covers: identity-headers, untrusted-bytes
@given(st.text(st.characters()))
def test_a_header_carries_any_text_and_nothing_else(text: str) -> None:
    value = promises.header_value(text)
    assert value.isascii()
    assert value.isprintable()
    assert "," not in value
    assert value == value.strip()
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert unquote(value) == text


# covers: untrusted-bytes
@given(st.text() | st.ip_addresses().map(str) | st.ip_addresses().map("{}%eth0".format))
def test_any_forwarded_address_has_a_key(address: str) -> None:
    key = address_key(address)
    if key != "unknown":
        assert (
            ipaddress.ip_address(address) in ipaddress.ip_network(key) or key in address or "ffff" in address
        )


# covers: untrusted-bytes
@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_a_network_of_an_ipv6_client_has_one_key(address: ipaddress.IPv6Address, suffix: int) -> None:
    other = ipaddress.IPv6Address(int(address) >> 64 << 64 | suffix)
    assume(address.ipv4_mapped is None and other.ipv4_mapped is None)
    assert address_key(str(address)) == address_key(str(other))


@given(st.floats(1, 50), st.floats(0.1, 50), st.lists(st.floats(0, 3), min_size=1, max_size=80))
def test_a_bucket_never_gives_more_than_its_rate(burst: float, rate: float, pauses: list[float]) -> None:
    now = 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatehouse_auth.limits.time.monotonic", lambda: now)
        limiter, given_out = Limiter(Rate(burst, rate)), 0
        for pause in pauses:
            now += pause
            wait = limiter.take("k")
            assert wait >= 0
            given_out += wait == 0
            if wait:
                assert wait <= 1 / rate + 1e-6
        assert given_out <= burst + (now - 1000.0) * rate + 1e-6


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
def test_buckets_do_not_grow_without_bound(keys: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "KEYS", 3)
        limiter = Limiter(Rate(2, 0.001))
        for key in keys:
            limiter.take(key)
            limiter.give_back(key)
            assert len(limiter._buckets) <= 3


PROVIDERS = Providers(
    local=LocalProvider(),
    github=GitHubProvider(client_id="x"),
    oidc={"okta": OpenIDProvider(issuer="https://okta.example.test", client_id="x")},
)


# covers: allow-lists
@given(st.text(), st.sampled_from(["local", "github", "okta"]))
def test_no_local_name_is_anybody_elses(name: str, provider: str) -> None:
    qualified = PROVIDERS.qualified(f"{provider}:{name}")
    if provider == "local":
        assert qualified == name
    else:
        assert qualified.startswith(f"{provider}:")
    if ":" not in name:
        assert PROVIDERS.qualified(name) == name


SPECIAL = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.168.0.0/16",
    "192.0.0.0/24", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
]  # fmt: skip
INNER = st.one_of([st.ip_addresses(network=network) for network in SPECIAL])


# covers: cimd-ssrf
@given(INNER)
def test_no_form_of_an_inner_address_is_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    forms = [address] + [
        ipaddress.IPv6Address(bits)
        for bits in (
            number,
            0xFFFF << 32 | number,
            0xFFFF << 48 | number,
            0x64FF9B << 96 | number,
            0x64FF9B0001 << 80 | number,
            0x2002 << 112 | number << 80 | 1,
            0x20010000 << 96 | number ^ 0xFFFFFFFF,
            0x20010000 << 96 | number << 64,
        )
    ]
    assert not any(is_public(str(form)) for form in forms)


# covers: cimd-ssrf
@given(INNER, st.sampled_from(["{}", "0x{:x}", "0{:o}"]))
def test_a_number_for_an_address_is_asked_about_as_the_address(
    address: ipaddress.IPv4Address, form: str
) -> None:
    # Resolvers take these for addresses; what they make of them is judged.
    try:
        found = asyncio.run(resolve(form.format(int(address)), 443))
    except OSError:
        return
    assert not all(map(is_public, found))


# covers: untrusted-bytes
@given(st.binary() | st.text(".=-_abcAB09", max_size=60).map(str.encode))
def test_no_bytes_are_a_token(data: bytes) -> None:
    promises.token(data)


CLAIMS = [
    "iss",
    "aud",
    "sub",
    "client_id",
    "scope",
    "jti",
    "iat",
    "exp",
    "idp",
    "name",
    "email",
    "groups",
    "nbf",
]


# covers: untrusted-bytes
@given(st.binary() | said(CLAIMS, JSON))
def test_our_signature_alone_makes_no_token(data: bytes) -> None:
    promises.token_claims(data)


# covers: untrusted-bytes
@given(st.binary(min_size=3, max_size=30))
def test_a_changed_token_is_none(data: bytes) -> None:
    promises.token_changed(data)


FORM = st.lists(
    st.tuples(
        st.sampled_from(["grant_type", "client_id", "resource", "redirect_uri", "client_name", "x"]),
        st.text(),
    )
).map(lambda pairs: "&".join(f"{name}={quote_plus(value)}" for name, value in pairs).encode())


# covers: untrusted-bytes
@given(st.binary() | FORM)
def test_forms(data: bytes) -> None:
    promises.form(data)


# covers: untrusted-bytes
@given(st.binary() | st.binary().map(lambda data: b"Basic " + b64encode(data)))
@example(b"Basic \xe9")
def test_authorization_headers(data: bytes) -> None:
    promises.authorization(data)


METADATA = [
    "client_id", "client_name", "redirect_uris", "grant_types", "response_types",
    "token_endpoint_auth_method",
    "jwks", "jwks_uri", "contacts", "software_id", "client_uri", "scope", "extra",
]  # fmt: skip
LIKELY = st.lists(ANY_URL, max_size=3) | st.sampled_from(
    ["none", "private_key_jwt", ["authorization_code"], ["code"], "https://a.example/x"]
)


# covers: dcr, untrusted-bytes
@given(st.binary() | said(METADATA, JSON | LIKELY))
@example(b'{"redirect_uris":["https://a.example/"],"software_id":"\\ud800"}')
@example(b'{"redirect_uris":["https://a.example/"],"extra":NaN}')
@example(b'{"redirect_uris":["https://a.example/"],"contacts":["\\ud800"]}')
def test_registrations(data: bytes) -> None:
    promises.registration(data)


# covers: cimd, untrusted-bytes
@given(
    st.binary()
    | said(METADATA, JSON | LIKELY)
    | said(METADATA, JSON | LIKELY).map(
        lambda data: data[:-1] + f',"client_id":"{promises.DOCUMENT_URL}","client_name":"x"}}'.encode()
    )
)
def test_documents(data: bytes) -> None:
    promises.document(data)


# covers: untrusted-bytes
@given(st.binary() | said([*CLAIMS, "nonce", "azp", "at_hash", "email_verified", "preferred_username"], JSON))
@example(b'{"name":"\\ud800"}')
@example(b'{"groups":["\\ud800"],"email":"\\ud800","email_verified":true}')
def test_id_tokens(data: bytes) -> None:
    promises.id_token(data)
    promises.id_token_claims(data)


LINES = st.sampled_from(
    [
        b"GET /internal/check/echo HTTP/1.1\r\n", b"GET /internal/check/echo HTTP/1.0\r\n",
        b"HEAD / HTTP/1.1\r\n",
        b"POST /internal/check/echo HTTP/1.1\r\n", b"Host: 127.0.0.1:18000\r\n", b"Host: evil.example\r\n",
        b"Authorization: Bearer {token}\r\n", b"Authorization: Bearer x\r\n", b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
        b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"\r\n", b"\r\n", b"abc",
        b"3\r\nabc\r\n0\r\n\r\n", b"\n",
        b"GET /internal/check/echo HTTP/1.1\r\nHost: 127.0.0.1:18000\r\n"
        b"Authorization: Bearer {token}\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
)  # fmt: skip


# covers: untrusted-bytes
@given(st.lists(LINES | st.binary(max_size=4), max_size=14).map(b"".join))
def test_how_bytes_are_divided_changes_no_answer(data: bytes) -> None:
    promises.http(data)
