"""`bench score`: toxicity, perplexity or MMLU in batches, against one text at a time; tokenizers included on both sides."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from unidetox_ray.bench import plain
from unidetox_ray.bench.limits import Needs, costs_of, limits_of, reading_needs
from unidetox_ray.bench.options import Options
from unidetox_ray.bench.result import BenchResult
from unidetox_ray.bench.setting import Place, place_of
from unidetox_ray.bench.shapes import causal_model, check_room, saved_classifier, texts_of, words
from unidetox_ray.bench.timing import Clock, forget_peak, seconds_of, wait_for
from unidetox_ray.errors import StageError

SHORTEST, LONGEST = 5, 60
COPIES, NEW_TOKENS = 25, 20
_BUDGET = 16384

Values = list[float | None]


@dataclass
class Contest:
    """The same judgements by the package and one at a time. plain takes how many of the items to judge."""

    items: int
    tokens: int
    """Real tokens that are read, those of a shared prompt once a text."""
    needs: Needs
    ours: Callable[[], Values]
    plain: Callable[[int], list[float]]
    model: Any
    notes: dict[str, Any]


def run(options: Options) -> BenchResult:
    """Judgements of made-up texts. batch: padded tokens in a batch, at most."""
    with place_of(options, cpu_size="gpt2", gpu_size="gpt2") as place:
        if options.kind == "toxicity":
            place = replace(place, dtype=torch.float32)  # what the classifier is always opened in
        else:
            check_room(place.size, 1, place.device, place.dtype.itemsize)
        limits_of(place.device, place.dtype)
        clock = Clock()
        forget_peak(place.device)
        with _CONTESTS[options.kind](place, options) as contest:
            wait_for(place.device)
            clock.warm(contest.ours, place.device)
            if options.plain:
                seconds_of(lambda: contest.plain(min(4, contest.items)), place.device)
            clock.race(
                contest.ours, (lambda: contest.plain(contest.items)) if options.plain else None, place.device,
                repeats=options.repeats, patience=options.patience,
            )  # fmt: skip
            notes = contest.notes | {"largest_difference": _difference(contest, min(100, contest.items))}
            limits = limits_of(place.device, place.dtype)
            return BenchResult(
                name="score", device=str(place.device), dtype=place.dtype_name, batch=options.batch or _BUDGET,
                seconds=clock.seconds, warmup_seconds=clock.warmup_seconds, tokens_per_second=contest.tokens / clock.seconds,
                ratio_to_plain=clock.ratio, share_of_limit=limits.seconds(contest.needs) / clock.seconds, peak_gib=clock.peak_gib,
                extra={
                    **place.described(), "kind": options.kind, **notes, "tokens": contest.tokens, "batch_is": "padded tokens, at most",
                    "ratio": "plain / ours", "first_seconds": clock.prepared + clock.first, "runs": clock.runs,
                    "plain_runs": clock.plain_runs, **limits.as_dict(),
                    "needs_gb": contest.needs.bytes / 1e9, "needs_gflop": contest.needs.operations / 1e9,
                },
            )  # fmt: skip


def _difference(contest: Contest, count: int) -> float:
    """The largest difference of the first `count` judgements. StageError where one is missing: no number then."""
    ours = contest.ours()[:count]
    missing = sum(value is None for value in ours)
    if missing:
        raise StageError(f"bench score: {missing} of {count} judgements are missing; nothing was measured")
    pairs = zip(ours, contest.plain(count), strict=True)
    return max(abs(one - other) for one, other in pairs if one is not None)


@contextmanager
def _toxicity(place: Place, options: Options) -> Iterator[Contest]:
    from unidetox_ray.metrics.toxicity import ToxicityClassifier

    with tempfile.TemporaryDirectory(prefix="unidetox-bench-") as folder:
        saved_classifier(place.size, folder)
        classifier = ToxicityClassifier(folder, device=str(place.device))
    texts = texts_of(
        classifier.tokenizer, options.texts or (5000 if place.on_gpu else 200), SHORTEST, LONGEST
    )
    lengths = [len(ids) for ids in classifier.tokenizer(texts)["input_ids"]]
    costs = costs_of(classifier.model)
    yield Contest(
        items=len(texts), tokens=sum(lengths), needs=reading_needs(costs, lengths, causal=False),
        ours=lambda: classifier.score(texts, token_budget=options.batch or _BUDGET),
        plain=lambda count: plain.label_scores(
            classifier.model, classifier.tokenizer, texts[:count], index=classifier.index, max_length=classifier.max_length
        ),
        model=classifier.model, notes={"texts": len(texts), "parameters": costs.parameters},
    )  # fmt: skip


def _judge(place: Place) -> tuple[Any, Any]:
    from unidetox_ray.families.tokenizers import gpt2

    model = causal_model(place.size, place.device, place.dtype)
    # Trained on the texts' own words: its ids stay far below the model's vocabulary, which costs the same.
    return model, gpt2([" ".join(words(2000))], min(4000, model.config.vocab_size))


@contextmanager
def _perplexity(place: Place, options: Options) -> Iterator[Contest]:
    from unidetox_ray.metrics.perplexity import continuation_nll

    model, tokenizer = _judge(place)
    texts = options.texts or (2500 if place.on_gpu else 100)
    distinct = texts_of(tokenizer, -(-texts // COPIES), 5, 40)
    prompts = [distinct[row // COPIES] for row in range(texts)]
    continuations = [f" {text}" for text in texts_of(tokenizer, texts, NEW_TOKENS, NEW_TOKENS, seed=1)]
    start = [tokenizer.bos_token_id]

    def encoded(count: int) -> tuple[list[list[int]], list[int]]:
        sequences, starts = [], []
        for prompt, continuation in zip(prompts[:count], continuations[:count], strict=True):
            before = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
            sequences.append(before + tokenizer(continuation, add_special_tokens=False)["input_ids"])
            starts.append(len(before))
        return sequences, starts

    sequences, starts = encoded(texts)
    # The least: each prompt once for all its continuations.
    costs, heads = costs_of(model), sum(len(s) for s in sequences) - sum(starts)
    shared = sum(starts[::COPIES])
    full = reading_needs(costs, [len(s) for s in sequences], causal=True, heads=heads)
    saved = 2.0 * (costs.matrix - costs.head) * (sum(starts) - shared)
    yield Contest(
        items=texts, tokens=sum(len(s) for s in sequences), needs=replace(full, operations=full.operations - saved),
        ours=lambda: continuation_nll(
            model, tokenizer, prompts, continuations, bos=True, token_budget=options.batch or _BUDGET
        ).nll,
        plain=lambda count: plain.span_nlls(model, *encoded(count)),
        model=model, notes={"texts": texts, "prompts": len(distinct), "parameters": costs.parameters},
    )  # fmt: skip


@contextmanager
def _mmlu(place: Place, options: Options) -> Iterator[Contest]:
    import polars as pl

    from unidetox_ray.metrics.mmlu import item_text, prefixes, quiz_answers

    model, tokenizer = _judge(place)
    asked = options.texts or (500 if place.on_gpu else 40)
    subjects = max(1, asked // 20)
    questions = texts_of(tokenizer, asked + subjects, 10, 80)
    answers = texts_of(tokenizer, 4 * (asked + subjects), 2, 12, seed=1)
    quiz = pl.DataFrame(
        {
            "question_id": [str(row) for row in range(asked + subjects)],
            "subject": [f"subject{row % subjects}" for row in range(asked + subjects)],
            "question": questions,
            "choices": [answers[4 * row : 4 * row + 4] for row in range(asked + subjects)],
            "answer": [row % 4 for row in range(asked + subjects)],
            "split": ["dev"] * subjects + ["validation"] * asked,
        }
    )
    shown = prefixes(quiz, 1)
    items = list(quiz.filter(pl.col("split") == "validation").iter_rows(named=True))

    def encoded(count: int) -> tuple[list[list[int]], list[int]]:
        sequences, starts = [], []
        for item in items[:count]:
            for choice in range(4):
                given, answer = item_text(item["question"], item["choices"], choice, "cloze")
                context = tokenizer(shown[item["subject"]] + given, add_special_tokens=False)["input_ids"]
                whole = tokenizer(shown[item["subject"]] + given + answer, add_special_tokens=False)[
                    "input_ids"
                ]
                sequences.append(whole)
                starts.append(len(context))
        return sequences, starts

    def one_by_one(count: int) -> list[float]:
        nll = torch.tensor(plain.span_nlls(model, *encoded(count))).view(-1, 4)
        truth = torch.tensor([item["answer"] for item in items[:count]])
        return (nll.argmin(dim=1) == truth).double().tolist()

    sequences, starts = encoded(asked)
    costs, heads = costs_of(model), sum(len(s) - start for s, start in zip(sequences, starts, strict=True))
    full = reading_needs(costs, [len(s) for s in sequences], causal=True, heads=heads)
    # The least: the worked example once a subject, the question once for its four answers.
    examples = {subject: len(tokenizer(text)["input_ids"]) for subject, text in shown.items()}
    saved = sum(starts) - sum(examples.values())
    saved -= sum(start - examples[item["subject"]] for item, start in zip(items, starts[::4], strict=True))
    operations = full.operations - 2.0 * (costs.matrix - costs.head) * saved
    yield Contest(
        items=asked, tokens=sum(len(s) for s in sequences), needs=replace(full, operations=operations),
        ours=lambda: quiz_answers(model, tokenizer, quiz, shots=1, token_budget=options.batch or _BUDGET).correct,
        plain=one_by_one, model=model, notes={"questions": asked, "subjects": subjects, "parameters": costs.parameters},
    )  # fmt: skip


_CONTESTS = {"toxicity": _toxicity, "perplexity": _perplexity, "mmlu": _mmlu}
