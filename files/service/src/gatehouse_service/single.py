"""One request of a stateless client, on the SDK's kernel and without its transports.

A transport of the SDK makes a task, four streams, and a dispatcher for each request of an earlier revision. What they do
for a request that needs no stream is to ask its kernel, `ServerRunner`: so does this. It takes a request only where all is as it
should be; whatever is not, the SDK's own transport refuses, in its own words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import anyio
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import ServerRunner, modern_error_data
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    InboundModernRoute,
    classify_inbound_request,
    find_duplicated_routing_header,
)
from mcp.shared.message import MessageMetadata, ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import DEFAULT_NEGOTIATED_VERSION
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic_core import to_json

# What never needs a stream. `initialize` is not among them: it is rare, and the SDK's to get right.
METHODS = frozenset({"ping", "tools/list", "tools/call", "server/discover"})
_TRANSPORT = TransportContext(kind="streamable-http", can_send_request=False)


@dataclass(frozen=True, slots=True)
class Headed:
    """What tools see of a request: as much of Starlette's as they use."""

    headers: Mapping[str, str]


class _Context:
    """What the kernel asks of a transport (`mcp.shared.dispatcher.DispatchContext`): there is no way back but the answer."""

    transport = _TRANSPORT
    can_send_request = False

    def __init__(self, headers: Mapping[str, str], request_id: str | int) -> None:
        self.request_id: str | int | None = request_id
        self.message_metadata: MessageMetadata = ServerMessageMetadata(request_context=Headed(headers))

    @property
    def cancel_requested(self) -> anyio.Event:
        """Never set: no one can cancel what has no session."""
        return anyio.Event()

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,  # noqa: ARG002 - the SDK's signature
        opts: CallOptions | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """No answer could come.

        Raises:
            NoBackChannelError: always.
        """
        raise NoBackChannelError(method)

    async def notify(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> None:
        """Dropped: the answer is one JSON object."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Dropped likewise."""


def version_of(body: Any, fields: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> str | None:
    """The revision of a request that can be answered here; None where the SDK's transport must look at it.

    Args:
        body: The decoded body.
        fields: Each header of the request, as it came.
        headers: The same by name.
    """
    if (
        not isinstance(body, dict)
        or body.get("jsonrpc") != "2.0"
        or body.get("method") not in METHODS
        or type(body.get("id")) not in (int, str)
        or not isinstance(body.get("params", {}), dict)
        or headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json"
        or "application/json" not in headers.get("accept", "")
        or find_duplicated_routing_header(fields)
    ):
        return None
    version = headers.get("mcp-protocol-version", DEFAULT_NEGOTIATED_VERSION)
    if version in HANDSHAKE_PROTOCOL_VERSIONS:
        return version
    route = classify_inbound_request(body, headers=headers)
    return route.protocol_version if isinstance(route, InboundModernRoute) else None


@cache
def _connection(version: str) -> Connection:
    """A connection for all requests of a revision: none of them leaves anything on it."""
    return Connection.from_envelope(version, None, None)


async def answer_one(
    server: Server[Any], body: Mapping[str, Any], headers: Mapping[str, str], version: str
) -> tuple[int, bytes]:
    """The status and the body of the answer."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": body["id"]}
    status = 200
    try:
        message["result"] = await ServerRunner(server, _connection(version), None).on_request(
            _Context(headers, body["id"]), body["method"], body.get("params")
        )
    except Exception as error:  # becomes the answer, as in the SDK
        fault = modern_error_data(error)
        message["error"] = fault.model_dump(mode="json", by_alias=True, exclude_none=True)
        if version not in HANDSHAKE_PROTOCOL_VERSIONS:
            status = ERROR_CODE_HTTP_STATUS.get(fault.code, 200)
    return status, to_json(message)
