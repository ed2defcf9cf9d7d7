"""Slots, as the module decides about them: a folder stands for the host, a stand-in for systemctl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils import slots
from ansible_collections.gatehouse.mcp.plugins.modules import components as module


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """An empty host; returns the units that are up."""
    for name in ("OPT", "ETC", "UNITS", "SYSUSERS"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setattr(slots, name, folder)
        if hasattr(module, name):
            monkeypatch.setattr(module, name, folder)
    up: set[str] = set()

    def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, 0 if arguments[-1] in up else 3, "", "")

    monkeypatch.setattr(slots, "systemctl", systemctl)
    monkeypatch.setattr(module, "group_id", lambda name: 0)
    return up


def component(**changes: Any) -> slots.Component:
    fields: dict[str, Any] = {
        "name": "one", "group": "mcp", "unit": "[Service]\nExecStart=/bin/x @PORT@ @SLOT@\n", "env": {"A": "1"},
        "credentials": {"token": "s3cret-s3cret"}, "port": 20000, "environments": ["e1"], "health": [],
    }  # fmt: skip
    return slots.Component(**{**fields, **changes})


def deploy(wanted: slots.Component) -> module.Plan:
    """What the module and the switch do on a host."""
    plan = module.Plan(wanted)
    plan.write()
    slots.link(plan.place.folder / "current", plan.slot)
    return plan


def test_the_first_release_takes_slot_a(host: set[str]) -> None:
    plan = module.Plan(component())
    assert (plan.action, plan.slot, plan.port) == ("deploy", "a", 20000)


def test_what_is_as_it_should_be_is_left_alone(host: set[str]) -> None:
    host.add(deploy(component()).unit)
    plan = module.Plan(component())
    assert (plan.action, plan.slot) == ("nothing", "a")


@pytest.mark.parametrize(
    "change",
    [{"env": {"A": "2"}}, {"credentials": {"token": "another-one"}}, {"credentials": {}}, {"environments": ["e2"]},
     {"unit": "[Service]\n"}, {"port": 20004}],
)  # fmt: skip
def test_every_change_goes_to_the_other_slot(host: set[str], change: dict[str, Any]) -> None:
    host.add(deploy(component()).unit)
    plan = module.Plan(component(**change))
    assert (plan.action, plan.slot) == ("deploy", "b")
    assert plan.port == change.get("port", 20000) + 1


def test_secrets_are_no_part_of_the_release_or_the_diff(host: set[str]) -> None:
    assert component().release == component(credentials={"token": "another-one"}).release
    host.add(deploy(component()).unit)
    plan = module.Plan(component(credentials={"token": "another-one", "more": "third-value"}))
    shown = str(plan.diffs())
    assert "another secret" in shown and "more" in shown
    assert not any(value in shown for value in ("s3cret", "another-one", "third-value"))


def test_a_slot_that_waits_for_the_switch_is_not_started_again(host: set[str]) -> None:
    host.add(deploy(component()).unit)
    changed = module.Plan(component(env={"A": "2"}))
    changed.write()
    slots.link(changed.place.folder / "next", "b")
    host.add(changed.unit)
    plan = module.Plan(component(env={"A": "2"}))
    assert (plan.action, plan.slot, plan.port) == ("nothing", "b", 20001)


def test_a_change_that_is_taken_back_before_the_switch(host: set[str]) -> None:
    host.add(deploy(component()).unit)
    changed = module.Plan(component(env={"A": "2"}))
    changed.write()
    slots.link(changed.place.folder / "next", "b")
    plan = module.Plan(component())
    assert (plan.action, plan.slot) == ("return", "a")


def test_a_unit_that_is_down_is_started_where_it_is(host: set[str]) -> None:
    deploy(component())
    plan = module.Plan(component())
    assert (plan.action, plan.slot) == ("start", "a")


def test_modes_of_what_is_written(host: set[str]) -> None:
    plan = deploy(component())
    release = plan.place.folder / "a"
    assert (release / ".env").stat().st_mode & 0o777 == 0o640
    assert plan.place.credentials("a").stat().st_mode & 0o777 == 0o700
    assert (plan.place.credentials("a") / "token").stat().st_mode & 0o777 == 0o600
    assert plan.place.unit_file("a").read_text() == "[Service]\nExecStart=/bin/x 20000 a\n"


@pytest.mark.parametrize(
    "value", ["plain", 'quote"', "back\\slash", "$dollar", "`tick`", "", "spa ce", "ünï"]
)
def test_systemd_and_a_shell_read_back_what_was_written(value: str, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(slots.render_env({"V": value}))
    shown = subprocess.run(
        ["bash", "-c", f'. {path}; printf %s "$V"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == value


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"])
def test_a_line_break_is_refused_by_name(value: str) -> None:
    with pytest.raises(ValueError, match="V has a line break"):
        slots.render_env({"V": value})
