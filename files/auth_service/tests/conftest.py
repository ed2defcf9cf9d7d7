"""A real Redis with the ACL that the README names, the real service in processes of its own, and a client
that reaches it under its public name."""

import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from argon2 import PasswordHasher
from hypothesis import settings
from joserfc.jwk import ECKey
from openid_stand_in import CLIENT_ID, CLIENT_SECRET, OpenIDStandIn
from redis import Redis

ISSUER = "https://auth.example.test"
ECHO = "https://echo.example.test/mcp"
FILES = "https://files.example.test/mcp"
REDIRECT = "https://client.example.test/callback"
PASSWORD = "correct horse battery staple"
RESOURCES: dict[str, Any] = {
    "echo": {
        "resource": ECHO,
        "title": "Echo <service>",
        "allow": {"users": ["ana", "zoë"], "groups": ["staff"]},
        "origins": ["https://app.example.test"],
    },
    "files": {"resource": FILES, "scopes": ["files:read"]},
}
# The same examples in every run of `make test`; `make fuzz` looks for new ones.
settings.register_profile("test", derandomize=True, database=None, deadline=None)
settings.register_profile("fuzz", max_examples=2000, database=None, deadline=None)
settings.load_profile("test")
README = Path(__file__).parent.parent / "README.md"


def named(case: object) -> str:
    """A case's name, the same in every process."""
    return re.sub(r" object at 0x[0-9a-f]+", "", str(case))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


