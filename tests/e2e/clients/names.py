"""Names below the gateway's domain, for a test that adds a service: not every machine resolves every one of them."""

from __future__ import annotations

import socket
from typing import Any


def resolve_below(domain: str) -> None:
    """Make names below `domain` that do not resolve resolve as `auth.<domain>`, in this process alone."""
    resolve = socket.getaddrinfo

    def with_fallback(host: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return resolve(host, *arguments, **named)
        except socket.gaierror:
            name = host.decode() if isinstance(host, bytes) else host
            if not isinstance(name, str) or not name.endswith(f".{domain}"):
                raise
            return resolve(f"auth.{domain}", *arguments, **named)

    socket.getaddrinfo = with_fallback
