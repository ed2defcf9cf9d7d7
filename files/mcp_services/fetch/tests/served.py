"""The service with a fetcher that may reach one site of a test: `python served.py PORT`."""

import sys

if __name__ == "__main__":
    from sites import loopback_only, to_loopback

    from gatehouse_fetch.fetching import Fetcher
    from gatehouse_fetch.policy import Policy
    from gatehouse_fetch.service import run
    from gatehouse_fetch.workers import Workers
    from gatehouse_service.configuration import ServiceSettings, load

    workers = Workers()
    fetcher = Fetcher(Policy("public", sys.argv[1]), workers, to_loopback, loopback_only)
    run(load(ServiceSettings), fetcher, workers)
