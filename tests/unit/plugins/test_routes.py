"""What edges route to."""

from __future__ import annotations

from typing import Any

from ansible_collections.gatehouse.mcp.plugins.filter.routes import routed_ports

EDGES = ["edge1", "edge2"]
HOSTVARS: dict[str, dict[str, Any]] = {
    "edge1": {
        "gatehouse_address": "10.0.0.1",
        "auth": {"routes": ["10.0.0.1:20011", "10.0.0.3:20010", "127.0.0.1:18000"]},
    },
    "edge2": {"gatehouse_address": "10.0.0.2", "auth": {"routes": ["10.0.0.3:20011", "10.0.0.31:20020"]}},
    "mcp1": {"gatehouse_address": "10.0.0.3"},
}


def test_a_host_s_ports_as_every_edge_has_them() -> None:
    assert routed_ports("mcp1", EDGES, HOSTVARS, "auth") == [20010, 20011]
    assert routed_ports("edge1", EDGES, HOSTVARS, "auth") == [20011]


def test_one_host() -> None:
    assert routed_ports("edge1", ["edge1"], HOSTVARS, "auth") == [18000]


def test_an_edge_that_said_nothing() -> None:
    assert routed_ports("mcp1", EDGES, HOSTVARS, "other") == []
