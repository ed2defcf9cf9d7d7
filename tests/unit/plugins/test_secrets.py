"""A rotation never leaves a moment in which what one uses another refuses."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.filter.secrets import FilterModule, stage
from ansible_collections.gatehouse.mcp.plugins.module_utils import secrets
from ansible_collections.gatehouse.mcp.plugins.modules import secret_store
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


def test_a_host_that_was_away_does_not_bring_back_what_is_gone(store: secrets.Store) -> None:
    rotated = stage(stage(store, "prepare", ROTATED, RETIRE), "promote", ROTATED, RETIRE)
    for entry in rotated["secrets"]["signing"]["entries"]:
        entry["retire_after"] = entry["retire_after"] and 1
    over = stage(rotated, "retire", ROTATED, RETIRE)
    for order in ([store, over], [over, store], [over, rotated], [rotated, store, over]):
        merged = secrets.merge(order)
        assert merged == over
        assert secrets.current(store, "signing") not in secrets.values(merged, "signing")
        assert secrets.current(store, "redis_auth") not in secrets.values(merged, "redis_auth")


def test_what_is_remembered_of_the_gone_is_bounded(store: secrets.Store) -> None:
    for _ in range(secrets.GONE_MAX + 5):
        for name in ("prepare", "promote", "retire"):
            store = stage(store, name, ["redis_auth"], {"redis_auth": 0})
    assert len(store["secrets"]["redis_auth"]["gone"]) == secrets.GONE_MAX
    assert len(store["secrets"]["redis_auth"]["entries"]) == 1


def test_any_order_of_hosts_and_steps_keeps_one_value_that_all_accept() -> None:
    """Hosts miss steps of a hundred random rotations; whoever comes back is understood."""
    dice = random.Random(1)  # noqa: S311 (a repeatable walk, no secret)
    spec = {"redis_auth": "password", "signing": "es256"}
    hosts = [secrets.ensure(secrets.new_store(), spec, {})] * 3
    for _ in range(100):
        step = dice.choice(["ensure", "prepare", "promote", "retire"])
        merged = secrets.merge(hosts)
        after = stage(secrets.ensure(merged, spec, {}), step, ROTATED, RETIRE)
        for name in spec:
            states = [entry["state"] for entry in after["secrets"][name]["entries"]]
            assert states.count("current") == 1 and states.count("next") <= 1
            # What is used from now on was accepted before, by every host that was there.
            assert secrets.current(after, name) in secrets.values(merged, name)
        assert secrets.merge([after, after]) == after
        hosts = [after if dice.random() < 0.8 else host for host in hosts]
        hosts[dice.randrange(3)] = after


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


def test_the_operators_value_is_not_rotated_away(store: secrets.Store) -> None:
    provided = {"redis_auth": "x" * 40}
    kept = secrets.ensure(store, SPEC, provided)
    for name in ("prepare", "promote", "retire"):
        kept = stage(secrets.ensure(kept, SPEC, provided), name, ROTATED, RETIRE)
        assert secrets.current(kept, "redis_auth") == "x" * 40
    assert secrets.current(store, "redis_auth") not in secrets.values(kept, "redis_auth")
    # It is Gatehouse's again when the operator no longer names it.
    free = stage(secrets.ensure(kept, SPEC, {}), "prepare", ROTATED, RETIRE)
    assert len(secrets.values(free, "redis_auth")) == 2


def test_a_password_that_was_replaced_goes_a_day_later_without_a_rotation(store: secrets.Store) -> None:
    chosen = secrets.ensure(store, SPEC, {"redis_auth": "x" * 40})
    assert len(secrets.values(stage(chosen, "ensure", ROTATED, RETIRE), "redis_auth")) == 2
    [old] = [entry for entry in chosen["secrets"]["redis_auth"]["entries"] if entry["state"] == "retiring"]
    old["retire_after"] -= secrets.DAY + 61
    assert secrets.values(stage(chosen, "ensure", ROTATED, RETIRE), "redis_auth") == ["x" * 40]


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


class Ended(Exception):
    """A module has said what it has to say."""


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run `secret_store` on a file of its own."""
    monkeypatch.setattr("os.fchown", lambda *arguments: None)

    def run(**params: Any) -> dict[str, Any]:
        ended: dict[str, Any] = {}

        class Module:
            def __init__(self, **spec: Any) -> None:
                assert spec["argument_spec"]["store"]["no_log"]
                self.params = {"path": str(tmp_path / "gatehouse" / "secrets" / "store.json"), **params}
                self.check_mode = params.get("check", False)

            def exit_json(self, **result: Any) -> None:
                ended.update(result)
                raise Ended

            def fail_json(self, **result: Any) -> None:
                ended.update(result, failed=True)
                raise Ended

        monkeypatch.setattr(secret_store, "AnsibleModule", Module)
        with pytest.raises(Ended):
            secret_store.main()
        return ended

    return run


def test_the_file(keep: Callable[..., dict[str, Any]], store: secrets.Store, tmp_path: Path) -> None:
    path = tmp_path / "gatehouse" / "secrets" / "store.json"
    assert keep(state="read") == {"changed": False, "store": secrets.new_store()}
    assert keep(state="write", store=store, check=True)["changed"] and not path.exists()
    written = keep(state="write", store=store)
    assert written["changed"] and path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    shown = json.dumps(written["diff"])
    assert "redis_auth" in shown and "current" in shown
    assert not any(str(value)[:20] in shown for name in SPEC for value in secrets.values(store, name))
    assert secrets.current(store, "redis_auth") not in shown
    assert keep(state="read")["store"] == store
    assert keep(state="write", store=store)["changed"] is False
    path.chmod(0o644)
    assert keep(state="write", store=store)["changed"] and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "secrets": {"x": 1}}'])
def test_a_damaged_file_is_never_taken_for_an_empty_one(
    keep: Callable[..., dict[str, Any]], tmp_path: Path, text: str, store: secrets.Store
) -> None:
    path = tmp_path / "gatehouse" / "secrets" / "store.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for state in ("read", "write"):
        result = keep(state=state, store=store)
        assert result["failed"] and "cannot be read" in result["msg"]
    assert path.read_text() == text
