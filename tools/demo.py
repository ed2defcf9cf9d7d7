"""A guided walk: a real MCP client (the MCP Python SDK) signs in through the gateway and calls two services.

Every request is shown as it happens. Codes, tokens and passwords never are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
from browserless import Browser, BrowserError, Person, Visit
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

REDIRECT = "http://127.0.0.1:33418/callback"
# What the walk calls on a service that it knows; of another one it lists the tools.
CALLS: dict[str, tuple[str, dict[str, str]]] = {
    "echo": ("whoami", {}),
    "time": ("get_current_time", {"timezone": "Europe/Vienna"}),
}
MCP_REQUESTS = {
    "server/discover": "The client asks the service what it speaks.",
    "initialize": "The client and the service agree on a protocol version.",
    "notifications/initialized": "The session is open.",
    "tools/list": "The client asks for the tools.",
    "tools/call": "The client calls a tool.",
}


class Screen:
    """Numbers the steps and prints them."""

    def __init__(self) -> None:
        self._number = 0
        self._color = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def title(self, text: str) -> None:
        """A headline."""
        print(f"\n{self._style(text, '1')}\n", flush=True)

    def step(self, method: str, url: httpx2.URL | str, status: int, meaning: str) -> None:
        """One request: its query is left out, since codes and states travel there."""
        self._number += 1
        color = "32" if status < 400 else "33"
        bare = str(httpx2.URL(str(url)).copy_with(query=None))
        print(f"{self._number:3}. {method:7} {bare}  {self._style(str(status), color)}")
        print(f"     {meaning}", flush=True)

    def say(self, text: str) -> None:
        """A line below the step that it belongs to."""
        print(f"     {text}", flush=True)

    def _style(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._color else text


@dataclass
class Memory:
    """The client's token storage; it ends with the walk."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


def explain(response: httpx2.Response, document: dict[str, Any], service_url: str) -> str:
    """What an answer means, for one who has never seen OAuth at work."""
    request = response.request
    path = request.url.path
    if str(request.url) == service_url:
        if response.status_code == 401:
            return "No token, no entry. The answer names the document that says where to get one."
        if response.is_error:
            return f"The gateway or the service is not well: {response.reason_phrase}."
        sent = json.loads(request.content) if request.content else {}
        named = sent.get("params", {}).get("name")
        meaning = MCP_REQUESTS.get(
            sent.get("method", ""), "The client listens for messages from the service."
        )
        return meaning.replace("a tool", f"the tool {named}") if named else meaning
    if path.startswith("/.well-known/oauth-protected-resource"):
        return f"Sign-in for {document['resource']} is at {document['authorization_servers'][0]}."
    if path.startswith("/.well-known/"):
        methods = ", ".join(document["code_challenge_methods_supported"])
        return f"Its endpoints, and what it asks of a client: PKCE {methods}."
    if "client_id" in document:
        return f"The client registered itself as «{document.get('client_name', '')}»."
    if "access_token" in document:
        refresh = " and a refresh token" if "refresh_token" in document else ""
        return f"The code became an access token for {document['expires_in']} seconds{refresh}; both stay with the client."
    return response.reason_phrase


def seen_by_person(visit: Visit) -> str:
    """What the person saw in the browser."""
    if visit.page is None:
        return "The browser is sent on."
    if any(form.asks_password for form in visit.page.forms):
        return f"The person sees «{visit.page.title}» and signs in."
    return f"The person sees «{visit.page.title}» and agrees."


