"""Configuration from the environment, secrets from the credentials directory.

A fault is a sentence that names the variable and the fix, and never quotes a value.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from gatehouse_bridge.tree import MARK

LISTEN = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]|localhost):(\d{1,5})\Z")
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


class ConfigurationError(Exception):
    """Configuration that the bridge cannot run with; `problems` has one sentence for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _listen(value: str) -> str:
    if not LISTEN.match(value):
        raise ValueError("must be an address and a port such as 127.0.0.1:20010")
    return value


def _public_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("must be the URL that clients use, such as https://time.example.com/mcp")
    return value


def _names(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(VARIABLE.match(name) for name in value):
        raise ValueError("must hold names of environment variables only")
    return value


class Settings(BaseSettings):
    """The environment of the bridge (docs/contracts.md). Durations are in seconds.

    `bridge_max_children` bounds the processes that run at once, `bridge_idle_seconds` is how long a session or
    a child without any connection is kept, `bridge_warm` is how many children are kept started ahead of need.
    """

    model_config = SettingsConfigDict(env_prefix="GATEHOUSE_", frozen=True, extra="ignore")

    service: str = Field(min_length=1)
    listen: Annotated[str, AfterValidator(_listen)]
    public_url: Annotated[str, AfterValidator(_public_url)]
    drain_seconds: int = Field(default=20, ge=1, le=600)
    bridge_command: tuple[str, ...] = Field(min_length=1)
    bridge_env: dict[str, str] = {}
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

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        ConfigurationError: with a sentence for each variable that is wrong.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # the environment gives them
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        variable = f"GATEHOUSE_{name[1].upper()}" if name else "a GATEHOUSE_ variable"
        raise ConfigurationError([f"{variable}: must be valid JSON of the documented form"]) from None
    except ValidationError as error:
        problems = []
        for fault in error.errors():
            sentence = fault["msg"].removeprefix("Value error, ")
            field = str(fault["loc"][0]) if fault["loc"] else ""
            if not field:  # from _consistent, which names the field itself
                field, _, sentence = sentence.partition(": ")
            problems.append(f"GATEHOUSE_{field.upper()}: {sentence}")
        raise ConfigurationError(problems) from None


def load_secrets(settings: Settings) -> dict[str, str]:
    """The secrets that the child gets, by the name of the variable.

    Raises:
        ConfigurationError: a credential is missing or empty.
    """
    folder = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))
    secrets, problems = {}, []
    for name in settings.bridge_secrets:
        try:
            secrets[name] = (folder / name).read_text("utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError):
            secrets[name] = ""
        if not secrets[name]:
            problems.append(
                f"GATEHOUSE_BRIDGE_SECRETS: the credential {name} must be a non-empty file (LoadCredential=)"
            )
    if problems:
        raise ConfigurationError(problems)
    return secrets


def child_environment(settings: Settings, secrets: dict[str, str]) -> dict[str, str]:
    """The environment of a child, without its mark."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | settings.bridge_env | secrets
