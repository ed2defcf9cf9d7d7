"""GitHub as identity provider: an OAuth App, asked at sign-in and, where that is wanted, again on a
schedule.

It gives no refresh token, so ours never depends on one: it is asked again with the token of the sign-in,
which does not expire. Groups are `github:<org>` and `github:<org>/<team>`, and only those that the
configuration names: what else a person belongs to is none of the gateway's business.
"""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

import httpx

from gatehouse_auth.identity.base import (
    CONTROL,
    WITHDREW,
    Identity,
    ProviderUnavailable,
    SignInDenied,
    Vouched,
    code_of,
    wait_of,
)
from gatehouse_auth.settings import GitHubProvider

PAGE = 100
PAGES = 10


class GitHub:
    """The OAuth App flow, and who the person is."""

    def __init__(
        self,
        settings: GitHubProvider,
        secret: str,
        callback: str,
        http: httpx.AsyncClient,
    ) -> None:
        self.title = settings.title
        self.replaces = False
        self.realm = f"{settings.api_url} {settings.client_id}"
        self._settings = settings
        self._secret = secret
        self._callback = callback
        self._required = frozenset(name.lower() for name in settings.orgs | settings.teams)
        self._groups = self._required
        self._http = http

    def follow(self, groups: Iterable[str]) -> None:
        """Ask for these organisations and teams as well."""
        self._groups = self._required | {
            group.removeprefix("github:") for group in groups if group.startswith("github:")
        }

    async def authorization_url(self, state: str, verifier: str) -> str:
        """GitHub's authorization endpoint with our request (RFC 6749 section 4.1.1, RFC 7636)."""
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "client_id": self._settings.client_id,
            "redirect_uri": self._callback,
            "scope": "read:user user:email read:org" if self._groups else "read:user user:email",
            "state": state,
            "code_challenge": urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        return f"{self._settings.base_url}/login/oauth/authorize?{urlencode(query)}"

    async def sign_out_url(self) -> str:
        """GitHub's own page for it."""
        return f"{self._settings.base_url}/logout"

    async def finish(self, answer: Mapping[str, str], verifier: str) -> Vouched:
        """Who GitHub says this is.

        Raises:
            SignInDenied: there is no good code, or the person is in none of the required organisations.
            ProviderUnavailable: GitHub does not answer, or not as GitHub does.
        """
        code = code_of(answer)
        try:
            token = await self._token(code, verifier)
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProviderUnavailable(type(error).__name__) from error
        return Vouched(await self._identity(token), token)

    async def again(
        self, known: Identity, credential: str, keep: Callable[[str], Awaitable[None]]
    ) -> Identity:
        """Who GitHub says this is now.

        Raises:
            SignInDenied: GitHub does not take the token any more, the person has left the required
                organisations, or has another login: the old one may become somebody else's.
            ProviderUnavailable: GitHub does not answer, or not as GitHub does.
        """
        try:
            identity = await self._identity(credential)
        except ProviderUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == 401:
                raise SignInDenied(WITHDREW) from None
            raise
        if identity.user != known.user:
            raise SignInDenied("the login has changed")
        return identity

    async def _identity(self, token: str) -> Identity:
        try:
            person = await self._get("/user", token)
            login = str(person["login"]).lower()
            groups = await self._memberships(token) if self._groups else frozenset()
            email = await self._email(token)
        except httpx.HTTPStatusError as error:
            answer = error.response
            raise ProviderUnavailable(f"status {answer.status_code}", wait_of(answer.headers)) from error
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProviderUnavailable(type(error).__name__) from error
        if self._required and self._required.isdisjoint(groups):
            raise SignInDenied("not a member of a required organisation or team")
        return Identity(
            "github",
            f"github:{login}",
            CONTROL.sub(" ", str(person.get("name") or login)),
            email,
            tuple(sorted(f"github:{group}" for group in groups)),
        )

    def current(self, identity: Identity) -> Identity | None:
        """What was true when last asked."""
        return identity

    async def _token(self, code: str, verifier: str) -> str:
        response = await self._http.post(
            f"{self._settings.base_url}/login/oauth/access_token",
            data={
                "client_id": self._settings.client_id,
                "client_secret": self._secret,
                "code": code,
                "redirect_uri": self._callback,
                "code_verifier": verifier,
            },
            headers={"Accept": "application/json"},
        )
        response.raise_for_status()
        answer = response.json()
        # GitHub answers 200 with an error for a code that is wrong, used, or late.
        if answer.get("error") == "bad_verification_code":
            raise SignInDenied("the sign-in at GitHub expired")
        return str(answer["access_token"])

    async def _get(self, path: str, token: str, page: int | None = None) -> Any:
        response = await self._http.get(
            f"{self._settings.api_url}{path}",
            params={"per_page": PAGE, "page": page} if page is not None else None,
            headers={"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"},
        )
        response.raise_for_status()
        return response.json()

    async def _all(self, path: str, token: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for page in range(1, PAGES + 1):
            entries = await self._get(path, token, page)
            found.extend(entries)
            if len(entries) < PAGE:
                break
        return found

    async def _memberships(self, token: str) -> frozenset[str]:
        orgs = {str(org["login"]).lower() for org in await self._all("/user/orgs", token)}
        teams: set[str] = set()
        if any("/" in name for name in self._groups):
            teams = {
                f"{team['organization']['login']}/{team['slug']}".lower()
                for team in await self._all("/user/teams", token)
            }
        return frozenset(orgs | teams) & self._groups

    async def _email(self, token: str) -> str:
        """The primary address, if GitHub has verified it: an unverified one must open no allow-list, and
        neither must one that had to be changed to be sent on."""
        for entry in await self._all("/user/emails", token):
            if entry.get("primary") and entry.get("verified"):
                email = str(entry["email"])
                return "" if CONTROL.search(email) else email
        return ""
