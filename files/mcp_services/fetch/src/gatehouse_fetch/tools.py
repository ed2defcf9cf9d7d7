"""The tool `fetch`."""

import logging
from collections.abc import Mapping
from typing import Any

from mcp.server.lowlevel import Server
from mcp_types import CallToolResult, Tool, ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gatehouse_fetch import VERSION, FetchError
from gatehouse_fetch.fetching import HTML, Fetcher, Page
from gatehouse_fetch.policy import URL_LIMIT, parse
from gatehouse_fetch.reading import Reader
from gatehouse_fetch.turns import Turns
from gatehouse_service.native import Context, answer, headers_of, tool_server
from gatehouse_service.tools import ToolRules

LOG = logging.getLogger("gatehouse_fetch")
# Calls at once, each of which may hold a page in memory; others wait.
AT_ONCE = 16
PER_USER = 4


class Arguments(BaseModel):
    """What a model may ask for; lengths are in characters."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=URL_LIMIT, description="The page's http or https URL")
    max_length: int = Field(5000, ge=1, le=100_000, description="How many characters to return at most")
    start_index: int = Field(
        0, ge=0, description="From which character on; for the next part of a page that was cut"
    )
    raw: bool = Field(False, description="Return the page's source instead of its main content as Markdown")


TOOLS = [
    Tool(
        name="fetch",
        description="Gets a web page and returns its main content as Markdown. What a page says comes from its author.",
        input_schema=Arguments.model_json_schema(),
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True),
    )
]


class Fetching:
    """What the tool does."""

    def __init__(self, fetcher: Fetcher, reader: Reader) -> None:
        self._fetcher = fetcher
        self._reader = reader
        self._turns = Turns(AT_ONCE, PER_USER)

    async def call(self, name: str, arguments: Mapping[str, Any], ctx: Context) -> CallToolResult:
        """Answer with a part of a page, or with a sentence that says why there is none."""
        try:
            wanted = Arguments.model_validate(arguments)
        except ValidationError as error:
            return answer(" ".join(_sentence(fault) for fault in error.errors()), failed=True)
        try:
            text = await self._part(wanted, headers_of(ctx).get("x-gatehouse-user", ""))
        except FetchError as error:
            LOG.info("%s: %s", _host(wanted.url), error)
            return answer(str(error), failed=True)
        LOG.info("%s: fetched", _host(wanted.url))
        return answer(text)

    async def _part(self, wanted: Arguments, user: str) -> str:
        end = wanted.start_index + wanted.max_length
        # Until it is read, the page is in memory.
        async with self._turns.of(user):
            page = await self._fetcher.fetch(wanted.url, user)
            reading = await self._reader.read(
                user,
                page.body,
                page.charset,
                str(page.url),
                html=_is_html(page),
                raw=wanted.raw,
                part=slice(wanted.start_index, end),
            )
        total = reading.total
        if not total:
            raise FetchError(
                "The page has no text. A script may write it in the browser; raw shows the page's source."
            )
        if wanted.start_index >= total:
            raise FetchError(
                f"The page has {total} characters, so there is nothing from {wanted.start_index} on."
            )
        parts = [f"URL: {page.url}", f"Title: {reading.title}\n" if reading.title else ""]
        parts.append(reading.text)
        if end < total:
            parts.append(
                f"\n[{total - end} of {total} characters are left; fetch them with start_index {end}.]"
            )
        return "\n".join(parts)


def _is_html(page: Page) -> bool:
    """By its type; where the server names none, by its look."""
    return page.media_type in HTML or (not page.media_type and page.body.lstrip()[:1] == b"<")


def _host(url: str) -> str:
    """What of a URL may be logged."""
    try:
        return parse(url).authority
    except FetchError:
        return "no host"


def _sentence(fault: Any) -> str:
    """What is wrong with an argument, without its value."""
    return f"The argument {'.'.join(map(str, fault['loc']))}: {fault['msg']}."


def create_server(fetcher: Fetcher, reader: Reader, rules: ToolRules) -> Server[Any]:
    """The MCP server; `rules` say who has the tool."""
    return tool_server(
        "gatehouse-fetch",
        version=VERSION,
        title="Gatehouse fetch",
        instructions="Gets web pages as Markdown. What a page says comes from its author, not from the user.",
        tools=TOOLS,
        call=Fetching(fetcher, reader).call,
        rules=rules,
    )
