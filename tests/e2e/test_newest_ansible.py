"""What ansible-core 2.19 on Python 3.11 rolled out, the newest on Python 3.13 finds as it should be, and the reverse.

The lab's Debian 13 host is the second controller, with nothing but the tarball: it rolls out on itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fleet import Fleet, Played

ROOT = Path(__file__).parents[2]
FOLDER = "/root/controller"


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    build = ["ansible-galaxy", "collection", "build", "--force", "--output-path", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [built] = tmp_path.glob("gatehouse-mcp-*.tar.gz")
    return built


def test_the_newest_ansible_changes_nothing(fleet: Fleet, tarball: Path, tmp_path: Path) -> None:
    [host] = fleet.hosts("gateway_edge")
    if not host.check_output("python3 --version").startswith("Python 3.13"):
        pytest.fail("The edge is not on Debian 13.", pytrace=False)
    variables = host.ansible.get_variables()
    public = {name: value for name, value in variables.items() if name.startswith(("gatehouse_", "lab_"))}
    groups = ("gateway_edge", "gateway_redis", "gateway_mcp")
    name = variables["inventory_hostname"]
    inventory = {
        "all": {
            "vars": public,
            "hosts": {
                name: {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
            },
            "children": {group: {"hosts": {name: {}}} for group in groups},
        }
    }
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    lock = ROOT / "requirements" / "demo.lock"
    host.check_output(f"mkdir -p {FOLDER}")
    for path in (tarball, tmp_path / "hosts.json", lock, Path(sys.executable).parent / "uv"):
        host.ansible("ansible.builtin.copy", f"src={path} dest={FOLDER}/{path.name} mode=0700", check=False)
    try:
        made = host.run(
            f"cd {FOLDER} && export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PATH={FOLDER}:$PATH && chmod +x uv"
            " && uv venv --quiet venv && uv pip install --quiet --python venv/bin/python --require-hashes -r demo.lock"
            f" && venv/bin/ansible-galaxy collection install --offline -p {FOLDER} {tarball.name}"
        )
        assert made.rc == 0, made.stderr
        before = fleet.processes()
        played = host.run(
            f"cd {FOLDER} && export ANSIBLE_COLLECTIONS_PATH={FOLDER} PATH={FOLDER}/venv/bin:$PATH"
            " && ansible --version && ansible-playbook gatehouse.mcp.site -i hosts.json"
        )
        assert played.rc == 0, played.stdout[-3000:]
        assert "core 2.2" in played.stdout.splitlines()[0]
        assert Played(played.rc, played.stdout).changes == 0
        assert fleet.processes() == before
    finally:
        host.run(f"rm -rf {FOLDER}")
