"""The official conformance suite against one server, directly and through a gateway.

    make conformance       # boots a lab, runs this, removes the lab

The server is `everything.py`, on the MCP Python SDK. Directly it serves HTTP itself. Through the gateway it is a service of
its own: stdio, behind the bridge, the auth service and Traefik; a small proxy adds the token, which the suite has
no way to. Every scenario of the suite for a revision that is not of an extension runs on both paths, and the auth
service has the suite's scenarios for authorization servers. Fails if one does; writes docs/conformance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "e2e")]

import httpx2  # noqa: E402
from browserless import Browser, Person  # noqa: E402
from clients.driver import REDIRECT, McpClient, environment, run  # noqa: E402
from clients.names import resolve_below  # noqa: E402
from fleet import Fleet  # noqa: E402
from gateway import Gateway  # noqa: E402

REVISIONS = ("2025-06-18", "2025-11-25", "2026-07-28")
SERVICE = "conformance"
ON_HOST = "/opt/conformance/everything.py"
# A server on stdio has no stream to close: the bridge does it, here within the time that the suite gives it.
STREAM_SECONDS = 4
SETTING = f"[Service]\nEnvironment=GATEHOUSE_STREAM_SECONDS={STREAM_SECONDS}\n"
SETTING_ON_HOST = f"/etc/systemd/system/gatehouse-{SERVICE}@.service.d/conformance.conf"
CALLBACK = 33419
TABLE = ROOT / "docs" / "conformance.md"
# The suite has no failure for what it only recommends.
WORST = ("FAILURE", "WARNING", "SUCCESS", "SKIPPED", "INFO")
Results = dict[str, dict[str, str]]


class Suite:
    """The suite, installed from its lock."""

    def __init__(self, cache: Path) -> None:
        folder = cache / "conformance"
        folder.mkdir(parents=True, exist_ok=True)
        binaries = environment("node.lock", cache)
        wanted = (HERE / "package-lock.json").read_bytes()
        stamp = folder / "installed.json"
        if not stamp.exists() or stamp.read_bytes() != wanted:
            for name in ("package.json", "package-lock.json", ".npmrc"):
                (folder / name).write_bytes((HERE / name).read_bytes())
            path = f"PATH={binaries}:{os.environ['PATH']}"
            run("env", path, "npm", "ci", "--silent", "--ignore-scripts", cwd=folder)
            stamp.write_bytes(wanted)
        package = folder / "node_modules" / "@modelcontextprotocol" / "conformance"
        self.version: str = json.loads((package / "package.json").read_text())["version"]
        self.program = [str(binaries / "node"), str(package / "dist" / "index.js")]

    def server(self, url: str, revision: str) -> dict[str, str]:
        """Every scenario of a revision against a server: by name, `15 passed`, `1 of 3 failed: <which>`."""
        with tempfile.TemporaryDirectory() as folder:
            command = ["server", "--url", url, "--suite", "all", "--spec-version", revision, "-o", folder]
            done = subprocess.run(
                [*self.program, *command], capture_output=True, text=True, timeout=900, check=False
            )
            found = read(Path(folder))
        if not found:
            sys.exit(f"the suite did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return found


def read(folder: Path) -> dict[str, str]:
    """What the suite has written of its scenarios."""
    found = {}
    for file in sorted(folder.glob("*/checks.json")):
        name = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*$", "", file.parent.name)
        checks: dict[str, str] = {}
        for check in json.loads(file.read_text()):
            before = checks.get(check["id"], WORST[-1])
            checks[check["id"]] = min(before, check["status"], key=WORST.index)
        found[name] = verdict(checks)
    return found


def verdict(checks: dict[str, str]) -> str:
    """One scenario's checks in a few words."""
    failed = [name for name, status in checks.items() if status == "FAILURE"]
    if failed:
        return f"failed: {', '.join(failed)}"
    warned = sum(status == "WARNING" for status in checks.values())
    passed = sum(status == "SUCCESS" for status in checks.values())
    if not passed:
        return "warned" if warned else "skipped"
    return f"{passed} passed" + (f", {warned} warned" if warned else "")


