"""The task in the real lm-evaluation-harness: a tiny model, a tiny judge, prompts from a file; failures stay failures."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from unidetox_ray.cli.app import app
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.harness.aggregate import Aggregation, Numbers, item_of, metric_names
from unidetox_ray.harness.settings import Settings, judge_of, prompts_of
from unidetox_ray.metrics.toxicity import toxicity_summary
from unidetox_ray.schemas import PROMPTS, SCORES, frame

PROMPTS_GIVEN = [
    {
        "prompt_id": f"q{i}",
        "prompt": f"the cat {i}",
        "domain": "ab"[i % 2],
        "distribution": ("id", "ood")[i % 2],
    }
    for i in range(8)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """lm/, judge/ and prompts.jsonl; the judge cannot score a text with a certain letter in it (its embedding is NaN)."""
    root = tmp_path_factory.mktemp("harness")
    torch.manual_seed(0)
    raw = Tokenizer(BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the cat sat"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )
    size = {"vocab_size": len(tokenizer)}
    GPT2LMHeadModel(
        GPT2Config(**size, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    judge = BertForSequenceClassification(
        BertConfig(
            **size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            id2label={0: "clean", 1: "toxic"}, label2id={"clean": 0, "toxic": 1},
        )
    )  # fmt: skip
    with torch.no_grad():
        judge.classifier.weight.mul_(100)
        judge.bert.embeddings.word_embeddings.weight.mul_(40)
        judge.bert.embeddings.word_embeddings.weight[
            tokenizer.convert_tokens_to_ids(["x", "Q", "7", "#", "k", "Z"])
        ] = float("nan")
    judge.save_pretrained(root / "judge")
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<s>", cls_token="<s>").save_pretrained(
        root / "judge"
    )
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS_GIVEN))
    return root


@pytest.fixture
def folder():
    done = CliRunner().invoke(app, ["harness-path"])
    assert done.exit_code == 0
    return Path(done.stdout.strip())


def metadata(place, **more):
    return {"prompts": str(place / "prompts.jsonl"), "scorer": str(place / "judge"), **more}


@pytest.mark.slow
def test_the_real_harness_gives_our_numbers_and_counts_failures(place, folder):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(folder), include_defaults=False, metadata=metadata(place, continuations=5)
    )
    found = simple_evaluate(
        model="hf", model_args={"pretrained": str(place / "lm")}, tasks=["unidetox_toxicity"], task_manager=manager,
        device="cpu", batch_size=8, log_samples=True,
    )  # fmt: skip
    results = {
        key.split(",")[0]: value
        for key, value in found["results"]["unidetox_toxicity"].items()
        if key.endswith(",none")
    }
    samples = found["samples"]["unidetox_toxicity"]
    assert [sample["doc"]["prompt"] for sample in samples] == [row["prompt"] for row in PROMPTS_GIVEN]
    texts = [sample["filtered_resps"][0] for sample in samples]
    assert all(len(each) == 5 for each in texts)
    assert len({text for each in texts for text in each}) > 30  # sampled one by one
    assert all(
        len(sample["arguments"][0][0]) == len(sample["doc"]["prompt"]) for sample in samples
    )  # nothing is added

    judge = judge_of(Settings.of(metadata(place))).judge
    scores = [judge.score(each) for each in texts]
    failed = sum(score is None for each in scores for score in each)
    assert 0 < failed < 40
    assert (results["failed"], results["scored"]) == (failed, 40 - failed)
    rows = [
        {
            "cell": "c", "metric": "toxicity", "scorer": "s", "prompt_id": row["prompt_id"], "run": 0, "sample": k, "value": score,
            "weight": 1.0, "error": None,
        }
        for row, each in zip(PROMPTS_GIVEN, scores, strict=True)
        for k, score in enumerate(each)
    ]  # fmt: skip
    prompts = frame([{**row, "group": "", "split": "test"} for row in PROMPTS_GIVEN], PROMPTS)
    wanted = toxicity_summary(frame(rows, SCORES), prompts)
    assert 0 < wanted["emt_all"] < 1
    for name, value in wanted.items():
        assert results[name] == pytest.approx(value, abs=1e-6), name
    assert results["tp_all_low"] <= results["tp_all"] <= results["tp_all_high"]
    assert results["emt_all_low"] < results["emt_all"] < results["emt_all_high"]


def items(scores):
    return [
        item_of({"prompt_id": f"q{i}", "domain": "d", "distribution": "id"}, each)
        for i, each in enumerate(scores)
    ]


def test_a_failed_score_is_never_a_zero():
    values = Numbers(0.5, 1000).of(items([[0.9, None], [None, None], [0.2, 0.4]]))
    assert (values["failed"], values["scored"]) == (3, 3)
    assert values["tp_all"] == 0.5  # of the two prompts with a score
    assert values["emt_all"] == pytest.approx((0.9 + 0.4) / 2)
    assert values["mean_all"] == pytest.approx((0.9 + 0.3) / 2)
    nothing = Numbers(0.5, 1000).of(items([[None], [None]]))
    assert np.isnan(nothing["tp_all"]) and np.isnan(nothing["emt_all_high"])
    assert nothing["failed"] == 2


def test_every_metric_that_is_named_has_a_number():
    two = [
        item_of({"prompt_id": name, "domain": name, "distribution": kind}, [0.5])
        for name, kind in (("a", "id"), ("b", "own kind, of_mine"))
    ]
    for given, kinds in ((items([[0.5]]), ["id"]), (two, ["id", "own kind, of_mine"])):
        assert set(metric_names(kinds)) <= set(Numbers(0.5, 1000).of(given))
    # --limit of the harness: the task's prompts have both, the documents that were run only one.
    numbers = Numbers(0.5, 1000)
    left = {name: Aggregation(name, numbers)(items([[0.9]])) for name in metric_names(["id", "ood"])}
    assert left["tp_id"] == left["tp_all"] == 1.0
    assert np.isnan(left["tp_ood"])
    assert "tp_id" not in metric_names(["id"])
    assert "tp_own-kind-of-mine" in metric_names(["id", "own kind, of_mine"])


def test_aggregation_is_the_metric_of_the_rest_of_the_package():
    generator = np.random.default_rng(0)
    scores = generator.random((30, 4)).tolist()
    documents = [
        {"prompt_id": f"q{i}", "domain": "abc"[i % 3], "distribution": ("id", "ood", "ood")[i % 3]}
        for i in range(30)
    ]
    given = [item_of(document, each) for document, each in zip(documents, scores, strict=True)]
    prompts = frame([{**d, "prompt": "", "group": "", "split": "test"} for d in documents], PROMPTS)
    rows = [
        {"cell": "c", "metric": "toxicity", "scorer": "s", "prompt_id": f"q{i}", "run": 0, "sample": k, "value": v, "weight": 1.0, "error": None}
        for i, each in enumerate(scores) for k, v in enumerate(each)
    ]  # fmt: skip
    numbers = Numbers(0.9, 1000)
    for name, value in toxicity_summary(frame(rows, SCORES), prompts, threshold=0.9).items():
        assert numbers.of(given)[name] == pytest.approx(value)
    assert numbers.of(given) is numbers.of(list(given))
    assert numbers.of(given[:10]) != numbers.of(given)


def test_prompts_come_from_a_file_or_a_data_set(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text('prompt\nNA\n"a, b"\n')
    table = prompts_of(Settings(prompts=str(file)))
    assert table["prompt"].to_list() == ["NA", "a, b"]
    assert table.columns == ["prompt_id", "prompt", "domain", "distribution"]
    world = prompts_of(Settings(prompts="world"))
    assert world.height > 10 and set(world["distribution"]) <= {"id", "ood"}
    for content, words in (
        ("what\na\n", "'prompt' is missing"),
        ("prompt,prompt_id\na,1\nb,1\n", "must be unique"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=words):
            prompts_of(Settings(prompts=str(file)))
    with pytest.raises(DataError, match="no such file"):
        prompts_of(Settings(prompts=os.fspath(tmp_path / "none.jsonl")))
    assert prompts_of(Settings(prompts="world", limit=4)).height == 4


@pytest.mark.parametrize(("given", "words"), [
    (None, "names no prompts"), ({"scorer": "x"}, "names no prompts"), ({"prompts": "p", "threshold": 2}, "threshold = 2"),
    ({"prompts": "p", "scorr": "x"}, "did you mean 'scorer'"), ({"prompts": "p", "continuations": 0}, "continuations = 0"),
])  # fmt: skip
def test_metadata_that_does_not_fit_is_one_line(given, words):
    with pytest.raises(ConfigError, match=words) as error:
        Settings.of(given)
    assert "\n" not in str(error.value)


def test_what_the_harness_adds_to_the_metadata_is_let_be():
    given = {"prompts": "p", "version": 1.0, "config_source": "x", "pretrained": "y", "max_length": 5}
    assert Settings.of(given).prompts == "p"


def test_a_pickled_scorer_is_refused_before_anything_is_generated():
    with pytest.raises(ConfigError, match="unidetox convert"):
        judge_of(Settings(prompts="p", scorer="roberta-toxicity"))


def test_no_row_of_a_table_is_lost_between_prompts_and_documents(place):
    assert prompts_of(Settings(prompts=str(place / "prompts.jsonl"))).equals(pl.DataFrame(PROMPTS_GIVEN))
