"""Consent and sign-in in a real browser. Pictures of each page are left in `.cache/screenshots`."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from browserless import Person
from gateway import Gateway
from pages import (
    CLIENT_NAME,
    SCHEMES,
    SIZES,
    Looks,
    SignIn,
    Watched,
    answer,
    exchanged,
    fill_in,
    opened,
    press_allow,
)
from playwright.sync_api import Browser


# covers: consent
def test_sign_in_from_the_first_page_to_a_tool(
    chromium: Browser, gateway: Gateway, sign_in: Callable[[], SignIn], person: Person
) -> None:
    asked = sign_in()
    with opened(chromium) as (context, watched):
        page = watched.page
        page.goto(asked.url)
        text = page.inner_text("main")
        assert CLIENT_NAME in text, "the client's name, as text"
        assert urlsplit(asked.redirect_uri).netloc in text, "where the person will be sent"
        assert "Echo" in text
        assert gateway.echo in text
        assert "mcp" in page.locator("main li").all_inner_texts()
        cookies = context.cookies()
        assert cookies
        for cookie in cookies:
            assert cookie["name"].startswith("__Host-")
            assert cookie["secure"] and cookie["httpOnly"]
            assert cookie["sameSite"] == "Lax"
        press_allow(page)
        fill_in(page, person.user, person.password)
        back = answer(watched, asked.redirect_uri)
        assert watched.problems == []
    assert back["state"] == asked.state
    assert back["iss"] == gateway.issuer
    tokens = exchanged(gateway, asked, back)
    identity = json.loads(gateway.call(gateway.echo, "whoami", token=tokens["access_token"]))
    assert identity["user"] == person.user


def test_saying_no_goes_back_to_the_client(
    chromium: Browser, gateway: Gateway, sign_in: Callable[[], SignIn]
) -> None:
    asked = sign_in()
    with opened(chromium) as (_, watched):
        watched.page.goto(asked.url)
        watched.page.get_by_role("button", name="Cancel").click()
        back = answer(watched, asked.redirect_uri)
        assert watched.problems == []
    assert back["error"] == "access_denied"
    assert back["state"] == asked.state
    assert back["iss"] == gateway.issuer
    assert "code" not in back


def test_wrong_password_can_be_corrected(
    chromium: Browser, sign_in: Callable[[], SignIn], person: Person
) -> None:
    asked = sign_in()
    with opened(chromium) as (_, watched):
        page = watched.page
        page.goto(asked.url)
        press_allow(page)
        fill_in(page, person.user, "not the password")
        assert "wrong" in page.get_by_role("alert").inner_text()
        assert page.get_by_label("User name").input_value() == person.user
        assert page.get_by_label("Password").input_value() == ""
        fill_in(page, person.user, person.password)
        assert "code" in answer(watched, asked.redirect_uri)
        assert watched.problems == []


# covers: consent-bound
def test_reload_and_a_second_tab_do_no_harm(
    chromium: Browser, sign_in: Callable[[], SignIn], person: Person
) -> None:
    first, second = sign_in(), sign_in()
    with opened(chromium) as (context, watched):
        page = watched.page
        page.goto(first.url)
        page.reload()
        other = context.new_page()
        other.goto(second.url)
        for tab, asked in ((page, first), (other, second)):
            press_allow(tab)
            fill_in(tab, person.user, person.password)
            assert answer(Watched(tab), asked.redirect_uri)["state"] == asked.state


# covers: consent-bound
def test_sign_in_belongs_to_one_browser(chromium: Browser, sign_in: Callable[[], SignIn]) -> None:
    """A link to somebody else's consent page is worth nothing."""
    with opened(chromium) as (_, watched):
        watched.page.goto(sign_in().url)
        theirs = watched.page.url
    with opened(chromium) as (_, watched):
        response = watched.page.goto(theirs)
        assert response is not None
        assert response.status == 400
        assert watched.page.get_by_role("button").count() == 0


# covers: pages-accessible
def test_keyboard_alone_is_enough(chromium: Browser, sign_in: Callable[[], SignIn], person: Person) -> None:
    asked = sign_in()
    with opened(chromium) as (_, watched):
        page = watched.page
        page.goto(asked.url)
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText").startswith("Allow"):
                break
        with page.expect_navigation(url="**/signin/**"):
            page.keyboard.press("Enter")
        # The first field gets the focus by itself, a moment after the page is there.
        page.locator("input:focus").wait_for()
        page.keyboard.type(person.user)
        page.keyboard.press("Tab")
        page.keyboard.type(person.password)
        page.keyboard.press("Enter")
        assert "code" in answer(watched, asked.redirect_uri)


# covers: pages-safe
def test_pages_cannot_be_framed_and_run_no_script(gateway: Gateway, sign_in: Callable[[], SignIn]) -> None:
    response = gateway.http.get(sign_in().url, follow_redirects=True)
    policy = response.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "<script" not in response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] in ("no-referrer", "same-origin")


# covers: pages-accessible
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_page_is_accessible(
    chromium: Browser, sign_in: Callable[[], SignIn], person: Person, looks: Looks, scheme: str, size: str
) -> None:
    asked = sign_in()
    with opened(chromium, scheme, size) as (_, watched):
        page = watched.page
        page.goto(asked.url)
        looks.at(watched, f"consent-{scheme}-{size}")
        press_allow(page)
        looks.at(watched, f"sign-in-{scheme}-{size}")
        # A name of its own: attempts are counted.
        fill_in(page, f"nobody-{scheme}-{size}", "not the password")
        looks.at(watched, f"sign-in-wrong-{scheme}-{size}")
        fill_in(page, person.user, person.password)
        answer(watched, asked.redirect_uri)
        page.goto(asked.url.replace(asked.client_id, "unknown"))
        looks.at(watched, f"unknown-client-{scheme}-{size}")