@contextmanager
def direct(cache: Path) -> Iterator[str]:
    """The server on HTTP, from its lock; its URL."""
    folder = cache / "everything"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder)
    lock = HERE / "requirements.lock"
    run(uv, "pip", "install", "--quiet", "--python", folder / "bin/python", "--require-hashes", "-r", lock)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([folder / "bin/python", HERE / "everything.py", "http", str(port)])
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline:
                sys.exit("the server does not listen")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait()


class TokenProxy:
    """Forwards each request to a service with a token in it, and what comes back as it comes.

    Its own name in `Host` and `Origin` becomes the service's; any other stays as it is.
    """

    def __init__(self, host: str, address: str, token: str, trust: ssl.SSLContext) -> None:
        self._host, self._address, self._token, self._trust = host, address, token, trust
        self._ready = threading.Event()
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *fields = head.rstrip().split("\r\n")
            own = re.compile(rf"(localhost|127\.0\.0\.1):{self.port}\b")
            length, kept = 0, []
            for field in fields:
                name, _, value = field.partition(":")
                match name.lower():
                    case "content-length":
                        length = int(value)
                    case "connection":
                        continue
                    case "host":
                        value = own.sub(self._host, value)
                    case "origin":
                        value = re.sub(rf"http://{own.pattern}", f"https://{self._host}", value)
                kept.append(f"{name}:{value}")
            body = await reader.readexactly(length)
            source, upstream = await asyncio.open_connection(
                self._address, 443, ssl=self._trust, server_hostname=self._host
            )
            sent = [first, *kept, f"Authorization: Bearer {self._token}", "Connection: close"]
            upstream.write("\r\n".join(sent).encode("latin-1") + b"\r\n\r\n" + body)
            back = asyncio.create_task(self._copy(source, writer))
            gone = asyncio.create_task(reader.read(1))
            await asyncio.wait([back, gone], return_when=asyncio.FIRST_COMPLETED)
            for task in (back, gone):
                task.cancel()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for side in (writer, upstream):
                if side is not None:
                    side.close()

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await server.serve_forever()

    def __enter__(self) -> str:
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()
        self._ready.wait()
        return f"http://127.0.0.1:{self.port}/mcp"

    def __exit__(self, *_: object) -> None:
        """The thread ends with the process."""


def place(host: Any, path: str, content: bytes) -> None:
    """Write a file on a host."""
    encoded = base64.b64encode(content).decode()
    host.check_output(f"mkdir -p {Path(path).parent} && echo {encoded} | base64 -d > {path}")


@contextmanager
def service(fleet: Fleet) -> Iterator[None]:
    """The server as a service of the gateway, until the block ends."""
    hosts = fleet.hosts("gateway_mcp")
    lock = (HERE / "requirements.lock").absolute()
    version = (HERE / "requirements.in").read_text().strip()
    wanted = {
        "package": f"pypi:{version}",
        "lock": str(lock),
        "command": ["python", ON_HOST, "stdio"],
    }
    for host in hosts:
        place(host, ON_HOST, (HERE / "everything.py").read_bytes())
        place(host, SETTING_ON_HOST, SETTING.encode())
    try:
        played = fleet.play("site.yml", {"gatehouse_mcp_services_group": {SERVICE: wanted}})
        if played.status:
            sys.exit(played.output[-3000:])
        yield
    finally:
        fleet.play("site.yml")
        for host in hosts:
            host.check_output(f"rm -r {Path(ON_HOST).parent} {Path(SETTING_ON_HOST).parent}")


