# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Documentation of the action plugin of the same name."""

DOCUMENTATION = r"""
module: preflight
short_description: Check the whole inventory before any host is touched
description:
  - Runs on the controller and opens no connection.
  - Checks every C(gatehouse_) variable of every host and every service against the roles' argument specs, and
    reports all problems together, each with the variable's name and the fix.
options:
  complete:
    description: Groups all of whose hosts have to be part of the run; a C(--limit) that leaves one out is a problem.
    type: list
    elements: str
    default: []
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Check the inventory
  gatehouse.mcp.preflight:
    complete: [gateway_edge]
  run_once: true
  register: preflight_fleet
"""

RETURN = r"""
services:
  description: What is the same on every host, by service, with the hosts that run it.
  type: dict
  returned: success
hosts:
  description: The services of each host, complete.
  type: dict
  returned: success
problems:
  description: One sentence a fault, beginning with the variable's name.
  type: list
  elements: str
  returned: failure
"""
