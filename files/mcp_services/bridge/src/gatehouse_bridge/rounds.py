"""Multi round-trip requests (MCP 2026-07-28, basic/patterns/mrtr) in front of a server of the older age.

Such a server asks its client in the middle of a call. The new age has no requests to a client: the call is answered with what is
asked (`input_required`), and made again with what the client says to it. In between, the server goes on waiting here.
"""

import secrets
import time
from collections import Counter
from typing import Any, NamedTuple

from gatehouse_bridge import jsonrpc
from gatehouse_bridge.child import Call, Child, ChildError, progress_token
from gatehouse_bridge.jsonrpc import Message
from gatehouse_bridge.pool import Key
from gatehouse_bridge.process import MAX_MESSAGE
from gatehouse_bridge.stateless import NAMES, Exchange, Refusal
from gatehouse_bridge.stream import Stream
from gatehouse_bridge.tools import Permit

# What a client may be asked, by the capability that it declares.
CAPABILITIES = ("elicitation", "roots", "sampling")
# Calls that wait for their clients, all together; above it the oldest is cancelled of the user who has most.
PARKED_MAX = 1024
# What may be asked in the middle of one call: so many questions, which have to fit one answer; and in all calls together.
QUESTIONS_MAX = 64
QUESTIONS_BYTES = MAX_MESSAGE
PARKED_BYTES = 64 * 1024 * 1024


class Question(NamedTuple):
    """What a child asks: the id that it gave, our name for it, and what the client is told, as text."""

    id: str
    name: str
    text: str


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
        # What the child has asked and was not answered, by a name of ours.
        self.questions: dict[str, Question] = {}
        call.client, call.stream = self, Stream(0)
        child.attach(self)

    @property
    def size(self) -> int:
        """How much is asked."""
        return sum(len(question.text) for question in self.questions.values())

    def takes(self, question: Question) -> bool:
        """Whether another question can be asked with those that are there."""
        return len(self.questions) < QUESTIONS_MAX and self.size + len(question.text) <= QUESTIONS_BYTES

    def receive(self, method: str, text: str, stream: Stream | None) -> None:
        """Nobody listens; what is told now is told to none."""

    def lost(self) -> None:
        """The call's stream has the error, for the client when it comes back."""


class Rounds:
    """The calls of all children that wait for their clients."""

    def __init__(self) -> None:
        """See the class."""
        self._parked: dict[str, Parked] = {}

    def ask(self, child: Child, message: Message) -> bool:
        """Ask a child's client what the child asks; whether there is one to ask, who is not asked too much already.

        Where several calls are under way the child does not say for which it asks. All are of one user and one client, and the
        answer goes to the child whichever of them brings it.

        Raises:
            MessageError: the question is nested too deeply.
        """
        question = _question(message)
        if sum(parked.size for parked in self._parked.values()) + len(question.text) > PARKED_BYTES:
            return False
        waiting = [call for call in child.calls.values() if call.method in NAMES]
        call = next((call for call in waiting if isinstance(call.client, Exchange)), None)
        if call is not None and isinstance(call.client, Exchange):
            exchange = call.client
            parked = Parked(exchange.key, child, call, exchange.name)
            parked.questions[question.name] = question
            self._answer(parked, exchange, call.id)
            return True
        for other in waiting:
            if isinstance(other.client, Parked) and other.client.takes(question):
                other.client.questions[question.name] = question
                return True
        return False

    def resume(self, key: Key, message: Message, permit: Permit | None) -> Exchange:
        """Take a call up again with what its client says.

        Raises:
            Refusal: there is none of this `requestState`, of this client, with this method and name.
            ChildError: the child does not read what it was told before.
            MessageError: what the client says cannot be passed on; the call still waits.
        """
        state = message.param("requestState")
        parked = self._parked.get(state) if isinstance(state, str) else None
        name = message.param(NAMES.get(message.method or "", ""))
        if parked is None or (parked.key, parked.call.method, parked.name) != (key, message.method, name):
            text = "params.requestState is not known (any more); make the request without it"
            raise Refusal(jsonrpc.INVALID_PARAMS, text)
        call, child = parked.call, parked.child
        if child.process.usable and not child.process.ready:
            raise ChildError("child_unresponsive", "The MCP server does not read its input")
        responses, token = _responses(message), progress_token(message)
        del self._parked[state]
        exchange = Exchange(child, message, permit, key)
        exchange.take_up(call, token)
        child.detach(parked)
        for question in [*parked.questions.values()]:
            if question.name in responses:
                del parked.questions[question.name]
                child.reply(question.id, responses[question.name])
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

    def _answer(self, parked: Parked, exchange: Exchange, identifier: str) -> None:
        """Answer the client with what is asked of it."""
        if len(self._parked) >= PARKED_MAX:
            [(most, _)] = Counter(waiting.key[:1] for waiting in self._parked.values()).most_common(1)
            first = next(state for state, waiting in self._parked.items() if waiting.key[:1] == most)
            oldest = self._parked.pop(first)
            oldest.child.detach(oldest)
        state = secrets.token_urlsafe(24)
        self._parked[state] = parked
        asked = ",".join(
            f"{jsonrpc.dump(name)}:{question.text}" for name, question in parked.questions.items()
        )
        result = f'{{"resultType":"input_required","inputRequests":{{{asked}}},"requestState":"{state}"}}'
        exchange.stream.put(jsonrpc.response(identifier, result), final=True)


def _question(message: Message) -> Question:
    text, members = message.text, message.members
    parts = [(name, members[name]) for name in ("method", "params") if name in members]
    asked = ",".join(f'"{name}":{text[part.start : part.end]}' for name, part in parts)
    return Question(message.id or "null", f"{message.method}-{message.id}", f"{{{asked}}}")


def _responses(message: Message) -> dict[str, str]:
    """What the client says to each question, as text."""
    place = message.locate("params", "inputResponses")
    if place is None or not isinstance(place.value, dict):
        return {}
    members, _ = jsonrpc.scan_object(message.text, place.start)
    return {
        name: message.text[said.start : said.end]
        for name, said in members.items()
        if isinstance(said.value, dict)
    }


def asked_of(meta: dict[str, Any], key: str) -> dict[str, Any]:
    """The capabilities that a child may be offered for a client of this age."""
    declared = meta.get(key)
    return (
        {name: declared[name] for name in CAPABILITIES if name in declared}
        if isinstance(declared, dict)
        else {}
    )
