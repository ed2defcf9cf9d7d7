# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Documentation of the action plugin of the same name."""

DOCUMENTATION = r"""
module: restore_archive
short_description: Read the archive of a backup
description:
  - Runs on the controller, where C(age) must be. Reads all of the archive, and fails where it is not as it was written, is of
    another domain, or not for this key.
options:
  archive:
    description: The archive.
    type: path
    required: true
  identity:
    description: File with the key that one of the backup's recipients belongs to.
    type: path
    required: true
  domain:
    description: The domain that the archive must be of.
    type: str
  hosts:
    description: The components of each host, as the inventory has them.
    type: dict
  secrets:
    description: Whether to return the fleet's secrets, and nothing else. Use C(no_log).
    type: bool
    default: false
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Read the archive
  gatehouse.mcp.restore_archive:
    archive: backups/gatehouse-example.com-20260102T030405Z.tar
    identity: backup.key
    domain: example.com
    hosts: {gate1: [redis, memory]}
  run_once: true
"""

RETURN = r"""
created:
  description: When the backup was taken.
  type: str
  returned: without C(secrets)
placement:
  description: For each host its parts, each with C(file) and C(components).
  type: dict
  returned: without C(secrets)
left:
  description: What has no place in the inventory.
  type: list
  elements: str
  returned: without C(secrets)
store:
  description: The fleet's store of secrets.
  type: dict
  returned: with C(secrets)
"""
