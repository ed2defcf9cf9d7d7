"""Redis away, paused, back: nothing is lost, and no 401 is our doing. SIGTERM, and systemd."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from conftest import Fleet, Node, end, free_port, tokens_of, wait_for


# covers: no-fault-consumes
def test_redis_away(own_fleet: Fleet) -> None:
    node = own_fleet.start(redis_grace_seconds="4")
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        known, unseen = browser.tokens(client_id), browser.tokens(client_id)
        assert node.check(known.access).status_code == 200
        own_fleet.redis.stop()
        stopped = time.monotonic()
        # Verified before: goes on. Everything else: 503, never 401.
        assert node.check(known.access).status_code == 200
        assert node.check(unseen.access).status_code == 503
        assert node.check("forged").status_code == 401
        refused = browser.refresh(client_id, known.refresh)
        assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
        assert refused.headers["retry-after"]
        assert (
            browser.post("/register", json={"redirect_uris": ["https://a.example.test/"]}).status_code == 503
        )
        page = browser.authorize(client_id)
        assert page.status_code == 503
        assert "location" not in page.headers
        assert browser.get("/health").status_code == 503
        health = node.http.get(f"{node.base}/internal/health")
        assert (health.status_code, health.json()["checks"]["redis"]) == (503, "does not answer")
        time.sleep(max(0.0, 5 - (time.monotonic() - stopped)))
        assert node.check(known.access).status_code == 503
        own_fleet.redis.start()
        wait_for(lambda: node.check(known.access).status_code == 200)
        assert node.check(unseen.access).status_code == 200
        # The refresh that failed has consumed nothing.
        assert browser.refresh(client_id, known.refresh).status_code == 200


# covers: no-fault-consumes
def test_redis_paused(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        known, unseen = browser.tokens(client_id), browser.tokens(client_id)
        assert node.check(known.access).status_code == 200
        own_fleet.redis.signal(signal.SIGSTOP)
        deadline = time.monotonic() + 3
        slowest = 0.0
        while time.monotonic() < deadline:
            response = node.check(known.access)
            assert response.status_code == 200
            slowest = max(slowest, response.elapsed.total_seconds())
        assert slowest < 0.6
        assert node.check(unseen.access).status_code == 503
        own_fleet.redis.signal(signal.SIGCONT)
        wait_for(lambda: node.check(unseen.access).status_code == 200)


# covers: revocation
def test_a_revocation_that_the_stream_missed_still_counts(own_fleet: Fleet) -> None:
    node, other = own_fleet.start(), own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
        assert node.check(tokens.access).status_code == other.check(tokens.access).status_code == 200
        admin = own_fleet.redis.admin
        # Cut every stream and revoke before the nodes can listen again.
        admin.client_pause(1000, all=False)
        admin.client_kill_filter(_type="pubsub")
        admin.client_unpause()
        assert (
            browser.post("/revoke", data={"client_id": client_id, "token": tokens.refresh}).status_code == 200
        )
        time.sleep(0.15)
        assert node.check(tokens.access).status_code == other.check(tokens.access).status_code == 401


# covers: revocation
def test_a_revocation_reaches_other_nodes_at_once(own_fleet: Fleet) -> None:
    node, other = own_fleet.start(), own_fleet.start()
    took = []
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        for _ in range(10):
            tokens = browser.tokens(client_id)
            assert other.check(tokens.access).status_code == 200
            browser.post("/revoke", data={"client_id": client_id, "token": tokens.access})
            since = time.monotonic()
            wait_for(lambda token=tokens.access: other.check(token).status_code == 401, 1)  # type: ignore[misc]
            took.append(time.monotonic() - since)
    assert sorted(took)[5] < 0.5


def test_restart_forgets_nothing(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        tokens = browser.tokens(client_id)
        code = browser.code(client_id)
        verifier = browser.verifier
    end(node.process)
    own_fleet.redis.stop()
    own_fleet.redis.start()
    again = own_fleet.start()
    assert again.check(tokens.access).status_code == 200
    with again.browser() as browser:
        browser.verifier = verifier
        assert tokens_of(browser.exchange(client_id, code)).access
        assert browser.refresh(client_id, tokens.refresh).status_code == 200


def test_it_starts_without_redis(own_fleet: Fleet) -> None:
    own_fleet.redis.stop()
    node = own_fleet.start()
    assert node.http.get(f"{node.base}/internal/health").status_code == 503
    own_fleet.redis.start()
    wait_for(lambda: node.http.get(f"{node.base}/internal/health").status_code == 200)


# covers: no-fault-consumes
def test_wrong_redis_password_is_our_fault(own_fleet: Fleet) -> None:
    own_fleet.credentials["redis_password"] = "wrong"
    node = own_fleet.start()
    assert node.http.get(f"{node.base}/internal/health").status_code == 503
    assert "wrong" not in node.log.read_text().replace("WRONGPASS", "")


def test_sigterm_finishes_what_is_under_way(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as browser:
        registered = browser.register()
        answers: list[int] = []

        def slow() -> None:
            body = f"grant_type=refresh_token&client_id={registered['client_id']}&refresh_token=x".encode()
            with socket.create_connection(("127.0.0.1", node.port)) as link:
                link.sendall(
                    b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(body)
                )
                time.sleep(1)
                link.sendall(body)
                answers.append(int(link.recv(1000).split()[1]))

        thread = threading.Thread(target=slow)
        thread.start()
        time.sleep(0.3)
        node.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        thread.join(10)
        node.process.wait(10)
    assert answers == [400]
    assert node.process.returncode in (0, -signal.SIGTERM)


def test_systemd_is_told(own_fleet: Fleet, tmp_path: Path) -> None:
    for address in (str(tmp_path / "notify"), f"@gatehouse-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(address.replace("@", "\0"))
            channel.settimeout(10)
            own_fleet.environment["NOTIFY_SOCKET"] = address
            own_fleet.environment["WATCHDOG_USEC"] = "400000"
            node = own_fleet.start()
            messages = [channel.recv(100) for _ in range(4)]
            node.process.terminate()
            while messages[-1] != b"STOPPING=1":
                messages.append(channel.recv(100))
        assert messages.count(b"READY=1") == 1
        assert messages.count(b"WATCHDOG=1") >= 2


def test_a_port_that_is_taken(own_fleet: Fleet) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run(own_fleet, "gatehouse_auth", GATEHOUSE_LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
    assert result.returncode == 1
    assert "GATEHOUSE_LISTEN" in result.stderr


def run(fleet: Fleet, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = fleet.folder / "run-credentials"
    folder.mkdir(exist_ok=True)
    for name, value in fleet.credentials.items():
        (folder / name).write_text(value)
    values = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CREDENTIALS_DIRECTORY": str(folder),
        "GATEHOUSE_LISTEN": f"127.0.0.1:{free_port()}",
        **fleet.environment,
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", *command], env=values, capture_output=True, text=True, timeout=30, check=False
    )


def test_probe_token(own_fleet: Fleet) -> None:
    node: Node = own_fleet.start()
    result = run(own_fleet, "gatehouse_auth.admin", "probe-token", "--service", "echo")
    assert result.returncode == 0, result.stderr
    answer = node.check(result.stdout.strip())
    assert answer.status_code == 200
    assert answer.headers["x-gatehouse-user"] == "gatehouse-probe"
    assert node.check(result.stdout.strip(), "files").status_code == 401
    assert run(own_fleet, "gatehouse_auth.admin", "probe-token", "--service", "none").returncode == 2


def test_hash_password(own_fleet: Fleet) -> None:
    command = [sys.executable, "-m", "gatehouse_auth.admin", "hash-password"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        command, input="secret\n", env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("$argon2id$")
    empty = subprocess.run(command, input="\n", env=environment, capture_output=True, text=True, check=False)
    assert empty.returncode == 2
