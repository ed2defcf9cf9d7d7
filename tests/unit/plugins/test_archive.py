"""The archive of a backup, with real age: only its key opens it, and whoever changes it is found out."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.filter.backup import kept_components
from ansible_collections.gatehouse.mcp.plugins.module_utils import archive
from ansible_collections.gatehouse.mcp.plugins.module_utils.archive import (
    Archive,
    ArchiveError,
    begin,
    digest,
    finish,
    place,
)

SECRET = "a-signing-key-of-the-fleet"
STORE = {"version": 1, "secrets": {"redis_admin": {"kind": "password", "entries": [{"value": SECRET}]}}}


def key(folder: Path, name: str) -> tuple[Path, str]:
    path = folder / name
    made = subprocess.run(["age-keygen", "-o", str(path)], check=True, capture_output=True, text=True)
    return path, re.findall(r"age1\w+", made.stderr)[0]


def written(folder: Path, recipients: list[str], **manifest: Any) -> Path:
    unfinished, recipient = begin(folder / "backups", recipients)
    parts = []
    for name, content in (("gate1.kept.age", b"the graph " * 1000), ("gate1.redis.age", b"grants")):
        sealed = archive.age("age", "--encrypt", "--recipient", recipient, stdin=content)
        (unfinished / name).write_bytes(sealed)
        parts.append(
            {
                "file": name,
                "host": "gate1",
                "components": ["memory"],
                "bytes": len(sealed),
                "sha256": digest(unfinished / name),
            }
        )
    return finish(unfinished, recipient, manifest.get("domain", "example.com"), STORE, parts)


@pytest.fixture
def identity(tmp_path: Path) -> tuple[Path, str]:
    return key(tmp_path, "backup.key")


def test_what_is_written_is_read(tmp_path: Path, identity: tuple[Path, str]) -> None:
    path = written(tmp_path, [key(tmp_path, "other.key")[1], identity[1]])
    assert re.fullmatch(r"gatehouse-example\.com-\d{8}T\d{6}Z\.tar", path.name)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing else is left"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    read = Archive(path, identity[0], tmp_path)
    read.check()
    assert read.manifest["secrets"] == STORE
    part = read.extract(read.manifest["parts"][0], tmp_path)
    opened = subprocess.run(
        ["age", "-d", "-i", "-", str(part)], input=read.key.encode(), capture_output=True, check=True
    )
    assert opened.stdout == b"the graph " * 1000


def test_nothing_in_it_can_be_read_without_the_key(tmp_path: Path, identity: tuple[Path, str]) -> None:
    path = written(tmp_path, [identity[1]])
    content = path.read_bytes()
    for word in (SECRET, "the graph", "redis_admin", "example.com", "AGE-SECRET-KEY"):
        assert word.encode() not in content


def test_age_itself_opens_it(tmp_path: Path, identity: tuple[Path, str]) -> None:
    """For whoever has nothing but the archive, the key and age."""
    path = written(tmp_path, [identity[1]])
    script = """
    tar -xf "$1"
    age -d -i "$2" key.age > /dev/shm/archive.$$.key
    age -d -i /dev/shm/archive.$$.key manifest.age
    rm /dev/shm/archive.$$.key
    """
    run = ["sh", "-euc", script, "sh", str(path), str(identity[0])]
    shown = subprocess.run(run, cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(shown.stdout)["secrets"] == STORE


def test_another_key_does_not_open_it(tmp_path: Path, identity: tuple[Path, str]) -> None:
    path = written(tmp_path, [identity[1]])
    with pytest.raises(
        ArchiveError, match=r"gatehouse_restore_identity: .* does not open .*no identity matched"
    ):
        Archive(path, key(tmp_path, "other.key")[0], tmp_path)


@pytest.mark.parametrize("name", ["gatehouse_restore_archive", "gatehouse_restore_identity"])
def test_what_is_not_there_is_named(tmp_path: Path, identity: tuple[Path, str], name: str) -> None:
    given = {
        "gatehouse_restore_archive": written(tmp_path, [identity[1]]),
        "gatehouse_restore_identity": identity[0],
    }
    given[name] = tmp_path / "nothing"
    with pytest.raises(ArchiveError, match=f"{name}: there is no .*nothing"):
        Archive(*given.values(), tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path, identity: tuple[Path, str]) -> None:
    path = tmp_path / "letter"
    path.write_text("Dear Ana,\n" * 1000)
    with pytest.raises(ArchiveError, match="no archive of backup"):
        Archive(path, identity[0], tmp_path)


@pytest.mark.parametrize("member", ["key.age", "manifest.age", "gate1.kept.age", "gate1.redis.age"])
def test_a_changed_byte_is_found(tmp_path: Path, identity: tuple[Path, str], member: str) -> None:
    path = written(tmp_path, [identity[1]])
    with tarfile.open(path) as tar:
        info = tar.getmember(member)
    content = bytearray(path.read_bytes())
    content[info.offset_data + info.size - 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"is damaged|does not open"):
        Archive(path, identity[0], tmp_path).check()


@pytest.mark.parametrize("kept", [0.1, 0.3, 0.6, 0.9])
def test_a_cut_is_found(tmp_path: Path, identity: tuple[Path, str], kept: float) -> None:
    path = written(tmp_path, [identity[1]])
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size
    path.write_bytes(path.read_bytes()[: int(end * kept)])
    with pytest.raises(ArchiveError, match="is damaged"):
        Archive(path, identity[0], tmp_path).check()


def test_a_part_of_another_archive_is_found(tmp_path: Path, identity: tuple[Path, str]) -> None:
    one, other = (written(tmp_path / name, [identity[1]]) for name in ("one", "other"))
    mixed = tmp_path / "mixed"
    with tarfile.open(mixed, "w") as new, tarfile.open(one) as first, tarfile.open(other) as second:
        for info in first.getmembers():
            source = second if info.name == "gate1.kept.age" else first
            new.addfile(source.getmember(info.name), source.extractfile(info.name))
    with pytest.raises(ArchiveError, match=r"gate1\.kept\.age is not what was written"):
        Archive(mixed, identity[0], tmp_path).check()


def test_another_format_is_refused(
    tmp_path: Path, identity: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FORMAT", 7)
    path = written(tmp_path, [identity[1]])
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match="has format 7, and this version of Gatehouse reads 1"):
        Archive(path, identity[0], tmp_path)


def test_another_site_is_refused(tmp_path: Path, identity: tuple[Path, str]) -> None:
    read = Archive(written(tmp_path, [identity[1]]), identity[0], tmp_path)
    read.refuse_unless_of("example.com")
    with pytest.raises(ArchiveError, match=r"is of example\.com, and gatehouse_domain is example\.org"):
        read.refuse_unless_of("example.org")


def test_recipients_are_needed_and_good(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="gatehouse_backup_recipients: is missing"):
        begin(tmp_path / "backups", [])
    with pytest.raises(ArchiveError, match=r"gatehouse_backup_recipients: age refuses them: .*age1nonsense"):
        begin(tmp_path / "backups", ["age1nonsense"])
    assert not (tmp_path / "backups").exists()


def test_without_age_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiveError, match="apt install age"):
        begin(tmp_path / "backups", ["age1x"])


def part(host: str, *components: str) -> dict[str, Any]:
    return {"file": f"{host}.age", "host": host, "components": list(components)}


def placed(*components: str, host: str) -> dict[str, Any]:
    return {"file": f"{host}.age", "components": list(components)}


def test_every_host_gets_its_own() -> None:
    parts = [part("a", "memory", "git"), part("b", "memory")]
    assert place(parts, {"a": ["git", "memory"], "b": ["memory"], "c": ["memory", "new"]}) == (
        {"a": [placed("git", "memory", host="a")], "b": [placed("memory", host="b")], "c": []},
        [],
    )


def test_a_host_of_another_name_takes_the_place_of_one_that_went() -> None:
    parts = [part("a", "memory"), part("gone", "memory", "git")]
    assert place(parts, {"a": ["memory"], "new": ["memory"], "git1": ["git"]}) == (
        {
            "a": [placed("memory", host="a")],
            "new": [placed("memory", host="gone")],
            "git1": [placed("git", host="gone")],
        },
        [],
    )


def test_what_has_no_place_is_named() -> None:
    parts = [part("a", "memory", "old"), part("b", "memory")]
    assert place(parts, {"a": ["memory"]}) == (
        {"a": [placed("memory", host="a")]},
        ["memory of b: no host takes its place", "old: it is not in the inventory"],
    )


def test_every_redis_gets_the_same_data() -> None:
    chosen, left = place([part("r1", "redis")], {"r1": ["redis"], "r2": ["redis"]})
    assert chosen == {"r1": [placed("redis", host="r1")], "r2": [placed("redis", host="r1")]}
    assert left == []


def test_components_of_a_host() -> None:
    groups = {"gateway_edge": ["e"], "gateway_redis": ["r"], "gateway_mcp": ["m"]}
    services = {"m": {"memory": {}, "time": {}}}
    assert [kept_components(host, groups, services) for host in "erm"] == [
        ["traefik"],
        ["redis"],
        ["memory", "time"],
    ]
