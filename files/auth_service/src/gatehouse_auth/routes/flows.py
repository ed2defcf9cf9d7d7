"""Sign-ins under way. Each belongs to one browser, with a cookie of its own, so that two tabs do not disturb
each other, nor a browser that asks twice.
"""

import hashlib
import hmac
from typing import NoReturn

from authlib.oauth2.rfc6749 import AccessDeniedError, OAuth2Error
from fastapi import Request
from fastapi.responses import Response

from gatehouse_auth import redirects
from gatehouse_auth.context import Context, context_of
from gatehouse_auth.oauth.messages import Parameters
from gatehouse_auth.oauth.messages import Request as OAuthRequest
from gatehouse_auth.oauth.server import Transaction
from gatehouse_auth.routes.responses import form, send
from gatehouse_auth.store import FLOW_SECONDS, Flow, digest


class PageError(Exception):
    """Something that only a person can be told, since there is no client that it could be sent to."""

    def __init__(self, title: str, explanation: str, status: int = 400) -> None:
        super().__init__(title)
        self.title = title
        self.explanation = explanation
        self.status = status


def set_cookie(response: Response, name: str, secret: str, seconds: int) -> None:
    """Give the browser a secret. `__Host-` ties it to this host and to HTTPS."""
    response.set_cookie(name, secret, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax")


def drop_cookie(response: Response, name: str) -> None:
    """Take it back."""
    response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")


def cookie_name(flow_id: str) -> str:
    """The cookie of one sign-in."""
    return f"__Host-gatehouse-{digest(flow_id)[:16]}"


def bind(response: Response, flow_id: str, secret: str) -> None:
    """Make a sign-in this browser's."""
    set_cookie(response, cookie_name(flow_id), secret, FLOW_SECONDS)


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
    if flow.service and flow.service not in context_of(request).settings.resources:
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


def from_elsewhere(request: Request) -> bool:
    """Whether a page of another site has sent this form. Browsers say so (Fetch Metadata; older ones by
    `Origin` alone); what is no browser says nothing, and sends nothing for anyone's page."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    issuer = context_of(request).settings.issuer
    return request.headers.get("origin", issuer) != issuer


def form_targets(flow: Flow) -> list[str]:
    """Where a form of this sign-in may lead in the end, besides to this service."""
    return [redirects.form_action(flow.redirect_uri)] if flow.redirect_uri else []


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
    """End a sign-in with an error for the client, or for the person where none waits for an answer."""
    if flow.device:
        # A device is told no only when somebody has said so; after anything else its code is still good.
        if isinstance(error, AccessDeniedError):
            await context.store.decide_device(flow_id, flow, None)
        else:
            await context.store.drop_flow(flow_id)
        raise PageError("Nothing was connected", error.description or "Try again in a moment.", 403)
    await context.store.drop_flow(flow_id)
    if not flow.service:
        raise PageError("You are not signed in", error.description, 403)
    error.redirect_uri = flow.redirect_uri
    reply = Transaction(context.settings, None).authorization_error(request_of(context, flow), error)
    reply.location = redirects.extended(flow.redirect_uri, reply.location)
    return send(reply)
