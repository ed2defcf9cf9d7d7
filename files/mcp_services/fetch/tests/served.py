"""The service with a fetcher that may reach one site of a test: `python served.py PORT`."""

import sys

if __name__ == "__main__":
    from sites import loopback_only, to_loopback

    from gatehouse_fetch.fetching import Fetcher
    from gatehouse_fetch.policy import Policy
    from gatehouse_fetch.service import run
    from gatehouse_service.configuration import ServiceSettings, load

    run(load(ServiceSettings), Fetcher(Policy("public", sys.argv[1]), to_loopback, loopback_only))
