"""The small parts by themselves."""

import asyncio
import io
import json
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from argon2 import PasswordHasher
from authlib.common.urls import add_params_to_uri

from gatehouse_auth import limits, redirects
from gatehouse_auth.app import _end
from gatehouse_auth.audit import Log
from gatehouse_auth.identity.base import AccessRules, Identity, ProviderBusy
from gatehouse_auth.identity.github import GitHub
from gatehouse_auth.identity.local import THREADS, WAITING, LocalUsers
from gatehouse_auth.identity.oidc import OpenID
from gatehouse_auth.limits import Limiter, Rate, address_key
from gatehouse_auth.oauth.metadata import resource_metadata_url
from gatehouse_auth.oauth.server import canonical
from gatehouse_auth.settings import (
    AllowList,
    GitHubProvider,
    LocalProvider,
    LocalUser,
    OpenIDProvider,
    Providers,
)

CURSOR = "cursor://anysphere.cursor-mcp/oauth/callback"


# covers: redirect-match
@pytest.mark.parametrize(
    ("uri", "good"),
    [
        ("https://claude.ai/api/mcp/auth_callback", True),
        ("https://vscode.dev/redirect?x=1", True),
        ("http://localhost/callback", True),
        ("http://localhost:3335/oauth/callback", True),
        ("http://127.0.0.1:33418/", True),
        ("http://127.0.0.1:33418", True),
        ("http://[::1]:1/cb", True),
        (CURSOR, True),
        (CURSOR + "/x", False),
        ("http://example.com/cb", False),
        ("http://localhost.evil.example/cb", False),
        ("http://localhost@evil.example/cb", False),
        ("http://127.0.0.1.evil.example/cb", False),
        ("http://127.0.0.2/cb", False),
        ("http://127.1/cb", False),
        ("http://0x7f000001/cb", False),
        ("http://LOCALHOST/cb", False),
        ("http://localhost:99999/cb", False),
        ("http://localhost:0/cb", False),
        ("http://localhost\\@evil.example/cb", False),
        ("https://user@example.com/cb", False),
        ("https://example.com/cb#fragment", False),
        ("https://example.com/c b", False),
        ("https://example.com/\r\nX: 1", False),
        ("https://éxample.com/", False),
        ("https:///cb", False),
        ("https:example.com", False),
        ("https://example.com:port/", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("//example.com/cb", False),
        ("", False),
        ("https://example.com/" + "x" * 3000, False),
        (None, False),
        (["https://example.com/"], False),
    ],
)
def test_which_redirect_uris_may_be_registered(uri: object, good: bool) -> None:
    assert redirects.acceptable(uri, frozenset({CURSOR})) is good


# covers: redirect-match
@pytest.mark.parametrize(
    ("registered", "requested", "same"),
    [
        ("https://a.example/cb", "https://a.example/cb", True),
        ("https://a.example/cb", "https://a.example:443/cb", False),
        ("https://a.example/cb", "https://a.example/cb/", False),
        ("https://a.example/cb", "https://a.example/CB", False),
        ("http://localhost/cb", "http://localhost:5/cb", True),
        ("http://localhost:8787/cb", "http://localhost/cb", True),
        ("http://localhost/cb", "http://127.0.0.1/cb", False),
        ("http://localhost/cb", "http://localhost:5/cb?x=1", False),
        ("http://localhost/cb", "http://localhost:5/cb/../x", False),
        ("http://localhost/cb", "http://localhost:5@evil.example/cb", False),
        ("http://localhost/cb", "https://localhost:5/cb", False),
        ("http://[::1]/cb", "http://[::1]:5/cb", True),
        ("http://localhost/cb", "http://localhost:5/cb#x", False),
    ],
)
def test_which_redirect_uris_match(registered: str, requested: str, same: bool) -> None:
    assert redirects.matches(registered, requested) is same


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("https://a.example:8443/cb?x", "https://a.example:8443"),
        ("http://[::1]:5/cb", "http:"),
        (CURSOR, "cursor:"),
    ],
)
def test_form_action(uri: str, source: str) -> None:
    assert redirects.form_action(uri) == source


# covers: resource
@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ("https://a.example/", "https://a.example"),
        ("https://a.example", "https://a.example"),
        ("https://a.example/mcp/", "https://a.example/mcp/"),
        ("https://a.example//", "https://a.example//"),
    ],
)
def test_a_lone_slash_at_the_root(asked: str, same: str) -> None:
    assert canonical(asked) == same


# covers: prm
def test_where_a_resources_document_is() -> None:
    assert (
        resource_metadata_url("https://e.example/mcp")
        == "https://e.example/.well-known/oauth-protected-resource/mcp"
    )
    path = "https://e.example/.well-known/oauth-protected-resource/echo/mcp"
    assert resource_metadata_url("https://e.example/echo/mcp") == path


def test_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("gatehouse_auth.limits.time.monotonic", lambda: now[0])
    limiter = Limiter(Rate(burst=2, per_second=0.5))
    assert [limiter.take("a"), limiter.take("a")] == [0, 0]
    assert limiter.take("a") == pytest.approx(2)
    assert limiter.take("b") == 0
    now[0] += 2
    assert limiter.take("a") == 0
    assert limiter.take("a") > 0
    limiter.give_back("a")
    assert limiter.take("a") == 0
    monkeypatch.setattr(limits, "KEYS", 2)
    limiter.take("c")
    limiter.take("d")
    assert limiter.take("b") == 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("spoofed, x", "unknown"),
    ],
)
def test_address_keys(address: str, key: str) -> None:
    assert address_key(address) == key


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    stream = io.StringIO()
    log = Log(stream)
    log.event("test", who='a"\n{"event":"forged"}\u2028', nothing=None)
    log.flush()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert record["event"] == "test"
    assert "nothing" not in record
    assert record["ts"].endswith("Z")


