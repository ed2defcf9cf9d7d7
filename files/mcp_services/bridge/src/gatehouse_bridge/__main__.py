"""`python -m gatehouse_bridge`: run the bridge."""

import gc
import logging

from gatehouse_bridge import tree
from gatehouse_bridge.app import App
from gatehouse_bridge.direct import protocol
from gatehouse_bridge.launch import Launcher
from gatehouse_bridge.log import Handler, Log
from gatehouse_bridge.settings import Settings, load_secrets
from gatehouse_service.configuration import ConfigurationError, addresses, load, stop
from gatehouse_service.serving import serve


def main() -> None:
    """Read the configuration, listen, serve until SIGTERM."""
    try:
        settings = load(Settings)
        secrets = load_secrets(settings)
        log = Log(settings.service, secrets.values)
        launcher = Launcher(settings, secrets, log)
    except ConfigurationError as error:
        stop("\n".join(error.problems))
    logging.basicConfig(handlers=[Handler(log)], level=logging.WARNING)
    tree.become_subreaper()
    app = App(settings, launcher, log)
    # What is loaded by now stays: the collector need not look at it again.
    gc.freeze()
    serve(app, addresses(settings.listen), settings.drain_seconds, app.drain, protocol(app))


if __name__ == "__main__":
    main()
