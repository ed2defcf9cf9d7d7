"""Access tokens: JWTs as of RFC 9068, made and checked by Authlib's implementation."""

import base64
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from authlib.oauth2.rfc6750 import InvalidTokenError
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator, JWTBearerTokenValidator
from authlib.oauth2.rfc9068.claims import JWTAccessTokenClaimsValidator
from joserfc.errors import BadSignatureError, InvalidClaimError, InvalidPayloadError, JoseError
from joserfc.jwk import ECKey, KeySet
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from gatehouse_auth.identity.base import Identity
from gatehouse_auth.keyring import Keyring
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.settings import PROBE

ALGORITHM = "ES256"
# Clocks of edge hosts differ by no more than this many seconds.
LEEWAY_SECONDS = 60
# Claims that may well be empty.
MAY_BE_EMPTY = ("scope", "groups")
# A key has one header, as we write it; others could be written as well.
HEADERS = 16
TEXTS = ("aud", "sub", "client_id", "scope", "jti", "fam", "idp", "name", "email")


class InvalidAccessToken(Exception):  # noqa: N818 - it is an answer: 401 invalid_token
    """The token is not one of ours for this service, or its time is over; `reason` is for the audit log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class IssuedLater(InvalidAccessToken):
    """The token is one of ours, from a host whose clock is ahead of this one's by more than the leeway."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a good access token says. `expires` is in epoch seconds."""

    identity: Identity
    client_id: str
    scope: str
    token_id: str
    family: str
    expires: float

    @property
    def is_probe(self) -> bool:
        """Whether the health probe made it, with the signing key itself."""
        return self.identity.user == PROBE and self.client_id == PROBE


class TokenGenerator(JWTBearerTokenGenerator):
    """Makes the tokens of one grant."""

    def __init__(
        self,
        issuer: str,
        keyring: Keyring,
        seconds: int,
        *,
        audience: str,
        family: str,
        auth_time: int,
        refresh_token: str | None = None,
    ) -> None:
        super().__init__(
            issuer,
            ALGORITHM,
            refresh_token_generator=(lambda **_: refresh_token) if refresh_token else None,
            expires_generator=seconds,
        )
        self._keyring = keyring
        self._audience = audience
        self._family = family
        self._auth_time = auth_time

    def get_jwks(self) -> KeySet:
        """The key that signs."""
        return self._keyring.current

    def get_audiences(self, client: Client, user: Identity, scope: str) -> str:
        """The service's resource identifier (RFC 8707)."""
        return self._audience

    def get_auth_time(self, user: Identity) -> int:
        """When the person signed in."""
        return self._auth_time

    def get_jti(self, client: Client, grant_type: str, user: Identity, scope: str) -> str:
        """A name for the token, by which it can be revoked."""
        return secrets.token_urlsafe(16)

    def get_extra_claims(self, client: Client, grant_type: str, user: Identity, scope: str) -> dict[str, Any]:
        """Who the person is, so that a check needs no look-up (RFC 9068 section 2.2.3)."""
        return {
            "idp": user.provider,
            "name": user.name,
            "email": user.email,
            "groups": list(user.groups),
            "fam": self._family,
        }


class TokenVerifier(JWTBearerTokenValidator):
    """Checks tokens for one service.

    The first token under a header is judged by Authlib from beginning to end. What that says of the header
    holds for every token with the very same one, so that of those only signature and claims are judged, by
    the same code that Authlib calls.
    """

    def __init__(self, issuer: str, keyring: Keyring, audience: str) -> None:
        super().__init__(issuer, audience)
        self._keyring = keyring
        # The kid of each header, encoded, of which a token was found good.
        self._headers: dict[bytes, str] = {}
        essential = ("exp", "sub", "client_id", "iat", "jti")
        self._registry = JWTAccessTokenClaimsValidator(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            **{name: {"essential": True} for name in essential},
            **{name: {"essential": False} for name in ("auth_time", "acr", "amr", "roles", "entitlements")},
            **{name: {"essential": False, "allow_blank": True} for name in MAY_BE_EMPTY},
        )

    def get_jwks(self) -> Any:
        """A function that finds the key, so that the header is judged before anything else."""
        return self._key

    def _key(self, token: Any) -> ECKey:
        header = token.headers()
        # Authlib accepts a token without `typ`; RFC 9068 section 4 does not.
        if str(header.get("typ", "")).lower() not in ("at+jwt", "application/at+jwt"):
            raise JoseError("typ")
        kid = header.get("kid")
        key = self._keyring.verifying(kid) if isinstance(kid, str) and header["alg"] == ALGORITHM else None
        if key is None:
            raise JoseError("kid")
        return key

    def verify(self, token: str) -> AccessToken:
        """The token's content.

        Raises:
            IssuedLater: it was signed by us, and not yet.
            InvalidAccessToken: any check of RFC 9068 section 4 failed.
        """
        try:
            claims = self._claims(token.encode())
            texts = [claims[name] for name in TEXTS] + claims["groups"]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("claims")
            return AccessToken(
                Identity(
                    claims["idp"], claims["sub"], claims["name"], claims["email"], tuple(claims["groups"])
                ),
                claims["client_id"],
                claims["scope"],
                claims["jti"],
                claims["fam"],
                float(claims["exp"]),
            )
        except (JoseError, InvalidTokenError) as error:
            fault = error.__cause__ if isinstance(error, InvalidTokenError) else error
            if isinstance(fault, InvalidClaimError) and fault.claim == "iat":
                raise IssuedLater("issued_later") from None
            raise InvalidAccessToken(fault.error or fault.description) from None
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidAccessToken(type(error).__name__) from None

    def _claims(self, token: bytes) -> dict[str, Any]:
        head, _, signature = token.rpartition(b".")
        header, _, payload = head.partition(b".")
        kid = self._headers.get(header)
        if kid is None:
            return self._claims_by_authlib(token)
        key = self._keyring.verifying(kid)
        if key is None:
            raise JoseError("kid")
        if not JWSRegistry.algorithms[ALGORITHM].verify(head, urlsafe_b64decode(signature), key):
            raise BadSignatureError
        claims = json.loads(urlsafe_b64decode(payload))
        if not isinstance(claims, dict):
            raise InvalidPayloadError
        self._registry.validate(claims)
        return claims

    def _claims_by_authlib(self, token: bytes) -> dict[str, Any]:
        claims = self.authenticate_token(token)
        for optional in MAY_BE_EMPTY:
            claims.options[optional]["allow_blank"] = True
        claims.validate(leeway=LEEWAY_SECONDS)
        if set(claims.header) == {"alg", "typ", "kid"} and len(self._headers) < HEADERS:
            self._headers[token.partition(b".")[0]] = claims.header["kid"]
        return dict(claims)


def probe_token(issuer: str, keyring: Keyring, audience: str, scope: str) -> str:
    """An access token of 60 seconds for the health probe, which asks a service through the front door."""
    generator = TokenGenerator(issuer, keyring, 60, audience=audience, family="", auth_time=int(time.time()))
    answer = generator.generate("probe", Client(PROBE, {}), user=Identity("probe", PROBE), scope=scope)
    return str(answer["access_token"])


def audience_of(token: str) -> str:
    """The audience that a token claims, or ''. Unverified: it says only which verifier to ask."""
    try:
        payload = token.split(".")[1]
        audience = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["aud"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ""
    return audience if isinstance(audience, str) else ""
