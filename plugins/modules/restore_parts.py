# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a host gets of a backup."""

DOCUMENTATION = r"""
module: restore_parts
short_description: Put what components kept back onto a host
description:
  - C(asked) says what is on the host that would be replaced. C(staged) brings the parts and unpacks them beside that.
    C(replaced) stops every unit of the gateway and lets what was unpacked take its place; what was there stays beside it.
    C(done) removes that.
  - What breaks off is taken up by the next run, and what was there first is kept until C(done).
  - What is unpacked is root's. systemd gives it to a unit's user when it starts the unit.
options:
  state:
    description: What to do.
    type: str
    choices: [asked, staged, replaced, done]
    required: true
  archive:
    description: The archive, on the controller. With C(staged).
    type: path
  identity:
    description: File with the key to it, on the controller. With C(staged).
    type: path
  parts:
    description: The parts of this host, each with C(file) and C(components), as C(gatehouse.mcp.restore_archive) places them.
    type: list
    elements: dict
    required: true
  secrets:
    description: Whether the host keeps generated secrets.
    type: bool
    default: false
  key:
    description: The archive's own key, which comes from the archive.
    type: str
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Bring what the components kept
  gatehouse.mcp.restore_parts:
    state: staged
    archive: backups/gatehouse-example.com-20260102T030405Z.tar
    identity: backup.key
    parts: [{file: gate1.kept.age, components: [memory]}]
"""

RETURN = r"""
occupied:
  description: What is on the host and would be replaced.
  type: list
  elements: str
  returned: with C(state=asked)
"""

import os
import subprocess
from pathlib import Path
from typing import IO, Any, cast

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.kept import (
    beside,
    clear,
    folder_of,
    occupied,
    replace,
    unpack,
)
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import read, systemctl, write_file

SECRETS = Path("/var/lib/gatehouse/secrets/store.json")
NO_SECRETS = '{"version": 1, "secrets": {}}\n'
UNITS = ("gatehouse-*.service", "gatehouse-*.socket")
# Redis' data as backup takes it, and as a Redis with an append-only file starts from it.
DUMP = "dump.rdb"
BASE = "appendonly.aof.1.base.rdb"
LISTED = f"file {BASE} seq 1 type b\n"


class Failed(Exception):
    """It cannot be put back; the message says why."""


def unseal(part: dict[str, Any], key: str) -> None:
    """Unpack the components of a part beside what they keep now.

    Raises:
        Failed, ValueError: It is not what backup makes.
    """
    with subprocess.Popen(
        ["age", "--decrypt", "--identity", "-", part["path"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as age:
        stdin, stdout, stderr = (cast(IO[bytes], stream) for stream in (age.stdin, age.stdout, age.stderr))
        stdin.write(key.encode())
        stdin.close()
        fault: ValueError | None = None
        try:
            unpack(stdout, {name: beside(folder_of(name), "new") for name in part["components"]})
        except ValueError as error:
            fault = error
            age.kill()
        said = stderr.read().decode(errors="replace").strip()
    if fault:
        raise fault
    if age.returncode:
        raise Failed(f"age cannot decrypt what came: {said}")


def prepare_redis(folder: Path) -> None:
    """See that this host's Redis can read its data, and put it where Redis starts from.

    Raises:
        Failed: It cannot.
    """
    checked = subprocess.run(
        ["redis-check-rdb", str(folder / DUMP)], capture_output=True, text=True, check=False
    )
    if checked.returncode:
        raise Failed(
            "the Redis of this host cannot read the data in the archive; it was written by a newer Redis, or damaged"
        )
    log = folder / "appendonlydir"
    log.mkdir(mode=0o700)
    (folder / DUMP).rename(log / BASE)
    write_file(log / "appendonly.aof.manifest", LISTED, 0o600)


def stage(parts: list[dict[str, Any]], key: str, folders: list[Path]) -> None:
    """Unpack everything beside what is there, or nothing.

    Raises:
        Failed, ValueError, OSError: It cannot be done.
    """
    clear(folders, "new")
    # Renaming is what replaces a folder.
    mounted = [str(folder) for folder in folders if os.path.ismount(folder)]
    if mounted:
        raise Failed(
            f"{', '.join(mounted)} is a mount point, which cannot be replaced: unmount it, and move what was restored"
            " onto it afterwards"
        )
    try:
        for part in parts:
            unseal(part, key)
        if folder_of("redis") in folders:
            prepare_redis(beside(folder_of("redis"), "new"))
    except BaseException:
        clear(folders, "new")
        raise


def keep_secrets() -> None:
    """Keep the host's secrets beside those that will come; a rollout reads those that are there."""
    old = beside(SECRETS, "old")
    if not old.exists():
        old.parent.parent.mkdir(mode=0o755, exist_ok=True)
        old.parent.mkdir(mode=0o700, exist_ok=True)
        write_file(old, read(SECRETS) or NO_SECRETS, 0o600)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what the task says."""
    state, parts = module.params["state"], module.params["parts"]
    folders = [folder_of(name) for part in parts for name in part["components"]]
    kept = [SECRETS, *folders] if module.params["secrets"] else folders
    if state == "asked":
        return {"occupied": [str(path) for path in kept if occupied(path)]}
    if state == "done":
        left = [path for path in kept if beside(path, "old").exists()]
        if not module.check_mode:
            clear(left, "old")
        return {"changed": bool(left)}
    if module.check_mode:
        return {"changed": bool(kept)}
    if state == "staged":
        stage(parts, module.params["key"], folders)
        return {"changed": bool(folders)}
    systemctl("stop", *UNITS)
    if module.params["secrets"]:
        keep_secrets()
    for folder in folders:
        replace(folder)
    return {"changed": True}


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["asked", "staged", "replaced", "done"], "required": True},
            "archive": {"type": "path"},
            "identity": {"type": "path"},
            "parts": {"type": "list", "elements": "dict", "required": True},
            "secrets": {"type": "bool", "default": False},
            "key": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    try:
        module.exit_json(**{"changed": False, **run(module)})
    except subprocess.CalledProcessError as error:
        module.fail_json(msg=f"{error} {error.stderr or ''}".strip())
    except (Failed, ValueError, OSError) as error:
        module.fail_json(msg=f"{error}. What was on this host is kept; restore can be run again.")


if __name__ == "__main__":
    main()
