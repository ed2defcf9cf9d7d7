"""What holds for every entry of the catalogue, read from its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible_collections.gatehouse.mcp.plugins.filter.services import service_components, service_environments
from ansible_collections.gatehouse.mcp.plugins.module_utils.fleet import (
    Inspector,
    read_catalogue,
    read_options,
)
from ansible_collections.gatehouse.mcp.plugins.module_utils.npm import programs, read_packages

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "files" / "mcp_services" / "catalogue"
CATALOGUE = read_catalogue(str(FOLDER))
KEYS = set(
    re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text().split("## Entries")[0], re.MULTILINE)
)
REQUIRED = {
    "bridge": {"title", "description", "pattern", "command", "lock", "memory_max", "probe"},
    "native": {"title", "description", "pattern", "package", "module", "memory_max", "probe"},
}
BRIDGED = sorted(name for name, entry in CATALOGUE.items() if entry["pattern"] == "bridge")


def service(name: str) -> dict[str, Any]:
    """An entry as a host gets it."""
    host = {
        "gatehouse_domain": "example.com",
        "gatehouse_providers": {"local": {}},
        "gatehouse_local_users": {"ana": {"password_hash": "$argon2id$x"}},
        "gatehouse_mcp_services": {name: {"allow": {"users": ["ana"]}}},
    }
    groups = {group: ["h"] for group in ("gateway_edge", "gateway_redis", "gateway_mcp")}
    roles = str(ROOT / "roles")
    variables, options = read_options(roles, "preflight"), read_options(roles, "mcp_service", "service")
    fleet = Inspector({"h": host}, groups, lambda _: ["h"], CATALOGUE, variables, options).inspect()
    assert fleet.problems == []
    return fleet.hosts["h"][name]


def unit(name: str, edges: list[str] | None = None) -> list[str]:
    """The lines of an entry's unit, on a host of its own or beside edges."""
    wanted = {name: service(name)}
    environments = {item["name"]: {"id": "i", "path": "/e"} for item in service_environments(wanted, {})}
    [component] = service_components(wanted, environments, {}, "127.0.0.1", edges or [], edges or [], 20, 45)
    role = ROOT / "roles" / "mcp_service"
    templates = jinja2.Environment(trim_blocks=True, autoescape=False)  # noqa: S701 (a unit is no page)
    templates.filters["gatehouse.mcp.systemd_command"] = " ".join
    templates.globals["lookup"] = lambda _kind, path: Path(path).read_text()
    rendered = templates.from_string((role / "templates" / "service.unit.j2").read_text()).render(
        **component["vars"], **yaml.safe_load((role / "vars" / "main.yml").read_text()), role_path=str(role)
    )
    return rendered.splitlines()


def loaded(lines: list[str]) -> list[str]:
    """The nftables rules that a unit loads when it starts."""
    commands = [line for line in lines if line.startswith("ExecStartPre=+/usr/sbin/nft")]
    table = re.compile(r"add rule inet gatehouse-[\w-]+-@SLOT@ (.+)")
    parts = [part for command in commands for part in command.removesuffix('"').split("; ")]
    return [found[1] for part in parts if (found := table.fullmatch(part))]


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_an_entry_is_complete_and_has_no_key_that_the_readme_does_not_know(name: str) -> None:
    entry = CATALOGUE[name]
    assert REQUIRED[entry["pattern"]] <= set(entry) <= KEYS
    assert {"tool", "arguments"} == set(entry["probe"])
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text()
    assert f"| `{name}` |" in (ROOT / "README.md").read_text()


def program_of(entry: dict[str, Any]) -> str:
    """What the lock brings and the command runs, be it in a sandbox."""
    first, *others = entry["command"]
    inside = [
        part.removeprefix("{environment}/bin/") for part in others if part.startswith("{environment}/bin/")
    ]
    return inside[0] if first.startswith("/") else first


