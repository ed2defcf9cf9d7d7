"""The authorization server for one request: Authlib's, on what was loaded for this request alone."""

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from authlib.oauth2.drafts.id_jag import IDJAGGrant
from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    UnauthorizedClientError,
    grants,
)
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge, create_s256_code_challenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant
from authlib.oauth2.rfc9207 import IssuerParameter
from joserfc.jwk import Key

from gatehouse_auth.identity.base import Identity
from gatehouse_auth.oauth.assertions import LIFETIME_SECONDS, METHOD, TEXT_LIMIT
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.oauth.messages import InvalidTargetError, Reply, Request
from gatehouse_auth.oauth.tokens import TokenGenerator
from gatehouse_auth.settings import Settings
from gatehouse_auth.store import DEVICE_SECONDS, POLL_SECONDS, Code, Device, Family

CONFIDENTIAL_METHODS = ["client_secret_basic", "client_secret_post", METHOD]
AUTH_METHODS = ["none", *CONFIDENTIAL_METHODS]
OFFLINE_ACCESS = "offline_access"


class Transaction(AuthorizationServer):
    """One request's server: knows the one client that the request names."""

    def __init__(self, settings: Settings, client: Client | None) -> None:
        super().__init__(scopes_supported=scopes_supported(settings))
        self.settings = settings
        self.client = client
        self.code: Code | None = None
        self.device: Device | None = None
        self.polled_too_soon = False
        # Of an assertion about a person: the key it is signed by, the service, who it is about, and its name.
        self.vouching: Key | None = None
        self.service = ""
        self.vouched: Callable[[dict[str, Any]], Identity | None] = lambda _: None
        self.used_assertion = ("", 0)
        self.family: Family | None = None
        self.identity: Identity | None = None
        self.issued_code: str | None = None
        self.issuer_parameter = Issuer(settings.issuer)
        self.register_extension(self.issuer_parameter)
        self.register_grant(AuthorizationCodeGrant, [S256Challenge(required=True), ResourceIndicator()])
        self.register_grant(RefreshTokenGrant)
        self.register_grant(ClientCredentialsGrant)
        self.register_grant(DeviceGrant)
        self.register_grant(AssertionGrant)
        self.register_client_auth_method(METHOD, lambda _, request: client if request.proven else None)

    def query_client(self, client_id: str) -> Client | None:
        """The client, if it is the one that was loaded."""
        return self.client if self.client is not None and self.client.client_id == client_id else None

    def create_oauth2_request(self, request: Request) -> Request:
        """Requests come as Authlib takes them."""
        return request

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Authlib's signals have no listener here."""

    def save_token(self, token: dict[str, Any], request: Request) -> None:
        """Nothing is saved while deciding; the commit does it."""

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Reply:
        """A reply, for the route to send."""
        return Reply(status, body, list(headers))

    def handle_error_response(self, request: Request, error: OAuth2Error) -> Reply:
        """An OAuth error. Failed client authentication is always 401, with a challenge where the client
        used the header (RFC 6749 section 5.2)."""
        if isinstance(error, InvalidClientError):
            error.status_code = 401
        reply: Reply = super().handle_error_response(request, error)
        if not (request is not None and request.headers.get("Authorization")):
            reply.headers = [pair for pair in reply.headers if pair[0] != "WWW-Authenticate"]
        return reply

    def authorization_error(self, request: Request, error: OAuth2Error) -> Reply:
        """An error that goes back to the client through the browser, with `state` and `iss`."""
        error.state = request.payload.state
        reply = self.handle_error_response(request, error)
        self.issuer_parameter.add_issuer_parameter(self, reply)
        return reply


