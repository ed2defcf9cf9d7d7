"""Local users: names and argon2 hashes from inventory, for labs and closed networks."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError

from gatehouse_auth.identity.base import CONTROL, Identity, ProviderBusy
from gatehouse_auth.settings import LocalProvider, LocalUser

# More characters than any password has, and too few to make hashing them a burden.
PASSWORD_LIMIT = 1024
# Each check takes the memory that the hash asks for: so many at a time bound it, and so many more may wait.
THREADS = 2
WAITING = 20


class LocalUsers:
    """Checks passwords against `users.json`."""

    def __init__(self, settings: LocalProvider, users: dict[str, LocalUser]) -> None:
        self.title = settings.title
        self._users = users
        self._verifier = PasswordHasher()
        # Hashing an unknown name's password against this takes as long as for a known name.
        self._decoy = self._hasher().hash("")
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="argon2")
        self._begun = 0

    def _hasher(self) -> PasswordHasher:
        for user in self._users.values():
            try:
                parameters = extract_parameters(user.password_hash)
            except InvalidHashError:
                continue
            return PasswordHasher.from_parameters(parameters)
        return PasswordHasher(type=Type.ID)

    async def authenticate(self, username: str, password: str) -> Identity | None:
        """The identity, or None: for a wrong password and for an unknown name alike, and as slowly.

        Raises:
            ProviderBusy: too many wait already. Strangers can try names without end; nobody shall have to
                wait behind them for long.
        """
        user = self._users.get(username)
        stored = user.password_hash if user is not None else self._decoy
        if len(password) > PASSWORD_LIMIT:
            return None
        if self._begun >= THREADS + WAITING:
            raise ProviderBusy
        self._begun += 1
        try:
            matches = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._matches, stored, password
            )
        finally:
            self._begun -= 1
        return self._identity(username) if matches and user is not None else None

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._verifier.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False

    def current(self, identity: Identity) -> Identity | None:
        """The user as `users.json` has them now; None once removed."""
        return self._identity(identity.user)

    def _identity(self, username: str) -> Identity | None:
        user = self._users.get(username)
        if user is None:
            return None
        return Identity(
            "local",
            username,
            CONTROL.sub(" ", user.name),
            CONTROL.sub("", user.email),
            tuple(sorted(CONTROL.sub(" ", group) for group in user.groups)),
        )
