"""The application: FastAPI for the protocol, plain ASGI in front of it for what Traefik asks."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from gatehouse_auth.check import Internal, answer_json
from gatehouse_auth.context import Context, context_of
from gatehouse_auth.documents import DocumentUnavailable
from gatehouse_auth.identity.base import ProviderUnavailable
from gatehouse_auth.routes import account, activate, authorize, metadata, operators, register, signin, token
from gatehouse_auth.routes.flows import PageError
from gatehouse_auth.routes.responses import TooManyRequests, oauth_error
from gatehouse_auth.settings import Settings
from gatehouse_auth.store import StoreUnavailable
from gatehouse_service import systemd
from gatehouse_service.configuration import ConfigurationError, load

BODY_LIMIT = 64 * 1024
BODY_SECONDS = 15
END_SECONDS = 0.2
# In the order in which they are tried: what programs ask comes first.
ROUTES = (token, register, authorize, activate, signin, account, operators, metadata)
FOR_PEOPLE = ("/authorize", "/consent", "/signin/", "/account", "/activate", "/operators")
FOR_SCRIPTS = (
    "/token",
    "/device_authorization",
    "/revoke",
    "/introspect",
    "/register",
    "/jwks.json",
    "/.well-known/",
)
PREFLIGHT = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
    (b"access-control-allow-headers", b"Authorization, Content-Type, Accept, MCP-Protocol-Version"),
    (b"access-control-max-age", b"3600"),
    (b"content-length", b"0"),
]
CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"WWW-Authenticate, Retry-After"),
]


class BodyTooLarge(Exception):  # noqa: N818 - it is an answer: 413
    """The request's body is over the limit, or comes too slowly."""


def create_app(context: Context) -> "Front":
    """The ASGI application for these parts."""
    internal = Internal(
        context.settings,
        context.keyring,
        context.store,
        context.findings,
        context.rules,
        context.authorities,
        context.uses,
        context.log,
    )
    app = FastAPI(
        title="Gatehouse authorization server",
        lifespan=lambda _: _lifespan(context, internal),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    for module in ROUTES:
        app.include_router(module.router)
    app.add_exception_handler(PageError, _page_error)
    app.add_exception_handler(StoreUnavailable, _unavailable)
    app.add_exception_handler(DocumentUnavailable, _document_unavailable)
    app.add_exception_handler(ProviderUnavailable, _unavailable)
    app.add_exception_handler(TooManyRequests, _too_many)
    app.add_exception_handler(BodyTooLarge, _too_large)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    return Front(internal, app)


@contextlib.asynccontextmanager
async def _lifespan(context: Context, internal: Internal) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, _reload, context, internal)
    rechecks = asyncio.create_task(context.rechecks.run(context))
    tasks = [
        rechecks,
        asyncio.create_task(context.redis.run()),
        asyncio.create_task(context.findings.stream.run()),
        asyncio.create_task(context.decisions.run(context.store)),
        asyncio.create_task(context.uses.run(context.store)),
    ]
    watchdog = asyncio.create_task(systemd.watchdog())

    def ended(task: "asyncio.Task[None]") -> None:
        # Without it the node would go on half blind. Systemd hears no more of it, and starts it again.
        if not task.cancelled() and task.exception() is not None:
            logging.getLogger(__name__).error("a task has ended", exc_info=task.exception())
            watchdog.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        await context.rechecks.stop(rechecks)
        await _end([*tasks, watchdog])
        await context.decisions.hand_over(context.store)
        await context.uses.hand_over(context.store)
        await context.close()


async def _end(tasks: Iterable["asyncio.Task[None]"]) -> None:
    # More than once: before Python 3.12 asyncio.wait_for, in which redis-py writes, drops a cancellation that
    # comes just as what it waits for is done (CPython issue 86296).
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=END_SECONDS)


def _reload(context: Context, internal: Internal) -> None:
    """Read the configuration again. What is wrong changes nothing: the resources in force stay so."""
    try:
        settings = load(Settings)
    except ConfigurationError as error:
        context.log.event("reload_refused", "error", problems=error.problems)
        return
    context.reconfigure(settings)
    internal.reconfigure(settings, context.rules)
    context.log.event("reloaded", services=sorted(settings.resources))


class Front:
    """Sends each request to where it is answered, and keeps bodies and cross-origin access in bounds."""

    def __init__(self, internal: Internal, app: FastAPI) -> None:
        self.internal = internal
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            path = scope["path"]
            if path.startswith("/internal/"):
                await self.internal(scope, receive, send)
                return
            headers = dict(scope["headers"])
            if not headers.get(b"content-length", b"0").isdigit() or (
                int(headers.get(b"content-length", b"0")) > BODY_LIMIT
            ):
                await answer_json(send, 413, {"error": "invalid_request"}, [(b"connection", b"close")])
                return
            receive = _bounded(receive)
            if path.startswith(FOR_SCRIPTS) or "/.well-known/" in path:
                if scope["method"] == "OPTIONS":
                    await send({"type": "http.response.start", "status": 204, "headers": PREFLIGHT})
                    await send({"type": "http.response.body", "body": b""})
                    return
                send = _with_cors(send)
        await self.app(scope, receive, send)


def _bounded(receive: Any) -> Any:
    """A body may have so many bytes and take so many seconds."""
    taken = 0
    done = False
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def bounded() -> Any:
        nonlocal taken, done
        if done:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise BodyTooLarge from None
        taken += len(message.get("body", b""))
        done = not message.get("more_body", False)
        if taken > BODY_LIMIT:
            raise BodyTooLarge
        return message

    return bounded


def _with_cors(send: Any) -> Any:
    async def with_cors(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *CORS]
        await send(message)

    return with_cors


def _answer(
    request: Request, status: int, error: str, description: str, headers: dict[str, str] | None = None
) -> Response:
    """A page for people, an OAuth error for programs."""
    if request.url.path.startswith(FOR_PEOPLE):
        page = context_of(request).pages.error("That did not work", description, status)
        page.headers.update(headers or {})
        return page
    return oauth_error(error, description, status, headers)


async def _page_error(request: Request, error: Any) -> Response:
    return context_of(request).pages.error(error.title, error.explanation, error.status)


async def _unavailable(request: Request, error: Any) -> Response:
    context_of(request).log.event("unavailable", "error", path=request.url.path, reason=str(error))
    description = "The service cannot answer right now. Try again in a moment; nothing was lost."
    return _answer(request, 503, "temporarily_unavailable", description, {"Retry-After": "2"})


async def _document_unavailable(request: Request, error: Any) -> Response:
    context_of(request).log.event("document_unavailable", "warning", reason=str(error))
    description = "The app's own description cannot be fetched right now. Try again in a moment."
    return _answer(request, 503, "temporarily_unavailable", description, {"Retry-After": "10"})


async def _too_many(request: Request, error: Any) -> Response:
    description = "Too many requests. Wait a moment, then try again."
    return _answer(request, 429, "temporarily_unavailable", description, {"Retry-After": str(error.wait)})


async def _too_large(request: Request, error: Any) -> Response:
    return _answer(request, 413, "invalid_request", "The request is too large or too slow.")


async def _http_error(request: Request, error: Any) -> Response:
    description = {404: "There is nothing here.", 405: "This cannot be asked in this way."}
    text = description.get(error.status_code, "The request was not understood.")
    return _answer(request, error.status_code, "invalid_request", text, dict(error.headers or {}))


async def _fault(request: Request, error: Any) -> Response:
    return _answer(request, 500, "server_error", "Something went wrong on our side. Try again in a moment.")
