# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Components that run from one of two slots, so that a new release starts beside the old one.

`docs/contracts.md` has the layout. Runs on the host with nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OPT = Path("/opt/gatehouse")
ETC = Path("/etc/gatehouse")
UNITS = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d")
STATE = Path("/var/lib")
CACHE = Path("/var/cache")
LOCK = Path("/run/gatehouse-components.lock")
SLOTS = ("a", "b")
# Components without slots, and their units.
SINGLE = {
    "redis": ("gatehouse-redis.service",),
    "traefik": (
        "gatehouse-traefik-web.socket",
        "gatehouse-traefik-websecure.socket",
        "gatehouse-traefik.service",
    ),
}
LOG_LINES = 20
# A secret shorter than this is not worth the name, and blotting it out would garble the log.
SECRET_MIN = 8

# With its prefix, the name of a user (31 characters) and of a folder beside `environments`.
COMPONENT_NAME = re.compile(r"(?!environments$)[a-z][a-z0-9-]{0,20}")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FILE_NAME = re.compile(r"(?!credentials$)[A-Za-z0-9_][A-Za-z0-9_.-]*")
CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `systemctl`."""
    return subprocess.run(["systemctl", *arguments], check=check, capture_output=True, text=True)


def ask(verb: str, units: list[str]) -> dict[str, str]:
    """What `is-active` or `is-enabled` says of each unit, from one call for all."""
    if not units:
        return {}
    answer = systemctl(verb, *units, check=False).stdout.splitlines()
    return dict(zip(units, answer, strict=False))


@contextlib.contextmanager
def exclusive(wanted: bool = True) -> Iterator[None]:
    """Keep two runs from changing the slots of one host at the same time; the second waits."""
    if not wanted:
        yield
        return
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
        ValueError: A name or value that a line cannot hold.
    """
    lines = ["# Managed by Gatehouse."]
    for name, value in sorted(env.items()):
        if not VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a variable")
        if not isinstance(value, str):
            raise ValueError(f"{name} is a {type(value).__name__}; a configuration value is a string")
        if any(c in value for c in "\n\r\0"):
            raise ValueError(f"{name} has a line break; a configuration value is one line")
        escaped = "".join(f"\\{c}" if c in '"\\`$' else c for c in value)
        lines.append(f'{name}="{escaped}"')
    return "\n".join(lines) + "\n"


