# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The root file system of a lab host: built once a release with mmdebstrap, from the controller's apt sources."""

from __future__ import annotations

import dataclasses
import fcntl
import glob
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

RELEASES = ("bookworm", "trixie")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "iproute2",
    "python3", "python3-apt", "ca-certificates",
)  # fmt: skip
# Kept in the root's apt cache, so that a rollout installs them without a download.
DOWNLOADED = ("age", "redis-server")
# They would take apt's lock at a random moment.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer")
# What a host needs not, and what makes its root half as large again.
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
RECIPE = 1  # raised when what `_finish` does changes
BUILD_SECONDS = 1200


# Runs what takes long: command, standard input, and descriptors that it and its children keep open.
Execute = Callable[[list[str], str, tuple[int, ...]], "subprocess.CompletedProcess[str]"]


class LabError(Exception):
    """Something that a person must know; the message is one sentence that says what to do."""


def run(
    command: Sequence[str], *, stdin: str | None = None, check: bool = True, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        LabError: It cannot start, takes longer than `timeout` seconds, or fails while `check` is set.
    """
    try:
        done = subprocess.run(
            command, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{command[0]} did not run: {error}") from error
    if check and done.returncode:
        raise LabError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold `folder`, made if need be; whoever holds it may remove it.

    Yields:
        The descriptor that carries the lock. A child that inherits it keeps the lock for as long as it lives, so
        an orphan of a killed run is waited for.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(descriptor), os.stat(folder))
            except FileNotFoundError:
                same = False
            if same:
                yield descriptor
                return
        finally:
            os.close(descriptor)


def certificates(bundle: str) -> list[str]:
    """The PEM certificates of a bundle, each without the text around it."""
    return re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", bundle, re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One apt source: where, and which suites."""

    uri: str
    suites: tuple[str, ...]


def parse_sources(files: Iterable[tuple[str, str]]) -> list[Entry]:
    """Read apt sources (sources.list(5)), one-line and deb822; disabled and source-only entries are left out.

    Args:
        files: name and text of each file.
    """
    entries = []
    for name, text in files:
        if name.endswith(".sources"):
            for paragraph in re.split(r"\n\s*\n", text):
                lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
                unfolded = re.sub(r"\n[ \t]+", " ", "\n".join(lines))
                fields = {
                    key.strip().lower(): value.split()
                    for key, colon, value in (line.partition(":") for line in unfolded.splitlines())
                    if colon
                }
                if "deb" in fields.get("types", []) and fields.get("enabled") not in (["no"], ["false"]):
                    entries += [Entry(uri, tuple(fields.get("suites", []))) for uri in fields.get("uris", [])]
        else:
            for line in text.splitlines():
                found = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", line)
                if found:
                    entries.append(Entry(found[1], (found[2],)))
    return entries


def mirrors(entries: Iterable[Entry], codename: str) -> tuple[str, str | None]:
    """The addresses of the Debian archive and of its security archive, as the controller uses them.

    Args:
        entries: the controller's apt sources.
        codename: the controller's own release.

    Raises:
        LabError: None of the entries is the Debian archive.
    """
    archive = security = None
    for entry in entries:
        if codename in entry.suites or "stable" in entry.suites:
            archive = archive or entry.uri
        if f"{codename}-security" in entry.suites or "stable-security" in entry.suites:
            security = security or entry.uri
    if archive is None:
        raise LabError(
            f"The lab builds its hosts from this machine's Debian mirror, but its apt sources name none for "
            f"`{codename}`; add one to /etc/apt/sources.list.d."
        )
    return archive, security


def lab_sources(archive: str, security: str | None, release: str) -> str:
    """The deb822 sources of a lab host."""
    wanted = [(archive, f"{release} {release}-updates")]
    if security:
        wanted.append((security, f"{release}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n"
        for uri, suites in wanted
    )


def _mirror(uri: str) -> str:
    """Follow apt's `mirror+file:` (as cloud images use it) to the first mirror of the list."""
    if not uri.startswith("mirror+file:"):
        return uri
    path = Path("/" + uri.removeprefix("mirror+file:").lstrip("/"))
    return next(line.split()[0] for line in path.read_text().splitlines() if line.strip() and line[0] != "#")


def controller_sources(release: str) -> str:
    """The sources of a lab host, from those of this machine."""
    files = [*glob.glob("/etc/apt/sources.list"), *sorted(glob.glob("/etc/apt/sources.list.d/*.*"))]
    entries = parse_sources(
        (name, Path(name).read_text()) for name in files if name.endswith((".list", ".sources"))
    )
    system = dict(
        re.findall(r'^(ID|VERSION_CODENAME)="?(\w+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    )
    if system.get("ID") != "debian":
        raise LabError(
            "The lab builds Debian hosts from this machine's own mirror, so this must be a Debian machine."
        )
    archive, security = mirrors(
        [Entry(_mirror(entry.uri), entry.suites) for entry in entries],
        system.get("VERSION_CODENAME", "stable"),
    )
    return lab_sources(archive, security, release)


def controller_apt_options() -> list[str]:
    """How this machine reaches its mirror: proxies, and whether a frozen mirror is accepted."""
    wanted = re.compile(r"Acquire::(https?::Proxy|Check-Valid-Until|Check-Date)\b")
    dump = run(["apt-config", "dump"]).stdout.splitlines()
    return ['Acquire::Languages "none";', *sorted(line for line in dump if wanted.match(line))]


class RootCache:
    """Roots below one folder, one for each release and set of inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, release: str) -> Path:
        """Where the root of `release` is or will be; another mirror, CA or recipe makes another path."""
        inputs = [
            RECIPE, PACKAGES, DOWNLOADED, MASKED, EXCLUDED, controller_sources(release), controller_apt_options(),
            hashlib.sha256(Path(CA_BUNDLE).read_bytes()).hexdigest(),
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
        return self.folder / f"{release}-{digest[:12]}"

    def copy(self, release: str, target: Path, holder: int, execute: Execute) -> None:
        """Copy the root of `release`, which is built if it is not there yet, and then replaces older ones.

        Args:
            release: Debian code name.
            target: folder that is not there yet.
            holder: descriptor of the lab's lock.
            execute: runs a command as part of the lab; see `Execute`.

        Raises:
            LabError: It cannot be built or copied.
        """
        root = self.find(release)
        with locked(self.folder) as lock:
            descriptors = (holder, lock)
            if not root.is_dir():
                new = self.folder / f"{release}.partial"
                remove_tree(new)
                built = execute(self._bootstrap(release, new), controller_sources(release), descriptors)
                if built.returncode:
                    remove_tree(new)
                    raise LabError(f"mmdebstrap could not build {release}: {built.stderr.strip()[-800:]}")
                self._finish(new)
                for old in self.folder.glob(f"{release}-*"):
                    remove_tree(old)
                new.rename(root)
            copied = execute(["cp", "--archive", "--reflink=auto", str(root), str(target)], "", descriptors)
            if copied.returncode:
                raise LabError(f"The root of {release} could not be copied: {copied.stderr.strip()[-800:]}")

    @staticmethod
    def _bootstrap(release: str, root: Path) -> list[str]:
        """The command that builds a root from the sources on its standard input."""
        options = [f"--aptopt={option}" for option in controller_apt_options()]
        options += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
        return [
            # Mounts of its own, which end with it however it ends; and an end, so that no orphan holds the locks.
            "unshare", "--mount",
            "timeout", "--foreground", "--kill-after=10", str(BUILD_SECONDS),
            "mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase",
            f"--include={','.join(PACKAGES)}", "--dpkgopt=force-unsafe-io", "--skip=cleanup/apt", *options,
            "--customize-hook=chroot \"$1\" apt-get clean",
            f"--customize-hook=chroot \"$1\" apt-get install -qq --no-install-recommends --download-only "
            f"{' '.join(DOWNLOADED)}",
            release, str(root), "-",
        ]  # fmt: skip

    @staticmethod
    def _finish(root: Path) -> None:
        """What every host has: the controller's CAs, the network, and no background work."""
        known = set(certificates((root / CA_BUNDLE[1:]).read_text()))
        extra = [pem for pem in certificates(Path(CA_BUNDLE).read_text()) if pem not in known]
        trusted = root / "usr/local/share/ca-certificates/controller"
        trusted.mkdir(parents=True)
        for number, pem in enumerate(extra):
            (trusted / f"{number}.crt").write_text(pem + "\n")
        run(["chroot", str(root), "update-ca-certificates"])
        for unit in MASKED:
            (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
        run(["chroot", str(root), "systemctl", "enable", "--quiet", "systemd-networkd.service"])
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        # A host gets its own; see `lab.py`.
        for name in ("etc/machine-id", "etc/resolv.conf", "etc/hostname"):
            (root / name).unlink(missing_ok=True)


def mounts_below(folder: Path) -> list[str]:
    """Mount points at or below a folder, the deepest first."""
    prefix = os.path.realpath(folder)
    points = [
        # octal escapes, proc(5)
        re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return sorted(
        (point for point in points if os.path.join(point, "").startswith(os.path.join(prefix, ""))),
        key=len,
        reverse=True,
    )


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, unmounting first whatever a killed process left mounted there.

    Raises:
        LabError: Something stays mounted or cannot be removed.
    """
    if not folder.exists():
        return
    for point in mounts_below(folder):
        run(["umount", "--lazy", point])
    # Never into another file system, whatever was mounted meanwhile.
    run(["rm", "--recursive", "--force", "--one-file-system", "--", str(folder)], timeout=120)
