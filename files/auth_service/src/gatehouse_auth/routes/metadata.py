"""Documents that clients discover the service by, and what shows that it is there."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gatehouse_auth.context import context_of
from gatehouse_auth.oauth.metadata import openid_metadata, server_metadata
from gatehouse_auth.routes import described
from gatehouse_auth.store import StoreUnavailable

router = APIRouter()
AUTHORIZATION_SERVER = "/.well-known/oauth-authorization-server"
OPENID = "/.well-known/openid-configuration"
CACHE = {"Cache-Control": "public, max-age=300"}


# RFC 8414 section 3.1 inserts the well-known part before a path, OpenID Discovery appends it; clients do
# either with the path of the resource, too. The issuer is at the root, so all of them mean this server.
@router.get(AUTHORIZATION_SERVER, **described.SERVER)
@router.get(AUTHORIZATION_SERVER + "/{suffix:path}", **described.SERVER_SUFFIX)
@router.get("/{prefix:path}" + AUTHORIZATION_SERVER, **described.SERVER_PREFIX)
async def authorization_server(request: Request) -> Response:
    """Authorization server metadata (RFC 8414)."""
    return JSONResponse(server_metadata(context_of(request).settings), headers=CACHE)


@router.get(OPENID, **described.SERVER)
@router.get(OPENID + "/{suffix:path}", **described.SERVER_SUFFIX)
@router.get("/{prefix:path}" + OPENID, **described.SERVER_PREFIX)
async def openid_configuration(request: Request) -> Response:
    """The same for clients that look where OpenID providers have it."""
    return JSONResponse(openid_metadata(context_of(request).settings), headers=CACHE)


@router.get("/jwks.json", **described.JWKS)
async def jwks(request: Request) -> Response:
    """The public keys (RFC 7517). A rotation publishes a key long before it signs."""
    return JSONResponse(context_of(request).keyring.public(), headers=CACHE)


@router.get("/health", **described.HEALTH)
async def health(request: Request) -> Response:
    """Whether the service can serve; no details for the public."""
    try:
        await context_of(request).store.ping()
    except StoreUnavailable:
        return JSONResponse({"status": "failing"}, 503, {"Cache-Control": "no-store", "Retry-After": "2"})
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


@router.get("/static/style.css", **described.STYLE)
async def style(request: Request) -> Response:
    """The pages' style sheet."""
    return Response(
        context_of(request).pages.style,
        media_type="text/css",
        headers={"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"},
    )
