"""The signing keys: a keyring with states, so that a rotation logs no one out."""

import json
import time
from dataclasses import dataclass
from typing import Any, Self

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

STATES = ("next", "current", "retiring")


class KeyringError(Exception):
    """The keyring is not of the documented form; the message never quotes a key."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key. `retire_after` is in epoch seconds; None means not yet known."""

    kid: str
    state: str
    retire_after: float | None
    key: ECKey

    def usable(self, now: float) -> bool:
        """Whether the key still verifies: a retiring one does until `retire_after`."""
        return self.state != "retiring" or self.retire_after is None or now < self.retire_after


class Keyring:
    """Exactly one key signs (`current`); all verify, until a retiring one's time has come."""

    def __init__(self, keys: list[SigningKey]) -> None:
        self._keys = {key.kid: key for key in keys}
        self._current = next((KeySet([key.key]) for key in keys if key.state == "current"), None)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The keyring in `keyring.json`.

        Raises:
            KeyringError: not JSON, a key that is not a private P-256 key, a `kid` twice, or not exactly
                one current key.
        """
        try:
            entries = json.loads(text)["keys"]
            keys = [cls._key(entry) for entry in entries]
        except (ValueError, TypeError, KeyError, JoseError):
            raise KeyringError(
                "must be {'keys': [{kid, state, retire_after, jwk}]} with P-256 keys"
            ) from None
        if len({key.kid for key in keys}) != len(keys):
            raise KeyringError("has the same kid twice")
        if sum(key.state == "current" for key in keys) != 1:
            raise KeyringError("must have exactly one key in state current")
        return cls(keys)

    @staticmethod
    def _key(entry: dict[str, Any]) -> SigningKey:
        key = ECKey.import_key({**entry["jwk"], "kid": str(entry["kid"])})
        if entry["state"] not in STATES or key.curve_name != "P-256" or not key.is_private:
            raise ValueError("state, curve, or private part")
        retire_after = entry.get("retire_after")
        return SigningKey(
            str(entry["kid"]), entry["state"], None if retire_after is None else float(retire_after), key
        )

    @property
    def current(self) -> KeySet:
        """The key that signs, as a set of one, so that the `kid` is written into the header."""
        if self._current is None:
            raise KeyringError("has no current key")
        return self._current

    def verifying(self, kid: str) -> ECKey | None:
        """The key that verifies what was signed under `kid`, or None."""
        entry = self._keys.get(kid)
        return entry.key if entry is not None and entry.usable(time.time()) else None

    def public(self) -> dict[str, Any]:
        """The JSON Web Key Set (RFC 7517 section 5): every key that still verifies, public parts only."""
        now = time.time()
        return {
            "keys": [
                {**entry.key.as_dict(private=False), "use": "sig", "alg": "ES256"}
                for entry in self._keys.values()
                if entry.usable(now)
            ]
        }
