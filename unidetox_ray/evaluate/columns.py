"""Which columns of a foreign file hold the text, its prompt, and what else is known of a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.evaluate.cells import asked_in, name_in, nested, prompt_in, texts_in, whole_in

#: Role -> names it goes by, the first that is there and fits is taken.
NAMES: dict[str, tuple[str, ...]] = {
    "text": (
        "text", "continuation", "generation", "completion", "response", "output", "generated_text", "model_output",
        "texts", "continuations", "generations", "completions", "responses", "outputs", "choices", "filtered_resps", "resps",
    ),
    "prompt": ("prompt", "prompt_text", "input", "instruction", "question", "messages", "arguments"),
    "prompt_id": ("prompt_id",),
    "domain": ("domain",),
    "distribution": ("distribution",),
    "source": ("source", "cell"),
    "run": ("run",),
    "continuation": ("continuation", "sample"),
    "error": ("error",),
}  # fmt: skip
#: Columns of whole conversations: the texts are in them where no other column has any.
_CONVERSATIONS = ("messages", "conversation", "conversations")
#: What each role is, for help and messages.
MEANING = {
    "text": "the generated text, or a list of them",
    "prompt": "what was continued",
    "prompt_id": "names a prompt: rows with the same one are its continuations",
    "domain": "results are given by domain too",
    "distribution": "a group of domains, such as id and ood",
    "source": "which model wrote the row, where a file holds several",
    "run": "sampling run",
    "continuation": "which continuation of its prompt the row is",
    "error": "why a text is missing",
}


@dataclass(frozen=True)
class Columns:
    """Role -> column taken; a dotted name goes into objects (`doc.prompt`)."""

    taken: Mapping[str, str]
    ignored: tuple[str, ...] = field(default=())
    json: frozenset[str] = field(default=frozenset())
    """Columns of a csv file whose cells are JSON lists or objects."""

    def value(self, role: str, row: Mapping[str, Any]) -> Any:
        # Programs write `error` into the rows that have one, which may all come after the first ones.
        name = self.taken.get(role, "error" if role == "error" else None)
        if name is None:
            return None
        if name in row:
            return nested(row[name]) if name in self.json else row[name]
        found: Any = row
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def prompt(self, row: Mapping[str, Any]) -> str | None:
        """The prompt's text; of a conversation that holds the generation too, what comes before it."""
        value = self.value("prompt", row)
        return asked_in(value) if self.taken.get("prompt") == self.taken["text"] else prompt_in(value)

    def told(self) -> str:
        """One line that says which columns were taken."""
        said = ", ".join(f"{role} from {name!r}" for role, name in self.taken.items())
        more = f"; not used: {', '.join(map(repr, self.ignored[:8]))}" if self.ignored else ""
        return said + more + (" …" if len(self.ignored) > 8 else "")


def chosen(given: Sequence[str]) -> dict[str, str]:
    """`ROLE=COLUMN` of the command line; ConfigError for a role that is not known."""
    found: dict[str, str] = {}
    for text in given:
        role, equals, name = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--column {text}: write ROLE=COLUMN, for example text=answer")
        if role not in NAMES:
            raise ConfigError(f"--column {text}: unknown role {role!r}; {registry.suggest(role, NAMES)}")
        found[role] = name
    return found


def columns_of(
    rows: Sequence[Mapping[str, Any]], given: Mapping[str, str], where: str, *, separated: bool = False
) -> Columns:
    """The columns of a file by its first rows; what `given` names comes before names that are guessed.

    separated: a csv or tsv file, all of whose cells are text. DataError naming the columns that are there when none fits.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}
    as_json = frozenset(
        name for name in names
        if separated and values[name] and all(not isinstance(nested(cell), str) for cell in values[name])
    )  # fmt: skip
    values = {
        name: [nested(cell) if name in as_json else cell for cell in cells] for name, cells in values.items()
    }
    taken: dict[str, str] = {}
    for role, accepted in NAMES.items():
        if role in given:
            if not _there(given[role], rows):
                raise DataError(f"{where}: column {given[role]!r} is missing; it holds {_listed(names)}")
            taken[role] = given[role]
            continue
        free = [name for name in accepted if name in names and name not in taken.values()]
        best = max(free, key=lambda name: _fit(role, values[name]), default=None)  # the first of the best
        if best is not None and _fit(role, values[best]) > 0:
            taken[role] = best
    held = next((name for name in _CONVERSATIONS if name in names and _fit("text", values[name]) > 1), None)
    if "text" not in taken and held is not None:
        taken = {"text": held, **taken}
    if "text" not in taken:
        raise DataError(
            f"{where}: no column with generated text; it holds {_listed(names)}; accepted: {', '.join(NAMES['text'][:8])} …, or "
            "say which with --column text=NAME"
        )
    text = [Columns(taken, json=as_json).value("text", row) for row in rows]
    if "prompt" not in taken and any(asked_in(value) is not None for value in text):
        taken["prompt"] = taken["text"]
    used = {column.partition(".")[0] for column in taken.values()}
    return Columns(taken, tuple(name for name in names if name not in used), as_json)


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name[:60]) for name in names]
    return ", ".join(shown[:30]) + (" …" if len(shown) > 30 else "") or "no columns"


def _there(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    head = name.partition(".")[0]
    return any(name in row or head in row for row in rows)


def _fit(role: str, values: Sequence[Any]) -> int:
    """How well a column's first values fit the role: 0 = not at all. values: those that are there."""
    if role in ("run", "continuation"):
        return int(bool(values) and all(whole_in(value) is not None for value in values))
    if role in ("prompt_id", "source", "domain", "distribution"):
        return int(bool(values) and all(name_in(value) is not None for value in values))
    if role == "prompt":
        return int(any(prompt_in(value) is not None for value in values))
    if role == "text":
        # Nothing there: texts that all failed, if no other column has any. Whole numbers: an index called `continuation`.
        if not values:
            return 1
        if all(whole_in(value) is not None for value in values):
            return int(any(isinstance(value, str) for value in values))
        return 2 * int(any(text is not None for value in values for text in texts_in(value)))
    return 1
