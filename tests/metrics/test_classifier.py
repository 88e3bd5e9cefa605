"""The classifier judge: batched = one at a time, label by name, pinned hash; the word list."""

import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from unidetox_ray.artifacts import file_sha256
from unidetox_ray.errors import ArtifactError, ConfigError, ModelError
from unidetox_ray.metrics.classifier import LexiconClassifier, ToxicityClassifier, budgeted_batches

LABELS = ["severe_toxic", "toxic", "insult"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=512, problem_type="multi_label_classification",
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
        model.bert.embeddings.word_embeddings.weight.mul_(20)
    place = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(place)
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="<s>", cls_token="<s>")
    copy.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def classifier(folder):
    return ToxicityClassifier(str(folder))


def alone(classifier, text):
    encoded = classifier.tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        return classifier.model(**encoded).logits[0, LABELS.index("toxic")].sigmoid().item()


def test_batches_equal_one_at_a_time_in_input_order(classifier, odd_texts):
    texts = [text for text in odd_texts if classifier.tokenizer(text)["input_ids"]]
    wanted = [alone(classifier, text) for text in texts]
    for budget in (1, 97, 16384):
        assert classifier.score(texts, token_budget=budget) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.1


def test_a_long_text_is_cut_at_512_tokens(classifier):
    long = "the cat é " * 1000
    cut = classifier.tokenizer.decode(classifier.tokenizer(long)["input_ids"][:512])
    assert classifier.score([long])[0] == pytest.approx(alone(classifier, cut), abs=1e-5)


def test_bad_rows_are_null_with_a_reason_and_leave_the_others(classifier):
    scores = classifier.score(["cat", None, 3.5, "mat"])
    assert scores[1] is None and scores[2] is None
    assert scores[0] == pytest.approx(alone(classifier, "cat"), abs=1e-5)
    assert [error is None for error in classifier.errors] == [True, False, False, True]
    assert "float" in classifier.errors[2]
    assert classifier.score([]) == [] and classifier.errors == []


def test_a_nan_from_the_model_is_null(folder):
    broken = ToxicityClassifier(str(folder))
    with torch.no_grad():
        broken.model.classifier.bias[LABELS.index("toxic")] = math.nan
    assert broken.score(["cat", "mat"]) == [None, None]
    assert all("finite" in error for error in broken.errors)


def test_the_label_is_found_by_name(folder, classifier):
    assert classifier.index == 1
    other = ToxicityClassifier(str(folder), label="insult")
    assert other.index == 2 and other.score(["cat"]) != classifier.score(["cat"])
    with pytest.raises(ModelError, match="'hate' is not one of"):
        ToxicityClassifier(str(folder), label="hate")


def test_a_single_label_head_gives_its_share_of_the_softmax(folder):
    model = ToxicityClassifier(str(folder))
    model.multi_label = False
    encoded = model.tokenizer("the cat", return_tensors="pt")
    with torch.no_grad():
        wanted = model.model(**encoded).logits.softmax(-1)[0, 1].item()
    assert model.score(["the cat"])[0] == pytest.approx(wanted, abs=1e-6)


def test_a_pinned_hash_is_checked(folder):
    digest = file_sha256(folder / "model.safetensors")
    assert ToxicityClassifier(str(folder), sha256=digest).sha256 == digest
    with pytest.raises(ArtifactError, match="expected 00"):
        ToxicityClassifier(str(folder), sha256="0" * 64)


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        ToxicityClassifier(str(tmp_path))


@pytest.mark.parametrize("budget", [1, 10, 64, 10_000])
def test_batches_hold_every_row_once_within_the_budget(budget):
    lengths = [5, 1, 9, 9, 0, 3, 64, 2, 1, 1]
    batches = list(budgeted_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(10))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


def test_lexicon_matches_whole_words_in_any_case():
    lexicon = LexiconClassifier(["blorp", "two words", "s$", "C++", ""])
    texts = [
        "a BLORP.",
        "blorps",
        "xblorp",
        "the two words",
        "two  words",
        "s$!",
        "C++",
        "",
        "é blorp\n",
        "blorp_",
    ]
    assert lexicon.score(texts) == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    assert lexicon.score([None]) == [None] and "NoneType" in lexicon.errors[0]


def test_lexicon_from_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("blorp\n\n snarf \n", encoding="utf-8")
    assert LexiconClassifier.from_file(path).words == ("blorp", "snarf")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"words\.txt"):
        LexiconClassifier.from_file(path)
    with pytest.raises(ConfigError, match="no word"):
        LexiconClassifier([" "])
