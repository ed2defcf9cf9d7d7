"""The identity that providers vouch for, and what a provider is."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from gatehouse_auth.settings import MACHINES, AllowList, Providers

# Half a surrogate pair, which JSON can hold, is no text.
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
# Why a person's access ends whom the provider no longer vouches for.
WITHDREW = "provider_withdrew"


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


@dataclass(frozen=True, slots=True)
class Vouched:
    """A provider's word for a person, with what it can be asked again; '' where it gives nothing for that."""

    identity: Identity
    credential: str = field(default="", repr=False)


class SignInDenied(Exception):  # noqa: N818 - it is an answer
    """The provider, or the person, said no; `reason` is fit to be shown to the client."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ProviderUnavailable(Exception):  # noqa: N818 - it is an answer
    """The provider cannot be asked right now.

    `wait` is how many seconds it wants to be left alone. `spent`: what it was asked with may be used up all
    the same, since how far it came is not known.
    """

    def __init__(self, reason: str, wait: int = 0, *, spent: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.spent = spent


class ProviderBusy(Exception):  # noqa: N818 - it is an answer: 429
    """So many wait for the provider already that one more would wait too long; `wait` is in seconds."""

    wait = 2


class Provider(Protocol):
    """What every identity provider can do."""

    title: str

    def current(self, identity: Identity) -> Identity | None:
        """The identity as the provider knows it now without asking the network; None when it is gone."""


class PasswordProvider(Provider, Protocol):
    """A provider that is asked with a user name and a password."""

    async def authenticate(self, username: str, password: str) -> Identity | None:
        """The identity, or None. Takes as long for a name that does not exist.

        Raises:
            ProviderBusy: nothing was checked.
        """


class RedirectProvider(Provider, Protocol):
    """A provider that the browser is sent to. `realm` is whose credentials these are and for which client:
    with another one they mean nothing. `replaces`: a credential may be good for one time only."""

    realm: str
    replaces: bool

    async def authorization_url(self, state: str, verifier: str) -> str:
        """Where to send the browser. `verifier` is the PKCE secret (RFC 7636) that `finish` will need.

        Raises:
            ProviderUnavailable: it could not be asked.
        """

    def follow(self, groups: Iterable[str]) -> None:
        """From now on, find out these groups, named as in an identity; others are none of our business."""

    async def sign_out_url(self) -> str:
        """Where a person can sign out of the provider itself; '' where there is no such page."""

    async def finish(self, answer: Mapping[str, str], verifier: str) -> Vouched:
        """Trade the provider's authorization response for its word.

        Raises:
            SignInDenied: the provider does not vouch for this person.
            ProviderUnavailable: it could not be asked.
        """

    async def again(
        self, known: Identity, credential: str, keep: Callable[[str], Awaitable[None]]
    ) -> Identity:
        """Ask about somebody who signed in earlier.

        Args:
            known: who they were when last asked.
            credential: of `finish`, or what was last kept.
            keep: takes the credential that replaces it, before anything else is done.

        Raises:
            SignInDenied: the provider no longer vouches for this person.
            ProviderUnavailable: it could not be asked.
        """


def code_of(answer: Mapping[str, str]) -> str:
    """The code of a provider's authorization response (RFC 6749 section 4.1.2).

    Raises:
        SignInDenied: the person, or the provider, said no.
        ProviderUnavailable: the provider says that it cannot answer now.
    """
    if answer.get("error") in ("server_error", "temporarily_unavailable"):
        raise ProviderUnavailable(answer["error"])
    if answer.get("error") == "invalid_scope":
        raise SignInDenied("it does not give Gatehouse the scopes that were asked for")
    if not answer.get("code") or "error" in answer:
        raise SignInDenied("the sign-in was cancelled")
    return answer["code"]


def wait_of(headers: Mapping[str, str]) -> int:
    """The seconds of a `Retry-After` (RFC 9110 section 10.2.3), 0 without one; a date counts as none."""
    value = headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 9 else 0


# The allow-list of the operators' page; no service can have this name.
OPERATORS = ""


class AccessRules:
    """Allow-lists, made so that one look-up answers."""

    def __init__(self, providers: Providers, lists: dict[str, AllowList]) -> None:
        self._rules = {
            service: (
                frozenset(providers.qualified(user) for user in allow.users),
                allow.emails,
                frozenset(providers.qualified(group) for group in allow.groups),
                allow.everyone,
                frozenset(f"{MACHINES}:{client}" for client in allow.clients),
            )
            for service, allow in lists.items()
        }

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
