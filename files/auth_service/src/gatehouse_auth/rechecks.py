"""People are asked about again on a schedule, where their provider gives something to ask with.

Each node takes up whoever is due, under a lease, so that nobody is asked about twice and nobody is
forgotten when a node dies. What the provider says now becomes who the person is in all of their grants.
Grants for services that they may no longer use end at once, and all of them, and sessions at the account
page, once the provider no longer vouches for the person. An outage changes nothing.

What a provider gave lies in Redis, encrypted under a key of the fleet's. A provider may replace it whenever
it is used: the successor is kept before anything else happens. Where it may have been replaced unheard (the
answer was lost, a node died), a no to the old one says nothing about the person, who is then not asked
about until they sign in again.
"""

import asyncio
import hashlib
import hmac
import json
import random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from gatehouse_auth.audit import Log
from gatehouse_auth.identity.base import (
    Identity,
    ProviderUnavailable,
    RedirectProvider,
    SignInDenied,
    Vouched,
)
from gatehouse_auth.settings import Settings
from gatehouse_auth.store import LEASE_SECONDS, Due, Family, Store, StoreUnavailable, new_mark

# How many people one node asks about at a time, and its pause after each: twenty a second at most.
AT_ONCE = 4
PAUSE_SECONDS = 0.2
# How often it looks for somebody who is due.
IDLE_SECONDS = 1.0
# How long an answer is waited for, and how long what has to be written is held on to while Redis is away.
ASK_SECONDS = 60.0
INSIST_SECONDS = LEASE_SECONDS - ASK_SECONDS - 30
# After an outage: again after a minute, and after twice as long each time, up to the interval.
RETRY_SECONDS = 60
# What is under way when the service stops has this long.
STOP_SECONDS = 5.0
ALGORITHMS = {"alg": "dir", "enc": "A256GCM"}
T = TypeVar("T")


class Vault:
    """Encrypts what providers gave (JWE, RFC 7516), each for one person and one provider's client."""

    def __init__(self, secret: str) -> None:
        derived = hmac.new(secret.encode(), b"gatehouse upstream credential", hashlib.sha256).digest()
        self._key = OctKey.import_key(derived)

    def seal(self, user: str, realm: str, credential: str) -> str:
        """A credential as Redis may have it."""
        return jwe.encrypt_compact(dict(ALGORITHMS), json.dumps([user, realm, credential]), self._key)

    def open(self, user: str, realm: str, sealed: str) -> str | None:
        """The credential; None when it is of another key, another person, or another provider's client."""
        try:
            plain = jwe.decrypt_compact(sealed, self._key, algorithms=list(ALGORITHMS.values())).plaintext
        except (JoseError, ValueError):
            return None
        *whose, credential = json.loads(plain or b"")
        return str(credential) if whose == [user, realm] else None


class Access(Protocol):
    """What decides about access, and ends it."""

    settings: Settings

    def entitled(self, service: str, identity: Identity) -> Identity | None:
        """The identity as it is now, if it may use the service; else None."""

    async def revoke(self, identifier: str) -> None:
        """Revoke a grant on every node."""


