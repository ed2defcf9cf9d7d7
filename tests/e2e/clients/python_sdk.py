"""A client on the MCP Python SDK, of the 1.x or the 2.x line, whichever is installed; `driver.py` says what it obeys."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import ssl
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata
from names import resolve_below

SECOND_LINE = importlib.metadata.version("mcp").startswith("2.")
if SECOND_LINE:
    import httpx2 as http_library
    from mcp import Client
    from mcp.client.auth import AuthorizationCodeResult
else:
    import httpx as http_library
    from mcp import ClientSession


def say(message: dict[str, Any]) -> None:
    """One line to the driver."""
    print(json.dumps(message), flush=True)


async def hear() -> dict[str, Any]:
    """One line from the driver; none means that it is gone."""
    line = await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return json.loads(line) if line else {"do": "close"}


class Memory:
    """Token storage that lives as long as this process."""

    tokens: Any = None
    client: Any = None

    async def get_tokens(self) -> Any:
        return self.tokens

    async def set_tokens(self, tokens: Any) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> Any:
        return self.client

    async def set_client_info(self, client_info: Any) -> None:
        self.client = client_info


class Connection:
    """One service, signed in to when it is first asked for something."""

    def __init__(self, url: str, redirect_uri: str, client_name: str) -> None:
        self.url = url
        self.memory = Memory()
        self.provider = OAuthClientProvider(
            server_url=url,
            client_metadata=OAuthClientMetadata.model_validate(
                {
                    "client_name": client_name,
                    "redirect_uris": [redirect_uri],
                    "token_endpoint_auth_method": "none",
                }
            ),
            storage=self.memory,
            redirect_handler=self._open_browser,
            callback_handler=self._callback,
        )

    async def _open_browser(self, url: str) -> None:
        say({"authorize": url})
        answer = await hear()
        self._query = {key: values[0] for key, values in parse_qs(urlsplit(answer["callback"]).query).items()}

    async def _callback(self) -> Any:
        if "code" not in self._query:
            raise RuntimeError(f"no code: {self._query.get('error')}")
        code, state, iss = (self._query.get(name) for name in ("code", "state", "iss"))
        return AuthorizationCodeResult(code=code, state=state, iss=iss) if SECOND_LINE else (code, state)

    async def open(self, trust: ssl.SSLContext, stack: contextlib.AsyncExitStack) -> None:
        client = http_library.AsyncClient(
            auth=self.provider, verify=trust, timeout=http_library.Timeout(30, read=120)
        )
        http = await stack.enter_async_context(client)
        transport = streamable_http_client(self.url, http_client=http)
        if SECOND_LINE:
            self.session: Any = await stack.enter_async_context(Client(transport))
        else:
            read, write, _ = await stack.enter_async_context(transport)
            self.session = await stack.enter_async_context(ClientSession(read, write))
            await self.session.initialize()

    async def obey(self, order: dict[str, Any]) -> Any:
        match order["do"]:
            case "tools":
                return [tool.name for tool in (await self.session.list_tools()).tools]
            case "call":
                result = await self.session.call_tool(order["tool"], order["arguments"])
                dumped = result.model_dump(mode="json", by_alias=True)
                return {"text": dumped["content"][0]["text"], "failed": bool(dumped.get("isError"))}
            case "credentials":
                return {
                    "access_token": self.memory.tokens.access_token,
                    "refresh_token": self.memory.tokens.refresh_token,
                    "scope": self.memory.tokens.scope,
                    "client_id": self.memory.client.client_id,
                }
            case "expire":
                self.provider.context.token_expiry_time = 1.0
                return None
            case unknown:
                raise ValueError(unknown)


async def main() -> None:
    setting = await hear()
    resolve_below(setting["domain"])
    trust = ssl.create_default_context(cafile=setting["ca_file"])
    connections: dict[str, Connection] = {}
    async with contextlib.AsyncExitStack() as stack:
        while (order := await hear())["do"] != "close":
            url = order["url"]
            if url not in connections:
                connection = Connection(url, setting["redirect_uri"], setting["client_name"])
                await connection.open(trust, stack)
                connections[url] = connection
            try:
                say({"result": await connections[url].obey(order)})
            except Exception as error:
                say({"error": f"{type(error).__name__}: {error}"})


def causes(error: Exception) -> list[str]:
    """The errors inside the groups that the SDK's task groups make."""
    if isinstance(error, ExceptionGroup):
        return [cause for inner in error.exceptions for cause in causes(inner)]
    return [f"{type(error).__name__}: {error}"]


logging.disable()
try:
    anyio.run(main)
except Exception as error:  # the sign-in failed, and with it the SDK's task group and this task
    say({"error": "; ".join(causes(error))})
