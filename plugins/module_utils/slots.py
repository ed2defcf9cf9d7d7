# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Components that run from one of two slots, so that a new release starts beside the old one.

`docs/contracts.md` has the layout. Runs on the host with nothing but the standard library.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OPT = Path("/opt/gatehouse")
ETC = Path("/etc/gatehouse")
UNITS = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d")
SLOTS = ("a", "b")
LOG_LINES = 20


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `systemctl`."""
    return subprocess.run(["systemctl", *arguments], check=check, capture_output=True, text=True)


def write_file(path: Path, content: str, mode: int, group: int = 0) -> None:
    """Replace a file atomically; it is never there with a wider mode."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        os.fchown(file.fileno(), 0, group)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def link(path: Path, target: str) -> None:
    """Point a symbolic link somewhere, atomically."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def read(path: Path) -> str | None:
    """A file's text, or None where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def render_env(env: Mapping[str, str]) -> str:
    """Write variables as systemd reads them (systemd.exec(5), `EnvironmentFile=`).

    Raises:
        ValueError: A value has a line break, which a line cannot hold.
    """
    lines = ["# Managed by Gatehouse."]
    for name, value in sorted(env.items()):
        if "\n" in value or "\r" in value or "\0" in value:
            raise ValueError(f"{name} has a line break; a configuration value is one line")
        escaped = "".join(f"\\{c}" if c in '"\\`$' else c for c in value)
        lines.append(f'{name}="{escaped}"')
    return "\n".join(lines) + "\n"


@dataclass
class Component:
    """One component as it should be.

    `unit` and the URLs in `health` may hold `@SLOT@`, `@PORT@`, `@RELEASE@` and `@CREDENTIALS@`.
    """

    name: str
    group: str
    unit: str
    env: dict[str, str]
    credentials: dict[str, str]
    port: int
    environments: list[str]
    health: list[dict[str, Any]]
    dotenv: str = field(init=False)
    release: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the release: a digest of all that goes in, save the secrets."""
        self.dotenv = render_env(self.env)
        everything = json.dumps(
            [self.unit, self.dotenv, self.port, self.environments, self.health], sort_keys=True
        )
        self.release = hashlib.sha256(everything.encode()).hexdigest()[:16]

    def manifest(self) -> str:
        """What is remembered of a release."""
        known = {
            "name": self.name,
            "group": self.group,
            "port": self.port,
            "environments": self.environments,
            "health": self.health,
        }
        return json.dumps(known, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Place:
    """Where a component is on the host, and what is there."""

    name: str

    @property
    def folder(self) -> Path:
        """Folder of the releases and slots."""
        return OPT / self.name

    @property
    def user(self) -> str:
        """System user and group."""
        return f"gatehouse-{self.name}"

    def unit(self, slot: str) -> str:
        """Name of a slot's unit."""
        return f"gatehouse-{self.name}@{slot}.service"

    def unit_file(self, slot: str) -> Path:
        """File of a slot's unit."""
        return UNITS / self.unit(slot)

    def credentials(self, slot: str) -> Path:
        """Folder of a slot's credentials."""
        return ETC / self.name / "credentials" / slot

    def pointer(self, name: str) -> str | None:
        """The slot that `current` or `next` points at."""
        try:
            slot = os.readlink(self.folder / name)
        except OSError:
            return None
        return slot if slot in SLOTS else None

    def release(self, slot: str | None) -> str | None:
        """Id of the release in a slot."""
        try:
            return os.path.basename(os.readlink(self.folder / slot)) if slot else None
        except OSError:
            return None

    def manifest(self, slot: str) -> dict[str, Any]:
        """Manifest of the release in a slot."""
        text = read(self.folder / slot / "manifest.json")
        return dict(json.loads(text)) if text else {}

    def active(self, slot: str) -> bool:
        """Whether a slot's unit is up."""
        return systemctl("is-active", "--quiet", self.unit(slot), check=False).returncode == 0

    def serving(self) -> str | None:
        """The slot that Traefik is, or is about to be, switched to."""
        return self.pointer("next") or self.pointer("current")

    def clear_slot(self, slot: str) -> None:
        """Remove a stopped slot's files; the caller reloads systemd."""
        self.unit_file(slot).unlink(missing_ok=True)
        shutil.rmtree(self.credentials(slot), ignore_errors=True)
        (self.folder / slot).unlink(missing_ok=True)


def fill(text: str, place: Place, slot: str, port: int) -> str:
    """Replace the placeholders of a unit."""
    for placeholder, value in (
        ("@SLOT@", slot),
        ("@PORT@", str(slot_port(port, slot))),
        ("@RELEASE@", str(place.folder / slot)),
        ("@CREDENTIALS@", str(place.credentials(slot))),
    ):
        text = text.replace(placeholder, value)
    return text


def slot_port(port: int, slot: str) -> int:
    """Port of a slot: the component's own for `a`, the next one for `b`."""
    return port + SLOTS.index(slot)


def installed() -> Iterator[Place]:
    """Every component with slots on this host."""
    for folder in sorted(OPT.iterdir()) if OPT.is_dir() else ():
        place = Place(folder.name)
        if place.serving():
            yield place


def log_tail(unit: str, secrets: list[str]) -> str:
    """The last log lines of a unit's latest start, with secrets blotted out."""
    run = subprocess.run(
        ["journalctl", "--no-pager", "--output", "cat", "--lines", str(LOG_LINES), "--unit", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    text = run.stdout
    for secret in sorted(secrets, key=len, reverse=True):
        for line in {secret, *secret.splitlines()}:
            if len(line) >= 8:
                text = text.replace(line, "[secret]")
    return text.strip()


def user_exists(name: str) -> bool:
    """Whether a system user is there."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def group_id(name: str) -> int:
    """Id of a system group."""
    return grp.getgrnam(name).gr_gid


def remove(places: list[Place]) -> None:
    """Remove components entirely."""
    units = [place.unit(slot) for place in places for slot in SLOTS]
    systemctl("disable", "--quiet", *units, check=False)
    systemctl("stop", *units, check=False)
    for place in places:
        for slot in SLOTS:
            place.clear_slot(slot)
        for folder in (
            place.folder,
            ETC / place.name,
            Path("/var/lib") / place.user,
            Path("/var/cache") / place.user,
        ):
            shutil.rmtree(folder, ignore_errors=True)
        (SYSUSERS / f"{place.user}.conf").unlink(missing_ok=True)
        if user_exists(place.user):
            subprocess.run(["userdel", place.user], check=True, capture_output=True)
    systemctl("daemon-reload")
    systemctl("reset-failed", *units, check=False)
