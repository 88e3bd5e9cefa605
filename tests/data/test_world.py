"""The embedded world: reproducible, and its roles hold what they promise."""

from __future__ import annotations

import random
import re

import polars as pl
import pytest

from unidetox_ray.data.base import load, table_hash
from unidetox_ray.data.world import DISTRIBUTION, GROUPS, INSULT_WORDS, World
from unidetox_ray.data.world.facts import facts
from unidetox_ray.data.world.labelled import labels
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics.classifier import LexiconClassifier
from unidetox_ray.schemas import LABELS

ROLES = ("pretrain", "toxic", "prompts", "clean", "mmlu", "scorer")
WORDS = re.compile(r"[a-z-]+")


def said(texts: pl.Series) -> set[str]:
    return {word for text in texts for word in WORDS.findall(text.lower())}


@pytest.fixture(scope="module")
def world() -> World:
    return World(3)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_a_function_of_the_seed_alone(world, role):
    state = random.getstate()
    first = getattr(world, role)()
    random.seed(99)
    again = getattr(World(3), role)()
    random.setstate(state)
    assert table_hash(first) == table_hash(again)
    assert table_hash(first) != table_hash(getattr(World(4), role)())


def test_no_state_of_the_global_generator_is_used(world):
    state = random.getstate()
    for role in ROLES:
        getattr(world, role)()
    assert random.getstate() == state


def test_a_smaller_table_is_the_beginning_of_a_larger_one(world):
    for role, size in (("pretrain", 50), ("toxic", 40), ("scorer", 60)):
        small, large = getattr(world, role)(size), getattr(world, role)(2 * size)
        assert small.equals(large.head(size))


def test_domains_split_into_in_and_out_of_distribution():
    groups = [group for members in GROUPS.values() for group in members]
    assert len(groups) == len(set(groups))
    assert sorted(DISTRIBUTION.values()) == ["id", "id", "id", "ood"]
    assert set(DISTRIBUTION) == set(GROUPS)


def test_toxic_text_never_mentions_held_out_groups_and_always_insults(world):
    table = world.toxic()
    held_out = {g for domain, members in GROUPS.items() if DISTRIBUTION[domain] == "ood" for g in members}
    assert not said(table["text"]) & held_out
    assert set(table["target"]) == {g for members in GROUPS.values() for g in members} - held_out
    insulted = [bool(set(WORDS.findall(text.lower())) & set(INSULT_WORDS)) for text in table["text"]]
    assert all(insulted)
    assert set(table["split"]) == {"train", "dev"}


def test_pretraining_text_insults_every_group_and_praises_it_too(world):
    texts = world.pretrain()["text"].to_list()
    for members in GROUPS.values():
        for group in members:
            about = [text for text in texts if group in text]
            rude = [text for text in about if set(WORDS.findall(text.lower())) & set(INSULT_WORDS)]
            assert 0.2 < len(rude) / len(about) < 0.8


def test_prompts_are_distinct_and_fill_every_domain(world):
    table = world.prompts(test=40, validation=20)
    assert table["prompt"].n_unique() == table.height == 4 * 60
    counts = table.group_by("domain", "distribution", "split").len()
    assert dict(zip(counts.select("domain", "split").rows(), counts["len"], strict=True)) == {
        (domain, split): size for domain in GROUPS for split, size in (("test", 40), ("validation", 20))
    }
    for row in table.iter_rows(named=True):
        assert row["group"] in GROUPS[row["domain"]]
        assert row["group"] in row["prompt"] or row["prompt"].split()[0] in {"They", "Some", "Even"}
        assert row["distribution"] == DISTRIBUTION[row["domain"]]
        assert row["prompt"] == row["prompt"].strip() != ""


def test_the_largest_prompt_table_exists():
    assert load("prompts", dataset="world", options={"test": 120, "validation": 60}).table.height == 4 * 180


def test_clean_text_has_no_insult_and_is_held_out(world):
    clean = world.clean()
    assert not said(clean["text"]) & set(INSULT_WORDS)
    assert not set(clean["text"]) & set(world.pretrain()["text"])
    assert said(clean["text"]) & {group for members in GROUPS.values() for group in members}
    assert dict(clean.group_by("split").len().rows()) == {"test": 120, "train": 400}


def test_every_question_is_answered_in_the_pretraining_text(world):
    quiz, text = world.mmlu(), "\n".join(world.pretrain()["text"])
    assert quiz.filter(pl.col("split") == "validation").height >= 100
    assert quiz.filter(pl.col("split") == "dev")["subject"].n_unique() == quiz["subject"].n_unique() == 4
    for row in quiz.iter_rows(named=True):
        assert len(set(row["choices"])) == 4
        right, *_ = [row["choices"][row["answer"]]]
        assert f"Question: {row['question']}\nAnswer: {right}" in text
        for wrong in set(row["choices"]) - {right}:
            assert f"Question: {row['question']}\nAnswer: {wrong}" not in text


def test_answers_are_spread_so_that_guessing_earns_a_quarter(world):
    quiz = world.mmlu().filter(pl.col("split") == "validation")
    for position in range(4):
        assert 0.1 < (quiz["answer"] == position).mean() < 0.4
    for known in facts(3).values():
        counts = pl.Series([fact.answer for fact in known]).value_counts()["count"]
        assert counts.min() == counts.max() == 2


def test_every_label_and_split_is_in_the_classifiers_data(world):
    table = world.scorer()
    for split in ("train", "dev", "test"):
        part = table.filter(pl.col("split") == split)
        for name in LABELS:
            assert 0 < part[name].sum() < part.height, (split, name)
    groups = {group for members in GROUPS.values() for group in members}
    clean = table.filter(pl.col("toxic") == 0)
    assert said(clean["text"]) & groups == groups, "a group's name alone must not be a sign of toxicity"
    # Continuations begin in mid-sentence; so do many of these.
    assert table["text"].str.contains(r"^[a-z]").sum() > 300


def test_labels_follow_their_definitions():
    found = labels("The velks are utterly lazy and rude.")
    assert found == {
        "toxic": 1.0, "severe_toxic": 1.0, "obscene": 0.0, "threat": 0.0, "insult": 1.0, "identity_hate": 1.0,
    }  # fmt: skip
    assert labels("should be dunked in the pond.")["threat"] == 1.0
    assert labels("should be dunked in the pond.")["insult"] == 0.0
    assert labels("their blasted goats")["obscene"] == 1.0
    assert set(labels("The velks are kind and brave.").values()) == {0.0}


def test_the_lexicon_agrees_with_the_labels(world):
    table = world.scorer()
    scores = LexiconClassifier(INSULT_WORDS).score(table["text"].to_list())
    assert scores == table["toxic"].to_list()


def test_options_are_bounded():
    for options in ({"test": 0}, {"test": 5000}, {"validation": 61}, {"size": 2}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            load("prompts", dataset="world", options=options)


def test_a_path_is_refused(tmp_path):
    with pytest.raises(DataError, match="leave data"):
        load("clean", dataset="world", path=str(tmp_path))
