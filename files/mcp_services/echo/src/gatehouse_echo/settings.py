"""Configuration from the environment. A fault is a sentence that names the variable and the fix."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

LISTEN = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]|localhost):(\d{1,5})\Z")


class ConfigurationError(Exception):
    """Configuration that the service cannot run with; `problems` has one sentence for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _listen(value: str) -> str:
    if not LISTEN.match(value):
        raise ValueError("must be an address and a port such as 127.0.0.1:20000")
    return value


def _public_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("must be the URL that clients use, such as https://echo.example.com/mcp")
    return value


class Settings(BaseSettings):
    """The environment of the service (docs/contracts.md). Durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix="GATEHOUSE_", frozen=True, extra="ignore")

    service: str = Field(min_length=1)
    listen: Annotated[str, AfterValidator(_listen)]
    public_url: Annotated[str, AfterValidator(_public_url)]
    drain_seconds: int = Field(default=20, ge=1, le=600)

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def hosts(self) -> frozenset[str]:
        """Hosts that a request may name: the service's own, and loopback (any port)."""
        return frozenset(
            {(urlsplit(self.public_url).hostname or "").lower(), "127.0.0.1", "::1", "localhost"}
        )


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        ConfigurationError: with a sentence for each variable that is wrong.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # the environment gives them
    except ValidationError as error:
        raise ConfigurationError(
            [
                f"GATEHOUSE_{str(fault['loc'][0]).upper()}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors()
            ]
        ) from None
