# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The archive of a backup. Runs on the controller.

It is a tar of files that age has encrypted: `key.age`, a key of this archive's own, for the operator's recipients;
`manifest.age`, for that key; and the parts that the hosts encrypted for it. So hosts and controller see the operator's
public keys at most, and for a restore a host gets the archive's key, and the parts that are for it as they are.

The manifest is `{"format": 1, "domain": …, "created": …, "secrets": {a store; see secrets.py}, "parts": [part, …]}`.
A part has `file`, `host`, `components`, `bytes` and `sha256`; so whoever changes or cuts the archive is found out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

FORMAT = 1
KEY, MANIFEST = "key.age", "manifest.age"
# More than either can have: what is read into memory is bounded.
SMALL = 64 * 1024 * 1024
BLOCK = 1024 * 1024
IDENTITY = re.compile(r"^AGE-SECRET-KEY-1[A-Z0-9]+$", re.MULTILINE)
RECIPIENT = re.compile(r"^# public key: (age1[a-z0-9]+)$", re.MULTILINE)


class ArchiveError(Exception):
    """The archive cannot be made or used; the message is a sentence for the operator, and quotes no secret."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def age(program: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run `age` or `age-keygen`; what is secret goes in and comes out by pipes.

    Raises:
        ArchiveError: It is not there, or says no.
    """
    try:
        done = subprocess.run([program, *arguments], input=stdin, capture_output=True, check=False)
    except FileNotFoundError:
        raise ArchiveError(
            f"{program} is not on the controller; install age: apt install age, or https://age-encryption.org"
        ) from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = [line for line in lines if "report unexpected" not in line]
        raise ArchiveError(
            "; ".join(said).replace("age: error: ", "") or f"{program} ended with status {done.returncode}"
        )
    return done.stdout


def new_key(recipients: Sequence[str]) -> tuple[str, bytes]:
    """A key for one archive: its public half, and all of it encrypted for the recipients.

    Raises:
        ArchiveError: There are no recipients, or age refuses them.
    """
    if not recipients:
        raise ArchiveError(
            "gatehouse_backup_recipients: is missing, so nobody could open the archive; make a key with"
            " `age-keygen -o backup.key`, keep it away from here, and name the public key that it prints"
        )
    made = age("age-keygen").decode()
    recipient = RECIPIENT.search(made)
    if not recipient:
        raise ArchiveError("age-keygen says nothing that could be understood")
    given = [word for name in recipients for word in ("--recipient", name)]
    try:
        return recipient[1], age("age", "--encrypt", *given, stdin=made.encode())
    except ArchiveError as error:
        raise ArchiveError(f"gatehouse_backup_recipients: age refuses them: {error}; correct them") from None


def begin(folder: Path, recipients: Sequence[str]) -> tuple[Path, str]:
    """Make a folder for the parts of an archive; it has the key in it.

    Returns:
        The folder, and the recipient that parts are to be encrypted for.

    Raises:
        ArchiveError, OSError: It cannot be made.
    """
    recipient, key = new_key(recipients)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    (made / KEY).write_bytes(key)
    return made, recipient


def finish(
    unfinished: Path, recipient: str, domain: str, secrets: Mapping[str, Any], parts: list[dict[str, Any]]
) -> Path:
    """Put the parts into one archive beside their folder, which goes.

    Raises:
        ArchiveError, OSError: It cannot be written.
    """
    now = int(time.time())
    manifest = {"format": FORMAT, "domain": domain, "created": now, "secrets": secrets, "parts": parts}
    sealed = age("age", "--encrypt", "--recipient", recipient, stdin=json.dumps(manifest).encode())
    (unfinished / MANIFEST).write_bytes(sealed)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    path = unfinished.parent / f"gatehouse-{domain}-{stamp}.tar"
    partial = unfinished / "archive"
    with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in (KEY, MANIFEST, *(part["file"] for part in parts)):
                source = unfinished / name
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = source.stat().st_size, now, 0o600
                with source.open("rb") as content:
                    tar.addfile(info, content)
                source.unlink()
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    unfinished.rmdir()
    return path


