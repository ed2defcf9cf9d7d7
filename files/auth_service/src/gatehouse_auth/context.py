"""Everything that the routes work with, built once from configuration."""

import ssl
from dataclasses import dataclass

import httpx
from fastapi import Request

from gatehouse_auth.audit import Log
from gatehouse_auth.check import Answer
from gatehouse_auth.clients import Clients
from gatehouse_auth.connections import Connections, connect
from gatehouse_auth.decisions import Decisions
from gatehouse_auth.documents import Documents, Fetcher
from gatehouse_auth.identity.base import (
    OPERATORS,
    AccessRules,
    Identity,
    PasswordProvider,
    Provider,
    RedirectProvider,
)
from gatehouse_auth.identity.github import GitHub
from gatehouse_auth.identity.local import LocalUsers
from gatehouse_auth.identity.machines import Machines
from gatehouse_auth.identity.oidc import OpenID
from gatehouse_auth.keyring import Keyring
from gatehouse_auth.limits import Limiter, Rate, address_key
from gatehouse_auth.pages import Pages
from gatehouse_auth.rechecks import Rechecks
from gatehouse_auth.settings import ACCESS_TOKEN_SECONDS_MOST, MACHINES, Secrets, Settings
from gatehouse_auth.store import Store
from gatehouse_auth.uses import Uses
from gatehouse_auth.verifier import Findings

# Thousands of people can share one address, so that a limit by address only stops what no crowd does;
# registrations beyond it displace each other (store.UNUSED_CLIENTS) instead of filling the memory.
RATES = {
    "register": Rate(burst=300, per_second=5),
    "register_all": Rate(burst=1000, per_second=50),
    "authorize": Rate(burst=300, per_second=10),
    "device_code": Rate(burst=10, per_second=0.1),
    "token": Rate(burst=2000, per_second=200),
    "signin": Rate(burst=50, per_second=0.5),
    "signin_user": Rate(burst=20, per_second=0.2),
    "signin_user_address": Rate(burst=5, per_second=0.1),
    # Only failures count, and what strangers with many addresses try takes no more than half a processor.
    "signin_all": Rate(burst=100, per_second=10),
}
LOOPBACK = ("127.", "::1")


@dataclass
class Context:
    """The parts of the service. Only `reconfigure` replaces any."""

    settings: Settings
    keyring: Keyring
    store: Store
    clients: Clients
    documents: Documents | None
    rules: AccessRules
    password_providers: dict[str, PasswordProvider]
    redirect_providers: dict[str, RedirectProvider]
    machines: Machines
    findings: Findings[Answer]
    limits: dict[str, Limiter]
    pages: Pages
    log: Log
    http: httpx.AsyncClient
    decisions: Decisions
    uses: Uses
    rechecks: Rechecks
    redis: Connections

    @property
    def providers(self) -> dict[str, Provider]:
        """The providers that people sign in with, by name."""
        return {**self.password_providers, **self.redirect_providers}

    @property
    def authorities(self) -> dict[str, Provider]:
        """All who vouch for an identity, by name."""
        return {**self.providers, MACHINES: self.machines}

    def entitled(self, service: str, identity: Identity) -> Identity | None:
        """The identity as it is now, if it may use the service; else None."""
        provider = self.authorities.get(identity.provider)
        current = provider.current(identity) if provider is not None else None
        known = current is not None and service in self.settings.resources
        return current if known and current is not None and self.rules.allows(service, current) else None

    def vouching(self, issuer: str) -> OpenID | None:
        """The provider of this issuer, if apps may bring its word for a person."""
        for name, provider in self.settings.providers.oidc.items():
            known = self.redirect_providers.get(name)
            if provider.issuer == issuer and provider.assertions and isinstance(known, OpenID):
                return known
        return None

    def is_operator(self, identity: Identity) -> bool:
        """Whether this person may see and end everybody's connections."""
        return self.rules.allows(OPERATORS, identity)

    def reconfigure(self, settings: Settings) -> None:
        """Protect other resources from now on. What was found of tokens is found again by the new rules."""
        self.settings = settings
        self.rules = _rules(settings)
        for provider in self.redirect_providers.values():
            provider.follow(_followed(settings))
        self.findings.clear()

    async def revoke(self, identifier: str, seconds: int = ACCESS_TOKEN_SECONDS_MOST) -> None:
        """Revoke a grant, a token, or a client: here before the answer, everywhere else by the stream.
        `seconds` is how long an access token of it can still be good."""
        await self.store.revoke(identifier, seconds)
        self.findings.drop(identifier)

    async def remove_client(self, client_id: str) -> None:
        """End a registration and every token that was given by it."""
        await self.revoke(client_id)
        await self.store.delete_client(client_id)

    async def close(self) -> None:
        """Close what is open to other services."""
        await self.http.aclose()
        if self.documents is not None:
            await self.documents.close()
        await self.redis.close()
        self.log.flush()


