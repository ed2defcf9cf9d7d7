"""What the nodes share, in Redis: clients, sign-ins under way, codes, grants, and revocations.

Every key begins with `gh:` and carries a time to live. Secrets are stored as SHA-256 digests. Whatever
must happen once happens in one script, and a script that is repeated because its reply was lost gives the
same answer, so that the client library may try again.
"""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from gatehouse_auth import redirects
from gatehouse_auth.identity.base import Identity
from gatehouse_auth.settings import ACCESS_TOKEN_SECONDS_MOST
from gatehouse_auth.together import Together

REVOCATIONS = "gh:revocations"
CODE_SECONDS = 60
FLOW_SECONDS = 600
DEVICE_SECONDS = 600
# How long a node may take to ask about a person. If it has died, another one does it then.
LEASE_SECONDS = 180
# How often a device may ask (RFC 8628 section 3.2), less a moment for the network.
POLL_SECONDS = 5
POLL_MILLISECONDS = 4500
UNUSED_CLIENT_SECONDS = 86400
UNUSED_CLIENTS = 50_000
# Sign-ins that are under way: the newest. Whoever begins more than that does not fill the memory with them.
FLOWS = 15_000
SESSION_SECONDS = 3600
# How many people, clients and decisions operators can look through: those that were active last.
PEOPLE, CLIENTS, DECISIONS = 10_000, 10_000, 500
DECISION_SECONDS = 7 * 86400
# Connections that one person can have. Some clients register anew at each sign-in and never say goodbye; the
# one that was longest unused makes room.
CONNECTIONS = 500
# An access token can be valid for a moment longer than its lifetime: clocks differ.
CLOCK_SECONDS = 120
# Commands that are sent at once.
PIPELINED = 1000
# A client outlives the refresh tokens that it holds by this much.
CLIENT_MARGIN_SECONDS = 7 * 86400
# How long a write waits for a replica to have it, where there are replicas.
REPLICA_MILLISECONDS = 100
# What uses something up is done within this time or not at all: as long as anyone waits for it (a command and
# its repetition, `connections`), so that what was answered with 503 is not done afterwards.
COMMIT_MILLISECONDS = 2000
IN_TIME = ("finish_flow", "finish_device", "redeem_code", "rotate_refresh")


def digest(secret: str) -> str:
    """How a secret is stored and looked up: its SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def keys_name(client_id: str) -> str:
    """The document of a client's keys, by name: one that several clients point to is kept for each."""
    return f"keys {client_id}"


def new_mark() -> str:
    """A value that nobody else sets."""
    return secrets.token_urlsafe(16)


class StoreUnavailable(Exception):  # noqa: N818 - it is an answer: 503, and nothing was consumed
    """Redis does not answer."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A sign-in under way, bound to one browser by the digest of its cookie. Without a service it is the
    person's own, to their account."""

    client_id: str
    client_name: str
    redirect_uri: str
    state: str | None
    scope: str
    service: str
    code_challenge: str
    browser: str
    consented: bool = False
    upstream: str = ""
    upstream_state: str = ""
    upstream_verifier: str = ""
    # For a device (RFC 8628): the digest of its code, and the code that it shows.
    device: str = ""
    user_code: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a person has granted a client: it may use one service, with these scopes."""

    client_id: str
    client_name: str
    identity: Identity
    service: str
    resource: str
    scope: str
    auth_time: int

    def as_fields(self) -> dict[str, str]:
        """The grant as fields of a Redis hash."""
        return {
            "client_id": self.client_id,
            "client_name": self.client_name,
            "identity": json.dumps(self.identity.as_dict()),
            "service": self.service,
            "resource": self.resource,
            "scope": self.scope,
            "auth_time": str(self.auth_time),
        }

    @classmethod
    def from_fields(cls, fields: dict[str, str]) -> "Grant":
        """The grant of `as_fields`."""
        return cls(
            client_id=fields["client_id"],
            client_name=fields["client_name"],
            identity=Identity.from_dict(json.loads(fields["identity"])),
            service=fields["service"],
            resource=fields["resource"],
            scope=fields["scope"],
            auth_time=int(fields["auth_time"]),
        )


@dataclass(frozen=True, slots=True)
class Code:
    """An authorization code that has not been used."""

    grant: Grant
    redirect_uri: str
    code_challenge: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device that waits for a person (RFC 8628). `grant` is what they granted; `denied`: they said no."""

    client_id: str
    client_name: str
    service: str
    scope: str
    user_code: str
    grant: Grant | None = None
    denied: bool = False

    def as_record(self) -> str:
        """The device as Redis keeps it."""
        names = ("client_id", "client_name", "service", "scope", "user_code", "denied")
        grant = None if self.grant is None else self.grant.as_fields()
        return json.dumps({**{name: getattr(self, name) for name in names}, "grant": grant})

    @classmethod
    def from_record(cls, record: str) -> "Device":
        """The device of `as_record`."""
        fields = json.loads(record)
        grant = fields.pop("grant")
        return cls(**fields, grant=None if grant is None else Grant.from_fields(grant))


