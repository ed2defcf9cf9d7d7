"""A host's parts of a backup, with real age: unpacked beside what is there, all of them or nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils import kept
from ansible_collections.gatehouse.mcp.plugins.module_utils.archive import age
from ansible_collections.gatehouse.mcp.plugins.modules import backup_parts, restore_parts


@pytest.fixture
def key() -> tuple[str, str]:
    """A key and its public half."""
    made = age("age-keygen").decode()
    return re.findall(r"AGE-SECRET-KEY\S+", made)[0], re.findall(r"age1\w+", made)[0]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where components keep what they have, one of which has something."""
    folder = tmp_path / "lib"
    monkeypatch.setattr(kept, "STATE", folder)
    path = folder / "gatehouse-memory" / "graph.json"
    path.parent.mkdir(parents=True)
    path.write_text("before")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


@pytest.fixture
def part(state: Path, key: tuple[str, str]) -> dict[str, Any]:
    path = state.parent / "kept.age"
    assert backup_parts.seal({"memory": state / "gatehouse-memory"}, key[1], path) == []
    assert path.stat().st_mode & 0o777 == 0o600
    return {"path": str(path), "components": ["memory"]}


def test_it_is_unpacked_beside_what_is_there(state: Path, part: dict[str, Any], key: tuple[str, str]) -> None:
    graph = state / "gatehouse-memory" / "graph.json"
    graph.write_text("after")
    restore_parts.stage([part], key[0], [graph.parent])
    restore_parts.stage([part], key[0], [graph.parent])  # again, after something else broke off
    assert graph.read_text() == "after"
    assert (state / "gatehouse-memory.new" / "graph.json").read_text() == "before"
    assert (state / "gatehouse-memory.new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["cut", "changed", "another key"])
def test_what_cannot_be_unpacked_leaves_nothing(
    state: Path, part: dict[str, Any], key: tuple[str, str], damage: str
) -> None:
    path = Path(part["path"])
    content = bytearray(path.read_bytes())
    identity = key[0]
    if damage == "cut":
        del content[-20:]
    elif damage == "changed":
        content[-20] ^= 1
    else:
        identity = re.findall(r"AGE-SECRET-KEY\S+", age("age-keygen").decode())[0]
    path.write_bytes(content)
    with pytest.raises((restore_parts.Failed, ValueError)):
        restore_parts.stage([part], identity, [state / "gatehouse-memory"])
    assert [entry.name for entry in state.iterdir()] == ["gatehouse-memory"]


def test_what_cannot_be_replaced_is_named(
    state: Path, part: dict[str, Any], key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith("gatehouse-memory"))
    with pytest.raises(restore_parts.Failed, match=r"gatehouse-memory is a mount point.*unmount it"):
        restore_parts.stage([part], key[0], [state / "gatehouse-memory"])


def test_the_secrets_that_were_there_first_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gatehouse" / "secrets" / "store.json"
    monkeypatch.setattr(restore_parts, "SECRETS", path)
    restore_parts.keep_secrets()
    old = path.with_name("store.json.old")
    assert '"secrets": {}' in old.read_text(), "there were none"
    assert old.stat().st_mode & 0o777 == 0o600
    old.unlink()
    path.write_text("first")
    restore_parts.keep_secrets()
    path.write_text("from the archive")
    restore_parts.keep_secrets()
    assert old.read_text() == "first"
    assert not kept.occupied(path)
