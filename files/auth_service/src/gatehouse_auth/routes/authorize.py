"""The authorization endpoint and consent (RFC 6749 section 4.1.1).

Consent comes before the identity provider, and the whole sign-in belongs to one browser.
"""

from dataclasses import replace

from authlib.oauth2.rfc6749 import AccessDeniedError, InvalidRequestError, OAuth2Error
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gatehouse_auth import redirects
from gatehouse_auth.context import Context, context_of
from gatehouse_auth.oauth.messages import Parameters
from gatehouse_auth.oauth.messages import Request as OAuthRequest
from gatehouse_auth.oauth.server import Transaction, new_secret
from gatehouse_auth.routes import described
from gatehouse_auth.routes.flows import (
    PageError,
    bind,
    browser_flow,
    expired,
    form_targets,
    refuse,
    submitted_flow,
)
from gatehouse_auth.routes.responses import limit, send
from gatehouse_auth.store import Flow, digest

router = APIRouter()
# A request is kept while somebody signs in. Browsers and proxies take no URL much longer either.
QUERY_LIMIT = 8192
STATE_LIMIT = 4096


@router.get("/authorize", **described.AUTHORIZE)
async def authorize(request: Request) -> Response:
    """Begin a sign-in."""
    limit(request, "authorize")
    context = context_of(request)
    try:
        query = request.url.query.encode()
        parameters = Parameters.parse(query)
        parameters.check()
        if len(query) > QUERY_LIMIT or len(parameters.state or "") > STATE_LIMIT:
            raise InvalidRequestError("The request is too long.")
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
        reply = transaction.authorization_error(asked, error)
        reply.location = redirects.extended(error.redirect_uri, reply.location)
        if _is_trusted(context, client.client_id, error.redirect_uri):
            return send(reply)
        return context.pages.render(
            "untrusted.html",
            400,
            title="This sign-in cannot begin",
            error=error.error,
            redirect_host=redirects.host(error.redirect_uri),
            url=reply.location,
        )
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
    bind(response, flow_id, secret)
    return response


def _is_trusted(context: Context, client_id: str, redirect_uri: str) -> bool:
    """Whether a browser may be sent there although its person has done nothing yet (RFC 9700 section 4.11.2):
    to their own machine, or where the inventory says. Anyone can register any other address."""
    settings = context.settings
    return (
        client_id in settings.clients
        or redirects.is_loopback(redirect_uri)
        or redirect_uri in settings.custom_redirects
    )


@router.get("/consent", **described.CONSENT)
async def consent(request: Request) -> Response:
    """Ask the person."""
    context = context_of(request)
    flow_id, flow, csrf = await browser_flow(request, request.query_params.get("flow", ""))
    if not flow.service:
        expired()
    resource = context.settings.resources[flow.service]
    title = context.settings.title(flow.service)
    return context.pages.render(
        "consent.html",
        form_action=form_targets(flow),
        title=f"Allow {flow.client_name} to use {title}?",
        client_name=flow.client_name,
        vouched=redirects.host(flow.client_id) if redirects.is_web(flow.client_id) else "",
        service_title=title,
        user_code=flow.user_code,
        redirect_host=redirects.host(flow.redirect_uri),
        resource=resource.resource,
        scopes=flow.scope.split(),
        loopback=redirects.is_loopback(flow.redirect_uri),
        providers=[(name, provider.title) for name, provider in context.providers.items()],
        flow=flow_id,
        csrf=csrf,
    )


@router.post("/consent", **described.DECIDE)
async def decide(request: Request) -> Response:
    """Hear the person's decision."""
    limit(request, "authorize")
    context = context_of(request)
    flow_id, flow, fields = await submitted_flow(request)
    if not flow.service:
        expired()
    choice = fields.data.get("choice", "")
    if choice in context.providers:
        if not await context.store.update_flow(flow_id, replace(flow, consented=True)):
            expired()
        context.log.event("consent", outcome="allow", client=flow.client_id, service=flow.service)
        return RedirectResponse(f"{context.settings.issuer}/signin/{choice}?flow={flow_id}", 303)
    context.log.event("consent", outcome="deny", client=flow.client_id, service=flow.service)
    return await refuse(context, flow_id, flow, AccessDeniedError("The user said no."))
