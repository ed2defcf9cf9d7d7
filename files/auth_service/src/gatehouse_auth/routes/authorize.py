"""The authorization endpoint and consent (RFC 6749 section 4.1.1).

Consent comes before the identity provider, and the whole sign-in belongs to one browser: each has a cookie
of its own, so that two tabs, or a browser that asks twice, do not disturb each other.
"""

import hashlib
import hmac
from dataclasses import replace
from typing import NoReturn

from authlib.oauth2.rfc6749 import AccessDeniedError, OAuth2Error
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gatehouse_auth import redirects
from gatehouse_auth.context import Context, context_of
from gatehouse_auth.oauth.messages import Parameters
from gatehouse_auth.oauth.messages import Request as OAuthRequest
from gatehouse_auth.oauth.server import Transaction, new_secret
from gatehouse_auth.routes.responses import form, limit, send
from gatehouse_auth.store import FLOW_SECONDS, Flow, digest

router = APIRouter()


class PageError(Exception):
    """Something that only a person can be told, since there is no client that it could be sent to."""

    def __init__(self, title: str, explanation: str, status: int = 400) -> None:
        super().__init__(title)
        self.title = title
        self.explanation = explanation
        self.status = status


@router.get("/authorize")
async def authorize(request: Request) -> Response:
    """Begin a sign-in."""
    limit(request, "authorize")
    context = context_of(request)
    try:
        parameters = Parameters.parse(request.url.query.encode())
        parameters.check()
    except OAuth2Error as error:
        raise PageError("This sign-in link is broken", error.description) from None
    client = await context.clients.get(parameters.client_id)
    if client is None:
        context.log.event("authorize", outcome="deny", reason="unknown_client")
        raise PageError(
            "This app is not known here",
            "Its registration may have expired. Remove the connection in the app, add it again, and sign in.",
        )
    transaction = Transaction(context.settings, client)
    asked = OAuthRequest("GET", f"{context.settings.issuer}/authorize", {}, parameters)
    try:
        grant = transaction.get_consent_grant(asked)
    except OAuth2Error as error:
        context.log.event("authorize", outcome="deny", client=client.client_id, reason=error.error)
        if not error.redirect_uri:
            raise PageError(
                "This app asks to be sent to an address that is not its own",
                "Nothing was shared. Remove the connection in the app, add it again, and sign in.",
            ) from None
        return send(transaction.authorization_error(asked, error))
    flow_id, secret = new_secret(16), new_secret()
    await context.store.save_flow(
        flow_id,
        Flow(
            client_id=client.client_id,
            client_name=client.name,
            redirect_uri=grant.redirect_uri,
            state=parameters.state,
            scope=asked.granted_scope,
            service=asked.service,
            code_challenge=parameters.data["code_challenge"],
            browser=digest(secret),
        ),
    )
    response = RedirectResponse(f"{context.settings.issuer}/consent?flow={flow_id}", 303)
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(
        cookie_name(flow_id),
        secret,
        max_age=FLOW_SECONDS,
        path="/",
        secure=True,
        httponly=True,
        samesite="lax",
    )
    return response


@router.get("/consent")
async def consent(request: Request) -> Response:
    """Ask the person."""
    context = context_of(request)
    flow_id, flow, csrf = await browser_flow(request, request.query_params.get("flow", ""))
    resource = context.settings.resources[flow.service]
    title = resource.title or flow.service
    return context.pages.render(
        "consent.html",
        form_action=[redirects.form_action(flow.redirect_uri)],
        title=f"Allow {flow.client_name} to use {title}?",
        client_name=flow.client_name,
        vouched=redirects.host(flow.client_id) if flow.client_id.startswith("https://") else "",
        service_title=title,
        redirect_host=redirects.host(flow.redirect_uri),
        resource=resource.resource,
        scopes=flow.scope.split(),
        loopback=redirects.is_loopback(flow.redirect_uri),
        providers=[(name, provider.title) for name, provider in context.providers.items()],
        flow=flow_id,
        csrf=csrf,
    )


@router.post("/consent")
async def decide(request: Request) -> Response:
    """Hear the person's decision."""
    limit(request, "authorize")
    context = context_of(request)
    flow_id, flow, fields = await submitted_flow(request)
    choice = fields.data.get("choice", "")
    if choice in context.providers:
        if not await context.store.update_flow(flow_id, replace(flow, consented=True)):
            expired()
        context.log.event("consent", outcome="allow", client=flow.client_id, service=flow.service)
        return RedirectResponse(f"{context.settings.issuer}/signin/{choice}?flow={flow_id}", 303)
    context.log.event("consent", outcome="deny", client=flow.client_id, service=flow.service)
    return await refuse(context, flow_id, flow, AccessDeniedError("The user said no."))


def cookie_name(flow_id: str) -> str:
    """The cookie of one sign-in; `__Host-` ties it to this host and to HTTPS."""
    return f"__Host-gatehouse-{digest(flow_id)[:16]}"


def expired() -> NoReturn:
    """Raises what is said about a sign-in that is over, unknown, or another browser's."""
    raise PageError(
        "This sign-in is no longer valid",
        "It was finished, took too long, or was started in another browser. Start again from the app.",
    )


async def browser_flow(request: Request, flow_id: str) -> tuple[str, Flow, str]:
    """The sign-in that a request belongs to, with the CSRF token of its forms: the same one each time.

    Raises:
        PageError: there is none, or another browser has started it.
    """
    secret = request.cookies.get(cookie_name(flow_id), "")
    flow = await context_of(request).store.flow(flow_id) if secret and flow_id.isascii() else None
    if flow is None or not hmac.compare_digest(digest(secret), flow.browser):
        expired()
    if flow.service not in context_of(request).settings.resources:
        expired()
    return flow_id, flow, hmac.new(secret.encode(), flow_id.encode(), hashlib.sha256).hexdigest()


async def submitted_flow(request: Request) -> tuple[str, Flow, Parameters]:
    """The sign-in that a form belongs to.

    Raises:
        PageError: there is none, another browser has started it, or the form is not ours.
    """
    try:
        fields = await form(request)
    except OAuth2Error:
        expired()
    flow_id, flow, csrf = await browser_flow(request, fields.data.get("flow", ""))
    if not hmac.compare_digest(csrf.encode(), fields.data.get("csrf", "").encode()):
        expired()
    return flow_id, flow, fields


def request_of(context: Context, flow: Flow) -> OAuthRequest:
    """The authorization request that a sign-in began with."""
    pairs = {
        "response_type": "code",
        "client_id": flow.client_id,
        "redirect_uri": flow.redirect_uri,
        "scope": flow.scope,
        "state": flow.state,
        "resource": context.settings.resources[flow.service].resource,
        "code_challenge": flow.code_challenge,
        "code_challenge_method": "S256",
    }
    parameters = Parameters([(name, value) for name, value in pairs.items() if value])
    return OAuthRequest("GET", f"{context.settings.issuer}/authorize", {}, parameters)


async def refuse(context: Context, flow_id: str, flow: Flow, error: OAuth2Error) -> Response:
    """End a sign-in with an error for the client."""
    await context.store.drop_flow(flow_id)
    error.redirect_uri = flow.redirect_uri
    reply = Transaction(context.settings, None).authorization_error(request_of(context, flow), error)
    return send(reply)
