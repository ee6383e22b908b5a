# SPDX-License-Identifier: Apache-2.0
"""Logs on standard error: pretty on a terminal, one JSON object a line elsewhere.

A relay's log must not become the leak. So an exception is told by its type and where it came from; its
message, which a library may have filled with anything, is told at level debug only, and local variables
never are. A value that is no text, number or list of those is told by its type.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, MutableMapping
from pathlib import PurePath
from types import TracebackType
from typing import Any, NoReturn, TextIO

from detector.base.errors import ExitprintError
from detector.base.journal import is_journal, priority
from detector.base.log_options import LogFormat, LogLevel

# structlog imports rich when it is there, for tracebacks that we do not want: 6 MB in each process. So
# whoever logs imports `get_logger` from here, never structlog.
_rich_is_ours = "rich" in sys.modules
if not _rich_is_ours:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402  must follow the line above

if not _rich_is_ours:
    del sys.modules["rich"]

Event = MutableMapping[str, Any]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FRAMES = 8
_CHAIN = 5


def get_logger() -> Any:
    """A structlog logger: an event in plain words, and keyword arguments for what belongs to it."""
    return structlog.get_logger()


def configure(
    process: str, form: LogFormat = "auto", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Set up logging for this process, and for what would otherwise print a traceback.

    Args:
        process: what `process` says in every line: sensor, aggregator or loader.
        form: pretty, json, or auto for pretty on a terminal.
        level: the least level to write; debug also tells the messages of exceptions.
        stream: where to write, standard error unless given.
    """
    stream = sys.stderr if stream is None else stream
    pretty = form == "pretty" or (form == "auto" and stream.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _naming(process),
            _telling_exceptions(messages=level == "debug"),
            _plain_values,
            _renderer(stream, pretty=pretty),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=_Unbreakable(stream)),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    _take_library_logs(messages=level == "debug")
    _take_uncaught()


def leave(status: int) -> NoReturn:
    """End this process; a log that can be written no more is no other status."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def describe_exception(error: BaseException, *, messages: bool = False) -> str:
    """An exception and its causes as types and places, the newest first.

    An `ExitprintError` is told in full: it is made for people. Other messages only if `messages` is set.
    """
    told: list[str] = []
    current: BaseException | None = error
    while current is not None and len(told) < _CHAIN:
        told.append(f"{_kind(current, messages=messages)} at {_places(current.__traceback__)}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "; after ".join(told)


def _kind(error: BaseException, *, messages: bool) -> str:
    name = type(error).__qualname__
    if isinstance(error, ExitprintError) or messages:
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.errno:
        return f"{name}[{errno.errorcode.get(error.errno, error.errno)}]"
    return name


def _places(trace: TracebackType | None) -> str:
    frames = [
        f"{PurePath(frame.f_code.co_filename).name}:{line}:{frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(trace)
    ]
    return " < ".join(reversed(frames[-_FRAMES:])) or "no place"


def _naming(process: str) -> Callable[[Any, str, Event], Event]:
    def add(_logger: Any, _method: str, event: Event) -> Event:
        event["process"] = process
        return event

    return add


def _telling_exceptions(*, messages: bool) -> Callable[[Any, str, Event], Event]:
    def tell(_logger: Any, _method: str, event: Event) -> Event:
        error = event.pop("exc_info", None)
        if isinstance(error, tuple):
            error = error[1]
        elif error and not isinstance(error, BaseException):
            error = sys.exception()
        if error:
            event["exception"] = describe_exception(error, messages=messages)
        return event

    return tell


def _plain_values(_logger: Any, _method: str, event: Event) -> Event:
    return {key: _plain(value) for key, value in event.items()}


def _plain(value: object) -> object:
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, PurePath | ExitprintError):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return f"<{type(value).__name__}>"


def _renderer(stream: TextIO, *, pretty: bool) -> Any:
    lines = _pretty_lines(colours=_wants_colours(stream)) if pretty else structlog.processors.JSONRenderer()
    if not is_journal(stream):
        return lines

    def with_priority(logger: Any, method: str, event: Event) -> str:
        return priority(str(event.get("level", method))) + str(lines(logger, method, event))

    return with_priority


def _pretty_lines(*, colours: bool) -> Any:
    """The renderer for people; before 25.5 the width of its first column had another name."""
    renderer: Any = structlog.dev.ConsoleRenderer
    wide = "pad_event_to" if "pad_event_to" in inspect.signature(renderer).parameters else "pad_event"
    return renderer(colors=colours, exception_formatter=structlog.dev.plain_traceback, **{wide: 0})


def _wants_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Unbreakable:
    """A stream whose reader may go away: a lost log line must not stop a relay's service."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _LibraryLogs(logging.Handler):
    """Passes a library's warnings on as who and where; what they say only if `messages` is set."""

    def __init__(self, *, messages: bool) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        told: dict[str, Any] = {"logger": record.name, "where": f"{record.filename}:{record.lineno}"}
        if self._messages:
            told["message"] = record.getMessage()
        get_logger().warning("library", exc_info=record.exc_info, **told)


def _take_library_logs(*, messages: bool) -> None:
    logging.basicConfig(handlers=[_LibraryLogs(messages=messages)], level=logging.WARNING, force=True)


def _take_uncaught() -> None:
    sys.excepthook = lambda _kind, error, _trace: _uncaught(error)
    threading.excepthook = lambda args: _uncaught(args.exc_value)
    sys.unraisablehook = lambda args: _uncaught(args.exc_value)


def _uncaught(error: BaseException | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return
    get_logger().error("unexpected error", exc_info=error)