class Issuer(IssuerParameter):
    """`iss` on every authorization response (RFC 9207)."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def get_issuer(self) -> str:
        """Our issuer identifier."""
        return self._issuer


class S256Challenge(CodeChallenge):
    """PKCE (RFC 7636) as OAuth 2.1 wants it: always, for every client, and S256 alone."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)
    CODE_CHALLENGE_METHODS: ClassVar[dict[str, Any]] = {
        "S256": lambda verifier, challenge: hmac.compare_digest(
            create_s256_code_challenge(verifier), challenge
        )
    }

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Refuse a request without a challenge, or whose method is not S256 (`plain` is the default)."""
        if not grant.request.payload.data.get("code_challenge"):
            raise InvalidRequestError("Missing code_challenge: PKCE with S256 is required.")
        if grant.request.payload.data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("code_challenge_method must be S256.")
        super().validate_code_challenge(grant, redirect_uri)

    def get_authorization_code_challenge_method(self, authorization_code: "CodeCredential") -> str:
        """The only method there is."""
        return "S256"


class ResourceIndicator:
    """`resource` (RFC 8707) at the authorization and the token endpoint; scopes are the resource's."""

    def __call__(self, grant: Any) -> None:
        grant.register_hook("before_validate_authorization_request_payload", self.resolve)
        grant.register_hook("after_validate_token_request", self.compare)

    def resolve(self, grant: Any, redirect_uri: str) -> None:
        """Find the service that is asked for."""
        grant.request.service = requested_service(grant.server.settings, grant.request)

    def compare(self, grant: Any, result: None) -> None:
        """A resource at the token endpoint has to be the one that was granted."""
        same_resource(grant.request, grant.request.authorization_code.code.grant.resource)


def requested_service(settings: Settings, request: Request) -> str:
    """The one service that a request names, or the one that the configuration takes where it names none.

    Raises:
        InvalidTargetError: it names several, or one that is not known, or none and there is no other way.
    """
    asked = request.payload.datalist.get("resource", [])
    if not asked and settings.default_resource:
        return settings.default_resource
    if len(asked) != 1:
        raise InvalidTargetError("Name one resource: the URL of the MCP server.")
    service = service_of(settings, asked[0])
    if service is None:
        raise InvalidTargetError("The resource is not known here.")
    return service


def granted_scope(settings: Settings, service: str, asked: str) -> str:
    """The scopes of a new grant. Those that opening the service needs come with every grant: clients are
    bad at asking for more later.

    Raises:
        InvalidScopeError: a scope that the service does not have.
    """
    baseline, wanted = settings.resources[service].scopes, set(asked.split())
    if not wanted <= {*baseline, OFFLINE_ACCESS}:
        raise InvalidScopeError("The resource does not have such a scope.")
    return " ".join([*baseline, *sorted(wanted - set(baseline))])


def same_resource(request: Request, granted: str) -> None:
    """Raises InvalidTargetError for a resource that is not the granted one; leaving it out is fine."""
    asked = request.payload.datalist.get("resource", [])
    if any(canonical(resource) != canonical(granted) for resource in asked):
        raise InvalidTargetError("The resource is not the one that was granted.")


def canonical(resource: str) -> str:
    """A lone slash at the root counts as nothing; everything else counts."""
    return resource[:-1] if resource.endswith("/") and resource.count("/") == 3 else resource


def service_of(settings: Settings, resource: str) -> str | None:
    """The service whose resource this is."""
    wanted = canonical(resource)
    return next(
        (name for name, known in settings.resources.items() if canonical(known.resource) == wanted), None
    )


def scopes_supported(settings: Settings) -> list[str]:
    """Every scope of every service, and `offline_access`, which clients ask for and which changes nothing."""
    return sorted(
        {scope for known in settings.resources.values() for scope in known.scopes} | {OFFLINE_ACCESS}
    )


@dataclass(frozen=True, slots=True)
class CodeCredential:
    """An authorization code, as Authlib asks about it."""

    code: Code
    compared: bool

    @property
    def code_challenge(self) -> str:
        """The PKCE challenge."""
        return self.code.code_challenge

    def get_redirect_uri(self) -> str:
        """What a `redirect_uri` is compared with. OAuth 2.1 has none here any more: PKCE binds the code. Yet
        a client of OAuth 2.0 that sends it has to send the right one (section 10.2)."""
        return self.code.redirect_uri if self.compared else ""

    def get_scope(self) -> str:
        """What was granted."""
        return self.code.grant.scope


