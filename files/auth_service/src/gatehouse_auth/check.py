"""What Traefik asks: the ForwardAuth check, resource metadata, and health. Every MCP request in the company
waits for the check: what needs no waiting is answered without a framework (`direct`), all else by plain ASGI.

These paths answer on loopback addresses only, by the `Host` that the caller used, so that a routing mistake
does not open them.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from gatehouse_auth.audit import Log
from gatehouse_auth.connections import DataLost
from gatehouse_auth.identity.base import AccessRules, Identity, Provider
from gatehouse_auth.keyring import Keyring
from gatehouse_auth.oauth.metadata import resource_metadata, resource_metadata_url
from gatehouse_auth.oauth.tokens import AccessToken, InvalidAccessToken, IssuedLater, TokenVerifier
from gatehouse_auth.settings import Settings
from gatehouse_auth.store import Store, StoreUnavailable
from gatehouse_auth.uses import Uses
from gatehouse_auth.verifier import Finding, Findings
from gatehouse_service.configuration import addresses

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

CHECK = "/internal/check/"
RESOURCE = "/internal/resource/"
LOOPBACK = re.compile(rb"(?:127(?:\.\d{1,3}){3}|\[::1\]|localhost):(\d{1,5})\Z")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}\Z")
# What would end a header, or is no text at all.
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# What a header value may have as it is; all else is percent-encoded as UTF-8. A comma parts groups.
SAFE = " !\"#$&'()*+-./:;<=>?@[]^_`{|}~"
# A space at either end would be lost on the way, and two people would be one.
AS_IT_IS = re.compile(rf"(?! )[A-Za-z0-9{re.escape(SAFE)}]*(?<! )\Z")
OUTER_SPACES = re.compile(r"\A +| +\Z")
TOKEN_LIMIT = 8192
ANSWERS = 10_000


def header_value(text: str) -> str:
    """A text as a header can carry it: printable ASCII; else (and `%`, `,`, outer spaces) percent-encoded."""
    if AS_IT_IS.match(text):
        return text
    encoded = quote(text, safe=SAFE, errors="replace")
    return OUTER_SPACES.sub(lambda spaces: "%20" * len(spaces[0]), encoded)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response. `audit` is its audit record less time and request, where there is one."""

    status: int
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    audit: str = ""
    head: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Write the head once, up to where more headers may follow.

        Raises:
            ValueError: a header's value would not stay in its line.
        """
        length = (b"content-length", str(len(self.body)).encode())
        self.headers.extend([length, (b"cache-control", b"no-store")])
        if CONTROL.search(b"".join([value for _, value in self.headers])):
            raise ValueError("a control character in a header")
        status = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n".encode()
        lines = [b"%b: %b\r\n" % header for header in self.headers]
        object.__setattr__(self, "head", status + b"".join(lines))

    async def send(self, send: Send) -> None:
        """Give it by ASGI."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def json_answer(status: int, content: Any, headers: Headers | None = None, audit: str = "") -> Answer:
    """A response in JSON."""
    fields = [(b"content-type", b"application/json"), *(headers or [])]
    return Answer(status, fields, json.dumps(content).encode(), audit)


