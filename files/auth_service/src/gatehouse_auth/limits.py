"""Rate limits: token buckets in process, so that they hold while Redis is away. Each node has its own."""

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

KEYS = 20_000


@dataclass(frozen=True, slots=True)
class Rate:
    """A bucket: `burst` at once, `per_second` in the long run."""

    burst: float
    per_second: float


class Limiter:
    """Buckets by key, of which the least recently used are forgotten first."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one from the key's bucket.

        Returns:
            0 when there was one, else the seconds until there will be.
        """
        now = time.monotonic()
        level, since = self._buckets.pop(key, (self._rate.burst, now))
        level = min(self._rate.burst, level + (now - since) * self._rate.per_second)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate.per_second
        self._buckets[key] = (level if wait else level - 1, now)
        if len(self._buckets) > KEYS:
            self._buckets.popitem(last=False)
        return wait

    def give_back(self, key: str) -> None:
        """Return what was taken: only failures count."""
        level, since = self._buckets.get(key, (self._rate.burst, 0.0))
        self._buckets[key] = (min(self._rate.burst, level + 1), since)


@lru_cache(KEYS)
def address_key(address: str) -> str:
    """The key of a client address: an IPv6 client has a whole /64 to choose from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
