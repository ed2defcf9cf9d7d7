"""What `backup` and `restore` refuse before any host is touched: the host here does not even exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_refusals import GOOD, ROOT, play, write_inventory

sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.gatehouse.mcp.plugins.module_utils import archive

SECRET = "the-signing-key-of-the-fleet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an inventory, whose host does not answer."""
    write_inventory(tmp_path, GOOD)
    return tmp_path


@pytest.fixture
def identity(folder: Path) -> tuple[Path, str]:
    """A key, and its public half."""
    path = folder / "backup.key"
    made = subprocess.run(["age-keygen", "-o", str(path)], check=True, capture_output=True, text=True)
    return path, re.findall(r"age1\w+", made.stderr)[0]


def written(folder: Path, recipient: str, domain: str = "example.com") -> Path:
    """An archive of two services, one of which the inventory does not have."""
    unfinished, own = archive.begin(folder / "backups", [recipient])
    (unfinished / "gate1.kept.age").write_bytes(archive.age("age", "-r", own, stdin=b"graph " * 1000))
    part = {
        "file": "gate1.kept.age",
        "host": "gate1",
        "components": ["memory", "time"],
        "bytes": (unfinished / "gate1.kept.age").stat().st_size,
        "sha256": archive.digest(unfinished / "gate1.kept.age"),
    }
    store = {"version": 1, "secrets": {"signing": {"kind": "es256", "entries": [{"value": SECRET}]}}}
    return archive.finish(unfinished, own, domain, store, [part])


def talk(
    playbook: str, folder: Path, variables: dict[str, Any], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a playbook at its most talkative."""
    given = ("-vvv", "--diff", *options, "--extra-vars", json.dumps(variables))
    return play(playbook, folder / "hosts.yml", *given)


def refused(run: subprocess.CompletedProcess[str], *says: str) -> None:
    assert run.returncode != 0
    said = " ".join(run.stdout.split())
    assert all(text in said for text in says), run.stdout[-2000:]
    assert "UNREACHABLE" not in run.stdout, "a host was contacted"
    assert SECRET not in run.stdout + run.stderr


def test_a_backup_that_nobody_could_open(folder: Path) -> None:
    given = {"gatehouse_backup_folder": str(folder / "backups")}
    refused(talk("backup.yml", folder, given), "gatehouse_backup_recipients: is missing", "age-keygen")
    assert not (folder / "backups").exists()


# covers: backup-refused
def test_bad_archives(folder: Path, identity: tuple[Path, str]) -> None:
    key, recipient = identity
    good = written(folder, recipient)
    other = folder / "other.key"
    other.write_bytes(archive.age("age-keygen"))
    cut = folder / "cut.tar"
    cut.write_bytes(good.read_bytes()[:-12_000])
    foreign = written(folder / "foreign", recipient, "example.org")
    for path, identity_file, *says in (
        (folder / "nothing.tar", key, "gatehouse_restore_archive: there is no", "name the file"),
        (good, other, "gatehouse_restore_identity:", "does not open", "no identity matched"),
        (cut, key, "gatehouse_restore_archive:", "is damaged", "take another copy"),
        (foreign, key, "is of example.org, and gatehouse_domain is example.com"),
    ):
        given = {"gatehouse_restore_archive": str(path), "gatehouse_restore_identity": str(identity_file)}
        refused(talk("restore.yml", folder, given), "No host was touched", *says)


def test_what_stays_in_the_archive_is_named_and_nothing_secret(
    folder: Path, identity: tuple[Path, str]
) -> None:
    path = written(folder, identity[1])
    given = {"gatehouse_restore_archive": str(path), "gatehouse_restore_identity": str(identity[0])}
    run = talk("restore.yml", folder, given)
    assert "Left out: memory: it is not in the inventory" in run.stdout
    assert "gate1 does not answer" in run.stdout, "hosts are asked only now"
    assert SECRET not in run.stdout + run.stderr
    assert "AGE-SECRET-KEY" not in run.stdout + run.stderr
