# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Host side of `gatehouse.mcp.environments`."""

DOCUMENTATION = r"""
module: environments
short_description: Install locked Python environments
description:
  - Builds each environment on the controller with C(uv) from a hashed requirements file, and pushes what the host lacks.
    The host needs Python with its standard library, and no way out.
  - An environment is immutable. Its id is a digest of all that goes into it.
options:
  environments:
    description: Mappings of C(name), C(lock) (hashed requirements file on the controller) and C(sources) (folders of
      packages on the controller).
    type: list
    elements: dict
  cache:
    description: Folder on the controller for archives that were built.
    type: path
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
author: Gatehouse contributors
"""

EXAMPLES = r"""
- name: Install the auth service's environment
  gatehouse.mcp.environments:
    environments:
      - {name: auth, lock: files/auth_service/requirements.lock, sources: [files/auth_service/src/gatehouse_auth]}
    cache: ~/.cache/gatehouse
"""

RETURN = r"""
environments:
  description: C(id), C(path) and whether it was C(missing), by name.
  type: dict
  returned: success
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# Asked of the interpreter that will run the environment, which need not be Ansible's.
QUERY = (
    "import json, platform, sys; print(json.dumps({"
    "'python_version': '%d.%d' % sys.version_info[:2], 'arch': platform.machine()}))"
)
SCRIPT = """#!{python}
import sys
from {module} import {first}
sys.exit({call}())
"""
ENTRY = re.compile(r"(?P<module>[\w.]+):(?P<call>[\w.]+)")


def write_scripts(site_packages: Path, final: Path, bin_folder: Path) -> None:
    """Write the console scripts of everything installed, for where the environment will be."""
    for metadata in sorted(site_packages.glob("*.dist-info/entry_points.txt")):
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign] # names are case-sensitive
        parser.read(metadata, encoding="utf-8")
        for name, value in parser["console_scripts"].items() if "console_scripts" in parser else ():
            match = ENTRY.match(value)
            if match and re.fullmatch(r"[\w.-]+", name):
                script = bin_folder / name
                script.write_text(
                    SCRIPT.format(
                        python=final / "bin" / "python",
                        module=match["module"],
                        first=match["call"].split(".")[0],
                        call=match["call"],
                    )
                )
                script.chmod(0o755)


def install(root: Path, python: str, version: str, identity: str, archive: str) -> None:
    """Unpack an environment beside its place, complete it, and rename it into place."""
    final = root / identity
    with tempfile.TemporaryDirectory(dir=root, prefix=".new-") as scratch:
        new = Path(scratch) / identity
        subprocess.run([python, "-m", "venv", "--without-pip", str(new)], check=True, capture_output=True)
        site_packages = new / "lib" / f"python{version}" / "site-packages"
        with tarfile.open(archive) as tar:
            # «data» refuses links and names that lead out, devices, and set-user-id bits.
            tar.extractall(site_packages, filter="data")
        write_scripts(site_packages, final, new / "bin")
        # Name the final place, for people who activate it.
        for path in [new / "pyvenv.cfg", *(new / "bin").glob("[aA]ctivate*")]:
            path.write_text(path.read_text().replace(str(new), str(final)))
        # A sandboxed unit cannot write byte code; some packages carry files that do not compile, which is no fault.
        subprocess.run(
            [python, "-m", "compileall", "-q", "-j", "0", str(site_packages)],
            check=False,
            capture_output=True,
        )
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
    module = AnsibleModule(
        argument_spec={
            "environments": {"type": "list", "elements": "dict"},
            "cache": {"type": "path"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "root": {"type": "path", "default": "/opt/gatehouse/environments"},
            "state": {"type": "str", "choices": ["query", "present"], "default": "query"},
            "archives": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    root, python = Path(module.params["root"]), module.params["python"]
    try:
        asked = subprocess.run([python, "-c", QUERY], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        module.fail_json(msg=f"{python} cannot be run on this host: {error}")
    facts = json.loads(asked.stdout)
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
                    install(root, python, facts["python_version"], item["id"], item["archive"])
                except (OSError, tarfile.TarError, subprocess.CalledProcessError) as error:
                    detail = getattr(error, "stderr", b"") or b""
                    module.fail_json(
                        msg=f"environment {item['id']}: {error} {detail.decode(errors='replace').strip()}"
                    )
                changed = True
    module.exit_json(changed=changed, root=str(root), present=present, **facts)


if __name__ == "__main__":
    main()
