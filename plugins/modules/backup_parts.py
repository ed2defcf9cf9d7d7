# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A host's parts of a backup."""

DOCUMENTATION = r"""
module: backup_parts
short_description: Take a host's parts of a backup, encrypted
description:
  - Encrypts on the host what its components keep, and the data of Redis where it is the primary, and brings both to the
    controller. Nothing stops.
  - A file is as it was at one moment; a service that keeps several files which must fit together is to be stopped before.
  - The parts are streamed; on their way they take space in C(ansible_remote_tmp) of the host, compressed.
options:
  components:
    description: Components whose folders are taken.
    type: list
    elements: str
    required: true
  redis_passwords:
    description: Passwords of Redis' user C(admin), where there is a Redis.
    type: list
    elements: str
    default: []
  recipient:
    description: Public key of age that the parts are encrypted for, as C(gatehouse.mcp.backup_archive) gives it.
    type: str
    required: true
  folder:
    description: Folder for the parts, on the controller.
    type: path
    required: true
  seconds:
    description: Seconds that Redis may take to write its data.
    type: int
    default: 600
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Take what the services keep
  gatehouse.mcp.backup_parts:
    components: [memory, filesystem]
    recipient: "{{ backup_begun.recipient }}"
    folder: "{{ backup_begun.folder }}"
"""

RETURN = r"""
parts:
  description: The parts; of each its C(file) in the folder, C(host), C(components), C(bytes) and C(sha256).
  type: list
  elements: dict
  returned: success
notes:
  description: What is not as it should be.
  type: list
  elements: str
  returned: success
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.kept import folder_of, pack
from ansible_collections.gatehouse.mcp.plugins.module_utils.redis import Redis, RedisFault, on_socket, reach

SOCKET = "/run/gatehouse-redis/redis.sock"
DUMP = "dump.rdb"
POLL_SECONDS = 0.2


class Failed(Exception):
    """The backup cannot be taken; the message says why."""


def seal(folders: Mapping[str, Path], recipient: str, path: Path) -> list[str]:
    """Pack folders into an encrypted file, which whoever owns its folder may read.

    Raises:
        Failed: age says no.
    """
    owner = path.parent.stat()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sealed:
        os.fchown(sealed.fileno(), owner.st_uid, owner.st_gid)
        with subprocess.Popen(
            ["age", "--encrypt", "--recipient", recipient],
            stdin=subprocess.PIPE,
            stdout=sealed,
            stderr=subprocess.PIPE,
        ) as age:
            stdin, stderr = cast(IO[bytes], age.stdin), cast(IO[bytes], age.stderr)
            notes: list[str] = []
            try:
                notes = pack(folders, stdin)
                stdin.close()
            except BrokenPipeError:
                pass  # it says why
            said = stderr.read().decode(errors="replace").strip()
    if age.returncode:
        raise Failed(f"age cannot encrypt: {said}")
    return notes


def saved(redis: Redis, folder: Path, seconds: float) -> Path:
    """Let Redis write its data into its folder; it goes on answering.

    Raises:
        Failed: It did not.
    """
    path = folder / DUMP
    # The append-only file is what it starts from. This one is written for us alone, and is there when it is whole.
    path.unlink(missing_ok=True)
    redis.command("BGSAVE", "SCHEDULE")
    deadline = time.monotonic() + seconds
    while not path.exists():
        told = redis.command("INFO", "persistence")
        idle = "rdb_bgsave_in_progress:0" in told and "aof_rewrite_in_progress:0" in told
        if time.monotonic() > deadline or (idle and "rdb_last_bgsave_status:err" in told):
            raise Failed("Redis could not write its data; is its disk full? journalctl -u gatehouse-redis")
        time.sleep(POLL_SECONDS)
    return path


def redis_part(passwords: list[str], recipient: str, path: Path, seconds: float) -> list[str] | None:
    """Take the data of Redis where it is the primary; None where it is not.

    Raises:
        RedisFault, Failed: It cannot be had.
    """
    redis = reach(lambda: on_socket(SOCKET), "admin", passwords, 0)
    try:
        if redis.command("ROLE")[0] != "master":
            return None
        dump = saved(redis, folder_of("redis"), seconds)
    finally:
        redis.close()
    try:
        # A folder with nothing else in it, so that it is packed as any other is.
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=dump.parent) as folder:
            return seal({"redis": Path(dump.rename(Path(folder) / DUMP)).parent}, recipient, path)
    finally:
        dump.unlink(missing_ok=True)


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "components": {"type": "list", "elements": "str", "required": True},
            "redis_passwords": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "recipient": {"type": "str", "required": True},
            "folder": {"type": "path", "required": True},
            "seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    given = module.params
    recipient, folder = given["recipient"], Path(given["folder"])
    parts: list[dict[str, object]] = []
    notes: list[str] = []
    try:
        if given["redis_passwords"]:
            path = folder / "redis.age"
            said = redis_part(given["redis_passwords"], recipient, path, given["seconds"])
            if said is not None:
                parts.append({"path": str(path), "components": ["redis"]})
                notes += said
        folders = {name: folder_of(name) for name in given["components"] if folder_of(name).is_dir()}
        if folders:
            path = folder / "kept.age"
            notes += seal(folders, recipient, path)
            parts.append({"path": str(path), "components": sorted(folders)})
    except RedisFault as error:
        module.fail_json(msg=f"{error}. Its log: journalctl -u gatehouse-redis")
    except (Failed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, parts=parts, notes=notes)


if __name__ == "__main__":
    main()