@dataclass(frozen=True, slots=True)
class RefreshCredential:
    """A refresh token's grant, as Authlib asks about it."""

    family: Family

    def check_client(self, client: Client) -> bool:
        """Whether the token is this client's."""
        return self.family.grant.client_id == client.client_id

    def get_scope(self) -> str:
        """What was granted."""
        return self.family.grant.scope


class AuthorizationCodeGrant(grants.AuthorizationCodeGrant):
    """The authorization code grant (RFC 6749 section 4.1)."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS

    def validate_requested_scope(self) -> None:
        """Known scopes that are not the service's are refused."""
        super().validate_requested_scope()
        self.request.granted_scope = granted_scope(
            self.server.settings, self.request.service, self.request.payload.scope or ""
        )

    def save_authorization_code(self, code: str, request: Request) -> None:
        """Hand the code over; the commit saves it."""
        self.server.issued_code = code

    def query_authorization_code(self, code: str, client: Client) -> CodeCredential | None:
        """The code, if this client got it."""
        held = self.server.code
        if held is None or held.grant.client_id != client.client_id:
            return None
        return CodeCredential(held, compared=self.request.payload.redirect_uri is not None)

    def delete_authorization_code(self, authorization_code: CodeCredential) -> None:
        """The commit marks it as used."""

    def authenticate_user(self, authorization_code: CodeCredential) -> Identity | None:
        """The person, if they may still use the service."""
        return self.server.identity  # type: ignore[no-any-return]


class RefreshTokenGrant(grants.RefreshTokenGrant):
    """The refresh token grant (RFC 6749 section 6), with rotation (RFC 9700 section 4.14)."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True

    def validate_token_request(self) -> None:
        """As Authlib does, and the resource must be the grant's."""
        super().validate_token_request()
        same_resource(self.request, self.server.family.grant.resource)

    def authenticate_refresh_token(self, refresh_token: str) -> RefreshCredential | None:
        """The token's grant, if it has not ended."""
        return RefreshCredential(self.server.family) if self.server.family is not None else None

    def authenticate_user(self, refresh_token: RefreshCredential) -> Identity:
        """The person, if they may still use the service."""
        if self.server.identity is None:
            raise InvalidGrantError("The user may no longer use this service.")
        return self.server.identity  # type: ignore[no-any-return]

    def revoke_old_credential(self, refresh_token: RefreshCredential) -> None:
        """The commit rotates it."""


class ClientCredentialsGrant(grants.ClientCredentialsGrant):
    """The client credentials grant (RFC 6749 section 4.4), for machines that the inventory names."""

    TOKEN_ENDPOINT_AUTH_METHODS = CONFIDENTIAL_METHODS

    def validate_requested_scope(self) -> None:
        """The service has to be named, has to let the client in, and has to have the scopes."""
        service = requested_service(self.server.settings, self.request)
        if self.server.identity is None:
            raise UnauthorizedClientError("The client may not use this service by itself.")
        super().validate_requested_scope()
        asked = (self.request.payload.scope or "").replace(OFFLINE_ACCESS, "")
        self.request.granted_scope = granted_scope(self.server.settings, service, asked)

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """An access token and nothing to refresh it with: the client can always ask again (section 4.4.3)."""
        token = self.generate_token(
            user=self.server.identity, scope=self.request.granted_scope, include_refresh_token=False
        )
        return 200, token, self.TOKEN_RESPONSE_HEADER


