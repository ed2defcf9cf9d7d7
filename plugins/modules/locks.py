# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Documentation of the action plugin of the same name."""

DOCUMENTATION = r"""
module: locks
short_description: Lock packages with hashes
description:
  - Runs on the controller. Writes a lock with hashes for every package that has none, so that the same inventory installs
    the same bytes tomorrow. Commit the files beside the inventory.
  - The lock of a C(pypi) package is a requirements file, that of an C(npm) package what npm calls C(package-lock.json).
options:
  packages:
    description: Packages with exact versions, C(pypi:acme-tickets==1.4.2) or C(npm:@acme/tickets==1.4.2).
    type: list
    elements: str
    required: true
  folder:
    description: Folder of the locks, on the controller.
    type: path
    required: true
  cache:
    description: Folder for the locks of a dry run, and for npm.
    type: path
    required: true
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Lock the packages of services that bring no lock
  gatehouse.mcp.locks:
    packages: [pypi:acme-tickets==1.4.2]
    folder: prod/locks
    cache: ~/.cache/gatehouse
  run_once: true
"""

RETURN = r"""
locks:
  description: Lock of each package.
  type: dict
  returned: success
written:
  description: Files that were written, or would be.
  type: list
  elements: str
  returned: success
"""