async def walk(screen: Screen, browser: Browser, trust: ssl.SSLContext, name: str, url: str) -> None:
    """Sign in to one service and use it, from nothing."""
    screen.title(f"{name}: {url}")
    memory = Memory()
    arrived = ""

    async def show(response: httpx2.Response) -> None:
        is_document = response.headers.get("content-type", "").startswith("application/json")
        document: dict[str, Any] = {}
        if is_document and str(response.request.url) != url:
            await response.aread()
            document = response.json()
        screen.step(
            response.request.method,
            response.request.url,
            response.status_code,
            explain(response, document, url),
        )

    async def open_browser(authorization_url: str) -> None:
        nonlocal arrived
        asked = parse_qs(urlsplit(authorization_url).query)
        method, resource = asked["code_challenge_method"][0], asked["resource"][0]
        screen.say(
            f"The client opens the person's browser, with a PKCE challenge ({method}), for {resource} alone."
        )
        arrived = await anyio.to_thread.run_sync(browser.authorize, authorization_url, REDIRECT)
        screen.say(f"The browser is back at the client, {urlsplit(arrived).netloc}, with a code for one use.")

    async def callback() -> AuthorizationCodeResult:
        query = {key: values[0] for key, values in parse_qs(urlsplit(arrived).query).items()}
        if "code" not in query:
            raise BrowserError(
                f"No code came back: {query.get('error_description', query.get('error', '?'))}"
            )
        return AuthorizationCodeResult(code=query["code"], state=query.get("state"), iss=query.get("iss"))

    provider = OAuthClientProvider(
        server_url=url,
        client_metadata=OAuthClientMetadata.model_validate(
            {
                "client_name": "Gatehouse demo",
                "redirect_uris": [REDIRECT],
                "token_endpoint_auth_method": "none",
            }
        ),
        storage=memory,
        redirect_handler=open_browser,
        callback_handler=callback,
    )
    async with connect(url, provider, trust, show) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        screen.say(f"Tools: {', '.join(tools)}")
        tool, arguments = CALLS.get(name, ("", {}))
        if tool in tools:
            result = await client.call_tool(tool, arguments)
            for block in result.content:
                screen.say(f"{tool} → {' '.join(getattr(block, 'text', block.type).split())}")
            if result.is_error:
                raise BrowserError(f"The tool {tool} of {name} failed.")


@contextlib.asynccontextmanager
async def connect(
    url: str, provider: OAuthClientProvider, trust: ssl.SSLContext, show: Any
) -> AsyncIterator[Client]:
    """An MCP client whose requests, those of its OAuth part too, are shown."""
    async with (
        httpx2.AsyncClient(
            auth=provider,
            verify=trust,
            timeout=httpx2.Timeout(30, read=120),
            event_hooks={"response": [show]},
        ) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def goodbye(screen: Screen, options: argparse.Namespace) -> None:
    """What the person at the keyboard can do now."""
    screen.title("The gateway is yours to try")
    for service in options.services:
        print(f"  {service:9} https://{service}.{options.domain}/mcp")
    print(f"  issuer    https://auth.{options.domain}")
    print(f"\n  Sign in as {options.user} with the password in {options.password_file}")
    print(f"  The lab's own CA is {options.ca_file}; a client has to trust it. For example:\n")
    service = options.services[0]
    print(f"    curl --cacert {options.ca_file} -i https://{service}.{options.domain}/mcp")
    print(f"    export NODE_EXTRA_CA_CERTS={options.ca_file}")
    print(f"    claude mcp add --transport http {service} https://{service}.{options.domain}/mcp")
    print("\n  make demo-down removes every trace.\n")


async def main(options: argparse.Namespace) -> None:
    """Walk through every service, then say what to type next."""
    screen = Screen()
    trust = ssl.create_default_context(cafile=options.ca_file)
    person = Person(options.user, options.password_file.read_text().strip())
    with Browser(
        person, trust, lambda visit: screen.step(visit.method, visit.url, visit.status, seen_by_person(visit))
    ) as browser:
        for service in options.services:
            await walk(screen, browser, trust, service, f"https://{service}.{options.domain}/mcp")
    goodbye(screen, options)


def causes(error: Exception) -> list[Exception]:
    """The errors inside the groups that task groups make."""
    if isinstance(error, ExceptionGroup):
        return [cause for inner in error.exceptions for cause in causes(inner)]
    return [error]


def existing(path: str) -> Path:
    """A file that is there, by its full path: whoever types what the walk ends with may be in another folder."""
    found = Path(path).absolute()
    if not found.is_file():
        raise argparse.ArgumentTypeError(f"{found} is not there; is the gateway rolled out?")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", default="gatehouse.test", help="domain of the gateway")
    parser.add_argument("--ca-file", type=existing, default=".lab/demo/ca.pem", help="CA to trust, in PEM")
    parser.add_argument("--user", default="ana", help="who signs in")
    parser.add_argument(
        "--password-file", type=existing, default=".lab/demo/password", help="the user's password"
    )
    parser.add_argument(
        "--services", type=lambda text: text.split(","), default=["echo", "time"], help="a,b,..."
    )
    options = parser.parse_args()
    logging.disable()  # the walk tells what happened, and what it tells is checked for secrets
    try:
        anyio.run(main, options)
    except Exception as error:
        for cause in causes(error):
            where = (
                f"{cause.request.url.host} does not answer: "
                if isinstance(cause, httpx2.ConnectError)
                else ""
            )
            print(f"\nThe walk ended early: {where}{cause or type(cause).__name__}", file=sys.stderr)
        sys.exit(1)
