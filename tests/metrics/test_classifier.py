"""The classifier judge: batched = one at a time, label by name, pinned hash; the word list."""

import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from unidetox_ray.artifacts import file_sha256
from unidetox_ray.core.linear import packing_works
from unidetox_ray.errors import ArtifactError, ConfigError, ModelError
from unidetox_ray.metrics.classifier import LexiconClassifier, ToxicityClassifier

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


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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
    assert classifier._encoder is not None or not packing_works()


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
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        ToxicityClassifier(str(tmp_path))


def test_a_text_that_cannot_be_read_fails_alone(folder, tokenizer):
    """A token lies beyond the model's embedding; the others of its batch are scored as ever."""
    model = ToxicityClassifier(str(folder))
    texts = ["the cat sat on the mat " * 30, "NA", "Question: why?", "cat é", "the mat"] * 4
    wanted = model.score(texts)
    highest = {text: max(model.tokenizer(text)["input_ids"]) for text in texts}
    odd = max(highest.values())
    assert 0 < sum(top == odd for top in highest.values()) < 3
    words = model.model.bert.embeddings.word_embeddings
    with torch.no_grad():
        words.weight = torch.nn.Parameter(words.weight[:odd].clone())
    found = model.score(texts)
    for text, value, error, before in zip(texts, found, model.errors, wanted, strict=True):
        if highest[text] == odd:
            assert value is None and error.startswith("IndexError")
        else:
            assert value == pytest.approx(before, abs=1e-6) and error is None


def test_threads_of_their_own_give_the_same_scores(classifier, odd_texts, two_threads):
    texts = [text for text in odd_texts if classifier.tokenizer(text)["input_ids"]]
    wanted = [alone(classifier, text) for text in texts]
    assert classifier.score(texts, token_budget=97) == pytest.approx(wanted, abs=1e-5)
    assert torch.get_num_threads() == 2


def test_equal_texts_are_scored_once_and_all_get_it(classifier):
    read = []
    texts = ["the cat", None, "the cat", "mat", "the cat"]
    handle = classifier.model.bert.embeddings.register_forward_hook(
        lambda *args: read.append(args[2].shape[:2].numel())
    )
    try:
        scores = classifier.score(texts)
    finally:
        handle.remove()
    assert scores[0] == scores[2] == scores[4] != scores[3] and scores[1] is None
    assert sum(read) <= 2 * len(classifier.tokenizer("the cat")["input_ids"])


def test_a_classifier_of_another_kind_is_scored_by_its_own_forward(tmp_path, tokenizer):
    torch.manual_seed(2)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_heads=4, hidden_dim=64, n_layers=2, problem_type="multi_label_classification",
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    model = DistilBertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.save_pretrained(tmp_path)
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        pad_token="<s>",
        model_input_names=["input_ids", "attention_mask"],
    )
    copy.save_pretrained(tmp_path)
    other = ToxicityClassifier(str(tmp_path))
    texts = [f"the cat sat {'on the mat ' * (i % 17)}{i}" for i in range(60)]
    assert other.score(texts) == pytest.approx([alone(other, text) for text in texts], abs=1e-5)
    assert other._encoder is None and all("forward" not in m.__dict__ for m in other.model.modules())


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
