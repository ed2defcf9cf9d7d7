"""What makes one of the two forms of the service, besides what every service is told (docs/contracts.md)."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EchoSettings(BaseSettings):
    """`ECHO_STATEFUL` and the bounds of its sessions."""

    model_config = SettingsConfigDict(env_prefix="ECHO_", frozen=True, extra="ignore")

    stateful: bool = False
    # Of all users together, and of one.
    max_sessions: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_sessions_per_user: Annotated[int, Field(ge=1, le=10_000)] = 32
    idle_seconds: Annotated[int, Field(ge=1, le=86_400)] = 1800