@dataclass(frozen=True, slots=True)
class UsedCode:
    """The mark of an authorization code that has been used, and the grant that it gave."""

    family: str


@dataclass(frozen=True, slots=True)
class Family:
    """A grant with its line of refresh tokens, of which only digests are known; `current` is not used yet.
    `used` is when it was last used, in epoch seconds, where that was asked for."""

    family: str
    grant: Grant
    current: str = ""
    used: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """Somebody whose provider is to be asked about them, taken up under a mark. `doubtful`: an earlier
    attempt may have used up the credential and not have heard of its successor."""

    name: str
    mark: str
    user: str
    credential: str
    failures: int
    doubtful: bool


@dataclass(frozen=True, slots=True)
class Undo:
    """The script that undoes a write. After its arguments comes what the keys of `before` (strings, or
    nothing) held, and for how long."""

    script: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    before: tuple[str, ...] = ()

    @classmethod
    def put_back(cls, proof: str, value: str, *keys: str) -> "Undo":
        """While `proof` holds the value that the write gives it, `keys` become what they were."""
        return cls("undo", (proof, *keys), (value,), keys)


def _document(name: str) -> str:
    return f"gh:document:{digest(name)}"


def _client_keys(client_id: str) -> list[str]:
    """What there may be of a client: its registration or its document, and the keys that it publishes."""
    own = _document(client_id) if redirects.is_web(client_id) else f"gh:client:{client_id}"
    return [own, _document(keys_name(client_id))]


class _UnknownScript(Exception):  # noqa: N818
    """Redis does not have the script yet."""


async def _answer(asked: Awaitable[Any]) -> Any:
    try:
        return await asked
    except (RedisError, OSError) as error:
        raise StoreUnavailable(type(error).__name__) from error


