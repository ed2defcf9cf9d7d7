"""Signing in: the local form, and providers that the browser is sent to."""

import hmac
import time
from dataclasses import replace

from authlib.oauth2.rfc6749 import AccessDeniedError, OAuth2Error
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gatehouse_auth import redirects
from gatehouse_auth.context import Context, client_address, context_of
from gatehouse_auth.identity.base import ProviderBusy, ProviderUnavailable, SignInDenied, Vouched
from gatehouse_auth.oauth.server import Transaction, new_secret
from gatehouse_auth.routes import account, described
from gatehouse_auth.routes.flows import (
    PageError,
    browser_flow,
    cookie_name,
    drop_cookie,
    expired,
    form_targets,
    refuse,
    request_of,
    submitted_flow,
)
from gatehouse_auth.routes.responses import TooManyRequests, limit, send
from gatehouse_auth.store import Code, Flow, Grant

router = APIRouter()
WRONG = "The user name or the password is wrong."
BUSY = "Too many attempts. Wait a moment, then try again."


@router.get("/signin/{provider}", **described.SIGN_IN)
async def sign_in(request: Request) -> Response:
    """Show the form, or send the browser to the provider."""
    provider: str = request.path_params["provider"]
    context = context_of(request)
    flow_id, flow, csrf = await browser_flow(request, request.query_params.get("flow", ""))
    if not flow.consented:
        return RedirectResponse(f"{context.settings.issuer}/consent?flow={flow_id}", 303)
    if provider in context.password_providers:
        return _form(context, provider, flow_id, flow, csrf)
    upstream = context.redirect_providers.get(provider)
    if upstream is None:
        raise PageError("There is no such way to sign in", "Start again from the app.", 404)
    limit(request, "authorize")
    state, verifier = new_secret(), new_secret(48)
    try:
        url = await upstream.authorization_url(f"{flow_id}.{state}", verifier)
    except ProviderUnavailable as error:
        return await _unavailable(context, flow_id, flow, provider, error)
    sent = replace(flow, upstream=provider, upstream_state=state, upstream_verifier=verifier)
    if not await context.store.update_flow(flow_id, sent):
        expired()
    page = context.pages.render("leave.html", title=f"Continue to {upstream.title}", url=url)
    # A redirect would still count as the answer to the consent form, whose policy would have to name every
    # host that the provider redirects to in turn (CSP level 3, form-action).
    page.headers["Refresh"] = f"0; url={url}"
    return page


@router.post("/signin/{provider}", **described.CHECK_PASSWORD)
async def check_password(request: Request) -> Response:
    """Check the form."""
    provider: str = request.path_params["provider"]
    context = context_of(request)
    people = context.password_providers.get(provider)
    flow_id, flow, fields = await submitted_flow(request)
    if people is None or not flow.consented:
        expired()
    username = fields.data.get("username", "").strip()[:128]
    csrf = fields.data["csrf"]
    address = client_address(request)
    attempts = {
        "signin": address,
        "signin_user_address": f"{address} {username}",
        "signin_user": username,
        "signin_all": "all",
    }
    try:
        for name, key in attempts.items():
            limit(request, name, key)
        identity = await people.authenticate(username, fields.data.get("password", ""))
    except (TooManyRequests, ProviderBusy) as error:
        context.log.event("signin", outcome="deny", provider=provider, client=flow.client_id, reason="limit")
        page = _form(context, provider, flow_id, flow, csrf, username, BUSY, 429)
        page.headers["Retry-After"] = str(error.wait)
        return page
    if identity is None:
        context.log.event(
            "signin", outcome="deny", provider=provider, client=flow.client_id, reason="password"
        )
        return _form(context, provider, flow_id, flow, csrf, username, WRONG, 401)
    for name, key in attempts.items():
        context.limits[name].give_back(key)
    return await _finish(context, flow_id, flow, Vouched(identity))


