"""What anyone may find on a host after a rollout."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from conftest import Component
from testinfra.host import Host

EXPOSURE_LIMIT = 2.0


def properties(host: Host, unit: str, *names: str) -> dict[str, str]:
    shown = host.check_output("systemctl show --property=%s %s", ",".join(names), unit)
    return dict(line.split("=", 1) for line in shown.splitlines())


def test_every_unit_is_active_and_no_other(host: Host, components: list[Component]) -> None:
    listed = host.check_output(
        "systemctl list-units 'gatehouse-*.service' --state=active --no-legend --plain"
    )
    assert {line.split()[0] for line in listed.splitlines()} == {component.unit for component in components}
    assert host.check_output("systemctl list-units --failed --no-legend --plain") == ""


def test_only_what_serves_comes_back_after_a_reboot(host: Host, components: list[Component]) -> None:
    listed = host.check_output(
        "systemctl list-unit-files 'gatehouse-*.service' --state=enabled --no-legend --plain"
    )
    assert {line.split()[0] for line in listed.splitlines()} == {component.unit for component in components}


def test_every_component_runs_as_a_user_of_its_own_without_a_shell(
    host: Host, components: list[Component]
) -> None:
    for component in components:
        entry = host.check_output("getent passwd %s", component.user).split(":")
        assert entry[5] == "/nonexistent"
        assert entry[6].endswith("/nologin")
        pid = properties(host, component.unit, "MainPID")["MainPID"]
        assert host.check_output("stat --format=%%U /proc/%s", pid) == component.user


def test_configuration_is_root_s_and_readable_by_its_component_alone(
    host: Host, components: list[Component]
) -> None:
    for component in components:
        folder = f"/etc/gatehouse/{component.name}"
        modes = host.check_output("stat --dereference --format='%%a %%U:%%G' %s %s/.env", folder, folder)
        assert modes.splitlines() == ["755 root:root", f"640 root:{component.user}"], component


def test_secrets_are_root_s_alone(host: Host) -> None:
    listed = host.check_output(
        "find /var/lib/gatehouse/secrets /etc/gatehouse/*/credentials -printf '%y %m %U:%G %p\\n'"
    )
    found = [line.split(" ", 3) for line in listed.splitlines()]
    assert ["f", "600", "0:0", "/var/lib/gatehouse/secrets/store.json"] in found
    wrong = [entry for entry in found if entry[1:3] != [{"d": "700", "f": "600"}[entry[0]], "0:0"]]
    assert not wrong


def test_only_traefik_listens_on_a_public_address(host: Host) -> None:
    listed = host.check_output("ss --no-header --listening --numeric --tcp --udp --processes")
    public = set()
    for line in listed.splitlines():
        address, _, port = line.split()[4].rpartition(":")
        if not re.match(r"127\.|\[::1\]", address):
            program = re.search(r'users:\(\("([^"]+)', line)
            public.add((program[1] if program else "?", port))
    # SSH is how the lab, and any operator, reaches the host.
    assert public - {("sshd", "22")} == {("traefik", "80"), ("traefik", "443")}


def test_every_unit_is_sandboxed(host: Host, components: list[Component]) -> None:
    for component in components:
        report = host.check_output("systemd-analyze security --no-pager %s | tail -n 1", component.unit)
        exposure = re.search(r": (\d+\.\d+) ", report)
        assert exposure, report
        assert float(exposure[1]) <= EXPOSURE_LIMIT, report


def test_a_run_without_changes_restarts_nothing(host: Host, components: list[Component]) -> None:
    """Molecule's idempotence reads the recap alone; this sees what was restarted behind its back."""
    seen = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "processes.json"
    running = {
        component.unit: properties(host, component.unit, "MainPID", "ExecMainStartTimestampMonotonic")
        for component in components
    }
    assert all(process["MainPID"] != "0" for process in running.values())
    known = json.loads(seen.read_text()) if seen.exists() else {}
    name = host.check_output("hostname")
    assert known.setdefault(name, running) == running
    seen.write_text(json.dumps(known))
