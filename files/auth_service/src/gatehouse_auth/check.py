"""What Traefik asks: the ForwardAuth check, resource metadata, and health. Plain ASGI: every MCP request in
the company waits for the check.

These paths answer on loopback addresses only, by the `Host` that the caller used, so that a routing mistake
does not open them.
"""

import itertools
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gatehouse_auth.audit import Log
from gatehouse_auth.identity.base import AccessRules, Identity, Provider
from gatehouse_auth.keyring import Keyring
from gatehouse_auth.oauth.metadata import resource_metadata, resource_metadata_url
from gatehouse_auth.oauth.tokens import AccessToken, InvalidAccessToken, TokenVerifier
from gatehouse_auth.settings import Settings
from gatehouse_auth.store import Store, StoreUnavailable
from gatehouse_auth.verifier import Findings
from gatehouse_service.configuration import addresses

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

CHECK = "/internal/check/"
RESOURCE = "/internal/resource/"
LOOPBACK = re.compile(rb"(?:127(?:\.\d{1,3}){3}|\[::1\]|localhost):(\d{1,5})\Z")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}\Z")
BODY: dict[str, Any] = {"type": "http.response.body", "body": b""}
# What a header value may have as it is; all else is percent-encoded as UTF-8. A comma parts groups.
SAFE = " !\"#$&'()*+-./:;<=>?@[]^_`{|}~"
TOKEN_LIMIT = 8192


def header_value(text: str) -> str:
    """A text as a header can carry it: printable ASCII, everything else (and `%`, `,`) percent-encoded."""
    return quote(text, safe=SAFE).strip()


def start(status: int, headers: Headers, length: int = 0) -> dict[str, Any]:
    """The first half of a response."""
    fixed = [(b"content-length", str(length).encode()), (b"cache-control", b"no-store")]
    return {"type": "http.response.start", "status": status, "headers": [*headers, *fixed]}


async def answer_json(send: Send, status: int, content: Any, headers: Headers | None = None) -> None:
    """A whole JSON response."""
    body = json.dumps(content).encode()
    await send(start(status, [(b"content-type", b"application/json"), *(headers or [])], len(body)))
    await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the check says to one good token: the response, and its audit record less time and request."""

    message: dict[str, Any]
    body: dict[str, Any]
    audit: str


@dataclass(frozen=True, slots=True)
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
        log: Log,
    ) -> None:
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
        self._services = {name: _service(settings, self._keyring, name) for name in settings.resources}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Answer one request."""
        pairs = scope["headers"]
        headers = dict(pairs)
        host = headers.get(b"host", b"")
        if host not in self._hosts and not self._is_own(host):
            await answer_json(send, 404, {"error": "not_found"})
            return
        path: str = scope["path"]
        if not path.startswith(CHECK):
            await self._other(path, send)
            return
        service = self._services.get(path[len(CHECK) :])
        request_id = headers.get(b"x-request-id", b"")
        if service is None:
            # Traefik knows a service that we do not know yet: a fault on our side.
            await self._unavailable(send, path[len(CHECK) :], request_id, "unknown_service")
            return
        origin = headers.get(b"origin")
        if origin and origin not in service.origins:
            await self._refuse(send, service, request_id, 403, [], "foreign_origin", "access_denied")
            return
        if len(headers) != len(pairs) and [name for name, _ in pairs].count(b"authorization") > 1:
            await self._refuse(send, service, request_id, 400, [], "two_credentials", "invalid_request")
            return
        authorization = headers.get(b"authorization", b"")
        if authorization[:7].lower() != b"bearer ":
            await self._refuse(send, service, request_id, 401, service.challenge, "no_token", "unauthorized")
            return
        token = authorization[7:].strip()
        found = self._findings.known(service.name, token)
        if found is None:
            try:
                found = await self._findings.find(service.name, token, lambda: self._judge(service, token))
            except InvalidAccessToken as error:
                await self._refuse(
                    send, service, request_id, 401, service.challenge_invalid, error.reason, "invalid_token"
                )
                return
            except StoreUnavailable:
                await self._unavailable(send, service.name, request_id, "redis_away")
                return
            if found is None:
                await self._refuse(
                    send, service, request_id, 401, service.challenge_invalid, "revoked", "invalid_token"
                )
                return
        answer = found.answer
        self._log.line(f'{answer.audit}"request":"{self._request(request_id)}"}}')
        await send(answer.message)
        await send(answer.body)

    def _is_own(self, host: bytes) -> bool:
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
        headers = {
            "x-gatehouse-user": header_value(identity.user),
            "x-gatehouse-name": header_value(identity.name),
            "x-gatehouse-email": header_value(identity.email),
            "x-gatehouse-groups": ",".join(header_value(group) for group in identity.groups),
            "x-gatehouse-client": header_value(accepted.client_id),
            "x-gatehouse-scope": header_value(accepted.scope),
        }
        message = start(200, [(name.encode(), value.encode()) for name, value in headers.items()])
        return accepted, Answer(message, BODY, _audit("allow", service, accepted, identity, None))

    def _denied(
        self,
        service: Service,
        token: AccessToken,
        identity: Identity,
        challenge: Headers,
        reason: str,
        error: str,
    ) -> Answer:
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), *challenge]
        return Answer(
            start(403, headers, len(body)),
            {"type": "http.response.body", "body": body},
            _audit("deny", service, token, identity, reason),
        )

    async def _refuse(
        self,
        send: Send,
        service: Service,
        request_id: bytes,
        status: int,
        headers: Headers,
        reason: str,
        error: str,
    ) -> None:
        self._log.event(
            "access", outcome="deny", service=service.name, resource=service.resource, reason=reason,
            request=self._request(request_id),
        )  # fmt: skip
        await answer_json(send, status, {"error": error}, headers)

    async def _unavailable(self, send: Send, service: str, request_id: bytes, reason: str) -> None:
        self._log.event(
            "access",
            "error",
            outcome="unknown",
            service=service,
            reason=reason,
            request=self._request(request_id),
        )
        await answer_json(send, 503, {"error": "temporarily_unavailable"}, [(b"retry-after", b"2")])

    async def _other(self, path: str, send: Send) -> None:
        if path == "/internal/health":
            checks = await self.health()
            healthy = all(value == "ok" for value in checks.values())
            await answer_json(
                send, 200 if healthy else 503, {"status": "ok" if healthy else "failing", "checks": checks}
            )
            return
        service = self._services.get(path.removeprefix(RESOURCE)) if path.startswith(RESOURCE) else None
        if service is None:
            await answer_json(send, 404, {"error": "not_found"})
            return
        await answer_json(send, 200, service.document, [(b"access-control-allow-origin", b"*")])

    async def health(self) -> dict[str, str]:
        """Each check by name: `ok`, or what is wrong."""
        checks = {"keyring": "ok" if self._keyring.public()["keys"] else "no usable key"}
        try:
            await self._store.ping()
            checks["redis"] = "ok"
        except StoreUnavailable:
            checks["redis"] = "does not answer"
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
    )


def _audit(outcome: str, service: Service, token: AccessToken, identity: Identity, reason: str | None) -> str:
    record = {
        "level": "info",
        "event": "access",
        "outcome": outcome,
        "user": identity.user,
        "client": token.client_id,
        "service": service.name,
        "resource": service.resource,
        **({"reason": reason} if reason else {}),
    }
    return f"{json.dumps(record)[1:-1]}, "