@router.get("/signin/{provider}/callback", **described.CALLBACK)
async def callback(request: Request) -> Response:
    """The browser comes back from a provider. Of its answer only code, error, iss and state are read."""
    provider: str = request.path_params["provider"]
    context = context_of(request)
    upstream = context.redirect_providers.get(provider)
    flow_id, _, state = request.query_params.get("state", "").partition(".")
    flow_id, flow, _ = await browser_flow(request, flow_id)
    if (
        upstream is None
        or not flow.consented
        or flow.upstream != provider
        or not flow.upstream_state
        or not hmac.compare_digest(flow.upstream_state.encode(), state.encode())
    ):
        expired()
    # The provider's answer counts once.
    if not await context.store.update_flow(flow_id, replace(flow, upstream_state="")):
        expired()
    try:
        vouched = await upstream.finish(request.query_params, flow.upstream_verifier)
    except SignInDenied as error:
        context.log.event(
            "signin", outcome="deny", provider=provider, client=flow.client_id, reason=error.reason
        )
        # The provider's title may have characters that no error_description can (RFC 6749 section 4.1.2.1).
        denied = AccessDeniedError(f"The identity provider said no: {error.reason}.")
        return await refuse(context, flow_id, flow, denied)
    except ProviderUnavailable as error:
        return await _unavailable(context, flow_id, flow, provider, error)
    return await _finish(context, flow_id, flow, vouched)


async def _unavailable(
    context: Context, flow_id: str, flow: Flow, provider: str, error: ProviderUnavailable
) -> Response:
    """End a sign-in that its provider cannot take part in. The client may begin another."""
    context.log.event(
        "signin", "error", outcome="unknown", provider=provider, client=flow.client_id, reason=str(error)
    )
    answer = OAuth2Error("The identity provider does not answer.", error="temporarily_unavailable")
    return await refuse(context, flow_id, flow, answer)


def _form(
    context: Context,
    provider: str,
    flow_id: str,
    flow: Flow,
    csrf: str,
    username: str = "",
    problem: str = "",
    status: int = 200,
) -> Response:
    return context.pages.render(
        "signin.html",
        status,
        form_targets(flow),
        title="Sign in",
        client_name=flow.client_name,
        service_title=context.settings.title(flow.service) if flow.service else "",
        provider=provider,
        username=username,
        problem=problem,
        flow=flow_id,
        csrf=csrf,
    )


async def _finish(context: Context, flow_id: str, flow: Flow, vouched: Vouched) -> Response:
    """A person is known: give the client its code, or say that they may not. Without a client it is the
    person who wants to see their account."""
    identity = vouched.identity
    if not flow.service:
        return await account.begin(context, flow_id, identity)
    record = {"user": identity.user, "client": flow.client_id, "service": flow.service}
    current = context.entitled(flow.service, identity)
    if current is None:
        context.log.event("signin", outcome="deny", reason="not_allowed", **record)
        denied = AccessDeniedError("You are signed in, but may not use this service. Ask its operator.")
        return await refuse(context, flow_id, flow, denied)
    await context.rechecks.begin(vouched)
    grant = Grant(
        client_id=flow.client_id,
        client_name=flow.client_name,
        identity=identity,
        service=flow.service,
        resource=context.settings.resources[flow.service].resource,
        scope=flow.scope,
        auth_time=int(time.time()),
    )
    if flow.device:
        if not await context.store.decide_device(flow_id, flow, grant):
            expired()
        context.log.event("signin", outcome="allow", provider=identity.provider, **record)
        explanation = f"{flow.client_name} is connected. You can close this page and go back to the device."
        page = context.pages.render("done.html", title="Done", explanation=explanation)
        drop_cookie(page, cookie_name(flow_id))
        return page
    transaction = Transaction(context.settings, await context.clients.get(flow.client_id))
    asked = request_of(context, flow)
    try:
        consent = transaction.get_consent_grant(asked, current)
    except OAuth2Error:  # the client changed or went while the person signed in
        expired()
    reply = transaction.create_authorization_response(asked, current, consent)
    code = Code(grant, flow.redirect_uri, flow.code_challenge)
    if transaction.issued_code is None or not await context.store.finish_flow(
        flow_id, transaction.issued_code, code
    ):
        expired()
    context.log.event("signin", outcome="allow", provider=identity.provider, **record)
    reply.location = redirects.extended(flow.redirect_uri, reply.location)
    response = send(reply)
    response.status_code = 303
    drop_cookie(response, cookie_name(flow_id))
    return response
