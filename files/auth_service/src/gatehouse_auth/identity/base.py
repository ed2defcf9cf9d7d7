"""The identity that providers vouch for, and what a provider is."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from gatehouse_auth.settings import AllowList, Providers

# The provider of those who are no people.
MACHINES = "client"
CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Identity:
    """A signed-in person.

    `user` is unique over all providers: a local user's name as it is, anyone else's as
    `<provider>:<name>`; groups likewise. So no stranger becomes somebody by choosing a name elsewhere.
    """

    provider: str
    user: str
    name: str = ""
    email: str = ""
    groups: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The identity of `as_dict`."""
        return cls(**{**data, "groups": tuple(data["groups"])})

    # Authlib asks a user for this (RFC 9068 section 2.2, `sub`).
    def get_user_id(self) -> str:
        """The token's subject."""
        return self.user


class SignInDenied(Exception):  # noqa: N818 - it is an answer
    """The provider, or the person, said no; `reason` is fit to be shown to the client."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ProviderUnavailable(Exception):  # noqa: N818 - it is an answer
    """The provider cannot be asked right now."""


class Provider(Protocol):
    """What every identity provider can do."""

    title: str

    def current(self, identity: Identity) -> Identity | None:
        """The identity as the provider knows it now without asking the network; None when it is gone."""


class PasswordProvider(Provider, Protocol):
    """A provider that is asked with a user name and a password."""

    async def authenticate(self, username: str, password: str) -> Identity | None:
        """The identity, or None. Takes as long for a name that does not exist."""


class RedirectProvider(Provider, Protocol):
    """A provider that the browser is sent to."""

    def authorization_url(self, state: str, verifier: str) -> str:
        """Where to send the browser. `verifier` is the PKCE secret (RFC 7636) that `finish` will need."""

    def follow(self, lists: Iterable[AllowList]) -> None:
        """From now on, find out the groups that these allow-lists name."""

    async def finish(self, code: str, verifier: str) -> Identity:
        """Trade the provider's code for an identity.

        Raises:
            SignInDenied: the provider does not vouch for this person.
            ProviderUnavailable: it could not be asked.
        """


class AccessRules:
    """Allow-lists, made so that one look-up answers.

    An entry without a colon names a local user or group where local users exist, and otherwise one of the
    only provider.
    """

    def __init__(self, providers: Providers, lists: dict[str, AllowList]) -> None:
        others = [name for name in ("github",) if getattr(providers, name) is not None]
        self._prefix = "" if providers.local is not None else f"{others[0]}:"
        self._rules = {
            service: (
                frozenset(self._qualified(user) for user in allow.users),
                allow.emails,
                frozenset(self._qualified(group) for group in allow.groups),
                allow.everyone,
                frozenset(f"{MACHINES}:{client}" for client in allow.clients),
            )
            for service, allow in lists.items()
        }

    def _qualified(self, entry: str) -> str:
        name = entry if ":" in entry else f"{self._prefix}{entry}"
        return name.lower() if ":" in name else name

    def allows(self, service: str, identity: Identity) -> bool:
        """Whether this person may use the service. A machine has to be named: it is not one of everyone."""
        users, emails, groups, everyone, machines = self._rules[service]
        if identity.provider == MACHINES:
            return identity.user in machines
        return (
            everyone
            or identity.user in users
            or (identity.email != "" and identity.email.lower() in emails)
            or not groups.isdisjoint(identity.groups)
        )
