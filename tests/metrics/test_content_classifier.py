"""Labels of any text classifier over corpora: one at a time = batched, heads, intervals, failures, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from unidetox_ray.artifacts import file_sha256
from unidetox_ray.errors import ArtifactError, DataError, ModelError
from unidetox_ray.metrics import content
from unidetox_ray.metrics.classifier import LexiconClassifier
from unidetox_ray.metrics.content_classifier import (
    JUDGED,
    ContentClassifier,
    difference,
    judge_labels,
    judge_toxicity,
    label_columns,
    numbers,
)
from unidetox_ray.metrics.stats import Interval
from unidetox_ray.schemas import check

LEANING = ("left", "centre", "right")


def save(place, tokenizer, problem_type):
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24, problem_type=problem_type,
        id2label=dict(enumerate(LEANING)), label2id={name: i for i, name in enumerate(LEANING)},
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(30)
        model.bert.embeddings.word_embeddings.weight.mul_(20)
    model.save_pretrained(place)
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="<s>", cls_token="<s>")
    copy.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return save(tmp_path_factory.mktemp("leaning"), tokenizer, "single_label_classification")


@pytest.fixture(scope="module")
def classifier(folder):
    return ContentClassifier(folder)


@pytest.fixture(scope="module")
def texts(odd_texts, classifier):
    return [text for text in odd_texts if classifier.tokenizer(text)["input_ids"]]


def logits_of(classifier, text):
    encoded = classifier.tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        return classifier.model(**encoded).logits[0]


@pytest.mark.parametrize("budget", [1, 16384])
def test_all_labels_in_one_pass_are_those_of_one_text_at_a_time(classifier, texts, budget):
    found, at_limit = classifier.probabilities(texts, token_budget=budget)
    wanted = [logits_of(classifier, text).softmax(-1).tolist() for text in texts]
    assert np.allclose(found, wanted, atol=1e-5) and classifier.errors == [None] * len(texts)
    assert classifier.labels == LEANING and classifier.max_length == 24
    lengths = [len(classifier.tokenizer(text)["input_ids"]) for text in texts]
    assert at_limit == [length >= 24 for length in lengths] and 0 < sum(at_limit) < len(texts)
    assert len({max(range(3), key=row.__getitem__) for row in found}) > 1


def test_a_multi_label_head_gives_each_label_its_own_probability(tmp_path, tokenizer):
    multi = ContentClassifier(save(tmp_path, tokenizer, "multi_label_classification"))
    found, _ = multi.probabilities(["the cat sat", "why?"])
    assert np.allclose(found[0], logits_of(multi, "the cat sat").sigmoid().tolist(), atol=1e-5)
    assert multi.about()["head"] == "multi-label"
    assert label_columns(np.array([[0.9, 0.6, 0.5]]), "multi-label").tolist() == [[1, 1, 0]]


def test_what_the_classifier_is_stands_beside_its_rows(classifier, folder):
    about = classifier.about()
    assert about["sha256"] == file_sha256(Path(folder) / "model.safetensors") and about["labels"] == list(
        LEANING
    )
    table = judge_labels("leaning", "mine", ["the cat", ""], classifier, about=about | {"source": "named"})
    check(table, JUDGED, "judged")
    assert table["row"].to_list() == [0, 1] and '"source": "named"' in table["about"][0]
    # "" has no token for this tokenizer: a failure with its reason, and no number.
    assert table["values"][1] is None and table["error"].to_list() == [None, "no token to judge"]
    with pytest.raises(ArtifactError, match="expected 00"):
        ContentClassifier(folder, sha256="0" * 64)


def test_models_without_a_trained_head_are_refused(tmp_path, tokenizer, gpt2):
    gpt2.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match="holds GPT2LMHeadModel; give a text-classification model"):
        ContentClassifier(str(tmp_path / "lm"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        ContentClassifier(str(tmp_path))
    with pytest.raises(ModelError, match="regression"):
        ContentClassifier(save(tmp_path / "number", tokenizer, "regression"))


def test_the_most_probable_label_is_given_and_failures_stay_open():
    given_ = label_columns(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [math.nan] * 3]), "single-label")
    assert given_[:2].tolist() == [[0, 1, 0], [1, 0, 0]] and np.isnan(given_[2]).all()


def test_shares_have_intervals_and_differences_of_independent_texts():
    generator = np.random.default_rng(0)
    columns = {
        "a": (generator.random(400) < 0.6).astype(float),
        "b": (generator.random(300) < 0.3).astype(float),
        "none": np.zeros(100),
    }
    found = numbers(columns, "b")
    for corpus, values in columns.items():
        entry = found[corpus]
        assert entry["value"] == pytest.approx(values.mean()) and entry["n"] == len(values)
        assert entry["ci_low"] <= entry["value"] <= entry["ci_high"]
    assert found["b"]["diff"] is None
    a, b = found["a"], found["b"]
    # The bootstrap agrees with the normal approximation, alone and for the difference.
    half = 1.96 * math.sqrt(a["value"] * (1 - a["value"]) / 400)
    assert a["ci_high"] - a["ci_low"] == pytest.approx(2 * half, rel=0.1)
    both = 1.96 * math.sqrt(a["value"] * (1 - a["value"]) / 400 + b["value"] * (1 - b["value"]) / 300)
    assert a["diff"] == pytest.approx(a["value"] - b["value"])
    assert a["diff_high"] - a["diff_low"] == pytest.approx(2 * both, rel=0.1)
    assert a["diff_low"] > 0 and found["none"]["diff_high"] < 0
    # Never seen in 100 texts: at most 3 in 100.
    assert found["none"]["ci_high"] == pytest.approx(0.03)


def test_two_corpora_without_a_single_case_are_not_proved_equal():
    found = numbers({"a": np.zeros(50), "b": np.zeros(200)}, "b")["a"]
    assert found["diff"] == 0 and found["diff_low"] == pytest.approx(-0.015)
    assert found["diff_high"] == pytest.approx(0.06)


@given(*[st.tuples(*[st.floats(0, 1)] * 3).map(sorted)] * 2)
@settings(max_examples=60, deadline=None)
def test_differences_are_antisymmetric_and_hold_their_value(first, second):
    ours, theirs = (Interval(value, low, high) for low, value, high in (first, second))
    there, back = difference(ours, theirs), difference(theirs, ours)
    assert there.low <= there.value <= there.high
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_many_failures_withhold_the_number_and_few_are_counted():
    few, many = np.array([1.0] * 199 + [math.nan]), np.array([1.0, math.nan])
    found = numbers({"few": few, "many": many, "all": np.array([math.nan])}, "few", max_failed_share=0.01)
    assert (found["few"]["value"], found["few"]["failed"], found["few"]["n"]) == (1.0, 1, 199)
    assert found["many"]["value"] is None and found["many"]["reason"].startswith("1 of 2 texts failed")
    assert found["many"]["diff"] is None and found["all"]["value"] is None


@pytest.fixture
def corpora(tmp_path):
    paths = {}
    for label, texts in {"a": ["the blorp sat", "the mat", "a cat"], "b": ["why so", "it is"]}.items():
        paths[label] = tmp_path / f"{label}.parquet"
        pl.DataFrame({"text": texts}).write_parquet(paths[label])
    return paths


def test_an_analysis_with_a_classifier_and_a_word_list(corpora, classifier):
    words = LexiconClassifier(["blorp"])
    judged = pl.concat(
        judge_toxicity("words", label, content.read(path).texts, words, {"source": "word list"})
        for label, path in corpora.items()
    )
    value = content.analyse(corpora, "b", classifiers={"leaning": classifier}, judged=judged)
    toxicity, leaning = value["judges"]
    assert (toxicity["judge"], toxicity["kind"], toxicity["texts_at_limit"]) == ("words", "toxicity", None)
    means = {entry["corpus"]: entry["mean"]["value"] for entry in toxicity["numbers"]}
    assert means == {"a": pytest.approx(1 / 3), "b": 0}
    shares = {(row["corpus"], row["label"]): row["share"]["value"] for row in leaning["numbers"]}
    means = {(row["corpus"], row["label"]): row["mean"]["value"] for row in leaning["numbers"]}
    for label, path in corpora.items():
        assert sum(shares[label, name] for name in LEANING) == pytest.approx(1)
        texts = content.read(path).texts
        probabilities = np.array([logits_of(classifier, text).softmax(-1).tolist() for text in texts])
        assert [means[label, name] for name in LEANING] == pytest.approx(
            probabilities.mean(axis=0).tolist(), abs=1e-5
        )
        wanted = np.bincount(probabilities.argmax(axis=1), minlength=3) / len(texts)
        assert [shares[label, name] for name in LEANING] == pytest.approx(wanted.tolist())
    assert leaning["about"]["sha256"] == classifier.sha256 and leaning["texts_at_limit"] == {"a": 0, "b": 0}


def test_judgements_of_other_texts_are_refused(corpora, classifier):
    judged = judge_labels("leaning", "a", ["the cat"], classifier)
    with pytest.raises(DataError, match="'a' are of 1 texts, the corpus has 3"):
        content.analyse(corpora, "b", judged=judged)
