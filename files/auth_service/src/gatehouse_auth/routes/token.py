"""The token endpoint (RFC 6749 section 3.2), revocation (RFC 7009) and introspection (RFC 7662)."""

import asyncio
import base64
import hashlib
import hmac
import re
import time
from typing import Any

from authlib.oauth2.rfc6749 import InvalidGrantError, OAuth2Error
from fastapi import APIRouter, Request
from fastapi.responses import Response

from gatehouse_auth.context import Context, context_of
from gatehouse_auth.identity.base import Identity, ProviderUnavailable
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.oauth.messages import InvalidTargetError, Reply, claimed, presented_client_id
from gatehouse_auth.oauth.messages import Request as OAuthRequest
from gatehouse_auth.oauth.server import (
    AssertionGrant,
    DeviceAuthorization,
    DeviceGrant,
    Introspection,
    RevocableToken,
    Revocation,
    Transaction,
    new_secret,
    service_of,
    token_generator,
)
from gatehouse_auth.oauth.tokens import (
    AccessToken,
    InvalidAccessToken,
    TokenGenerator,
    TokenVerifier,
    audience_of,
)
from gatehouse_auth.routes import described
from gatehouse_auth.routes.responses import form, limit, send
from gatehouse_auth.settings import ACCESS_TOKEN_SECONDS_MOST
from gatehouse_auth.store import Code, Device, Family, StoreUnavailable, UsedCode, digest

router = APIRouter()
REFRESH = re.compile(r"ghr_([A-Za-z0-9_-]{22})([A-Za-z0-9_-]{43})\Z")


@router.post("/token", **described.TOKEN)
async def token(request: Request) -> Response:
    """Trade a code or a refresh token for tokens."""
    limit(request, "token")
    context = context_of(request)
    asked, client, refusal = await _asked(request, context)
    if asked is None:
        return send(refusal)
    transaction = Transaction(context.settings, client)
    if asked.payload.grant_type == "refresh_token":
        reply = await _refresh(context, transaction, asked)
    elif asked.payload.grant_type == "client_credentials":
        reply = _machine(context, transaction, asked)
    elif asked.payload.grant_type == AssertionGrant.GRANT_TYPE:
        reply = await _vouched(context, transaction, asked)
    elif asked.payload.grant_type == DeviceGrant.GRANT_TYPE:
        reply = await _device(context, transaction, asked)
    else:
        reply = await _exchange(context, transaction, asked)
    family, identity = transaction.family, transaction.identity
    body = reply.body if isinstance(reply.body, dict) else dict(reply.body)
    context.log.event(
        "token",
        outcome="allow" if reply.status == 200 else "deny",
        grant=asked.payload.grant_type if reply.status == 200 else None,
        client=client.client_id if client else None,
        user=family.grant.identity.user if family else identity.user if identity else None,
        service=family.grant.service if family else None,
        reason=body.get("error"),
    )
    return send(reply)


@router.post("/device_authorization", **described.DEVICE)
async def device_authorization(request: Request) -> Response:
    """Give a device a code to show to its person (RFC 8628 section 3.1)."""
    limit(request, "authorize")
    context = context_of(request)
    asked, client, refusal = await _asked(request, context)
    if asked is None:
        return send(refusal)
    transaction = Transaction(context.settings, client)
    endpoint = DeviceAuthorization()
    transaction.register_endpoint(endpoint)
    reply: Reply = transaction.create_endpoint_response("device_authorization", asked)
    device = endpoint.device if reply.status == 200 else None
    if device is not None and not await context.store.save_device(endpoint.device_code, device):
        raise StoreUnavailable("the user code is taken")
    context.log.event(
        "device",
        outcome="allow" if reply.status == 200 else "deny",
        client=client.client_id if client else None,
        service=device.service if device else None,
    )
    return send(reply)


@router.post("/revoke", **described.REVOKE)
async def revoke(request: Request) -> Response:
    """Revoke a token (RFC 7009): a refresh token with all that its grant gave, an access token alone."""
    limit(request, "token")
    context = context_of(request)
    asked, client, refusal = await _asked(request, context)
    if asked is None:
        return send(refusal)
    endpoint = Revocation(await _revocable(context, asked.form.get("token", "")))
    transaction = Transaction(context.settings, client)
    transaction.register_endpoint(endpoint)
    reply: Reply = transaction.create_endpoint_response("revocation", asked)
    if endpoint.revoked is not None:
        await context.revoke(endpoint.revoked.identifier, endpoint.revoked.seconds)
    context.log.event(
        "revocation",
        outcome="allow" if reply.status == 200 else "deny",
        client=client.client_id if client else None,
        found=endpoint.revoked is not None,
    )
    return send(reply)


