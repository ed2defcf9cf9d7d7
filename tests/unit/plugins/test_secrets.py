"""A rotation never leaves a moment in which what one uses another refuses."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
from ansible_collections.gatehouse.mcp.plugins.filter.secrets import FilterModule, stage
from ansible_collections.gatehouse.mcp.plugins.module_utils import secrets
from cryptography import x509

SPEC = {"ca": "ca", "redis_auth": "password", "signing": "es256"}
ROTATED = ["redis_auth", "signing"]
RETIRE = {"redis_auth": 0, "signing": 3660}


@pytest.fixture
def store() -> secrets.Store:
    return secrets.ensure(secrets.new_store(), SPEC, {})


def test_generated_once_and_kept(store: secrets.Store) -> None:
    assert secrets.ensure(store, SPEC, {}) == store
    assert len(secrets.current(store, "redis_auth")) >= 43
    assert secrets.current(store, "signing")["crv"] == "P-256"


def test_two_fleets_share_nothing() -> None:
    one, two = (secrets.ensure(secrets.new_store(), SPEC, {}) for _ in range(2))
    assert all(secrets.current(one, name) != secrets.current(two, name) for name in SPEC)


def test_at_every_step_what_is_used_was_accepted_before_and_is_accepted_after(store: secrets.Store) -> None:
    steps = [store]
    for name in ("prepare", "promote", "retire"):
        steps.append(stage(steps[-1], name, ROTATED, RETIRE))
    for before, after in itertools.pairwise(steps):
        for name in ROTATED:
            # While a step is rolled out, some hosts are still at the one before.
            assert secrets.current(after, name) in secrets.values(before, name)
            assert secrets.current(before, name) in secrets.values(after, name) or name == "redis_auth"
    assert secrets.current(store, "redis_auth") in secrets.values(steps[2], "redis_auth")
    assert secrets.values(steps[3], "redis_auth") == [secrets.current(steps[3], "redis_auth")]
    assert secrets.current(store, "redis_auth") != secrets.current(steps[3], "redis_auth")
    # A key that was replaced verifies for as long as a token lives.
    assert secrets.current(store, "signing") in secrets.values(steps[3], "signing")


def test_a_signing_key_goes_when_its_time_has_come(store: secrets.Store) -> None:
    rotated = stage(stage(store, "prepare", ROTATED, RETIRE), "promote", ROTATED, RETIRE)
    [old] = [entry for entry in rotated["secrets"]["signing"]["entries"] if entry["state"] == "retiring"]
    old["retire_after"] = 1
    assert len(stage(rotated, "ensure", ROTATED, RETIRE)["secrets"]["signing"]["entries"]) == 1


def test_only_the_end_of_a_rotation_drops_a_password(store: secrets.Store) -> None:
    broken = stage(stage(store, "prepare", ROTATED, RETIRE), "promote", ROTATED, RETIRE)
    assert len(secrets.values(stage(broken, "ensure", ROTATED, RETIRE), "redis_auth")) == 2
    assert len(secrets.values(stage(broken, "retire", ROTATED, RETIRE), "redis_auth")) == 1


def test_a_broken_run_is_taken_up_again(store: secrets.Store) -> None:
    prepared = stage(store, "prepare", ROTATED, RETIRE)
    assert stage(prepared, "prepare", ROTATED, RETIRE) == prepared


def test_hosts_that_differ_are_brought_together(store: secrets.Store) -> None:
    prepared = stage(store, "prepare", ROTATED, RETIRE)
    promoted = stage(prepared, "promote", ROTATED, RETIRE)
    for order in ([store, prepared, promoted], [promoted, prepared, store], [secrets.new_store(), promoted]):
        merged = secrets.merge(order)
        assert secrets.current(merged, "signing") == secrets.current(promoted, "signing")
        assert len(merged["secrets"]["signing"]["entries"]) == 2


def test_two_currents_become_one(store: secrets.Store) -> None:
    other = secrets.ensure(secrets.new_store(), SPEC, {})
    other["secrets"]["signing"]["entries"][0]["created"] += 5
    merged = secrets.merge([store, other])
    assert secrets.current(merged, "signing") == secrets.current(other, "signing")
    assert secrets.current(store, "signing") in secrets.values(merged, "signing")


def test_the_operators_value_wins_and_the_old_one_retires(store: secrets.Store) -> None:
    chosen = secrets.ensure(store, SPEC, {"redis_auth": "x" * 40})
    assert secrets.current(chosen, "redis_auth") == "x" * 40
    assert secrets.current(store, "redis_auth") in secrets.values(chosen, "redis_auth")
    assert secrets.ensure(chosen, SPEC, {"redis_auth": "x" * 40}) == chosen


def test_nothing_changes_what_it_is_given(store: secrets.Store) -> None:
    before = copy.deepcopy(store)
    for name in ("ensure", "prepare", "promote", "retire"):
        stage(store, name, ROTATED, RETIRE)
    assert store == before


def test_the_keyring_has_one_current_key_and_names_each_by_its_thumbprint(store: secrets.Store) -> None:
    keys = secrets.keyring(stage(store, "prepare", ROTATED, RETIRE), "signing")["keys"]
    assert sorted(key["state"] for key in keys) == ["current", "next"]
    assert all(key["kid"] == key["jwk"]["kid"] for key in keys)
    json.dumps(keys)


def test_a_host_gets_its_part(store: secrets.Store) -> None:
    assert set(secrets.subset(store, ["redis_auth", "unknown"])["secrets"]) == {"redis_auth"}


def test_the_certificate_chains_to_the_ca_and_is_kept_while_it_serves(store: secrets.Store) -> None:
    names = ["example.com", "*.example.com"]
    issued = secrets.certificate(store, "edge", "ca", names)
    assert secrets.certificate(issued, "edge", "ca", names) == issued
    leaf = x509.load_pem_x509_certificate(secrets.current(issued, "edge")["certificate"].encode())
    leaf.verify_directly_issued_by(
        x509.load_pem_x509_certificate(secrets.current(store, "ca")["certificate"].encode())
    )
    others = secrets.certificate(issued, "edge", "ca", ["example.org"])
    assert secrets.current(others, "edge") != secrets.current(issued, "edge")
    assert "edge" not in secrets.certificate(issued, "edge", "ca", [])["secrets"]


def test_every_filter_is_there() -> None:
    assert {name for name in FilterModule().filters() if name.startswith("secrets_")} >= {
        "secrets_merge", "secrets_ensure", "secrets_stage", "secrets_subset", "secrets_keyring",
    }  # fmt: skip
