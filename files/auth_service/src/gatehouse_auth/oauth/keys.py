"""Other parties' public keys (RFC 7517), and which of them a signature can be by."""

from collections.abc import Iterable
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey, import_key

# Signatures by which one party can be told from others: none with a shared secret, and never `none`.
ALGORITHMS = ("ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
# What counts of a key. Certificates are long and prove nothing here; secrets are nobody's affair, and some
# take seconds to read.
MEMBERS = ("kty", "n", "e", "crv", "x", "y", "kid", "use", "key_ops", "alg")
# Providers in the middle of a rotation have a dozen.
KEYS = 32
# What it takes to verify an RSA signature grows with modulus and exponent, and strangers choose theirs. In
# characters of base64url: 4096 bits with the zero that some put before them, and 32 bits.
RSA_MODULUS, RSA_EXPONENT = 684, 6


def public_keys(jwks: Any) -> list[Key]:
    """The public keys of a key set that can sign. Those of a kind or size that is not supported are left out
    (section 5).

    Raises:
        ValueError: it is no key set, or has too many.
    """
    listed = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(listed, list) or len(listed) > KEYS:
        raise ValueError("keys")
    keys: list[Key] = []
    for jwk in listed:
        try:
            if jwk["kty"] == "RSA" and (len(jwk["n"]) > RSA_MODULUS or len(jwk["e"]) > RSA_EXPONENT):
                continue
            key = import_key({name: jwk[name] for name in MEMBERS if name in jwk})
        except (JoseError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey) and key.get("use", "sig") == "sig":
            keys.append(key)
    return keys


def matching(keys: Iterable[Key], algorithm: str, kid: Any) -> Key | None:
    """The one key that a signature of this algorithm and key id can be by."""
    kind = {"ES": ECKey, "Ed": OKPKey}.get(algorithm[:2], RSAKey)
    fitting = [
        key
        for key in keys
        if isinstance(key, kind)
        and key.get("alg", algorithm) == algorithm
        and (kid is None or key.get("kid") == kid)
    ]
    return fitting[0] if len(fitting) == 1 else None
