"""The table of `status.yml`."""

from __future__ import annotations

from typing import Any

from ansible_collections.gatehouse.mcp.plugins.filter.status import age, faults, rows, table_lines


def component(**health: str) -> dict[str, Any]:
    return {
        "unit": "gatehouse-time@a.service",
        "release": "0123456789abcdef",
        "secrets_since": 0,
        "health": health,
    }


WELL = {"h1": {"status_info": {"components": {"time": component(unit="ok", http="ok", mcp="ok")}}}}


def test_a_fleet_that_is_well() -> None:
    table = rows(["h1"], WELL, {"h1": {"time": {}}}, now=7200)
    assert table_lines(table) == [
        "HOST  UNIT              STATE  HTTP  MCP  RELEASE       SECRETS",
        "h1    gatehouse-time@a  ok     ok    ok   0123456789ab  2h",
    ]
    assert faults(table) == []


def test_the_front_door_counts_as_much_as_the_service() -> None:
    hostvars = {
        **WELL,
        "h2": {"status_info": {"components": {}}, "status_front": {"services": {"time": "status 502"}}},
    }
    table = rows(["h1", "h2"], hostvars, {}, now=0)
    assert faults(table) == ["h1 gatehouse-time@a: MCP: status 502"]
    assert "FAIL" in table_lines(table)[1]


def test_what_should_run_and_does_not() -> None:
    assert faults(rows(["h1"], WELL, {"h1": ["time", "echo"]}, now=0)) == [
        "h1 gatehouse-echo: STATE: missing"
    ]


def test_a_host_that_does_not_answer() -> None:
    hostvars = {"h1": {"status_info": {"unreachable": True}}}
    assert faults(rows(["h1"], hostvars, {}, now=0)) == ["h1 -: STATE: unreachable"]


def test_ages() -> None:
    assert [age(0, now) for now in (5, 130, 7300, 200000)] == ["5s", "2m", "2h", "2d"]
    assert age(None, 0) == "-"
