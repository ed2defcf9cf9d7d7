"""What is one user's to take of what all have."""


class Shares:
    """Bytes that are held for users: a quarter of them at most for one.

    Args:
        most: How many for all together.
    """

    def __init__(self, most: int) -> None:
        """See the class."""
        self.held = 0
        self._most = most
        self._of: dict[str, int] = {}

    def take(self, user: str, size: int) -> bool:
        """Hold so many more for a user, until they are given back; not where that would be too many."""
        his = self._of.get(user, 0) + size
        if his > self._most // 4 or self.held + size > self._most:
            return False
        self._of[user] = his
        self.held += size
        return True

    def give(self, user: str, size: int) -> None:
        """These are not needed any more."""
        if not size:
            return
        self.held -= size
        self._of[user] -= size
        if not self._of[user]:
            del self._of[user]
