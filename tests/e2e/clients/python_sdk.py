"""A client on the MCP Python SDK, of the 1.x or the 2.x line, whichever is installed; `driver.py` says what it obeys."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata
from wire import Connection, hear, say, serve

SECOND_LINE = importlib.metadata.version("mcp").startswith("2.")
if SECOND_LINE:
    import httpx2 as http_library
    from mcp import Client
    from mcp.client.auth import AuthorizationCodeResult
else:
    import httpx as http_library
    from mcp import ClientSession


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


class Sdk(Connection):
    """A connection of the SDK's."""

    def __init__(self, url: str, setting: dict[str, Any]) -> None:
        super().__init__(url, setting)
        self.memory = Memory()
        self.provider = OAuthClientProvider(
            server_url=url,
            client_metadata=OAuthClientMetadata.model_validate(
                {
                    "client_name": setting["client_name"],
                    "redirect_uris": [setting["redirect_uri"]],
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

    async def open(self, stack: contextlib.AsyncExitStack, mode: str | None) -> None:
        client = http_library.AsyncClient(
            auth=self.provider, verify=self.trust, timeout=http_library.Timeout(30, read=120)
        )
        http = await stack.enter_async_context(client)
        transport = streamable_http_client(self.url, http_client=http)
        if SECOND_LINE:
            wanted = {} if mode is None else {"mode": mode}
            self.session = await stack.enter_async_context(Client(transport, **wanted))
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


serve(Sdk)
