"""Redis' users: digests alone in the file, changes without a lost connection, nothing secret in what is shown."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.gatehouse.mcp.plugins.modules.redis_acl import (
    Redis,
    RedisFault,
    Users,
    bring,
    diff,
    in_order,
    live_users,
    on_socket,
    parse,
    reach,
    render,
    wanted_users,
)

ADMIN, OLD, NEW = "a" * 40, "o" * 40, "n" * 40
RULES = {"admin": "~* &* +@all", "auth": "~gh:* &gh:* -@all +set +get +ping +subscribe"}


def users(*passwords: str) -> Users:
    return wanted_users(RULES, {"admin": [ADMIN], "auth": list(passwords)})


def digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def test_the_file_holds_digests_alone_and_reads_back() -> None:
    text = render(users(OLD, NEW))
    assert text.splitlines()[0] == "user default off ~* &* +@all"
    assert digest(OLD) in text and digest(NEW) in text
    assert OLD not in text and ADMIN not in text
    assert parse(text) == users(NEW, OLD)


@pytest.mark.parametrize("password", ["hunter2", "x" * 39 + " ", "x" * 20 + "\n" + "x" * 20])
def test_a_bad_password_is_refused_and_not_quoted(password: str) -> None:
    with pytest.raises(ValueError, match=r"auth .*32 random characters") as refused:
        users(password)
    assert password not in str(refused.value)


def test_a_user_without_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="auth has no password"):
        users()


def test_the_order_of_rules_is_no_difference() -> None:
    assert (
        in_order("-@all +set +get &gh:* ~gh:*")
        == in_order("~gh:* &gh:* -@all +get +set")
        == ("~gh:* &gh:* -@all +get +set")
    )


def test_a_diff_shows_that_a_password_changes_and_no_digest() -> None:
    shown = diff(users(OLD), users(OLD, NEW))
    assert "user auth on #kept" in shown["before"]
    assert "user auth on #added #kept" in shown["after"]
    assert not any(digest(password) in shown["before"] + shown["after"] for password in (ADMIN, OLD, NEW))


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[str]:
    """A real Redis with the users of `users(OLD)`."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed", pytrace=False)
    (tmp_path / "users.acl").write_text(render(users(OLD)))
    path = str(tmp_path / "redis.sock")
    options = ["--port", "0", "--unixsocket", path, "--aclfile", str(tmp_path / "users.acl"), "--save", ""]
    process = subprocess.Popen([program, *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        while not Path(path).exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait()


def opener(path: str) -> Callable[[], socket.socket]:
    return lambda: on_socket(path)


def test_a_rotation_keeps_every_connection(redis_socket: str) -> None:
    admin = reach(opener(redis_socket), "admin", [ADMIN], 5)
    client = reach(opener(redis_socket), "auth", [OLD], 5)
    listener = reach(opener(redis_socket), "auth", [OLD], 5)
    listener.command("SUBSCRIBE", "gh:revocations")

    assert bring(admin, users(OLD), False)[0] is False
    assert bring(admin, users(OLD, NEW), True)[0] is True  # a dry run tells
    assert bring(admin, users(OLD, NEW), False)[0] is True  # and has changed nothing
    for password in (OLD, NEW):
        reach(opener(redis_socket), "auth", [password], 5).close()
    assert bring(admin, users(NEW), False)[0] is True
    assert bring(admin, users(NEW), False)[0] is False

    with pytest.raises(RedisFault, match="WRONGPASS"):
        Redis(opener(redis_socket), "auth", [OLD])
    assert client.command("SET", "gh:x", "1") == "OK"
    assert listener.command("PING") == ["pong", ""]
    assert live_users(admin) == users(NEW)


def test_the_user_may_do_what_its_rules_say_and_no_more(redis_socket: str) -> None:
    client = reach(opener(redis_socket), "auth", [OLD], 5)
    for command in (["GET", "other"], ["KEYS", "*"], ["CONFIG", "GET", "*"], ["SUBSCRIBE", "other"]):
        with pytest.raises(RedisFault, match="NOPERM"):
            client.command(*command)


def test_what_is_not_named_goes_and_what_was_widened_is_narrowed(redis_socket: str) -> None:
    admin = reach(opener(redis_socket), "admin", [ADMIN], 5)
    admin.command("ACL", "SETUSER", "guest", "on", "nopass", "~*", "+@all")
    admin.command("ACL", "SETUSER", "auth", "+@all")
    admin.command("ACL", "SETUSER", "default", "on", "nopass")
    assert bring(admin, users(OLD), False)[0] is True
    assert live_users(admin) == users(OLD)


def test_a_refusal_says_what_to_do_and_no_password(redis_socket: str) -> None:
    with pytest.raises(RedisFault, match="systemctl restart gatehouse-redis") as refused:
        reach(opener(redis_socket), "admin", [NEW], 0)
    assert NEW not in str(refused.value)


def test_a_redis_that_is_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(RedisFault, match="does not answer"):
        reach(opener(str(tmp_path / "none.sock")), "admin", [ADMIN], 0.5)
