"""MMLU and quizzes in its layout: which of four answers does a language model find most likely?

Released code U:944-1009: one worked example of the same subject (the first of the dev split), the answer's text
in place of a letter, options never listed ("cloze"); the answer whose full text has the highest log-probability wins,
ties go to the first. As released the log-probability is a bf16 mean loss times the length, a grid of nats that can
outweigh the answers' differences (defect 30); by default the answer's own tokens are summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from unidetox_ray.errors import DataError
from unidetox_ray.metrics.base import Metric, Number, Tables
from unidetox_ray.metrics.items import item_numbers
from unidetox_ray.metrics.likelihood import (
    DEFAULT_BUDGET,
    accepted,
    encode,
    longest_input,
    spans,
    start_ids,
)
from unidetox_ray.metrics.prefix_tree import Label, common


def measured(tables: Tables) -> Iterator[Number]:
    """`mmlu` of every cell; the questions are the clusters."""
    return item_numbers(tables, "mmlu", weight=pl.lit(1.0), ceiling=1.0)


METRIC = Metric(
    name="mmlu",
    direction="higher",
    range=(0.0, 1.0),
    unit="share of questions",
    description="Share of four-choice questions answered correctly, pooled over subjects.",
    source="Hendrycks et al. 2021; UniDetox section 4; released code U:944-1009",
    measured=measured,
)

LETTERS = ("A", "B", "C", "D")
CHOICES = 4

Form = Literal["cloze", "letters"]
Score = Literal["full_text", "answer_tokens"]


class QuizAnswers(NamedTuple):
    """One entry per question of the split, in the table's order.

    correct: 1.0 or 0.0, None = not answered. predicted: index of the chosen answer. error: why there is none.
    """

    correct: list[float | None]
    predicted: list[int | None]
    error: list[str | None]
    question_ids: list[str]


def item_text(question: str, choices: Sequence[str], answer: int, form: Form) -> tuple[str, str]:
    """(what is given, what is scored) of one question; the second begins with the space after "Answer:"."""
    if form == "cloze":
        return f"Question: {question}\nAnswer:", f" {choices[answer]}"
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"Question: {question}\n{options}\nAnswer:", f" {LETTERS[answer]}"


def prefixes(quiz: pl.DataFrame, shots: int, form: Form = "cloze") -> dict[str, str]:
    """Worked examples of each subject: its first `shots` dev items, each followed by an empty line.

    A subject with fewer dev items than that is left out, as released.
    """
    found: dict[str, str] = {}
    dev = quiz.filter(pl.col("split") == "dev")
    for (subject,), items in dev.group_by("subject", maintain_order=True):
        if items.height >= shots:
            pairs = [
                item_text(item["question"], item["choices"], item["answer"], form)
                for item in items.head(shots).iter_rows(named=True)
            ]
            found[str(subject)] = "".join(f"{given}{answer}\n\n" for given, answer in pairs)
    return found


def quiz_answers(
    model: Any,
    tokenizer: Any,
    quiz: pl.DataFrame,
    *,
    split: str = "validation",
    shots: int = 1,
    form: Form = "cloze",
    score: Score = "answer_tokens",
    loss_dtype: Literal["fp32", "bf16"] = "fp32",
    normalise: bool = False,
    bos: bool = False,
    token_budget: int = DEFAULT_BUDGET,
) -> QuizAnswers:
    """The model's answers to the questions of `split` in a QUIZ table that also holds the dev items.

    score "full_text": log-probability of everything after the first token, as released; "answer_tokens": of the
    tokens after "Answer:" only. loss_dtype "bf16": the mean over the scored tokens is rounded to bf16 and multiplied
    by their number, as released. normalise: divide by the number of scored tokens. A text longer than the model loses
    tokens on the left, after BOS, as many for each of the four answers of a question.
    """
    for name, value, known in (
        ("form", form, ("cloze", "letters")),
        ("score", score, ("full_text", "answer_tokens")),
        ("loss_dtype", loss_dtype, ("fp32", "bf16")),
    ):
        accepted(f"mmlu.{name}", value, known)
    asked = quiz.filter(pl.col("split") == split)
    if asked.height == 0:
        raise DataError(
            f"quiz: holds no question of split {split!r}; it holds {sorted(quiz['split'].unique().to_list())}"
        )
    shown = prefixes(quiz, shots, form) if shots else dict.fromkeys(asked["subject"].to_list(), "")
    answers = QuizAnswers(
        [None] * asked.height, [None] * asked.height, [None] * asked.height, asked["question_id"].to_list()
    )

    rows, contexts, wholes = [], [], []
    for row, item in enumerate(asked.iter_rows(named=True)):
        answers.error[row] = _fault(item, shown, shots)
        if answers.error[row] is None:
            rows.append(row)
            for choice in range(CHOICES):
                given, answer = item_text(item["question"], item["choices"], choice, form)
                contexts.append(shown[item["subject"]] + given)
                wholes.append(contexts[-1] + answer)
    sequences, starts, cut = _tokens(model, tokenizer, contexts, wholes, bos, score)
    # Cut on the left, a question no longer begins with its subject's worked examples.
    subjects = asked["subject"].to_list()
    labels: list[Label] = [
        (
            subjects[rows[i // CHOICES]] if i // CHOICES not in cut else ("cut", i // CHOICES),
            i // CHOICES,
        )
        for i in range(len(sequences))
    ]
    found = spans(model, sequences, starts, labels=labels, token_budget=token_budget)
    nll = np.array(found.nll).reshape(-1, CHOICES)
    scored = np.array([len(s) - start for s, start in zip(sequences, starts, strict=True)]).reshape(
        -1, CHOICES
    )
    if loss_dtype == "bf16":
        nll = _through_bf16(nll / np.maximum(scored, 1)) * scored
    if normalise:
        nll = nll / np.maximum(scored, 1)
    truth = asked["answer"].to_list()
    failures = [found.error[i : i + CHOICES] for i in range(0, len(found.error), CHOICES)]
    for row, values, counts, failed in zip(rows, nll, scored, failures, strict=True):
        if any(failed):
            answers.error[row] = next(error for error in failed if error)
        elif not np.isfinite(values).all():
            answers.error[row] = "the model gave no finite likelihood"
        elif (counts < 1).any():
            answers.error[row] = "an answer has no tokens"
        else:
            answers.predicted[row] = int(np.argmin(values))
            answers.correct[row] = float(answers.predicted[row] == truth[row])
    return answers


def answer_questions(
    model: Any, tokenizer: Any, quiz: pl.DataFrame, **settings: Any
) -> tuple[list[float | None], list[int | None]]:
    """(correct, predicted) of `quiz_answers`, which takes the same settings and also says why an answer is missing."""
    answers = quiz_answers(model, tokenizer, quiz, **settings)
    return answers.correct, answers.predicted


def _fault(item: Mapping[str, Any], shown: Mapping[str, str], shots: int) -> str | None:
    choices = item["choices"]
    if not isinstance(item["question"], str) or choices is None or len(choices) != CHOICES or None in choices:
        return f"not a question with {CHOICES} answers"
    if item["answer"] not in range(CHOICES):
        return f"answer {item['answer']} is not 0 to {CHOICES - 1}"
    if item["subject"] not in shown:
        return f"fewer than {shots} dev items of its subject"
    return None


def _tokens(
    model: Any, tokenizer: Any, contexts: list[str], wholes: list[str], bos: bool, score: Score
) -> tuple[list[list[int]], list[int], set[int]]:
    """Sequences and where scoring starts: one per answer, four in a row for a question; and which questions were cut."""
    first, limit = start_ids(tokenizer, bos), longest_input(model)
    distinct = list(dict.fromkeys(contexts))
    given = dict(zip(distinct, encode(tokenizer, distinct), strict=True))
    sequences = [[*first, *ids] for ids in encode(tokenizer, wholes)]
    # Text is tokenised whole, as a model reads it; the answer starts where it parts from its context's tokens.
    starts = [
        len(first) + common(given[c], s[len(first) :]) for c, s in zip(contexts, sequences, strict=True)
    ]
    cut: set[int] = set()
    for question in range(0, len(sequences), CHOICES):
        four = range(question, question + CHOICES)
        over = max(len(sequences[i]) for i in four) - limit if limit else 0
        if over > 0:
            cut.add(question // CHOICES)
            for i in four:
                sequences[i] = [*first, *sequences[i][len(first) + over :]]
                starts[i] = max(len(first), starts[i] - over)
    starts = [max(1, start if score == "answer_tokens" else 1) for start in starts]
    return sequences, [min(start, len(s)) for start, s in zip(starts, sequences, strict=True)], cut


def _through_bf16(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    import torch

    return torch.tensor(values).float().bfloat16().double().numpy()