@router.post("/introspect", **described.INTROSPECT)
async def introspect(request: Request) -> Response:
    """Say what a token is worth now (RFC 7662): active if the check or the token endpoint would take it."""
    limit(request, "token")
    context = context_of(request)
    asked, client, refusal = await _asked(request, context)
    if asked is None:
        return send(refusal)
    transaction = Transaction(context.settings, client)
    transaction.register_endpoint(Introspection(await _active(context, asked.form.get("token", ""))))
    reply: Reply = transaction.create_endpoint_response("introspection", asked)
    context.log.event(
        "introspection",
        outcome="allow" if reply.status == 200 else "deny",
        client=client.client_id if client else None,
        active=dict(reply.body).get("active"),
    )
    return send(reply)


async def _asked(request: Request, context: Context) -> tuple[OAuthRequest | None, Client | None, Reply]:
    """The request as Authlib takes it with the client that it names, or a refusal."""
    try:
        parameters = await form(request)
        parameters.check()
        client_id = presented_client_id(request.headers, parameters)
    except OAuth2Error as error:
        return None, None, Reply(*error())
    asked = OAuthRequest("POST", context.settings.issuer + request.url.path, request.headers, parameters)
    # Both at once; a code or a token of another client is as unknown as one that never was.
    client, held = await asyncio.gather(context.clients.get(client_id), _held(context, asked))
    asked.held = held if client is not None else None
    if "client_assertion" in parameters.data:
        try:
            await context.clients.prove(client, asked)
        except OAuth2Error as error:
            context.log.event(
                "client", outcome="deny", client=(client_id or "")[:100], reason=error.description
            )
            return None, None, Transaction(context.settings, client).handle_error_response(asked, error)
    return asked, client, Reply(500, {})


async def _held(context: Context, asked: OAuthRequest) -> Code | UsedCode | Device | Family | None:
    """What is known of the code or the refresh token that a request brings."""
    grant, fields = asked.payload.grant_type, asked.form
    if grant == "refresh_token":
        parts = REFRESH.match(fields.get("refresh_token", ""))
        return None if parts is None else await context.store.family(_family_id(parts[1]))
    if grant == DeviceGrant.GRANT_TYPE and fields.get("device_code"):
        return await context.store.device(fields["device_code"])
    if grant == "authorization_code" and fields.get("code"):
        return await context.store.code(fields["code"])
    return None


async def _exchange(context: Context, transaction: Transaction, asked: OAuthRequest) -> Reply:
    """The authorization code grant, and whatever grant there is not."""
    code, held = asked.form.get("code", ""), asked.held
    family_secret, secret = new_secret(16), new_secret()
    if isinstance(held, Code):
        transaction.code = held
        transaction.identity = context.entitled(held.grant.service, held.grant.identity)
        transaction.family = Family(_family_id(family_secret), held.grant)
        transaction.register_token_generator(
            "default",
            token_generator(
                context.settings, context.keyring, transaction.family, f"ghr_{family_secret}{secret}"
            ),
        )
    reply: Reply = transaction.create_token_response(asked)
    if isinstance(held, UsedCode):
        # Authlib has refused it, for this reason or another: a code that is shown twice has been copied.
        if dict(reply.body).get("error") == "invalid_grant":
            await _replayed(context, transaction, held)
        return reply
    if reply.status != 200 or transaction.family is None:
        return reply
    refresh_digest = digest(secret) if "refresh_token" in reply.body else None
    outcome = await context.store.redeem_code(code, transaction.family, refresh_digest)
    return await _redeemed(context, transaction, asked, outcome, reply)


