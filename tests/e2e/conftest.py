"""End-to-end tests against a running gateway: they need one, and fail without."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from attack import Attacker  # noqa: E402
from browserless import Browser, Person  # noqa: E402
from clients.driver import JAVASCRIPT, PYTHON, McpClient  # noqa: E402
from clients.names import resolve_below  # noqa: E402
from fleet import Fleet  # noqa: E402
from gateway import Gateway  # noqa: E402
from pages import axe, chromium, looks, redirect_uri, sign_in  # noqa: E402, F401 - fixtures

CACHE = ROOT / ".cache" / "e2e"
KINDS = (*PYTHON, *JAVASCRIPT)
OPTIONS = {
    "--gateway-domain": "domain of the gateway, example.com",
    "--ca-file": "CA certificate that the clients trust, in PEM",
    "--user": "user who signs in",
    "--password-file": "file with the user's password",
    "--inventory": "Ansible inventory of the gateway's hosts; for the tests that look at hosts or change them",
    "--rollout-log": "file with the output of `ansible-playbook -vvv --diff site.yml`",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gateway")
    for name, meaning in OPTIONS.items():
        variable = "GATEHOUSE_E2E_" + name.removeprefix("--").replace("-", "_").upper()
        group.addoption(name, default=os.environ.get(variable), help=f"{meaning} (or {variable})")


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Have the browser come last: `make test` has other labs beside the first half of these tests.

    Chromium gives up its requests (ERR_NETWORK_CHANGED) whenever this machine gets another network address.
    """
    browsing = {item.module for item in items if "chromium" in item.fixturenames}
    items.sort(key=lambda item: item.module in browsing)


@pytest.fixture(scope="session")
def setting(pytestconfig: pytest.Config) -> Callable[[str], str]:
    def get(name: str) -> str:
        value: str | None = pytestconfig.getoption(name)
        if not value:
            pytest.fail(f"This test needs {name}: {OPTIONS[name]}.", pytrace=False)
        return value

    return get


@pytest.fixture(scope="session")
def ca_file(setting: Callable[[str], str]) -> Path:
    path = Path(setting("--ca-file")).absolute()
    if not path.is_file():
        pytest.fail(f"--ca-file: {path} is not there.", pytrace=False)
    return path


@pytest.fixture(scope="session")
def trust(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


@pytest.fixture(scope="session")
def person(setting: Callable[[str], str]) -> Person:
    return Person(setting("--user"), Path(setting("--password-file")).read_text().strip())


@pytest.fixture(scope="session")
def gateway(setting: Callable[[str], str], trust: ssl.SSLContext) -> Iterator[Gateway]:
    resolve_below(setting("--gateway-domain"))
    with Gateway(setting("--gateway-domain"), trust) as gateway:
        problem = gateway.problem()
        if problem:
            pytest.fail(problem, pytrace=False)
        yield gateway


@pytest.fixture(scope="session")
def fleet(setting: Callable[[str], str]) -> Fleet:
    return Fleet(ROOT, Path(setting("--inventory")))


@dataclass
class ClientFactory:
    """Starts other teams' clients; whoever starts one ends it."""

    person: Person
    domain: str
    ca_file: Path
    trust: ssl.SSLContext

    def start(self, kind: str) -> McpClient:
        def authorize(url: str, agree: bool) -> str:
            (target,) = parse_qs(urlsplit(url).query)["redirect_uri"]
            with Browser(self.person, self.trust) as browser:
                return browser.authorize(url, target, agree=agree)

        return McpClient(kind, CACHE, self.domain, self.ca_file, authorize)


@pytest.fixture(scope="session")
def clients(person: Person, ca_file: Path, trust: ssl.SSLContext, gateway: Gateway) -> ClientFactory:
    CACHE.mkdir(parents=True, exist_ok=True)
    return ClientFactory(person, gateway.domain, ca_file, trust)


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, clients: ClientFactory) -> Iterator[McpClient]:
    """Each of the clients in turn, signed in to both services by the first tests that ask them something."""
    with clients.start(request.param) as started:
        yield started


@pytest.fixture
def fresh_client(clients: ClientFactory) -> Iterator[McpClient]:
    """A client whose tokens no other test uses."""
    with clients.start("python-2") as started:
        yield started


@pytest.fixture(scope="module")
def echo_token(clients: ClientFactory, gateway: Gateway) -> Iterator[str]:
    """An access token for echo, of a client that does nothing else."""
    with clients.start("python-2") as started:
        started.tools(gateway.echo)
        yield started.credentials(gateway.echo)["access_token"]


# For the attacks in `abuse`.


@pytest.fixture(scope="module")
def attacker(gateway: Gateway, trust: ssl.SSLContext, person: Person) -> Attacker:
    return Attacker(gateway, trust, person)


@pytest.fixture(scope="module")
def client_id(attacker: Attacker) -> str:
    registered: str = attacker.register()["client_id"]
    return registered


@pytest.fixture(scope="module")
def tokens(attacker: Attacker, client_id: str) -> dict[str, Any]:
    """Tokens of the person's, for echo."""
    return attacker.tokens(client_id)
