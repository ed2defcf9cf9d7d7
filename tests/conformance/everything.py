"""A server that offers what the conformance suite asks for, on the MCP Python SDK's low-level server.

    python everything.py stdio
    python everything.py http PORT

The same server, so that what differs between its answers is the way there. What each tool, prompt and resource has
to do is in the descriptions of the suite's scenarios.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys
import warnings
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import uvicorn
from mcp import MCPError
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.subscriptions import PromptsListChanged, ToolsListChanged
from pydantic import TypeAdapter

# Sampling and logging are deprecated as of 2026-07-28, and what earlier revisions are tested for.
warnings.simplefilter("ignore")

Answer = types.CallToolResult | types.InputRequiredResult
SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def png() -> str:
    """One red pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0\xff\0\0")
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def wav() -> str:
    """One sample of silence."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    data = struct.pack("<4sIH", b"data", 2, 0)
    return base64.b64encode(
        struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data
    ).decode()


IMAGE, AUDIO = png(), wav()


class Events(EventStore):
    """Events of streams, kept so that a client that comes back gets them."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        """Keep one, return its id."""
        self._kept.append((stream_id, message))
        return str(len(self._kept))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send again what came after one."""
        if not last_event_id.isdecimal() or not 0 < int(last_event_id) <= len(self._kept):
            return None
        stream = self._kept[int(last_event_id) - 1][0]
        for number, (owner, message) in enumerate(self._kept[int(last_event_id) :], int(last_event_id) + 1):
            if owner == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Call:
    """A call of a tool, or a request for a prompt, as its function sees it."""

    def __init__(self, context: Any, params: Any) -> None:
        self.context = context
        self.session = context.session
        self.arguments: dict[str, Any] = params.arguments or {}
        # What the client answered to `inputRequests`; what it makes up is what is tested, so it is read as it came.
        given = (context.params or {}).get("inputResponses")
        self.responses: dict[str, Any] = given if isinstance(given, dict) else {}
        self.state: str | None = params.request_state

    def response(self, name: str, member: str) -> Any:
        """One member of one response, None where there is none."""
        response = self.responses.get(name)
        return response.get(member) if isinstance(response, dict) else None

    def offers(self, capability: str) -> bool:
        """Whether the client has this capability."""
        capabilities = self.session.client_capabilities
        return getattr(capabilities, capability, None) is not None

    async def log(self, text: str) -> None:
        """A log message."""
        await self.session.send_log_message("info", text, related_request_id=self.context.request_id)

    async def elicit(self, message: str, schema: dict[str, Any]) -> types.ElicitResult:
        """Ask the person, in the way of the earlier revisions."""
        return await self.session.elicit_form(message, schema, related_request_id=self.context.request_id)


TOOLS: dict[str, tuple[dict[str, Any], Callable[[Call], Awaitable[Answer]]]] = {}


def tool(
    schema: dict[str, Any] = NO_ARGUMENTS, name: str = ""
) -> Callable[[Callable[[Call], Awaitable[Answer]]], Callable[[Call], Awaitable[Answer]]]:
    """Offer a function as a tool of its name."""

    def add(function: Callable[[Call], Awaitable[Answer]]) -> Callable[[Call], Awaitable[Answer]]:
        TOOLS[name or function.__name__] = (schema, function)
        return function

    return add


def complete(*content: dict[str, Any], error: bool = False) -> types.CallToolResult:
    """A result with these blocks of content."""
    return types.CallToolResult.model_validate({"content": content, "isError": error}, by_name=False)