async def _device(context: Context, transaction: Transaction, asked: OAuthRequest) -> Reply:
    """The device grant. It ends as the authorization code grant does; until then the device asks and asks."""
    code, held = asked.form.get("device_code", ""), asked.held
    if isinstance(held, UsedCode):
        await _replayed(context, transaction, held)
        return _invalid_grant(transaction, asked)
    family_secret, secret = new_secret(16), new_secret()
    transaction.device = held if isinstance(held, Device) else None
    if isinstance(held, Device) and held.grant is None and not held.denied:
        transaction.polled_too_soon = await context.store.polled_too_soon(code)
    if isinstance(held, Device) and held.grant is not None:
        transaction.identity = context.entitled(held.grant.service, held.grant.identity)
        transaction.family = Family(_family_id(family_secret), held.grant)
        transaction.register_token_generator(
            "default",
            token_generator(
                context.settings, context.keyring, transaction.family, f"ghr_{family_secret}{secret}"
            ),
        )
    reply: Reply = transaction.create_token_response(asked)
    if reply.status != 200 or transaction.family is None:
        return reply
    refresh_digest = digest(secret) if "refresh_token" in reply.body else None
    outcome = await context.store.redeem_code(code, transaction.family, refresh_digest, "device")
    return await _redeemed(context, transaction, asked, outcome, reply)


async def _redeemed(
    context: Context,
    transaction: Transaction,
    asked: OAuthRequest,
    outcome: UsedCode | list[str],
    reply: Reply,
) -> Reply:
    """The reply, unless the code had been used meanwhile."""
    if isinstance(outcome, UsedCode):
        if outcome.family:
            await _replayed(context, transaction, outcome)
        return _invalid_grant(transaction, asked)
    for crowded in outcome:
        await context.revoke(crowded)
        context.log.event(
            "crowded_out",
            user=transaction.family.grant.identity.user if transaction.family else None,
            family=crowded,
        )
    return reply


async def _vouched(context: Context, transaction: Transaction, asked: OAuthRequest) -> Reply:
    """The JWT bearer grant with the word of a person's provider. All that is kept is that it was used."""
    assertion = asked.form.get("assertion", "")
    issuer = claimed(assertion, "iss") or ""
    provider = context.vouching(issuer)
    named = asked.payload.datalist.get("resource", [])
    wanted = {*named, *filter(None, [claimed(assertion, "resource")])}
    services = {service_of(context.settings, resource) for resource in wanted}
    service = services.pop() if len(services) == 1 else None
    if provider is None or service is None:
        error = InvalidGrantError("The assertion's issuer is not trusted here.")
        return transaction.handle_error_response(
            asked, error if provider is None else InvalidTargetError("Name one resource that is known here.")
        )
    transaction.service, transaction.vouching = service, await provider.assertion_key(assertion)

    def vouched(claims: dict[str, Any]) -> Identity | None:
        # The provider may have vouched for other services alone; the claim is a text or a list of them.
        allowed = claims.get("resource", [])
        allowed = [allowed] if isinstance(allowed, str) else allowed
        if "resource" in claims and not (
            isinstance(allowed, list)
            and any(
                isinstance(name, str) and service_of(context.settings, name) == service for name in allowed
            )
        ):
            return None
        try:
            transaction.identity = context.entitled(service, provider.identity(claims))
        except ProviderUnavailable:
            return None
        return transaction.identity

    transaction.vouched = vouched
    transaction.register_token_generator("default", _without_family(context, service))
    reply: Reply = transaction.create_token_response(asked)
    name, seconds = transaction.used_assertion
    if reply.status == 200 and not await context.store.first_use(f"id-jag {issuer}", name, seconds):
        return _invalid_grant(transaction, asked)
    return reply


def _without_family(context: Context, service: str) -> TokenGenerator:
    """Makes tokens that nothing can be refreshed with."""
    return TokenGenerator(
        context.settings.issuer,
        context.keyring,
        context.settings.access_token_seconds,
        audience=context.settings.resources[service].resource,
        family="",
        auth_time=int(time.time()),
    )


def _machine(context: Context, transaction: Transaction, asked: OAuthRequest) -> Reply:
    """The client credentials grant. Nothing is kept of it."""
    named = asked.payload.datalist.get("resource", [])
    default = context.settings.default_resource or None
    service = service_of(context.settings, named[0]) if len(named) == 1 else None if named else default
    identity = context.machines.identity(transaction.client.client_id) if transaction.client else None
    if service is not None and identity is not None:
        transaction.identity = context.entitled(service, identity)
        transaction.register_token_generator("default", _without_family(context, service))
    reply: Reply = transaction.create_token_response(asked)
    return reply


