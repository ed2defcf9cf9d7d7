# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Filters over the fleet's store of secrets; `module_utils/secrets.py` says what a store is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.gatehouse.mcp.plugins.module_utils import secrets


def plain(value: Any) -> Any:
    """A copy in plain containers: Ansible's own cannot be copied deeply or changed."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def stage(
    store: Mapping[str, Any], name: str, rotated: list[str], retire_seconds: Mapping[str, int]
) -> secrets.Store:
    """Take a store through one stage of a rotation, or through none (`ensure`).

    A signing key is dropped when its time has come: nothing that it signed is alive. A password has clients, which
    `retire` alone knows to use the new one; a day later it goes in any case, as one that leaked must not live on.
    """
    kept = plain(store)
    if name == "prepare":
        return secrets.prepare(kept, rotated)
    if name == "promote":
        return secrets.promote(kept, rotated, retire_seconds)
    if name == "retire":
        return secrets.retire(
            kept, at_once=[key for key, seconds in retire_seconds.items() if not int(seconds)]
        )
    return secrets.retire(kept, patience={"password": secrets.DAY})


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {
            "certificate_of": lambda pair: pair["certificate"],
            "secrets_certificate": lambda store, *args: secrets.certificate(plain(store), *plain(args)),
            "secrets_current": lambda store, name: secrets.current(plain(store), name),
            "secrets_ensure": lambda store, *args: secrets.ensure(plain(store), *plain(args)),
            "secrets_keyring": lambda store, name: secrets.keyring(plain(store), name),
            "secrets_merge": lambda stores: secrets.merge(plain(stores)),
            "secrets_stage": stage,
            "secrets_subset": lambda store, names: secrets.subset(plain(store), plain(names)),
            "secrets_values": lambda store, name: secrets.values(plain(store), name),
        }
