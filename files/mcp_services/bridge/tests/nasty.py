"""An MCP server over stdio (2025-11-25) that does what servers should not, when its tools are called.

Only the standard library: it stands for a server in any language.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

lock = threading.Lock()
answers: dict[str, Any] = {}
answered = threading.Condition()
seen: list[dict[str, Any]] = []
deaf = threading.Event()
gate = threading.Event()


def write(message: dict[str, Any]) -> None:
    with lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def write_raw(text: str) -> None:
    with lock:
        sys.stdout.write(text)
        sys.stdout.flush()


def notify(method: str, **params: Any) -> None:
    write({"method": method, "params": params})


def ask(identifier: Any, method: str, params: dict[str, Any]) -> Any:
    write({"id": identifier, "method": method, "params": params})
    with answered:
        answered.wait_for(lambda: identifier in answers, timeout=20)
        return answers.pop(identifier, "no answer")


def daemon(environment: dict[str, str] | None) -> int:
    """A process that cuts every tie: its own session, no parent, perhaps no environment."""
    code = (
        "import os,sys,time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "os.write(1, str(os.getpid()).encode())\n"
        "os.close(1)\n"
        "time.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return int(done.stdout)


def call(identifier: Any, name: str, arguments: dict[str, Any], token: Any) -> Any:
    match name:
        case "echo":
            return arguments.get("text")
        case "pid":
            return os.getpid()
        case "env":
            return dict(os.environ)
        case "seen":
            return seen
        case "sleep":
            time.sleep(arguments["seconds"])
            return "slept"
        case "progress":
            for step in range(1, arguments["steps"] + 1):
                notify("notifications/progress", progressToken=token, progress=step, total=arguments["steps"])
                time.sleep(arguments.get("pause", 0))
                if arguments.get("gated"):
                    gate.wait(60)
            return "done"
        case "gate":
            gate.set()
            return "open"
        case "log":
            notify("notifications/message", level=arguments.get("level", "info"), data=arguments["text"])
            return "logged"
        case "later":
            said = {"level": "info", "data": arguments.get("text", "later")}
            threading.Timer(arguments["seconds"], notify, ["notifications/message"], said).start()
            return "soon"
        case "changed":
            notify("notifications/tools/list_changed")
            for uri in arguments.get("uris", ["test://watched", "test://other"]):
                notify("notifications/resources/updated", uri=uri)
            return "changed"
        case "ask":
            said = ask(arguments["id"], arguments["method"], {"message": "?"})
            if token is not None:
                notify("notifications/progress", progressToken=token, progress=1)
            return said
        case "ask_too_long":
            # Under the number that the call has.
            return ask(identifier, "sampling/createMessage", {"filler": "x" * (11 * 1024 * 1024)})
        case "nag":
            deaf.set()
            for number in range(arguments["count"]):
                name = f"{number} " + "x" * arguments.get("name_size", 0)
                write(
                    {
                        "id": name,
                        "method": arguments["method"],
                        "params": {"message": "x" * arguments.get("size", 0)},
                    }
                )
            print("nagged", file=sys.stderr, flush=True)
            time.sleep(arguments.get("pause", 0))
            return "nagged"
        case "twice":
            write_raw(
                '{"jsonrpc":"2.0","method":"notifications/progress","params":'
                f'{{"progressToken":{json.dumps(token)},"progress":1,"x":1,"x":2}}}}\n'
                f'{{"jsonrpc":"2.0","id":{identifier},"result":{{"content":[],"x":1,"x":2}}}}\n'
            )
            return None
        case "stderr":
            line = b"x" * 8000 + b"\n"
            for _ in range(arguments["bytes"] // len(line)):
                os.write(2, line)
            return "written"
        case "say":
            print(arguments["text"], file=sys.stderr, flush=True)
            return "said"
        case "big":
            time.sleep(arguments.get("seconds", 0))
            return "x" * arguments["bytes"]
        case "too_long":
            write({"id": identifier, "result": {"content": [], "filler": "x" * (11 * 1024 * 1024)}})
            return None
        case "flood":
            for number in range(arguments["count"]):
                notify("notifications/message", level="info", data=f"{number} " + "x" * arguments["size"])
            return "flooded"
        case "garbage":
            write_raw(
                "this is no JSON\n\n[]\n{}\n42\n"
                + '{"jsonrpc":"2.0","id":999999,"result":{}}\n'
                + "\x00\xff\n"
            )
            return "still here"
        case "exact":
            write_raw(
                '{"jsonrpc":"2.0", "result": {"z": 1.0e2, "a": 123456789012345678901234567890, "lone": "\\ud800",'
                f' "content": [] }},"id":{identifier}}}\n'
            )
            return None
        case "crash":
            os._exit(7)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
            return None
        case "last_words":
            write({"id": identifier, "result": {"content": [{"type": "text", "text": "bye"}]}})
            os._exit(0)
        case "deaf":
            deaf.set()
            return "no longer listening"
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            deaf.set()
            return os.getpid()
        case "close_stdout":
            os.close(1)
            return None
        case "spawn":
            near = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
            holding = subprocess.Popen(["sleep", "600"], start_new_session=True)
            return [near.pid, holding.pid, daemon(None), daemon({})]
        case "read":
            try:
                with open(arguments["path"], "rb") as file:
                    return file.read(100_000).decode(errors="replace")
            except OSError as error:
                return type(error).__name__
        case "write":
            try:
                with open(arguments["path"], "w") as file:
                    file.write(arguments["text"])
            except OSError as error:
                return type(error).__name__
            return "written"
        case "signal":
            try:
                os.kill(arguments["pid"], arguments["number"])
            except OSError as error:
                return type(error).__name__
            return "sent"
        case "eat":
            try:
                return str(len(bytearray(arguments["bytes"])))
            except MemoryError:
                return "no more memory"
    raise ValueError(name)


def serve(message: dict[str, Any]) -> None:
    identifier, method, params = message["id"], message["method"], message.get("params", {})
    match method:
        case "initialize":
            capabilities = {
                "tools": {"listChanged": True},
                "resources": {"subscribe": True, "listChanged": True},
                "logging": {},
            }
            result: Any = {
                "protocolVersion": min(params["protocolVersion"], "2025-11-25"),
                "capabilities": capabilities,
                "serverInfo": {"name": "nasty", "version": "1"},
                "instructions": "Take care.",
            }
        case "tools/list":
            listed = ("echo", "env", "pid", "progress", "seen", "sleep", "stderr")
            result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in listed]}
        case "tools/call":
            value = call(
                identifier,
                params["name"],
                params.get("arguments", {}),
                params.get("_meta", {}).get("progressToken"),
            )
            if value is None:
                return
            result = {
                "content": [{"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}]
            }
        case "resources/read":
            write({"id": identifier, "error": {"code": -32002, "message": "Resource not found"}})
            return
        case "ping" | "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel":
            if params.get("uri") == "test://slow" and method == "resources/subscribe":
                time.sleep(1)
            result = {}
        case _:
            write({"id": identifier, "error": {"code": -32601, "message": "Method not found"}})
            return
    write({"id": identifier, "result": result})


def main() -> None:
    if os.environ.get("NASTY_START") == "exit":
        sys.exit(3)
    time.sleep(float(os.environ.get("NASTY_DELAY", "0")))
    for line in sys.stdin:
        message = json.loads(line)
        if os.environ.get("NASTY_START") == "strict" and not seen and message["method"] != "initialize":
            sys.exit(4)
        seen.append({key: message.get(key) for key in ("id", "method", "params") if key in message})
        if "method" not in message:
            with answered:
                answers[message["id"]] = message.get("result", message.get("error"))
                answered.notify_all()
        elif "id" in message:
            threading.Thread(target=serve, args=(message,), daemon=True).start()
        while deaf.wait(0.01 if message.get("method") == "tools/call" else 0):
            time.sleep(1)


main()
