"""The tools, on the SDK's low-level server: what they are, and what they do."""

import json
import platform
import resource
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from typing import Any
from urllib.parse import unquote

from mcp.server.lowlevel import Server
from mcp_types import CallToolResult, Tool, ToolAnnotations
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from gatehouse_service.configuration import ServiceSettings
from gatehouse_service.native import ARRIVED, Context, answer, headers_of, tool_server

VERSION = "0.2.0"
REDACTED = "(redacted)"
# Headers whose values may be shown, besides the gateway's own. Any other may hold a secret, by whatever name; so may the path and
# the query of a referrer.
SHOWN = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "host",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "origin",
        "sec-fetch-dest",
        "sec-fetch-mode",
        "sec-fetch-site",
        "traceparent",
        "transfer-encoding",
        "user-agent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-forwarded-server",
        "x-real-ip",
        "x-request-id",
    }
)
IDENTITY = ("user", "name", "email", "client", "scope")
META = "io.modelcontextprotocol/"
INSTRUCTIONS = "Diagnostics of the gateway: what a service sees of you and of your request."

READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
STARTED = time.time()


def takes(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments; those without a default are required."""
    required = [name for name, schema in properties.items() if "default" not in schema]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


TOOLS = [
    Tool(name=name, description=description, input_schema=takes(**properties), annotations=READ_ONLY)
    for name, description, properties in (
        (
            "echo",
            "Returns the text that it is given.",
            {"text": {"type": "string", "description": "What to return"}},
        ),
        ("whoami", "Shows who the caller is, as the gateway tells this service.", {}),
        (
            "headers",
            "Shows the headers of the request as they reached this service, without secrets.",
            {},
        ),
        (
            "token",
            "Shows the claims of the access token that reached this service. The token itself never does.",
            {},
        ),
        (
            "timing",
            "Shows when the request came, and how long the way and this service took.",
            {
                "sent": {
                    "type": ["number", "null"],
                    "default": None,
                    "description": "When the client sent it, in seconds since the epoch by its own clock",
                }
            },
        ),
        ("cors", "Explains what the gateway answers a web page of the request's origin.", {}),
        (
            "negotiation",
            "Shows which revision of the protocol the client asked for and got, and the capabilities of both sides.",
            {},
        ),
        ("session", "Shows the session that the request belongs to.", {}),
        ("health", "Shows how this service is: versions, uptime, memory.", {}),
    )
]


def whoami(headers: Mapping[str, str]) -> dict[str, Any]:
    """The identity that the gateway vouches for; all null where it does not stand in front.

    What a header cannot carry is percent-encoded in it, and so is a comma within the name of a group.
    """
    found = {name: headers.get(f"x-gatehouse-{name}") for name in (*IDENTITY, "groups")}
    groups = found.pop("groups")
    return {
        **{name: None if value is None else unquote(value) for name, value in found.items()},
        "groups": None if groups is None else [unquote(group) for group in groups.split(",") if group],
    }


def shown(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, with the values blotted out of those that may be secret."""
    return {
        name: value if name in SHOWN or name.startswith("x-gatehouse-") else REDACTED
        for name, value in headers.items()
    }


def token(headers: Mapping[str, str], audience: str) -> dict[str, Any]:
    """What is known of the access token: the claims that the gateway passes on, by their names in RFC 9068."""
    who = whoami(headers)
    vouched = who["user"] is not None
    return {
        "claims": {
            "sub": who["user"],
            # The gateway lets a token through to no other service than the one it is for.
            "aud": audience if vouched else None,
            "client_id": who["client"],
            "scope": who["scope"],
            **{name: who[name] for name in ("name", "email", "groups")},
        },
        "not_passed_on": ["iss", "exp", "iat", "jti"],
        "authorization_header": (
            "present: no gateway stands in front of this service, or it does not take the header away"
            if "authorization" in headers
            else "absent, as it should be: the gateway checks the token and keeps it"
        ),
    }


def timing(sent: float | None) -> dict[str, Any]:
    """Where time went. Milliseconds."""
    came, now = ARRIVED.get(), time.time()
    return {
        "came": datetime.fromtimestamp(came, UTC).isoformat(timespec="microseconds"),
        "in_this_service_ms": round((now - came) * 1000, 3),
        "on_the_way_ms": None if sent is None else round((came - sent) * 1000, 3),
        "explanation": "The way is the network, TLS, the gateway's check, and the difference between both clocks: give `sent` "
        "to see it. The gateway's own part is in its access log, by request.",
    }


def cors(headers: Mapping[str, str]) -> dict[str, Any]:
    """What a browser makes of the request's origin."""
    origin = headers.get("origin")
    return {
        "origin": origin,
        "admitted": None if origin is None else True,
        "explanation": (
            "No Origin came: the client is no web page, and CORS does not concern it."
            if origin is None
            else "The gateway let this origin through. Another gets 403 and never reaches a service."
        ),
        "how_it_works": "The gateway answers the preflight (OPTIONS) itself, without a token: origins in the service's `origins` "
        "of the inventory get Access-Control-Allow-Origin, others do not, and their pages see a network error. It exposes "
        "WWW-Authenticate, Mcp-Session-Id, and MCP-Protocol-Version to pages.",
    }


def negotiation(ctx: Context, server: Server[Any]) -> dict[str, Any]:
    """What was asked, and what was chosen."""
    modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    meta = (ctx.params or {}).get("_meta") or {}
    peer = ctx.session.client_params
    if modern:
        client = {
            "info": meta.get(f"{META}clientInfo"),
            "capabilities": meta.get(f"{META}clientCapabilities"),
        }
        asked = meta.get(f"{META}protocolVersion")
    elif peer is not None:
        client = peer.model_dump(mode="json", by_alias=True, exclude_none=True)
        client = {"info": client.get("clientInfo"), "capabilities": client.get("capabilities")}
        asked = peer.protocol_version
    else:
        client = {"info": None, "capabilities": None}
        asked = headers_of(ctx).get("mcp-protocol-version")
    capabilities = server.get_capabilities(protocol_version=ctx.protocol_version)
    return {
        "asked": asked,
        "chosen": ctx.protocol_version,
        "header": headers_of(ctx).get("mcp-protocol-version"),
        "spoken": [*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS],
        "client": client,
        "server": {"capabilities": capabilities.model_dump(mode="json", by_alias=True, exclude_none=True)},
        "explanation": (
            "Since 2026-07-28 each request says its revision, and nothing is negotiated."
            if modern
            else "Chosen in `initialize`; a client that asks for an unknown revision is offered the newest of these."
            if peer is not None
            else "This service keeps no session: what the client said in `initialize` is forgotten, and each request is "
            f"served by its header, or without one as {ctx.protocol_version}. Ask `echo-stateful` for the rest."
        ),
    }


def no_session(ctx: Context) -> dict[str, Any]:
    """Why there is none."""
    return {
        "session": None,
        "sent_a_session_id": "mcp-session-id" in headers_of(ctx),
        "explanation": "2026-07-28 has no sessions."
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        else "This service is stateless: each request stands alone, and a session id is ignored. `echo-stateful` has sessions.",
    }


def health(settings: ServiceSettings) -> dict[str, Any]:
    """What /health says, and what an operator would ask next."""
    return {
        "status": "ok",
        "service": settings.service,
        "version": VERSION,
        "mcp": version_of("mcp"),
        "python": platform.python_version(),
        "up_seconds": round(time.time() - STARTED, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def as_text(value: Mapping[str, Any]) -> CallToolResult:
    """An answer that people and models read alike."""
    return answer(json.dumps(value, indent=2, ensure_ascii=False))


def caller(
    settings: ServiceSettings, server: Callable[[], Server[Any]]
) -> Callable[[str, Mapping[str, Any], Context], Awaitable[CallToolResult]]:
    """What the tools do; `server` is asked for its capabilities."""

    async def call(name: str, arguments: Mapping[str, Any], ctx: Context) -> CallToolResult:
        if name == "echo":
            text = arguments.get("text")
            if not isinstance(text, str):
                return answer("The argument text is missing or not a string.", failed=True)
            return answer(text)
        headers = headers_of(ctx)
        if name == "timing":
            sent = arguments.get("sent")
            if sent is not None and (not isinstance(sent, int | float) or isinstance(sent, bool)):
                return answer("The argument sent is not a number.", failed=True)
            return as_text(timing(sent))
        shows: dict[str, Callable[[], dict[str, Any]]] = {
            "whoami": lambda: whoami(headers),
            "headers": lambda: shown(headers),
            "token": lambda: token(headers, settings.public_url),
            "cors": lambda: cors(headers),
            "negotiation": lambda: negotiation(ctx, server()),
            "session": lambda: no_session(ctx),
            "health": lambda: health(settings),
        }
        return as_text(shows[name]())

    return call


def create_server(settings: ServiceSettings) -> Server[Any]:
    """The MCP server."""
    server = tool_server(
        "gatehouse-echo",
        version=VERSION,
        title="Gatehouse echo",
        instructions=INSTRUCTIONS,
        tools=TOOLS,
        call=caller(settings, lambda: server),
        rules=settings.tools,
    )
    return server
