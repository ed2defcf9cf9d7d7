"""A terminal without a browser: it shows a code, a person enters it in theirs."""

from __future__ import annotations

import time

import pytest
from browserless import Person
from gateway import Gateway
from pages import SCHEMES, Looks, fill_in, opened, press_allow
from playwright.sync_api import Browser

GRANT = "urn:ietf:params:oauth:grant-type:device_code"


# covers: device, pages-accessible
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_terminal_is_let_in(
    chromium: Browser, gateway: Gateway, person: Person, looks: Looks, scheme: str
) -> None:
    metadata = gateway.http.get(f"{gateway.issuer}/.well-known/oauth-authorization-server").json()
    assert GRANT in metadata["grant_types_supported"]
    registered = gateway.http.post(
        metadata["registration_endpoint"],
        json={"client_name": "Terminal", "token_endpoint_auth_method": "none", "grant_types": [GRANT]},
    )
    client_id = registered.json()["client_id"]
    started = gateway.http.post(
        metadata["device_authorization_endpoint"], data={"client_id": client_id, "resource": gateway.echo}
    ).json()
    with opened(chromium, scheme, "phone") as (_, watched):
        page = watched.page
        page.goto(started["verification_uri"])
        looks.at(watched, f"activate-{scheme}-phone")
        page.get_by_label("Code").fill("XXXX-XXXX")
        page.get_by_role("button", name="Continue").click()
        assert "no such code" in page.get_by_role("alert").inner_text()
        looks.at(watched, f"activate-wrong-{scheme}-phone")
        page.get_by_label("Code").fill(started["user_code"].lower())
        page.get_by_role("button", name="Continue").click()
        assert started["user_code"] in page.inner_text("main")
        looks.at(watched, f"activate-consent-{scheme}-phone")
        press_allow(page)
        fill_in(page, person.user, person.password)
        assert "is connected" in page.get_by_role("status").inner_text()
        looks.at(watched, f"activate-done-{scheme}-phone")
    form = {"grant_type": GRANT, "client_id": client_id, "device_code": started["device_code"]}
    deadline = time.monotonic() + 30
    while (polled := gateway.http.post(metadata["token_endpoint"], data=form)).status_code != 200:
        assert polled.json()["error"] in ("authorization_pending", "slow_down")
        assert time.monotonic() < deadline
        time.sleep(started["interval"])
    assert gateway.call(gateway.echo, "echo", token=polled.json()["access_token"], text="hello") == "hello"