@dataclass
class RedisServer:
    """A redis-server process, which tests may stop, pause, and start again."""

    folder: Path
    port: int
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    process: subprocess.Popen[bytes] | None = None
    configuration: str = ""

    @property
    def url(self) -> str:
        return f"redis://auth@127.0.0.1:{self.port}/0"

    @property
    def admin(self) -> "Redis":
        return Redis(port=self.port, username="admin", password=self.password, decode_responses=True)

    def start(self) -> None:
        rule = re.search(r"^user auth on .*$", README.read_text("utf-8"), re.MULTILINE)
        assert rule is not None
        acl = self.folder / "users.acl"
        acl.write_text(
            "user default off ~* &* +@all\n"
            f"user admin on >{self.password} ~* &* +@all\n"
            f"{rule[0].replace('<password>', self.password)}\n"
        )
        more = self.folder / "redis.conf"
        more.write_text(self.configuration)
        self.process = subprocess.Popen(
            [
                "/usr/bin/redis-server", str(more), "--port", str(self.port), "--bind", "127.0.0.1",
                "--dir", str(self.folder), "--aclfile", str(acl),
                "--appendonly", "yes", "--appendfsync", "always", "--save", "",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.admin.ping())
        except Exception:
            return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(30)


@dataclass
class Node:
    """One auth service process."""

    port: int
    process: subprocess.Popen[str]
    log: Path
    resources: Path
    http: httpx.Client = field(
        default_factory=lambda: httpx.Client(verify=False, trust_env=False, timeout=30)
    )

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def check(self, token: str | None, service: str = "echo", **headers: str) -> httpx.Response:
        """Ask what Traefik asks."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.http.get(f"{self.base}/internal/check/{service}", headers=headers)

    def records(self, event: str) -> list[dict[str, Any]]:
        time.sleep(0.1)
        whole, _, _ = self.log.read_text().rpartition("\n")  # the last line may be half written
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["event"] == event]

    def reload(self, resources: str) -> None:
        """What `systemctl reload` does after the file has changed; the check of the file comes before it."""
        done = len(self.records("reloaded") + self.records("reload_refused"))
        self.resources.write_text(resources)
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(self.records("reloaded") + self.records("reload_refused")) > done)

    def browser(self) -> "Browser":
        return Browser(self)


class Front(httpx.BaseTransport):
    """Carries requests for the issuer to the process, as Traefik would; so cookies see HTTPS."""

    def __init__(self, node: Node, address: str) -> None:
        self._node = node
        self._address = address
        self._inner = httpx.HTTPTransport(verify=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host == urlsplit(ISSUER).hostname, "left the service"
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"x-forwarded-for"]
        headers.append((b"X-Forwarded-For", self._address.encode()))
        url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._node.port)
        return self._inner.handle_request(
            httpx.Request(request.method, url, headers=headers, content=request.read())
        )


@dataclass
class Tokens:
    access: str
    refresh: str
    body: dict[str, Any]


class Browser(httpx.Client):
    """A person's browser and their MCP client in one."""

    def __init__(self, node: Node, address: str = "203.0.113.7") -> None:
        super().__init__(transport=Front(node, address), base_url=ISSUER, timeout=20, trust_env=False)
        self.node = node
        self.verifier = secrets.token_urlsafe(48)

    @property
    def challenge(self) -> str:
        return urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()

    def register(self, *redirects: str, **metadata: Any) -> dict[str, Any]:
        body = {
            "client_name": "Test client",
            "redirect_uris": list(redirects or (REDIRECT,)),
            "token_endpoint_auth_method": "none",
            **metadata,
        }
        response = self.post("/register", json=body)
        assert response.status_code == 201, response.text
        registered: dict[str, Any] = response.json()
        return registered

    def authorize(self, client_id: str, **changes: str | None) -> httpx.Response:
        query = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": REDIRECT,
            "scope": "mcp",
            "state": "st-1",
            "resource": ECHO,
            "code_challenge": self.challenge,
            "code_challenge_method": "S256",
            **changes,
        }
        return self.get(
            "/authorize", params={name: value for name, value in query.items() if value is not None}
        )

    def fields(self, page: httpx.Response) -> dict[str, str]:
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))

    def consent(self, started: httpx.Response, choice: str = "local") -> httpx.Response:
        assert started.status_code == 303, started.text
        page = self.get(started.headers["location"])
        assert page.status_code == 200, page.text
        return self.post("/consent", data={**self.fields(page), "choice": choice})

    def sign_in(
        self, consented: httpx.Response, user: str = "ana", password: str = PASSWORD
    ) -> httpx.Response:
        assert consented.status_code == 303, consented.text
        page = self.get(consented.headers["location"])
        assert page.status_code == 200, page.text
        return self.post("/signin/local", data={**self.fields(page), "username": user, "password": password})

    def code(self, client_id: str, user: str = "ana", **changes: str | None) -> str:
        answer = answer_of(self.sign_in(self.consent(self.authorize(client_id, **changes)), user))
        assert answer["iss"] == ISSUER
        return answer["code"]

    def exchange(self, client_id: str, code: str, /, **changes: str) -> httpx.Response:
        form = {
            "grant_type": "authorization_code",
            "client_id": client_id,
            "code": code,
            "redirect_uri": REDIRECT,
            "code_verifier": self.verifier,
            **changes,
        }
        return self.post("/token", data={name: value for name, value in form.items() if value != ""})

    def tokens(self, client_id: str, user: str = "ana", **changes: str | None) -> Tokens:
        response = self.exchange(
            client_id,
            self.code(client_id, user, **changes),
            redirect_uri=changes.get("redirect_uri") or REDIRECT,
        )
        assert response.status_code == 200, response.text
        return tokens_of(response)

    def refresh(self, client_id: str, refresh_token: str, **changes: str) -> httpx.Response:
        form = {
            "grant_type": "refresh_token",
            "client_id": client_id,
            "refresh_token": refresh_token,
            **changes,
        }
        return self.post("/token", data=form)


def tokens_of(response: httpx.Response) -> Tokens:
    body = response.json()
    return Tokens(body["access_token"], body["refresh_token"], body)


def answer_of(response: httpx.Response) -> dict[str, str]:
    """The parameters of an authorization response."""
    assert response.status_code in (302, 303), response.text
    query = parse_qs(urlsplit(response.headers["location"]).query)
    assert all(len(values) == 1 for values in query.values())
    return {name: values[0] for name, values in query.items()}


@dataclass
class Fleet:
    """Starts auth service processes that share one Redis and one set of secrets."""

    folder: Path
    redis: RedisServer
    stack: ExitStack
    environment: dict[str, str] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)

    def start(
        self,
        resources: dict[str, Any] = RESOURCES,
        *,
        port: int | None = None,
        program: tuple[str, ...] = ("-m", "gatehouse_auth"),
        **environment: Any,
    ) -> Node:
        credentials = self.folder / f"credentials-{secrets.token_hex(4)}"
        credentials.mkdir()
        for name, value in self.credentials.items():
            (credentials / name).write_text(value)
        port = port or free_port()
        overrides = {
            f"GATEHOUSE_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in environment.items()
        }
        log = self.folder / f"{port}.log"
        protected = self.folder / f"{port}.json"
        protected.write_text(json.dumps(resources))
        process = subprocess.Popen(
            [sys.executable, *program],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(sys.path),
                "CREDENTIALS_DIRECTORY": str(credentials),
                "GATEHOUSE_LISTEN": f"127.0.0.1:{port}",
                "GATEHOUSE_REDIS_URL": self.redis.url,
                **self.environment,
                "GATEHOUSE_RESOURCES": str(protected),
                **overrides,
            },
            stdout=self.stack.enter_context(log.open("w")),
            text=True,
        )
        self.stack.callback(end, process)
        node = Node(port, process, log, protected)
        wait_for(lambda: reachable(node))
        return node


