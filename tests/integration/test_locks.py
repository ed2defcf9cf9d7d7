"""A package without a lock gets one, beside the inventory; a dry run leaves the inventory as it is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The wheel of Node.js is large: it is kept between runs, and nothing else is.
WHEEL = ROOT / ".cache" / "unit" / "node"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    WHEEL.mkdir(parents=True, exist_ok=True)
    (folder / "node").symlink_to(WHEEL)
    return folder


def lock(package: str, folder: Path, cache: Path, *options: str) -> tuple[int, str]:
    """Run the module on this machine; its status and what it printed."""
    arguments = {"packages": [package], "folder": str(folder), "cache": str(cache)}
    run = subprocess.run(
        [
            "ansible",
            "localhost",
            "-i",
            "localhost,",
            "-m",
            "gatehouse.mcp.locks",
            "-a",
            json.dumps(arguments),
            *options,
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "npm_config_offline": "true",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return run.returncode, run.stdout


def test_an_npm_package_gets_a_lock_once(tmp_path: Path, cache: Path) -> None:
    tarball, folder = tmp_path / "tiny.tgz", tmp_path / "locks"
    with tarfile.open(tarball, "w:gz") as tar:
        member = tarfile.TarInfo("package/package.json")
        content = b'{"name": "@acme/tiny", "version": "1.0.0", "bin": "main.js"}'
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    package = f"npm:@acme/tiny==file:{tarball}"

    status, said = lock(package, folder, cache, "--check")
    assert (status, folder.exists()) == (0, False), said
    assert "CHANGED" in said
    assert len(list((cache / "locks").iterdir())) == 1, "the id of the environment is known all the same"

    status, said = lock(package, folder, cache)
    [written] = folder.iterdir()
    assert status == 0 and "CHANGED" in said and str(written) in said
    assert written.name.endswith(".package-lock.txt")
    locked = json.loads(written.read_text())["packages"]["node_modules/@acme/tiny"]
    assert locked["integrity"].startswith("sha512-") and locked["bin"] == {"tiny": "main.js"}

    before = written.stat()
    status, said = lock(package, folder, cache)
    assert status == 0 and "SUCCESS" in said, "the second run changes nothing"
    assert written.stat() == before


def test_what_cannot_be_resolved_is_named(tmp_path: Path, cache: Path) -> None:
    status, said = lock("npm:acme-nothing==1.0.0", tmp_path / "locks", cache)
    assert status != 0
    assert "npm:acme-nothing==1.0.0: cannot be resolved" in said
    assert not (tmp_path / "locks").exists()
