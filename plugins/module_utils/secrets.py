# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What the fleet's store of secrets holds, and how it changes over a rotation.

A store is `{"version": 1, "secrets": {name: {"kind": …, "entries": [entry, …]}}}`. An entry has an `id`, a `state`
(`next`: accepted, not yet used; `current`: used; `retiring`: still accepted), `created` and `retire_after` (epoch
seconds, or null), a `value`, and `provided` where the operator chose it. A secret's `gone` has the ids of entries that
were dropped, and when, so that a host which was away meanwhile does not bring them back. Runs on the controller.
"""

from __future__ import annotations

import base64
import copy
import datetime
import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Store = dict[str, Any]
Entry = dict[str, Any]

CA_DAYS, CERTIFICATE_DAYS, RENEW_DAYS = 3650, 397, 30
DAY = 86400
# Ids remembered of dropped entries: years of rotations.
GONE_MAX = 64


def new_store() -> Store:
    """A store with nothing in it."""
    return {"version": 1, "secrets": {}}


def _base64url(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()


def generate_signing_key() -> dict[str, str]:
    """A private JWK for ES256 (RFC 7517), whose `kid` is its thumbprint (RFC 7638)."""
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    public = {
        "crv": "P-256",
        "kty": "EC",
        "x": _base64url(numbers.public_numbers.x),
        "y": _base64url(numbers.public_numbers.y),
    }
    thumbprint = hashlib.sha256(json.dumps(public, sort_keys=True, separators=(",", ":")).encode()).digest()
    kid = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
    return {**public, "d": _base64url(numbers.private_value), "kid": kid, "alg": "ES256", "use": "sig"}


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _builder(
    subject: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A minute back, for clocks that lag.
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def generate_ca() -> dict[str, str]:
    """The internal CA: `certificate` and `key` in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("Gatehouse internal CA", None, key, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return {"certificate": certificate.public_bytes(serialization.Encoding.PEM).decode(), "key": _pem(key)}


def issue_certificate(ca: Mapping[str, str], names: list[str]) -> dict[str, str]:
    """A server's certificate for DNS names: `certificate` (with the CA's behind it) and `key` in PEM."""
    issuer = x509.load_pem_x509_certificate(ca["certificate"].encode())
    issuer_key = serialization.load_pem_private_key(ca["key"].encode(), password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the internal CA's key is not an EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(names[0], issuer.subject, key, CERTIFICATE_DAYS)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM).decode() + ca["certificate"]
    return {"certificate": chain, "key": _pem(key)}


def certificate_serves(existing: Mapping[str, str], ca: Mapping[str, str], names: list[str]) -> bool:
    """Whether a certificate is still good: these names, this CA, and more than 30 days to go."""
    certificate = x509.load_pem_x509_certificate(existing["certificate"].encode())
    issuer = x509.load_pem_x509_certificate(ca["certificate"].encode())
    has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    due = certificate.not_valid_after_utc - datetime.timedelta(days=RENEW_DAYS)
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # whatever is wrong with it, it does not serve
        return False
    return (
        set(has.get_values_for_type(x509.DNSName)) == set(names) and datetime.datetime.now(datetime.UTC) < due
    )


GENERATORS = {
    "password": lambda: secrets.token_urlsafe(32),
    "es256": generate_signing_key,
    "ca": generate_ca,
}


def _add(secret: dict[str, Any], value: Any, state: str) -> Entry:
    """Add an entry; it is younger than every other of its secret also where clocks and quick runs say otherwise."""
    youngest = max((entry["created"] for entry in secret["entries"]), default=0)
    entry = {
        "id": secrets.token_hex(6),
        "state": state,
        "created": max(int(time.time()), youngest + 1),
        "retire_after": None,
        "value": value,
    }
    secret["entries"].append(entry)
    return entry


def _drop(secret: dict[str, Any], gone: Mapping[str, int]) -> None:
    """Drop entries for good: ids, and when they were dropped."""
    if gone:
        secret["entries"] = [entry for entry in secret["entries"] if entry["id"] not in gone]
        known = {**gone, **secret.get("gone", {})}
        newest = sorted(known.items(), key=lambda item: (item[1], item[0]))[-GONE_MAX:]
        secret["gone"] = dict(sorted(newest))


def _in_state(store: Store, name: str, state: str) -> list[Entry]:
    entries = store["secrets"].get(name, {}).get("entries", [])
    return [entry for entry in entries if entry["state"] == state]


# An entry only ever moves forward, so of two hosts that remember it the one where it is further is right.
PROGRESS = ("next", "current", "retiring")


def _progress(entry: Entry) -> tuple[int, int]:
    return PROGRESS.index(entry["state"]), -(entry["retire_after"] or 0)


def merge(stores: Iterable[Store]) -> Store:
    """Everything that any host keeps; where hosts differ, as after a broken run, the further state wins.

    What one host knows to be gone is gone. Of two current entries the newer stays current and the older retires a day
    later.
    """
    merged = new_store()
    for store in stores:
        for name, secret in store["secrets"].items():
            known = merged["secrets"].setdefault(name, {"kind": secret["kind"], "entries": []})
            for entry in secret["entries"]:
                same = next((other for other in known["entries"] if other["id"] == entry["id"]), None)
                if same is None:
                    known["entries"].append(copy.deepcopy(entry))
                elif _progress(entry) > _progress(same):
                    same.update(copy.deepcopy(entry))
            _drop(known, {**secret.get("gone", {}), **known.get("gone", {})})
    for name, secret in merged["secrets"].items():
        secret["entries"].sort(key=lambda entry: (entry["created"], entry["id"]))
        for older in _in_state(merged, name, "current")[:-1]:
            older.update(state="retiring", retire_after=int(time.time()) + DAY)
    return merged


def ensure(store: Store, spec: Mapping[str, str], provided: Mapping[str, Any]) -> Store:
    """Generate what is missing; a value that the operator chose replaces the current one.

    Args:
        store: What is kept.
        spec: Kind by name.
        provided: The operator's values by name.
    """
    result = copy.deepcopy(store)
    for name, kind in spec.items():
        secret = result["secrets"].setdefault(name, {"kind": kind, "entries": []})
        current = _in_state(result, name, "current")
        if name in provided:
            if not current or current[0]["value"] != provided[name]:
                same = [entry["id"] for entry in secret["entries"] if entry["value"] == provided[name]]
                _drop(secret, dict.fromkeys(same, int(time.time())))
                for entry in current:
                    entry.update(state="retiring", retire_after=int(time.time()) + 60)
                current = [_add(secret, provided[name], "current")]
            current[0]["provided"] = True
        elif not current:
            _add(secret, GENERATORS[kind](), "current")
        else:
            current[0].pop("provided", None)
    return result


def prepare(store: Store, names: Iterable[str]) -> Store:
    """Phase one: add a `next` value to each; one that a broken run left is taken up again.

    What the operator provides is left alone: it changes where it stands.
    """
    result = copy.deepcopy(store)
    for name in names:
        provided = any(entry.get("provided") for entry in _in_state(result, name, "current"))
        if not provided and not _in_state(result, name, "next"):
            secret = result["secrets"][name]
            _add(secret, GENERATORS[secret["kind"]](), "next")
    return result


def promote(store: Store, names: Iterable[str], retire_seconds: Mapping[str, int]) -> Store:
    """Phase two: `next` becomes current, current retires after its seconds."""
    result = copy.deepcopy(store)
    now = int(time.time())
    for name in names:
        coming = _in_state(result, name, "next")
        if coming:
            for entry in _in_state(result, name, "current"):
                entry.update(state="retiring", retire_after=now + int(retire_seconds[name]))
            coming[0]["state"] = "current"
    return result


def retire(store: Store, *, at_once: Iterable[str] = (), patience: Mapping[str, int] | None = None) -> Store:
    """Drop retiring values whose time has come.

    Args:
        store: What is kept.
        at_once: Names of secrets whose retiring values nothing uses any more, whatever their time.
        patience: Seconds, by kind, that a value is kept beyond its time.
    """
    result = copy.deepcopy(store)
    now = int(time.time())
    for name, secret in result["secrets"].items():
        due = now - (patience or {}).get(secret["kind"], 0)
        over = [
            entry["id"]
            for entry in _in_state(result, name, "retiring")
            if name in at_once or entry["retire_after"] <= due
        ]
        _drop(secret, dict.fromkeys(over, now))
    return result


def current(store: Store, name: str) -> Any:
    """The value that is used."""
    return _in_state(store, name, "current")[0]["value"]


def values(store: Store, name: str) -> list[Any]:
    """Every value that is accepted, the used one first."""
    entries = store["secrets"][name]["entries"]
    return [entry["value"] for entry in sorted(entries, key=lambda entry: entry["state"] != "current")]


def keyring(store: Store, name: str) -> dict[str, Any]:
    """Signing keys as the auth service reads them (`keyring.json`)."""
    return {
        "keys": [
            {
                "kid": entry["value"]["kid"],
                "state": entry["state"],
                "created": entry["created"],
                "retire_after": entry["retire_after"],
                "jwk": entry["value"],
            }
            for entry in store["secrets"][name]["entries"]
        ]
    }


def subset(store: Store, names: Iterable[str]) -> Store:
    """The part of a store that one host needs."""
    return {
        **store,
        "secrets": {name: store["secrets"][name] for name in sorted(names) if name in store["secrets"]},
    }


def certificate(store: Store, name: str, ca: str, names: list[str]) -> Store:
    """Keep a certificate from the internal CA under `name`, issued anew when it is due; none where `names` is empty."""
    result = copy.deepcopy(store)
    if not names:
        result["secrets"].pop(name, None)
        return result
    authority = current(result, ca)
    kept = _in_state(result, name, "current")
    if not kept or not certificate_serves(kept[0]["value"], authority, names):
        secret = result["secrets"].setdefault(name, {"kind": "certificate", "entries": []})
        _drop(secret, dict.fromkeys((entry["id"] for entry in secret["entries"]), int(time.time())))
        _add(secret, issue_certificate(authority, names), "current")
    return result