class Store:
    """The questions that the service asks of Redis. Every method raises StoreUnavailable for a fault.

    With `replicated`, what was written counts once a replica has it too, so that a failover does not forget
    it; what no replica has in time is undone, as far as anything would have been used up.
    """

    def __init__(
        self,
        redis: "Redis",
        *,
        access_seconds: int,
        refresh_seconds: int,
        grace_seconds: int,
        replicated: bool = False,
    ) -> None:
        self._redis = redis
        self._together = Together(redis)
        self._replicated = replicated
        self._access_seconds = access_seconds
        self._refresh_seconds = refresh_seconds
        self._grace_seconds = grace_seconds
        folder = resources.files(__package__) / "scripts"
        in_time = (folder / "in_time.lua").read_text("utf-8")
        self._scripts = {
            name: redis.register_script(
                (in_time if name in IN_TIME else "") + (folder / f"{name}.lua").read_text("utf-8")
            )
            for name in (
                "finish_flow",
                "finish_device",
                "redeem_code",
                "rotate_refresh",
                "revoke",
                "save_counted",
                "undo",
                "forgive_rotation",
                "identify",
                "save_upstream",
                "take_upstream",
                "settle_upstream",
                "forget_upstream",
                "save_session",
                "drop_sessions",
            )
        }

    async def _run(
        self, script: str, keys: list[str], args: list[str | int], undo: Undo | None = None
    ) -> Any:
        known = self._scripts[script]
        if script in IN_TIME:
            seconds, microseconds = await self._ask("TIME")
            args = [*args, seconds * 1000 + microseconds // 1000 + COMMIT_MILLISECONDS]
        command = ("EVALSHA", known.sha, len(keys), *keys, *args)
        try:
            return await self._run_known(command, undo)
        except _UnknownScript:
            # A server that has just started, or a primary that has just become one.
            await self._do("SCRIPT LOAD", str(known.script))
            return await self._run_known(command, undo)

    async def _run_known(self, command: tuple[str | int, ...], undo: Undo | None) -> Any:
        if self._replicated:
            return await self._commit(*command, undo=undo)
        try:
            return await self._ask(*command)
        except StoreUnavailable as error:
            raise _UnknownScript if isinstance(error.__cause__, NoScriptError) else error from None

    async def _ask(self, *command: str | int) -> Any:
        """Do what changes nothing, or a script: it bears being repeated after others had their answer."""
        return await _answer(self._together.ask(*command))

    async def _do(self, *command: str | int) -> Any:
        return await _answer(self._redis.execute_command(*command))  # type: ignore[no-untyped-call]

    async def _commit(self, *command: str | int, undo: Undo | None = None) -> Any:
        """Do what has to outlive the primary."""
        if not self._replicated:
            return await self._do(*command)
        pipeline = self._redis.pipeline(transaction=False)
        for key in undo.before if undo is not None else ():
            pipeline.execute_command("GET", key)
            pipeline.execute_command("PTTL", key)
        pipeline.execute_command(*command)
        pipeline.execute_command("WAIT", 1, REPLICA_MILLISECONDS)
        *held, answer, copies = await _answer(pipeline.execute(raise_on_error=False))
        if isinstance(answer, NoScriptError):
            raise _UnknownScript
        if isinstance(answer, RedisError):
            raise StoreUnavailable(type(answer).__name__) from answer
        if isinstance(copies, RedisError) or copies < 1:
            if undo is not None and not any(isinstance(value, RedisError) for value in held):
                args = (*undo.args, *("" if value is None else value for value in held))
                await _answer(self._scripts[undo.script](keys=undo.keys, args=args))
            raise StoreUnavailable("no replica has it")
        return answer

    async def ping(self) -> None:
        """Ask whether Redis answers."""
        await self._do("PING")

    # Clients (RFC 7591, RFC 7592)

    async def register_client(self, client_id: str, record: dict[str, Any]) -> None:
        """Save a new registration, which expires unless it is used."""
        await self._save_unused(f"gh:client:{client_id}", record)

    async def _save_unused(self, key: str, record: dict[str, Any]) -> None:
        args: list[str | int] = [json.dumps(record), UNUSED_CLIENT_SECONDS, int(time.time()), UNUSED_CLIENTS]
        await self._run("save_counted", [key, "gh:clients:unused"], args)

    async def client(self, client_id: str) -> dict[str, Any] | None:
        """A registration, or None."""
        record = await self._ask("GET", f"gh:client:{client_id}")
        return None if record is None else cast(dict[str, Any], json.loads(record))

    async def update_client(self, client_id: str, record: dict[str, Any]) -> bool:
        """Replace a registration that exists; its time to live stays."""
        return (
            await self._commit("SET", f"gh:client:{client_id}", json.dumps(record), "XX", "KEEPTTL")
            is not None
        )

    async def delete_client(self, client_id: str) -> None:
        """Forget a registration. Its refresh tokens die with it, since a token needs its client."""
        await self._commit("DEL", f"gh:client:{client_id}")
        await self._do("ZREM", "gh:clients:unused", f"gh:client:{client_id}")
        await self._do("ZREM", "gh:clients", client_id)

    # Client ID Metadata Documents

    async def document(self, name: str) -> dict[str, Any] | None:
        """The copy of a client's document, or of its keys, or None."""
        record = await self._ask("GET", _document(name))
        return None if record is None else cast(dict[str, Any], json.loads(record))

    async def document_used(self, name: str) -> bool:
        """Whether a grant has come of a document: then its copy lives longer than those of strangers."""
        return int(await self._ask("PTTL", _document(name))) > UNUSED_CLIENT_SECONDS * 1000

    async def save_document(self, name: str, record: dict[str, Any]) -> None:
        """Keep a copy: in place of one that there is for as long as that lives, or like a registration."""
        if not await self.replace_document(name, record):
            await self._save_unused(_document(name), record)

    async def replace_document(self, name: str, record: dict[str, Any]) -> bool:
        """Replace a copy that there is; its time to live stays."""
        return await self._commit("SET", _document(name), json.dumps(record), "XX", "KEEPTTL") is not None

    async def forget_document(self, name: str) -> None:
        """Drop the copy of a document that is gone."""
        await self._commit("DEL", _document(name))

    async def first_use(self, client_id: str, name: str, seconds: int) -> bool:
        """Whether a client's assertion of this name is new. It is not, for so many seconds from now."""
        own = new_mark()
        key = f"gh:assertion:{digest(f'{client_id} {name}')}"
        undo = Undo.put_back(key, own, key)
        held = await self._commit("SET", key, own, "NX", "GET", "EX", seconds, undo=undo)
        # The command may have been repeated after its answer was lost.
        return held is None or held == own

    # Sign-ins under way

    async def save_flow(self, flow_id: str, flow: Flow) -> None:
        """Save a sign-in for ten minutes."""
        record = json.dumps({name: getattr(flow, name) for name in Flow.__slots__})
        args: list[str | int] = [record, FLOW_SECONDS, int(time.time()), FLOWS]
        await self._run("save_counted", [f"gh:flow:{digest(flow_id)}", "gh:flows"], args)

    async def update_flow(self, flow_id: str, flow: Flow) -> bool:
        """Replace a sign-in that is still under way, and keep its time."""
        record = json.dumps({name: getattr(flow, name) for name in Flow.__slots__})
        return await self._commit("SET", f"gh:flow:{digest(flow_id)}", record, "XX", "KEEPTTL") is not None

    async def flow(self, flow_id: str) -> Flow | None:
        """A sign-in that is still under way, or None."""
        record = await self._ask("GET", f"gh:flow:{digest(flow_id)}")
        return None if record is None else Flow(**json.loads(record))

    async def drop_flow(self, flow_id: str) -> bool:
        """End a sign-in without a code; False when it was no longer under way."""
        return bool(await self._commit("DEL", f"gh:flow:{digest(flow_id)}"))

    async def finish_flow(self, flow_id: str, code: str, record: Code) -> bool:
        """Turn a sign-in into a code; False when it was no longer under way."""
        value = json.dumps(
            {
                **record.grant.as_fields(),
                "redirect_uri": record.redirect_uri,
                "challenge": record.code_challenge,
            }
        )
        keys = [f"gh:flow:{digest(flow_id)}", f"gh:code:{digest(code)}"]
        undo = Undo.put_back(keys[1], value, *keys)
        return bool(await self._run("finish_flow", keys, [value, CODE_SECONDS], undo))

    # Devices that wait for a person (RFC 8628)

    async def save_device(self, device_code: str, device: Device) -> bool:
        """Save a device for ten minutes; False when another one has its user code."""
        name = digest(device_code)
        entry = f"gh:usercode:{digest(device.user_code)}"
        if await self._do("SET", entry, name, "NX", "EX", DEVICE_SECONDS) is None:
            return False
        await self._commit("SET", f"gh:device:{name}", device.as_record(), "EX", DEVICE_SECONDS)
        return True

    async def waiting_device(self, user_code: str) -> tuple[str, Device] | None:
        """The device that shows a code and still waits, with its name, or None."""
        name = await self._ask("GET", f"gh:usercode:{digest(user_code)}")
        device = None if name is None else await self._device(name)
        waits = isinstance(device, Device) and device.grant is None and not device.denied
        return (name, device) if waits and isinstance(device, Device) else None

    async def device(self, device_code: str) -> Device | UsedCode | None:
        """What is known of a device code."""
        return await self._device(digest(device_code))

    async def _device(self, name: str) -> Device | UsedCode | None:
        held = await self._ask("GET", f"gh:device:{name}")
        if held is None:
            return None
        if held.startswith("used:"):
            return UsedCode(held.removeprefix("used:"))
        return Device.from_record(held)

    async def polled_too_soon(self, device_code: str) -> bool:
        """Whether a device asks more often than it may. Asking counts."""
        key = f"gh:polled:{digest(device_code)}"
        return await self._do("SET", key, "1", "NX", "PX", POLL_MILLISECONDS) is None

    async def decide_device(self, flow_id: str, flow: Flow, grant: Grant | None) -> bool:
        """End a sign-in with a grant for its device, or without; False when it, or the device, is gone."""
        device = Device(
            flow.client_id,
            flow.client_name,
            flow.service,
            flow.scope,
            flow.user_code,
            grant,
            denied=grant is None,
        )
        keys = [
            f"gh:flow:{digest(flow_id)}",
            f"gh:device:{flow.device}",
            f"gh:usercode:{digest(flow.user_code)}",
        ]
        record = device.as_record()
        return bool(await self._run("finish_device", keys, [record], Undo.put_back(keys[1], record, *keys)))

    # What operators see

    async def note_decisions(self, records: list[str]) -> None:
        """Put decisions before those that there are."""
        await self._do("LPUSH", "gh:decisions", *records)
        await self._do("LTRIM", "gh:decisions", 0, DECISIONS - 1)
        await self._do("EXPIRE", "gh:decisions", DECISION_SECONDS)

    async def decisions(self, count: int) -> list[dict[str, Any]]:
        """The last decisions, the newest first."""
        return [json.loads(record) for record in await self._ask("LRANGE", "gh:decisions", 0, count - 1)]

    async def active(self, what: Literal["people", "clients"], count: int) -> list[tuple[str, int]]:
        """Who was active last, with the time in epoch seconds, the newest first."""
        return await self._listed(f"gh:{what}", count)

    async def _listed(self, key: str, count: int) -> list[tuple[str, int]]:
        listed = await self._ask("ZRANGE", key, 0, count - 1, "REV", "WITHSCORES")
        return [
            (name, int(float(score)) // 1000) for name, score in zip(listed[::2], listed[1::2], strict=True)
        ]

    # People signed in to their account

    async def save_session(self, secret: str, identity: Identity) -> None:
        """Save a session for an hour."""
        keys = [f"gh:session:{digest(secret)}", f"gh:sessions:{digest(identity.user)}"]
        await self._run("save_session", keys, [json.dumps(identity.as_dict()), SESSION_SECONDS])

    async def session(self, secret: str) -> Identity | None:
        """Whose session a cookie is, or None."""
        record = await self._ask("GET", f"gh:session:{digest(secret)}")
        return None if record is None else Identity.from_dict(json.loads(record))

    async def drop_session(self, secret: str) -> None:
        """Sign out."""
        await self._commit("DEL", f"gh:session:{digest(secret)}")

    async def drop_sessions(self, user: str) -> None:
        """Sign a person out everywhere."""
        await self._run("drop_sessions", [f"gh:sessions:{digest(user)}"], [])

    # Codes and refresh tokens

    async def code(self, code: str) -> Code | UsedCode | None:
        """What is known of an authorization code."""
        held = await self._ask("GET", f"gh:code:{digest(code)}")
        if held is None:
            return None
        if held.startswith("used:"):
            return UsedCode(held.removeprefix("used:"))
        fields = json.loads(held)
        return Code(Grant.from_fields(fields), fields["redirect_uri"], fields["challenge"])

    async def redeem_code(
        self, code: str, family: Family, refresh_digest: str | None, kind: Literal["code", "device"] = "code"
    ) -> UsedCode | list[str]:
        """Use up an authorization code, or the code of a device that was granted something.

        Returns:
            When that is done, the person's families that are too many, by name. Otherwise what stands in
            the way: a mark of another use, or UsedCode('') when the code is gone.
        """
        person = digest(family.grant.identity.user)
        held, begun = f"gh:{kind}:{digest(code)}", f"gh:family:{family.family}"
        answer, *crowded = await self._run(
            "redeem_code",
            [
                held,
                begun,
                f"gh:person:{person}",
                *_client_keys(family.grant.client_id),
            ],
            [
                family.family,
                self._access_seconds,
                self._refresh_seconds,
                self._refresh_seconds + CLIENT_MARGIN_SECONDS,
                CONNECTIONS,
                family.grant.identity.user,
                PEOPLE,
                family.grant.client_id,
                CLIENTS,
                refresh_digest or "",
                "person",
                person,
                *(item for pair in family.grant.as_fields().items() for item in pair),
            ],
            Undo.put_back(held, f"used:{family.family}", held, begun),
        )
        if answer == "done":
            return cast(list[str], crowded)
        return UsedCode("" if answer == "gone" else answer.removeprefix("used:"))

    async def family(self, family: str) -> Family | None:
        """A grant that has not ended, or None."""
        fields = await self._ask("HGETALL", f"gh:family:{family}")
        if not fields:
            return None
        grant = Grant.from_fields(fields)
        return Family(family, grant, fields.get("current", ""))

    async def connections(self, user: str) -> list[Family]:
        """What a person has granted and has not ended, the last used first."""
        listed = await self._listed(f"gh:person:{digest(user)}", CONNECTIONS)
        found = await asyncio.gather(*(self.family(name) for name, _ in listed))
        return [
            replace(family, used=used)
            for family, (_, used) in zip(found, listed, strict=True)
            if family is not None
        ]

    async def note_uses(self, uses: dict[str, tuple[str, str]]) -> None:
        """Note that these connections, each with its person and client, were used just now."""
        now = int(time.time() * 1000)
        people = {person for person, _ in uses.values()}
        clients = {client for _, client in uses.values()}
        entries = [
            *((f"gh:person:{digest(person)}", family) for family, (person, _) in uses.items()),
            *(("gh:people", person) for person in people),
            *(("gh:clients", client) for client in clients),
        ]
        for start in range(0, len(entries), PIPELINED):
            pipeline = self._redis.pipeline(transaction=False)
            for key, entry in entries[start : start + PIPELINED]:
                pipeline.execute_command("ZADD", key, "XX", "GT", now, entry)
            await _answer(pipeline.execute())

    async def rotate_refresh(
        self, family: Family, presented: str, successor: str, salt: str
    ) -> tuple[str, str]:
        """Rotate a refresh token, by digests.

        Returns:
            `("done", salt)` with the salt of the successor that counts, `("gone", "")`, or
            `("replayed", "")`.
        """
        outcome, held = await self._run(
            "rotate_refresh",
            [
                f"gh:family:{family.family}",
                f"gh:person:{digest(family.grant.identity.user)}",
                *_client_keys(family.grant.client_id),
            ],
            [
                family.family,
                presented,
                successor,
                salt,
                self._grace_seconds * 1000,
                self._refresh_seconds,
                self._refresh_seconds + CLIENT_MARGIN_SECONDS,
                family.grant.identity.user,
                family.grant.client_id,
            ],
            # Its holder has not got the successor, and may come back for it long after.
            Undo("forgive_rotation", (f"gh:family:{family.family}",), (presented, successor)),
        )
        return outcome, held

    async def identify(self, family: Family, identity: Identity) -> None:
        """Note who the person of a grant is now, if it has not ended."""
        await self._run("identify", [f"gh:family:{family.family}"], [json.dumps(identity.as_dict())])

    # People whom their providers are asked about again

    async def save_upstream(self, user: str, credential: str, seconds: int) -> None:
        """Keep what a provider gave to ask again with, and do so in so many seconds."""
        name = digest(user)
        keys = [f"gh:upstream:{name}", "gh:due"]
        await self._run("save_upstream", keys, [name, user, credential, seconds, self._refresh_seconds])

    async def take_upstream(self, mark: str) -> Due | None:
        """Take up somebody whose time has come, under a mark of one's own; for the lease nobody else does."""
        taken = await self._run("take_upstream", ["gh:due", f"gh:taken:{mark}"], [mark, LEASE_SECONDS])
        if not taken:
            return None
        name, user, credential, failures, doubt = taken
        return Due(name, mark, user, credential, int(failures), doubt == "1")

    async def keep_upstream(self, due: Due, credential: str) -> None:
        """Keep the credential that has replaced another, unless the person has signed in anew meanwhile."""
        await self._settle(due, credential, "", "", "")

    async def settle_upstream(self, due: Due, seconds: int, failures: int, *, doubtful: bool) -> bool:
        """Be done with somebody, and ask again in so many seconds; False when the person has signed in anew
        meanwhile, or has nothing connected any more."""
        return await self._settle(due, "", seconds, failures, "1" if doubtful else "")

    async def _settle(
        self, due: Due, credential: str, seconds: int | str, failures: int | str, doubt: str
    ) -> bool:
        keys = [f"gh:upstream:{due.name}", "gh:due"]
        args = [due.mark, due.name, credential, seconds, failures, doubt, self._refresh_seconds]
        return bool(await self._run("settle_upstream", keys, args))

    async def forget_upstream(self, due: Due) -> None:
        """Forget what somebody was asked about with, unless the person has signed in anew meanwhile."""
        await self._run("forget_upstream", [f"gh:upstream:{due.name}", "gh:due"], [due.mark, due.name])

    # Revocation

    async def revoke(self, identifier: str, seconds: int = ACCESS_TOKEN_SECONDS_MOST) -> None:
        """Revoke a grant (by its family), a client, or one access token (by its `jti`) on every node, at
        once. `seconds` is how long an access token of it can still be good."""
        keys = [f"gh:revoked:{identifier}", f"gh:family:{identifier}"]
        lives = [life + CLOCK_SECONDS for life in (seconds, min(seconds, self._access_seconds))]
        await self._run("revoke", keys, [identifier, *lives, REVOCATIONS])

    async def revoked(self, *identifiers: str) -> bool:
        """Whether any of these has been revoked."""
        return bool(await self._ask("EXISTS", *(f"gh:revoked:{identifier}" for identifier in identifiers)))
