"""Signing in through a certified OpenID provider that runs beside the gateway, chosen among several."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from clients.driver import ClientError, environment, node_modules
from conftest import CACHE, ClientFactory
from fleet import Fleet
from gateway import Gateway
from pages import Looks, SignIn, answer, exchanged, opened, press_allow
from playwright.sync_api import Browser

PORT = 18443
NAME = "example"
PEOPLE: dict[str, dict[str, Any]] = {
    "Ana|1": {
        "name": "Ana",
        "email": "ana@example.com",
        "email_verified": True,
        "groups": ["staff", "chess", "books"],
    },
    "mallory": {"name": "Ana", "email": "ana@example.com", "email_verified": False, "groups": ["visitors"]},
}
TRUSTED = "/usr/local/share/ca-certificates/gatehouse-e2e-openid.crt"


@dataclass
class OpenID:
    """The provider: how the inventory names it, and its process."""

    variables: dict[str, Any]
    setting: dict[str, Any]
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; returns once it answers."""
        self.process = subprocess.Popen(
            [environment("node.lock", CACHE) / "node", node_modules(CACHE) / "openid_provider.mjs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "NODE_ENV": "test"},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(self.setting) + "\n")
        self.process.stdin.flush()
        assert any(line.strip() == "ready" for line in self.process.stdout)

    def stop(self) -> None:
        """Stop it, as an outage does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def openid(gateway: Gateway, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenID]:
    """A provider that the fleet signs people in at; the fleet is as the inventory says afterwards."""
    folder = tmp_path_factory.mktemp("openid")
    # The edge's way out leads to the machine that this runs on.
    address = fleet.hosts("gateway_edge")[0].check_output("ip -4 route show default").split()[2]
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=Gatehouse test", "-addext", f"subjectAltName=IP:{address}",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    for host in fleet.hosts("gateway_edge"):
        host.check_output(f"cat > {TRUSTED} <<'END'\n{certificate.read_text()}END\nupdate-ca-certificates")
    issuer, secret = f"https://{address}:{PORT}", secrets.token_urlsafe(32)
    client = {"client_id": "gatehouse", "client_secret": secret}
    provider = OpenID(
        {
            "gatehouse_providers": {
                "local": {},
                "oidc": {NAME: {"title": "Example Inc.", "issuer": issuer, "client_id": "gatehouse"}},
            },
            "gatehouse_oidc_client_secrets": {NAME: secret},
            "gatehouse_client_documents": True,
            "gatehouse_allow": {"groups": ["staff", f"{NAME}:staff"]},
            "gatehouse_mcp_services_group": {
                "echo": {"tools": {"deny": ["head*"], "groups": {f"{NAME}:chess": ["headers"]}}},
                "time": {"tools": {"deny": ["convert_time"]}},
            },
        },
        {
            "issuer": issuer,
            "key": key.read_text(),
            "certificate": certificate.read_text(),
            "client": {**client, "redirect_uris": [f"{gateway.issuer}/signin/{NAME}/callback"]},
            "people": PEOPLE,
        },
    )
    provider.start()
    try:
        played = fleet.play("site.yml", provider.variables, "-vvv", "--diff")
        assert played.status == 0, played.output[-3000:]
        assert secret not in played.output
        yield provider
    finally:
        provider.stop()
        for host in fleet.hosts("gateway_edge"):
            host.check_output(f"rm -f {TRUSTED} && update-ca-certificates --fresh")
        assert fleet.play("site.yml").status == 0


def at_provider(page: Any, person: str) -> None:
    """Sign in and agree on the provider's own pages."""
    page.get_by_placeholder("Enter any login").fill(person)
    page.get_by_placeholder("and password").fill("whatever")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()


# covers: provider-oidc, provider-lies
def test_a_person_chooses_the_provider_and_calls_a_tool(
    chromium: Browser, gateway: Gateway, openid: OpenID, sign_in: Callable[[], SignIn], looks: Looks
) -> None:
    asked = sign_in()
    with opened(chromium, ignore_https_errors=True) as (_, watched):
        page = watched.page
        page.goto(asked.url)
        assert page.get_by_role("button", name="Allow").count() == 2
        looks.at(watched, "consent-several-providers")
        press_allow(page, "Example Inc.")
        at_provider(page, "Ana|1")
        back = answer(watched, asked.redirect_uri)
        # The provider's own pages want a font from elsewhere, which is not there.
        ours = [problem for problem in watched.problems if "CSP" in problem or gateway.issuer in problem]
        assert ours == [], "no policy is broken on the way there and back"
    assert (back["iss"], back["state"]) == (gateway.issuer, asked.state)
    tokens = exchanged(gateway, asked, back)
    identity = json.loads(gateway.call(gateway.echo, "whoami", token=tokens["access_token"]))
    assert identity["user"] == f"{NAME}:Ana|1"
    assert identity["email"] == "ana@example.com"
    groups = [f"{NAME}:chess", f"{NAME}:staff"]
    assert identity["groups"] == groups, "of her groups, those that the inventory names"
    listed = gateway.post(gateway.echo, "tools/list", token=tokens["access_token"]).json()["result"]["tools"]
    assert {tool["name"] for tool in listed} >= {"echo", "headers", "whoami"}

    # While the provider is down, whoever is signed in stays so; and somebody new is told what is wrong.
    openid.stop()
    refreshed = gateway.http.post(
        f"{gateway.issuer}/token",
        data={"grant_type": "refresh_token", "client_id": asked.client_id, "refresh_token": tokens["refresh_token"]},
    )  # fmt: skip
    assert refreshed.status_code == 200, refreshed.text
    token = refreshed.json()["access_token"]
    assert gateway.call(gateway.echo, "echo", token=token, text="still here") == "still here"
    asked = sign_in()
    with opened(chromium, ignore_https_errors=True) as (_, watched):
        watched.page.goto(asked.url)
        press_allow(watched.page, "Local account")
        assert watched.page.get_by_label("Password").is_visible(), "the other way in is open"
    openid.start()


# covers: provider-oidc
def test_somebody_else_there_stays_out(
    chromium: Browser, gateway: Gateway, openid: OpenID, sign_in: Callable[[], SignIn]
) -> None:
    asked = sign_in()
    with opened(chromium, ignore_https_errors=True) as (_, watched):
        watched.page.goto(asked.url)
        press_allow(watched.page, "Example Inc.")
        at_provider(watched.page, "mallory")
        back = answer(watched, asked.redirect_uri)
    assert back["error"] == "access_denied"


# covers: tool-rules
@pytest.mark.parametrize(("service", "denied"), [("echo", "headers"), ("time", "convert_time")])
def test_whoever_lacks_a_tool_neither_sees_nor_calls_it(
    clients: ClientFactory, gateway: Gateway, openid: OpenID, service: str, denied: str
) -> None:
    """Natively and behind the bridge, for a client of another team; Ana of the inventory plays no chess."""
    url = getattr(gateway, service)
    with clients.start("python-2") as client:
        listed = client.tools(url)
        assert listed
        assert denied not in listed
        with pytest.raises(ClientError, match="Unknown tool"):
            client.call(url, denied)


INSIDE = [
    "127.0.0.1",
    "localhost",
    "0x7f.1",
    "2130706433",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "10.0.0.1",
    "169.254.169.254",
    "auth.{domain}",
    "{domain}",
]


# covers: cimd-ssrf
@pytest.mark.parametrize("host", INSIDE)
def test_no_client_document_is_fetched_from_inside(gateway: Gateway, openid: OpenID, host: str) -> None:
    metadata = gateway.http.get(f"{gateway.issuer}/.well-known/oauth-authorization-server").json()
    assert metadata["client_id_metadata_document_supported"] is True
    query = {
        "client_id": f"https://{host.format(domain=gateway.domain)}/client.json",
        "response_type": "code",
    }
    page = gateway.http.get(f"{gateway.issuer}/authorize", params=query)
    assert page.status_code in (400, 503)
    assert "not known here" in page.text or "cannot be fetched" in page.text


def test_the_secret_is_nowhere_to_be_seen(fleet: Fleet, openid: OpenID) -> None:
    secret = openid.variables["gatehouse_oidc_client_secrets"][NAME]
    for host in fleet.hosts("gateway_edge"):
        shown = host.check_output(
            "journalctl --no-pager --output cat; systemctl show 'gatehouse-auth@*'; cat /etc/gatehouse/auth/.env;"
            " cat /proc/$(systemctl show --property MainPID --value 'gatehouse-auth@*' | sort -n | tail -n 1)/environ"
        )
        assert secret not in shown
