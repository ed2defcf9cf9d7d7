"""Multi round-trip requests (MCP 2026-07-28, basic/patterns/mrtr) in front of a server of the older age.

Such a server asks its client in the middle of a call. The new age has no requests to a client: the call is answered with what is
asked (`input_required`), and made again with what the client says to it. In between, the server goes on waiting here.
"""

import secrets
import time
from collections import Counter
from typing import Any

from gatehouse_bridge import jsonrpc
from gatehouse_bridge.child import Call, Child
from gatehouse_bridge.jsonrpc import Message
from gatehouse_bridge.pool import Key
from gatehouse_bridge.stateless import NAMES, Exchange, Refusal
from gatehouse_bridge.stream import Stream
from gatehouse_bridge.tools import Permit

# What a client may be asked, by the capability that it declares.
CAPABILITIES = ("elicitation", "roots", "sampling")
# Calls that wait for their clients, all together; above it the oldest is cancelled of the user who has most.
PARKED_MAX = 1024


class Parked:
    """A call that waits for its client to come back; it stands in for the client.

    Args:
        key: Whose it is: of the same key only can it be taken up.
        child: Works on it.
        call: The call.
        name: What was called, which the client repeats.
    """

    permit: Permit | None = None

    def __init__(self, key: Key, child: Child, call: Call, name: object) -> None:
        """See the class."""
        self.key = key
        self.child = child
        self.call = call
        self.name = name
        self.since = time.monotonic()
        # What the child has asked and was not answered, by a name of ours: its id and the request.
        self.questions: dict[str, tuple[str, Message]] = {}
        call.client, call.stream = self, Stream(0)
        child.attach(self)

    def receive(self, method: str, text: str, stream: Stream | None) -> None:
        """Nobody listens; what is told now is told to none."""

    def lost(self) -> None:
        """The call's stream has the error, for the client when it comes back."""


class Rounds:
    """The calls of all children that wait for their clients."""

    def __init__(self) -> None:
        """See the class."""
        self._parked: dict[str, Parked] = {}

    def ask(self, child: Child, identifier: str, message: Message) -> bool:
        """Ask a child's client what the child asks; whether there is one to ask.

        Where several calls are under way the child does not say for which it asks. All are of one user and one client, and the
        answer goes to the child whichever of them brings it.
        """
        waiting = [call for call in child.calls.values() if call.method in NAMES]
        call = next((call for call in waiting if isinstance(call.client, Exchange)), None)
        if call is not None and isinstance(call.client, Exchange):
            exchange = call.client
            parked = Parked(exchange.key, child, call, exchange.name)
            self._add(parked, identifier, message)
            self._answer(parked, exchange, call.id)
            return True
        for other in waiting:
            if isinstance(other.client, Parked):
                self._add(other.client, identifier, message)
                return True
        return False

    def resume(self, key: Key, message: Message, permit: Permit | None) -> Exchange:
        """Take a call up again with what its client says.

        Raises:
            Refusal: there is none of this `requestState`, of this client, with this method and name.
        """
        state = message.param("requestState")
        parked = self._parked.get(state) if isinstance(state, str) else None
        name = message.param(NAMES.get(message.method or "", ""))
        if parked is None or (parked.key, parked.call.method, parked.name) != (key, message.method, name):
            text = "params.requestState is not known (any more); make the request without it"
            raise Refusal(jsonrpc.INVALID_PARAMS, text)
        del self._parked[state]
        call, child = parked.call, parked.child
        exchange = Exchange(child, message, permit, key)
        exchange.take_up(call)
        child.detach(parked)
        responses = message.param("inputResponses")
        for question, (identifier, _) in [*parked.questions.items()]:
            if isinstance(responses, dict) and isinstance(responses.get(question), dict):
                del parked.questions[question]
                child.reply(identifier, responses[question])
        if parked.questions and not call.stream.final:
            again = Parked(key, child, call, name)
            again.questions = parked.questions
            self._answer(again, exchange, call.id)
        return exchange

    def expire(self, seconds: float) -> None:
        """Cancel the calls whose clients have not come back for so long."""
        now = time.monotonic()
        for state, parked in [*self._parked.items()]:
            if now - parked.since >= seconds:
                del self._parked[state]
                parked.child.detach(parked)

    def _add(self, parked: Parked, identifier: str, message: Message) -> None:
        parked.questions[f"{message.method}-{identifier}"] = (identifier, message)

    def _answer(self, parked: Parked, exchange: Exchange, identifier: str) -> None:
        """Answer the client with what is asked of it."""
        if len(self._parked) >= PARKED_MAX:
            [(most, _)] = Counter(waiting.key[:1] for waiting in self._parked.values()).most_common(1)
            first = next(state for state, waiting in self._parked.items() if waiting.key[:1] == most)
            oldest = self._parked.pop(first)
            oldest.child.detach(oldest)
        state = secrets.token_urlsafe(24)
        self._parked[state] = parked
        questions: dict[str, Any] = {}
        for name, (_, asked) in parked.questions.items():
            values = asked.values
            questions[name] = {part: values[part] for part in ("method", "params") if part in values}
        result = {"resultType": "input_required", "inputRequests": questions, "requestState": state}
        exchange.stream.put(jsonrpc.result(identifier, result), final=True)


def asked_of(meta: dict[str, Any], key: str) -> dict[str, Any]:
    """The capabilities that a child may be offered for a client of this age."""
    declared = meta.get(key)
    return (
        {name: declared[name] for name in CAPABILITIES if name in declared}
        if isinstance(declared, dict)
        else {}
    )
