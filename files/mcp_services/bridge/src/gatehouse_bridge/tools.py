"""Per-tool rules, enforced where the body is read: what is denied is neither called nor listed.

The child reads the same text with a parser of its own, and parsers disagree about a name that stands twice, or in another
case. Where rules are in force, such a message is refused.
"""

from collections.abc import Iterable

from gatehouse_bridge import jsonrpc
from gatehouse_bridge.jsonrpc import Message, MessageError
from gatehouse_service.tools import ToolRules

# Names by which a child could understand a message otherwise than it is understood here.
TELLING = frozenset({"jsonrpc", "id", "method", "params", "name"})


class UnknownToolError(MessageError):
    """The tool is not there, for anyone or for this person."""

    def __init__(self) -> None:
        super().__init__(jsonrpc.INVALID_PARAMS, "Unknown tool")


class Permit:
    """What one person may do with the tools of a service."""

    def __init__(self, rules: ToolRules, groups: frozenset[str]) -> None:
        """See the class."""
        self._rules = rules
        self._groups = groups

    def check(self, message: Message) -> None:
        """Judge a message of the client.

        Raises:
            UnknownToolError: it calls a tool that the person does not have.
            MessageError: it can be understood in two ways.
        """
        _plain(message.members)
        params = message.members.get("params")
        name = None
        if params is not None and isinstance(params.value, dict):
            members, _ = jsonrpc.scan_object(message.text, params.start)
            _plain(members)
            name = params.value.get("name")
        if message.method == "tools/call" and not (
            isinstance(name, str) and self._rules.permits(self._groups, name)
        ):
            raise UnknownToolError

    def listed(self, text: str) -> str:
        """An answer to `tools/list` without the tools that the person does not have.

        Raises:
            MessageError: a list that cannot be read cannot be shortened.
        """
        tools = Message.scanned(text).locate("result", "tools")
        if tools is None:
            return text
        places = jsonrpc.scan_array(text, tools.start)
        kept = [
            text[place.start : place.end]
            for place in places
            if isinstance(place.value, dict)
            and isinstance(name := place.value.get("name"), str)
            and self._rules.permits(self._groups, name)
        ]
        return jsonrpc.splice(text, [(tools.start, tools.end, f"[{','.join(kept)}]")])


def _plain(names: Iterable[str]) -> None:
    if any(name not in TELLING and name.casefold() in TELLING for name in names):
        raise MessageError(jsonrpc.INVALID_REQUEST, "A name is written in another case")
