"""Make docs/requirements.md from docs/required.yml and the tests; `--check` only says what is wrong.

A test says what it covers by a comment above it: `# covers: <id>, <id>`. Every requirement has a test, or says what is open.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
SOURCE, TARGET = ROOT / "docs" / "required.yml", ROOT / "docs" / "requirements.md"
COVERS = re.compile(r"^# covers: (.+)\n(?:[^\n]+\n)*?(?:async )?def (test_\w+)\(", re.MULTILINE)
HEAD = """# What is required, and the tests for it

Made by `tools/requirements.py` from `docs/required.yml` and the tests themselves.
"""


def covered() -> dict[str, list[tuple[str, str]]]:
    """The tests that cover each requirement: file and name."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    listed = subprocess.run(
        ["git", "ls-files", "*/test_*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path in listed.stdout.splitlines():
        for names, test in COVERS.findall((ROOT / path).read_text()):
            for name in names.split(","):
                found[name.strip()].append((path, test))
    return found


def table(sections: list[dict[str, object]], tests: dict[str, list[tuple[str, str]]]) -> str:
    """The document."""
    parts = [HEAD]
    for section in sections:
        parts.append(f"\n## {section['title']}\n\n| required | by | tests |\n|---|---|---|\n")
        for name, requirement in section["requirements"].items():  # type: ignore[attr-defined]
            links = [f"[{test}](../{path})" for path, test in tests.get(name, [])]
            shown = "<br>".join(links) or f"**Open:** {requirement['open']}"
            parts.append(f"| {requirement['text']} | {requirement['source']} | {shown} |\n")
    return "".join(parts)


def main() -> int:
    """Write the document, or say what is wrong."""
    sections = yaml.safe_load(SOURCE.read_text())
    requirements = {name: known for section in sections for name, known in section["requirements"].items()}
    tests = covered()
    problems = [f"{path}: {test} covers {name}, which is not in {SOURCE.name}"
                for name in tests.keys() - requirements.keys() for path, test in tests[name]]  # fmt: skip
    problems += [
        f"{SOURCE.name}: {name} has no test; write one, or say under `open` what is not there"
        for name, known in requirements.items()
        if name not in tests and "open" not in known
    ]
    problems += [
        f"{SOURCE.name}: {name} is open and has a test; remove `open`"
        for name, known in requirements.items()
        if name in tests and "open" in known
    ]
    document = table(sections, tests)
    if not problems and "--check" not in sys.argv:
        TARGET.write_text(document)
    elif not problems and TARGET.read_text() != document:
        problems = [f"{TARGET.relative_to(ROOT)} is stale; run tools/requirements.py"]
    print(*problems, sep="\n" if problems else "", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
