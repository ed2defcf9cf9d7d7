"""Token substitution, forged and confused tokens, refresh theft (RFC 8725, RFC 9068 section 4, RFC 9700 section 4.14)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from attack import Attacker
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


def encoded(part: dict[str, Any] | bytes) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return content


def by_own_key(head: str, payload: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    r, s = decode_dss_signature(key.sign(f"{head}.{payload}".encode(), ec.ECDSA(hashes.SHA256())))
    return encoded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def forgeries(attacker: Attacker, token: str) -> dict[str, str]:
    """Tokens that are none, made of one that is good."""
    head, payload, signature = token.split(".")
    header, claims = decoded(head), decoded(payload)
    jwks = attacker.gateway.http.get(f"{attacker.gateway.issuer}/jwks.json")
    mac: Callable[[str, bytes], str] = lambda text, key: encoded(  # noqa: E731
        hmac.new(key, text.encode(), hashlib.sha256).digest()
    )
    other = encoded({**claims, "aud": attacker.gateway.time, "sub": "root"})
    none, hs256 = encoded({**header, "alg": "none"}), encoded({**header, "alg": "HS256"})
    own = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}
    return {
        "no signature": f"{head}.{payload}.",
        "none": f"{none}.{other}.",
        "none, with a signature": f"{none}.{payload}.{signature}",
        "None": f"{encoded({**header, 'alg': 'None'})}.{payload}.",
        "public key as secret": f"{hs256}.{payload}.{mac(f'{hs256}.{payload}', jwks.content)}",
        "empty secret": f"{hs256}.{payload}.{mac(f'{hs256}.{payload}', b'')}",
        "other claims": f"{head}.{other}.{signature}",
        "another key": f"{head}.{payload}.{by_own_key(head, payload)}",
        "a key of its own": f"{encoded({**header, 'jwk': own})}.{payload}.{signature}",
        "a key elsewhere": f"{encoded({**header, 'jku': 'https://evil.example/k'})}.{payload}.{signature}",
        "a path as kid": f"{encoded({**header, 'kid': '../../dev/null'})}.{payload}.{signature}",
        "another type": f"{encoded({**header, 'typ': 'JWT'})}.{payload}.{signature}",
        "crit": f"{encoded({**header, 'crit': ['x'], 'x': 1})}.{payload}.{signature}",
        "zeros": f"{head}.{payload}.{encoded(bytes(64))}",
        "later": f"{head}.{encoded({**claims, 'exp': int(time.time()) + 9999})}.{signature}",
        "twice": f"{token}.{token}",
        "with a space": f"{token} {token}",
        "huge": "A" * 20_000,
    }


def test_what_is_no_token_of_ours_opens_nothing(attacker: Attacker, tokens: dict[str, Any]) -> None:
    opened = [
        name for name, forged in forgeries(attacker, tokens["access_token"]).items() if attacker.opens(forged)
    ]
    assert opened == []
    assert attacker.opens(tokens["access_token"])


def test_a_token_of_one_service_opens_no_other(attacker: Attacker, tokens: dict[str, Any]) -> None:
    assert not attacker.opens(tokens["access_token"], attacker.gateway.time)
    assert not attacker.opens(tokens["refresh_token"])


@pytest.mark.parametrize("where", ["query", "form", "cookie", "basic"])
def test_a_token_counts_in_its_header_alone(attacker: Attacker, tokens: dict[str, Any], where: str) -> None:
    """Elsewhere it would end up in logs and histories (RFC 9700 section 4.3.2)."""
    token, url = tokens["access_token"], attacker.gateway.echo
    http = attacker.gateway.http
    answer = {
        "query": lambda: http.post(f"{url}?access_token={token}", json={}),
        "form": lambda: http.post(url, data={"access_token": token}),
        "cookie": lambda: http.post(url, json={}, headers={"Cookie": f"access_token={token}"}),
        "basic": lambda: http.post(url, json={}, headers={"Authorization": f"Basic {token}"}),
    }[where]()
    assert answer.status_code == 401


def test_a_stolen_refresh_token_ends_when_both_use_it(attacker: Attacker, client_id: str) -> None:
    first = attacker.tokens(client_id)["refresh_token"]
    owners = attacker.refresh(client_id, first).json()
    # Within the grace window there is one successor, not two lines.
    assert attacker.refresh(client_id, first).json()["refresh_token"] == owners["refresh_token"]
    newest = attacker.refresh(client_id, owners["refresh_token"]).json()
    assert attacker.opens(newest["access_token"])
    assert attacker.refresh(client_id, first).json()["error"] == "invalid_grant"
    assert attacker.refresh(client_id, newest["refresh_token"]).json()["error"] == "invalid_grant"
    assert not attacker.opens(newest["access_token"])


def test_a_refresh_token_is_good_for_its_client_and_service_alone(
    attacker: Attacker, client_id: str, tokens: dict[str, Any]
) -> None:
    other = attacker.register()["client_id"]
    stolen = tokens["refresh_token"]
    assert attacker.refresh(other, stolen).json()["error"] == "invalid_grant"
    assert (
        attacker.refresh(client_id, stolen, resource=attacker.gateway.time).json()["error"]
        == "invalid_target"
    )
    assert attacker.refresh(client_id, stolen, scope="mcp root").json()["error"] == "invalid_scope"
    assert attacker.opens(tokens["access_token"]), "and the person has noticed nothing"
