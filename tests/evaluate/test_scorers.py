"""Scorers of the command line: which label, which head, what is refused; probabilities against the model's own forward."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from unidetox_ray.errors import ArtifactError, ConfigError, ModelError
from unidetox_ray.evaluate.scorers import opened, specs_of

TEXTS = ["you are a fine person", "what a day", "no"]


@pytest.fixture(scope="module")
def made(judge, tmp_path_factory):
    """`made(labels, problem_type)`: folder of a random classifier with the judge's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(judge)

    def build(labels, problem=None, decoder=False):
        torch.manual_seed(4)
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        if decoder:
            ends = {"bos_token_id": 0, "eos_token_id": 0}
            config = GPT2Config(
                vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, **ends, **names
            )
            model = GPT2ForSequenceClassification(config)
        else:
            config = BertConfig(
                vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                max_position_embeddings=64, problem_type=problem, **names,
            )  # fmt: skip
            model = BertForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8)
        place = tmp_path_factory.mktemp("made") / "odd name"
        model.save_pretrained(place)
        if decoder:
            copy = AutoTokenizer.from_pretrained(judge)
            copy.pad_token, copy.eos_token = None, "[SEP]"
            copy.save_pretrained(place)
        else:
            tokenizer.save_pretrained(place)
        return place

    return build


def logits(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])


def score(folder, **options):
    return opened(specs_of([str(folder)], **options)[0], "cpu")


def test_softmax_share_of_one_label_and_of_several(made):
    folder = made(["hate", "offensive", "neither"])
    shares = logits(folder).softmax(-1)
    assert score(folder, labels=["hate"]).judge.score(TEXTS) == pytest.approx(shares[:, 0].tolist(), abs=1e-5)
    both = score(folder, maps=["hate=toxic,offensive=toxic,neither=clean"])
    assert both.judge.score(TEXTS) == pytest.approx(shares[:, :2].sum(-1).tolist(), abs=1e-5)
    assert both.about["label"] == "hate+offensive" and both.about["head"] == "softmax"
    assert both.name == "odd-name"


def test_sigmoid_of_a_multi_label_head_and_the_larger_of_two(made):
    folder = made(["toxic", "threat", "insult"], "multi_label_classification")
    sigmoids = logits(folder).sigmoid()
    assert score(folder).judge.score(TEXTS) == pytest.approx(sigmoids[:, 0].tolist(), abs=1e-5)
    both = score(folder, labels=["threat+insult"])
    assert both.judge.score(TEXTS) == pytest.approx(sigmoids[:, 1:].amax(-1).tolist(), abs=1e-5)
    assert both.about["head"] == "sigmoid"
    # The same weights read the other way are another scorer.
    other = score(folder, activation="softmax")
    assert other.judge.score(TEXTS) == pytest.approx(logits(folder).softmax(-1)[:, 0].tolist(), abs=1e-5)
    assert len({score(folder).key, both.key, other.key}) == 3


def test_one_logit_is_a_sigmoid_whatever_its_label_is_called(made):
    folder = made(["LABEL_0"])
    found = score(folder)
    assert found.judge.score(TEXTS) == pytest.approx(logits(folder).sigmoid()[:, 0].tolist(), abs=1e-5)
    assert found.about["label"] == "LABEL_0"
    with pytest.raises(ModelError, match="softmax makes 1"):
        score(folder, activation="softmax")


def test_regression_is_no_probability_unless_said(made):
    folder = made(["LABEL_0"], "regression")
    with pytest.raises(ModelError, match="regression"):
        score(folder)
    assert score(folder, activation="sigmoid").judge.score(["a"])[0] is not None


def test_a_decoder_without_a_padding_token_scores_in_batches(made):
    folder = made(["clean", "toxic"], decoder=True)
    wanted = logits(folder).softmax(-1)[:, 1].tolist()
    judge = score(folder).judge
    assert judge.score(TEXTS * 2) == pytest.approx(wanted * 2, abs=1e-5) and judge.errors == [None] * 6