def authorization(
    suite: Suite, gateway: Gateway, person: Person, trust: ssl.SSLContext, ca_file: Path
) -> dict[str, str]:
    """The scenarios for authorization servers, with a person who signs in."""
    redirect = f"http://127.0.0.1:{CALLBACK}/callback"
    registration = {
        "redirect_uris": [redirect],
        "token_endpoint_auth_method": "none",
        "client_name": "Conformance",
    }
    registered = gateway.http.post(f"{gateway.issuer}/register", json=registration).json()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "authorization",
            "--url",
            gateway.issuer,
            "--client-id",
            registered["client_id"],
            "-o",
            folder,
        ]
        process = subprocess.Popen(
            [*suite.program, *command, "--resource", gateway.echo, "--port", str(CALLBACK)],
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(ca_file)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"{gateway.issuer}/"):
                with Browser(person, trust) as browser:
                    httpx2.get(browser.authorize(line.strip(), redirect))
        process.wait(60)
        return read(Path(folder))


def table(version: str, results: dict[str, dict[str, Results]], auth: dict[str, str]) -> str:
    """docs/conformance.md."""
    lines = [
        "# Conformance",
        "",
        f"`make conformance`, {datetime.now(UTC):%Y-%m-%d}: `@modelcontextprotocol/conformance` {version}, every scenario for a server "
        "that is of no extension, against",
        "`tests/conformance/everything.py`, a server on the MCP Python SDK: directly over the SDK's own HTTP transport, and over stdio behind",
        "Traefik, the auth service and the bridge. Numbers are the suite's checks; this page is written by the run, which fails if one",
        "does.",
        "",
        "| scenario | "
        + " | ".join(f"{revision}, {path}" for revision in REVISIONS for path in ("direct", "gateway"))
        + " |",
        "|---" * (1 + 2 * len(REVISIONS)) + "|",
    ]
    names = sorted({name for paths in results.values() for found in paths.values() for name in found})
    for name in names:
        cells = [
            results[revision][path].get(name, "") for revision in REVISIONS for path in ("direct", "gateway")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "The auth service, against the suite's scenarios for authorization servers:",
        "",
        "| scenario | |",
        "|---|---|",
    ]
    lines += [f"| {name} | {said} |" for name, said in sorted(auth.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, write, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("gateway-domain", "ca-file", "user", "password-file", "inventory"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    cache = ROOT / ".cache" / "e2e"
    cache.mkdir(parents=True, exist_ok=True)
    ca_file = Path(options.ca_file).absolute()
    trust = ssl.create_default_context(cafile=ca_file)
    person = Person(options.user, Path(options.password_file).read_text().strip())
    resolve_below(options.gateway_domain)
    suite = Suite(cache)
    results: dict[str, dict[str, Results]] = defaultdict(dict)
    with direct(cache) as url:
        for revision in REVISIONS:
            results[revision]["direct"] = suite.server(url, revision)
    fleet = Fleet(ROOT, Path(options.inventory))
    with Gateway(options.gateway_domain, trust) as gateway, service(fleet):
        url = gateway.service(SERVICE)

        def authorize(at: str, agrees: bool) -> str:
            assert agrees
            with Browser(person, trust) as browser:
                return browser.authorize(at, REDIRECT)

        with McpClient("python-2", cache, gateway.domain, ca_file, authorize) as client:
            client.tools(url)
            token: str = client.credentials(url)["access_token"]
        host = f"{SERVICE}.{gateway.domain}"
        address = socket.getaddrinfo(host, 443)[0][4][0]
        with TokenProxy(host, str(address), token, trust) as proxied:
            for revision in REVISIONS:
                results[revision]["gateway"] = suite.server(proxied, revision)
        auth = authorization(suite, gateway, person, trust, ca_file)
    TABLE.write_text(table(suite.version, results, auth))
    problems = [
        f"{revision}, {path}, {name}: {said}"
        for revision, paths in results.items()
        for path, found in paths.items()
        for name, said in found.items()
        if said.startswith("failed")
    ]
    problems += [f"auth service, {name}: {said}" for name, said in auth.items() if "passed" not in said]
    problems += [
        f"{revision}: not the same scenarios on both paths"
        for revision, paths in results.items()
        if paths["direct"].keys() != paths["gateway"].keys()
    ]
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
