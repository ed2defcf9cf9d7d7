"""What an operator watches, in Prometheus' text format. No label holds what a person or a program has written."""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
# A method is the client's to write: those that it may count by are these, all others are one.
METHODS = frozenset(
    {
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "tools/call",
        "tools/list",
    }
)
# From what the bridge itself takes to what a slow tool takes, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, math.inf)
BOUNDS = ["+Inf" if bound == math.inf else str(float(bound)) for bound in BUCKETS]


class _Seconds(Collector):
    """How long what is counted took, by method.

    The library's own histogram takes a lock and walks the buckets at each observation: that took a twentieth of all that a request
    takes here.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._sums = dict.fromkeys((*METHODS, "other"), 0.0)
        self._counts = {method: [0] * len(BUCKETS) for method in self._sums}

    def observe(self, method: str, seconds: float) -> None:
        if method not in METHODS:
            method = "other"
        self._sums[method] += seconds
        self._counts[method][bisect_left(BUCKETS, seconds)] += 1

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=["method"])
        for method, counts in self._counts.items():
            buckets = [*zip(BOUNDS, accumulate(counts), strict=True)]
            family.add_metric([method], buckets, self._sums[method])
        yield family


class Metrics:
    """The metrics of one bridge, in a registry of their own."""

    def __init__(self) -> None:
        """See the class."""
        self._registry = registry = CollectorRegistry()
        name = "gatehouse_bridge_{}".format
        Gauge(name("start_time_seconds"), "When the bridge started", registry=registry).set(time.time())
        self._children = Gauge(
            name("children"), "Processes that run, those started ahead of need among them", registry=registry
        )
        self._warm = Gauge(
            name("children_warm"), "Processes started ahead of need that nobody uses yet", registry=registry
        )
        self._most = Gauge(name("children_max"), "Processes that may run at once", registry=registry)
        self._sessions = Gauge(name("sessions"), "Sessions that are open", registry=registry)
        self._bodies = Gauge(
            name("request_body_bytes"),
            "Bytes of requests that are being read or wait for a child",
            registry=registry,
        )
        # Requests that a child has not answered yet.
        self.waiting = 0
        Gauge(
            name("requests_waiting"), "Requests that a child has not answered yet", registry=registry
        ).set_function(lambda: self.waiting)
        self._seconds = _Seconds(name("request_seconds"), "What a child took to answer")
        registry.register(self._seconds)
        self.started = Counter(name("children_started"), "Processes started", registry=registry)
        self.crashed = Counter(
            name("children_crashed"), "Processes that ended without being asked to", registry=registry
        )
        self.orphans = Counter(
            name("orphans_killed"),
            "Processes without a living child's mark that were killed",
            registry=registry,
        )
        self._failures = Counter(
            name("failures"),
            "Requests that no child could serve, by the reason that the client was told",
            ["reason"],
            registry=registry,
        )
        self._limits = Gauge(
            name("child_limit"), "What holds a limit per child; none where nothing does", ["limit", "by"],
            registry=registry,
        )  # fmt: skip

    def watch(
        self,
        children: Callable[[], int],
        warm: Callable[[], int],
        most: int,
        sessions: Callable[[], int],
        bodies: Callable[[], int],
        limits: Mapping[str, str],
    ) -> None:
        """Say where the figures are that are there anyway."""
        self._children.set_function(children)
        self._warm.set_function(warm)
        self._most.set(most)
        self._sessions.set_function(sessions)
        self._bodies.set_function(bodies)
        for limit, by in limits.items():
            self._limits.labels(limit, by).set(1)

    def answered(self, method: str, seconds: float) -> None:
        """A child has answered a request."""
        self._seconds.observe(method, seconds)

    def failed(self, reason: str) -> None:
        """A request could not be served; the reason is one of the bridge's own words."""
        self._failures.labels(reason).inc()

    def text(self) -> str:
        """All of it."""
        return generate_latest(self._registry).decode()
