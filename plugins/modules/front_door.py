# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ask the gateway as a client does."""

DOCUMENTATION = r"""
module: front_door
short_description: Check services through the front door of an edge
description:
  - Connects to the edge's own address with each service's public name, over TLS, and does an MCP handshake with a token
    that the auth service's admin command issues for a minute.
  - Reads only.
options:
  services:
    description: Public URL of each service.
    type: dict
    default: {}
  health_url:
    description: Public URL that has to answer 200; the task fails where it does not.
    type: str
  timeout:
    description: Seconds within which C(health_url) has to answer.
    type: int
    default: 30
  ca_file:
    description: Roots in PEM, where the certificate is not from a public CA.
    type: path
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Ask as a client does
  gatehouse.mcp.front_door:
    services: {time: https://time.example.com/mcp}
"""

RETURN = r"""
services:
  description: C(ok) or what is wrong, by service.
  type: dict
  returned: always
"""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import (
    Client,
    Unhealthy,
    check_http,
    check_mcp,
)
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import OPT, Place, log_tail

TRAEFIK_UNIT = "gatehouse-traefik.service"
EDGE = ("127.0.0.1", 443)


def token(service: str) -> str:
    """A token of one minute for one service, from the auth service's admin command.

    Raises:
        Unhealthy: The command fails.
    """
    place = Place("auth")
    slot = place.serving()
    if slot is None:
        raise Unhealthy("the auth service is not installed here")
    python = OPT / "environments" / place.manifest(slot)["environments"][0] / "bin" / "python"
    # The admin command reads what the service reads, where the service's unit would find it.
    run = subprocess.run(
        [
            "systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--service-type=exec",
            f"--property=EnvironmentFile={place.folder / slot / '.env'}",
            "--property=Environment=GATEHOUSE_LISTEN=127.0.0.1:0",
            *(
                f"--property=LoadCredential={path.name}:{path}"
                for path in sorted(place.credentials(slot).iterdir())
            ),
            f"--property=User={place.user}",
            str(python), "-m", "gatehouse_auth.admin", "probe-token", "--service", service,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )  # fmt: skip
    if run.returncode:
        raise Unhealthy(f"no token: {run.stderr.strip()[-300:]}")
    return run.stdout.strip()


def check(ca_file: str | None, item: tuple[str, str]) -> str:
    """One service: `ok` or what is wrong."""
    name, url = item
    try:
        check_mcp(Client(url, EDGE, ca_file, {"Authorization": f"Bearer {token(name)}"}))
    except Unhealthy as fault:
        return str(fault)
    return "ok"


def wait(client: Client, seconds: int) -> str | None:
    """Wait until a URL answers 200; what was wrong last where it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            check_http(client)
        except Unhealthy as fault:
            if time.monotonic() > deadline:
                return str(fault)
            time.sleep(0.3)
        else:
            return None


def traefik_log() -> str:
    """The last lines of Traefik's log that are not about requests."""
    return "\n".join(
        line for line in log_tail(TRAEFIK_UNIT, []).splitlines() if '"RequestMethod"' not in line
    )


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "dict", "default": {}},
            "health_url": {"type": "str"},
            "timeout": {"type": "int", "default": 30},
            "ca_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    services = module.params["services"]
    if module.params["health_url"]:
        fault = wait(
            Client(module.params["health_url"], EDGE, module.params["ca_file"]), module.params["timeout"]
        )
        if fault:
            module.fail_json(msg=f"front door: {fault}\nLast log lines of Traefik:\n{traefik_log()}")
    with ThreadPoolExecutor(4) as pool:
        said = dict(
            zip(services, pool.map(partial(check, module.params["ca_file"]), services.items()), strict=True)
        )
    module.exit_json(changed=False, services=said)


if __name__ == "__main__":
    main()
