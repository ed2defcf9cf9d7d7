"""The tarball that `ansible-galaxy` installs is a whole product: a new user starts from it alone."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of collections with nothing but the built one."""
    folder = tmp_path_factory.mktemp("collections")
    build = ["ansible-galaxy", "collection", "build", "--force", "--output-path", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [tarball] = folder.glob("gatehouse-mcp-*.tar.gz")
    install = [
        "ansible-galaxy",
        "collection",
        "install",
        "--offline",
        "--no-deps",
        "-p",
        str(folder),
        str(tarball),
    ]
    subprocess.run(install, check=True, capture_output=True, cwd=folder, env=environment(folder))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """This one, without what points at the checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return {**kept, "ANSIBLE_COLLECTIONS_PATH": str(folder), "ANSIBLE_NOCOLOR": "1"}


def play(folder: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ansible-playbook", *arguments],
        cwd=cwd,
        env={**environment(folder), "PWD": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_tarball_has_the_product_and_nothing_else(installed: Path) -> None:
    [tarball] = installed.glob("*.tar.gz")
    with tarfile.open(tarball) as tar:
        names = tar.getnames()
    assert tarball.stat().st_size < 5 * 1024 * 1024
    assert "playbooks/site.yml" in names and "files/auth_service/requirements.lock" in names
    ours = ("tests/", "molecule/", ".cache", ".lab", ".venv", ".git/")
    assert not [name for name in names if name.startswith(ours) or "__pycache__" in name or "_cache" in name]


def test_a_new_user_scaffolds_a_gateway_and_is_told_what_is_missing(installed: Path, tmp_path: Path) -> None:
    made = play(installed, tmp_path, "gatehouse.mcp.init", "-e", "dest=gateway")
    assert made.returncode == 0, made.stdout
    assert "cd gateway && ansible-playbook site.yml -i prod" in made.stdout
    gateway = tmp_path / "gateway"
    written = sorted(str(path.relative_to(gateway)) for path in gateway.rglob("*") if path.is_file())
    assert written == [
        "ansible.cfg", "backup.yml", "prod/group_vars/all.yml", "prod/hosts.yml", "requirements.yml", "restore.yml",
        "rotate_secrets.yml", "site.yml", "status.yml",
    ]  # fmt: skip
    refused = play(installed, gateway, "site.yml", "-i", "prod")
    assert refused.returncode != 0
    assert "gatehouse_github_client_secret" in refused.stdout and "no host was touched" in refused.stdout


def test_scaffolding_again_keeps_what_was_edited(installed: Path, tmp_path: Path) -> None:
    play(installed, tmp_path, "gatehouse.mcp.init", "-e", "dest=gateway")
    edited = tmp_path / "gateway" / "prod" / "hosts.yml"
    edited.write_text("all: {}\n")
    again = play(installed, tmp_path, "gatehouse.mcp.init", "-e", "dest=gateway")
    assert again.returncode == 0 and "changed=0" in again.stdout
    assert edited.read_text() == "all: {}\n"


def test_scaffolding_nowhere_is_refused(installed: Path, tmp_path: Path) -> None:
    refused = play(installed, tmp_path, "gatehouse.mcp.init")
    assert refused.returncode != 0 and "name the folder to write, -e dest=gateway" in refused.stdout