@pytest.mark.parametrize("said", [None, 64, 512])
def test_positions_behind_the_padding_are_not_counted(said, judge, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(judge)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.model_max_length = said or 10**30
    tokenizer.save_pretrained(tmp_path)
    found = score(tmp_path, labels=["LABEL_1"])
    assert found.about["max_tokens"] == 64
    assert None not in found.judge.score(["day " * 300, "day"]) and found.judge.full == [True, False]


def test_of_a_long_text_only_what_counts_is_read(judge):
    found = score(judge).judge
    words = [f"day{n} fine" for n in range(40_000)]
    long = [
        "x" * 50_000 + " fine day",
        " ".join(words),
        "  " * 30_000 + "what a day",
        "é🙂" * 20_000,
        "fine " * 500,
    ]
    whole = found.tokenizer(long, truncation=True, max_length=found.max_length)["input_ids"]
    heads = [found._head(text) for text in long]
    assert found.tokenizer(heads, truncation=True, max_length=found.max_length)["input_ids"] == whole
    assert len(heads[1]) < 10_000 and heads[2] == long[2]
    found.tokenizer.truncation_side = "left"
    assert found._head(long[1]) == long[1]


def test_a_classifier_without_its_tokenizer_is_refused(made):
    place = made(["clean", "toxic"])
    for path in place.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="knows no words"):
        score(place)


def test_which_label_means_toxic_has_to_be_said(made):
    folder = made(["LABEL_0", "LABEL_1"])
    with pytest.raises(ModelError, match=r"none of its labels \['LABEL_0', 'LABEL_1'\] is called toxic"):
        score(folder)
    with pytest.raises(ModelError, match="label 'LABEL_2' is not one of"):
        score(folder, labels=["LABEL_2"])
    with pytest.raises(ConfigError, match="lacks 'LABEL_0'"):
        score(folder, maps=["LABEL_1=toxic"])
    with pytest.raises(ConfigError, match="names 'label_7'"):
        score(folder, maps=["LABEL_1=toxic,LABEL_0=clean,LABEL_7=clean"])


def test_another_file_than_the_pinned_one_is_refused(judge):
    from dataclasses import replace

    spec = replace(specs_of(["toxic-bert"])[0], source=str(judge), revision=None)
    assert spec.sha256 is not None
    with pytest.raises(ArtifactError, match="not the classifier that was pinned"):
        opened(spec, "cpu")


def test_a_word_list_is_a_scorer(tmp_path):
    (tmp_path / "bad words.txt").write_text("fiend\ndarn\n", encoding="utf-8")
    found = opened(specs_of([f"words:{tmp_path / 'bad words.txt'}"])[0], "cpu")
    assert found.judge.score(["you fiend", "endfiend", ""]) == [1.0, 0.0, 0.0] and found.name == "bad-words"


def test_names_labels_and_owners(judge):
    specs = specs_of(["toxic-bert", f"mine={judge}", "org/model@abc"], ["mine:toxic+insult", "model:LABEL_1"])
    assert [(spec.name, spec.revision, spec.labels) for spec in specs] == [
        ("toxic-bert", specs[0].revision, ("toxic",)), ("mine", None, ("toxic", "insult")), ("model", "abc", ("LABEL_1",)),
    ]  # fmt: skip
    assert specs[0].sha256 and len(specs[0].revision) == 40


@pytest.mark.parametrize(
    ("given", "labels", "maps", "said"),
    [
        (["toxic-brt"], [], [], "did you mean 'toxic-bert'"),
        (["./nowhere"], [], [], "no such folder"),
        (["toxic-bert", "toxic-bert"], [], [], "stands twice"),
        (["toxic-bert"], ["LABEL_1"], [], "every scorer of this command is pinned"),
        (["org/a"], ["b:LABEL_1"], [], "'b' is no scorer of this command"),
        (["org/a"], [], ["x=y"], "is not LABEL=toxic or LABEL=clean"),
        (["org/a"], [], ["x=clean"], "no label is mapped to toxic"),
        ([" "], [], [], "names no scorer"),
    ],
)
def test_mistakes(given, labels, maps, said):
    with pytest.raises(ConfigError, match=said):
        specs_of(given, labels, maps)
