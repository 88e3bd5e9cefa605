"""Errors that a user can cause or can act on, and the exit codes they end a command with.

    UnidetoxError
    ├── ConfigError     a setting, a flag or an experiment file is wrong                exit 2
    ├── DataError       a data file or a table does not hold what it should             exit 2
    ├── ModelError      a model or tokenizer cannot be loaded or used                   exit 2
    ├── ArtifactError   something stored by an earlier run is damaged or foreign        exit 2
    ├── StageError      a stage failed while it worked                                  exit 1
    ├── OutOfMemory     work did not fit into the device's memory                       exit 1
    └── TrackingError   the tracking store did not take what was to be recorded         exit 1

A message is one line and says where, what the value was, what is accepted and what to do. What a file or a model wrote into
it cannot steer the terminal: control and direction characters stand there as escapes, secrets as ***.
"""

from unidetox_ray.secrecy import redacted

EXIT_OK = 0
EXIT_STAGE_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_SOME_CELLS_FAILED = 3

LONGEST_MESSAGE = 1500


def printable(text: str) -> str:
    """One line that a terminal shows as it is: blanks joined, unprintable characters as escapes, cut at LONGEST_MESSAGE."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 1]}…"


class UnidetoxError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = EXIT_STAGE_FAILED

    def __str__(self) -> str:
        return printable(redacted(super().__str__()))


class ConfigError(UnidetoxError):
    """A setting, a flag or an experiment file is wrong."""

    exit_code = EXIT_USER_ERROR


class DataError(UnidetoxError):
    """A data file or table does not hold what it should."""

    exit_code = EXIT_USER_ERROR


class ModelError(UnidetoxError):
    """A model or tokenizer cannot be loaded or used."""

    exit_code = EXIT_USER_ERROR


class ArtifactError(UnidetoxError):
    """Something that an earlier run stored is damaged or does not belong here."""

    exit_code = EXIT_USER_ERROR


class StageError(UnidetoxError):
    """A stage failed while it worked."""


class OutOfMemory(UnidetoxError):
    """Work did not fit into the device's memory; less of it at once may."""


class TrackingError(UnidetoxError):
    """The tracking store did not take what was to be recorded; the results themselves are not touched by it."""


def kind_named(name: str) -> type[UnidetoxError]:
    """The class above that has this name, StageError for every other: how a kind crosses a process border as text."""
    return {kind.__name__: kind for kind in UnidetoxError.__subclasses__()}.get(name, StageError)
