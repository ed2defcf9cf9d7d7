"""FastMCP's client with its own OAuth helper, which opens a browser and listens; `driver.py` says what it obeys."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.error
import urllib.request
import warnings
import webbrowser
from typing import Any

from fastmcp import Client
from fastmcp.client.auth import OAuth
from fastmcp.client.transports import StreamableHttpTransport
from wire import Connection, hear_now, say, serve

SECONDS = 30.0


class Browser(webbrowser.BaseBrowser):
    """The person's browser, as Python's standard library knows it."""

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        say({"authorize": url})
        threading.Thread(target=self._return, args=(hear_now()["callback"],), daemon=True).start()
        return True

    def _return(self, callback: str) -> None:
        """Open the page where the sign-in ends; the client begins to listen only after it has opened the browser."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(callback).close()
            except urllib.error.HTTPError:
                return  # it says that the person refused
            except urllib.error.URLError:
                time.sleep(0.05)
            else:
                return


class FastMcp(Connection):
    """A connection of FastMCP's."""

    def __init__(self, url: str, setting: dict[str, Any]) -> None:
        super().__init__(url, setting)
        self.oauth = OAuth(client_name=setting["client_name"])

    async def open(self, stack: contextlib.AsyncExitStack, mode: str | None) -> None:
        transport = StreamableHttpTransport(self.url, auth=self.oauth, verify=self.trust)
        wanted: Any = {} if mode is None else {"mode": mode}
        self.session = await stack.enter_async_context(Client(transport, **wanted))

    async def obey(self, order: dict[str, Any]) -> Any:
        match order["do"]:
            case "tools":
                return [tool.name for tool in await self.session.list_tools()]
            case "call":
                result = await self.session.call_tool(order["tool"], order["arguments"], raise_on_error=False)
                return {"text": result.content[0].text, "failed": result.is_error}
            case "credentials":
                context = self.oauth.context
                return {
                    "access_token": context.current_tokens.access_token,
                    "refresh_token": context.current_tokens.refresh_token,
                    "scope": context.current_tokens.scope,
                    "client_id": context.client_info.client_id,
                }
            case "expire":
                self.oauth.context.token_expiry_time = 1.0
                return None
            case unknown:
                raise ValueError(unknown)


warnings.simplefilter("ignore")  # its tokens are kept in memory, as they should be here
webbrowser.register("gatehouse", None, Browser(), preferred=True)
serve(FastMcp)
