"""Every name of the front door has a certificate from the ACME CA."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "acme-ca/caddy/pki/authorities/local/root.crt"


@pytest.mark.parametrize("name", ["auth", "echo", "time"])
def test_the_certificate_is_from_the_acme_ca(host: Any, name: str) -> None:
    variables = host.ansible.get_variables()
    hostname = f"{name}.{variables['lab_domain']}"
    # Verifies chain and name.
    context = ssl.create_default_context(cafile=str(ROOT))
    with (
        socket.create_connection((variables["ansible_host"], 443), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=hostname) as secure,
    ):
        certificate = secure.getpeercert()
    assert certificate is not None
    assert "Caddy" in str(certificate["issuer"])
    assert ("DNS", hostname) in certificate["subjectAltName"]


def test_the_account_and_the_keys_are_traefiks_alone(host: Any) -> None:
    store = host.file("/var/lib/gatehouse-traefik/acme.json")
    assert (store.mode, store.user) == (0o600, "gatehouse-traefik")


def test_plain_http_leads_to_https(host: Any) -> None:
    variables = host.ansible.get_variables()
    with socket.create_connection((variables["ansible_host"], 80), timeout=10) as plain:
        plain.sendall(
            f"GET /mcp HTTP/1.1\r\nHost: echo.{variables['lab_domain']}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = plain.makefile("rb").read().decode()
    assert answer.startswith(("HTTP/1.1 308", "HTTP/1.1 301"))
    assert f"https://echo.{variables['lab_domain']}/mcp" in answer
