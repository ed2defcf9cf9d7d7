"""Slots, from start to switch to removal: a folder stands for the host, a small machine for systemd."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils import slots
from ansible_collections.gatehouse.mcp.plugins.modules import components, components_info, components_switch

MODULES = (slots, components, components_info, components_switch)
UNIT = "[Service]\nExecStart=/bin/x @PORT@ @SLOT@ @RELEASE@ @CREDENTIALS@\n"


class Systemd:
    """What systemd knows: which units are up and enabled, and what it was told."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.enabled: set[str] = set()
        self.broken: set[str] = set()
        self.stuck: set[str] = set()
        self.picky: set[str] = set()
        self.told: list[tuple[str, ...]] = []
        self.users: set[str] = set()

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        verb, units = arguments[0], [item for item in arguments[1:] if not item.startswith("--")]
        self.told.append(arguments)
        out = ""
        if verb == "start":
            self.up |= set(units) - self.broken
        elif verb == "stop":
            self.up -= set(units) - self.stuck
        elif verb == "enable":
            self.enabled |= set(units)
        elif verb == "disable":
            self.enabled -= set(units)
        elif verb == "is-active":
            out = "".join("active\n" if unit in self.up else "inactive\n" for unit in units)
        elif verb == "is-enabled":
            out = "".join("enabled\n" if unit in self.enabled else "disabled\n" for unit in units)
        elif verb == "show":
            out = "\n".join(
                f"Id={unit}\nActiveState=active\nActiveEnterTimestamp=@1790000000\n"
                if unit in self.up
                else f"Id={unit}\nActiveState=inactive\nActiveEnterTimestamp=\n"
                for unit in units
            )
        refused = verb == "reload" and not self.picky.isdisjoint(units)
        return subprocess.CompletedProcess(arguments, int(refused), out, "")

    def count(self, verb: str) -> int:
        return sum(arguments[0] == verb for arguments in self.told)


class Ended(Exception):
    """A module has said what it has to say."""


