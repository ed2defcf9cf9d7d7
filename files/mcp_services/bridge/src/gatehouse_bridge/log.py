"""The log: one JSON object a line on standard output. No message of a client or a server is ever in it."""

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime


class Log:
    """Writes events.

    Args:
        service: The name of the service.
        secrets: Values that are blotted out should a child print them.
    """

    def __init__(self, service: str, secrets: Iterable[str] = ()) -> None:
        """See the class."""
        self._service = service
        # The longest first: one secret may begin with another.
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def __call__(self, event: str, level: str = "info", **fields: object) -> None:
        """Write one event."""
        record = {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": event,
            "service": self._service,
        } | fields
        sys.stdout.write(json.dumps(record, default=str) + "\n")
        sys.stdout.flush()

    def clean(self, text: str) -> str:
        """The text without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class Handler(logging.Handler):
    """Warnings of libraries, in the form of the log. Of an exception only its type and place."""

    def __init__(self, log: Log) -> None:
        """See the class."""
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fields = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[0]:
            trace = record.exc_info[2]
            while trace and trace.tb_next:
                trace = trace.tb_next
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
            fields = {"logger": record.name, "error": record.exc_info[0].__name__, "where": where}
        self._log("fault", record.levelname.lower(), **fields)
