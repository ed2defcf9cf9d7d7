"""The gateway's hosts, as Ansible reaches them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import testinfra
from testinfra.host import Host

PLAYBOOK_SECONDS = 900


@dataclass(frozen=True)
class Played:
    """What Ansible did."""

    status: int
    output: str

    @property
    def changes(self) -> int:
        """How much it changed, on all hosts."""
        recaps = re.findall(r"changed=(\d+)", self.output)
        assert recaps, self.output[-3000:]
        return sum(map(int, recaps))


class Fleet:
    """Runs playbooks on the gateway's hosts, and commands as root.

    Args:
        root: the checkout.
        inventory: the Ansible inventory.
    """

    def __init__(self, root: Path, inventory: Path) -> None:
        self._root = root
        self._inventory = inventory.absolute()
        programs = str(Path(sys.executable).parent)
        # testinfra calls `ansible-inventory` and `ansible` by name.
        os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"

    def hosts(self, group: str = "all") -> list[Host]:
        """The hosts of an inventory group."""
        found: list[Host] = testinfra.get_hosts(
            [f"ansible://{group}"], ansible_inventory=str(self._inventory)
        )
        return found

    def play(self, playbook: str, variables: dict[str, Any] | None = None, *options: str) -> Played:
        """Run a playbook of the checkout, with further options; its output is kept, not printed."""
        return self._run("ansible-playbook", playbook, "--extra-vars", json.dumps(variables or {}), *options)

    def ask(self, hosts: str, module: str, arguments: str) -> Played:
        """Run one module on hosts."""
        return self._run("ansible", hosts, "--module-name", module, "--args", arguments)

    def _run(self, *command: str) -> Played:
        done = subprocess.run(
            [*command, "--inventory", str(self._inventory)],
            cwd=self._root,
            env={**os.environ, "ANSIBLE_CONFIG": str(self._root / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAYBOOK_SECONDS,
            check=False,
        )
        return Played(done.returncode, done.stdout)

    def processes(self) -> dict[tuple[str, str], str]:
        """The main process of each running unit of ours, by host and unit."""
        running = {}
        for host in self.hosts():
            shown = host.check_output(
                "systemctl show 'gatehouse-*' --property=Id,MainPID,ExecMainStartTimestampMonotonic --state=active"
            )
            for block in shown.split("\n\n"):
                unit = dict(line.split("=", 1) for line in block.splitlines())
                running[host.backend.hostname, unit["Id"]] = (
                    f"{unit.get('MainPID')} since {unit.get('ExecMainStartTimestampMonotonic')}"
                )
        return running


def python(host: Host, program: str) -> str:
    """What a Python program prints on a host; `program` is in an argument there, so it holds no secret."""
    printed: str = host.check_output(f"python3 -c {shlex.quote(program)}")
    return printed
