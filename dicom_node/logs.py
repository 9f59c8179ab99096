"""JSON logs: job ids and UIDs, never a patient attribute; texts of others are withheld."""

import json
import logging
import sys
import threading
import time
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any

OUR_PACKAGES = ("dicom_node", "storage", "inference", "__main__")
# These speak of processes, sockets and messages (whose arguments are ids), never of data sets.
QUIET_PACKAGES = ("celery", "kombu", "amqp", "redis", "uvicorn.error", "alembic")
# `extra=` keys that may stand in a line. A patient attribute is not among them, so it cannot slip in.
FIELDS = frozenset(
    {
        "study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid",
        "transfer_syntax_uid", "job_id", "job_ids", "delivery_id", "destination", "rule", "model",
        "model_version", "outcome", "reason", "attempt", "seconds", "status", "http_status", "evidence",
        "process_name", "pid", "exit_status", "count", "calling_ae", "called_ae", "peer", "port",
        "bytes", "result", "digest", "method", "route", "delay_s", "user",
    }
)  # fmt: skip
WITHHELD = "(text withheld: it may carry patient values)"
NOISY = ("highdicom", "pydicom", "pynetdicom", "py.warnings", "kombu", "amqp", "alembic")
MAX_BYTES = 10 * 1024 * 1024

logger = logging.getLogger(__name__)

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what could carry a patient value is left out here, in one place."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for `record`."""
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage() if _is_trusted(record.name) else WITHHELD,
        }
        line |= {key: value for key, value in vars(record).items() if key in FIELDS}
        if not _is_trusted(record.name):
            line["where"] = f"{record.pathname}:{record.lineno}"
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = describe_exception(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def describe_exception(exc_info: ExceptionInfo) -> dict[str, Any]:
    """Kind and place of an exception; its text only where it is one of ours."""
    kind, error, trace = exc_info
    if kind is None:
        return {}
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]
    text = str(error) if kind.__module__.split(".")[0] in OUR_PACKAGES else WITHHELD
    return {"kind": f"{kind.__module__}.{kind.__qualname__}", "text": text, "places": places}


def safe_text(error: BaseException) -> str:
    """What may be told of `error` in a row or an answer: its kind, and its text where it is ours."""
    kind = type(error)
    if kind.__module__.split(".")[0] in OUR_PACKAGES:
        return str(error)
    return f"{kind.__name__}: {error.strerror}" if isinstance(error, OSError) else kind.__name__


def configure_logging(home: Path, process: str, level: str, *, to_stderr: bool = False) -> None:
    """Send all logs of this process to HOME/logs/<process>.log, and to stderr where it runs alone."""
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = RotatingFileHandler(folder / f"{process}.log", maxBytes=MAX_BYTES, backupCount=5, encoding="utf-8")
    handlers: list[logging.Handler] = [file]
    if to_stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(JsonFormatter())
    logging.captureWarnings(capture=True)  # pydicom's warnings quote values: withheld as any foreign text
    logging.basicConfig(level=level, handlers=handlers, force=True)
    logging.getLogger("uvicorn.access").disabled = True  # query strings name patients
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.excepthook = _tell_the_end
    threading.excepthook = _tell_the_end_of_a_thread
    for noisier in ("kombu.connection", "celery.app.trace"):  # "no host name", "succeeded"
        logging.getLogger(noisier).setLevel(logging.ERROR)


def _tell_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of Python's own hook, which writes the text of any error to stderr, so into a file."""
    if issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("an error ended the process", exc_info=(kind, error, trace))


def _tell_the_end_of_a_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None and told.exc_type is not SystemExit:
        exc_info = told.exc_type, told.exc_value, told.exc_traceback
        logger.critical("an error ended a thread", exc_info=exc_info)


def _is_trusted(logger: str) -> bool:
    if logger == "celery.app.trace":  # quotes the exceptions of tasks
        return False
    return logger.split(".", maxsplit=1)[0] in OUR_PACKAGES or logger.startswith(QUIET_PACKAGES)
