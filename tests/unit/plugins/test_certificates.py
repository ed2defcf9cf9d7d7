"""An operator's own certificate is judged before any host has it."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils.certificates import certificate_faults, covers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM
KEY = ec.generate_private_key(ec.SECP256R1())


def secret(key: ec.EllipticCurvePrivateKey = KEY, passphrase: bytes | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)


def certificate(
    *names: str, start: datetime.datetime = NOW - DAY, end: datetime.datetime = NOW + DAY
) -> bytes:
    # The common name, which no client reads, is no name.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "auth.example.com")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if names:
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(PEM)


GOOD = certificate("*.example.com")


@pytest.mark.parametrize(
    ("chain", "key", "said"),
    [
        (GOOD + certificate("ca.example.com"), secret(), []),
        (certificate("Auth.Example.com", "time.example.com"), secret(), []),
        (certificate("auth.example.com"), secret(), ["certificate: does not name time.example.com (it names auth.example.com)"]),
        (certificate(), secret(), ["certificate: does not name auth.example.com, time.example.com (it names nothing)"]),
        (certificate("*.example.com", start=NOW - 2 * DAY, end=NOW - DAY), secret(), ["certificate: expired on "]),
        (certificate("*.example.com", start=NOW + DAY, end=NOW + 2 * DAY), secret(), ["certificate: is not valid before "]),
        (GOOD, secret(ec.generate_private_key(ec.SECP256R1())), ["key: belongs to another certificate"]),
        (GOOD, secret(passphrase=b"hunter2"), ["key: is no key in PEM without a passphrase"]),
        (GOOD, b"-", ["key: is no key in PEM"]),
        (b"-", secret(), ["certificate: is no certificate in PEM"]),
        (certificate("*.example.org", end=NOW - DAY / 2), b"-", ["key: is no key", "certificate: expired", "certificate: does not name"]),
    ],
)  # fmt: skip
def test_what_a_client_would_say(chain: bytes, key: bytes, said: list[str]) -> None:
    faults = [
        ": ".join(fault) for fault in certificate_faults(chain, key, ["auth.example.com", "time.example.com"])
    ]
    assert len(faults) == len(said), faults
    assert all(fault.startswith(begin) for fault, begin in zip(faults, said, strict=True)), faults
    assert "PRIVATE" not in str(faults)


@pytest.mark.parametrize(
    ("pattern", "name", "does"),
    [
        ("a.example.com", "a.example.com", True),
        ("*.example.com", "a.example.com", True),
        ("*.EXAMPLE.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("a*.example.com", "ab.example.com", False),
        ("*.*.com", "a.example.com", False),
        ("*", "a.example.com", False),
        ("*", "localhost", False),
    ],
)
def test_names(pattern: str, name: str, does: bool) -> None:
    assert covers(pattern, name) is does
