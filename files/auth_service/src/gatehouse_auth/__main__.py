"""`python -m gatehouse_auth`: run the service."""

import logging
import traceback

from gatehouse_auth.app import create_app
from gatehouse_auth.audit import Log
from gatehouse_auth.context import build
from gatehouse_auth.direct import protocol
from gatehouse_auth.settings import Settings, load_secrets
from gatehouse_service.configuration import ConfigurationError, addresses, load, stop
from gatehouse_service.serving import serve


class JsonHandler(logging.Handler):
    """Libraries' warnings, in the log's form. Of an exception, where it happened and its type: a message
    could quote what must not be logged."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fields: dict[str, str] = {}
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            fields["error"] = record.exc_info[0].__name__
            fields["where"] = " > ".join(f"{frame.filename}:{frame.lineno}" for frame in frames[-8:])
            self._log.event("fault", "error", logger=record.name, **fields)
        else:
            self._log.event("log", record.levelname.lower(), logger=record.name, message=record.getMessage())


def main() -> None:
    """Read the configuration, listen, serve until SIGTERM."""
    try:
        settings = load(Settings)
        secrets = load_secrets(settings)
    except ConfigurationError as error:
        stop("\n".join(error.problems))
    log = Log()
    logging.basicConfig(handlers=[JsonHandler(log)], level=logging.WARNING)
    app = create_app(build(settings, secrets, log))
    direct = protocol(app.internal, log.flush)
    serve(app, addresses(settings.listen), settings.drain_seconds, protocol=direct)
    log.flush()


if __name__ == "__main__":
    main()
