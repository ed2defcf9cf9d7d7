"""Floods, last, since they use up what is allowed: others go on, and nothing grows without end."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from attack import REDIRECT, Attacker

TRIES = 400
SILENT = 10_000
# Traefik's readTimeout.
SILENT_SECONDS = 60


@pytest.fixture
def descriptors() -> Iterator[int]:
    """How many files this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# covers: fault-silent
def test_connections_that_say_nothing_stand_in_nobodys_way(
    attacker: Attacker, client_id: str, tokens: dict[str, Any], descriptors: int
) -> None:
    assert descriptors > SILENT + 1000, "raise the limit of open files"
    address = socket.gethostbyname(str(urlsplit(attacker.gateway.issuer).hostname))
    with ExitStack() as stack:
        links = [
            stack.enter_context(socket.create_connection((address, 443), timeout=30)) for _ in range(SILENT)
        ]
        for link in links[::2]:
            link.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a TLS handshake
        # Nobody else notices: not with a token, and not at a sign-in over connections of its own.
        assert attacker.opens(tokens["access_token"])
        assert attacker.tokens(client_id)["access_token"]
        # The gateway ends them.
        deadline = time.monotonic() + SILENT_SECONDS + 30
        for link in links:
            link.settimeout(max(1.0, deadline - time.monotonic()))
            assert link.recv(1) == b""
    assert attacker.opens(tokens["access_token"])


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
