"""A rotation of all secrets, while a client that signed in before goes on working."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from clients.driver import ClientError, McpClient
from fleet import Fleet, python
from gateway import Gateway
from test_no_secrets import PLACES, leaks

INTERVAL = 0.1
KEPT = "/run/gatehouse-test-old-password"

# The passwords stay on the host: nothing of them is in an argument, or comes back.
KEEP_PASSWORD = f"""
import json, os, pathlib
store = json.loads(pathlib.Path("/var/lib/gatehouse/secrets/store.json").read_text())
current = next(e for e in store["secrets"]["redis_auth"]["entries"] if e["state"] == "current")
os.close(os.open("{KEPT}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
pathlib.Path("{KEPT}").write_text(current["value"])
"""
TRY_PASSWORDS = f"""
import json, pathlib, re, socket
def answer(password):
    with socket.create_connection(("127.0.0.1", 6379), 5) as redis:
        redis.sendall(f"AUTH auth {{password}}\\r\\n".encode())
        return redis.recv(100).decode().split()[0]
old = pathlib.Path("{KEPT}")
store = json.loads(pathlib.Path("/var/lib/gatehouse/secrets/store.json").read_text())
current = next(e for e in store["secrets"]["redis_auth"]["entries"] if e["state"] == "current")
print(json.dumps({{"old": answer(old.read_text()), "new": answer(current["value"]), "same": old.read_text() == current["value"]}}))
old.unlink()
"""


@dataclass
class Calls:
    """What happened to a client's calls."""

    made: int = 0
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0


@contextmanager
def calling(client: McpClient, url: str, tool: str, **arguments: str) -> Iterator[Calls]:
    """Call a tool ten times a second for as long as the block lasts."""
    calls = Calls()
    over = threading.Event()

    def work() -> None:
        due = time.monotonic()
        while not over.is_set():
            started = time.monotonic()
            try:
                client.call(url, tool, **arguments)
            except ClientError as error:
                calls.failed.append(f"call {calls.made}: {error}")
            calls.made += 1
            calls.slowest = max(calls.slowest, time.monotonic() - started)
            due += INTERVAL
            over.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield calls
    finally:
        over.set()
        thread.join(60)


def kids(gateway: Gateway) -> set[str]:
    return {key["kid"] for key in gateway.http.get(f"{gateway.issuer}/jwks.json").json()["keys"]}


def signed_with(token: str) -> str:
    header = token.partition(".")[0]
    kid: str = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"]
    return kid


def test_rotation_disturbs_no_one(fleet: Fleet, gateway: Gateway, fresh_client: McpClient) -> None:
    store = fleet.hosts("gateway_redis")[0]
    fresh_client.call(gateway.echo, "echo", text="before")
    before = fresh_client.credentials(gateway.echo)
    old_kid = signed_with(before["access_token"])
    published_before = kids(gateway)
    assert old_kid in published_before
    python(store, KEEP_PASSWORD)

    with calling(fresh_client, gateway.echo, "echo", text="during") as calls:
        played = fleet.play("rotate_secrets.yml", None, "-vvv", "--diff")
        time.sleep(2)

    assert played.status == 0, played.output[-3000:]
    assert calls.failed == []
    assert calls.made > 20
    assert calls.slowest < 10, "no call waited for the rotation"
    assert fresh_client.sign_ins == 1

    published = kids(gateway)
    assert old_kid in published, "what it signed is still alive"
    assert published - published_before, "a new key"
    # The old token is good to its end; a refresh gives one that the new key has signed.
    assert gateway.post(gateway.echo, "tools/list", token=before["access_token"]).status_code == 200
    fresh_client.expire(gateway.echo)
    fresh_client.call(gateway.echo, "echo", text="after")
    assert signed_with(fresh_client.credentials(gateway.echo)["access_token"]) in published - published_before
    assert fresh_client.sign_ins == 1

    # What the rotation made is as secret as what was there before.
    assert leaks(fleet, "the rotation's output", played.output.encode()) == []
    for host in fleet.hosts():
        assert leaks(fleet, "journal", host.run(PLACES["journal"]).stdout_bytes) == []

    assert json.loads(python(store, TRY_PASSWORDS)) == {"old": "-WRONGPASS", "new": "+OK", "same": False}
