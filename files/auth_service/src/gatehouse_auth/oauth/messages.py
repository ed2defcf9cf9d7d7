"""Requests as Authlib reads them, and replies as it gives them."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from authlib.oauth2.rfc6749 import (
    InvalidClientError,
    InvalidRequestError,
    OAuth2Error,
    OAuth2Payload,
    OAuth2Request,
)
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion

from gatehouse_auth import redirects
from gatehouse_auth.store import Code, Device, Family, UsedCode

# RFC 6749 appendix A: every parameter of ours is of printable ASCII; grant and response types, of fewer.
PRINTABLE = re.compile(r"[\x20-\x7e]*\Z")
TYPE = re.compile(r"[A-Za-z0-9:._/ -]{1,200}\Z")
FIELDS = 64


class InvalidTargetError(OAuth2Error):
    """The resource is unknown, missing, or not the one that was granted (RFC 8707 section 2)."""

    error = "invalid_target"


@dataclass
class Reply:
    """A response before it has a framework. `location` is what Authlib's extensions change."""

    status: int
    body: Any
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def location(self) -> str:
        """Where the browser is sent, or ''."""
        return next((value for name, value in self.headers if name == "Location"), "")

    @location.setter
    def location(self, value: str) -> None:
        self.headers = [pair for pair in self.headers if pair[0] != "Location"] + [("Location", value)]


class Parameters(OAuth2Payload):
    """Parameters of a query or a form."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._lists: dict[str, list[str]] = {}
        for name, value in pairs:
            self._lists.setdefault(name, []).append(value)

    @classmethod
    def parse(cls, encoded: bytes) -> "Parameters":
        """Parameters of an `application/x-www-form-urlencoded` text; empty values count as absent
        (RFC 6749 section 3.1)."""
        try:
            return cls(parse_qsl(encoded.decode("ascii"), errors="strict", max_num_fields=FIELDS))
        except ValueError:
            raise InvalidRequestError("The parameters are not form-encoded.") from None

    @property
    def data(self) -> dict[str, str]:
        """The first value of each parameter."""
        return {name: values[0] for name, values in self._lists.items()}

    @property
    def datalist(self) -> dict[str, list[str]]:
        """All values of each parameter."""
        return self._lists

    def check(self) -> None:
        """Refuse what no client sends: a parameter twice, or characters that the grammar does not have.

        Raises:
            InvalidRequestError: says which parameter.
        """
        for name, values in self._lists.items():
            if len(values) > 1 and name != "resource":
                raise InvalidRequestError("A parameter is given twice.")
            if name != "client_name" and not all(PRINTABLE.match(value) for value in values):
                raise InvalidRequestError("A parameter has characters that are not allowed.")
        # Authlib quotes it in an error, whose text has a grammar of its own (RFC 6749 section 5.2).
        if not all(redirects.URI.match(uri) for uri in self._lists.get("redirect_uri", ())):
            raise InvalidRequestError("The parameter redirect_uri is malformed.")
        for name in ("grant_type", "response_type"):
            if name in self._lists and not TYPE.match(self._lists[name][0]):
                raise InvalidRequestError(f"The parameter {name} is malformed.")


def parsed_json(body: bytes) -> object:
    """What a body says in JSON that can be said again: without numbers and halves of characters that Python
    reads and nobody else does.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        value: object = json.loads(body)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise InvalidRequestError("The request must be JSON.") from None
    return value


class Request(OAuth2Request):
    """An OAuth request, as Authlib takes it."""

    def __init__(self, method: str, uri: str, headers: Mapping[str, str], payload: Parameters) -> None:
        super().__init__(method, uri, headers={"Authorization": headers.get("authorization", "")})
        self.payload: Parameters = payload
        # Whether the client has proved by a key who it is.
        self.proven = False
        # What is known of the code or the refresh token that it brings.
        self.held: Code | UsedCode | Device | Family | None = None

    @property
    def form(self) -> dict[str, str]:
        """The form's parameters."""
        return self.payload.data


def claimed(assertion: str, name: str) -> str | None:
    """A claim of an assertion. Unverified: it says only whose keys to use."""
    try:
        _, claims = JWTBearerClientAssertion().extract_assertion(assertion)
    except (InvalidClientError, ValueError, RecursionError):
        return None
    value = claims.get(name)
    return value if isinstance(value, str) else None


def presented_client_id(headers: Mapping[str, str], payload: Parameters) -> str | None:
    """The client that a request to the token or revocation endpoint says it comes from.

    Raises:
        InvalidRequestError: the header and the form name two clients (RFC 6749 section 2.3).
    """
    named: str | None = payload.data.get("client_id")
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if "client_assertion" in payload.data:
        if scheme or "client_secret" in payload.data:
            raise InvalidRequestError("The request authenticates in two ways.")
        asserted = claimed(payload.data["client_assertion"], "sub")
        if named is not None and named != asserted:
            raise InvalidRequestError("The request names two clients.")
        return asserted
    if scheme.lower() != "basic":
        return named
    try:
        basic = unquote_plus(base64.b64decode(credentials, validate=True).decode().partition(":")[0])
    except ValueError:  # not base64, not ASCII, or not UTF-8
        raise InvalidRequestError("The Authorization header is malformed.") from None
    if named is not None and named != basic:
        raise InvalidRequestError("The request names two clients.")
    if "client_secret" in payload.data:
        raise InvalidRequestError("The request authenticates in two ways.")
    return basic
