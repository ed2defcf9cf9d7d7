"""Redis' data, from a Redis that runs into one that starts from it, with real servers."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils.redis import Redis, on_socket
from ansible_collections.gatehouse.mcp.plugins.modules.backup_parts import Failed, saved
from ansible_collections.gatehouse.mcp.plugins.modules.restore_parts import Failed as NotRestored
from ansible_collections.gatehouse.mcp.plugins.modules.restore_parts import prepare_redis

PASSWORD = "p" * 40


@contextmanager
def running(folder: Path) -> Iterator[Redis]:
    """A Redis as the role configures it, in as far as its data is concerned."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed", pytrace=False)
    (folder / "users.acl").write_text(f"user default off\nuser admin on >{PASSWORD} ~* &* +@all\n")
    path = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--aclfile", str(folder / "users.acl"), "--save", ""]
    process = subprocess.Popen(
        [program, *options, "--appendonly", "yes", "--dir", str(folder)], stdout=subprocess.DEVNULL
    )
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        redis = Redis(lambda: on_socket(str(path)), "admin", [PASSWORD])
        while redis.command("PING") != "PONG":
            time.sleep(0.05)
        yield redis
        redis.close()
    finally:
        process.terminate()
        process.wait()


def test_it_comes_back(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    with running(old) as redis:
        redis.command("SET", "gh:grant", "ana", "EX", "1000")
        first = saved(redis, old, 10)
        redis.command("SET", "gh:later", "ben")
        (old / "dump.rdb").rename(new / "dump.rdb")
        assert first == old / "dump.rdb"
        assert saved(redis, old, 10).exists(), "what an earlier run left is no answer"
    prepare_redis(new)
    with running(new) as redis:
        assert redis.command("GET", "gh:grant") == "ana"
        assert 900 < redis.command("TTL", "gh:grant") <= 1000
        assert redis.command("GET", "gh:later") is None
        redis.command("SET", "gh:since", "cem")
    with running(new) as redis:
        assert redis.command("GET", "gh:grant") == "ana"
        assert redis.command("GET", "gh:since") == "cem", "what came since is there after a restart"


def test_a_redis_that_writes_nothing_is_named(tmp_path: Path) -> None:
    with running(tmp_path) as redis, pytest.raises(Failed, match="journalctl -u gatehouse-redis"):
        saved(redis, tmp_path / "elsewhere", 1)


def test_data_that_redis_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dump.rdb").write_bytes(b"REDIS0099" + b"\xff" * 40)
    with pytest.raises(NotRestored, match="cannot read the data"):
        prepare_redis(tmp_path)
