"""npm packages, built with the real npm from a tarball made here, and run with the real Node.js."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.action.environments import Environment
from ansible_collections.gatehouse.mcp.plugins.action.locks import file_name
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import BuildError, Target
from ansible_collections.gatehouse.mcp.plugins.module_utils.npm import (
    NODE_LOCK,
    Npm,
    build_node,
    build_npm,
    node_id,
    npm_id,
    programs,
    read_packages,
    write_lock,
)
from ansible_collections.gatehouse.mcp.plugins.modules import environments as module

ROOT = Path(__file__).parents[3]
ARCH = platform.machine()
TARGET = Target(python="{}.{}".format(*sys.version_info), arch=ARCH)
FILES = {
    "package/package.json": json.dumps(
        {
            "name": "@acme/tiny",
            "version": "1.0.0",
            "type": "module",
            "bin": {"acme-tiny": "./main.js"},
            "scripts": {"preinstall": "touch ran", "install": "touch ran", "postinstall": "touch ran"},
        }
    ).encode(),
    "package/main.js": b"console.log(process.version.split('.')[0], process.argv.slice(2).join('|'))\n",
}


@pytest.fixture(scope="module")
def kept() -> Path:
    """A cache that is kept between runs: the wheel of Node.js is large."""
    folder = ROOT / ".cache" / "unit"
    Npm(folder, NODE_LOCK)
    return folder


@pytest.fixture
def cache(kept: Path, tmp_path: Path) -> Path:
    """A cache with the wheel and nothing else."""
    return fresh(kept, tmp_path / "cache")


def fresh(kept: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "node").symlink_to(kept / "node")
    return folder


@pytest.fixture(scope="module")
def node() -> str:
    return node_id(NODE_LOCK, ARCH)


@pytest.fixture
def tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("npm_config_offline", "true")
    path = tmp_path / "tiny-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def lock(tmp_path: Path, tarball: Path) -> Path:
    """A lock of one package with a program, and with scripts that npm would run on its installation."""
    path = tmp_path / "package-lock.json"
    integrity = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    write(
        path,
        {
            "": {"dependencies": {"@acme/tiny": f"file:{tarball}"}},
            "node_modules/@acme/tiny": {
                "version": "1.0.0",
                "resolved": f"file:{tarball}",
                "integrity": f"sha512-{integrity}",
                "hasInstallScript": True,
                "bin": {"acme-tiny": "main.js"},
            },
        },
    )
    return path


def write(path: Path, packages: dict[str, Any]) -> None:
    document = {"name": "x", "lockfileVersion": 3, "requires": True, "packages": packages}
    path.write_text(json.dumps(document))


def change(lock: Path, **values: Any) -> None:
    packages = json.loads(lock.read_text())["packages"]
    packages["node_modules/@acme/tiny"] |= values
    write(lock, packages)


def build(cache: Path, lock: Path, node: str) -> Path:
    return build_npm(cache, npm_id(lock, node), lock, node, NODE_LOCK, ARCH)


def test_a_program_runs_and_no_script_ran(
    kept: Path, cache: Path, lock: Path, node: str, tmp_path: Path
) -> None:
    root = tmp_path / "environments"
    root.mkdir()
    installed = {
        node: build_node(kept, node, NODE_LOCK, TARGET),
        "tiny": build(cache, lock, node),
    }
    for identity, archive in installed.items():
        module.install(root, sys.executable, TARGET.python, identity, str(archive), venv=False)
    assert sorted(path.name for path in root.iterdir()) == sorted([node, "tiny"])
    assert [path.name for path in (root / node).rglob("*") if path.is_file()] == ["node"]
    files = {str(path.relative_to(root / "tiny")) for path in root.glob("tiny/**/*") if path.is_file()}
    package = "node_modules/@acme/tiny"
    assert files == {"bin/acme-tiny", "bin/tiny", f"{package}/main.js", f"{package}/package.json"}
    for name in ("acme-tiny", "tiny"):
        run = [str(root / "tiny" / "bin" / name), "a b", "$c"]
        shown = subprocess.run(run, capture_output=True, text=True, check=True, cwd="/", env={}).stdout
        assert shown == "v24 a b|$c\n"


def test_the_same_inputs_give_the_same_bytes(kept: Path, lock: Path, node: str, tmp_path: Path) -> None:
    one, two = (build(fresh(kept, tmp_path / name), lock, node).read_bytes() for name in ("one", "two"))
    assert one == two
    assert str(tmp_path).encode() not in one


def test_the_id_is_of_all_that_goes_in(lock: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lock"
    other.write_text("another Node.js")
    nodes = [node_id(NODE_LOCK, "x86_64"), node_id(NODE_LOCK, "aarch64"), node_id(other, "x86_64")]
    ids = {npm_id(lock, identity) for identity in nodes}
    change(lock, version="1.0.1")
    ids |= {npm_id(lock, identity) for identity in nodes}
    assert len(ids) == 6 and len(set(nodes)) == 3


def test_other_bytes_than_the_locks_are_refused(cache: Path, lock: Path, node: str) -> None:
    change(lock, integrity="sha512-" + base64.b64encode(bytes(64)).decode())
    with pytest.raises(BuildError, match=r"(?s)package-lock\.json: npm failed: .*EINTEGRITY"):
        build(cache, lock, node)
    assert not list((cache / "environments").glob("*.tar.gz"))


@pytest.mark.parametrize(
    "integrity", [None, "", "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "sha1-a= sha512-b=", "no"]
)
def test_what_cannot_be_verified_is_refused(lock: Path, integrity: str | None) -> None:
    change(lock, integrity=integrity)
    with pytest.raises(BuildError, match="@acme/tiny has no integrity digest"):
        read_packages(lock)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"packages": {}}', '{"packages": {"": {}}}', '{"dependencies": {}}']
)
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "package-lock.json"
    path.write_text(text)
    with pytest.raises(BuildError, match=r"is not a package-lock\.json"):
        read_packages(path)


def test_what_is_not_there_is_named(tmp_path: Path, lock: Path) -> None:
    with pytest.raises(BuildError, match=r"nothing\.json: there is no such file"):
        npm_id(tmp_path / "nothing.json", "node")
    write(lock, {"": {"dependencies": {"@acme/other": "1.0.0"}}})
    with pytest.raises(BuildError, match="@acme/other is missing"):
        read_packages(lock)


def test_a_program_that_is_not_there_is_named(cache: Path, lock: Path, node: str) -> None:
    change(lock, bin={"acme-tiny": "other.js"})
    with pytest.raises(BuildError, match=r"@acme/tiny/other\.js is not there"):
        build(cache, lock, node)


def test_programs() -> None:
    packages: dict[str, dict[str, Any]] = {
        "": {"dependencies": {"one": "1", "@acme/two": "1", "none": "1", "bad": "1"}},
        "node_modules/one": {"bin": {"x": "./x.js"}},
        "node_modules/@acme/two": {"bin": {"a": "a.js", "b": "dist/b.js"}},
        "node_modules/none": {},
        "node_modules/bad": {"bin": {"../y": "y.js", "z": "../../z.js", "w": "/bin/sh"}},
        "node_modules/indirect": {"bin": {"i": "i.js"}},
    }
    assert programs(packages) == {
        "one": "one/x.js",
        "x": "one/x.js",
        "a": "@acme/two/a.js",
        "b": "@acme/two/dist/b.js",
    }


def test_a_lock_that_is_written_can_be_read(cache: Path, tarball: Path, tmp_path: Path) -> None:
    text = write_lock(cache, "@acme/tiny", f"file:{tarball}")
    written = tmp_path / "written.txt"
    written.write_text(text)
    assert text == write_lock(cache, "@acme/tiny", f"file:{tarball}")
    assert programs(read_packages(written)) == {
        "acme-tiny": "@acme/tiny/main.js",
        "tiny": "@acme/tiny/main.js",
    }


def test_a_package_that_cannot_be_resolved(cache: Path, tarball: Path) -> None:
    with pytest.raises(BuildError, match=r"acme-nothing==1\.0\.0: npm failed"):
        write_lock(cache, "acme-nothing", "1.0.0")


def test_names_of_locks() -> None:
    assert file_name("pypi:acme-tickets==1.4.2") == "acme-tickets==1.4.2.txt"
    assert file_name("npm:@acme/tickets==1.4.2") == "@acme+tickets==1.4.2.package-lock.txt"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pypi:mcp[cli]==1.0", "pypi:mcp-cli==1.0"),
        ("npm:@acme/a-b==1.0.0", "npm:@acme-a/b==1.0.0"),
        ("pypi:mcp==1.0", "npm:mcp==1.0"),
    ],
)
def test_no_two_packages_share_a_lock(one: str, other: str) -> None:
    assert file_name(one) != file_name(other)


def test_npm_packages_need_node_beside_them(lock: Path) -> None:
    wanted = {"name": "tiny", "kind": "npm", "lock": str(lock), "sources": []}
    beside = {"name": "node", "kind": "node", "lock": str(NODE_LOCK), "sources": []}
    identity = Environment(wanted, [wanted, beside], TARGET).id
    assert identity == npm_id(lock, Environment(beside, [wanted, beside], TARGET).id)
    with pytest.raises(BuildError, match="tiny: npm packages need an environment of the kind node"):
        Environment(wanted, [wanted], TARGET)
