"""How replies become HTTP, and how requests are read."""

import math

from authlib.oauth2.rfc6749 import InvalidRequestError
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from gatehouse_auth.context import client_address, context_of
from gatehouse_auth.oauth.messages import Parameters, Reply, parsed_json


class TooManyRequests(Exception):  # noqa: N818 - it is an answer: 429
    """A limit is reached; `wait` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("too many requests")
        self.wait = max(1, math.ceil(wait))


def send(reply: Reply) -> Response:
    """A reply of the protocol as a response. None of them may be stored (RFC 6749 section 5.1)."""
    headers = {**dict(reply.headers), "Cache-Control": "no-store", "Pragma": "no-cache"}
    if reply.location or reply.status == 204:
        return Response(None, reply.status, headers)
    headers.pop("Content-Type", None)
    body = dict(reply.body) if isinstance(reply.body, list) else reply.body
    return JSONResponse(body, reply.status, headers)


def oauth_error(
    error: str, description: str, status: int, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error in the form of RFC 6749 section 5.2."""
    return JSONResponse(
        {"error": error, "error_description": description},
        status,
        {"Cache-Control": "no-store", **(headers or {})},
    )


def limit(request: Request, name: str, key: str | None = None) -> None:
    """Take one from a limit, by client address unless a key is given.

    Raises:
        TooManyRequests: there was none left.
    """
    wait = context_of(request).limits[name].take(client_address(request) if key is None else key)
    if wait:
        raise TooManyRequests(wait)


async def form(request: Request) -> Parameters:
    """The form of a request.

    Raises:
        InvalidRequestError: not a form, or malformed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidRequestError("The request must be application/x-www-form-urlencoded.")
    return Parameters.parse(await request.body())


async def json_body(request: Request) -> object:
    """The JSON of a request.

    Raises:
        InvalidRequestError: not JSON.
    """
    return parsed_json(await request.body())
