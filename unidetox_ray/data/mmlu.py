"""MMLU: four-choice questions of 57 subjects (Hendrycks et al. 2021), config `all` of cais/mmlu.

UniDetox takes its example from `dev` (5 a subject) and scores `validation` (1,531 questions), never `test`
(U:944-1009, U:1098-1101). Files are named one by one: the whole config would also bring auxiliary_train, 161
MB. The released code walks the subjects in the order of a Python set; here they are sorted.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from unidetox_ray import schemas
from unidetox_ray.data import files, hub
from unidetox_ray.data.base import Dataset, Options, Request
from unidetox_ray.errors import DataError

HUB_ID = "cais/mmlu"
SPLITS = ("dev", "validation")
HUB_FILES = {split: f"all/{split}-00000-of-00001.parquet" for split in SPLITS}
LOCAL_FILES = {
    split: (
        HUB_FILES[split],
        f"{split}-00000-of-00001.parquet",
        f"mmlu_all_{split}.jsonl",
        f"{split}.jsonl",
        f"{split}.csv",
    )
    for split in SPLITS
}
EXPECTED = {"dev": 285, "validation": 1_531, "subjects": 57}

CHOICE_COLUMNS = tuple(f"choice_{letter}" for letter in "abcd")
#: Spellings of the right choice: 0-3, "0"-"3", a letter, or the name of the choice's column.
ANSWERS: dict[Any, int] = {
    spelling: index
    for index, letter in enumerate("ABCD")
    for spelling in (index, str(index), letter, letter.lower(), f"choice_{letter.lower()}")
}


class MmluOptions(Options):
    """How to read MMLU."""

    expected: dict[str, int] | None = EXPECTED
    """Rows of dev and validation, and number of subjects; what is left out (null: all) is not checked."""
    dev_path: str | None = None
    """File of the dev split inside the folder `path`; null = the usual names."""
    validation_path: str | None = None
    """File of the validation split inside the folder `path`; null = the usual names."""


def load(role: str, request: Request) -> pl.DataFrame:
    """QUIZ: dev, then validation, each by subject name and in source order within a subject.

    A question_id is "<split>-<row in its source split>".
    """
    parts = [_typed(table, split) for split, table in _sources(request).items()]
    table = pl.concat(parts).sort("split", "subject", maintain_order=True)
    subjects = {split: set(table.filter(pl.col("split") == split)["subject"]) for split in SPLITS}
    without = sorted(subjects["validation"] - subjects["dev"])
    if without:
        raise DataError(
            f"MMLU: subject {without[0]!r} has validation questions but no dev question to show as example"
        )
    _check_counts(table, request.options.expected)
    request.notes.update(
        {
            "subjects": table["subject"].n_unique(),
            "duplicate_questions": table.height - table.select("subject", "question", "choices").n_unique(),
        }
    )
    return table


def _sources(request: Request) -> dict[str, pl.DataFrame]:
    if request.path is None:
        local = "a folder with mmlu_all_{dev,validation}.jsonl (question, subject, choices, answer)"
        return hub.fetch(HUB_ID, HUB_FILES, request, local=local)
    return files.split_tables(request, "MMLU", LOCAL_FILES)


def _typed(table: pl.DataFrame, split: str) -> pl.DataFrame:
    where = f"MMLU {split}"
    question = files.text_column(table, "question", where)
    subject = files.text_column(table, "subject", where)
    if "answer" not in table.columns:
        raise DataError(f"{where}: column 'answer' is missing; it holds {', '.join(table.columns)}")
    rows = []
    for index, (choices, answer) in enumerate(
        zip(_choices(table, where), table["answer"].to_list(), strict=True)
    ):
        if len(choices) != 4 or not all(isinstance(choice, str) for choice in choices):
            raise DataError(f"{where} row {index + 1}: expected 4 choices of text, found {len(choices)}")
        key = answer.strip() if isinstance(answer, str) else answer
        if key not in ANSWERS or isinstance(key, bool):
            raise DataError(
                f"{where} row {index + 1}: unknown answer {answer!r}; accepted: 0-3, A-D, choice_a-choice_d"
            )
        rows.append(
            {
                "question_id": f"{split}-{index:05d}",
                "subject": subject[index],
                "question": question[index],
                "choices": choices,
                "answer": ANSWERS[key],
                "split": split,
            }
        )
    return schemas.frame(rows, schemas.QUIZ)


def _choices(table: pl.DataFrame, where: str) -> list[list[str]]:
    if "choices" in table.columns:
        if not isinstance(table.schema["choices"], pl.List):
            raise DataError(
                f"{where}: column 'choices' holds {table.schema['choices']}, expected a list of 4 texts"
            )
        return [[] if choices is None else list(choices) for choices in table["choices"].to_list()]
    columns = CHOICE_COLUMNS if set(CHOICE_COLUMNS) <= set(table.columns) else tuple("ABCD")
    return [
        list(row) for row in zip(*(files.text_column(table, name, where) for name in columns), strict=True)
    ]


def _check_counts(table: pl.DataFrame, expected: dict[str, int] | None) -> None:
    found = {split: table.filter(pl.col("split") == split).height for split in SPLITS}
    found["subjects"] = table["subject"].n_unique()
    for name, count in (expected or {}).items():
        if name not in found:
            raise DataError(f"MMLU: option expected has no {name!r}; accepted: {', '.join(found)}")
        if found[name] != count:
            raise DataError(
                f"MMLU: {found[name]:,} {name if name == 'subjects' else name + ' questions'}, expected "
                f"{count:,}; the files are incomplete (option expected: null reads them all the same)"
            )


DATASET = Dataset(
    name="mmlu",
    roles=("mmlu",),
    licence="MIT",
    citation="Hendrycks et al.: Measuring Massive Multitask Language Understanding, arXiv 2009.03300",
    options=MmluOptions,
    load=load,
    hub_id=HUB_ID,
)