@dataclass
class Component:
    """One component as it should be.

    `live_files` are no part of the release: one file of each name serves both slots, and a running unit reads them again
    when it is told to reload. `unit` and the values of `env` may hold `@SLOT@`, `@PORT@`, `@RELEASE@` and `@CREDENTIALS@`; URLs in `health` `@PORT@`.

    Raises:
        ValueError: It cannot be so; the message says why and never quotes a credential.
    """

    name: str
    group: str
    unit: str
    env: dict[str, str]
    credentials: dict[str, str]
    port: int
    environments: list[str]
    health: list[dict[str, Any]]
    live_files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what becomes a path, a user or a line in a file."""
        if not COMPONENT_NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r}: a name has at most 21 lower-case letters, digits and hyphens, a letter first"
            )
        if self.port % 2 or not 1024 <= self.port < 65535:
            raise ValueError(f"{self.name}: port {self.port} must be even, from 1024 to 65534")
        for name in self.live_files:
            if not FILE_NAME.fullmatch(name):
                raise ValueError(f"{self.name}: {name!r} is no name of a file beside .env and credentials")
        for name, value in self.credentials.items():
            if not CREDENTIAL_NAME.fullmatch(name):
                raise ValueError(f"{self.name}: {name!r} is no name of a credential")
            if not isinstance(value, str):
                raise ValueError(
                    f"{self.name}: credential {name} is a {type(value).__name__}; it must be a string"
                )
        try:
            render_env(self.env)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def dotenv(self, slot: str) -> str:
        """The `.env` of a slot; the same for both unless a value has a placeholder."""
        return fill(render_env(self.env), Place(self.name), slot, self.port)

    def unit_text(self, slot: str) -> str:
        """The unit of a slot."""
        return fill(self.unit, Place(self.name), slot, self.port)

    def release(self, slot: str) -> str:
        """Id of the release: a digest of all that goes in, save the secrets."""
        everything = json.dumps(
            [self.unit, self.dotenv(slot), self.port, self.environments, self.health], sort_keys=True
        )
        return hashlib.sha256(everything.encode()).hexdigest()[:16]

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

    @property
    def units(self) -> tuple[str, ...]:
        """Names of all its units."""
        return SINGLE.get(self.name) or tuple(map(self.unit, SLOTS))

    def unit(self, slot: str) -> str:
        """Name of a slot's unit."""
        return f"gatehouse-{self.name}@{slot}.service"

    def unit_file(self, slot: str) -> Path:
        """File of a slot's unit."""
        return UNITS / self.unit(slot)

    def credentials(self, slot: str) -> Path:
        """Folder of a slot's credentials."""
        return ETC / self.name / "credentials" / slot

    def live_file(self, name: str) -> Path:
        """A file that both slots read, and read again on reload."""
        return ETC / self.name / name

    @property
    def reload_due(self) -> Path:
        """Stands from before a live file changes until the unit has read it, so that a run that broke is made good."""
        return ETC / self.name / ".reload-due"

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
        return read_manifest(self.folder / slot / "manifest.json")

    def port(self, slot: str) -> int | None:
        """Port of what is in a slot."""
        port = self.manifest(slot).get("port")
        return slot_port(port, slot) if port else None

    @property
    def group(self) -> str | None:
        """Group that it was last started in."""
        newest = sorted(self.folder.glob("releases/*/manifest.json"), key=lambda path: path.stat().st_mtime)
        return str(read_manifest(newest[-1]).get("group")) if newest else None

    def serving(self) -> str | None:
        """The slot that Traefik is, or is about to be, switched to."""
        return self.pointer("next") or self.pointer("current")

    def occupied(self, slot: str) -> bool:
        """Whether anything is in a slot."""
        return (
            self.unit_file(slot).exists()
            or self.credentials(slot).exists()
            or os.path.lexists(self.folder / slot)
        )

    def clear_slot(self, slot: str) -> None:
        """Remove a stopped slot's files; the caller reloads systemd."""
        self.unit_file(slot).unlink(missing_ok=True)
        if self.credentials(slot).exists():
            shutil.rmtree(self.credentials(slot))
        (self.folder / slot).unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest; empty where it is missing or damaged."""
    try:
        return dict(json.loads(read(path) or "{}"))
    except (ValueError, TypeError):
        return {}


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
    """Every component with slots and releases on this host, whether or not one of them serves."""
    for folder in sorted(OPT.iterdir()) if OPT.is_dir() else ():
        if any(folder.glob("releases/*/manifest.json")):
            yield Place(folder.name)


def log_tail(unit: str, secrets: list[str]) -> str:
    """The last log lines of a unit, with secrets blotted out."""
    run = subprocess.run(
        ["journalctl", "--no-pager", "--output", "cat", "--lines", str(LOG_LINES), "--unit", unit],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return scrub(run.stdout.strip(), secrets)


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Blot out secrets in a text: whole, by line, the values of one in JSON, and as JSON or a URL would write them."""
    values = {part for secret in secrets for part in (secret, *secret.splitlines(), *_leaves(secret))}
    written = {
        form
        for value in values
        for form in (value, json.dumps(value)[1:-1], urllib.parse.quote(value, safe=""))
    }
    for form in sorted(written, key=len, reverse=True):
        if len(form) >= SECRET_MIN:
            text = text.replace(form, "[secret]")
    return text


def _leaves(secret: str) -> Iterator[str]:
    """The strings in a JSON document."""
    try:
        pending = [json.loads(secret)]
    except ValueError:
        return
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


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


def remove(places: list[Place], moved: Collection[str] = ()) -> None:
    """Remove components entirely; one whose removal broke off is still `installed`, and is taken up again.

    Args:
        places: The components.
        moved: Names of those that run elsewhere from now on: what they keep is nowhere else, and stays, root's.
    """
    units = [unit for place in places for unit in place.units]
    systemctl("disable", "--quiet", *units, check=False)
    systemctl("stop", *units, check=False)
    for place in places:
        for unit in place.units:
            (UNITS / unit).unlink(missing_ok=True)
        folders = [CACHE / place.user, ETC / place.name, place.folder]
        # What people have connected is in Redis alone: it stays with its owner, until an operator deletes it.
        if place.name != "redis":
            state = STATE / place.user
            if place.name not in moved:
                folders.insert(0, state)
            elif state.exists():
                # Its user's number may become another's. Systemd gives it back to its user where it comes again.
                os.chown(state, 0, 0)
            if user_exists(place.user):
                subprocess.run(["userdel", place.user], check=True, capture_output=True, text=True)
            (SYSUSERS / f"{place.user}.conf").unlink(missing_ok=True)
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)
    systemctl("daemon-reload")
    systemctl("reset-failed", *units, check=False)
