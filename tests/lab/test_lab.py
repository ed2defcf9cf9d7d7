"""The lab itself, on this machine: real systemd hosts, two labs at once, crashes half way, and no trace afterwards.

Needs root. The labs are named `t-…`; whatever else runs here is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
ANSIBLE = str(Path(sys.executable).parent / "ansible-playbook")
REGISTRY = Path("/run/gatehouse-lab")


@pytest.fixture(autouse=True, scope="session")
def root() -> None:
    if os.geteuid() != 0:
        pytest.fail("The lab needs root.", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def interrupted_by_sigterm() -> None:
    """As by Ctrl-C, so that the labs are removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Lab:
    """A lab as a person uses it: by its two playbooks."""

    def __init__(self, name: str, *hosts: dict[str, Any], **variables: Any) -> None:
        self.name = name
        self.folder = ROOT / ".lab" / name
        self.variables = {"lab_name": name, **({"lab_hosts": list(hosts)} if hosts else {}), **variables}

    def command(self, playbook: str, *arguments: str) -> list[str]:
        path = str(ROOT / "playbooks" / f"{playbook}.yml")
        return [ANSIBLE, path, "--extra-vars", json.dumps(self.variables), *arguments]

    def play(
        self, playbook: str, *arguments: str, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *self.command(playbook, *arguments)],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def up(self) -> int:
        return changed(self.play("lab_up"))

    def down(self) -> int:
        return changed(self.play("lab_down"))

    def start_up(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command("lab_up"), cwd=ROOT, env=ENVIRONMENT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def number(self) -> int | None:
        for entry in REGISTRY.glob("[0-9]*"):
            if entry.is_file() and entry.read_text() == str(self.folder):
                return int(entry.name)
        return None

    @property
    def hosts(self) -> dict[str, dict[str, str]]:
        listed: dict[str, dict[str, str]] = json.loads((self.folder / "inventory.json").read_text())["_meta"][
            "hostvars"
        ]
        return listed

    def run(self, host: str, command: str) -> subprocess.CompletedProcess[str]:
        known = self.hosts[host]
        return subprocess.run(
            ["ssh", "-F", "/dev/null", "-i", known["ansible_ssh_private_key_file"], "-o", "BatchMode=yes",
             *known["ansible_ssh_common_args"].split(), f"root@{known['ansible_host']}", command],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def processes(self, program: str = "") -> list[int]:
        """Processes of this machine that have to do with this lab's folder or network."""
        marks = [str(self.folder)] + ([f"ghlab{self.number}-"] if self.number is not None else [])
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            named = program in ("", os.path.basename(command[0]))
            if named and int(entry.name) != os.getpid() and any(mark in " ".join(command) for mark in marks):
                found.append(int(entry.name))
        return found


def changed(run: subprocess.CompletedProcess[str]) -> int:
    """How many tasks changed something, of a run that went well."""
    assert run.returncode == 0, run.stdout + run.stderr
    recap = re.search(r"changed=(\d+)", run.stdout)
    assert recap, run.stdout
    return int(recap[1])


def traces(lab: Lab, number: int) -> list[str]:
    """What is left of a lab that had the network of that number."""
    name = f"ghlab{number}"
    found = [f"process {pid}" for pid in lab.processes()]
    links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    found += [link["ifname"] for link in links if re.fullmatch(rf"(vb-)?{name}(-.*)?", link["ifname"])]
    tables = subprocess.check_output(["nft", "list", "tables"], text=True).splitlines()
    found += [line for line in tables if line == f"table ip {name}"]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in mounts if str(lab.folder) in line or f"{name}-" in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").rglob(f"{name}.slice")]
    found += [str(path) for path in Path("/run/systemd/nspawn").glob(f"*/{name}-*")]
    found += [
        str(path)
        for path in (REGISTRY / str(number), REGISTRY / f"{number}.ssh", lab.folder)
        if path.exists()
    ]
    found += [line for line in Path("/etc/hosts").read_text().splitlines() if str(lab.folder) in line]
    return found


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started; Ansible's have sessions of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                int(stat.parent.name)
            )
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def kill(*pids: int) -> None:
    """SIGKILL, for those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs; those that a failed test leaves behind go."""
    made: list[Lab] = []

    def make(name: str, *hosts: dict[str, Any], **variables: Any) -> Lab:
        made.append(Lab(name, *hosts, **variables))
        return made[-1]

    yield make
    for lab in made:
        lab.play("lab_down")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a host of each release, one of them no edge."""
    two = Lab("t-both", {"name": "gate1"}, {"name": "mcp1", "release": "bookworm", "groups": ["gateway_mcp"]})
    two.down()
    assert two.up() > 0
    yield two
    two.down()


def test_it_boots_real_hosts_of_both_releases(lab: Lab) -> None:
    for host, release in (("gate1", "13"), ("mcp1", "12")):
        answer = lab.run(host, "systemctl is-system-running; cut -d. -f1 /etc/debian_version; hostname")
        assert answer.stdout.split() == ["running", release, host], answer


def test_a_second_run_changes_nothing(lab: Lab) -> None:
    before = lab.processes("systemd-nspawn")
    assert lab.up() == 0
    assert lab.processes("systemd-nspawn") == before


def test_a_dry_run_changes_nothing(lab: Lab) -> None:
    assert changed(lab.play("lab_up", "--check")) == 0
    fresh = Lab("t-dry")
    assert changed(fresh.play("lab_up", "--check")) == 1
    assert not fresh.folder.exists()
    assert changed(lab.play("lab_down", "--check")) == 1
    assert lab.run("gate1", "true").returncode == 0


def test_every_name_of_the_domain_is_the_edge(lab: Lab) -> None:
    edge, other = (lab.hosts[name]["ansible_host"] for name in ("gate1", "mcp1"))
    for host in lab.hosts:
        answer = lab.run(
            host, "getent ahostsv4 auth.t-both.test any.t-both.test mcp1.t-both.test | grep STREAM"
        )
        assert [line.split()[0] for line in answer.stdout.splitlines()] == [edge, edge, other]
    here = subprocess.check_output(["getent", "ahostsv4", "auth.t-both.test"], text=True)
    assert here.split()[0] == edge


def test_hosts_reach_the_mirror_and_trust_what_this_machine_trusts(lab: Lab) -> None:
    bundle = Path("/etc/ssl/certs/ca-certificates.crt").read_text()
    ours = set(re.findall(r"-----BEGIN CERTIFICATE-----[^-]+", bundle))
    for host in lab.hosts:
        assert lab.run(host, "apt-get update --error-on=any").returncode == 0
        theirs = lab.run(host, "cat /etc/ssl/certs/ca-certificates.crt").stdout
        assert ours <= set(re.findall(r"-----BEGIN CERTIFICATE-----[^-]+", theirs))


def test_redis_is_at_hand_but_not_installed(lab: Lab) -> None:
    for host in lab.hosts:
        assert lab.run(host, "ls /var/cache/apt/archives/redis-server_*.deb").returncode == 0
        assert lab.run(host, "command -v redis-server").returncode != 0


def test_systemd_s_sandbox_holds_inside(lab: Lab) -> None:
    gateway = lab.hosts["gate1"]["ansible_host"].rpartition(".")[0] + ".1"
    ask = f"python3 -c 'import socket; socket.create_connection((\"{gateway}\", 53), 2)'"
    for host in lab.hosts:
        sandbox = "-p DynamicUser=yes -p PrivateUsers=yes -p ProtectSystem=strict -p SystemCallFilter=@system-service"
        assert lab.run(host, f"systemd-run --wait --quiet {sandbox} {ask}").returncode == 0
        assert (
            lab.run(host, f"systemd-run --wait --quiet {sandbox} -p IPAddressDeny=any {ask}").returncode != 0
        )


def test_a_host_reboots(lab: Lab) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = lab.run("mcp1", boot).stdout
    lab.run("mcp1", "systemctl reboot")
    wait_for(lambda: lab.run("mcp1", boot).stdout not in ("", before))
    assert lab.run("mcp1", "systemctl is-system-running --wait").stdout.strip() == "running"
    assert lab.up() == 0


def test_ansible_reaches_the_hosts_through_the_inventory(lab: Lab) -> None:
    listed = subprocess.run(
        [str(Path(ANSIBLE).with_name("ansible")), "-i", "inventory/lab", "gateway_mcp", "-m", "ansible.builtin.ping"],
        cwd=ROOT, env={**ENVIRONMENT, "GATEHOUSE_LAB": lab.name}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert listed.stdout.count("SUCCESS") == 2


def test_keys_and_password_are_for_their_owner_alone(lab: Lab) -> None:
    assert lab.folder.stat().st_mode & 0o777 == 0o700
    for name in ("id_ed25519", "password", "password_hash", "inventory.json"):
        assert (lab.folder / name).stat().st_mode & 0o777 == 0o600
    password, stored = ((lab.folder / name).read_text().strip() for name in ("password", "password_hash"))
    assert stored.startswith("$argon2id$")
    assert password not in (lab.folder / "inventory.json").read_text()
    assert all(host["lab_password_hash"] == stored for host in lab.hosts.values())


def test_two_labs_do_not_reach_each_other(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    other = make_lab("t-other")
    assert other.up() > 0
    assert other.number != lab.number
    mine, theirs = lab.hosts["gate1"]["ansible_host"], other.hosts["gate1"]["ansible_host"]
    knock = "timeout 2 bash -c '</dev/tcp/{}/22'"
    assert other.run("gate1", knock.format(mine)).returncode != 0
    assert lab.run("mcp1", knock.format(mine)).returncode == 0
    number = other.number
    assert number is not None
    assert other.down() == 1
    assert traces(other, number) == []
    assert lab.run("gate1", knock.format(mine)).returncode == 0
    assert theirs != mine


def test_another_lab_may_not_take_the_domain(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    thief = make_lab("t-thief", lab_domain="t-both.test")
    refused = thief.play("lab_up")
    assert refused.returncode != 0
    assert "choose another lab_domain" in refused.stdout + refused.stderr
    assert not thief.folder.exists()


def test_a_host_that_is_no_longer_wanted_goes_and_another_comes(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("t-swap", {"name": "a"}, {"name": "b"})
    assert lab.up() > 0
    kept = lab.hosts["b"]["ansible_host"]
    lab.variables["lab_hosts"] = [{"name": "b"}, {"name": "c", "release": "bookworm"}]
    assert lab.up() > 0
    assert set(lab.hosts) == {"b", "c"}
    assert lab.hosts["b"]["ansible_host"] == kept
    assert lab.run("c", "cut -d. -f1 /etc/debian_version").stdout.strip() == "12"
    assert len(lab.processes("systemd-nspawn")) == 2
    assert lab.up() == 0


def test_what_was_killed_comes_back(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("t-heal")
    assert lab.up() > 0
    lab.run("gate1", "touch /root/kept && sync")
    for name in ("systemd-nspawn", "dnsmasq"):
        kill(*lab.processes(name))
    assert lab.up() == 1
    assert lab.run("gate1", "systemctl is-system-running && ls /root/kept").returncode == 0
    assert lab.up() == 0


def test_teardown_is_complete_after_nspawn_was_killed(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("t-nspawn")
    assert lab.up() > 0
    number = lab.number
    assert number is not None
    kill(*lab.processes("systemd-nspawn"))
    assert lab.down() == 1
    assert traces(lab, number) == []
    assert lab.down() == 0


MOMENTS: dict[str, Callable[[Lab], bool]] = {
    "network claimed": lambda lab: lab.number is not None,
    "key made": lambda lab: (lab.folder / "id_ed25519").exists(),
    "root being copied": lambda lab: (lab.folder / "gate1.partial").exists(),
    "host being booted": lambda lab: bool(lab.processes("systemd-nspawn")),
}


@pytest.mark.parametrize(
    ("moment", "with_children"),
    [
        ("host being booted", True),
        *(
            pytest.param(moment, with_children, marks=pytest.mark.long)
            for moment, with_children in (
                ("network claimed", True),
                ("key made", True),
                ("root being copied", True),
                ("root being copied", False),
                ("host being booted", False),
            )
        ),
    ],
)
def test_teardown_is_complete_after_ansible_was_killed(
    make_lab: Callable[..., Lab], moment: str, with_children: bool
) -> None:
    lab = make_lab("t-crash")
    run = lab.start_up()
    wait_for(lambda: MOMENTS[moment](lab))
    number = lab.number
    assert number is not None
    kill(*(descendants(run.pid) if with_children else []), run.pid)
    run.wait()
    assert lab.down() == 1
    assert traces(lab, number) == []
    assert lab.down() == 0


@pytest.mark.long
def test_a_run_goes_on_where_a_killed_one_stopped(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("t-again")
    run = lab.start_up()
    wait_for(lambda: MOMENTS["root being copied"](lab))
    kill(*descendants(run.pid), run.pid)
    run.wait()
    assert lab.up() == 1
    assert lab.run("gate1", "systemctl is-system-running").stdout.strip() == "running"


@pytest.mark.long
def test_a_killed_build_leaves_nothing_and_is_done_again(make_lab: Callable[..., Lab]) -> None:
    cache = ROOT / ".cache" / "lab-test"  # not where pytest cleans up: a mount left there must not be emptied
    remove = ["rm", "--recursive", "--force", "--one-file-system", str(cache)]
    subprocess.run(remove, check=True)
    lab = make_lab("t-build", lab_cache=str(cache))
    run = lab.start_up()
    wait_for(lambda: mounted(cache))
    number = lab.number
    assert number is not None
    kill(*descendants(run.pid), run.pid)
    run.wait()
    try:
        assert lab.down() == 1
        assert traces(lab, number) == []
        assert not mounted(cache)
        assert lab.up() == 1
        assert [path.name.partition("-")[0] for path in cache.iterdir()] == ["trixie"]
    finally:
        subprocess.run(remove, check=True)


def mounted(folder: Path) -> bool:
    """Whether any process sees something mounted below the folder."""
    for mountinfo in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if str(folder) in mountinfo.read_text():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        (("unshare", "--user", "--map-user=65534"), "needs root; run this as root"),
        (("setpriv", "--bounding-set=-net_admin"), "The lab cannot run here"),
        (("setpriv", "--bounding-set=-sys_admin"), "The lab cannot run here"),
    ],
    ids=["not root", "no network rights", "no mount rights"],
)
def test_where_it_cannot_run_it_says_so_before_it_does_anything(
    prefix: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    lab = Lab("t-refused", lab_state=str(tmp_path / "lab"))
    environment = (
        "env",
        f"HOME={tmp_path}",
        f"ANSIBLE_LOCAL_TEMP={tmp_path}/ansible",
        f"ANSIBLE_REMOTE_TMP={tmp_path}/r",
    )
    refused = lab.play("lab_up", prefix=(*prefix, *environment))
    assert refused.returncode != 0
    assert sentence in refused.stdout + refused.stderr
    assert not (tmp_path / "lab").exists()