def reachable(node: Node, client: httpx.Client | None = None) -> bool:
    assert node.process.poll() is None, "the service ended"
    try:
        (client or node.http).get(f"{ISSUER if client else node.base}/health")
    except httpx.TransportError:
        return False
    return True


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def keyring(*states: str) -> str:
    keys = []
    for number, state in enumerate(states):
        jwk = ECKey.generate_key("P-256").as_dict(private=True)
        keys.append(
            {"kid": f"key-{number}", "state": state, "created": 1790000000, "retire_after": None, "jwk": jwk}
        )
    return json.dumps({"keys": keys})


HASHER = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1)


def user(name: str, email: str, *groups: str) -> dict[str, Any]:
    return {"password_hash": HASHER.hash(PASSWORD), "name": name, "email": email, "groups": groups}


@contextmanager
def fleet_in(folder: Path, redis: RedisServer | None = None) -> Iterator[Fleet]:
    with ExitStack() as stack:
        redis = redis or RedisServer(folder, free_port())
        redis.start()
        stack.callback(redis.stop)
        resources = folder / "resources.json"
        resources.write_text(json.dumps(RESOURCES))
        yield Fleet(
            folder,
            redis,
            stack,
            {
                "GATEHOUSE_ISSUER": ISSUER,
                "GATEHOUSE_RESOURCES": str(resources),
                "GATEHOUSE_ALLOW": json.dumps({"users": ["ana"]}),
                "GATEHOUSE_PROVIDERS": json.dumps({"local": {"title": "Lab users"}}),
                "GATEHOUSE_CLIENTS": json.dumps(
                    {
                        "machine": {
                            "client_name": "Machine",
                            "redirect_uris": [REDIRECT],
                            "token_endpoint_auth_method": "client_secret_basic",
                        }
                    }
                ),
            },
            {
                "keyring.json": keyring("current", "next"),
                "redis_password": redis.password,
                "recheck_key": secrets.token_urlsafe(32),
                "client_machine": "machine-secret",
                "users.json": json.dumps(
                    {
                        "ana": user("Ána\nX-Evil: 1, “Q”", "ana@example.com", "staff", "a,b"),
                        "bob": user("Bob", "bob@example.com"),
                    }
                ),
            },
        )


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet that tests share which break nothing."""
    with fleet_in(tmp_path_factory.mktemp("fleet")) as shared:
        yield shared


@pytest.fixture(scope="session")
def node(fleet: Fleet) -> Node:
    return fleet.start()


@pytest.fixture
def own_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet of one's own, to break."""
    with fleet_in(tmp_path) as own:
        yield own


@pytest.fixture
def own_upstream() -> Iterator[OpenIDStandIn]:
    """An OpenID provider of one's own, to break."""
    upstream = OpenIDStandIn()
    yield upstream
    upstream.close()


def start_with_openid(fleet: Fleet, upstream: OpenIDStandIn, **provider: Any) -> Node:
    """A service at which people sign in through this provider alone."""
    fleet.credentials["oidc_okta_client_secret"] = CLIENT_SECRET
    okta = {"issuer": upstream.issuer, "client_id": CLIENT_ID, **provider}
    allow = {"users": ["ana"], "groups": ["Staff"]}
    return fleet.start(
        {"echo": {"resource": ECHO, "allow": allow}}, providers={"oidc": {"okta": okta}}, allow={}
    )


@pytest.fixture
def browser(node: Node) -> Iterator[Browser]:
    # An address of its own, so that limits of one test do not reach another.
    with Browser(node, f"198.51.100.{secrets.randbelow(250)}") as client:
        yield client


@pytest.fixture
def client_id(browser: Browser) -> str:
    registered: str = browser.register()["client_id"]
    return registered
