"""No generated secret, password or token is where people and logs look: in output, environments, arguments, journals.

A finding names the secret and the place. The values stay in this process's memory and are never in a message.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clients.driver import McpClient
from fleet import Fleet, python
from gateway import Gateway
from testinfra.host import Host

# Members that anyone may see. Whatever is not named here is taken for a secret.
PUBLIC = {
    "alg", "certificate", "created", "crv", "email", "groups", "id", "kid", "kind", "kty", "name", "names",
    "provided", "retire_after", "state", "use", "version", "x", "y",
}  # fmt: skip
SHORTEST = 8

READ_SECRETS = """
import base64, glob, json, os
found = glob.glob("/etc/gatehouse/*/credentials/**", recursive=True) + ["/var/lib/gatehouse/secrets/store.json"]
print(json.dumps({name: base64.b64encode(open(name, "rb").read()).decode() for name in found if os.path.isfile(name)}))
"""
# Other processes come and go while they are read; those of our units must be readable, or the search is worth nothing.
OURS = "$(systemctl show --property=MainPID --value --state=active 'gatehouse-*.service' | grep -v '^0*$')"
PROCESSES = "cat /proc/[0-9]*/{0} 2>/dev/null; for pid in " + OURS + "; do cat /proc/$pid/{0} || exit 1; done"
# What a host says about processes, one command a place.
PLACES = {
    "systemctl show": "systemctl show --all 'gatehouse-*'",
    "systemctl status": "systemctl status --no-pager --full --lines=200 'gatehouse-*' || test $? = 3",
    "unit files": "cat /etc/systemd/system/gatehouse-*",
    "environments of processes": PROCESSES.format("environ"),
    "arguments of processes": PROCESSES.format("cmdline"),
    "journal": "journalctl --no-pager --all --output=json",
    "/var/log": "find /var/log -type f ! -path '/var/log/journal/*' -exec zcat -f {} +",
    # Traefik reads the front door's key from a file of its own, since it reads it again when it changes.
    "configuration": "find /etc/gatehouse -type f ! -path '*/credentials/*' ! -name front.pem -exec cat {} +",
    "releases": "find /opt/gatehouse/*/releases -type f -size -1024k -exec cat {} +",
}


@dataclass(frozen=True)
class Secret:
    """A value that must not be found, with the name under which it may be spoken of."""

    name: str
    value: bytes = field(repr=False)


def leaves(document: Any, name: str) -> Iterator[Secret]:
    """Every string in a JSON document that is not known to be public."""
    match document:
        case dict():
            for key, value in document.items():
                if key not in PUBLIC:
                    yield from leaves(value, f"{name}.{key}")
        case list():
            for number, value in enumerate(document):
                yield from leaves(value, f"{name}[{number}]")
        case str():
            yield from texts(document, name)


def texts(text: str, name: str) -> Iterator[Secret]:
    """A text, line by line: a log escapes line breaks, and one line of a key is a leak."""
    for number, line in enumerate(text.splitlines(), 1):
        # The first line of a PKCS #8 key starts alike in all of them, and is long enough to differ.
        if len(line.strip()) >= SHORTEST and not line.startswith("-----"):
            yield Secret(f"{name}:{number}", line.strip().encode())


def secrets_of(host: Host) -> list[Secret]:
    """All that was generated for or handed to a host."""
    found: list[Secret] = []
    for name, encoded in json.loads(python(host, READ_SECRETS)).items():
        content = base64.b64decode(encoded).decode()
        try:
            found += leaves(json.loads(content), name)
        except ValueError:
            found += texts(content, name)
    return found


def secrets_of_fleet(fleet: Fleet) -> list[Secret]:
    """The secrets of all hosts, as they are now."""
    found = [secret for host in fleet.hosts() for secret in secrets_of(host)]
    names = " ".join(secret.name for secret in found)
    # The search is only worth something if it knows what to search for.
    assert "store.json" in names
    assert "keyring.json" in names
    assert ".d:" in names, "the private half of a signing key"
    assert "redis" in names
    assert ".key:" in names, "the key of a certificate"
    return found


def leaks(fleet: Fleet, place: str, text: bytes) -> list[str]:
    """Which of the fleet's secrets are in `text`, by name."""
    return [f"{secret.name} in {place}" for secret in secrets_of_fleet(fleet) if secret.value in text]


def test_search_finds_what_is_there(fleet: Fleet) -> None:
    for secret in secrets_of_fleet(fleet)[:3]:
        assert f"{secret.name} in here" in leaks(fleet, "here", b"before " + secret.value + b" after")


# covers: audit
def test_rollout_says_no_secret(setting: Callable[[str], str], fleet: Fleet) -> None:
    output = Path(setting("--rollout-log")).read_bytes()
    assert b"PLAY RECAP" in output
    assert b"--- before" in output, "it was run with --diff"
    assert b"EXEC" in output, "it was run with -vvv"
    assert leaks(fleet, "the rollout's output", output) == []


# covers: audit
@pytest.mark.parametrize("place", PLACES)
def test_host_says_no_secret(fleet: Fleet, place: str) -> None:
    for host in fleet.hosts():
        result = host.run(PLACES[place])
        assert result.rc == 0, result.stderr
        assert result.stdout_bytes, f"{place} is empty"
        assert leaks(fleet, f"{place} of {host.backend.hostname}", result.stdout_bytes) == []


def test_hosts_never_note_what_clients_hold(
    fleet: Fleet, gateway: Gateway, fresh_client: McpClient, setting: Callable[[str], str]
) -> None:
    """Passwords, codes and tokens go through the gateway; its logs have none of them."""
    fresh_client.call(gateway.echo, "whoami")
    fresh_client.call(gateway.time, "get_current_time", timezone="UTC")
    held = [Secret("password", Path(setting("--password-file")).read_text().strip().encode())]
    for url in (gateway.echo, gateway.time):
        credentials = fresh_client.credentials(url)
        held += [Secret(name, credentials[name].encode()) for name in ("access_token", "refresh_token")]
        # A signature alone would be as bad as the whole.
        held.append(Secret("signature", credentials["access_token"].rpartition(".")[2].encode()))
    held += [Secret("code", code.encode()) for code in fresh_client.codes]
    found = []
    for host in fleet.hosts():
        for place in ("journal", "/var/log"):
            output = host.run(PLACES[place]).stdout_bytes
            found += [f"{secret.name} in {place}" for secret in held if secret.value in output]
    assert found == []
