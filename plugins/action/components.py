# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.components`: renders each component's unit, then runs the module once."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader


class ActionModule(ActionBase):
    """Renders `unit_template` for every component with that component's `vars`.

    One task for any number of components: a loop over `template` would cost a round trip each.
    """

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module with rendered units."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        template = args.pop("unit_template")
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        components, credentials = [], {}
        for component in args["components"]:
            rest = {key: value for key, value in component.items() if key not in ("vars", "credentials")}
            # Apart from the rest: Ansible keeps a parameter out of the host's journal only where all of it is secret.
            credentials[component["name"]] = component.get("credentials", {})
            unit = lookup.run([template], variables=variables, template_vars=dict(component["vars"]))[0]
            components.append({**rest, "unit": str(unit)})
        result.update(
            self._execute_module(
                module_name="gatehouse.mcp.components",
                module_args={**args, "components": components, "credentials": credentials},
                task_vars=task_vars,
            )
        )
        return result
