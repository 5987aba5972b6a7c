"""One JSON object per log line, with the request's id. Never image bytes."""

import json
import logging
import warnings
from datetime import UTC, datetime

from reluguard.service.edge import request_id

__all__ = ["JsonFormatter", "set_up"]

# gRPC's, each with a trace: of metadata that is no text, a token too, and of callers who have gone
_CALLERS_DOING = ("Invalid encoding on", "ExecuteBatchError raised in core by servicer method")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON.

    Args:
        process: number of this process among those of a server; None where it is the only one.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
        }
        if self._process is not None:
            line["process"] = self._process
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _is_ours(record: logging.LogRecord) -> bool:
    """Return whether a line of gRPC's says more than what a caller did."""
    return not str(record.msg).startswith(_CALLERS_DOING)


def set_up(level: str, process: int | None = None) -> None:
    """Send the whole process's log to standard error as JSON. For `main` only."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_ours)
    logging.captureWarnings(capture=True)
    # of each note in a caller's file that doesn't fit, in words that Python remembers for good
    warnings.filterwarnings("ignore", module=r"PIL\.")
