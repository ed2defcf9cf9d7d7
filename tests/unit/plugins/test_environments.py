"""Environments, built with the real `uv` from a wheel made here, and installed with the Python that runs the tests."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils import environments
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import (
    BuildError,
    Target,
    build,
    environment_id,
)
from ansible_collections.gatehouse.mcp.plugins.modules import environments as module

TARGET = Target(python="{}.{}".format(*sys.version_info), arch=platform.machine())


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of one package with a console script, a script of its own and a program."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    files = {
        "tiny/__init__.py": b"def main():\n    print('tiny runs')\n",
        "tiny-1.0.data/scripts/tiny-script": b"#!python\nimport sys\nprint(sys.prefix)\n",
        "tiny-1.0.data/scripts/tiny-program": b"\x7fELF\x00\xff",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/entry_points.txt": b"[console_scripts]\nTiny-run = tiny:main\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    files["tiny-1.0.dist-info/RECORD"] = (record + "tiny-1.0.dist-info/RECORD,,\n").encode()
    wheel = wheels / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(wheels)), ("CACHE_DIR", str(tmp_path / "uv"))):
        monkeypatch.setenv(f"UV_{name}", value)
    path = tmp_path / "requirements.lock"
    path.write_text(f"tiny==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "src" / "own_package"
    (folder / "data").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / "__init__.py").write_text("NAME = 'own'\n")
    (folder / "data" / "page.html").write_text("<p>")
    (folder / "__pycache__" / "x.pyc").write_text("")
    return folder


def test_the_id_is_of_all_that_goes_in(lock: Path, source: Path) -> None:
    first = environment_id(lock, [source], TARGET)
    assert len(first) == 16 and first == environment_id(lock, [source], TARGET)
    ids = {
        first,
        environment_id(lock, [], TARGET),
        environment_id(lock, [source], Target("3.99", TARGET.arch)),
        environment_id(lock, [source], Target(TARGET.python, "other")),
    }
    (source / "__pycache__" / "y.pyc").write_text("new")
    assert environment_id(lock, [source], TARGET) == first
    (source / "data" / "page.html").rename(source / "data" / "other.html")
    ids.add(environment_id(lock, [source], TARGET))
    lock.write_text(lock.read_text() + "# more\n")
    ids.add(environment_id(lock, [source], TARGET))
    assert len(ids) == 6


def test_what_is_not_there_is_named(lock: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"nothing: there is no such folder"):
        environment_id(lock, [tmp_path / "nothing"], TARGET)
    with pytest.raises(BuildError, match=r"no\.lock: there is no such file"):
        environment_id(tmp_path / "no.lock", [], TARGET)


def test_the_same_inputs_give_the_same_bytes(lock: Path, source: Path, tmp_path: Path) -> None:
    one, two = (build(tmp_path / name, "id", lock, [source], TARGET).read_bytes() for name in ("one", "two"))
    assert one == two
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        members = archive.getmembers()
        content = b"".join(file.read() for member in members if (file := archive.extractfile(member)))
    names = {member.name for member in members}
    assert {"tiny/__init__.py", "own_package/data/page.html", "bin/tiny-script", "bin/tiny-program"} <= names
    assert not names & {".lock", "bin/Tiny-run", "own_package/__pycache__"}
    assert {(member.uid, member.mtime) for member in members} == {(0, 0)}
    assert str(tmp_path).encode() not in content


def test_many_hosts_build_once(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    install = environments.install
    monkeypatch.setattr(environments, "install", lambda *args: (built.append(1), install(*args)))
    with ThreadPoolExecutor(4) as pool:
        archives = set(pool.map(lambda _: build(tmp_path / "cache", "id", lock, [], TARGET), range(4)))
    assert len(archives) == len(built) == 1


def test_a_wrong_hash_is_refused_with_what_uv_says(lock: Path, tmp_path: Path) -> None:
    lock.write_text("tiny==1.0 --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(BuildError, match=r"(?is)requirements\.lock: cannot be installed.*hash"):
        build(tmp_path / "cache", "id", lock, [], TARGET)
    assert not list((tmp_path / "cache" / "environments").glob("*.tar.gz"))


def test_a_lock_without_hashes_is_refused(lock: Path, tmp_path: Path) -> None:
    lock.write_text("tiny==1.0\n")
    with pytest.raises(BuildError, match=r"(?i)hash"):
        build(tmp_path / "cache", "id", lock, [], TARGET)


def test_no_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="pip install uv"):
        environments.find_uv()


def install(root: Path, archive: Path) -> Path:
    root.mkdir(exist_ok=True)
    module.install(root, sys.executable, TARGET.python, "id", str(archive))
    return root / "id"


def run(*command: str | Path) -> str:
    return subprocess.run(list(command), capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_what_is_installed_runs_from_its_final_place(lock: Path, source: Path, tmp_path: Path) -> None:
    root = tmp_path / "environments"
    final = install(root, build(tmp_path / "cache", "id", lock, [source], TARGET))
    assert [path.name for path in root.iterdir()] == ["id"]
    assert run(final / "bin" / "Tiny-run") == "tiny runs"
    assert run(final / "bin" / "tiny-script") == str(final)
    assert (final / "bin" / "tiny-program").read_bytes() == b"\x7fELF\x00\xff"
    where = "import own_package, tiny; print(own_package.NAME, tiny.main.__code__.co_filename)"
    assert run(final / "bin" / "python", "-c", where) == (
        f"own {final}/lib/python{TARGET.python}/site-packages/tiny/__init__.py"
    )
    files = [path for path in final.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if b".new-" in path.read_bytes()]


def test_modes_and_byte_code(lock: Path, tmp_path: Path) -> None:
    final = install(tmp_path / "environments", build(tmp_path / "cache", "id", lock, [], TARGET))
    for path in (final, *final.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o7777
            assert mode == (0o755 if path.is_dir() or mode & 0o100 else 0o644), path
    [compiled] = final.rglob("tiny/__pycache__/*.pyc")
    # Flags of PEP 552: from a hash, which is not checked.
    assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../../outside", tarfile.REGTYPE), ("/outside", tarfile.REGTYPE), ("link", tarfile.SYMTYPE),
     ("link", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)],
)  # fmt: skip
def test_an_archive_of_anything_but_files_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    archive = tmp_path / "bad.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc"
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(tarfile.TarError, match="not allowed"):
        install(tmp_path / "environments", archive)
    assert os.listdir(tmp_path / "environments") == []


def test_a_broken_installation_leaves_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "bad.tar.gz"
    archive.write_bytes(b"no archive")
    with pytest.raises(tarfile.TarError):
        install(tmp_path / "environments", archive)
    assert os.listdir(tmp_path / "environments") == []
