"""`status.yml` says how the fleet is, and ends with an error where something is not well."""

from __future__ import annotations

from fleet import Fleet


def test_a_fleet_that_is_well(fleet: Fleet) -> None:
    played = fleet.play("status.yml")
    assert played.status == 0, played.output[-3000:]
    for unit in (
        "gatehouse-auth@",
        "gatehouse-echo@",
        "gatehouse-redis",
        "gatehouse-time@",
        "gatehouse-traefik",
    ):
        assert unit in played.output
    assert played.changes == 0


def test_a_unit_that_is_down_is_named(fleet: Fleet) -> None:
    [host] = fleet.hosts("gateway_mcp")
    host.check_output("systemctl stop 'gatehouse-time@*'")
    try:
        played = fleet.play("status.yml")
        assert played.status != 0
        assert "gatehouse-time@" in played.output and "FAIL" in played.output
    finally:
        # What is configured and down, a rollout starts where it is.
        mended = fleet.play("site.yml")
    assert mended.status == 0, mended.output[-3000:]
