"""Configuration from the environment, secrets from the credentials directory.

A fault is a sentence that names the variable and the fix, and never quotes a value.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self
from urllib.parse import unquote

from pydantic import AfterValidator, Field, model_validator

from gatehouse_bridge.tree import MARK
from gatehouse_service.configuration import ConfigurationError, ServiceSettings, credential

# The credential with the users' own secrets; no variable has a dot in its name.
PER_USER = "per_user.json"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# What a child gets of the bridge's own environment. Nothing else: no GATEHOUSE_ variable, no way to the
# credentials or to systemd.
INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "STATE_DIRECTORY",
    "CACHE_DIRECTORY",
    "RUNTIME_DIRECTORY",
    "PYTHONDONTWRITEBYTECODE",
)


def _names(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(VARIABLE.match(name) for name in value):
        raise ValueError("must hold names of environment variables only")
    return value


class Settings(ServiceSettings):
    """The environment of the bridge (docs/contracts.md). Durations are in seconds.

    `bridge_max_children` bounds the processes that run at once, `bridge_idle_seconds` is how long a session or
    a child without any connection is kept, `bridge_warm` is how many children are kept started ahead of need. A child with
    all that it starts has `bridge_child_memory` bytes, `bridge_child_processes` processes and threads, and `bridge_child_cpu`
    processors. `bridge_confine` says whether the bridge keeps children from one another; not where the command does that itself,
    and needs mount(2) for it. `bridge_temporary` is a folder, of the service alone, in which each child gets one for temporary files,
    which no other child can read; without it, it is among everybody's.
    """

    bridge_command: tuple[str, ...] = Field(min_length=1)
    bridge_env: dict[str, str] = Field(default={})
    bridge_secrets: Annotated[tuple[str, ...], AfterValidator(_names)] = ()
    bridge_secrets_per_user: Annotated[tuple[str, ...], AfterValidator(_names)] = ()
    bridge_isolation: Literal["shared", "per_user", "per_session"] = "per_session"
    bridge_max_children: int = Field(default=32, ge=1, le=10_000)
    bridge_idle_seconds: float = Field(default=1800, gt=0)
    bridge_warm: int = Field(default=1, ge=0, le=100)
    bridge_confine: bool = True
    bridge_temporary: str | None = None
    bridge_child_memory: int | None = Field(default=None, ge=16 * 1024 * 1024)
    bridge_child_processes: int | None = Field(default=None, ge=1)
    bridge_child_cpu: float | None = Field(default=None, ge=0.01)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        program = self.bridge_command[0]
        if not program.startswith("/"):
            raise ValueError("bridge_command: the first element must be the full path of the program")
        if not os.access(program, os.X_OK) or os.path.isdir(program):
            raise ValueError("bridge_command: the first element must be a program that this user may run")
        if self.bridge_temporary is not None and not os.path.isdir(self.bridge_temporary):
            raise ValueError("bridge_temporary: must be a folder that there is")
        if not all(VARIABLE.match(name) for name in self.bridge_env):
            raise ValueError("bridge_env: must have names of environment variables only")
        if self.bridge_secrets_per_user and self.bridge_isolation == "shared":
            raise ValueError(
                "bridge_secrets_per_user: needs the isolation per_user or per_session; a shared child serves everyone"
            )
        if MARK in (*self.bridge_env, *self.bridge_secrets, *self.bridge_secrets_per_user):
            raise ValueError(f"bridge_env: {MARK} is the bridge's own; choose another name")
        return self


class MissingSecretError(Exception):
    """A user has no secret of his own, and there is none for all; `names` are those that are missing."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


@dataclass(frozen=True)
class Secrets:
    """What children get: `shared` by all, and by user what is `personal`."""

    shared: Mapping[str, str] = field(default_factory=dict, repr=False)
    personal: tuple[str, ...] = ()
    by_user: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def of(self, user: str) -> dict[str, str]:
        """The variables of a user's child: his own before those for all.

        Args:
            user: As the gateway writes it into the header (percent-encoded where it must be).

        Raises:
            MissingSecretError: he has none of a name that is personal, and neither have all.
        """
        found = {**self.shared, **(self.by_user.get(unquote(user), {}) if user else {})}
        missing = [name for name in self.personal if name not in found]
        if missing:
            raise MissingSecretError(missing)
        return found

    @property
    def values(self) -> list[str]:
        """All of them, to be blotted out of the log."""
        own = [secret for secrets in self.by_user.values() for secret in secrets.values()]
        return [*self.shared.values(), *own]


def load_secrets(settings: Settings) -> Secrets:
    """The secrets that children get, by the name of the variable.

    Raises:
        ConfigurationError: a credential is missing or empty.
    """
    shared = {name: credential(name) for name in settings.bridge_secrets}
    problems = [
        f"GATEHOUSE_BRIDGE_SECRETS: the credential {name} must be a non-empty file (LoadCredential=)"
        for name, secret in shared.items()
        if not secret
    ]
    by_user: dict[str, dict[str, str]] = {}
    if settings.bridge_secrets_per_user:
        try:
            by_user = _by_user(json.loads(credential(PER_USER)), settings.bridge_secrets_per_user)
        except ValueError:
            problems.append(
                f"GATEHOUSE_BRIDGE_SECRETS_PER_USER: the credential {PER_USER} must be a JSON object of users, each with"
                " an object of these names and non-empty strings"
            )
    if problems:
        raise ConfigurationError(problems)
    return Secrets(shared, settings.bridge_secrets_per_user, by_user)


def _by_user(given: object, names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    users = given.items() if isinstance(given, dict) else [("", None)]
    for user, secrets in users:
        if not user or not isinstance(secrets, dict):
            raise ValueError
        if not all(name in names and isinstance(value, str) and value for name, value in secrets.items()):
            raise ValueError
    return dict(users)


def inherited() -> dict[str, str]:
    """What a child gets of the bridge's own environment."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}
