"""Configuration from the environment, secrets from the credentials directory.

A fault is a sentence that names the variable and the fix, and never quotes a value: a value may be a secret in the wrong
place.
"""

import os
import random
import re
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from gatehouse_service.tools import ToolRules

# sysexits(3): the service manager need not try again.
EX_CONFIG = 78
PREFIX = "GATEHOUSE_"
ADDRESS = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]|localhost):(\d{1,5})\Z")


class ConfigurationError(Exception):
    """Configuration that a service cannot run with; `problems` has one sentence for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _listen(value: str) -> str:
    if not all(ADDRESS.match(part.strip()) for part in value.split(",")):
        raise ValueError(
            "must be an address and a port such as 127.0.0.1:20000, or several with commas between"
        )
    return value


def _public_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("must be the URL that clients use, such as https://echo.example.com/mcp")
    return value


Listen = Annotated[str, AfterValidator(_listen)]
DrainSeconds = Annotated[int, Field(ge=1, le=600)]


def addresses(listen: str) -> list[tuple[str, int]]:
    """The addresses and ports of a `Listen`."""
    found = [part.strip().rpartition(":") for part in listen.split(",")]
    return [(host.strip("[]"), int(port)) for host, _, port in found]


class ServiceSettings(BaseSettings):
    """The part of an MCP service's environment that all of them have (docs/contracts.md). Durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    service: str = Field(min_length=1)
    listen: Listen
    public_url: Annotated[str, AfterValidator(_public_url)]
    drain_seconds: DrainSeconds = 20
    stream_seconds: Annotated[float, Field(gt=0, le=86_400)] = 900
    tools: ToolRules = ToolRules()

    def stream_life(self) -> float:
        """How many seconds an event stream that opens now may last; then its client comes back, and is checked again.

        `stream_seconds` at most, and not the same for all: clients that came at once, as after a restart, do not come back at once.
        """
        return random.uniform(0.8, 1) * self.stream_seconds  # noqa: S311 - no secret

    @property
    def hosts(self) -> frozenset[str]:
        """Hosts that a request may name: the service's own, and loopback (any port)."""
        return frozenset(
            {(urlsplit(self.public_url).hostname or "").lower(), "127.0.0.1", "::1", "localhost"}
        )


S = TypeVar("S", bound=BaseSettings)


def load(settings: type[S]) -> S:
    """Settings from the environment.

    Args:
        settings: Their class. A validator of the whole model begins its message with the field's name and a colon.

    Raises:
        ConfigurationError: with a sentence for each variable that is wrong.
    """
    prefix = settings.model_config.get("env_prefix", "")
    try:
        return settings()
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        variable = f"{prefix}{name[1].upper()}" if name else f"a {prefix} variable"
        raise ConfigurationError([f"{variable}: must be valid JSON of the documented form"]) from None
    except ValidationError as error:
        raise ConfigurationError([_sentence(prefix, fault) for fault in error.errors()]) from None


def _sentence(prefix: str, fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    message = fault["msg"].removeprefix("Value error, ")
    if not location:
        name, _, message = message.partition(": ")
        location = [name]
    return f"{prefix}{location[0].upper()}{''.join(f'[{part}]' for part in location[1:])}: {message}"


def credential(name: str) -> str:
    """A secret that the unit received by `LoadCredential=`, without the newline at its end; `''` where there is none."""
    folder = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))
    try:
        return (folder / name).read_text("utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return ""


def stop(sentence: str, status: int = EX_CONFIG) -> NoReturn:
    """End with a sentence on standard error."""
    sys.stderr.write(f"{sentence}\n")
    sys.exit(status)
