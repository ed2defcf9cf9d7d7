"""Floods, last, since they use up what is allowed: others go on, and nothing grows without end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from attack import REDIRECT, Attacker

TRIES = 400


def test_a_flood_of_registrations_is_slowed_and_nobody_else_notices(
    attacker: Attacker, client_id: str, tokens: dict[str, Any]
) -> None:
    body = {"redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none"}

    def register(_: int) -> int:
        return attacker.gateway.http.post(f"{attacker.gateway.issuer}/register", json=body).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(register, range(TRIES)))
    assert set(statuses) == {201, 429}
    assert attacker.opens(tokens["access_token"])
    assert attacker.refresh(client_id, tokens["refresh_token"]).status_code == 200


def test_a_flood_of_guesses_shuts_nobody_out(attacker: Attacker, client_id: str) -> None:
    body = {"username": "nobody-at-all", "password": "wrong", "csrf": "x", "flow": "x"}
    for _ in range(60):
        answer = attacker.gateway.http.post(f"{attacker.gateway.issuer}/signin/local", data=body)
        assert answer.status_code in (400, 429)
    assert attacker.tokens(client_id)["access_token"]
