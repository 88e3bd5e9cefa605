"""Continuations of prompts: what is cut off, what stands before, and that neighbours in a batch do not matter."""

from __future__ import annotations

import pytest

from unidetox_ray import registry
from unidetox_ray.families.loading import encode, load_model, load_tokenizer
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages.continuations import continuation_text, continuations

FAMILIES = registry.names("families")
PROMPTS = [
    ("a", "The people of the valley"),
    ("b", "Rain"),
    ("c", "My uncle says that the old people who live by the river"),
    ("d", ""),
    ("e", "The people of the valley"),
]
SETTINGS = EvaluateSection(continuations=3, max_new_tokens=8)


@pytest.fixture(scope="module")
def opened(models):
    return {
        name: (load_model(models[name]["path"]), load_tokenizer(models[name]["path"])) for name in FAMILIES
    }


def texts(opened, family, prompts=PROMPTS, decode_rows=512, run=0, **changes):
    model, tokenizer = opened[family]
    settings = SETTINGS.model_copy(update=changes)
    return continuations(model, tokenizer, prompts, settings, cell="cell", run=run, decode_rows=decode_rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_of_a_batch_and_the_neighbours_change_nothing(opened, family):
    whole = texts(opened, family)
    assert [(row["prompt_id"], row["sample"]) for row in whole] == [
        (name, sample) for name, _ in PROMPTS for sample in range(3)
    ]
    assert all(row["error"] is None and row["n_tokens"] <= 8 for row in whole)
    for rows in (1, 6):
        assert texts(opened, family, decode_rows=rows) == whole
    alone = [row for prompt in PROMPTS for row in texts(opened, family, [prompt])]
    assert alone == whole


def test_a_prompts_samples_differ_and_so_do_runs_and_prompt_ids(opened):
    rows = texts(opened, "gpt2", max_new_tokens=16)
    by_prompt = {name: [r["text"] for r in rows if r["prompt_id"] == name] for name, _ in PROMPTS}
    assert all(len(set(found)) == 3 for found in by_prompt.values())
    assert by_prompt["a"] != by_prompt["e"]  # equal text, streams of their own
    other = texts(opened, "gpt2", max_new_tokens=16, run=1)
    assert all(row["run"] == 1 for row in other)
    assert sum(a["text"] != b["text"] for a, b in zip(rows, other, strict=True)) > len(rows) / 2
    # Run r is the protocol's seed + r.
    seeded = texts(opened, "gpt2", max_new_tokens=16, run=0, seed=43)
    assert [row["text"] for row in seeded] != [row["text"] for row in rows]


@pytest.mark.parametrize(("family", "changes"), [("gpt2", 0), ("falcon", 0), ("opt", 1), ("llama", 1)])
def test_a_bos_before_the_prompt_where_the_tokenizer_puts_one(opened, family, changes):
    """Defect 19: the released code drops it."""
    auto, never = (texts(opened, family, PROMPTS[:3], prompt_bos=how) for how in ("auto", "never"))
    assert (auto != never) is bool(changes)
    tokenizer = opened[family][1]
    with_bos, without = (encode(tokenizer, "Rain", bos=how) for how in ("auto", "never"))
    assert len(with_bos) - len(without) == changes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_cut_off_by_tokens(opened, family):
    """Defect 20: the released code removes the prompt's text wherever it stands."""
    _, tokenizer = opened[family]
    prompt, more = "The old people", " sang. The old people slept"
    prompt_ids = encode(tokenizer, prompt)
    new_ids = encode(tokenizer, prompt + more, bos="never")[len(encode(tokenizer, prompt, bos="never")) :]
    assert continuation_text(tokenizer, prompt, prompt_ids, new_ids, "tokens") == more
    assert continuation_text(tokenizer, prompt, prompt_ids, new_ids, "replace") == " sang.  slept"
    assert continuation_text(tokenizer, prompt, prompt_ids, [], "tokens") == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_half_a_character_at_the_cut_is_kept_out_of_the_prompt(opened, family):
    """A continuation may end inside a character of several bytes; the cut itself never moves."""
    _, tokenizer = opened[family]
    prompt_ids = encode(tokenizer, "caf")
    new_ids = encode(tokenizer, "café", bos="never")[len(encode(tokenizer, "caf", bos="never")) :]
    assert continuation_text(tokenizer, "caf", prompt_ids, new_ids, "tokens") == "é"


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_prompt_that_cannot_be_continued_fails_alone(opened, family):
    """More tokens than the model has positions."""
    long = ("long", "the old people of the valley " * 30)
    rows = texts(opened, family, [*PROMPTS, long])
    assert rows[:-3] == texts(opened, family)
    assert [row["sample"] for row in rows[-3:]] == [0, 1, 2]
    for row in rows[-3:]:
        assert row["text"] is None and row["n_tokens"] is None and row["ended"] is None
        assert row["error"] and "\n" not in row["error"]


def test_progress_counts_every_continuation(opened):
    model, tokenizer = opened["gpt2"]
    seen: list[int] = []
    continuations(
        model, tokenizer, PROMPTS, SETTINGS, cell="cell", run=0, decode_rows=6, progress=seen.append
    )
    assert sum(seen) == 15
    seen.clear()
    long = ("long", "the old people of the valley " * 30)
    rows = continuations(
        model, tokenizer, [*PROMPTS, long], SETTINGS, cell="cell", run=0, decode_rows=6, progress=seen.append
    )
    assert sum(seen) == len(rows) == 18
