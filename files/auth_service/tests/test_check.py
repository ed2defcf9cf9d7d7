"""The ForwardAuth check."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from typing import Any

import httpx
import pytest
from conftest import ECHO, ISSUER, Browser, Fleet, Node
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from gatehouse_auth.check import header_value

METADATA = 'resource_metadata="https://echo.example.test/.well-known/oauth-protected-resource/mcp"'


def signing_key(fleet: Fleet, number: int = 0) -> ECKey:
    entry = json.loads(fleet.credentials["keyring.json"])["keys"][number]
    return ECKey.import_key({**entry["jwk"], "kid": entry["kid"]})


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": ISSUER, "aud": ECHO, "sub": "ana", "client_id": "c", "scope": "mcp",
        "jti": f"j{time.time_ns()}",
        "iat": now, "exp": now + 600, "idp": "local", "name": "", "email": "", "groups": [], "fam": "f",
        **changes,
    }  # fmt: skip
    return {name: value for name, value in made.items() if value is not None}


def forge(key: Any, header: dict[str, Any] | None = None, **changes: Any) -> str:
    head = {"alg": "ES256", "typ": "at+jwt", "kid": "key-0", **(header or {})}
    head = {name: value for name, value in head.items() if value is not None}
    return jwt.encode(head, claims(**changes), key, algorithms=[head["alg"]], default_type=None)


# covers: challenge
def test_no_token_gets_the_way_to_one(node: Node) -> None:
    response = node.check(None)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == f'Bearer {METADATA}, scope="mcp"'
    assert response.headers["cache-control"] == "no-store"


# covers: challenge
@pytest.mark.parametrize("token", ["x", "a.b.c", "é", "." * 200, "x" * 9000])
def test_nonsense_is_an_invalid_token(node: Node, token: str) -> None:
    response = node.http.get(
        f"{node.base}/internal/check/echo", headers=[(b"Authorization", b"Bearer " + token.encode())]
    )
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == f'Bearer error="invalid_token", {METADATA}, scope="mcp"'


def test_only_a_bearer_header_counts(node: Node, browser: Browser, client_id: str) -> None:
    token = browser.tokens(client_id).access
    url = f"{node.base}/internal/check/echo"
    assert httpx.get(f"{url}?access_token={token}").status_code == 401
    assert node.http.get(url, headers={"Cookie": f"token={token}"}).status_code == 401
    assert node.http.get(url, headers={"Authorization": f"Basic {token}"}).status_code == 401
    assert node.http.get(url, headers={"Authorization": token}).status_code == 401
    assert node.http.get(url, headers={"Authorization": f"bearer {token}"}).status_code == 200
    twice = [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer x")]
    assert node.http.get(url, headers=twice).status_code == 400


# covers: resource
def test_a_token_for_one_service_opens_no_other(node: Node, browser: Browser, client_id: str) -> None:
    token = browser.tokens(client_id).access
    assert node.check(token).status_code == 200
    assert node.check(token, "files").status_code == 401


def test_a_well_made_token_is_accepted(fleet: Fleet, node: Node) -> None:
    assert node.check(forge(signing_key(fleet))).status_code == 200
    assert node.check(forge(signing_key(fleet, 1), {"kid": "key-1"})).status_code == 200
    assert node.check(forge(signing_key(fleet), {"typ": "application/at+jwt"})).status_code == 200


# covers: jwt-access-token
@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example.test"},
        {"iss": None},
        {"aud": "https://files.example.test/mcp"},
        {"aud": [ECHO]},
        {"aud": None},
        {"exp": int(time.time()) - 3600},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": int(time.time()) + 3600},
        {"sub": None},
        {"sub": "nobody"},
        {"sub": ["ana"]},
        {"jti": None},
        {"client_id": None},
        {"idp": "github"},
        {"idp": None},
        {"groups": None},
        {"scope": ["mcp"]},
    ],
)
def test_claims_that_are_wrong(fleet: Fleet, node: Node, changes: dict[str, Any]) -> None:
    assert node.check(forge(signing_key(fleet), **changes)).status_code == 401


# covers: jwt-access-token
@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"typ": None},
        {"kid": None},
        {"kid": "key-9"},
        {"kid": "key-1"},
        {"crit": ["x"], "x": 1},
    ],
)
def test_headers_that_are_wrong(fleet: Fleet, node: Node, header: dict[str, Any]) -> None:
    try:
        token = forge(signing_key(fleet), header)
    except Exception:  # joserfc will not make it: by hand, then
        head = urlsafe_b64encode(
            json.dumps({"alg": "ES256", "typ": "at+jwt", "kid": "key-0", **header}).encode()
        )
        token = head.rstrip(b"=").decode() + forge(signing_key(fleet))[len("x") :]
    assert node.check(token).status_code == 401


# covers: jwt-access-token
def test_other_algorithms_and_keys(fleet: Fleet, node: Node) -> None:
    head, payload, _ = forge(OctKey.generate_key(256), {"alg": "HS256"}).split(".")
    mac = hmac.new(signing_key(fleet).as_pem(private=False), f"{head}.{payload}".encode(), "sha256").digest()
    confused = f"{head}.{payload}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    rsa = forge(RSAKey.generate_key(2048), {"alg": "RS256"})
    foreign = forge(ECKey.generate_key("P-256"))
    head, payload, _ = forge(signing_key(fleet)).split(".")
    none = urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt","kid":"key-0"}').rstrip(b"=").decode()
    for token in (confused, rsa, foreign, f"{none}.{payload}.", f"{head}.{payload}.", f"{head}.{payload}"):
        assert node.check(token).status_code == 401


def test_an_expired_token_is_not_kept_alive_by_the_cache(fleet: Fleet, node: Node) -> None:
    # The leeway for clocks is 60 s, so this one has two seconds left.
    token = forge(signing_key(fleet), exp=int(time.time()) - 58)
    assert node.check(token).status_code == 200
    time.sleep(2.5)
    assert node.check(token).status_code == 401


def test_a_retired_key_verifies_no_more(fleet: Fleet) -> None:
    ring = json.loads(fleet.credentials["keyring.json"])
    kept = dict(fleet.credentials)
    try:
        ring["keys"][1].update(state="retiring", retire_after=time.time() + 3600)
        fleet.credentials["keyring.json"] = json.dumps(ring)
        retiring = fleet.start()
        ring["keys"][1]["retire_after"] = time.time() - 1
        fleet.credentials["keyring.json"] = json.dumps(ring)
        retired = fleet.start()
    finally:
        fleet.credentials.update(kept)
    token = forge(signing_key(fleet, 1), {"kid": "key-1"})
    assert retiring.check(token).status_code == 200
    assert retired.check(token).status_code == 401
    assert len(retired.http.get(f"{retired.base}/jwks.json").json()["keys"]) == 1


# covers: challenge
def test_too_few_scopes_is_insufficient_scope_with_all_that_are_needed(fleet: Fleet, node: Node) -> None:
    response = node.check(forge(signing_key(fleet), scope="other"))
    assert response.status_code == 403
    assert (
        response.headers["www-authenticate"] == f'Bearer error="insufficient_scope", {METADATA}, scope="mcp"'
    )


# covers: access-again
def test_groups_in_the_grant_count_and_the_allow_list_is_asked_again(fleet: Fleet, node: Node) -> None:
    denied = node.check(forge(signing_key(fleet), sub="bob"))
    assert (denied.status_code, denied.json()) == (403, {"error": "access_denied"})
    # Local groups are those of today, whatever the token says.
    assert node.check(forge(signing_key(fleet), sub="bob", groups=["staff"])).status_code == 403


# covers: cors
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example.test", 200),
        ("https://echo.example.test", 200),
        ("https://evil.example.test", 403),
        ("http://app.example.test", 403),
        ("https://app.example.test.evil.example", 403),
        ("null", 403),
    ],
)
def test_foreign_origins(fleet: Fleet, node: Node, origin: str, status: int) -> None:
    assert node.check(forge(signing_key(fleet)), Origin=origin).status_code == status


@pytest.mark.parametrize(
    "host",
    [
        "auth.example.test",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{port}",
        "evil.example:{port}",
        "",
    ],
)
def test_internal_paths_answer_on_loopback_only(node: Node, host: str) -> None:
    for path in ("/internal/health", "/internal/check/echo", "/internal/resource/echo"):
        response = node.http.get(f"{node.base}{path}", headers={"Host": host.format(port=node.port)})
        assert response.status_code == 404


def test_other_loopback_addresses_are_fine(node: Node) -> None:
    host = {"Host": f"127.0.0.9:{node.port}"}
    assert node.http.get(f"{node.base}/internal/health", headers=host).status_code == 200


# covers: no-fault-consumes
def test_a_service_that_is_not_known_yet_is_our_fault(node: Node) -> None:
    response = node.check("x", "unknown")
    assert response.status_code == 503
    assert response.headers["retry-after"]


def test_a_known_token_asks_redis_nothing(fleet: Fleet, node: Node) -> None:
    token = forge(signing_key(fleet))
    assert node.check(token).status_code == 200
    before = int(fleet.redis.admin.info("commandstats")["cmdstat_exists"]["calls"])
    for _ in range(50):
        assert node.check(token).status_code == 200
    after = int(fleet.redis.admin.info("commandstats")["cmdstat_exists"]["calls"])
    assert after == before


# covers: audit
def test_every_decision_has_an_audit_record(fleet: Fleet, node: Node) -> None:
    node.check(forge(signing_key(fleet)), **{"X-Request-Id": "req-allow"})
    node.check(forge(signing_key(fleet), sub="bob"), **{"X-Request-Id": "req-deny"})
    node.check(None, **{"X-Request-Id": 'req"} injected'})
    records = {record["request"]: record for record in node.records("access")}
    allowed, denied = records["req-allow"], records["req-deny"]
    assert (allowed["outcome"], allowed["user"], allowed["resource"]) == ("allow", "ana", ECHO)
    assert (denied["outcome"], denied["user"], denied["reason"]) == ("deny", "bob", "not_allowed")
    assert not any("injected" in request for request in records)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("ana@example.com", "ana@example.com"),
        ("Ána", "%C3%81na"),
        ("a\r\nX-Admin: 1", "a%0D%0AX-Admin: 1"),
        ("50%", "50%25"),
        ("a,b", "a%2Cb"),
        ("a\x00b\x7f", "a%00b%7F"),
        (" a b ", "%20a b%20"),
        ("  ", "%20%20"),
        ("é ", "%C3%A9%20"),
        ("", ""),
    ],
)
def test_header_values(text: str, safe: str) -> None:
    assert header_value(text) == safe
