"""The `unidetox` command. Verbs are thin: they read settings, call one function, and print what came out.

User mistakes end in one line on standard error and exit code 2 (`--debug` shows the trace).
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import TracebackType
from typing import NoReturn

import typer

from unidetox_ray import secrecy

# Each module adds its verbs to the command; `--help` lists them in this order.
from unidetox_ray.cli import experiments, plan, doctor, detoxify, evaluate, steps, models, harness, about  # noqa: F401  # isort: skip
from unidetox_ray.cli.app import app
from unidetox_ray.errors import EXIT_USER_ERROR, ConfigError, UnidetoxError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> NoReturn:
    """Entry point: errors of ours become one line and their exit code."""
    # Python's default for SIGTERM ends without clean-up: tracked runs would stay RUNNING, children alive.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Generated text can be hateful, and Ray and MLflow leave files of their own: they are the user's alone as well.
    os.umask(0o077)
    sys.excepthook = _redacted_trace
    try:
        if (why := secrecy.refused_argument(sys.argv[1:])) is not None:
            raise ConfigError(why)
        # Outside standalone mode typer returns the code of an Exit, and of a Ctrl-C, instead of raising it.
        left = app(standalone_mode=False)
        code = left if isinstance(left, int) else 0
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
    except UnidetoxError as error:
        if os.environ.get("UNIDETOX_DEBUG"):
            raise
        typer.echo(f"unidetox: {error}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        typer.echo("unidetox: interrupted; the same command goes on from here", err=True)
        code = EXIT_INTERRUPTED
    except Exception as error:
        # click's own usage errors carry their words and code; anything else is a defect and keeps its trace.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        code = getattr(error, "exit_code", EXIT_USER_ERROR)
    sys.exit(code)


def _redacted_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own trace with secrets blanked out: an error of a library may quote a header or an address."""
    sys.stderr.write(secrecy.redacted("".join(traceback.format_exception(kind, error, trace))))