class AssertionGrant(IDJAGGrant):
    """The JWT bearer grant with an Identity Assertion JWT Authorization Grant (ID-JAG): the person's own
    provider vouches for them (draft-ietf-oauth-identity-assertion-authz-grant)."""

    TOKEN_ENDPOINT_AUTH_METHODS = CONFIDENTIAL_METHODS

    def get_audiences(self) -> list[str]:
        """This server; there is no other name for it here."""
        return [self.server.settings.issuer]

    def resolve_issuer_key(self, issuer: str, headers: dict[str, Any]) -> Key:
        """The provider's key that was found beforehand."""
        key: Key | None = self.server.vouching
        if key is None:
            raise InvalidGrantError("The assertion's key is not one of its issuer's.")
        return key

    def check_jti(self, claims: dict[str, Any], jti: Any) -> bool:
        """Note the assertion's name; whether it was used before, Redis knows."""
        seconds = int(claims["exp"] - time.time()) + self.LEEWAY
        if not isinstance(jti, str) or not 0 < len(jti) <= TEXT_LIMIT or seconds > LIFETIME_SECONDS:
            return False
        self.server.used_assertion = (jti, max(1, seconds))
        return True

    def validate_requested_scope(self) -> None:
        """The scopes are the service's; they are judged once it is known what the assertion allows."""

    def authenticate_user(self, subject: str) -> Identity | None:
        """The person, if they may use the service. The subject of one tenant among several is nobody here."""
        claims = self.request.id_jag_claims
        if "tenant" in claims:
            return None
        settings, service = self.server.settings, self.server.service
        self.request.granted_scope = granted_scope(
            settings, service, (self.request.scope or "").replace(OFFLINE_ACCESS, "")
        )
        # These come with every grant, so a provider that withholds one of them withholds the service.
        needed = settings.resources[service].scopes
        if "scope" in claims and not set(needed) <= set(claims["scope"].split()):
            raise InvalidScopeError("The assertion does not allow what the service needs.")
        return self.server.vouched(claims)  # type: ignore[no-any-return]

    def check_id_jag_permission(self, client: Client, user: Identity, scopes: list[str]) -> bool:
        """The person's own permission is all there is to it."""
        return True

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """An access token; to go on, the app brings another assertion."""
        token = self.generate_token(
            user=self.request.user, scope=self.request.granted_scope, include_refresh_token=False
        )
        return 200, token, self.TOKEN_RESPONSE_HEADER


class DeviceAuthorization(DeviceAuthorizationEndpoint):
    """The device authorization endpoint (RFC 8628 section 3.1)."""

    CLIENT_AUTH_METHODS = AUTH_METHODS
    EXPIRES_IN = DEVICE_SECONDS
    INTERVAL = POLL_SECONDS

    def __init__(self) -> None:
        super().__init__(None)
        self.device: Device | None = None
        self.device_code = ""

    def authenticate_client(self, request: Request) -> Client:
        """The client, if it registered for this grant; the service has to be named."""
        client: Client = super().authenticate_client(request)
        if not client.check_grant_type(DeviceGrant.GRANT_TYPE):
            raise UnauthorizedClientError("The client did not register for the device grant.")
        request.service = requested_service(self.server.settings, request)
        request.granted_scope = granted_scope(
            self.server.settings, request.service, request.payload.scope or ""
        )
        self.device = Device(client.client_id, client.name, request.service, request.granted_scope, "")
        return client

    def generate_device_code(self) -> str:
        """The secret that the device keeps to itself."""
        return new_secret()

    def get_verification_uri(self) -> str:
        """Where the person enters what the device shows."""
        return f"{self.server.settings.issuer}/activate"

    def save_device_credential(self, client_id: str, scope: str, data: dict[str, Any]) -> None:
        """Hand the device over; the commit saves it."""
        if self.device is not None:
            self.device = replace(self.device, user_code=data["user_code"])
        self.device_code = data["device_code"]


@dataclass(frozen=True, slots=True)
class DeviceCredential:
    """A device code, as Authlib asks about it. One that is not known is one whose time is over."""

    device: Device | None
    client_id: str

    def get_client_id(self) -> str:
        """Whose it is."""
        return self.client_id

    def get_scope(self) -> str:
        """What was asked for."""
        return self.device.scope if self.device is not None else ""

    def get_user_code(self) -> str:
        """What the device shows."""
        return self.device.user_code if self.device is not None else ""

    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.device is None