class Archive:
    """An archive that is what it was when it was written.

    Args:
        path: The archive.
        identity: File with the operator's key.
        scratch: Folder for what is encrypted still.

    Raises:
        ArchiveError: It is not there, is damaged, of another format, or not for this key.
    """

    def __init__(self, path: Path, identity: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch
        if not path.is_file():
            raise ArchiveError(
                f"gatehouse_restore_archive: there is no {path}; name the file that backup wrote"
            )
        if not identity.is_file():
            raise ArchiveError(
                f"gatehouse_restore_identity: there is no {identity}; name the file with the key that backup's"
                " recipient belongs to"
            )
        try:
            made = age("age", "--decrypt", "--identity", str(identity), stdin=self._small(KEY)).decode()
        except ArchiveError as error:
            raise ArchiveError(
                f"gatehouse_restore_identity: {identity} does not open {path}: {error}; name the file with the key"
                " that one of gatehouse_backup_recipients belongs to"
            ) from None
        found = IDENTITY.search(made)
        if not found:
            raise self._damaged("its key is none")
        self.key = found[0]
        self.manifest = self._read_manifest()

    def _damaged(self, why: str) -> ArchiveError:
        return ArchiveError(
            f"gatehouse_restore_archive: {self.path} is damaged, or no archive of backup ({why}); take another copy"
        )

    def _read_manifest(self) -> dict[str, Any]:
        sealed = self._small(MANIFEST)
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            file.write(sealed)
            file.flush()
            try:
                # The key by a pipe, what it opens by its name.
                text = age("age", "--decrypt", "--identity", "-", file.name, stdin=self.key.encode())
                manifest = json.loads(text)
                version = manifest["format"]
            except (ArchiveError, ValueError, KeyError, TypeError):
                raise self._damaged("its manifest cannot be read") from None
        if version != FORMAT:
            raise ArchiveError(
                f"gatehouse_restore_archive: {self.path} has format {version}, and this version of Gatehouse reads"
                f" {FORMAT}; use the version that wrote it, or a newer one"
            )
        return dict(manifest)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with tarfile.open(self.path, "r:") as tar:
                content = tar.extractfile(name)
                if content is None:
                    raise self._damaged(f"{name} is no file")
                yield content
        except (tarfile.TarError, KeyError) as error:
            raise self._damaged(f"{name}: {error}") from None

    def _small(self, name: str) -> bytes:
        with self._open(name) as content:
            return content.read(SMALL)

    def check(self) -> None:
        """Read all of it.

        Raises:
            ArchiveError: A part is not as it was written.
        """
        for part in self.manifest["parts"]:
            self._copy(part, None)

    def extract(self, part: Mapping[str, Any], folder: Path) -> Path:
        """Write a part, encrypted as it is, into a folder.

        Raises:
            ArchiveError: It is not as it was written.
        """
        path = folder / "part.age"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            self._copy(part, file)
        return path

    def _copy(self, part: Mapping[str, Any], target: IO[bytes] | None) -> None:
        known = hashlib.sha256()
        with self._open(part["file"]) as content:
            while block := content.read(BLOCK):
                known.update(block)
                if target:
                    target.write(block)
        if known.hexdigest() != part["sha256"]:
            raise self._damaged(f"{part['file']} is not what was written")

    def refuse_unless_of(self, domain: str) -> None:
        """See that it is this site's: the addresses in it are its tokens' audiences.

        Raises:
            ArchiveError: It is another's.
        """
        if self.manifest["domain"] != domain:
            raise ArchiveError(
                f"gatehouse_restore_archive: {self.path} is of {self.manifest['domain']}, and gatehouse_domain is"
                f" {domain}; name an archive of this site, or the inventory of that one"
            )


def place(
    parts: Iterable[Mapping[str, Any]], wanted: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Say which host gets which components out of which part.

    A host gets its own. What has no host of its name any more goes to those that have a component and no part of it, in
    order. All of a fleet's Redis servers get the same data.

    Args:
        parts: As the manifest has them.
        wanted: The components of each host, as the inventory has them.

    Returns:
        For each host its parts, each with `file` and `components`; and a sentence for each thing that has no place.
    """
    sources: dict[str, dict[str, str]] = {}
    for part in parts:
        for component in part["components"]:
            sources.setdefault(component, {})[part["host"]] = part["file"]
    chosen: dict[str, dict[str, list[str]]] = {host: {} for host in wanted}
    left: list[str] = []
    for component, files in sorted(sources.items()):
        hosts = [host for host, components in wanted.items() if component in components]
        if component == "redis":
            files = dict.fromkeys(hosts, next(iter(files.values())))
        without = [host for host in hosts if host not in files]
        homeless = [host for host in files if host not in hosts]
        given = {host: host for host in hosts if host in files} | dict(zip(without, homeless, strict=False))
        for host, source in given.items():
            chosen[host].setdefault(files[source], []).append(component)
        if hosts:
            left += [f"{component} of {host}: no host takes its place" for host in homeless[len(without) :]]
        else:
            left.append(f"{component}: it is not in the inventory")
    return {
        host: [{"file": file, "components": components} for file, components in files.items()]
        for host, files in chosen.items()
    }, left
