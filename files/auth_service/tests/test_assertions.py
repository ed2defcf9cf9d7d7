"""Clients that prove by a key who they are (`private_key_jwt`, RFC 7523)."""

import json
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import ECHO, ISSUER, REDIRECT, Browser, Fleet, Node, fleet_in
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from gatehouse_auth.oauth.keys import public_keys
from gatehouse_auth.store import digest, keys_name

TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
METHOD = "private_key_jwt"
KEY = ECKey.generate_key("P-256", {"kid": "one"})
OTHER = ECKey.generate_key("P-256", {"kid": "one"})
PUBLISHED = "https://client.example.test/keys.json"


def public(*keys: Key) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def rsa(modulus_bits: int, exponent_bits: int) -> dict[str, Any]:
    """A key set of somebody who has chosen the numbers."""
    numbers = (secrets.randbits(bits) | 1 << bits - 1 | 1 for bits in (modulus_bits, exponent_bits))
    n, e = (
        urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
        for number in numbers
    )
    return {"keys": [{"kty": "RSA", "n": n, "e": e}]}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with fleet_in(tmp_path_factory.mktemp("assertions")) as fleet:
        clients = {
            "nightly": {
                "client_name": "Nightly",
                "grant_types": ["client_credentials"],
                "token_endpoint_auth_method": METHOD,
                "jwks": public(KEY),
            },
            "secret": {
                "client_name": "Secret",
                "grant_types": ["client_credentials"],
                "token_endpoint_auth_method": "client_secret_basic",
            },
        }
        fleet.environment["GATEHOUSE_CLIENTS"] = json.dumps(clients)
        fleet.credentials["client_secret"] = "s" * 32
        resources = {"echo": {"resource": ECHO, "allow": {"users": ["ana"], "clients": ["nightly"]}}}
        yield fleet.start(resources=resources)


@pytest.fixture
def browser(node: Node) -> Iterator[Browser]:
    with node.browser() as client:
        yield client


def signed(client_id: str, key: Key = KEY, algorithm: str = "ES256", header: Any = (), **changes: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": ISSUER,
        "iat": now,
        "exp": now + 60,
        "jti": secrets.token_hex(8),
        **changes,
    }
    filled = {name: value for name, value in claims.items() if value is not None}
    head = {"alg": algorithm, "kid": key.get("kid"), **dict(header)}
    return jwt.encode({k: v for k, v in head.items() if v}, filled, key, algorithms=[algorithm])


def machine(browser: Browser, assertion: str, **changes: str) -> httpx.Response:
    form = {
        "grant_type": "client_credentials",
        "resource": ECHO,
        "client_assertion_type": TYPE,
        "client_assertion": assertion,
        **changes,
    }
    return browser.post("/token", data={name: value for name, value in form.items() if value})


# covers: private-key-jwt
@pytest.mark.parametrize("audience", [ISSUER, f"{ISSUER}/token", [ISSUER]])
def test_a_key_opens_what_a_secret_would(browser: Browser, node: Node, audience: Any) -> None:
    answer = machine(browser, signed("nightly", aud=audience))
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    assert node.check(token).headers["x-gatehouse-user"] == "client:nightly"
    proof = {"client_assertion_type": TYPE, "client_assertion": signed("nightly"), "client_id": "nightly"}
    assert browser.post("/introspect", data={"token": token, **proof}).json()["active"] is True
    proof["client_assertion"] = signed("nightly")
    assert browser.post("/revoke", data={"token": token, **proof}).status_code == 200
    assert node.check(token).status_code == 401


# covers: private-key-jwt
def test_an_assertion_counts_once(browser: Browser) -> None:
    assertion = signed("nightly")
    assert machine(browser, assertion).status_code == 200
    again = machine(browser, assertion)
    assert (again.status_code, again.json()["error"]) == (401, "invalid_client")


NOW = int(time.time())


