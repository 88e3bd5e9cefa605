"""From a model and a device to the settings of its training, or one line that names what would fit."""

from __future__ import annotations

import pytest
import torch
from many_models import ARCHITECTURES, build

from unidetox_ray.artifacts import RunFolder
from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.detoxify.corpora import source_of
from unidetox_ray.detoxify.fitting import fitted
from unidetox_ray.detoxify.opened import opened
from unidetox_ray.detoxify.room import Device
from unidetox_ray.detoxify.run import settings_of
from unidetox_ray.errors import ConfigError
from unidetox_ray.families.loading import offline_config
from unidetox_ray.families.positions import positions_of
from unidetox_ray.plan.counting import counted, skeleton
from unidetox_ray.plan.memory import trainable_of
from unidetox_ray.settings import FinetuneSection
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.training import with_adapter

GPU = "a card"


def gpu(gigabytes: float, bf16: bool = True) -> Device:
    return Device("cuda", int(gigabytes * 10**9), bf16, GPU)


@pytest.fixture(scope="module")
def seven():
    return skeleton(offline_config("meta-llama/Llama-2-7b-hf"), "seven")


def test_what_is_not_given_is_chosen(seven):
    section = FinetuneSection()
    large = fitted(section, seven, gpu(200), name="m")
    assert (large.section.precision, large.section.micro_batch) == ("bf16_master", 0)
    whole = fitted(section, seven, gpu(80), name="m")
    assert (whole.section.precision, whole.section.micro_batch) == ("bf16_pure", 0)
    assert (
        whole.section.batch_size == section.batch_size and whole.trained == whole.parameters == 6_738_415_616
    )
    lora = fitted(section.model_copy(update={"adapter": "lora"}), seven, gpu(24), name="m")
    assert lora.section.precision == "bf16_master" and 0 < lora.section.micro_batch < 8
    assert 0 < lora.trained < 0.01 * lora.parameters
    assert "a card" in whole.told(gpu(80)) and "batch of 8" in whole.told(gpu(80))
    assert "of them trained" in lora.told(gpu(24)) and "of them trained" not in whole.told(gpu(80))


def test_what_is_given_is_kept(seven):
    exact = FinetuneSection(precision="fp32")
    assert fitted(exact, seven, gpu(200), name="m", given={"precision"}).section.precision == "fp32"
    two = FinetuneSection(micro_batch=2)
    kept = fitted(two, seven, gpu(80), name="m", given={"micro_batch"})
    assert kept.section.micro_batch == 2 and kept.choice.pieces == 4
    # Both are the user's own: an estimate does not stand in the way.
    both = FinetuneSection(precision="fp32", micro_batch=1)
    assert fitted(both, seven, gpu(1), name="m", given={"precision", "micro_batch"}).section == both


@pytest.mark.parametrize(
    ("section", "gigabytes", "advice"),
    [
        (FinetuneSection(), 24, "--adapter lora would need about"),
        (FinetuneSection(), 4, "cluster.workers_per_cell=N deepspeed.stage=3"),
        (FinetuneSection(adapter="lora", max_length=8192), 20, "max_length=128 would need about"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(seven, section, gigabytes, advice):
    with pytest.raises(ConfigError) as raised:
        fitted(section, seven, gpu(gigabytes), name="my/model")
    said = str(raised.value)
    assert said.startswith("my/model: ") and advice in said and "\n" not in said
    if "--adapter lora" in advice:
        fitted(section.model_copy(update={"adapter": "lora"}), seven, gpu(gigabytes), name="m")
    elif "max_length" in advice:
        fitted(section.model_copy(update={"max_length": 128}), seven, gpu(gigabytes), name="m")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["none", "lora"])
def test_the_shape_counts_what_will_be_trained(name, kind):
    section = FinetuneSection(adapter=kind)
    model = build(name)
    shape = counted(skeleton(ARCHITECTURES[name](), name), name)
    parameters, trained = trainable_of(shape, section)
    if kind != "none":
        model = with_adapter(model, {"kind": kind, "rank": 16, "alpha": 32.0, "dropout": 0.0}, 1)
    counts = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    if (name, kind) == ("deepseek-v3.2", "lora"):
        # Its experts cannot be tried without numbers, so the layers that learn nothing are counted in: too much, never too little.
        assert sum(counts) < trained < 2 * sum(counts)
        return
    assert trained == sum(counts)
    assert parameters == sum(weight.numel() for weight in model.parameters())
    assert (shape.vocab, shape.hidden) == (331, 32) and shape.layers >= 2 and shape.widest >= 32


def test_the_shape_counts_bottlenecks():
    section = FinetuneSection(adapter="bottleneck", bottleneck={"size": 5})
    model = with_adapter(build("gpt-j"), {"kind": "bottleneck", "size": 5}, 1)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trainable_of(counted(skeleton(ARCHITECTURES["gpt-j"](), "j"), "j"), section)[1] == trained


@pytest.fixture
def settled(tokenizer, texts, tmp_path):
    """The settings of a run on a device, for a model of 64 positions; nothing is started."""
    folder = tmp_path / "model"
    build("qwen3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "own.csv").write_text("Text\none\n", encoding="utf-8")

    def settings(device, corpus=tmp_path / "own.csv", **more):
        asked = Asked(model=str(folder), corpus=str(corpus), out=tmp_path / "out", **more)
        context = Context(asked.experiment(), RunFolder(tmp_path, "run"))
        target = opened(str(folder))
        return settings_of(asked, context, target, source_of(asked), target, device), context.experiment

    return settings


def test_no_text_is_longer_than_the_model_knows(settled):
    fit, experiment = settled(Device("cpu", 10**10, False))
    assert fit.section == experiment.finetune and experiment.finetune.max_length == 64
    assert experiment.evaluate.clean_max_length == 64 and experiment.evaluate.precision == "fp32"
    shorter = settled(Device("cpu", 10**10, False), overrides=("max_length=32",))[1]
    assert shorter.finetune.max_length == 32
    with pytest.raises(ConfigError, match="max_length = 100: the model knows 64 positions"):
        settled(Device("cpu", 10**10, False), overrides=("max_length=100",))


def test_a_fresh_corpus_fits_its_toxic_copy_as_well(settled):
    fit, experiment = settled(gpu(40), corpus="fresh", adapter="lora")
    assert experiment.toxic.precision == fit.section.precision == "bf16_master"
    assert experiment.toxic.max_length == experiment.corpus.max_length == 64
    assert experiment.corpus.precision == experiment.evaluate.precision == "bf16"
    with pytest.raises(
        ConfigError, match=r"toxic copy for --corpus fresh .name a smaller model with --distil-from"
    ):
        settled(gpu(0.0002), corpus="fresh")


def test_positions_and_nothing_in_memory():
    assert positions_of(ARCHITECTURES["qwen2"]()) == 64
    assert positions_of(ARCHITECTURES["mpt"]()) == 64
    assert positions_of(ARCHITECTURES["mamba"]()) is None
    assert all(
        weight.device == torch.device("meta") for weight in skeleton(ARCHITECTURES["phi"](), "p").parameters()
    )
