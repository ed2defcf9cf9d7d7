"""Consent bypass, CSRF, login CSRF, cookie tossing, session fixation, clickjacking (RFC 9700 section 4.7)."""

from __future__ import annotations

import httpx2
import pytest
from attack import Attacker, hidden
from gateway import Gateway


def begun(attacker: Attacker, client_id: str, browser: httpx2.Client) -> tuple[str, str]:
    """A sign-in begun in a browser: the address of its consent page, and its name."""
    started = browser.get(attacker.url(client_id))
    assert started.status_code == 303
    consent = started.headers["location"]
    return consent, consent.partition("flow=")[2]


def test_consent_cannot_be_skipped(attacker: Attacker, client_id: str) -> None:
    issuer = attacker.gateway.issuer
    with attacker.browser() as browser:
        _, flow = begun(attacker, client_id, browser)
        straight = browser.get(f"{issuer}/signin/local?flow={flow}")
        assert straight.headers["location"].startswith(f"{issuer}/consent")
        form = {"flow": flow, "csrf": "", "username": "ana", "password": attacker.person.password}
        assert browser.post(f"{issuer}/signin/local", data=form).status_code == 400
        assert browser.get(f"{issuer}/signin/local/callback?state={flow}.x&code=x").status_code == 400


@pytest.mark.parametrize("csrf", [None, "", "0" * 64, "é"])
def test_another_site_cannot_agree_for_the_person(
    attacker: Attacker, client_id: str, csrf: str | None
) -> None:
    with attacker.browser() as browser:
        consent, flow = begun(attacker, client_id, browser)
        form = {"flow": flow, "choice": "local", **({} if csrf is None else {"csrf": csrf})}
        forged = browser.post(f"{attacker.gateway.issuer}/consent", data=form)
        assert forged.status_code == 400
        assert browser.get(consent).status_code == 200, "the person's own sign-in goes on"


def test_a_token_of_one_sign_in_is_none_for_another(attacker: Attacker, client_id: str) -> None:
    with attacker.browser() as browser:
        first, _ = begun(attacker, client_id, browser)
        _, second = begun(attacker, client_id, browser)
        form = {**hidden(browser.get(first).text), "flow": second, "choice": "local"}
        assert browser.post(f"{attacker.gateway.issuer}/consent", data=form).status_code == 400


def test_a_sign_in_cannot_be_handed_to_another_browser(attacker: Attacker, client_id: str) -> None:
    """Otherwise the attacker begins, and the victim's agreement is theirs (or the other way round)."""
    issuer = attacker.gateway.issuer
    with attacker.browser() as mine, attacker.browser() as victims:
        consent, _ = begun(attacker, client_id, mine)
        fields = hidden(mine.get(consent).text)
        assert victims.get(consent).status_code == 400
        assert victims.post(f"{issuer}/consent", data={**fields, "choice": "local"}).status_code == 400
        agreed = mine.post(f"{issuer}/consent", data={**fields, "choice": "local"})
        assert agreed.status_code == 303
        assert victims.get(agreed.headers["location"]).status_code == 400
        # A cookie that a neighbour plants is not the one that this sign-in began with.
        name = next(cookie.name for cookie in mine.cookies.jar if cookie.name.startswith("__Host-"))
        planted = {"Cookie": f"{name}=planted"}
        assert victims.get(consent, headers=planted).status_code == 400


def test_a_planted_session_is_none(attacker: Attacker) -> None:
    with attacker.browser() as victims:
        planted = {"Cookie": "__Host-gatehouse-account=planted"}
        page = victims.get(f"{attacker.gateway.issuer}/account", headers=planted)
        assert "Sign in with" in page.text
        form = {"csrf": "x", "connection": "all"}
        for path in ("/account/disconnect", "/account/signout", "/operators/disconnect"):
            answer = victims.post(f"{attacker.gateway.issuer}{path}", data=form, headers=planted)
            assert answer.status_code == 400


def test_cookies_belong_to_this_host_and_to_https(attacker: Attacker, client_id: str) -> None:
    with attacker.browser() as browser:
        started = browser.get(attacker.url(client_id))
        (cookie,) = started.headers.get_list("set-cookie")
        assert cookie.startswith("__Host-")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
        assert "Domain" not in cookie


@pytest.mark.parametrize("path", ["/account", "/activate", "/authorize?client_id=x"])
def test_no_page_can_be_framed(gateway: Gateway, path: str) -> None:
    page = gateway.http.get(f"{gateway.issuer}{path}")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
