"""What Redis held before it was restarted, it holds afterwards: nobody is logged out, and nothing comes back."""

from __future__ import annotations

import time

import pytest
from clients.driver import ClientError, McpClient
from conftest import ClientFactory
from fleet import Fleet
from gateway import Gateway

ANSWER_SECONDS = 30


# covers: fault-redis-restart
def test_a_restart_forgets_nothing(clients: ClientFactory, gateway: Gateway, fleet: Fleet) -> None:
    with clients.start("python-2") as client:
        assert client.call(gateway.echo, "echo", text="before") == "before"
        [host] = fleet.hosts("gateway_redis")
        host.check_output("systemctl restart gatehouse-redis.service")
        wait_until_well(gateway, client.credentials(gateway.echo)["access_token"])
        # The refresh family and the client are what was written by scripts, in transactions.
        client.expire(gateway.echo)
        assert call_when_well(client, gateway.echo) == "after"
        assert client.sign_ins == 1


def call_when_well(client: McpClient, url: str) -> str:
    """A 503 more is no harm: whoever asks again has lost nothing."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return client.call(url, "echo", text="after")
        except ClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def wait_until_well(gateway: Gateway, token: str) -> None:
    """Meanwhile the gateway may say 503, and nothing else that is wrong."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while (
        status := gateway.post(gateway.echo, "tools/list", token=token).status_code
    ) != 200 or gateway.problem():
        assert status in (200, 503)
        if time.monotonic() > deadline:
            pytest.fail("The gateway is not well after a restart of Redis.", pytrace=False)
        time.sleep(0.5)