def text(value: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": value}


def ask(requests: dict[str, Any], state: str | None = None) -> types.InputRequiredResult:
    """A result that asks for input (2026-07-28, SEP-2322)."""
    return types.InputRequiredResult.model_validate(
        {"inputRequests": requests, "requestState": state, "resultType": "input_required"}, by_name=False
    )


def question(message: str, field: str, kind: str = "string") -> dict[str, Any]:
    """A request for one value."""
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sampling(prompt: str, most: int = 100) -> dict[str, Any]:
    """A request for what a model says."""
    message = {"role": "user", "content": text(prompt)}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": most}}


ROOTS: dict[str, Any] = {"method": "roots/list", "params": {}}


def embedded(uri: str, kind: str, value: str) -> dict[str, Any]:
    """A block with a resource in it."""
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": value}}


@tool()
async def test_simple_text(call: Call) -> Answer:
    """Text."""
    return complete(text("This is a simple text response for testing."))


@tool()
async def test_image_content(call: Call) -> Answer:
    """An image."""
    return complete({"type": "image", "data": IMAGE, "mimeType": "image/png"})


@tool()
async def test_audio_content(call: Call) -> Answer:
    """A sound."""
    return complete({"type": "audio", "data": AUDIO, "mimeType": "audio/wav"})


@tool()
async def test_embedded_resource(call: Call) -> Answer:
    """A resource."""
    return complete(
        embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    )


@tool()
async def test_multiple_content_types(call: Call) -> Answer:
    """Several blocks."""
    return complete(
        text("Multiple content types test:"),
        {"type": "image", "data": IMAGE, "mimeType": "image/png"},
        embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    )


@tool()
async def test_tool_with_logging(call: Call) -> Answer:
    """Three log messages."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await call.log(line)
        await asyncio.sleep(0.05)
    return complete(text("Tool with logging executed"))


@tool()
async def test_logging_tool(call: Call) -> Answer:
    """A log message, for whoever asked for it."""
    await call.log("A message of test_logging_tool")
    return complete(text("Logged"))


@tool()
async def test_error_handling(call: Call) -> Answer:
    """A failure."""
    return complete(text("This tool intentionally returns an error for testing"), error=True)


@tool()
async def test_tool_with_progress(call: Call) -> Answer:
    """Three reports of progress."""
    for step in (0, 50, 100):
        await call.session.report_progress(step, 100)
        await asyncio.sleep(0.05)
    return complete(text("Tool with progress executed"))


@tool({"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]})
async def test_sampling(call: Call) -> Answer:
    """Ask the client's model."""
    content = types.TextContent(type="text", text=call.arguments["prompt"])
    said = await call.session.create_message(
        [types.SamplingMessage(role="user", content=content)],
        max_tokens=100,
        related_request_id=call.context.request_id,
    )
    return complete(text(f"LLM response: {said.content.text}"))


@tool({"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]})
async def test_elicitation(call: Call) -> Answer:
    """Ask the person."""
    schema = {
        "type": "object",
        "properties": {
            "username": {"type": "string", "description": "User's response"},
            "email": {"type": "string", "description": "User's email address"},
        },
        "required": ["username", "email"],
    }
    said = await call.elicit(call.arguments["message"], schema)
    return complete(text(f"User response: action={said.action}, content={json.dumps(said.content)}"))


@tool()
async def test_elicitation_sep1034_defaults(call: Call) -> Answer:
    """Ask with defaults of every primitive type."""
    fields = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    said = await call.elicit("Check these values", {"type": "object", "properties": fields, "required": []})
    return complete(text(f"Elicitation completed: action={said.action}, content={json.dumps(said.content)}"))


@tool()
async def test_elicitation_sep1330_enums(call: Call) -> Answer:
    """Ask with every kind of choice."""
    titled = [
        {"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second"), 1)
    ]
    plain = ["option1", "option2", "option3"]
    fields = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    said = await call.elicit("Choose", {"type": "object", "properties": fields, "required": []})
    return complete(text(f"Elicitation completed: action={said.action}, content={json.dumps(said.content)}"))


@tool(SCHEMA_2020_12, name="json_schema_2020_12_tool")
async def schema_tool(call: Call) -> Answer:
    """Nothing; its schema is what counts."""
    return complete(text("ok"))


@tool()
async def test_reconnection(call: Call) -> Answer:
    """Close the event stream in the middle of the call, where the transport has one."""
    if call.context.close_sse_stream is not None:
        await call.context.close_sse_stream()
        await asyncio.sleep(1)
    else:
        # Over stdio it is the bridge that closes it, after `STREAM_SECONDS` of `run.py`.
        await asyncio.sleep(6)
    return complete(text("Reconnection test completed"))


@tool()
async def test_missing_capability(call: Call) -> Answer:
    """Needs a client that can sample."""
    if not call.offers("sampling"):
        raise MCPError(-32021, "Needs the sampling capability", {"requiredCapabilities": {"sampling": {}}})
    return complete(text("ok"))


@tool()
async def test_streaming_elicitation(call: Call) -> Answer:
    """Ask once."""
    if "user_name" not in call.responses:
        return ask({"user_name": question("What is your name?", "name")})
    return complete(text("ok"))


BUS = InMemorySubscriptionBus()


@tool()
async def test_trigger_tool_change(call: Call) -> Answer:
    """Tell that the tools changed."""
    await BUS.publish(ToolsListChanged())
    return complete(text("ok"))


@tool()
async def test_trigger_prompt_change(call: Call) -> Answer:
    """Tell that the prompts changed."""
    await BUS.publish(PromptsListChanged())
    return complete(text("ok"))


@tool(
    {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
        "required": ["region"],
    }
)
async def test_custom_header(call: Call) -> Answer:
    """A tool one of whose arguments is in a header as well."""
    return complete(text(f"Region {call.arguments.get('region')}"))


@tool()
async def test_input_required_result_elicitation(call: Call) -> Answer:
    """Ask the person (2026-07-28)."""
    content = call.response("user_name", "content")
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        return ask({"user_name": question("What is your name?", "name")})
    return complete(text(f"Hello, {name}!"))


@tool()
async def test_input_required_result_sampling(call: Call) -> Answer:
    """Ask the model (2026-07-28)."""
    content = call.response("capital_question", "content")
    if not isinstance(content, dict):
        return ask({"capital_question": sampling("What is the capital of France?")})
    return complete(text(str(content.get("text"))))


@tool()
async def test_input_required_result_list_roots(call: Call) -> Answer:
    """Ask for the roots (2026-07-28)."""
    roots = call.response("client_roots", "roots")
    if not isinstance(roots, list):
        return ask({"client_roots": ROOTS})
    return complete(text(" ".join(str(root["uri"]) for root in roots)))


@tool()
async def test_input_required_result_request_state(call: Call) -> Answer:
    """Ask, and find one's state again."""
    if call.state is None or "confirm" not in call.responses:
        return ask({"confirm": question("Please confirm", "ok", "boolean")}, "round-1")
    return complete(text("state-ok" if call.state == "round-1" else "another state"))


@tool()
async def test_input_required_result_tampered_state(call: Call) -> Answer:
    """Ask, with a state that is sealed."""
    if call.state is None:
        return ask({"confirm": question("Please confirm", "ok", "boolean")}, "sealed")
    return complete(text("state-ok"))


@tool()
async def test_input_required_result_multiple_inputs(call: Call) -> Answer:
    """Ask for three things at once."""
    requests = {
        "user_name": question("What is your name?", "name"),
        "greeting": sampling("Generate a greeting", 50),
        "client_roots": ROOTS,
    }
    return (
        complete(text("All inputs received"))
        if requests.keys() <= call.responses.keys()
        else ask(requests, "asked")
    )


@tool()
async def test_input_required_result_multi_round(call: Call) -> Answer:
    """Ask twice."""
    if call.state is None:
        return ask({"step1": question("Step 1: What is your name?", "name")}, "round-1")
    if call.state == "round-1":
        return ask({"step2": question("Step 2: What is your favorite color?", "color")}, "round-2")
    return complete(text("Both steps done"))


@tool()
async def test_input_required_result_capabilities(call: Call) -> Answer:
    """Ask only for what the client can give."""
    requests = {
        "user_name": ("elicitation", question("What is your name?", "name")),
        "greeting": ("sampling", sampling("Generate a greeting", 50)),
        "client_roots": ("roots", ROOTS),
    }
    offered = {name: request for name, (capability, request) in requests.items() if call.offers(capability)}
    return ask(offered) if offered and not call.responses else complete(text("ok"))


async def list_tools(context: Any, _params: Any) -> types.ListToolsResult:
    """`tools/list`."""
    if context.protocol_version == "2025-11-25":
        # Longer than the bridge waits before it answers with an event stream, of which the suite has several at once.
        await asyncio.sleep(0.6)
    tools = [
        {"name": name, "description": function.__doc__, "inputSchema": schema}
        for name, (schema, function) in TOOLS.items()
    ]
    return types.ListToolsResult.model_validate({"tools": tools}, by_name=False)


async def call_tool(context: Any, params: types.CallToolRequestParams) -> Answer:
    """`tools/call`."""
    if params.name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    try:
        return await TOOLS[params.name][1](Call(context, params))
    except KeyError as error:
        return complete(text(f"Missing argument: {error}"), error=True)


PROMPTS: dict[str, list[str]] = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}


async def list_prompts(_context: Any, _params: Any) -> types.ListPromptsResult:
    """`prompts/list`."""
    prompts = [
        {
            "name": name,
            "description": name.replace("_", " "),
            "arguments": [{"name": argument, "required": True} for argument in arguments],
        }
        for name, arguments in PROMPTS.items()
    ]
    return types.ListPromptsResult.model_validate({"prompts": prompts}, by_name=False)


async def get_prompt(
    context: Any, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    """`prompts/get`."""
    call = Call(context, params)
    given = call.arguments
    match params.name:
        case "test_simple_prompt":
            content = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [text(f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'")]
        case "test_prompt_with_embedded_resource":
            resource = embedded(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
            content = [resource, text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            image = {"type": "image", "data": IMAGE, "mimeType": "image/png"}
            content = [image, text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            answer = call.response("user_context", "content")
            if not isinstance(answer, dict):
                return ask({"user_context": question("What context should the prompt use?", "context")})
            content = [text(f"Context: {answer.get('context')}")]
        case _:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    messages = [{"role": "user", "content": block} for block in content]
    return types.GetPromptResult.model_validate({"messages": messages}, by_name=False)


RESOURCES: dict[str, dict[str, Any]] = {
    "test://static-text": {
        "mimeType": "text/plain",
        "text": "This is the content of the static text resource.",
    },
    "test://static-binary": {"mimeType": "image/png", "blob": IMAGE},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched"},
}


async def list_resources(_context: Any, _params: Any) -> types.ListResourcesResult:
    """`resources/list`."""
    resources = [
        {"uri": uri, "name": uri.removeprefix("test://"), "description": uri, "mimeType": content["mimeType"]}
        for uri, content in RESOURCES.items()
    ]
    return types.ListResourcesResult.model_validate({"resources": resources}, by_name=False)


async def list_templates(_context: Any, _params: Any) -> types.ListResourceTemplatesResult:
    """`resources/templates/list`."""
    template = {
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "description": "Data by id",
        "mimeType": "application/json",
    }
    return types.ListResourceTemplatesResult.model_validate({"resourceTemplates": [template]}, by_name=False)


async def read_resource(_context: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    """`resources/read`."""
    uri = str(params.uri)
    content = RESOURCES.get(uri)
    if content is None and uri.startswith("test://template/") and uri.endswith("/data"):
        number = uri.removeprefix("test://template/").removesuffix("/data")
        body = {"id": number, "templateTest": True, "data": f"Data for ID: {number}"}
        content = {"mimeType": "application/json", "text": json.dumps(body)}
    if content is None:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return types.ReadResourceResult.model_validate({"contents": [{"uri": uri, **content}]}, by_name=False)


async def nothing(_context: Any, _params: Any) -> types.EmptyResult:
    """What is noted and has no effect: a log level, a subscription."""
    return types.EmptyResult()


async def completion(_context: Any, _params: types.CompleteRequestParams) -> types.CompleteResult:
    """`completion/complete`."""
    return TypeAdapter(types.CompleteResult).validate_python(
        {"completion": {"values": ["paris", "park", "party"], "total": 3, "hasMore": False}}
    )


def server() -> Server[dict[str, Any]]:
    """The server."""
    made: Server[dict[str, Any]] = Server(
        "conformance",
        version="1.0.0",
        get_tool_input_schema=lambda name: TOOLS[name][0] if name in TOOLS else None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=nothing,
        on_unsubscribe_resource=nothing,
        on_subscriptions_listen=ListenHandler(BUS),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=completion,
        on_set_logging_level=nothing,
    )
    made.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=None))
    return made


async def over_stdio() -> None:
    """Serve on standard input and output."""
    made = server()
    async with stdio_server() as (read, write):
        await made.run(
            read, write, made.create_initialization_options(NotificationOptions(tools_changed=True))
        )


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        asyncio.run(over_stdio())
    else:
        app = server().streamable_http_app(event_store=Events(), retry_interval=100)
        uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", http="h11")
