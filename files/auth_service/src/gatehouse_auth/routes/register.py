"""Dynamic client registration (RFC 7591) and its management (RFC 7592)."""

from typing import Any

from authlib.oauth2.rfc6749 import InvalidClientError, OAuth2Error
from fastapi import APIRouter, Request
from fastapi.responses import Response

from gatehouse_auth.context import context_of
from gatehouse_auth.oauth.messages import Reply
from gatehouse_auth.oauth.metadata import server_metadata
from gatehouse_auth.oauth.registration import (
    Configuration,
    Registration,
    acceptable_metadata,
    answer,
    json_request,
)
from gatehouse_auth.routes import described
from gatehouse_auth.routes.responses import json_body, limit, send

router = APIRouter()


@router.post("/register", **described.REGISTER)
async def register(request: Request) -> Response:
    """Register a client."""
    limit(request, "register")
    limit(request, "register_all", "all")
    context = context_of(request)
    settings = context.settings
    endpoint = Registration(server_metadata(settings), settings.issuer)
    try:
        data = acceptable_metadata(
            await json_body(request), settings.custom_redirects, fetches=context.documents is not None
        )
        reply = answer(endpoint, json_request("POST", settings.issuer, data))
    except OAuth2Error as error:
        context.log.event("registration", outcome="deny", reason=error.error)
        return send(Reply(*error()))
    client = endpoint.client
    if client is not None:
        await context.store.register_client(client.client_id, client.as_record())
        context.log.event("registration", outcome="allow", client=client.client_id)
    return send(reply)


@router.get("/register/{client_id}", **described.READ)
@router.put("/register/{client_id}", **described.UPDATE)
@router.delete("/register/{client_id}", **described.DELETE)
async def manage(request: Request) -> Response:
    """Read, update, or delete a registration."""
    client_id: str = request.path_params["client_id"]
    limit(request, "register")
    context = context_of(request)
    settings = context.settings
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    client = await context.clients.get(client_id)
    endpoint = Configuration(
        server_metadata(settings),
        settings.issuer,
        client,
        token.strip() if scheme.lower() == "bearer" else "",
    )
    try:
        # Before anything of the request is judged, and the same for a client that does not exist.
        if client is None or not client.check_registration_token(token.strip()):
            raise InvalidClientError(
                "The registration access token is not valid for this client.", status_code=401
            )
        data: dict[str, Any] = {}
        if request.method == "PUT":
            # Judged like a registration's; what else it must have, Authlib checks.
            data = acceptable_metadata(
                await json_body(request), settings.custom_redirects, fetches=context.documents is not None
            )
        reply = answer(endpoint, json_request(request.method, settings.issuer, data))
    except OAuth2Error as error:
        context.log.event(
            "registration_management", outcome="deny", client=client_id[:100], reason=error.error
        )
        refusal = Reply(*error())
        if refusal.status == 401:
            refusal.headers = [("WWW-Authenticate", 'Bearer error="invalid_token"')]
        return send(refusal)
    if endpoint.updated is not None:
        await context.store.update_client(client_id, endpoint.updated.as_record())
    if endpoint.deleted is not None:
        await context.remove_client(client_id)
    context.log.event("registration_management", outcome="allow", client=client_id, action=request.method)
    return send(reply)
