"""Redirect URIs: which may be registered, and which match (RFC 6749 section 3.1.2, RFC 8252, RFC 9700)."""

import ipaddress
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

# What a URI may consist of (RFC 3986), less the fragment; so no spaces, quotes, backslashes, or controls.
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+\Z")
# `http` is for these three only, as whole hosts: `localhost.evil.example` is none of them.
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost)(?::(\d{1,5}))?((?:[/?].*)?)\Z")
# A host by name. Browsers take it for an address when its last label is a number.
NAME = re.compile(r"(?:[A-Za-z0-9_-]+\.)*[A-Za-z][A-Za-z0-9_-]*\.?\Z")
LIMIT = 2048


def acceptable(uri: object, custom: frozenset[str]) -> bool:
    """Whether a client may register this redirect URI. Custom schemes are accepted by exact value."""
    if not isinstance(uri, str) or len(uri) > LIMIT or not URI.match(uri):
        return False
    if uri in custom or is_loopback(uri):
        return True
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme == "https" and port != 0 and is_plain_host(re.sub(r":[0-9]*\Z", "", parts.netloc))


def is_plain_host(text: str) -> bool:
    """Whether browsers go to the host as it is written: they decode others, and read numbers as addresses
    (URL Standard, host parsing)."""
    if NAME.match(text):
        return True
    try:
        if text.startswith("["):
            ipaddress.IPv6Address(text[1:-1])
            return text.endswith("]") and "%" not in text
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def is_loopback(uri: str) -> bool:
    """Whether the redirect goes to a program on the person's own machine, whichever it is."""
    match = LOOPBACK.match(uri)
    return match is not None and (match[2] is None or 0 < int(match[2]) < 65536)


def matches(registered: str, requested: str) -> bool:
    """Exact, save that a loopback address may have any port (RFC 8252 section 7.3)."""
    if registered == requested:
        return True
    if not is_loopback(requested) or not URI.match(requested):
        return False
    ours, theirs = LOOPBACK.match(registered), LOOPBACK.match(requested)
    return ours is not None and theirs is not None and (ours[1], ours[3]) == (theirs[1], theirs[3])


def extended(uri: str, location: str) -> str:
    """A redirect URI with the parameters that the location has besides. Authlib, which has added them, writes
    the whole query anew; the client's own part has to stay as it is (RFC 6749 section 3.1.2)."""
    own = len(parse_qsl(urlsplit(uri).query, keep_blank_values=True))
    added = parse_qsl(urlsplit(location).query, keep_blank_values=True)[own:]
    _, asked, query = uri.partition("?")
    return f"{uri}{'&' if query else '' if asked else '?'}{urlencode(added)}"


def is_web(client_id: str) -> bool:
    """Whether a client is known by the address of its own description."""
    return client_id.startswith("https://")


def host(uri: str) -> str:
    """What a person should read before agreeing: the host, or the whole of a custom-scheme URI."""
    parts = urlsplit(uri)
    return parts.netloc if parts.scheme in ("https", "http") else uri


def form_action(uri: str) -> str:
    """The CSP source that lets a form's answer redirect there (some browsers check redirects as well)."""
    parts = urlsplit(uri)
    if parts.scheme not in ("https", "http"):
        return f"{parts.scheme}:"
    # A CSP host source cannot be an IPv6 address.
    return "http:" if "[" in parts.netloc else f"{parts.scheme}://{parts.netloc}"
