"""The account page: what a person has connected, and how they end it."""

import asyncio
import hashlib
import hmac
from datetime import UTC, datetime

from authlib.oauth2.rfc6749 import OAuth2Error
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gatehouse_auth import redirects
from gatehouse_auth.context import Context, context_of
from gatehouse_auth.identity.base import Identity
from gatehouse_auth.oauth.messages import Parameters
from gatehouse_auth.oauth.server import new_secret
from gatehouse_auth.routes import described
from gatehouse_auth.routes.flows import bind, cookie_name, drop_cookie, expired, set_cookie
from gatehouse_auth.routes.responses import form, limit
from gatehouse_auth.store import SESSION_SECONDS, Family, Flow, digest

router = APIRouter()
COOKIE = "__Host-gatehouse-account"


@router.get("/account", **described.ACCOUNT)
async def show(request: Request) -> Response:
    """Show what is connected, or let the person sign in."""
    context = context_of(request)
    secret, identity = await session_of(request)
    if identity is None:
        return await _sign_in(request)
    families = await context.store.connections(identity.user)
    # A registration that is gone has taken its tokens with it.
    alive = await asyncio.gather(*(_has_client(context, family) for family in families))
    connections = [family for family, lives in zip(families, alive, strict=True) if lives]
    return context.pages.render(
        "account.html",
        title="Connected apps",
        name=identity.name or identity.user,
        user=identity.user,
        provider=context.providers[identity.provider].title,
        operator=context.is_operator(identity),
        connections=[shown(context, family) for family in connections],
        csrf=csrf_of(secret),
    )


@router.post("/account/disconnect", **described.DISCONNECT)
async def disconnect(request: Request) -> Response:
    """End one connection, or all of them."""
    limit(request, "authorize")
    context = context_of(request)
    identity, fields = await submitted(request)
    wanted = fields.data.get("connection", "")
    for family in await context.store.connections(identity.user):
        # Only what is the person's own is found at all.
        if wanted in (family.family, "all"):
            await context.revoke(family.family)
            context.log.event(
                "disconnect",
                user=identity.user,
                client=family.grant.client_id,
                service=family.grant.service,
                family=family.family,
            )
    return RedirectResponse(f"{context.settings.issuer}/account", 303)


@router.post("/account/signout", **described.SIGN_OUT)
async def sign_out(request: Request) -> Response:
    """End the session. Apps stay connected."""
    context = context_of(request)
    identity, _ = await submitted(request)
    await context.store.drop_session(request.cookies[COOKIE])
    upstream = context.redirect_providers.get(identity.provider)
    page = context.pages.render(
        "signedout.html",
        title="You are signed out",
        issuer=context.settings.issuer,
        provider=context.providers[identity.provider].title,
        upstream=await upstream.sign_out_url() if upstream is not None else "",
    )
    drop_cookie(page, COOKIE)
    return page


async def _has_client(context: Context, family: Family) -> bool:
    client_id = family.grant.client_id
    return redirects.is_web(client_id) or await context.clients.get(client_id) is not None


async def begin(context: Context, flow_id: str, identity: Identity) -> Response:
    """A person has signed in to their account."""
    if not await context.store.drop_flow(flow_id):
        expired()
    secret = new_secret()
    await context.store.save_session(secret, identity)
    context.log.event("account", outcome="allow", user=identity.user, provider=identity.provider)
    response = RedirectResponse(f"{context.settings.issuer}/account", 303, {"Cache-Control": "no-store"})
    drop_cookie(response, cookie_name(flow_id))
    set_cookie(response, COOKIE, secret, SESSION_SECONDS)
    return response


async def session_of(request: Request) -> tuple[str, Identity | None]:
    """The secret of the browser's session, and whose it is, as their provider knows them now."""
    context = context_of(request)
    secret = request.cookies.get(COOKIE, "")
    identity = await context.store.session(secret) if secret else None
    provider = context.providers.get(identity.provider) if identity is not None else None
    if identity is None or provider is None:
        return "", None
    return secret, provider.current(identity)


async def submitted(request: Request) -> tuple[Identity, Parameters]:
    """Who has sent a form of these pages.

    Raises:
        PageError: nobody who is signed in, or the form is not ours.
    """
    secret, identity = await session_of(request)
    try:
        fields = await form(request)
    except OAuth2Error:
        expired()
    if identity is None or not hmac.compare_digest(
        csrf_of(secret).encode(), fields.data.get("csrf", "").encode()
    ):
        expired()
    return identity, fields


def csrf_of(secret: str) -> str:
    """The CSRF token of a session's forms: the same one each time."""
    return hmac.new(secret.encode(), b"account", hashlib.sha256).hexdigest()


async def _sign_in(request: Request) -> Response:
    """Begin a sign-in that is for nobody but the person."""
    limit(request, "authorize")
    context = context_of(request)
    flow_id, secret = new_secret(16), new_secret()
    flow = Flow("", "", "", None, "", "", "", browser=digest(secret), consented=True)
    await context.store.save_flow(flow_id, flow)
    response = context.pages.render(
        "account_signin.html",
        title="Connected apps",
        providers=[(name, provider.title) for name, provider in context.providers.items()],
        flow=flow_id,
    )
    bind(response, flow_id, secret)
    return response


def shown(context: Context, family: Family) -> dict[str, str]:
    """A connection as a page shows it."""
    grant = family.grant
    return {
        "family": family.family,
        "client_name": grant.client_name,
        "client_host": redirects.host(grant.client_id) if redirects.is_web(grant.client_id) else "",
        "service": context.settings.title(grant.service),
        "resource": grant.resource,
        "since": moment(grant.auth_time),
        "used": moment(family.used),
    }


def moment(seconds: int) -> str:
    """A time as people write it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%-d %B %Y, %H:%M UTC")
