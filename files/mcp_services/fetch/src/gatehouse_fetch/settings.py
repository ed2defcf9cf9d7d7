"""What the operator decides, besides what every service is told (docs/contracts.md)."""

from typing import Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gatehouse_fetch.policy import Policy


class EgressSettings(BaseSettings):
    """What may be reached: `FETCH_ALLOW` and `FETCH_PORTS`, as `Policy` takes them."""

    model_config = SettingsConfigDict(env_prefix="FETCH_", frozen=True, extra="ignore")

    allow: str = "public"
    ports: str = "80,443"

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for name, allow, ports in (("allow", self.allow, "80"), ("ports", "public", self.ports)):
            try:
                Policy(allow, ports)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return self

    @property
    def policy(self) -> Policy:
        """The same, to ask."""
        return Policy(self.allow, self.ports)