def build(settings: Settings, secrets: Secrets, log: Log) -> Context:
    """The parts, wired. Nothing is connected yet."""
    redis = connect(settings.redis_url, secrets.redis_password, secrets.redis_authority)
    decisions = Decisions()
    log.listener = decisions.note
    store = Store(
        redis.commands,
        access_seconds=settings.access_token_seconds,
        refresh_seconds=settings.refresh_token_seconds,
        grace_seconds=settings.refresh_grace_seconds,
        replicated=redis.primary is not None,
    )
    # The host's own certificates count: an operator's provider may well be of a private authority.
    http = httpx.AsyncClient(timeout=10.0, follow_redirects=False, verify=ssl.create_default_context())
    providers = settings.providers
    rules = _rules(settings)
    redirect: dict[str, RedirectProvider] = {}
    if providers.github is not None:
        redirect["github"] = GitHub(
            providers.github, secrets.github_client_secret, _callback(settings, "github"), http
        )
    for name, provider in providers.oidc.items():
        redirect[name] = OpenID(
            name,
            provider,
            secrets.oidc_client_secrets[name],
            _callback(settings, name),
            http,
            offline=settings.rechecks,
        )
    for upstream in redirect.values():
        upstream.follow(_followed(settings))
    findings: Findings[Answer] = Findings(store, redis.stream, log, settings.redis_grace_seconds)
    if redis.primary is not None:
        redis.primary.on_move = findings.stream.moved
    documents = Documents(store, settings.custom_redirects, Fetcher()) if settings.client_documents else None
    return Context(
        settings=settings,
        keyring=secrets.keyring,
        store=store,
        clients=Clients(settings, secrets, store, documents),
        documents=documents,
        rules=rules,
        password_providers={"local": LocalUsers(providers.local, secrets.users)} if providers.local else {},
        redirect_providers=redirect,
        machines=Machines(settings.clients),
        findings=findings,
        limits={name: Limiter(rate) for name, rate in RATES.items()},
        pages=Pages(),
        log=log,
        http=http,
        decisions=decisions,
        uses=Uses(),
        rechecks=Rechecks(
            store, redirect, log, secrets.recheck_key, settings.recheck_seconds if settings.rechecks else 0
        ),
        redis=redis,
    )


def _rules(settings: Settings) -> AccessRules:
    return AccessRules(settings.providers, {**settings.allow_lists, OPERATORS: settings.operators})


def _followed(settings: Settings) -> frozenset[str]:
    return frozenset(map(settings.providers.qualified, settings.named_groups))


def _callback(settings: Settings, provider: str) -> str:
    return f"{settings.issuer}/signin/{provider}/callback"


def context_of(request: Request) -> Context:
    """The context of a request."""
    context: Context = request.app.state.context
    return context


def client_address(request: Request) -> str:
    """The client's address as the proxy saw it: the last entry of `X-Forwarded-For`, and that only from a
    peer on loopback, where nothing but Traefik calls."""
    peer = request.client.host if request.client is not None else ""
    forwarded = request.headers.get("x-forwarded-for", "")
    if forwarded and peer.startswith(LOOPBACK):
        peer = forwarded.rpartition(",")[2].strip()
    return address_key(peer)
