"""A restart that is owed is found, and none that is not."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.gatehouse.mcp.plugins.modules.unit_loaded import newer_than


def test_files_that_changed_since(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path, moment in ((old, 1000), (new, 3000)):
        path.write_text("")
        os.utime(path, (moment, moment))
    assert newer_than(2000, [str(old), str(new), str(tmp_path / "none")]) == [str(new)]


def test_of_a_link_the_link_itself_counts(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "current"
    target.write_text("")
    os.utime(target, (1000, 1000))
    link.symlink_to(target)
    os.utime(link, (3000, 3000), follow_symlinks=False)
    assert newer_than(2000, [str(link)]) == [str(link)]