async def _refresh(context: Context, transaction: Transaction, asked: OAuthRequest) -> Reply:
    """The refresh token grant. The presented secret is judged by the commit, together with the rotation."""
    parts = REFRESH.match(asked.form.get("refresh_token", ""))
    if parts is None or transaction.client is None:
        refused: Reply = transaction.create_token_response(asked)
        return refused
    family_secret, secret = parts.groups()
    family = asked.held if isinstance(asked.held, Family) else None
    salt = new_secret()
    if family is not None:
        transaction.family = family
        transaction.identity = context.entitled(family.grant.service, family.grant.identity)
        transaction.register_token_generator(
            "default",
            token_generator(
                context.settings, context.keyring, family, f"ghr_{family_secret}{_successor(secret, salt)}"
            ),
        )
    reply: Reply = transaction.create_token_response(asked)
    if reply.status != 200 or family is None:
        return reply
    outcome, counting = await context.store.rotate_refresh(
        family, digest(secret), digest(_successor(secret, salt)), salt
    )
    if outcome == "replayed":
        await _replayed(context, transaction, UsedCode(family.family))
    if outcome != "done":
        return _invalid_grant(transaction, asked)
    reply.body["refresh_token"] = f"ghr_{family_secret}{_successor(secret, counting)}"
    return reply


def _family_id(family_secret: str) -> str:
    """What a grant is called where others can see it. Who shows the secret part has held one of its
    refresh tokens."""
    return digest(family_secret)[:32]


def _successor(secret: str, salt: str) -> str:
    """The secret of the refresh token that follows. Only salts and digests are stored, and still whoever
    holds the one before can be given the same successor again."""
    derived = hmac.new(secret.encode(), salt.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(derived).rstrip(b"=").decode()


def _invalid_grant(transaction: Transaction, asked: OAuthRequest) -> Reply:
    return transaction.handle_error_response(asked, InvalidGrantError())


async def _replayed(context: Context, transaction: Transaction, used: UsedCode) -> None:
    """Revoke what a replayed code or refresh token had given (RFC 9700 sections 2.1.1 and 4.14)."""
    await context.revoke(used.family)
    client: Any = transaction.client
    context.log.event("replay", "warning", client=client.client_id, family=used.family)


async def _revocable(context: Context, shown: str) -> RevocableToken | None:
    """The token that is to be revoked, if it is one of ours and alive."""
    parts = REFRESH.match(shown)
    if parts is not None:
        family = await context.store.family(_family_id(parts[1]))
        if family is None:
            return None
        return RevocableToken(family.grant.client_id, family.family, ACCESS_TOKEN_SECONDS_MOST)
    found = _verified(context, shown)
    if found is None:
        return None
    _, token = found
    return RevocableToken(token.client_id, token.token_id, max(0, int(token.expires - time.time())))


async def _active(context: Context, shown: str) -> dict[str, Any] | None:
    """What there is to say of a token (RFC 7662 section 2.2), if it is one of ours and would be taken."""
    parts = REFRESH.match(shown)
    if parts is not None:
        family = await context.store.family(_family_id(parts[1]))
        if family is None or family.current != digest(parts[2]):
            return None
        grant = family.grant
        if context.entitled(grant.service, grant.identity) is None:
            return None
        return _introspected(context, grant.client_id, grant.identity.user, grant.resource, grant.scope)
    found = _verified(context, shown)
    if found is None:
        return None
    service, token = found
    names = filter(None, (token.token_id, token.family, token.client_id))
    if context.entitled(service, token.identity) is None or await context.store.revoked(*names):
        return None
    audience = context.settings.resources[service].resource
    return {
        **_introspected(context, token.client_id, token.identity.user, audience, token.scope),
        "token_type": "Bearer",
        "exp": int(token.expires),
        "jti": token.token_id,
    }


def _introspected(context: Context, client_id: str, user: str, audience: str, scope: str) -> dict[str, Any]:
    return {
        "iss": context.settings.issuer,
        "client_id": client_id,
        "sub": user,
        "username": user,
        "aud": audience,
        "scope": scope,
    }


def _verified(context: Context, shown: str) -> tuple[str, AccessToken] | None:
    """The service and the content of an access token of ours whose time is not over."""
    service = service_of(context.settings, audience_of(shown))
    if service is None:
        return None
    audience = context.settings.resources[service].resource
    try:
        return service, TokenVerifier(context.settings.issuer, context.keyring, audience).verify(shown)
    except InvalidAccessToken:
        return None
