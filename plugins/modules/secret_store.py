# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A host's part of the fleet's generated secrets."""

DOCUMENTATION = r"""
module: secret_store
short_description: Read or write the secrets that a host keeps
description:
  - The store is a file that root alone can read. Its values are never part of a diff.
  - Use C(no_log) on every task with it, since reading returns the values.
options:
  state:
    description: What to do.
    type: str
    choices: [read, write]
    required: true
  store:
    description: The store to write, as the C(gatehouse.mcp.secrets_*) filters give it.
    type: dict
  path:
    description: The file.
    type: path
    default: /var/lib/gatehouse/secrets/store.json
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Read what the host keeps
  gatehouse.mcp.secret_store:
    state: read
  no_log: true
  register: kept
"""

RETURN = r"""
store:
  description: The store, empty where there is none.
  type: dict
  returned: with C(state=read)
"""

import json
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import read, write_file

EMPTY: dict[str, Any] = {"version": 1, "secrets": {}}
MODE = 0o600


def load(path: Path) -> dict[str, Any]:
    """The store in a file.

    Raises:
        OSError, ValueError: It cannot be read, or is none. Making secrets anew would lock everyone out: never guess.
    """
    text = read(path)
    if text is None:
        return EMPTY
    store = json.loads(text)
    if not isinstance(store, dict) or store.get("version") != EMPTY["version"]:
        raise ValueError("another version")
    outline(store)
    return store


def outline(store: dict[str, Any]) -> str:
    """The names, ids and states of what is in a store: all of it that may be shown."""
    return "".join(
        f"{name} {entry['id']} {entry['state']}\n"
        for name, secret in sorted(store["secrets"].items())
        for entry in secret["entries"]
    )


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "write"], "required": True},
            "store": {"type": "dict", "no_log": True},
            "path": {"type": "path", "default": "/var/lib/gatehouse/secrets/store.json"},
        },
        required_if=[("state", "write", ["store"])],
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        kept = load(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        module.fail_json(
            msg=f"{path} cannot be read ({type(error).__name__}); restore it from another host or a backup"
        )
    if module.params["state"] == "read":
        module.exit_json(changed=False, store=kept)
    store = module.params["store"]
    # One that others could read, as after a careless copy, is put right.
    changed = store != kept or (path.exists() and path.stat().st_mode & 0o777 != MODE)
    if changed and not module.check_mode:
        for folder, mode in ((path.parent.parent, 0o755), (path.parent, 0o700)):
            folder.mkdir(parents=True, exist_ok=True)
            os.chmod(folder, mode)
        write_file(path, json.dumps(store, indent=1, sort_keys=True) + "\n", MODE)
    module.exit_json(changed=changed, diff={"before": outline(kept), "after": outline(store)})


if __name__ == "__main__":
    main()
