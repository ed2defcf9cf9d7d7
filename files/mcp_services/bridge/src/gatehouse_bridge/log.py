"""The log: one JSON object a line on standard output. No message of a client or a server is ever in it."""

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

# A shorter line of a secret tells nothing, and may stand in any text.
LINE_MIN = 8


class Log:
    """Writes events.

    Args:
        service: The name of the service.
        secrets: Values that are blotted out should a child print them.
    """

    def __init__(self, service: str, secrets: Iterable[str] = ()) -> None:
        """See the class."""
        self._service = service
        # A child's output is cleaned line by line, and a secret may have several.
        blotted = {part for secret in secrets for part in (secret, *_telling_lines(secret)) if part}
        # The longest first: one secret may begin with another.
        self._secrets = sorted(blotted, key=len, reverse=True)

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

    def clean(self, text: str, cut: bool = False) -> str:
        """The text without the secrets; where it was cut, also without the beginning of one at its end."""
        if cut:
            begun = min((_begins(secret, text) for secret in self._secrets), default=len(text))
            text = text[:begun] + ("***" if begun < len(text) else "")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _telling_lines(secret: str) -> list[str]:
    return [line for line in secret.splitlines() if len(line) >= LINE_MIN]


def _begins(secret: str, text: str) -> int:
    """Where a secret begins that the text ends in the middle of; the text's length where none does."""
    at = text.find(secret[0], max(0, len(text) - len(secret)))
    while at >= 0 and not secret.startswith(text[at:]):
        at = text.find(secret[0], at + 1)
    return at if at >= 0 else len(text)


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
