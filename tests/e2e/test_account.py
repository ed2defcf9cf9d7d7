"""The account page in a real browser: what is connected, and ending it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browserless import Person
from gateway import Gateway
from pages import CLIENT_NAME, SCHEMES, SIZES, Looks, SignIn, answer, exchanged, fill_in, opened, press_allow
from playwright.sync_api import Browser


def connect(chromium: Browser, gateway: Gateway, asked: SignIn, person: Person) -> str:
    """Connect a client; returns its access token."""
    with opened(chromium) as (_, watched):
        watched.page.goto(asked.url)
        press_allow(watched.page)
        fill_in(watched.page, person.user, person.password)
        token: str = exchanged(gateway, asked, answer(watched, asked.redirect_uri))["access_token"]
    return token


# covers: account
def test_a_person_disconnects_an_app(
    chromium: Browser, gateway: Gateway, sign_in: Callable[[], SignIn], person: Person
) -> None:
    token = connect(chromium, gateway, sign_in(), person)
    assert gateway.call(gateway.echo, "echo", token=token, text="x") == "x"
    with opened(chromium) as (context, watched):
        page = watched.page
        page.goto(f"{gateway.issuer}/account")
        page.get_by_role("link", name="Sign in with").first.click()
        fill_in(page, person.user, person.password)
        page.wait_for_url(f"{gateway.issuer}/account")
        cookies = [cookie for cookie in context.cookies() if cookie["name"] == "__Host-gatehouse-account"]
        assert [(cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [
            (True, True, "Lax")
        ]
        # The last one that asked for access stands first.
        first = page.get_by_role("listitem").first
        assert CLIENT_NAME in first.inner_text()
        assert gateway.echo in first.inner_text()
        first.get_by_role("button", name="Disconnect").click()
        page.wait_for_load_state()
        assert gateway.post(gateway.echo, "tools/list", token=token).status_code == 401
        page.get_by_role("button", name="Sign out here").click()
        assert "signed out" in page.inner_text("h1")
        page.get_by_role("link", name="Sign in again").click()
        assert page.get_by_role("link", name="Sign in with").first.is_visible()
        assert watched.problems == []


# covers: pages-accessible
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_pages_are_accessible(
    chromium: Browser,
    gateway: Gateway,
    sign_in: Callable[[], SignIn],
    person: Person,
    looks: Looks,
    scheme: str,
    size: str,
) -> None:
    connect(chromium, gateway, sign_in(), person)
    with opened(chromium, scheme, size) as (_, watched):
        page = watched.page
        page.goto(f"{gateway.issuer}/account")
        looks.at(watched, f"account-sign-in-{scheme}-{size}")
        page.get_by_role("link", name="Sign in with").first.click()
        fill_in(page, person.user, person.password)
        page.wait_for_url(f"{gateway.issuer}/account")
        looks.at(watched, f"account-{scheme}-{size}")
        page.get_by_role("link", name="Operators").click()
        page.wait_for_url(f"{gateway.issuer}/operators")
        looks.at(watched, f"operators-{scheme}-{size}")
        page.get_by_label("Person").fill(person.user)
        page.get_by_role("button", name="Show connections").click()
        page.wait_for_url(f"{gateway.issuer}/operators/person?**")
        assert gateway.echo in page.inner_text("main")
        looks.at(watched, f"operators-person-{scheme}-{size}")
        page.goto(f"{gateway.issuer}/account")
        page.get_by_role("button", name="Sign out here").click()
        looks.at(watched, f"account-signed-out-{scheme}-{size}")
