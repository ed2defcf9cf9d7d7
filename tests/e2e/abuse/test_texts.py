"""Script in every value that a page shows, and lines of one's own in the log."""

from __future__ import annotations

import json

import pytest
from attack import Attacker, hidden
from fleet import Fleet

SCRIPT = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
LINES = '"}\n{"level":"info","event":"access","outcome":"allow","user":"root"}\r\n\x1b[31m'


def plain(page: str) -> bool:
    return "<script" not in page and "<img" not in page and "onerror=alert(1)>" not in page


def test_names_are_shown_as_text(attacker: Attacker) -> None:
    client_id = attacker.register(client_name=SCRIPT, client_uri="https://x.example/")["client_id"]
    with attacker.browser() as browser:
        started = browser.get(attacker.url(client_id, state=SCRIPT))
        page = browser.get(started.headers["location"])
        assert page.status_code == 200
        assert plain(page.text)
        agreed = browser.post(
            f"{attacker.gateway.issuer}/consent", data={**hidden(page.text), "choice": "local"}
        )
        form = hidden(browser.get(agreed.headers["location"]).text)
        wrong = browser.post(
            f"{attacker.gateway.issuer}/signin/local", data={**form, "username": SCRIPT, "password": SCRIPT}
        )
        assert wrong.status_code == 401
        assert plain(wrong.text)


@pytest.mark.parametrize(
    "path",
    [
        "/authorize?client_id={}",
        "/authorize?client_id={}&redirect_uri={}&state={}",
        "/consent?flow={}",
        "/signin/{}",
        "/signin/local?flow={}",
        "/signin/local/callback?state={}&error={}&error_description={}",
        "/activate?user_code={}",
        "/account/{}",
        "/{}",
    ],
)
def test_nothing_in_an_address_becomes_markup(attacker: Attacker, path: str) -> None:
    page = attacker.gateway.http.get(f"{attacker.gateway.issuer}{path.replace('{}', SCRIPT)}")
    assert page.status_code < 500
    assert plain(page.text)
    if page.headers.get("content-type", "").startswith("text/html"):
        assert "default-src 'none'" in page.headers["content-security-policy"]
    else:
        assert page.headers.get("content-type", "").startswith(("application/json", "text/plain"))


def test_nobody_writes_a_line_into_the_log(attacker: Attacker, fleet: Fleet) -> None:
    gateway = attacker.gateway
    client_id = attacker.register(client_name=LINES)["client_id"]
    with attacker.browser() as browser:
        page = browser.get(browser.get(attacker.url(client_id)).headers["location"])
        agreed = browser.post(f"{gateway.issuer}/consent", data={**hidden(page.text), "choice": "local"})
        form = hidden(browser.get(agreed.headers["location"]).text)
        browser.post(f"{gateway.issuer}/signin/local", data={**form, "username": LINES, "password": "x"})
    gateway.http.get(f"{gateway.issuer}/authorize", params={"client_id": LINES})
    attacker.exchange(LINES, LINES)
    gateway.post(gateway.echo, "tools/list", token="x", headers=[("X-Request-Id", 'a"},{"user":"root"')])
    for host in fleet.hosts("gateway_edge"):
        said = host.check_output(
            "journalctl --unit 'gatehouse-auth@*' --since '-2min' --no-pager --output cat"
        )
        records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert records
        assert not [record for record in records if record.get("user") == "root"]
        assert "\x1b" not in said
