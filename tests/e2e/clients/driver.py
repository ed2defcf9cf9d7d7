"""Other teams' MCP clients, each in a process and an environment of its own, driven over lines of JSON.

The first line to a client is its setting; each line after it is an order for one service, answered by
`{"result": ...}` or `{"error": ...}`. Before its answer a client may say `{"authorize": url}`, and then waits for
`{"callback": url}`: where a person's browser ended up.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

HERE = Path(__file__).parent
REDIRECT = "http://127.0.0.1:33418/callback"
SECONDS = 90.0
# Each client's lock (none means that of these tests) and program; each one's program and arguments.
PYTHON = {
    "python-2": (None, "python_sdk.py"),
    "python-1": ("python1.lock", "python_sdk.py"),
    "fastmcp": ("fastmcp.lock", "fastmcp_client.py"),
}
JAVASCRIPT = {
    "typescript-2": ("typescript_sdk.mjs", "2"),
    "typescript-1": ("typescript_sdk.mjs", "1"),
    "mcp-remote": ("mcp_remote.mjs",),
    "openid-client": ("openid_client.mjs",),
}


class ClientError(Exception):
    """What a client said went wrong."""


def run(*command: str | Path, cwd: Path = HERE) -> None:
    """Run a set-up command to its end; its output is the error's if it fails."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def environment(lock: str, cache: Path) -> Path:
    """The folder with the programs of a virtual environment that has exactly what `lock` names; made once."""
    wanted = (HERE / lock).read_bytes()
    folder = cache / Path(lock).stem
    stamp = folder / "installed.lock"
    if not stamp.exists() or stamp.read_bytes() != wanted:
        uv = Path(sys.executable).with_name("uv")
        run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder)
        run(
            uv, "pip", "install", "--quiet", "--python", folder / "bin/python", "--require-hashes", "-r", lock
        )
        stamp.write_bytes(wanted)
    return folder / "bin"


def node_modules(cache: Path) -> Path:
    """The folder with the programs in JavaScript and what their lock names; made once."""
    folder = cache / "javascript"
    stamp = folder / "installed.json"
    wanted = (HERE / "package-lock.json").read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    for source in (*HERE.glob("package*.json"), HERE / ".npmrc", *HERE.glob("*.mjs")):
        (folder / source.name).write_bytes(source.read_bytes())
    if not stamp.exists() or stamp.read_bytes() != wanted:
        binaries = environment("node.lock", cache)
        run(
            "env",
            f"PATH={binaries}:{os.environ['PATH']}",
            "npm",
            "ci",
            "--silent",
            "--ignore-scripts",
            cwd=folder,
        )
        stamp.write_bytes(wanted)
    return folder


def command(kind: str, cache: Path) -> list[str]:
    """How to start a client: one of `PYTHON` or of `JAVASCRIPT`."""
    if kind in PYTHON:
        lock, program = PYTHON[kind]
        python = str(environment(lock, cache) / "python") if lock else sys.executable
        return [python, str(HERE / program)]
    program, *arguments = JAVASCRIPT[kind]
    return [str(environment("node.lock", cache) / "node"), str(node_modules(cache) / program), *arguments]


class McpClient:
    """A running client.

    Args:
        kind: which one; see `command`.
        cache: folder for environments that are made once.
        domain: the gateway's; names below it that do not resolve are taken for the gateway.
        ca_file: the CA that it trusts.
        authorize: what the person's browser does with an authorization URL, agreeing or not; returns where it
            ended up.

    Attributes:
        agrees: what the person says when asked.
        sign_ins: how often the person was asked.
    """

    def __init__(
        self, kind: str, cache: Path, domain: str, ca_file: Path, authorize: Callable[[str, bool], str]
    ) -> None:
        self.kind = kind
        self.name = f"Gatehouse test, {kind}"
        self.agrees = True
        self.sign_ins = 0
        self.codes: list[str] = []
        self._authorize = authorize
        self._lines: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            command(kind, cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(ca_file)},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self._send(
            {"domain": domain, "ca_file": str(ca_file), "redirect_uri": REDIRECT, "client_name": self.name}
        )

    def __enter__(self) -> McpClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def tools(self, url: str) -> list[str]:
        """The names of a service's tools. The first order to a service signs in to it."""
        names: list[str] = self.order("tools", url)
        return names

    def call(self, url: str, tool: str, /, **arguments: Any) -> str:
        """The text that a tool answers."""
        result = self.order("call", url, tool=tool, arguments=arguments)
        if result["failed"]:
            raise ClientError(result["text"])
        return str(result["text"])

    def credentials(self, url: str) -> dict[str, str]:
        """What the client holds for a service: `access_token`, `refresh_token`, `scope`, `client_id`."""
        held: dict[str, str] = self.order("credentials", url)
        return held

    def expire(self, url: str) -> None:
        """Make the client believe that its access token has expired."""
        self.order("expire", url)

    def connect(self, url: str, mode: str) -> None:
        """Begin another session with the tokens that are there, `auto` in the newest protocol or `legacy`."""
        self.order("connect", url, mode=mode)

    def order(self, do: str, url: str, **more: Any) -> Any:
        """Give an order, and let the person sign in meanwhile if the client asks for it.

        Raises:
            ClientError: what the client says went wrong.
        """
        self._send({"do": do, "url": url, **more})
        answer = self._answer()
        if "authorize" in answer:
            try:
                callback = self._authorize(answer["authorize"], self.agrees)
            except Exception:
                self._process.kill()  # it waits for an answer that does not come
                raise
            self.sign_ins += 1
            self.codes += parse_qs(urlsplit(callback).query).get("code", [])
            self._send({"callback": callback})
            answer = self._answer()
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
        except BrokenPipeError:
            raise ClientError(f"{self.kind} has ended") from None

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=SECONDS)
        except queue.Empty:
            raise ClientError(f"{self.kind} said nothing for {SECONDS:.0f} s") from None
        if not line:
            raise ClientError(f"{self.kind} ended with status {self._process.wait(10)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")
