"""The service: from its environment to its last request."""

import logging

from gatehouse_fetch.fetching import Fetcher
from gatehouse_fetch.reading import Reader
from gatehouse_fetch.settings import EgressSettings
from gatehouse_fetch.tools import create_server
from gatehouse_fetch.workers import Workers
from gatehouse_service.configuration import ConfigurationError, ServiceSettings, addresses, load, stop
from gatehouse_service.native import App, log_to_stdout
from gatehouse_service.serving import serve

# The largest body of a request: a URL and some numbers.
BODY_LIMIT = 64 * 1024


def run(settings: ServiceSettings, fetcher: Fetcher, workers: Workers) -> None:
    """Listen, serve until SIGTERM."""
    log_to_stdout(settings.service)
    logging.getLogger("gatehouse_fetch").setLevel(logging.INFO)
    app = App(settings, create_server(fetcher, Reader(workers), settings.tools), body_limit=BODY_LIMIT)
    serve(app, addresses(settings.listen), settings.drain_seconds)


def main() -> None:
    """Read the configuration, and run."""
    try:
        settings, egress = load(ServiceSettings), load(EgressSettings)
    except ConfigurationError as error:
        stop("\n".join(error.problems))
    workers = Workers()
    run(settings, Fetcher(egress.policy, workers), workers)
