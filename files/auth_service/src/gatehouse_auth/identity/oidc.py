"""Any OpenID provider, found by discovery (OpenID Connect Core 1.0 and Discovery 1.0), asked at sign-in
and, where it gives offline access, again on a schedule.

Of what the provider gives only the refresh token outlives the sign-in. A person is `<provider>:<sub>`,
since nothing else that a provider says of a person stays the same; groups are `<provider>:<group>`, and
only those that an allow-list names leave this service. The provider is trusted for who people are, not for
being well: its answers are bounded in size and time, and one that makes no sense is an outage.
"""

import asyncio
import hashlib
import json
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx
from authlib.oidc.core import CodeIDToken
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import Key

from gatehouse_auth.identity.base import (
    CONTROL,
    WITHDREW,
    Identity,
    ProviderUnavailable,
    SignInDenied,
    Vouched,
    code_of,
    wait_of,
)
from gatehouse_auth.oauth.keys import ALGORITHMS, matching, public_keys
from gatehouse_auth.settings import OpenIDProvider

LEEWAY_SECONDS = 60
ANSWER_SECONDS = 10.0
ANSWER_LIMIT = 1024 * 1024
# How long the provider's description and keys are taken as they are; how soon a failure is tried again, and
# how often a key that is not known lets the keys be read again.
FRESH_SECONDS = 3600.0
PAUSE_SECONDS = 5.0
SUBJECT = re.compile(r"[\x21-\x7e]{1,255}\Z")
GROUPS = 1000
TEXT = 256
SCOPES = ("openid", "profile", "email")
OFFLINE = "offline_access"
# Trouble in which no request can have reached the provider.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Description:
    """What discovery says of a provider, as far as it is needed (Discovery section 3)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    end_session_endpoint: str
    basic: bool
    algorithms: tuple[str, ...]
    names_issuer: bool
    scopes: tuple[str, ...]


class OpenID:
    """The authorization code flow, and who the person is."""

    def __init__(
        self,
        name: str,
        settings: OpenIDProvider,
        secret: str,
        callback: str,
        http: httpx.AsyncClient,
        *,
        offline: bool = False,
    ) -> None:
        """With `offline`, offline access is asked for where the provider has it."""
        self.title = settings.title or urlsplit(settings.issuer).netloc
        self.realm = f"{settings.issuer} {settings.client_id}"
        self.replaces = True
        self._offline = offline
        self._name = name
        self._settings = settings
        self._secret = secret
        self._callback = callback
        self._http = http
        self._followed: frozenset[str] = frozenset()
        self._description = _Kept(self._describe)
        self._keys = _Kept(self._fetch_keys)

    async def assertion_key(self, assertion: str) -> Key | None:
        """The key of the provider's that can have signed an assertion.

        Raises:
            ProviderUnavailable: its keys cannot be had.
        """
        try:
            header = jws.extract_compact(assertion.encode()).headers()
        except (JoseError, ValueError):
            return None
        return await self._key(header)

    async def _key(self, header: Mapping[str, Any]) -> Key | None:
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in (await self._description.get()).algorithms:
            return None
        found = matching(await self._keys.get(), algorithm, kid)
        return found or matching(await self._keys.again(), algorithm, kid)

    def follow(self, groups: Iterable[str]) -> None:
        """Let these groups, and no others, be seen outside."""
        self._followed = frozenset(groups)

    def current(self, identity: Identity) -> Identity | None:
        """What was true when last asked, with the groups that count now."""
        return replace(identity, groups=tuple(group for group in identity.groups if group in self._followed))

    async def authorization_url(self, state: str, verifier: str) -> str:
        """The provider's authorization endpoint with our request (Core section 3.1.2.1, RFC 7636)."""
        description = await self._description.get()
        endpoint = description.authorization_endpoint
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._callback,
            "scope": " ".join(description.scopes),
            "state": state,
            "nonce": _nonce(verifier),
            "code_challenge": _digest(verifier),
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def sign_out_url(self) -> str:
        """The provider's end-session endpoint (RP-Initiated Logout 1.0 section 2), if it has one."""
        try:
            endpoint = (await self._description.get()).end_session_endpoint
        except ProviderUnavailable:
            return ""
        query = urlencode({"client_id": self._settings.client_id})
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}" if endpoint else ""

    async def finish(self, answer: Mapping[str, str], verifier: str) -> Vouched:
        """Who the provider says this is.

        Raises:
            SignInDenied: there is no code, or not a good one, or another provider has sent it.
            ProviderUnavailable: the provider does not answer, or says what no provider of OpenID says.
        """
        description = await self._description.get()
        # Before the code goes anywhere: whose it is (RFC 9207 section 2.4).
        issuer = answer.get("iss")
        if issuer != self._settings.issuer and (issuer is not None or description.names_issuer):
            raise SignInDenied("the answer came from somewhere else")
        form = {
            "grant_type": "authorization_code",
            "code": code_of(answer),
            "redirect_uri": self._callback,
            "code_verifier": verifier,
        }
        tokens = await self._tokens(description, form, "the sign-in expired")
        claims = await self._id_token(tokens, _nonce(verifier))
        refresh = tokens.get("refresh_token")
        # Without offline access a refresh token ends with the person's session at the provider, which says
        # nothing about their access here (Core section 11).
        kept = self._offline and OFFLINE in description.scopes and isinstance(refresh, str)
        identity = self.identity(await self._completed(description, tokens, claims))
        return Vouched(identity, str(refresh) if kept else "")

    async def again(
        self, known: Identity, credential: str, keep: Callable[[str], Awaitable[None]]
    ) -> Identity:
        """Who the provider says this is now (Core section 12), by its refresh token.

        Raises:
            SignInDenied: the refresh token is no longer good.
            ProviderUnavailable: the provider does not answer, or says what no provider of OpenID says.
        """
        description = await self._description.get()
        form = {"grant_type": "refresh_token", "refresh_token": credential}
        tokens = await self._tokens(description, form, WITHDREW)
        successor = tokens.get("refresh_token")
        if isinstance(successor, str) and successor not in ("", credential):
            await keep(successor)
        claims: dict[str, Any] = {"sub": known.user.removeprefix(f"{self._name}:")}
        whole = "id_token" in tokens
        if whole:
            subject = claims["sub"]
            claims = await self._id_token(tokens)
            if claims.get("sub") != subject:
                raise ProviderUnavailable("id_token: sub")
        claims = await self._completed(description, tokens, claims)
        identity = self.identity(claims)
        if whole:
            return identity
        # What only an ID token tells, and none came (Core section 12.2), is as it was.
        return replace(
            identity,
            name=identity.name if "name" in claims else known.name,
            email=identity.email if "email" in claims else known.email,
            groups=identity.groups if self._settings.groups_claim in claims else known.groups,
        )

    async def _completed(
        self, description: Description, tokens: Mapping[str, Any], claims: dict[str, Any]
    ) -> dict[str, Any]:
        """The claims, with what the userinfo endpoint knows besides."""
        wanted = {"name", "email", self._settings.groups_claim}
        access_token = tokens.get("access_token")
        if not wanted <= claims.keys() and description.userinfo_endpoint and isinstance(access_token, str):
            return {**await self._userinfo(description, access_token, claims["sub"]), **claims}
        return claims

    def identity(self, claims: Mapping[str, Any]) -> Identity:
        """The person whom the provider's verified claims are about.

        Raises:
            ProviderUnavailable: they name nobody.
        """
        subject, groups = claims["sub"], claims.get(self._settings.groups_claim)
        if not isinstance(subject, str) or not SUBJECT.match(subject):
            raise ProviderUnavailable("id_token: sub")
        groups = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        named = sorted({_exact(group) for group in groups} - {""})[:GROUPS]
        email = _exact(claims.get("email"))
        # An address that the person has merely typed must open no allow-list. Some providers write a string.
        if not self._settings.trust_emails and claims.get("email_verified") not in (True, "true"):
            email = ""
        return Identity(
            self._name,
            f"{self._name}:{subject}",
            _text(claims.get("name")) or _text(claims.get("preferred_username")) or email or subject,
            email,
            tuple(f"{self._name}:{group}" for group in named),
        )

    async def _tokens(self, description: Description, form: dict[str, str], refusal: str) -> dict[str, Any]:
        """The token response (Core sections 3.1.3 and 12); `refusal` says what `invalid_grant` means."""
        basic = None
        if description.basic:
            # Both parts are form-encoded first (RFC 6749 section 2.3.1).
            basic = httpx.BasicAuth(quote_plus(self._settings.client_id), quote_plus(self._secret))
        else:
            form |= {"client_id": self._settings.client_id, "client_secret": self._secret}
        try:
            status, tokens, wait = await self._ask("POST", description.token_endpoint, data=form, auth=basic)
        except ProviderUnavailable as error:
            sent = not isinstance(error.__cause__, NOT_SENT)
            raise ProviderUnavailable(str(error), spent=sent) from error
        if status == 400 and tokens.get("error") == "invalid_grant":
            raise SignInDenied(refusal)
        if status != 200 or not tokens:
            refused = 400 <= status < 500 or status == 503
            raise ProviderUnavailable(f"token endpoint: {status}", wait, spent=not refused)
        return tokens

    async def _id_token(self, tokens: Mapping[str, Any], nonce: str | None = None) -> dict[str, Any]:
        """The ID token's claims, once everything about it is right (Core sections 3.1.3.7 and 12.2)."""
        token = tokens.get("id_token")
        if not isinstance(token, str):
            raise ProviderUnavailable("id_token: missing")
        try:
            header = jws.extract_compact(token.encode()).headers()
            key = await self._key(header)
            if key is None:
                raise ProviderUnavailable("id_token: alg or kid")
            decoded = jwt.decode(token, key, algorithms=[header["alg"]])
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {
                    "iss": {"essential": True, "value": self._settings.issuer},
                    "aud": {"essential": True, "value": self._settings.client_id},
                },
                {
                    "nonce": nonce,
                    "client_id": self._settings.client_id,
                    "access_token": tokens.get("access_token"),
                },
            )
            claims.validate(leeway=LEEWAY_SECONDS)
        except JoseError as error:
            raise ProviderUnavailable(f"id_token: {error.error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ProviderUnavailable(f"id_token: {type(error).__name__}") from None
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and "azp" not in claims:
            raise ProviderUnavailable("id_token: azp")
        return dict(claims)

    async def _userinfo(self, description: Description, access_token: str, subject: str) -> dict[str, Any]:
        """What the ID token left out (Core section 5.3)."""
        status, claims, wait = await self._ask(
            "GET", description.userinfo_endpoint, headers={"Authorization": f"Bearer {access_token}"}
        )
        if status != 200 or claims.get("sub") != subject:
            raise ProviderUnavailable(f"userinfo endpoint: {status}", wait)
        return claims

    async def _describe(self) -> Description:
        """Discovery (Discovery section 4)."""
        issuer = self._settings.issuer
        status, found, _ = await self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if status != 200 or found.get("issuer") != issuer:
            raise ProviderUnavailable("discovery: not this issuer's")
        supported = found.get("id_token_signing_alg_values_supported")
        algorithms = tuple(name for name in ALGORITHMS if isinstance(supported, list) and name in supported)
        methods = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if not isinstance(methods, list) or not {"client_secret_basic", "client_secret_post"} & {*methods}:
            raise ProviderUnavailable("discovery: token_endpoint_auth_methods_supported")
        offered = found.get("scopes_supported")
        offers_more = self._offline and isinstance(offered, list) and OFFLINE in offered
        return Description(
            authorization_endpoint=self._endpoint(found, "authorization_endpoint"),
            token_endpoint=self._endpoint(found, "token_endpoint"),
            jwks_uri=self._endpoint(found, "jwks_uri"),
            userinfo_endpoint=self._endpoint(found, "userinfo_endpoint", optional=True),
            end_session_endpoint=self._endpoint(found, "end_session_endpoint", optional=True),
            basic="client_secret_basic" in methods,
            algorithms=algorithms or ("RS256",),
            names_issuer=found.get("authorization_response_iss_parameter_supported") is True,
            scopes=self._settings.scopes or (*SCOPES, *((OFFLINE,) if offers_more else ())),
        )

    def _endpoint(self, found: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
        url = found.get(name)
        if url is None and optional:
            return ""
        # No clear text, unless the whole provider is on this machine (settings allow that for no other).
        scheme = urlsplit(self._settings.issuer).scheme
        if not isinstance(url, str) or not re.match(r"https?://[\x21-\x7e]+\Z", url) or "#" in url:
            raise ProviderUnavailable(f"discovery: {name}")
        if url.startswith("http:") and scheme != "http":
            raise ProviderUnavailable(f"discovery: {name}")
        return url

    async def _fetch_keys(self) -> list[Key]:
        status, found, _ = await self._ask("GET", (await self._description.get()).jwks_uri)
        if status != 200:
            raise ProviderUnavailable("jwks")
        try:
            return public_keys(found)
        except ValueError:
            raise ProviderUnavailable("jwks") from None

    async def _ask(self, method: str, url: str, **request: Any) -> tuple[int, dict[str, Any], int]:
        """A JSON answer, whatever its status, and how long to wait; an answer that is none counts as empty.

        Raises:
            ProviderUnavailable: no answer in time, or more of it than can be.
        """
        body = bytearray()
        request["headers"] = {"Accept": "application/json", **request.get("headers", {})}
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self._http.stream(method, url, **request) as response,
            ):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > ANSWER_LIMIT:
                        raise ProviderUnavailable("an answer is too large")
            content = json.loads(body)
        except (httpx.HTTPError, TimeoutError) as error:
            raise ProviderUnavailable(type(error).__name__) from error
        except (ValueError, RecursionError):
            content = None
        return response.status_code, content if isinstance(content, dict) else {}, wait_of(response.headers)


class _Kept(Generic[T]):
    """Something of the provider's that is fetched when needed and kept for a while. The last good one stays
    in use when it cannot be fetched; a failure is everyone's for a moment, so that nobody queues for it."""

    def __init__(self, fetch: Callable[[], Awaitable[T]]) -> None:
        self._fetch = fetch
        self._value: T | None = None
        self._fetched = self._tried = -FRESH_SECONDS
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        """The thing, fresh enough."""
        return await self._within(FRESH_SECONDS)

    async def again(self) -> T:
        """The thing, fetched anew unless it just was."""
        return await self._within(PAUSE_SECONDS)

    async def _within(self, seconds: float) -> T:
        if self._value is not None and time.monotonic() - self._fetched < seconds:
            return self._value
        async with self._lock:
            if time.monotonic() - self._tried >= PAUSE_SECONDS:
                try:
                    self._value = await self._fetch()
                    self._fetched = time.monotonic()
                except ProviderUnavailable:
                    if self._value is None:
                        raise
                finally:
                    self._tried = time.monotonic()
            if self._value is None:
                raise ProviderUnavailable("did not answer a moment ago")
            return self._value


def _digest(text: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def _nonce(verifier: str) -> str:
    """What ties the ID token to this browser's sign-in. The verifier is such a secret already, and cannot be
    found from this."""
    return _digest(f"nonce {verifier}")


def _text(value: Any) -> str:
    """A claim as it can be shown and sent on."""
    return CONTROL.sub(" ", value)[:TEXT].strip() if isinstance(value, str) else ""


def _exact(value: Any) -> str:
    """A claim that opens something: as it is or not at all, since tidied up it could be another's."""
    return value if isinstance(value, str) and value == _text(value) else ""
