"""PKCE downgrade, code replay and code injection (RFC 9700 sections 2.1.1, 4.5, 4.8)."""

from __future__ import annotations

import pytest
from attack import REDIRECT, Attacker


@pytest.mark.parametrize(
    "changes",
    [
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge_method": "plain"},
        {"code_challenge_method": None},
        {"code_challenge_method": "s256"},
        {"code_challenge": ""},
        {"code_challenge": "x"},
    ],
    ids=str,
)
def test_pkce_cannot_be_left_out(attacker: Attacker, client_id: str, changes: dict[str, str | None]) -> None:
    answer = attacker.gateway.http.get(attacker.url(client_id, **changes), follow_redirects=False)
    assert answer.status_code == 400
    assert "<code>invalid_request</code>" in answer.text


@pytest.mark.parametrize("verifier", [None, "", "x" * 43, "challenge"])
def test_a_stolen_code_is_worth_nothing_without_its_verifier(
    attacker: Attacker, client_id: str, verifier: str | None
) -> None:
    code = attacker.code(client_id)
    shown = attacker.challenge if verifier == "challenge" else verifier
    stolen = attacker.exchange(client_id, code, code_verifier=shown or None)
    assert stolen.status_code == 400
    assert attacker.exchange(client_id, code).status_code == 200, "and its owner has lost nothing"


def test_a_replayed_code_ends_what_it_gave(attacker: Attacker, client_id: str) -> None:
    code = attacker.code(client_id)
    tokens = attacker.exchange(client_id, code).json()
    assert attacker.opens(tokens["access_token"])
    assert attacker.exchange(client_id, code).json()["error"] == "invalid_grant"
    assert not attacker.opens(tokens["access_token"])
    assert attacker.refresh(client_id, tokens["refresh_token"]).json()["error"] == "invalid_grant"


def test_a_code_is_good_for_its_client_and_its_redirect_uri_alone(attacker: Attacker, client_id: str) -> None:
    other = attacker.register(redirect_uris=[REDIRECT, f"{REDIRECT}/2"])["client_id"]
    code = attacker.code(other)
    assert attacker.exchange(client_id, code).json()["error"] == "invalid_grant"
    assert attacker.exchange(other, code, redirect_uri=f"{REDIRECT}/2").json()["error"] == "invalid_grant"
    assert attacker.exchange(other, code, resource=attacker.gateway.time).json()["error"] == "invalid_target"
    # Where it is sent it counts; a client of OAuth 2.1 leaves it out.
    assert attacker.exchange(other, code, redirect_uri=None).status_code == 200


@pytest.mark.parametrize("code", ["", "x", "../../x", "%00", "gh:code", "*", "A" * 3000])
def test_a_code_cannot_be_made_up(attacker: Attacker, client_id: str, code: str) -> None:
    assert attacker.exchange(client_id, code).status_code == 400
