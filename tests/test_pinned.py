"""Named scorers: whole pins, another file refused, pickled weights sent to `convert`, an unknown hash said aloud."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from unidetox_ray.artifacts import file_sha256
from unidetox_ray.convert import convert
from unidetox_ray.errors import ArtifactError, ConfigError, ModelError
from unidetox_ray.metrics.classifier import ToxicityClassifier
from unidetox_ray.pinned import PINNED, pin_of, warning_of
from unidetox_ray.settings import ScorerRef


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("scorer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mild", "words", "here"]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(place)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "nothate", 1: "hate"}, label2id={"nothate": 0, "hate": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(place)
    return place


def test_pins_are_whole_and_of_more_than_one_family():
    for pin in PINNED.values():
        assert re.fullmatch(r"[0-9a-f]{40}", pin.revision)
        for digest in (pin.sha256, pin.pickled):
            assert digest is None or re.fullmatch(r"[0-9a-f]{64}", digest)
        assert pin.sha256 is None or pin.pickled is None
    ready = [pin for pin in PINNED.values() if pin.pickled is None]
    assert len({pin.family.split()[0] for pin in ready}) > 1
    assert len({pin.trained_on for pin in ready}) == len(ready)


@pytest.mark.parametrize("name", ["toxic-bert", "toxigen-roberta", "hate-dynabench"])
def test_an_experiment_that_names_a_pinned_scorer_gets_its_pin(name):
    pin = PINNED[name]
    ref = ScorerRef(name="judge", source=pin.source)
    assert (ref.revision, ref.sha256, ref.label) == (pin.revision, pin.sha256, pin.label)
    own = ScorerRef(name="judge", source=pin.source, revision="main", label="other")
    assert (own.revision, own.sha256, own.label) == ("main", None, "other")


def test_what_is_not_pinned_stays_as_it_is():
    assert ScorerRef(name="judge").revision == PINNED["toxic-bert"].revision, "the default scorer is pinned"
    for ref in (ScorerRef(name="a", source="./judge"), ScorerRef(name="a", kind="lexicon", source="world")):
        assert (ref.revision, ref.sha256, ref.label) == (None, None, "toxic")


def test_another_file_than_the_pinned_one_is_refused(folder):
    right = file_sha256(folder / "model.safetensors")
    assert ToxicityClassifier(str(folder), sha256=right, label="hate").score(["mild words"])[0] is not None
    with pytest.raises(ArtifactError, match=f"hashes to {right}, expected 2c27"):
        ToxicityClassifier(str(folder), sha256=PINNED["toxic-bert"].sha256, label="hate")


def test_pickled_weights_are_sent_to_convert_with_the_whole_command():
    with pytest.raises(ConfigError) as error:
        pin_of("roberta-toxicity")
    pin = PINNED["roberta-toxicity"]
    command = f"unidetox convert {pin.source} --revision {pin.revision} --sha256 {pin.pickled} --out scorers/roberta-toxicity"
    assert command in str(error.value) and "\n" not in str(error.value)


def test_the_advice_works_for_a_classifier_with_pickled_weights(folder, tmp_path):
    """The same step on a small one: convert, then open the folder as a scorer with the same scores."""
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="unidetox convert"):
        ToxicityClassifier(str(pickled), label="hate")
    made = convert(str(pickled), tmp_path / "made", [file_sha256(pickled / "pytorch_model.bin")])
    texts = ["mild words", "words here", ""]
    opened = ToxicityClassifier(str(made["folder"]), label="hate")
    assert opened.score(texts) == ToxicityClassifier(str(folder), label="hate").score(texts)


def test_a_name_that_is_none_gets_a_suggestion():
    with pytest.raises(ConfigError, match="toxic-bert"):
        pin_of("toxic-brt")
    assert pin_of("toxic-bert").label == "toxic"


def test_an_unknown_hash_is_said():
    assert warning_of("toxic-bert", None) is None
    assert "hashes to abc" in (warning_of("hate-dynabench", "abc") or "")
