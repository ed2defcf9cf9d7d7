"""Clients that prove who they are with a key of their own: `private_key_jwt` (RFC 7523 section 2.2, OpenID
Connect Core section 9), on Authlib's implementation.
"""

import time
from collections.abc import Iterable
from typing import Any

from authlib.oauth2.rfc6749 import InvalidClientError
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import Key

from gatehouse_auth.oauth.keys import ALGORITHMS, matching
from gatehouse_auth.oauth.messages import Request

METHOD = "private_key_jwt"
# An assertion is remembered until it expires, so it has to, soon enough.
LIFETIME_SECONDS = 3600
TEXT_LIMIT = 256


class UnknownKeyError(InvalidClientError):
    """No key of the client's can have made the signature: perhaps its keys have changed."""


class Assertion(JWTBearerClientAssertion):
    """Judges one assertion by the client's keys. `used` is what must not be used again, and for how many
    seconds."""

    CLIENT_AUTH_METHOD = METHOD

    def __init__(self, issuer: str, keys: Iterable[Key]) -> None:
        super().__init__()
        self._issuer = issuer
        self._keys = keys
        self.used = ("", 0)

    def get_audiences(self) -> list[str]:
        """This server, as clients name it."""
        return [self._issuer, f"{self._issuer}/token"]

    def resolve_client_public_key(self, client: Any) -> None:
        """The key depends on the assertion's header; see `process_assertion_claims`."""
        return

    def process_assertion_claims(self, assertion: str, resolve_key: None) -> Any:
        """As Authlib does, with the one key and algorithm that the header names."""
        try:
            header = jws.extract_compact(assertion.encode()).headers()
            algorithm = header["alg"]
            if algorithm not in ALGORITHMS:
                raise InvalidClientError(description="The assertion's algorithm is not accepted.")
            key = matching(self._keys, algorithm, header.get("kid"))
            if key is None:
                raise UnknownKeyError(description="No key of the client's fits the assertion.")
            claims = jwt.decode(assertion, key, algorithms=[algorithm]).claims
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise InvalidClientError(description="The assertion is not valid.") from error
        self.verify_claims(claims)
        return claims

    def validate_jti(self, claims: dict[str, Any], jti: Any) -> bool:
        """Note the assertion's name; whether it was used before, Redis knows."""
        seconds = int(claims["exp"] - time.time()) + self.leeway
        if not isinstance(jti, str) or not 0 < len(jti) <= TEXT_LIMIT or seconds > LIFETIME_SECONDS:
            return False
        self.used = (jti, max(1, seconds))
        return True


def prove(assertion: Assertion, client: Any, request: Request) -> None:
    """Judge a request's assertion.

    Raises:
        InvalidClientError: it is not the client's, or not for this server, or its time is over.
    """
    if assertion(lambda client_id: client if client.client_id == client_id else None, request) is None:
        raise InvalidClientError(description="The client_assertion_type is not known.")