BOTH = Providers(local=LocalProvider(), github=GitHubProvider(client_id="x"))
ONE = Providers(github=GitHubProvider(client_id="x"))


# covers: allow-lists
@pytest.mark.parametrize(
    ("providers", "allow", "identity", "allowed"),
    [
        (BOTH, {"users": ["ana"]}, Identity("local", "ana"), True),
        (BOTH, {"users": ["ana"]}, Identity("github", "github:ana"), False),
        (BOTH, {"users": ["github:Ana"]}, Identity("github", "github:ana"), True),
        (ONE, {"users": ["Ana"]}, Identity("github", "github:ana"), True),
        (BOTH, {"groups": ["staff"]}, Identity("github", "github:x", groups=("github:staff",)), False),
        (BOTH, {"groups": ["staff"]}, Identity("local", "x", groups=("staff",)), True),
        (BOTH, {"emails": ["A@example.com"]}, Identity("local", "x", email="a@Example.com"), True),
        (BOTH, {"emails": [""]}, Identity("local", "x"), False),
        (BOTH, {}, Identity("local", "ana"), False),
        (BOTH, {"everyone": True}, Identity("local", "ana"), True),
    ],
)
def test_allow_lists(
    providers: Providers, allow: dict[str, object], identity: Identity, allowed: bool
) -> None:
    rules = AccessRules(providers, {"s": AllowList.model_validate(allow)})
    assert rules.allows("s", identity) is allowed


async def scope_of(provider: GitHub) -> list[str]:
    return parse_qs(urlsplit(await provider.authorization_url("s", "v")).query)["scope"]


def test_organisations_are_asked_for_once_an_allow_list_names_one() -> None:
    provider = GitHub(
        GitHubProvider(client_id="x"), "secret", "https://auth.example.test/cb", httpx.AsyncClient()
    )

    assert asyncio.run(scope_of(provider)) == ["read:user user:email"]
    provider.follow(["github:other/team"])
    assert asyncio.run(scope_of(provider)) == ["read:user user:email read:org"]
    provider.follow(["okta:other/team"])
    assert asyncio.run(scope_of(provider)) == ["read:user user:email"]


def test_a_task_that_drops_a_cancellation_is_ended() -> None:
    async def run() -> None:
        dropped = 0

        async def stubborn() -> None:
            nonlocal dropped
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    if dropped == 2:
                        raise
                    dropped += 1

        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await _end([task])
        assert task.cancelled()
        assert dropped == 2

    asyncio.run(run())


# covers: limits
def test_nobody_waits_behind_more_than_a_few_whose_passwords_are_checked() -> None:
    password_hash = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("secret")
    people = LocalUsers(LocalProvider(), {"ana": LocalUser(password_hash=password_hash)})

    async def tried() -> list[Identity | BaseException | None]:
        crowd = (people.authenticate(f"stranger {number}", "guess") for number in range(100))
        answers = await asyncio.gather(*crowd, return_exceptions=True)
        return [*answers, await people.authenticate("ana", "secret")]

    *strangers, ana = asyncio.run(tried())
    assert strangers.count(None) == THREADS + WAITING
    assert sum(isinstance(answer, ProviderBusy) for answer in strangers) == 100 - THREADS - WAITING
    assert isinstance(ana, Identity)


def claims_of(**claims: object) -> Identity:
    """The person whom an OpenID provider makes of these claims."""
    settings = OpenIDProvider(issuer="https://idp.example", client_id="c")
    provider = OpenID("okta", settings, "secret", "https://auth.example/cb", httpx.AsyncClient())
    return provider.identity({"sub": "mallory", "email_verified": True, **claims})


# covers: allow-lists, provider-oidc
@pytest.mark.parametrize(
    ("near", "meant"),
    [
        ("admins ", "admins"),
        ("\u3000admins", "admins"),
        ("admins\x00", "admins"),
        ("ad\x00mins", "ad mins"),
        ("a" * 257, "a" * 256),
    ],
)
def test_what_is_nearly_a_group_or_an_address_is_none(near: str, meant: str) -> None:
    allow = AllowList(groups=frozenset({f"okta:{meant}"}), emails=frozenset({meant}))
    providers = Providers(oidc={"okta": OpenIDProvider(issuer="https://idp.example", client_id="c")})
    rules = AccessRules(providers, {"echo": allow})
    assert rules.allows("echo", claims_of(groups=["others", meant]))
    assert rules.allows("echo", claims_of(email=meant))
    assert not rules.allows("echo", claims_of(groups=["others", near], email=near))
    assert claims_of(groups=["others", near]).groups == ("okta:others",)


# covers: redirect-match
@pytest.mark.parametrize(
    ("uri", "extended"),
    [
        ("https://a.example/cb", "https://a.example/cb?code=1&iss=https%3A%2F%2Fi"),
        ("https://a.example/cb?", "https://a.example/cb?code=1&iss=https%3A%2F%2Fi"),
        (
            "https://a.example/cb?flag&a=b%20c&&d=%zz&code=0",
            "https://a.example/cb?flag&a=b%20c&&d=%zz&code=0&code=1&iss=https%3A%2F%2Fi",
        ),
        (CURSOR, f"{CURSOR}?code=1&iss=https%3A%2F%2Fi"),
    ],
)
def test_a_redirect_uris_own_query_stays_as_it_is(uri: str, extended: str) -> None:
    location = add_params_to_uri(add_params_to_uri(uri, {"code": "1"}), {"iss": "https://i"})
    assert redirects.extended(uri, location) == extended