async def answer_json(send: Send, status: int, content: Any, headers: Headers | None = None) -> None:
    """A whole JSON response."""
    await json_answer(status, content, headers).send(send)


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """What the check knows of one service."""

    name: str
    resource: str
    scopes: frozenset[str]
    origins: frozenset[bytes]
    verifier: TokenVerifier
    document: dict[str, Any]
    challenge: Headers
    challenge_invalid: Headers
    challenge_scope: Headers
    instances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A token that has to be asked about."""

    service: Service
    token: bytes
    request_id: bytes


class Internal:
    """The ASGI application of everything under `/internal/`."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        store: Store,
        findings: Findings[Answer],
        rules: AccessRules,
        providers: dict[str, Provider],
        uses: Uses,
        log: Log,
    ) -> None:
        self._uses = uses
        self._ports = {str(port).encode() for _, port in addresses(settings.listen)}
        self._hosts: set[bytes] = set()
        self._store = store
        self._keyring = keyring
        self._findings = findings
        self._providers = providers
        self._log = log
        self._serial = itertools.count(1)
        self.reconfigure(settings, rules)

    def reconfigure(self, settings: Settings, rules: AccessRules) -> None:
        """Answer for these resources, by these rules."""
        self._rules = rules
        # A person who comes back with a new token has the answer that the last one had.
        self._allowed = lru_cache(ANSWERS)(_allowed)
        self._services = {name: _service(settings, self._keyring, name) for name in settings.resources}
        self._targets = {f"{CHECK}{name}".encode(): service for name, service in self._services.items()}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Answer one request."""
        pairs = scope["headers"]
        headers = dict(pairs)
        path: str = scope["path"]
        if not self._is_own(headers.get(b"host", b"")):
            answer = json_answer(404, {"error": "not_found"})
        elif not path.startswith(CHECK):
            answer = await self._other(path)
        elif (service := self._services.get(path[len(CHECK) :])) is None:
            # Traefik knows a service that we do not know yet: a fault on our side.
            request_id = headers.get(b"x-request-id", b"")
            answer = self._unavailable(path[len(CHECK) :], request_id, "unknown_service")
        else:
            decision = self._decide(service, pairs, headers)
            answer = await self.find(decision) if isinstance(decision, Question) else decision
        await answer.send(send)

    def at_once(self, target: bytes, pairs: Headers, headers: dict[bytes, bytes]) -> Answer | Question | None:
        """The answer to a check, a question for `find`, or None when it is neither: then `__call__` answers.

        Args:
            target: the request's target as it came.
            pairs: its headers, names in lower case.
            headers: the same; of a name that came more than once, the last.
        """
        service = self._targets.get(target)
        if service is None or not self._is_own(headers.get(b"host", b"")):
            return None
        return self._decide(service, pairs, headers)

    def _decide(self, service: Service, pairs: Headers, headers: dict[bytes, bytes]) -> Answer | Question:
        request_id = headers.get(b"x-request-id", b"")
        origin = headers.get(b"origin")
        if origin and origin not in service.origins:
            return self._refuse(service, request_id, 403, [], "foreign_origin", "access_denied")
        if len(headers) != len(pairs) and [name for name, _ in pairs].count(b"authorization") > 1:
            return self._refuse(service, request_id, 400, [], "two_credentials", "invalid_request")
        authorization = headers.get(b"authorization", b"")
        if authorization[:7].lower() != b"bearer ":
            return self._refuse(service, request_id, 401, service.challenge, "no_token", "unauthorized")
        token = authorization[7:].strip()
        found = self._findings.known(service.name, token)
        if found is None:
            return Question(service, token, request_id)
        return self._decided(found, request_id)

    async def find(self, question: Question) -> Answer:
        """The answer to a check that needs waiting."""
        service, request_id = question.service, question.request_id
        try:
            found = await self._findings.find(
                service.name, question.token, lambda: self._judge(service, question.token)
            )
        except IssuedLater as error:
            return self._unavailable(service.name, request_id, error.reason)
        except InvalidAccessToken as error:
            return self._refuse(
                service, request_id, 401, service.challenge_invalid, error.reason, "invalid_token"
            )
        except StoreUnavailable:
            return self._unavailable(service.name, request_id, "redis_away")
        if found is None:
            return self._refuse(
                service, request_id, 401, service.challenge_invalid, "revoked", "invalid_token"
            )
        return self._decided(found, request_id)

    def _decided(self, found: Finding[Answer], request_id: bytes) -> Answer:
        answer = found.answer
        if answer.status == HTTPStatus.OK:
            self._uses.note(found.token)
        self._log.line(f'{answer.audit}"request":"{self._request(request_id)}"}}')
        return answer

    def _is_own(self, host: bytes) -> bool:
        if host in self._hosts:
            return True
        match = LOOPBACK.match(host)
        if match is None or match[1] not in self._ports:
            return False
        if len(self._hosts) < 256:
            self._hosts.add(host)
        return True

    def _request(self, request_id: bytes) -> str:
        return request_id.decode() if REQUEST_ID.match(request_id) else f"-{next(self._serial)}"

    def _judge(self, service: Service, token: bytes) -> tuple[AccessToken, Answer]:
        """Verify a token and prepare the answer to it."""
        if len(token) > TOKEN_LIMIT:
            raise InvalidAccessToken("too_long")
        accepted = service.verifier.verify(token.decode("latin-1"))
        identity = accepted.identity
        if not accepted.is_probe:
            provider = self._providers.get(identity.provider)
            current = provider.current(identity) if provider is not None else None
            if current is None:
                raise InvalidAccessToken("user_gone")
            identity = current
            if not self._rules.allows(service.name, identity):
                return accepted, self._denied(service, accepted, identity, [], "not_allowed", "access_denied")
        if not service.scopes <= set(accepted.scope.split()):
            return accepted, self._denied(
                service, accepted, identity, service.challenge_scope, "scope", "insufficient_scope"
            )
        return accepted, self._allowed(service, identity, accepted.client_id, accepted.scope)

    def _denied(
        self,
        service: Service,
        token: AccessToken,
        identity: Identity,
        challenge: Headers,
        reason: str,
        error: str,
    ) -> Answer:
        audit = _audit("deny", service, identity, token.client_id, reason)
        return json_answer(403, {"error": error}, challenge, audit)

    def _refuse(
        self, service: Service, request_id: bytes, status: int, headers: Headers, reason: str, error: str
    ) -> Answer:
        self._log.event(
            "access", outcome="deny", service=service.name, resource=service.resource, reason=reason,
            request=self._request(request_id),
        )  # fmt: skip
        return json_answer(status, {"error": error}, headers)

    def _unavailable(self, service: str, request_id: bytes, reason: str) -> Answer:
        self._log.event(
            "access",
            "error",
            outcome="unknown",
            service=service,
            reason=reason,
            request=self._request(request_id),
        )
        return json_answer(503, {"error": "temporarily_unavailable"}, [(b"retry-after", b"2")])

    async def _other(self, path: str) -> Answer:
        if path == "/internal/health":
            checks = await self.health()
            healthy = all(value == "ok" for value in checks.values())
            return json_answer(
                200 if healthy else 503, {"status": "ok" if healthy else "failing", "checks": checks}
            )
        service = self._services.get(path.removeprefix(RESOURCE)) if path.startswith(RESOURCE) else None
        if service is None:
            return json_answer(404, {"error": "not_found"})
        return json_answer(200, service.document, [(b"access-control-allow-origin", b"*")])

    async def health(self) -> dict[str, str]:
        """Each check by name: `ok`, or what is wrong."""
        checks = {"keyring": "ok" if self._keyring.public()["keys"] else "no usable key"}
        try:
            await self._store.ping()
            checks["redis"] = "ok"
        except StoreUnavailable as error:
            lost = isinstance(error.__cause__, DataLost)
            checks["redis"] = "has lost its data" if lost else "does not answer"
        return checks


def _service(settings: Settings, keyring: Keyring, name: str) -> Service:
    known = settings.resources[name]
    metadata = f'resource_metadata="{resource_metadata_url(known.resource)}"'
    scope = f', scope="{" ".join(known.scopes)}"' if known.scopes else ""
    own_origin = "/".join(known.resource.split("/")[:3])

    def challenge(error: str) -> Headers:
        return [(b"www-authenticate", f"Bearer {error}{metadata}{scope}".encode())]

    return Service(
        name,
        known.resource,
        frozenset(known.scopes),
        frozenset(origin.encode() for origin in {*known.origins, own_origin}),
        TokenVerifier(settings.issuer, keyring, known.resource),
        resource_metadata(settings, known, name),
        challenge(""),
        challenge('error="invalid_token", '),
        challenge('error="insufficient_scope", '),
        known.instances,
    )


def _instance(instances: tuple[str, ...], user: str) -> str:
    """The one of a service's instances that a person's requests go to. Every edge reckons the same one, and
    where an instance comes or goes only its own people move (highest random weight)."""
    return max(instances, key=lambda name: hashlib.sha256(f"{name} {user}".encode()).digest())


def _allowed(service: Service, identity: Identity, client_id: str, scope: str) -> Answer:
    headers = {
        "x-gatehouse-user": header_value(identity.user),
        "x-gatehouse-name": header_value(identity.name),
        "x-gatehouse-email": header_value(identity.email),
        "x-gatehouse-groups": ",".join(header_value(group) for group in identity.groups),
        "x-gatehouse-client": header_value(client_id),
        "x-gatehouse-scope": header_value(scope),
    }
    if service.instances:
        headers["x-gatehouse-instance"] = _instance(service.instances, identity.user)
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Answer(200, lines, audit=_audit("allow", service, identity, client_id, None))


def _audit(outcome: str, service: Service, identity: Identity, client_id: str, reason: str | None) -> str:
    record = {
        "level": "info",
        "event": "access",
        "outcome": outcome,
        "user": identity.user,
        "client": client_id,
        "service": service.name,
        "resource": service.resource,
        **({"reason": reason} if reason else {}),
    }
    return f"{json.dumps(record)[1:-1]}, "
