"""`python -m gatehouse_echo`: run the service."""

import json
import logging
import sys
from datetime import UTC, datetime

from gatehouse_echo.app import App
from gatehouse_service.configuration import ConfigurationError, ServiceSettings, addresses, load, stop
from gatehouse_service.serving import serve


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Of an exception only its type: its text could quote a request."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.name,
            "service": self._service,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0]:
            fields["error"] = record.exc_info[0].__name__
        return json.dumps(fields)


def main() -> None:
    """Read the configuration, listen, serve until SIGTERM."""
    try:
        settings = load(ServiceSettings)
    except ConfigurationError as error:
        stop("\n".join(error.problems))
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(settings.service))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    serve(App(settings), addresses(settings.listen), settings.drain_seconds)


if __name__ == "__main__":
    main()
