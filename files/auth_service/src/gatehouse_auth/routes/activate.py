"""Where a person enters the code that a device shows (RFC 8628 section 3.3). Consent and sign-in follow, as
for an app that opens the browser by itself.
"""

import re

from authlib.oauth2.rfc6749 import OAuth2Error
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gatehouse_auth.context import Context, context_of
from gatehouse_auth.oauth.server import new_secret
from gatehouse_auth.routes import described
from gatehouse_auth.routes.flows import bind, expired, from_elsewhere
from gatehouse_auth.routes.responses import form, limit
from gatehouse_auth.store import Flow, digest

router = APIRouter()
UNKNOWN = "There is no such code. It is on the device, and is good for ten minutes."
ELSEWHERE = "Another site has sent you here. Go on only if this is the code that your own device shows."


@router.get("/activate", **described.ACTIVATE)
async def ask(request: Request) -> Response:
    """Ask for the code. A link from the device may bring it along; the person still has to go on themselves
    (section 5.4)."""
    return _page(context_of(request), _written(request.query_params.get("user_code", "")))


@router.post("/activate", **described.ENTER)
async def enter(request: Request) -> Response:
    """Begin the sign-in of the device that shows the code."""
    limit(request, "device_code")
    context = context_of(request)
    try:
        code = _written((await form(request)).data.get("user_code", ""))
    except OAuth2Error:
        expired()
    if from_elsewhere(request):
        context.log.event("device", outcome="deny", reason="foreign_origin")
        return _page(context, code, ELSEWHERE, 403)
    found = await context.store.waiting_device(code)
    if found is None or found[1].service not in context.settings.resources:
        context.log.event("device", outcome="deny", reason="user_code")
        return _page(context, code, UNKNOWN, 400)
    name, device = found
    flow_id, secret = new_secret(16), new_secret()
    flow = Flow(
        client_id=device.client_id,
        client_name=device.client_name,
        redirect_uri="",
        state=None,
        scope=device.scope,
        service=device.service,
        code_challenge="",
        browser=digest(secret),
        device=name,
        user_code=device.user_code,
    )
    await context.store.save_flow(flow_id, flow)
    response = RedirectResponse(f"{context.settings.issuer}/consent?flow={flow_id}", 303)
    response.headers["Cache-Control"] = "no-store"
    bind(response, flow_id, secret)
    return response


def _page(context: Context, code: str, problem: str = "", status: int = 200) -> Response:
    return context.pages.render(
        "activate.html", status, title="Connect a device", user_code=code, problem=problem
    )


def _written(code: str) -> str:
    """A code as it is shown, however it was typed."""
    letters = re.sub(r"[^A-Z]", "", code.upper())[:8]
    return f"{letters[:4]}-{letters[4:]}" if letters else ""