# covers: private-key-jwt
@pytest.mark.parametrize(
    "assertion",
    [
        signed("nightly", OTHER),
        signed("nightly", KEY, header={"kid": "two"}),
        signed("nightly", OctKey.import_key("s" * 32), "HS256"),
        signed("nightly", OctKey.import_key(json.dumps(KEY.as_dict(private=False))), "HS256"),
        signed("nightly", RSAKey.generate_key(2048, {"kid": "one"}), "RS256"),
        signed("nightly", aud="https://evil.example"),
        signed("nightly", aud=None),
        signed("nightly", aud=f"{ISSUER}/"),
        signed("nightly", iss="another"),
        signed("nightly", exp=NOW - 3600),
        signed("nightly", exp=None),
        signed("nightly", exp=NOW + 999_999),
        signed("nightly", nbf=NOW + 3600),
        signed("nightly", jti=None),
        signed("nightly", jti=""),
        signed("nightly", jti="x" * 300),
        signed("nightly", jti=7),
        signed("secret"),
        signed("unknown"),
        "a.b.c",
        "x",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJuaWdodGx5IiwiaXNzIjoibmlnaHRseSJ9.",
        "A" * 9000,
    ],
    ids=range(23),
)
def test_what_proves_nothing(browser: Browser, assertion: str) -> None:
    answer = machine(browser, assertion)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("changes", "headers", "status"),
    [
        ({"client_id": "secret"}, {}, 400),
        ({"client_secret": "x"}, {}, 400),
        ({}, {"Authorization": "Basic bmlnaHRseTp4"}, 400),
        ({"client_assertion_type": "urn:x"}, {}, 401),
        ({"client_assertion_type": ""}, {}, 401),
        ({"client_assertion": ""}, {}, 401),
    ],
)
def test_two_ways_at_once_and_half_a_way(
    browser: Browser, changes: dict[str, str], headers: dict[str, str], status: int
) -> None:
    form = {
        "grant_type": "client_credentials",
        "resource": ECHO,
        "client_id": "nightly",
        "client_assertion_type": TYPE,
        "client_assertion": signed("nightly"),
        **changes,
    }
    answer = browser.post("/token", data={k: v for k, v in form.items() if v}, headers=headers)
    assert answer.status_code == status
    assert "access_token" not in answer.text


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ECKey.generate_key("P-384"), "ES384"),
        (RSAKey.generate_key(2048), "PS256"),
        (RSAKey.generate_key(4096), "RS256"),
        (OKPKey.generate_key("Ed25519"), "EdDSA"),
    ],
    ids=["ES384", "PS256", "RS256", "EdDSA"],
)
def test_a_client_registers_its_key(browser: Browser, key: Key, algorithm: str) -> None:
    registered = browser.register(token_endpoint_auth_method=METHOD, jwks=public(key))
    client_id = registered["client_id"]
    assert "client_secret" not in registered
    code = browser.code(client_id)
    without = browser.exchange(client_id, code)
    assert (without.status_code, without.json()["error"]) == (401, "invalid_client")

    def proof() -> dict[str, str]:
        return {"client_assertion_type": TYPE, "client_assertion": signed(client_id, key, algorithm)}

    tokens = browser.exchange(client_id, code, **proof())
    assert tokens.status_code == 200, tokens.text
    refreshed = browser.refresh(client_id, tokens.json()["refresh_token"], **proof())
    assert refreshed.status_code == 200, refreshed.text


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"jwks": {}},
        {"jwks": {"keys": []}},
        {"jwks": {"keys": [KEY.as_dict(private=True)]}},
        {"jwks": {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}},
        {"jwks": public(*[ECKey.generate_key("P-256") for _ in range(11)])},
        {"jwks": public(KEY), "jwks_uri": PUBLISHED},
        {"jwks": "x"},
        {"jwks": rsa(3072, 3071)},
        {"jwks": rsa(2048, 33)},
        {"jwks": rsa(8192, 17)},
        {"jwks": {"keys": [1] * 33}},
        {"jwks": {"keys": [rsa(2048, 17)["keys"][0] | {"d": "A" * 60_000}]}},
        {"jwks_uri": PUBLISHED},  # nothing is fetched where client documents are off
    ],
    ids=range(14),
)
def test_keys_that_cannot_be_registered(browser: Browser, metadata: dict[str, Any]) -> None:
    body = {"redirect_uris": [REDIRECT], "token_endpoint_auth_method": METHOD, **metadata}
    answer = browser.post("/register", json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client_metadata")


def test_only_what_is_public_counts_of_a_key() -> None:
    whole = RSAKey.generate_key(2048, {"kid": "one", "x5c": ["A" * 1000]}).as_dict(private=True)
    [key] = public_keys({"keys": [whole, *rsa(4096, 33)["keys"], *rsa(4200, 17)["keys"]]})
    assert not key.is_private
    assert key.as_dict().keys() == {"kty", "n", "e", "kid"}


# covers: private-key-jwt
def test_keys_that_the_client_publishes(own_fleet: Fleet) -> None:
    node = own_fleet.start(client_documents="true")
    with node.browser() as browser:
        client_id = browser.register(token_endpoint_auth_method=METHOD, jwks_uri=PUBLISHED)["client_id"]
        code = browser.code(client_id)
        proof = {"client_assertion_type": TYPE, "client_assertion": signed(client_id)}
        # The name does not exist: a fault that is not the client's, so not a 401.
        away = browser.exchange(client_id, code, **proof)
        assert away.status_code == 503
        until = time.time() + 600
        copy = {"url": PUBLISHED, "jwks": public(KEY), "fresh_until": until, "again_from": until}
        own_fleet.redis.admin.set(f"gh:document:{digest(keys_name(client_id))}", json.dumps(copy))
        assert browser.exchange(client_id, code, **proof).status_code == 200


def test_it_is_advertised(browser: Browser) -> None:
    document = browser.get("/.well-known/oauth-authorization-server").json()
    for endpoint in ("token", "revocation", "introspection"):
        assert METHOD in document[f"{endpoint}_endpoint_auth_methods_supported"]
        algorithms = document[f"{endpoint}_endpoint_auth_signing_alg_values_supported"]
        assert "ES256" in algorithms
        assert not {"none", "HS256"} & set(algorithms)
