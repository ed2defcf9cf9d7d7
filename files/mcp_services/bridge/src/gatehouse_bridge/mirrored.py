"""Arguments of a tool that stand in headers as well (2026-07-28, SEP-2243): who routes by the header must not be misled.

A tool declares it in its schema, `x-mcp-header`; the header is `Mcp-Param-` and that name.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gatehouse_bridge import jsonrpc
from gatehouse_bridge.child import CAPABILITIES_KEY, VERSION, VERSION_KEY, Child, ChildError
from gatehouse_bridge.http import Request
from gatehouse_bridge.jsonrpc import Message
from gatehouse_bridge.stateless import Refusal, decoded

# A server with more pages of tools than this is taken to have no end of them.
PAGES = 100


class Declared(NamedTuple):
    """Where an argument stands, the header that mirrors it, and its type."""

    path: tuple[str, ...]
    header: str
    kind: str


Tools = Mapping[str, list[Declared]]


async def tools_of(child: Child) -> Tools:
    """The tools of a child that mirror arguments; none where it does not say."""
    found: dict[str, list[Declared]] = {}
    params: dict[str, Any] = {"_meta": {VERSION_KEY: VERSION, CAPABILITIES_KEY: {}}}
    for _ in range(PAGES):
        try:
            answer = await child.ask("tools/list", params)
        except ChildError:
            break
        result = answer.result
        result = result if isinstance(result, dict) else {}
        tools = result.get("tools")
        for tool in tools if isinstance(tools, list) else []:
            if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                declared = list(_declared(tool.get("inputSchema"), ()))
                if declared:
                    found[tool["name"]] = declared
        if not isinstance(result.get("nextCursor"), str):
            break
        params = {**params, "cursor": result["nextCursor"]}
    return found


def check(request: Request, message: Message, tools: Tools) -> None:
    """Compare the headers of a call with its arguments.

    Raises:
        Refusal: they disagree, or a header is missing.
    """
    for path, header, kind in tools.get(message.param("name"), ()):
        value: Any = message.param("arguments")
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        key = f"mcp-param-{header}".lower().encode()
        given = request.header(key)
        wanted = _text(value)
        if key in request.repeated or (given is None) != (wanted is None):
            raise _mismatch(header)
        if given is not None and wanted is not None and not _same(decoded(given), wanted, kind):
            raise _mismatch(header)


def _declared(schema: Any, path: tuple[str, ...]) -> Iterator[Declared]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(inner, dict):
            continue
        header, kind = inner.get("x-mcp-header"), inner.get("type")
        # Anything else is no declaration; clients leave such a tool out.
        if isinstance(header, str) and header.isascii() and kind in ("string", "integer", "boolean"):
            yield Declared((*path, name), header, kind)
        yield from _declared(inner, (*path, name))


def _text(value: Any) -> str | None:
    """A value as its header has it; None where it has none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _same(given: str | None, wanted: str, kind: str) -> bool:
    if kind == "integer" and given is not None:
        # 42 and 42.0 are one number.
        return _whole(given) == _whole(wanted)
    return given == wanted


def _whole(text: str) -> str:
    digits, _, fraction = text.partition(".")
    return text if fraction.strip("0") else digits


def _mismatch(header: str) -> Refusal:
    text = f"Header mismatch: Mcp-Param-{header} is not the argument in the body"
    return Refusal(jsonrpc.HEADER_MISMATCH, text)
