"""How much of something may be under way: of all users together, and of one, so that nobody takes all of it."""

from collections.abc import Iterator
from contextlib import contextmanager


class TooMuchError(Exception):
    """There is no room for more, of this user or of anybody."""


class Budget:
    """An amount, and who has how much of it."""

    def __init__(self, of_one: int, of_all: int) -> None:
        """See the class.

        Args:
            of_one: What one user may have.
            of_all: What all may have together.
        """
        self._of_one, self._of_all = of_one, of_all
        self._taken: dict[str, int] = {}
        self._all = 0

    def take(self, user: str, amount: int) -> None:
        """Let a user have so much more, until it is given back.

        Raises:
            TooMuchError: that would be too much; then nothing has changed.
        """
        taken = self._taken.get(user, 0) + amount
        if taken > self._of_one or self._all + amount > self._of_all:
            raise TooMuchError
        self._taken[user] = taken
        self._all += amount

    def give_back(self, user: str, amount: int) -> None:
        """The user needs so much no longer."""
        self._all -= amount
        left = self._taken.pop(user, 0) - amount
        if left:
            self._taken[user] = left

    @contextmanager
    def taken(self, user: str, amount: int) -> Iterator[None]:
        """Let a user have so much for a while.

        Raises:
            TooMuchError: that would be too much.
        """
        self.take(user, amount)
        try:
            yield
        finally:
            self.give_back(user, amount)