class DeviceGrant(DeviceCodeGrant):
    """The device grant (RFC 8628 section 3.4)."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS

    def query_device_credential(self, device_code: str) -> DeviceCredential:
        """What is known of the code; another client's is as unknown as one that never was."""
        device, client = self.server.device, self.server.client
        own = device if device is not None and device.client_id == client.client_id else None
        return DeviceCredential(own, client.client_id)

    def query_user_grant(self, user_code: str) -> tuple[Identity | None, bool] | None:
        """What the person decided, if they have."""
        device = self.server.device
        if device.denied:
            return None, False
        if device.grant is None:
            return None
        same_resource(self.request, device.grant.resource)
        if self.server.identity is None:
            raise InvalidGrantError("The user may no longer use this service.")
        return self.server.identity, True

    def should_slow_down(self, credential: DeviceCredential) -> bool:
        """Whether the device asks too often."""
        return self.server.polled_too_soon  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class RevocableToken:
    """A token that the revocation endpoint was given, and what revoking it means. `seconds` is how long an
    access token of it can still be good."""

    client_id: str
    identifier: str
    seconds: int

    def check_client(self, client: Client) -> bool:
        """Whether the token is this client's."""
        return self.client_id == client.client_id


class Revocation(RevocationEndpoint):
    """Token revocation (RFC 7009). A hint that is wrong or unknown changes nothing (section 2.1)."""

    CLIENT_AUTH_METHODS = AUTH_METHODS

    def __init__(self, token: RevocableToken | None) -> None:
        super().__init__(None)
        self._token = token
        self.revoked: RevocableToken | None = None

    def check_params(self, request: Request, client: Client) -> None:
        """A token has to be there."""
        if "token" not in request.form:
            raise InvalidRequestError("Missing token in request.")

    def query_token(self, token_string: str, token_type_hint: str | None) -> RevocableToken | None:
        """The token that was found beforehand."""
        return self._token

    def revoke_token(self, token: RevocableToken, request: Request) -> None:
        """Hand the token over; the commit revokes it."""
        self.revoked = token


class Introspection(IntrospectionEndpoint):
    """Token introspection (RFC 7662), for clients that prove who they are (section 2.1), about their own
    tokens alone: any other is as unknown as one that never was (section 4)."""

    CLIENT_AUTH_METHODS = CONFIDENTIAL_METHODS

    def __init__(self, token: dict[str, Any] | None) -> None:
        super().__init__(None)
        self._token = token

    def check_params(self, request: Request, client: Client) -> None:
        """A token has to be there. A hint that is wrong or unknown changes nothing."""
        if "token" not in request.form:
            raise InvalidRequestError("Missing token in request.")

    def query_token(self, token_string: str, token_type_hint: str | None) -> dict[str, Any] | None:
        """What was found of an active token beforehand."""
        return self._token

    def check_permission(self, token: dict[str, Any], client: Client, request: Request) -> bool:
        """Whether the token is this client's."""
        return bool(token["client_id"] == client.client_id)

    def create_introspection_payload(self, token: dict[str, Any] | None) -> dict[str, Any]:
        """The response (section 2.2)."""
        return {"active": False} if token is None else {"active": True, **token}


def token_generator(
    settings: Settings, keyring: Any, family: Family, refresh_token: str | None
) -> TokenGenerator:
    """Makes the tokens of a grant."""
    return TokenGenerator(
        settings.issuer,
        keyring,
        settings.access_token_seconds,
        audience=family.grant.resource,
        family=family.family,
        auth_time=family.grant.auth_time,
        refresh_token=refresh_token,
    )


def new_secret(size: int = 32) -> str:
    """A secret of `size` random bytes, as text."""
    return secrets.token_urlsafe(size)