# covers: catalogue-lock
@pytest.mark.parametrize("name", BRIDGED)
def test_a_lock_pins_all_and_names_no_place(name: str) -> None:
    lock = FOLDER / CATALOGUE[name]["lock"]
    text = lock.read_text()
    program = program_of(CATALOGUE[name])
    if lock.name == "package-lock.json":
        packages = read_packages(lock)
        manifest = json.loads((lock.parent / "package.json").read_text())
        assert packages[""]["dependencies"] == manifest["dependencies"]
        assert all(re.fullmatch(r"[\d.]+", version) for version in manifest["dependencies"].values())
        assert program in programs(packages)
        assert '"resolved"' not in text
        assert "hasInstallScript" not in text, "it is installed without running scripts"
    else:
        pinned = (lock.parent / "requirements.in").read_text().strip()
        # Exact; of a package that has no other yet also a pre-release.
        assert re.fullmatch(rf"{program}==[\d.]+(a\d+)?", pinned)
        requirements = re.split(r"\n(?=[^ #])", text)
        assert pinned in [requirement.split()[0] for requirement in requirements]
        for requirement in requirements:
            assert re.match(r"[a-z0-9._-]+==\S+ ", requirement), requirement
            assert "--hash=sha256:" in requirement, requirement
        assert "://" not in text


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_sandbox_opens_what_is_needed_and_no_more(name: str) -> None:
    lines = unit(name)
    node = "package-lock.json" in CATALOGUE[name].get("lock", "")
    assert f"MemoryDenyWriteExecute={'no' if node else 'yes'}" in lines
    denied = next(line for line in lines if line.startswith("IPAddressDeny="))
    if name in ("fetch", "fetch-native", "playwright"):
        assert "169.254.0.0/16" in denied and "10.0.0.0/8" in denied
    else:
        assert denied == "IPAddressDeny=any"
    assert "IPAddressAllow=localhost" in lines
    assert "NoNewPrivileges=yes" in lines and "PrivateUsers=yes" in lines
    assert not any("{state}" in line or "{environment}" in line for line in lines)


# covers: loopback
@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_whoever_runs_what_a_model_writes_or_a_page_says_reaches_nothing_over_loopback(name: str) -> None:
    """Others on the host trust loopback, and systemd's filter cannot close it to a service that answers there."""
    ruleset = loaded(unit(name))
    if name in ("fetch", "playwright"):
        [rule] = ruleset
        assert f"output oif lo meta skuid gatehouse-{name} ct state new" in rule
        assert rule.endswith("reject")
    else:
        assert not ruleset
    if name == "tmux":
        command = CATALOGUE[name]["command"]
        assert command[0] == "/usr/bin/bwrap"
        assert {"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc"} <= set(command)
        assert CATALOGUE[name]["isolation"] == "per_user"


# covers: edges
@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_where_edges_are_other_hosts_a_service_answers_them_alone(name: str) -> None:
    """Who reaches it says who calls."""
    lines = unit(name, ["10.0.0.3", "10.0.0.1", "10.0.0.2"])
    rules = loaded(lines)
    asks = f"meta skuid gatehouse-{name} ct state new"
    assert rules[-3:] == [
        f"output ip daddr {{ 10.0.0.1, 10.0.0.2 }} {asks} reject",
        "input iif != lo ip daddr 10.0.0.3 ip saddr { 10.0.0.1, 10.0.0.2 } tcp dport @PORT@ accept",
        "input iif != lo tcp dport @PORT@ reject",
    ]
    assert any(
        "localhost 10.0.0.3 10.0.0.1 10.0.0.2" in line for line in lines if line.startswith("IPAddress")
    )
    assert f'ExecStopPost=-+/usr/sbin/nft "delete table inet gatehouse-{name}-@SLOT@"' in lines
    assert not any("nft" in line for line in unit(name)) or name in ("fetch", "playwright")


def test_rules_come_back_when_the_host_s_own_are_loaded_anew() -> None:
    """Debian's begin with `flush ruleset`."""
    lines = unit("echo", ["10.0.0.3", "10.0.0.1"])
    assert {
        "After=nftables.service",
        "PartOf=nftables.service",
        "ReloadPropagatedFrom=nftables.service",
    } <= set(lines)
    [start] = [line for line in lines if line.startswith("ExecStartPre=")]
    assert start.replace("ExecStartPre=", "ExecReload=") in lines
    assert not any("nftables" in line for line in unit("echo"))


def test_a_page_runs_in_the_browser_s_own_sandbox_and_nobody_beside_it() -> None:
    entry = CATALOGUE["playwright"]
    assert "--sandbox" in entry["command"] and "--no-sandbox" not in entry["command"]
    assert service("playwright")["tools"]["deny"] == [
        "browser_run_code_unsafe",
        "browser_file_upload",
        "browser_drop",
    ]


def test_what_people_share_is_shared_by_those_who_are_named_with_it() -> None:
    assert CATALOGUE["memory"]["shared_state"] and CATALOGUE["memory"]["isolation"] == "shared"


def test_no_client_decides_which_files_it_may_touch() -> None:
    # Behind a shared process a client has no capabilities, so none to name roots with.
    assert CATALOGUE["filesystem"]["isolation"] == "per_user"
