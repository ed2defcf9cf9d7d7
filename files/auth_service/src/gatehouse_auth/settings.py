"""Configuration from the environment, and secrets from the credentials directory.

Everything is checked once, before a socket is opened. A problem is a sentence that names the variable
and what to do, and never quotes a value: a value may be a secret in the wrong place.
"""

import json
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gatehouse_auth.connections import RedisAddress
from gatehouse_auth.keyring import Keyring, KeyringError
from gatehouse_service.configuration import PREFIX, ConfigurationError, DrainSeconds, Listen, credential

INSTANCE = r"^[A-Za-z0-9._-]{1,253}$"
SERVICE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
LOCAL_USER = re.compile(r"[A-Za-z0-9._@+-]{1,128}\Z")
PROVIDER_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+\Z")

# The subject of the health probe's tokens; no person may have this name.
PROBE = "gatehouse-probe"
# No access token was ever given for longer, whatever the setting is by now.
ACCESS_TOKEN_SECONDS_MOST = 86400
# Providers are not asked about a person sooner than this after the sign-in: by then it has come to something.
RECHECK_SECONDS_LEAST = 900
# The provider of those who are no people.
MACHINES = "client"


def _origin(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != "https" or not parts.hostname or value != f"https://{parts.netloc}".lower():
        raise ValueError("must be a lower-case https origin without a path or a trailing slash")
    return value


def _web_origin(value: str) -> str:
    parts = urlsplit(value)
    if (
        parts.scheme not in ("https", "http")
        or not parts.hostname
        or value != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError("must be a web origin such as https://app.example.com, without a path")
    return value


def _resource(value: str) -> str:
    parts = urlsplit(value)
    if (
        parts.scheme != "https"
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
        or "#" in value
        or value.endswith("/")
        or not value.isascii()
    ):
        raise ValueError("must be an https URL without a trailing slash, a query, or a fragment")
    return value


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    loopback = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not parts.hostname or parts.scheme not in (("https", "http") if loopback else ("https",)):
        raise ValueError("must be an https URL (http only on a loopback address)")
    return value.rstrip("/")


def _issuer_url(value: str) -> str:
    # As it is written, trailing slash or not: an issuer is compared character by character.
    if _base_url(value) != value.rstrip("/") or "?" in value or "#" in value:
        raise ValueError("must be the provider's issuer, without a query or a fragment")
    return value


def _redis_url(value: str) -> str:
    RedisAddress.parse(value)
    return value


def _scopes(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(SCOPE_TOKEN.match(scope) for scope in value) or "offline_access" in value:
        raise ValueError("must be scope tokens (RFC 6749 appendix A.4); offline_access is not a resource's")
    return value


def _lower(value: frozenset[str]) -> frozenset[str]:
    return frozenset(item.lower() for item in value)


def _content_of_file(value: Any) -> Any:
    try:
        return json.loads(Path(value).read_bytes())
    except (OSError, TypeError, ValueError):
        raise ValueError("must be the path of a readable JSON file") from None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AllowList(_Model):
    """Who may use a service. Empty lets no one in; `everyone` has to be spelled out, and means people.
    `clients` are those that act for themselves."""

    users: frozenset[str] = frozenset()
    emails: Annotated[frozenset[str], AfterValidator(_lower)] = frozenset()
    groups: frozenset[str] = frozenset()
    clients: frozenset[str] = frozenset()
    everyone: bool = False


class Resource(_Model):
    """One protected MCP service: its RFC 8707 identifier, and what a token needs to open it. `groups` are
    those that the service itself wants to know of. Of `instances`, each person has one for all requests."""

    resource: Annotated[str, AfterValidator(_resource)]
    title: str = ""
    scopes: Annotated[tuple[str, ...], AfterValidator(_scopes)] = ("mcp",)
    allow: AllowList | None = None
    groups: frozenset[str] = frozenset()
    origins: frozenset[Annotated[str, AfterValidator(_web_origin)]] = frozenset()
    instances: tuple[Annotated[str, Field(pattern=INSTANCE)], ...] = ()


class LocalProvider(_Model):
    """People in the credential `users.json`."""

    title: str = "Local account"


class GitHubProvider(_Model):
    """A GitHub OAuth App. `orgs` and `teams` (`org/team`) narrow who may sign in, and become groups."""

    title: str = "GitHub"
    client_id: str = Field(min_length=1)
    orgs: frozenset[str] = frozenset()
    teams: frozenset[str] = frozenset()
    base_url: Annotated[str, AfterValidator(_base_url)] = "https://github.com"
    api_url: Annotated[str, AfterValidator(_base_url)] = "https://api.github.com"


class OpenIDProvider(_Model):
    """An OpenID provider, found by discovery. `trust_emails`: its addresses count although it does not say
    that it has verified them. `assertions`: apps may bring its word for a person (ID-JAG) instead of having
    the person sign in here."""

    title: str = ""
    issuer: Annotated[str, AfterValidator(_issuer_url)]
    client_id: str = Field(min_length=1)
    # None named: openid, profile and email, and offline_access where the provider has it and it is of use.
    scopes: tuple[str, ...] = ()
    groups_claim: str = "groups"
    trust_emails: bool = False
    assertions: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scopes and not (
            "openid" in self.scopes and all(SCOPE_TOKEN.match(scope) for scope in self.scopes)
        ):
            raise ValueError("scopes: must be scope tokens, openid among them")
        return self


class Providers(_Model):
    """Where people sign in. OpenID providers have names of the operator's own."""

    local: LocalProvider | None = None
    github: GitHubProvider | None = None
    oidc: dict[str, OpenIDProvider] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.names:
            raise ValueError("must name at least one identity provider")
        for name in self.oidc:
            if not PROVIDER_NAME.match(name) or name in ("local", "github", "oidc", "probe", MACHINES):
                raise ValueError(
                    "oidc: a provider's name has lower-case letters, digits and -, and is none of"
                    f" local, github, oidc, probe, {MACHINES}"
                )
        return self

    @property
    def names(self) -> list[str]:
        """Their names, which stand before the colon in the names of people and groups."""
        fixed = [name for name in ("local", "github") if getattr(self, name) is not None]
        return [*fixed, *self.oidc]

    def qualified(self, entry: str) -> str:
        """An allow-list's entry as people and groups are named: `<provider>:<name>`, or a local name.

        An entry without a provider is a local one where there are local users, and otherwise of the only
        provider there is.

        Raises:
            ValueError: it could be of several providers, or is of one that is not configured.
        """
        provider, colon, name = entry.partition(":")
        if not colon:
            provider, name = "local" if self.local is not None else self.names[0], entry
            if self.local is None and len(self.names) > 1:
                raise ValueError("a name could be of several providers; write <provider>:<name>")
        if provider not in self.names:
            raise ValueError("a name is of a provider that is not configured")
        if provider == "local":
            return name
        # GitHub's names mean the same in any case. A subject (OpenID Connect Core section 2) does not.
        return f"{provider}:{name.lower() if provider == 'github' else name}"


class StaticClient(_Model):
    """A client from inventory. Its secret, when it has one, is the credential `client_<client_id>`."""

    client_name: str
    redirect_uris: tuple[str, ...] = ()
    token_endpoint_auth_method: Literal[
        "none", "client_secret_basic", "client_secret_post", "private_key_jwt"
    ] = "none"
    jwks: dict[str, Any] | None = None
    grant_types: frozenset[
        Literal[
            "authorization_code",
            "refresh_token",
            "client_credentials",
            "urn:ietf:params:oauth:grant-type:device_code",
            "urn:ietf:params:oauth:grant-type:jwt-bearer",
        ]
    ] = frozenset({"authorization_code", "refresh_token"})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "authorization_code" in self.grant_types and not self.redirect_uris:
            raise ValueError("redirect_uris: the authorization code grant needs one")
        if "client_credentials" in self.grant_types and self.token_endpoint_auth_method == "none":
            raise ValueError(
                "token_endpoint_auth_method: the client credentials grant needs a secret or keys"
            )
        if (self.token_endpoint_auth_method == "private_key_jwt") != (self.jwks is not None):
            raise ValueError("jwks: private_key_jwt needs the client's public keys, and nothing else does")
        return self


class Settings(BaseSettings):
    """The environment of the auth service (docs/contracts.md). Durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    issuer: Annotated[str, AfterValidator(_origin)]
    # Several loopback addresses spread Traefik's two idle connections per address.
    listen: Listen = "127.0.0.1:18000"
    redis_url: Annotated[str, AfterValidator(_redis_url)] = "redis://auth@127.0.0.1:6379/0"
    # A file, so that a service comes or goes without a restart: SIGHUP reads it again.
    resources: Annotated[dict[str, Resource], NoDecode, BeforeValidator(_content_of_file)]
    allow: AllowList = AllowList()
    # Who sees everybody's connections and ends them; nobody, unless they are named.
    operators: AllowList = AllowList()
    providers: Providers
    clients: dict[str, StaticClient] = {}
    access_token_seconds: int = Field(default=3600, ge=60, le=ACCESS_TOKEN_SECONDS_MOST)
    refresh_token_seconds: int = Field(default=2592000, ge=3600)
    drain_seconds: DrainSeconds = 20
    refresh_grace_seconds: int = Field(default=30, ge=0, le=300)
    redis_grace_seconds: int = Field(default=300, ge=0, le=3600)
    # How often people's providers are asked about them again; 0: never, and nothing is kept to do so.
    recheck_seconds: int = Field(default=3600, ge=0)
    client_documents: bool = False
    # The service of a sign-in that names none: clients of the MCP of 2025-03-26 do not.
    default_resource: str = ""
    custom_redirects: frozenset[str] = frozenset({"cursor://anysphere.cursor-mcp/oauth/callback"})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.resources:
            if not SERVICE_NAME.match(name):
                raise ValueError("resources: a service's name must be a DNS label in lower case")
        identifiers = [resource.resource for resource in self.resources.values()]
        if len(set(identifiers)) != len(identifiers):
            raise ValueError("resources: two services have the same resource")
        if 0 < self.recheck_seconds < RECHECK_SECONDS_LEAST:
            raise ValueError(f"recheck_seconds: has to be 0 or at least {RECHECK_SECONDS_LEAST}")
        if self.default_resource and self.default_resource not in self.resources:
            raise ValueError("default_resource: has to be one of the services in resources")
        if self.operators.everyone or self.operators.clients:
            raise ValueError("operators: has to name users, emails or groups")
        lists = [(*allow.users, *allow.groups) for allow in (*self.allow_lists.values(), self.operators)]
        for entry in {entry for entries in lists for entry in entries} | self.named_groups:
            try:
                self.providers.qualified(entry)
            except ValueError as error:
                raise ValueError(f"allow: {error}") from None
        return self

    @property
    def rechecks(self) -> bool:
        """Whether there is anybody whose provider may be asked about them again."""
        return self.recheck_seconds > 0 and (self.providers.github is not None or bool(self.providers.oidc))

    def title(self, service: str) -> str:
        """What people call a service."""
        known = self.resources.get(service)
        return (known.title if known is not None else "") or service

    @property
    def named_groups(self) -> frozenset[str]:
        """Every group that anything in the configuration is about, as it is written there."""
        allowed = (allow.groups for allow in self.allow_lists.values())
        wanted = (resource.groups for resource in self.resources.values())
        return frozenset(self.operators.groups).union(*allowed, *wanted)

    @property
    def allow_lists(self) -> dict[str, AllowList]:
        """The allow-list in force for each service: its own, or else the general one."""
        return {
            name: self.allow if resource.allow is None else resource.allow
            for name, resource in self.resources.items()
        }


class LocalUser(_Model):
    """One entry of `users.json`."""

    password_hash: str = Field(pattern=r"^\$argon2id\$")
    name: str = ""
    email: str = ""
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the unit receives by `LoadCredential=`."""

    keyring: Keyring
    redis_password: str = field(repr=False)
    redis_authority: str = field(repr=False)
    recheck_key: str = field(repr=False)
    github_client_secret: str = field(repr=False)
    oidc_client_secrets: dict[str, str] = field(repr=False)
    users: dict[str, LocalUser] = field(repr=False)
    clients: dict[str, str] = field(repr=False)


def load_keyring() -> Keyring:
    """The signing keys alone, for the admin command.

    Raises:
        ConfigurationError: the credential is missing or wrong.
    """
    credentials = _Credentials()
    keyring = credentials.keyring()
    credentials.done()
    return keyring


def load_secrets(settings: Settings) -> Secrets:
    """Secrets from `$CREDENTIALS_DIRECTORY`.

    Raises:
        ConfigurationError: with a sentence for each credential that is missing or wrong.
    """
    credentials = _Credentials()
    secrets = Secrets(
        keyring=credentials.keyring(),
        redis_password=credentials.text("redis_password"),
        redis_authority=credentials.authority("redis_ca.pem"),
        recheck_key=credentials.text("recheck_key") if settings.rechecks else "",
        github_client_secret=credentials.text("github_client_secret") if settings.providers.github else "",
        oidc_client_secrets={
            name: credentials.text(f"oidc_{name}_client_secret") for name in settings.providers.oidc
        },
        users=credentials.users() if settings.providers.local else {},
        clients={
            client_id: credentials.text(f"client_{client_id}")
            for client_id, client in settings.clients.items()
            if client.token_endpoint_auth_method.startswith("client_secret_")
        },
    )
    credentials.done()
    return secrets


class _Credentials:
    """Reads credentials and gathers what is wrong with them."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def text(self, name: str) -> str:
        value = credential(name).strip()
        if not value:
            self._problems.append(f"credential {name} must be a readable, non-empty file (LoadCredential=)")
        return value

    def authority(self, name: str) -> str:
        text = credential(name)
        try:
            ssl.create_default_context(cadata=text or None)
        except ssl.SSLError:
            self._problems.append(f"credential {name} must be certificates in PEM, or must not be there")
        return text

    def keyring(self) -> Keyring:
        try:
            return Keyring.parse(self.text("keyring.json"))
        except KeyringError as error:
            self._problems.append(f"credential keyring.json: {error}")
            return Keyring([])

    def users(self) -> dict[str, LocalUser]:
        text = self.text("users.json")
        if not text:
            return {}
        try:
            users = {name: LocalUser.model_validate(entry) for name, entry in json.loads(text).items()}
        except (ValueError, AttributeError):
            self._problems.append(
                "credential users.json must be a JSON object of users, each with password_hash "
                "($argon2id$...), name, email, and groups"
            )
            return {}
        if any(not LOCAL_USER.match(name) or name == PROBE for name in users):
            self._problems.append(
                f"credential users.json: a user's name has letters, digits and ._@+- only, and is not {PROBE}"
            )
        return users

    def done(self) -> None:
        if self._problems:
            raise ConfigurationError(list(dict.fromkeys(self._problems)))
