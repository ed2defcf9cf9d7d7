"""What holds for every role, read from its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.parent for path in ROOT.glob("roles/*/tasks"))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_argument_specs_agree(role: Path) -> None:
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    options = specs["main"].get("options", {})
    defaults_file = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(defaults_file.read_text()) or {}) if defaults_file.exists() else {}
    assert set(defaults) <= set(options)
    for name, value in defaults.items():
        assert not options[name].get("required"), f"{name} is required and has a default"
        assert options[name].get("default", value) == value, (
            f"{name}: the spec says {options[name].get('default')}"
        )


@pytest.mark.parametrize(
    "role", [role for role in ROLES if role.name != "preflight"], ids=lambda role: role.name
)
def test_variables_have_the_roles_prefix(role: Path) -> None:
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    assert all(name.startswith(f"{role.name}_") for name in specs["main"].get("options", {}))


def test_every_public_variable_does_something() -> None:
    specs = yaml.safe_load((ROOT / "roles" / "preflight" / "meta" / "argument_specs.yml").read_text())
    readers = [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("plugins/**/*.py")]
    text = "\n".join(path.read_text() for path in readers)
    idle = [name for name in specs["argument_specs"]["main"]["options"] if name not in text]
    assert not idle, f"documented, and read nowhere: {idle}"


def test_readmes_are_made_from_the_specs() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "readmes.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout
