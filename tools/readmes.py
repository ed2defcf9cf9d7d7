"""Make the variable tables in the roles' READMEs from their argument specs; `--check` only says what is stale."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[1] / "roles"
BEGIN, END = "<!-- variables -->", "<!-- /variables -->"


def text(description: str | list[str]) -> str:
    """A description as one line of Markdown."""
    sentences = [description] if isinstance(description, str) else description
    return re.sub(r"C\(([^)]*)\)", r"`\1`", " ".join(sentences)).replace("|", "\\|")


def rows(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each option, its own options below it."""
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        if "choices" in option:
            kind = " \\| ".join(f"`{choice}`" for choice in option["choices"])
        default = "required" if option.get("required") else option.get("default", "")
        shown = (
            default
            if default in ("", "required")
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        yield f"| `{prefix}{name}` | {kind} | {shown} | {text(option['description'])} |"
        yield from rows(option.get("options", {}), f"{prefix}{name}.")


def tables(specs: dict[str, Any]) -> str:
    """All entry points of a role."""
    parts = []
    for entry, spec in specs.items():
        if entry != "main":
            parts.append(f"## {spec['short_description']}\n\n{text(spec['description'])}\n")
        if spec.get("options"):
            parts.append(
                "| variable | type | default | meaning |\n|---|---|---|---|\n"
                + "\n".join(rows(spec["options"]))
                + "\n"
            )
        else:
            parts.append("No variables.\n")
    return "\n".join(parts)


def main() -> int:
    """Write or check every role's README."""
    stale = []
    for specs_file in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        role = specs_file.parents[1]
        specs = yaml.safe_load(specs_file.read_text())["argument_specs"]
        readme = role / "README.md"
        old = readme.read_text() if readme.exists() else ""
        if BEGIN in old and END in old:
            head, tail = old.split(BEGIN)[0], old.split(END)[1]
        else:
            head, tail = f"# {role.name}\n\n{text(specs['main']['description'])}\n\n", "\n"
        new = f"{head}{BEGIN}\n{tables(specs)}{END}{tail}"
        if new != old:
            stale.append(str(readme.relative_to(ROLES.parent)))
            if "--check" not in sys.argv:
                readme.write_text(new)
    if stale and "--check" in sys.argv:
        print("Stale; run tools/readmes.py:", *stale, sep="\n  ")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
