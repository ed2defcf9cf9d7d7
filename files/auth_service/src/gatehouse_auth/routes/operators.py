"""The operators' page: who has connected what, what was decided lately, and an end to any of it.

Whoever may see it signs in as to their own account: there is no other password, and no longer session.
"""

import asyncio
from typing import NoReturn

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gatehouse_auth.clients import is_registered
from gatehouse_auth.context import Context, context_of
from gatehouse_auth.identity.base import Identity
from gatehouse_auth.oauth.messages import Parameters
from gatehouse_auth.routes import described
from gatehouse_auth.routes.account import csrf_of, moment, session_of, shown, submitted
from gatehouse_auth.routes.flows import PageError
from gatehouse_auth.routes.responses import limit

router = APIRouter()
LISTED = 50
DECISIONS = 50


@router.get("/operators", **described.OPERATORS)
async def overview(request: Request) -> Response:
    """The people and clients that were active last, and the last decisions."""
    context, identity = await _operator(request)
    if identity is None:
        return RedirectResponse(f"{context.settings.issuer}/account", 303, {"Cache-Control": "no-store"})
    people, clients, decisions = await asyncio.gather(
        context.store.active("people", LISTED),
        context.store.active("clients", LISTED),
        context.store.decisions(DECISIONS),
    )
    names = await asyncio.gather(*(_name(context, client_id) for client_id, _ in clients))
    return context.pages.render(
        "operators.html",
        wide=True,
        title="Gatehouse operators",
        people=[(user, moment(seconds)) for user, seconds in people],
        clients=[
            (client_id, name, moment(seconds), is_registered(client_id))
            for (client_id, seconds), name in zip(clients, names, strict=True)
        ],
        csrf=csrf_of((await session_of(request))[0]),
        decisions=[
            {
                "time": moment(record.pop("time")),
                "event": record.pop("event"),
                "outcome": record.pop("outcome", ""),
                "rest": ", ".join(f"{name} {value}" for name, value in record.items()),
            }
            for record in decisions
        ],
    )


@router.get("/operators/person", **described.PERSON)
async def person(request: Request) -> Response:
    """What one person has connected."""
    context, identity = await _operator(request)
    if identity is None:
        return RedirectResponse(f"{context.settings.issuer}/account", 303, {"Cache-Control": "no-store"})
    user = request.query_params.get("user", "").strip()[:320]
    connections = await context.store.connections(user) if user else []
    return context.pages.render(
        "person.html",
        title=user or "Nobody",
        user=user,
        name=connections[0].grant.identity.name if connections else "",
        email=connections[0].grant.identity.email if connections else "",
        connections=[shown(context, family) for family in connections],
        csrf=csrf_of((await session_of(request))[0]),
    )


@router.post("/operators/disconnect", **described.OPERATORS_DISCONNECT)
async def disconnect(request: Request) -> Response:
    """End one connection of a person, or all of them."""
    context, operator, fields = await _submitted(request)
    user, wanted = fields.data.get("user", ""), fields.data.get("connection", "")
    for family in await context.store.connections(user):
        if wanted in (family.family, "all"):
            await context.revoke(family.family)
            context.log.event(
                "disconnect",
                by=operator.user,
                user=user,
                client=family.grant.client_id,
                service=family.grant.service,
                family=family.family,
            )
    return RedirectResponse(f"{context.settings.issuer}/operators", 303)


@router.post("/operators/remove", **described.OPERATORS_REMOVE)
async def remove(request: Request) -> Response:
    """Remove an app that has registered itself: nobody is connected to it any more."""
    context, operator, fields = await _submitted(request)
    client_id = fields.data.get("client", "")
    if not is_registered(client_id):
        raise PageError(
            "This app cannot be removed here", "It stands in the inventory, or its own site describes it."
        )
    await context.remove_client(client_id)
    context.log.event(
        "registration_management", outcome="allow", by=operator.user, client=client_id, action="REMOVE"
    )
    return RedirectResponse(f"{context.settings.issuer}/operators", 303)


async def _operator(request: Request) -> tuple[Context, Identity | None]:
    """Who looks; None where nobody is signed in.

    Raises:
        PageError: somebody is who may not.
    """
    context = context_of(request)
    _, identity = await session_of(request)
    if identity is not None and not context.is_operator(identity):
        context.log.event("operators", outcome="deny", user=identity.user)
        _refuse()
    return context, identity


async def _submitted(request: Request) -> tuple[Context, Identity, Parameters]:
    limit(request, "authorize")
    context = context_of(request)
    identity, fields = await submitted(request)
    if not context.is_operator(identity):
        _refuse()
    return context, identity, fields


def _refuse() -> NoReturn:
    raise PageError("This page is for operators", "Ask one of them what you want to know.", 403)


async def _name(context: Context, client_id: str) -> str:
    """What a client calls itself, as far as that is known here; nothing is fetched for it."""
    record = await context.store.client(client_id)
    known = context.settings.clients.get(client_id)
    return known.client_name if known else str(record["metadata"].get("client_name", "")) if record else ""