class Host:
    """A host on which the modules run."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.systemd = Systemd()
        self.check_mode = False
        for name in ("OPT", "ETC", "UNITS", "SYSUSERS", "STATE", "CACHE"):
            folder = root / name.lower()
            for module in MODULES:
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, folder)
        monkeypatch.setattr(components_switch, "ENVIRONMENTS", root / "opt" / "environments")
        monkeypatch.setattr(slots, "LOCK", root / "lock")
        for module in MODULES:
            if hasattr(module, "systemctl"):
                monkeypatch.setattr(module, "systemctl", self.systemd)
            if hasattr(module, "user_exists"):
                monkeypatch.setattr(module, "user_exists", lambda name: name in self.systemd.users)
        monkeypatch.setattr(components, "group_id", lambda name: 0)
        monkeypatch.setattr(components, "ensure_users", self._ensure_users)
        monkeypatch.setattr(components, "wait_healthy", self._wait_healthy)
        monkeypatch.setattr(components, "log_tail", lambda unit, secrets: f"log of {unit}")
        monkeypatch.setattr(components_switch, "STOP_MARGIN", 0)
        self._monkeypatch = monkeypatch

    def _ensure_users(self, plans: list[components.Plan]) -> None:
        self.systemd.users |= {plan.place.user for plan in plans}

    def _wait_healthy(self, checks: Any, unit: str, port: int) -> tuple[str, str] | None:
        return None if unit in self.systemd.up else ("http", f"refused on {port}, said s3cret-s3cret")

    def _run(self, module: Any, params: dict[str, Any]) -> dict[str, Any]:
        ended: dict[str, Any] = {}

        class Module:
            def __init__(self, **spec: Any) -> None:
                spec = spec["argument_spec"]
                self.params = {key: params.get(key, option.get("default")) for key, option in spec.items()}
                self.check_mode = host.check_mode

            def exit_json(self, **result: Any) -> None:
                ended.update(result)
                raise Ended

            def fail_json(self, **result: Any) -> None:
                ended.update(result, failed=True)
                raise Ended

        host = self
        self._monkeypatch.setattr(module, "AnsibleModule", Module)
        self.systemd.told.clear()
        with pytest.raises(Ended):
            module.main()
        return ended

    def apply(self, *wanted: dict[str, Any], routed: list[int] | None = None) -> dict[str, Any]:
        plain = [{key: value for key, value in one.items() if key != "credentials"} for one in wanted]
        credentials = {one["name"]: one.get("credentials", {}) for one in wanted}
        params = {"group": "mcp", "components": plain, "credentials": credentials, "routed": routed}
        return self._run(components, params)

    def switch(self, *names: str, **params: Any) -> dict[str, Any]:
        return self._run(components_switch, {"groups": {"mcp": list(names)}, "drain_seconds": 0, **params})

    def info(self, **params: Any) -> dict[str, Any]:
        return self._run(components_info, params)

    def place(self, name: str = "one") -> slots.Place:
        return slots.Place(name)

    def tree(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): str(path.readlink()) if path.is_symlink() else path.read_text()
            for path in self.root.rglob("*")
            if path.is_symlink() or path.is_file()
        }


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(subprocess, "run", _no_process)
    monkeypatch.setattr("os.fchown", lambda *arguments: None)
    return Host(tmp_path, monkeypatch)


def _no_process(*arguments: Any, **named: Any) -> subprocess.CompletedProcess[str]:
    assert arguments[0][0] == "userdel"
    return subprocess.CompletedProcess(arguments[0], 0, "", "")


def wanted(name: str = "one", **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "unit": UNIT, "env": {"A": "1"}, "credentials": {"token": "s3cret-s3cret"},
        "port": 20000 + 10 * len(name), "environments": ["e1"],
        "health": [{"name": "http", "kind": "http", "url": "http://127.0.0.1:@PORT@/health", "timeout": 1}],
        **changes,
    }  # fmt: skip


def serve(host: Host, *components_: dict[str, Any]) -> None:
    """A first rollout, up to the switch."""
    host.apply(*components_)
    host.switch(*(item["name"] for item in components_))


def test_a_first_rollout(host: Host) -> None:
    result = host.apply(wanted())
    assert (result["changed"], result["endpoints"], result["pending"]) == (True, {"one": 20030}, ["one"])
    place = host.place()
    assert (place.pointer("next"), place.pointer("current")) == ("a", None)
    assert host.systemd.up == {"gatehouse-one@a.service"}
    assert not host.systemd.enabled
    switched = host.switch("one")
    assert (switched["changed"], switched["switched"]) == (True, ["one"])
    assert (place.pointer("next"), place.pointer("current")) == (None, "a")
    assert host.systemd.enabled == {"gatehouse-one@a.service"}
    assert (slots.ETC / "one" / ".env").read_text() == '# Managed by Gatehouse.\nA="1"\n'


def test_files_of_a_slot(host: Host) -> None:
    serve(host, wanted())
    place = host.place()
    assert place.unit_file("a").read_text() == (
        f"[Service]\nExecStart=/bin/x 20030 a {place.folder}/a {place.credentials('a')}\n"
    )
    assert (place.folder / "a" / ".env").stat().st_mode & 0o777 == 0o640
    for folder in (place.credentials("a"), place.credentials("a").parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (place.credentials("a") / "token").stat().st_mode & 0o777 == 0o600
    assert place.manifest("a") == {
        "name": "one", "group": "mcp", "port": 20030, "environments": ["e1"], "health": wanted()["health"],
    }  # fmt: skip


def test_the_second_run_changes_nothing_and_asks_systemd_once(host: Host) -> None:
    many = [wanted("x" * number) for number in range(1, 21)]
    serve(host, *many)
    before = host.tree()
    assert host.apply(*many)["changed"] is False
    assert len(host.systemd.told) == 1
    assert host.switch(*(item["name"] for item in many))["changed"] is False
    assert len(host.systemd.told) == 1
    assert host.tree() == before


@pytest.mark.parametrize(
    "change",
    [{"env": {"A": "2"}}, {"credentials": {"token": "another-one"}}, {"credentials": {}}, {"environments": ["e2"]},
     {"unit": "[Service]\n"}, {"port": 20004}, {"health": []}],
)  # fmt: skip
def test_every_change_goes_to_the_other_slot(host: Host, change: dict[str, Any]) -> None:
    serve(host, wanted())
    before = host.tree()
    result = host.apply(wanted(**change))
    assert result["endpoints"] == {"one": change.get("port", 20030) + 1}
    assert host.systemd.up == {"gatehouse-one@a.service", "gatehouse-one@b.service"}
    after = host.tree()
    assert {path: after[path] for path in before} == before
    host.switch("one")
    assert host.systemd.up == host.systemd.enabled == {"gatehouse-one@b.service"}
    assert not host.place().occupied("a")
    assert host.apply(wanted(**change))["changed"] is False


def test_all_that_changed_starts_at_once(host: Host) -> None:
    host.apply(wanted("one"), wanted("three"), wanted("fourth"))
    assert host.systemd.count("start") == host.systemd.count("daemon-reload") == 1


def test_a_failed_check_leaves_what_ran_and_says_what_failed(host: Host) -> None:
    serve(host, wanted())
    before = host.tree()
    host.systemd.broken = {"gatehouse-one@b.service"}
    result = host.apply(wanted(env={"A": "2"}), wanted("three"))
    assert result["failed"]
    assert "1 of 2" in result["msg"] and "one: check «http» failed: refused on 20031" in result["msg"]
    assert "log of gatehouse-one@b.service" in result["msg"]
    assert "s3cret" not in result["msg"]
    assert host.systemd.up == {"gatehouse-one@a.service", "gatehouse-three@a.service"}
    left = {path: text for path, text in host.tree().items() if "three" not in path}
    assert {path: left[path] for path in before} == before
    assert not any("credentials/b" in path or "@b" in path for path in left)
    assert host.place("three").pointer("next") == "a"


def test_a_first_rollout_that_fails_leaves_nothing(host: Host) -> None:
    host.systemd.broken = {"gatehouse-one@a.service"}
    assert host.apply(wanted())["failed"]
    assert not [path for path in host.tree() if "one" in path]
    assert not host.systemd.up


def test_a_broken_release_before_the_first_switch_leaves_what_waits_for_it(host: Host) -> None:
    host.apply(wanted())
    host.systemd.broken = {"gatehouse-one@b.service"}
    assert host.apply(wanted(env={"A": "2"}))["failed"]
    assert host.systemd.up == {"gatehouse-one@a.service"}
    assert host.apply(wanted())["endpoints"] == {"one": 20030}


def test_a_change_before_the_first_switch_leaves_no_slot_behind(host: Host) -> None:
    host.apply(wanted())
    assert host.apply(wanted(env={"A": "2"}))["endpoints"] == {"one": 20031}
    host.switch("one")
    assert host.systemd.up == {"gatehouse-one@b.service"}
    assert not host.place().occupied("a")


def test_a_slot_that_waits_for_the_switch_is_not_started_again(host: Host) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    result = host.apply(wanted(env={"A": "2"}))
    assert (result["changed"], result["endpoints"], result["pending"]) == (False, {"one": 20031}, ["one"])


def test_a_change_that_is_taken_back_before_the_switch(host: Host) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    result = host.apply(wanted())
    assert (result["changed"], result["endpoints"], result["pending"]) == (True, {"one": 20030}, [])
    # Traefik may use it until the switch.
    assert "gatehouse-one@b.service" in host.systemd.up
    host.switch("one")
    assert host.systemd.up == {"gatehouse-one@a.service"}
    assert host.apply(wanted())["changed"] is False


def test_a_third_release_takes_the_place_of_one_that_no_edge_knows(host: Host) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    result = host.apply(wanted(env={"A": "3"}), routed=[20030])
    assert (result["endpoints"], result["pending"]) == ({"one": 20031}, ["one"])
    assert host.systemd.up == {"gatehouse-one@a.service", "gatehouse-one@b.service"}
    assert host.place().pointer("current") == "a"


# covers: fault-rollout
@pytest.mark.parametrize("taken_back", [False, True])
def test_a_third_release_after_a_run_that_broke_before_the_switch(host: Host, taken_back: bool) -> None:
    """Edges route to `b` already, whatever the pointers say; nothing stops it."""
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    if taken_back:
        host.apply(wanted(), routed=[20031])
    host.systemd.broken = {"gatehouse-one@a.service"}
    failed = host.apply(wanted(env={"A": "3"}), routed=[20031])
    assert failed["failed"]
    assert host.systemd.up == host.systemd.enabled == {"gatehouse-one@b.service"}
    assert (host.place().pointer("current"), host.place().pointer("next")) == ("b", None)
    host.systemd.broken = set()
    result = host.apply(wanted(env={"A": "3"}), routed=[20031])
    assert (result["endpoints"], result["pending"]) == ({"one": 20030}, ["one"])
    assert host.systemd.up == {"gatehouse-one@a.service", "gatehouse-one@b.service"}
    host.switch("one")
    assert host.systemd.up == host.systemd.enabled == {"gatehouse-one@a.service"}
    assert not host.place().occupied("b")


def test_where_edges_differ_a_third_release_is_refused_and_the_second_can_be_finished(host: Host) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    before = host.tree()
    result = host.apply(wanted(env={"A": "3"}), wanted("three"), routed=[20030, 20031])
    assert result["failed"] and "one: some edges route to its old release" in result["msg"]
    assert "roll out once more what the inventory had" in result["msg"]
    assert host.tree() == before
    assert [arguments[0] for arguments in host.systemd.told] == ["is-active"]
    assert host.apply(wanted(env={"A": "2"}), routed=[20030, 20031])["pending"] == ["one"]
    host.switch("one")
    assert host.systemd.up == {"gatehouse-one@b.service"}


def test_what_traefik_on_the_host_routes_to(host: Host) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    file = slots.ETC / "traefik" / "dynamic" / "gatehouse.yml"
    file.parent.mkdir(parents=True)
    file.write_text(
        'address: "http://127.0.0.2:18000/internal/check/one"\n'
        'servers: [{url: "http://127.0.0.1:20031"},{url: "http://192.0.2.1:20030"},]\n'
    )
    result = host.apply(wanted(env={"A": "3"}))
    assert result["routes"] == ["127.0.0.1:20031", "127.0.0.2:18000", "192.0.2.1:20030"]
    assert result["endpoints"] == {"one": 20030}, "the other address is another host's"


@pytest.mark.parametrize(("changes", "port"), [(0, 20101), (1, 20100)])
def test_a_new_name_for_a_service_with_a_port_of_its_own(host: Host, changes: int, port: int) -> None:
    serve(host, wanted(port=20100))
    for number in range(changes):
        serve(host, wanted(port=20100, env={"A": f"more {number}"}))
    result = host.apply(wanted("three", port=20100))
    assert (result["endpoints"], result["obsolete"]) == ({"three": port}, ["one"])
    host.switch("three")
    assert host.apply(wanted("three", port=20100))["changed"] is False


def test_a_port_that_is_not_free_before_the_switch_is_refused(host: Host) -> None:
    serve(host, wanted(port=20100), wanted("three"))
    serve(host, wanted(port=20100, env={"A": "2"}), wanted("three"))
    before = host.tree()
    result = host.apply(wanted("three", port=20100))
    assert result["failed"] and "three: its port is gatehouse-one@b.service's" in result["msg"]
    assert "choose another port" in result["msg"]
    assert host.tree() == before
    host.switch("three")
    assert host.apply(wanted("three", port=20100))["endpoints"] == {"three": 20101}


def test_a_unit_that_is_down_is_started_where_it_is(host: Host) -> None:
    serve(host, wanted())
    before = host.tree()
    host.systemd.up.clear()
    result = host.apply(wanted())
    assert (result["changed"], result["endpoints"], result["pending"]) == (True, {"one": 20030}, [])
    assert host.systemd.up == {"gatehouse-one@a.service"}
    assert host.tree() == before


def test_a_file_that_was_changed_by_hand_is_put_right_by_a_new_slot(host: Host) -> None:
    serve(host, wanted())
    host.place().unit_file("a").write_text("[Service]\n")
    assert host.apply(wanted())["endpoints"] == {"one": 20031}


def test_a_dry_run_changes_nothing_and_shows_no_secret(host: Host) -> None:
    host.check_mode = True
    result = host.apply(wanted())
    assert result["changed"] and not host.tree()
    assert host.switch("one")["changed"] is False
    host.check_mode = False
    serve(host, wanted())
    before, host.check_mode = host.tree(), True
    result = host.apply(wanted(env={"A": "2"}, credentials={"token": "another-one", "more": "third-value"}))
    shown = json.dumps(result["diff"])
    assert "credential token changed" in shown and "credential more" in shown and 'A=\\"2\\"' not in before
    assert not any(value in shown for value in ("s3cret", "another-one", "third-value"))
    assert "20031" not in shown
    assert host.switch()["removed"] == ["one"]
    assert host.tree() == before


def listed(content: str, **changes: Any) -> dict[str, Any]:
    return wanted(live_files={"list.json": content}, **changes)


def test_a_live_file_is_reread_and_no_slot_starts(host: Host) -> None:
    serve(host, listed("one"))
    file = host.place().live_file("list.json")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("one", 0o640)
    assert host.systemd.count("reload") == 0
    host.check_mode = True
    assert host.apply(listed("two"))["diff"] == [
        {"before_header": str(file), "after_header": str(file), "before": "one", "after": "two"}
    ]
    assert file.read_text() == "one"
    host.check_mode = False
    result = host.apply(listed("two"))
    assert (result["changed"], result["pending"], result["endpoints"]) == (True, [], {"one": 20030})
    assert ("reload", "gatehouse-one@a.service") in host.systemd.told
    assert file.read_text() == "two"
    assert not host.place().occupied("b")
    assert host.apply(listed("two"))["changed"] is False
    assert host.switch("one")["changed"] is False


def test_a_run_that_broke_before_the_reload_is_taken_up_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(host, listed("one"))
    with monkeypatch.context() as patch:
        patch.setattr(components.Plan, "failure", _power_failure)
        assert host.apply(listed("two"))["failed"]
    assert host.systemd.count("reload") == 0
    assert host.apply(listed("two"))["changed"] is True
    assert host.systemd.count("reload") == 1
    assert host.apply(listed("two"))["changed"] is False


def _power_failure(plan: components.Plan) -> str:
    raise OSError("power")


def test_a_live_file_that_the_unit_refuses_is_put_back(host: Host) -> None:
    serve(host, listed("one"))
    host.systemd.picky.add("gatehouse-one@a.service")
    result = host.apply(listed("wrong"))
    assert result["failed"] and "check «reload» failed" in result["msg"]
    assert "log of gatehouse-one@a.service" in result["msg"]
    assert host.place().live_file("list.json").read_text() == "one"
    assert host.systemd.up == {"gatehouse-one@a.service"}
    host.systemd.picky.clear()
    assert host.apply(listed("one"))["changed"] is True, "it may have read half of it"
    assert host.apply(listed("one"))["changed"] is False


def test_a_live_file_of_a_release_that_fails_is_put_back(host: Host) -> None:
    host.systemd.broken.add("gatehouse-one@a.service")
    assert host.apply(listed("one"))["failed"]
    assert not host.place().live_file("list.json").exists()
    host.systemd.broken.clear()
    serve(host, listed("one"))
    host.systemd.broken.add("gatehouse-one@b.service")
    assert host.apply(listed("two", env={"A": "2"}))["failed"]
    assert host.place().live_file("list.json").read_text() == "one"
    host.systemd.broken.clear()
    # A slot that starts reads the file anyway; the one that serves until the switch is left alone.
    assert host.apply(listed("two", env={"A": "2"}))["pending"] == ["one"]
    assert host.place().live_file("list.json").read_text() == "two"
    assert host.systemd.count("reload") == 0


def test_a_placeholder_in_the_environment(host: Host) -> None:
    serve(host, wanted(env={"LISTEN": "127.0.0.1:@PORT@"}))
    assert '"127.0.0.1:20030"' in (host.place().folder / "a" / ".env").read_text()
    changed = wanted(env={"LISTEN": "127.0.0.1:@PORT@"}, credentials={})
    host.apply(changed)
    assert '"127.0.0.1:20031"' in (host.place().folder / "b" / ".env").read_text()
    host.switch("one")
    assert host.apply(changed)["changed"] is False


def test_secrets_are_no_part_of_the_release(host: Host) -> None:
    serve(host, wanted())
    before = host.place().release("a")
    host.apply(wanted(credentials={"token": "another-one"}))
    assert host.place().release("b") == before


def test_what_only_moved_to_another_host_leaves_its_data(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(slots.os, "chown", lambda path, user, group: given.append((path, user, group)))
    serve(host, wanted("one"), wanted("three"))
    for folder in (slots.STATE, slots.CACHE):
        (folder / "gatehouse-three").mkdir(parents=True)
    host.apply(wanted("one"))
    assert host.switch("one", moved=["one", "three"])["removed"] == ["three"]
    assert [path for path in host.root.rglob("*") if "three" in path.name] == [
        slots.STATE / "gatehouse-three"
    ]
    assert given[-1] == (slots.STATE / "gatehouse-three", 0, 0)
    assert host.switch("one", moved=["one", "three"])["changed"] is False


def test_what_is_no_longer_wanted_goes_entirely(host: Host) -> None:
    serve(host, wanted("one"), wanted("three"))
    for folder in (slots.STATE, slots.CACHE):
        (folder / "gatehouse-three").mkdir(parents=True)
    assert host.apply(wanted("one"))["obsolete"] == ["three"]
    result = host.switch("one")
    assert (result["changed"], result["removed"]) == (True, ["three"])
    assert not [path for path in host.root.rglob("*") if "three" in path.name]
    assert host.systemd.up == {"gatehouse-one@a.service"}
    assert host.switch("one")["changed"] is False


def edge(host: Host) -> dict[str, Path]:
    """An edge with Redis and secrets; what there is of each."""
    files = {
        "redis": slots.ETC / "redis" / "users.acl",
        "redis's unit": slots.UNITS / "gatehouse-redis.service",
        "redis's data": slots.STATE / "gatehouse-redis" / "dump.rdb",
        "traefik": slots.ETC / "traefik" / "front.pem",
        "traefik's units": slots.UNITS / "gatehouse-traefik-web.socket",
        "traefik's program": slots.OPT / "traefik" / "releases" / "1" / "traefik",
        "traefik's account": slots.STATE / "gatehouse-traefik" / "acme.json",
        "secrets": slots.STATE / "gatehouse" / "secrets" / "store.json",
    }
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    host.systemd.up |= {
        "gatehouse-redis.service",
        "gatehouse-traefik.service",
        "gatehouse-traefik-web.socket",
    }
    host.systemd.enabled |= host.systemd.up
    return files


# covers: fault-host-left
@pytest.mark.parametrize(
    ("units", "secrets", "removed", "left"),
    [
        (["traefik", "redis"], True, [], None),
        (["redis"], True, ["traefik"], {"redis", "redis's unit", "redis's data", "secrets"}),
        (["traefik"], True, ["redis"],
         {"traefik", "traefik's units", "traefik's program", "traefik's account", "redis's data", "secrets"}),
        ([], False, ["redis", "traefik"], {"redis's data"}),
    ],
)  # fmt: skip
def test_a_host_that_left_a_group(
    host: Host, units: list[str], secrets: bool, removed: list[str], left: set[str] | None
) -> None:
    serve(host, wanted())
    files = edge(host)
    before, host.check_mode = host.tree(), True
    assert host.switch("one", units=units, secrets=secrets)["removed"] == removed
    assert host.tree() == before
    host.check_mode = False
    assert host.switch("one", units=units, secrets=secrets)["removed"] == removed
    assert {name for name, path in files.items() if path.exists()} == (set(files) if left is None else left)
    gone = {f"gatehouse-{name}" for name in removed}
    running = {unit for unit in host.systemd.up | host.systemd.enabled if unit.startswith(tuple(gone))}
    assert running == set()
    assert "gatehouse-one@a.service" in host.systemd.up
    assert host.switch("one", units=units, secrets=secrets)["changed"] is False


def test_groups_that_are_not_named_are_left_alone(host: Host) -> None:
    serve(host, wanted())
    assert host._run(components_switch, {"groups": {"auth": []}})["changed"] is False


def test_an_interrupted_removal_is_taken_up_again(host: Host) -> None:
    serve(host, wanted())
    (host.place().folder / "current").unlink()
    assert host.switch()["removed"] == ["one"]


def test_an_interrupted_switch_is_taken_up_again(host: Host) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    slots.link(host.place().folder / "current", "b")
    assert host.switch("one")["switched"] == ["one"]
    assert host.systemd.up == host.systemd.enabled == {"gatehouse-one@b.service"}


def test_a_slot_that_does_not_stop_is_cleared_by_the_next_run(host: Host) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))
    host.systemd.stuck = {"gatehouse-one@a.service"}
    host.switch("one")
    assert host.place().occupied("a")
    host.systemd.stuck = set()
    assert host.switch("one")["changed"] is True
    assert not host.place().occupied("a")
    assert host.switch("one")["changed"] is False


def test_a_unit_that_was_disabled_is_enabled_again(host: Host) -> None:
    serve(host, wanted())
    host.systemd.enabled.clear()
    assert host.switch("one")["changed"] is True
    assert host.systemd.enabled == {"gatehouse-one@a.service"}


def test_old_releases_and_unused_environments_go(host: Host) -> None:
    environments = slots.OPT / "environments"
    for number in range(6):
        (environments / f"e{number}").mkdir(parents=True)
        serve(host, wanted(environments=[f"e{number}"]))
    assert len(list((host.place().folder / "releases").iterdir())) == 3
    assert sorted(path.name for path in environments.iterdir()) == ["e3", "e4", "e5"]
    (environments / ".new-x").mkdir()
    host.switch()
    assert [path.name for path in environments.iterdir()] == [".new-x"]


def test_info(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(host, wanted())
    host.apply(wanted(env={"A": "2"}))

    def run_check(check: Any, unit: str, port: int) -> None:
        if port != 20031:
            raise components_info.Unhealthy(f"{unit} said no")

    monkeypatch.setattr(components_info, "run_check", run_check)
    units = [{"name": "redis", "url": None, "release": None, "secrets": None}]
    result = host.info(checks=True, units=units)
    one, redis = result["components"]["one"], result["components"]["redis"]
    assert result["changed"] is False
    assert result["endpoints"] == {"one": 20031}
    assert one["unit"] == "gatehouse-one@b.service" and one["slot"] == "b" and one["group"] == "mcp"
    assert (one["state"], one["since"], one["health"]) == ("active", 1790000000, {"http": "ok"})
    assert one["release"] == host.place().release("b") and one["secrets_since"] > 1790000000
    assert (redis["state"], redis["since"]) == ("inactive", None)
    assert redis["health"] == {"unit": "gatehouse-redis.service said no"}
    assert host.info(group="auth")["components"] == {}
    assert "health" not in host.info()["components"]["one"]


def test_info_sees_that_the_rules_of_a_unit_were_flushed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    up = [{"name": "unit", "kind": "unit"}]
    ruled = '[Service]\nExecStartPre=+/usr/sbin/nft "…"\n'
    serve(host, wanted(unit=ruled, health=up), wanted("two", port=20040, health=up))
    monkeypatch.setattr(components_info, "run_check", lambda *_: None)
    for in_force, said in (
        ({"gatehouse-one-a"}, "ok"),
        ({"gatehouse-one-b"}, "its nftables rules are gone; systemctl reload gatehouse-one@a.service"),
    ):
        monkeypatch.setattr(components_info, "tables", lambda known=in_force: known)
        known = host.info(checks=True)["components"]
        assert (known["one"]["health"]["unit"], known["two"]["health"]["unit"]) == (said, "ok")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../etc"}, "a name has"),
        ({"name": "environments"}, "a name has"),
        ({"name": "a" * 22}, "a name has"),
        ({"port": 20001}, "must be even"),
        ({"env": {"A": 1}}, "one: A is a int"),
        ({"env": {"A B": "x"}}, "'A B' is no name"),
        ({"env": {"A": "x\ny"}}, "one: A has a line break"),
        ({"live_files": {"../list.json": "x"}}, "'../list.json' is no name"),
        ({"live_files": {"credentials": "x"}}, "'credentials' is no name"),
        ({"live_files": {".env": "x"}}, "'.env' is no name"),
        ({"credentials": {"../token": "x"}}, "'../token' is no name"),
        ({"credentials": {"token": 123456789}}, "one: credential token is a int"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    host: Host, change: dict[str, Any], said: str
) -> None:
    result = host.apply(wanted("three"), wanted(**change))
    assert result["failed"] and said in result["msg"]
    assert "123456789" not in result["msg"]
    assert not host.systemd.told


@pytest.mark.parametrize("change", [{"name": "three"}, {"port": 20050}])
def test_two_of_the_same_are_refused(host: Host, change: dict[str, Any]) -> None:
    assert host.apply(wanted("three"), wanted(**change))["failed"]


@pytest.mark.parametrize(
    "value",
    ["plain", 'quote"', "back\\slash", "$dollar", "`tick`", "", "spa ce", "ünï", "#x", "a'b", "%h", "end\\"],
)
def test_systemd_and_a_shell_read_back_what_was_written(value: str, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(slots.render_env({"V": value}))
    shown = subprocess.run(
        ["bash", "-c", f'. {path}; printf %s "$V"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == value


@pytest.fixture
def secret() -> str:
    return json.dumps({"keys": [{"jwk": {"d": "a-private-number"}}]}, indent=1)


@pytest.mark.parametrize(
    "write",
    [str, lambda text: f"it is {text}!", lambda text: json.dumps({"said": text}), lambda text: text.splitlines()[4]],
)  # fmt: skip
def test_a_log_shows_no_secret_however_it_is_written(secret: str, write: Callable[[str], str]) -> None:
    assert "a-private-number" not in slots.scrub(write(secret), [secret])
    assert "p@ss/word+1" not in slots.scrub(write("p@ss/word+1\n" * 5), ["p@ss/word+1"])
    assert "p%40ss%2Fword" not in slots.scrub("redis://x:p%40ss%2Fword%2B1@h", ["p@ss/word+1"])