class Rechecks:
    """One node's part of the schedule. With an interval (seconds) of 0 there is none, and nothing is kept."""

    def __init__(
        self, store: Store, providers: dict[str, RedirectProvider], log: Log, secret: str, interval: int
    ) -> None:
        self._store = store
        self._providers = providers
        self._log = log
        self._vault = Vault(secret)
        self._interval = interval
        self._stopping = asyncio.Event()

    async def begin(self, vouched: Vouched) -> None:
        """From now on ask about somebody who has just signed in.

        Raises:
            StoreUnavailable: that could not be kept.
        """
        user = vouched.identity.user
        if self._interval and vouched.credential:
            sealed = self._vault.seal(
                user, self._providers[vouched.identity.provider].realm, vouched.credential
            )
            await self._store.save_upstream(user, sealed, _about(self._interval))

    async def run(self, access: Access) -> None:
        """Ask about whoever is due, until `stop`."""
        if self._interval:
            await asyncio.gather(*(self._worker(access) for _ in range(AT_ONCE)))

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """Begin nothing more, and let end what is under way: a credential may just be being replaced."""
        self._stopping.set()
        await asyncio.wait([running], timeout=STOP_SECONDS)

    async def _worker(self, access: Access) -> None:
        while not self._stopping.is_set():
            due = None
            try:
                due = await self._store.take_upstream(new_mark())
                if due is not None:
                    await self._turn(access, due)
            except StoreUnavailable:
                due = None  # whoever was taken up is due again after the lease
            except Exception as error:
                # One person's trouble. The others are to be asked about all the same.
                self._report("unknown", type(error).__name__, user=due.user if due is not None else None)
            try:
                async with asyncio.timeout(IDLE_SECONDS if due is None else PAUSE_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def _turn(self, access: Access, due: Due) -> None:
        """Ask about one person, and do what follows."""
        families = await self._store.connections(due.user)
        known = families[0].grant.identity if families else None
        provider = self._providers.get(known.provider) if known is not None else None
        credential = (
            self._vault.open(due.user, provider.realm, due.credential) if provider is not None else None
        )
        if known is None or provider is None or credential is None:
            await self._store.forget_upstream(due)
            return
        doubtful = due.doubtful and provider.replaces

        async def keep(successor: str) -> None:
            nonlocal doubtful
            sealed = self._vault.seal(due.user, provider.realm, successor)
            await _insist(lambda: self._store.keep_upstream(due, sealed))
            doubtful = False

        try:
            async with asyncio.timeout(ASK_SECONDS + INSIST_SECONDS):
                identity = await provider.again(known, credential, keep)
        except SignInDenied as denied:
            await self._denied(access, due, denied.reason, doubtful=doubtful)
        except TimeoutError:
            await self._postpone(due, ProviderUnavailable("slow", spent=True), doubtful=doubtful)
        except ProviderUnavailable as error:
            await self._postpone(due, error, doubtful=doubtful)
        else:
            await self._apply(access, due.user, identity)
            await _insist(lambda: self._store.settle_upstream(due, _about(self._interval), 0, doubtful=False))
            self._report("allow", user=due.user)

    async def _denied(self, access: Access, due: Due, reason: str, *, doubtful: bool) -> None:
        """The provider has refused what it was asked with."""
        if doubtful:
            await self._store.forget_upstream(due)
            self._report("unknown", "credential_lost", user=due.user)
            return
        # Should this node die before all has ended, the next one hears the same no, and in no doubt.
        if not await _insist(lambda: self._store.settle_upstream(due, RETRY_SECONDS, 0, doubtful=False)):
            # Whom the provider has vouched for meanwhile, it has not refused.
            self._report("unknown", "superseded", user=due.user)
            return
        await self._store.drop_sessions(due.user)
        for family in await self._store.connections(due.user):
            await self._end(access, family, reason)
        await self._store.forget_upstream(due)
        self._report("deny", reason, user=due.user)

    async def _postpone(self, due: Due, error: ProviderUnavailable, *, doubtful: bool) -> None:
        """The provider could not be asked."""
        backoff = RETRY_SECONDS * 2 ** min(due.failures, 16)
        seconds = min(max(_about(backoff), error.wait), self._interval)
        await _insist(
            lambda: self._store.settle_upstream(
                due, seconds, due.failures + 1, doubtful=doubtful or error.spent
            )
        )
        self._report("unknown", str(error), user=due.user)

    async def _apply(self, access: Access, user: str, identity: Identity) -> None:
        """What a person may do follows from who they are now."""
        for family in await self._store.connections(user):
            service = family.grant.service
            # A service that is not there may come back, and its grants with it.
            if service in access.settings.resources and access.entitled(service, identity) is None:
                await self._end(access, family, "not_allowed")
            elif family.grant.identity != identity:
                await self._store.identify(family, identity)

    async def _end(self, access: Access, family: Family, reason: str) -> None:
        grant = family.grant
        await access.revoke(family.family)
        self._log.event(
            "withdrawn",
            user=grant.identity.user,
            client=grant.client_id,
            service=grant.service,
            family=family.family,
            reason=reason,
        )

    def _report(self, outcome: str, reason: str | None = None, *, user: str | None) -> None:
        level = "warning" if outcome == "unknown" else "info"
        self._log.event("recheck", level, outcome=outcome, user=user, reason=reason)


def _about(seconds: float) -> int:
    """So long or a little less: those who came together are not asked about together for ever."""
    return int(seconds * random.uniform(0.9, 1))  # noqa: S311 - no secret


async def _insist(write: Callable[[], Awaitable[T]]) -> T:
    """Write what would be lost otherwise; Redis may be away for a while.

    Raises:
        StoreUnavailable: it was away for too long.
    """
    deadline = asyncio.get_running_loop().time() + INSIST_SECONDS
    while True:
        try:
            return await write()
        except StoreUnavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(1)
