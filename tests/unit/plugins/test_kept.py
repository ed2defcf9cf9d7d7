"""What components keep: packed as it was at one moment, and unpacked where it belongs, and nowhere else."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils import kept

LONG_AGO = 1_700_000_000


def tree(root: Path) -> dict[str, str]:
    """Every path below a folder, with what is there."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = oct(path.lstat().st_mode & 0o7777)
        if path.is_symlink():
            found[str(path.relative_to(root))] = f"-> {path.readlink()}"
        else:
            found[str(path.relative_to(root))] = f"{mode} {'' if path.is_dir() else path.read_text()}"
    return found


def write(path: Path, text: str, mode: int = 0o600, *, when: float = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    os.utime(path, (when, when))
    return path


def packed(**folders: Path) -> tuple[io.BytesIO, list[str]]:
    stream = io.BytesIO()
    notes = kept.pack(folders, stream)
    stream.seek(0)
    return stream, notes


def stream_of(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    """A stream that `pack` did not write."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb") as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o600) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    memory, files = tmp_path / "memory", tmp_path / "files"
    write(memory / "graph.json", "{}")
    write(files / "a" / "b" / "run.sh", "#!/bin/sh\n", 0o750)
    write(files / "straße\udcff.txt", "odd")
    (files / "empty").mkdir(mode=0o755)
    (files / "a" / "up").symlink_to("../empty")
    stream, notes = packed(memory=memory, files=files, never=tmp_path / "never")
    assert notes == []
    kept.unpack(stream, {"memory": tmp_path / "m", "files": tmp_path / "f"})
    assert tree(tmp_path / "m") == tree(memory)
    assert tree(tmp_path / "f") == tree(files)
    assert (tmp_path / "m" / "graph.json").stat().st_mtime == LONG_AGO


def test_others_are_passed_over(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "file", name)
    stream, _ = packed(one=tmp_path / "one", two=tmp_path / "two")
    kept.unpack(stream, {"two": tmp_path / "new"})
    assert tree(tmp_path / "new") == tree(tmp_path / "two")


def test_what_is_no_state_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder / "suid", "x", 0o4755)
    (folder / "passwords").symlink_to("/etc/shadow")
    (folder / "above").symlink_to("../other")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        stream, notes = packed(service=folder)
    kept.unpack(stream, {"service": tmp_path / "new"})
    assert tree(tmp_path / "new") == {"suid": "0o755 x"}
    assert [note.split(" ")[0] for note in notes] == ["service/above", "service/passwords"]


def test_a_file_is_as_it_was_at_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer truncates a file, pauses, and goes on; what is read in between does not count."""
    monkeypatch.setattr(kept, "REST_SECONDS", 2)
    folder = tmp_path / "folder"
    path = write(folder / "graph.json", "old " * 1000)
    begun = threading.Event()

    def rewrite() -> None:
        with path.open("w") as file:
            file.write("new ")
            file.flush()
            begun.set()
            time.sleep(0.2)
            file.write("new " * 999)

    thread = threading.Thread(target=rewrite)
    thread.start()
    begun.wait()
    stream, notes = packed(service=folder)
    thread.join()
    kept.unpack(stream, {"service": tmp_path / "new"})
    assert (tmp_path / "new" / "graph.json").read_text() == "new " * 1000
    assert notes == []


def test_a_file_that_never_rests_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "REST_SECONDS", 0.0)
    folder = tmp_path / "folder"
    path = write(folder / "log", "line\n")
    add = tarfile.TarFile.addfile

    def meanwhile(self: tarfile.TarFile, info: tarfile.TarInfo, file: object = None) -> None:
        if info.isreg():
            with path.open("a") as log:
                log.write("line\n")
            # And one that shrinks has as many bytes as were promised.
            os.truncate(path, 3)
        add(self, info, file)  # type: ignore[arg-type]

    monkeypatch.setattr(tarfile.TarFile, "addfile", meanwhile)
    stream, notes = packed(service=folder)
    assert notes == ["service/log went on changing while it was read; it is as it was read last"]
    kept.unpack(stream, {"service": tmp_path / "new"})
    assert (tmp_path / "new" / "log").read_text() == "lin"


@pytest.mark.parametrize(
    "bad",
    [
        member("service/../../escape"),
        member("service//escape"),
        member("service/nowhere/escape"),
        member("service/link/escape"),
        member("service/./escape"),
        member("service/out", tarfile.SYMTYPE, "/etc"),
        member("service/out", tarfile.SYMTYPE, "../other"),
        member("service/out", tarfile.SYMTYPE, "a/../../other"),
        member("service/hard", tarfile.LNKTYPE, "/etc/passwd"),
        member("service/device", tarfile.CHRTYPE),
        member("service/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.linkname}",
)
def test_a_stream_leads_nowhere_else(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    link = member("service/link", tarfile.SYMTYPE, "folder")
    stream = stream_of((member("service/folder", tarfile.DIRTYPE), b""), (link, b""), (bad, b""))
    with pytest.raises(ValueError, match="service/"):
        kept.unpack(stream, {"service": tmp_path / "new"})
    assert {path.name for path in tmp_path.rglob("*")} <= {"new", "folder", "link"}


def test_modes_beyond_reading_and_writing_go(tmp_path: Path) -> None:
    kept.unpack(stream_of((member("service/suid", mode=0o6755), b"x")), {"service": tmp_path / "new"})
    assert tree(tmp_path / "new") == {"suid": "0o755 x"}


@pytest.mark.parametrize(
    "cut", [lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: b"x" + data]
)
def test_a_damaged_stream_is_refused(tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    write(tmp_path / "folder" / "file", "x" * 100_000)
    stream, _ = packed(service=tmp_path / "folder")
    with pytest.raises(ValueError, match="damaged"):
        kept.unpack(io.BytesIO(cut(stream.getvalue())), {"service": tmp_path / "new"})


class TestReplacing:
    """Whatever breaks off, what was there first is kept until the end."""

    def lay(self, tmp_path: Path) -> Path:
        write(tmp_path / "service" / "file", "first")
        write(tmp_path / "service.new" / "file", "from the archive")
        return tmp_path / "service"

    def test_replaced_and_done(self, tmp_path: Path) -> None:
        path = self.lay(tmp_path)
        assert kept.occupied(path)
        kept.replace(path)
        assert (path / "file").read_text() == "from the archive"
        assert (tmp_path / "service.old" / "file").read_text() == "first"
        assert not kept.occupied(path), "what a restore has put there is no loss"
        assert kept.clear([path], "old")
        assert [entry.name for entry in tmp_path.iterdir()] == ["service"]

    def test_again_after_it_broke_off(self, tmp_path: Path) -> None:
        path = self.lay(tmp_path)
        kept.replace(path)
        write(tmp_path / "service.new" / "file", "again")
        kept.replace(path)
        assert (path / "file").read_text() == "again"
        assert (tmp_path / "service.old" / "file").read_text() == "first"

    def test_broken_off_between_the_renames(self, tmp_path: Path) -> None:
        path = self.lay(tmp_path)
        path.rename(tmp_path / "service.old")
        kept.replace(path)
        assert (path / "file").read_text() == "from the archive"
        assert (tmp_path / "service.old" / "file").read_text() == "first"

    def test_where_there_was_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "service"
        assert not kept.occupied(path)
        write(tmp_path / "service.new" / "file", "from the archive")
        kept.replace(path)
        assert not kept.occupied(path)
        kept.clear([path], "old")
        assert kept.occupied(path)
