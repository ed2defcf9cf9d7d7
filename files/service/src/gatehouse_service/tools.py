"""Which tools of a service a person may use. Whoever reads the request's body decides: the bridge, or the service."""

import re
from functools import cached_property
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict


class ToolRules(BaseModel):
    """The rules of one service (docs/contracts.md). In a name `*` stands for any text.

    A person has a tool that one of their groups names in `groups`. Of the others they have those that `allow` names
    (without it, all) and `deny` does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = {}

    @cached_property
    def restrict(self) -> bool:
        """Whether anyone lacks any tool."""
        return self.allow is not None or bool(self.deny)

    def permits(self, groups: frozenset[str], tool: str) -> bool:
        """Whether a person in these groups has the tool."""
        if any(group in groups and names.fullmatch(tool) for group, names in self._by_group.items()):
            return True
        return self._allowed.fullmatch(tool) is not None and self._denied.fullmatch(tool) is None

    @cached_property
    def _allowed(self) -> re.Pattern[str]:
        return _pattern(("*",) if self.allow is None else self.allow)

    @cached_property
    def _denied(self) -> re.Pattern[str]:
        return _pattern(self.deny)

    @cached_property
    def _by_group(self) -> dict[str, re.Pattern[str]]:
        return {group: _pattern(names) for group, names in self.groups.items()}


def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Matches what one of the names stands for; nothing where there is none."""
    alternatives = (".*".join(map(re.escape, name.split("*"))) for name in names)
    return re.compile("|".join(alternatives) or r"(?!)", re.DOTALL)


def groups_of(header: str) -> frozenset[str]:
    """The groups in an `X-Gatehouse-Groups` header."""
    return frozenset(unquote(group) for group in header.split(",") if group)
