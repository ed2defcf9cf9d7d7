"""Configuration from the environment, secrets from the credentials directory.

A fault is a sentence that names the variable and the fix, and never quotes a value.
"""

import os
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gatehouse_bridge.tree import MARK
from gatehouse_service.configuration import ConfigurationError, ServiceSettings, credential

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
    a child without any connection is kept, `bridge_warm` is how many children are kept started ahead of need.
    """

    bridge_command: tuple[str, ...] = Field(min_length=1)
    bridge_env: dict[str, str] = Field(default={})
    bridge_secrets: Annotated[tuple[str, ...], AfterValidator(_names)] = ()
    bridge_isolation: Literal["shared", "per_user", "per_session"] = "per_session"
    bridge_max_children: int = Field(default=32, ge=1, le=10_000)
    bridge_idle_seconds: float = Field(default=1800, gt=0)
    bridge_warm: int = Field(default=1, ge=0, le=100)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        program = self.bridge_command[0]
        if not program.startswith("/"):
            raise ValueError("bridge_command: the first element must be the full path of the program")
        if not os.access(program, os.X_OK) or os.path.isdir(program):
            raise ValueError("bridge_command: the first element must be a program that this user may run")
        if not all(VARIABLE.match(name) for name in self.bridge_env):
            raise ValueError("bridge_env: must have names of environment variables only")
        if MARK in self.bridge_env or MARK in self.bridge_secrets:
            raise ValueError(f"bridge_env: {MARK} is the bridge's own; choose another name")
        return self


def load_secrets(settings: Settings) -> dict[str, str]:
    """The secrets that the child gets, by the name of the variable.

    Raises:
        ConfigurationError: a credential is missing or empty.
    """
    secrets = {name: credential(name) for name in settings.bridge_secrets}
    problems = [
        f"GATEHOUSE_BRIDGE_SECRETS: the credential {name} must be a non-empty file (LoadCredential=)"
        for name, secret in secrets.items()
        if not secret
    ]
    if problems:
        raise ConfigurationError(problems)
    return secrets


def child_environment(settings: Settings, secrets: dict[str, str]) -> dict[str, str]:
    """The environment of a child, without its mark."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | settings.bridge_env | secrets
