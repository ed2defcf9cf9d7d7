# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a client will say of the operator's own certificate, said before any host has it. Runs on the controller."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key


def covers(pattern: str, name: str) -> bool:
    """Whether a name in a certificate stands for a host: a wildcard is the whole first label, and no more (RFC 9525)."""
    return pattern.lower() in (name, f"*.{name.partition('.')[2]}")


def certificate_faults(certificate: bytes, key: bytes, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a certificate and its key.

    Args:
        certificate: The chain in PEM, the server's own first.
        key: Its key in PEM.
        names: The hosts that it has to stand for.

    Yields:
        `certificate` or `key`, whichever it is, and a sentence with the fix. No sentence quotes the key.
    """
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
    except ValueError:
        yield "certificate", "is no certificate in PEM; name the file with the chain, the server's own first"
        return
    try:
        if load_pem_private_key(key, password=None).public_key() != leaf.public_key():
            yield "key", "belongs to another certificate; name the key of gatehouse_tls_certificate"
    except (ValueError, TypeError, UnsupportedAlgorithm):
        yield "key", "is no key in PEM without a passphrase; write one with openssl pkey"
    now = datetime.datetime.now(datetime.UTC)
    if now > leaf.not_valid_after_utc:
        yield "certificate", f"expired on {leaf.not_valid_after_utc:%Y-%m-%d}; renew it"
    elif now < leaf.not_valid_before_utc:
        yield (
            "certificate",
            f"is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}; name the one that is in force",
        )
    try:
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        patterns = alternative.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        patterns = []
    missing = [name for name in names if not any(covers(pattern, name) for pattern in patterns)]
    if missing:
        yield (
            "certificate",
            f"does not name {', '.join(missing)} (it names {', '.join(patterns) or 'nothing'}); get one that does",
        )
