"""The lean training forward against the full one: loss, gradients, masks, packing, and what it must not ask the device."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from small_models import CONFIGS, FAMILIES, V, model_of
from torch.utils._python_dispatch import TorchDispatchMode

from unidetox_ray import registry
from unidetox_ray.core.attending import keeps_apart, packing_gap, takes_masks
from unidetox_ray.core.batch import Batch
from unidetox_ray.core.forward import TrainingForward
from unidetox_ray.core.labelled import head_of, labelled_only, predicted
from unidetox_ray.core.loop import IGNORE, LoopSettings, PlainStepper, batches, collate, share, train
from unidetox_ray.core.loss import lm_loss
from unidetox_ray.core.packs import collate_packs, pack_texts

LENGTHS = (9, 4, 7, 2, 12, 3)


def rows_of(lengths=LENGTHS, seed: int = 1) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randint(3, V, (length,), generator=numbers).tolist() for length in lengths]


def full(model, batch: Batch) -> torch.Tensor:
    """The slow twin: all logits of the model under its own 2-D mask, shifted."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return lm_loss(logits, batch.labels)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(loss, model, expected, twin, atol=1e-6):
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=atol)
    loss.backward()
    expected.backward()
    ours, theirs = gradients(model), gradients(twin)
    assert ours.keys() == theirs.keys() and any(float(g.abs().max()) > 1e-3 for g in theirs.values())
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=atol), name


@pytest.mark.parametrize("loss_on_padding", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_the_full_logits(name, loss_on_padding):
    model = model_of(name)
    twin = copy.deepcopy(model)
    batch = collate(rows_of(), pad_id=0, length=None, loss_on_padding=loss_on_padding)
    loss = TrainingForward(model, loss_on_padding=loss_on_padding).loss(batch)
    assert loss.dtype == torch.float32
    assert_same(loss, model, full(twin, batch), twin)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_reads_labelled_positions_alone(name):
    model, shapes = model_of(name), []
    head_of(model).register_forward_hook(lambda module, given, made: shapes.append(tuple(made.shape)))
    batch = collate(rows_of(), pad_id=0, length=None, loss_on_padding=False)
    TrainingForward(model).loss(batch)
    assert shapes[-1] == (1, sum(LENGTHS) - len(LENGTHS), V) and batch.targets == shapes[-1][1]
    assert not head_of(model)._forward_pre_hooks  # nothing is left behind


def test_through_adapters():
    model = model_of("llama")
    targets = list(registry.lookup("families", "llama").adapter_targets)
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    twin = copy.deepcopy(wrapped)
    batch = collate(rows_of(), pad_id=0, length=None, loss_on_padding=False)
    shapes = []
    head_of(wrapped).register_forward_hook(lambda module, given, made: shapes.append(made.shape[1]))
    forward = TrainingForward(wrapped)
    loss = forward.loss(batch)
    assert forward.masks and shapes[-1] == batch.targets
    assert_same(loss, wrapped, full(twin, batch), twin)


class Flattening(torch.nn.Module):
    """A model whose head is called on (B*T, H), as some architectures do."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_output_embeddings(self):
        return self.model.lm_head

    def forward(self, input_ids, attention_mask=None, use_cache=False, **more):
        states = self.model.transformer(input_ids=input_ids, attention_mask=attention_mask, **more)[0]
        logits = self.model.lm_head(states.flatten(0, 1)).unflatten(0, input_ids.shape)
        return type(self.model(input_ids=input_ids[:1, :1]))(logits=logits)


class Headless(Flattening):
    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize("kind", [Flattening, Headless])
def test_a_head_that_is_called_otherwise_gives_all_its_logits(kind):
    model = kind(model_of("gpt2"))
    twin = copy.deepcopy(model)
    batch = collate(rows_of(), pad_id=0, length=None, loss_on_padding=False)
    where, _ = predicted(batch.labels)
    with labelled_only(model, where, *batch.input_ids.shape) as seen:
        logits = model(batch.input_ids, batch.attention_mask).logits
    assert seen.calls == 0 and logits.shape == (*batch.input_ids.shape, V)
    assert_same(TrainingForward(model).loss(batch), model, full(twin, batch), twin)


def test_predicted_positions_come_before_their_labels():
    labels = torch.tensor([[5, 6, IGNORE, 7], [8, IGNORE, IGNORE, IGNORE]])
    where, wanted = predicted(labels)
    assert where.tolist() == [0, 2] and wanted.tolist() == [6, 7]


@pytest.mark.parametrize("name", CONFIGS)
def test_who_reads_a_ready_made_mask(name):
    """ALiBi and eager attention cannot, a sliding window must not; they keep the mask of padding."""
    model = model_of(name)
    assert takes_masks(model, 1 << 30) is (name in ("gpt2", "opt", "falcon", "falcon-new", "llama"))
    assert model.training  # as it was
    assert TrainingForward(model, loss_on_padding=True).masks is False


# Packing.


def test_packs_hold_every_text_once_and_no_row_is_too_long():
    texts = rows_of((5, 9, 3, 3, 8, 2, 12, 1), seed=3)
    packs = pack_texts(texts, 12)
    assert sorted(text for pack in packs for text in pack) == sorted(texts)
    assert all(sum(map(len, pack)) <= 12 for pack in packs)
    assert len(packs) == 4 == -(-sum(map(len, texts)) // 12)
    assert pack_texts(texts, 12) == packs and pack_texts([], 12) == []


def test_a_packed_batch_restarts_places_and_labels_no_first_token():
    batch = collate_packs([[[5, 6, 7], [8, 9]], [[4, 3]]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]]
    assert batch.labels.tolist() == [[IGNORE, 6, 7, IGNORE, 9], [IGNORE, 3, *[IGNORE] * 3]]
    assert batch.tokens == 7 and batch.targets == 4
    part = share(batch, 1, 2)
    assert part.segments.tolist() == [[0, 0, -1, -1, -1]] and part.targets == 4


@pytest.mark.parametrize("name", ["gpt2", "opt", "falcon", "falcon-new", "llama"])
def test_a_packed_batch_has_the_loss_and_gradients_of_padded_rows(name):
    model = model_of(name)
    twin = copy.deepcopy(model)
    rows = rows_of()
    packed = collate_packs(pack_texts(rows, 20), pad_id=0)
    padded = collate(rows, pad_id=0, length=None, loss_on_padding=False)
    assert packed.input_ids.numel() < padded.input_ids.numel() and packed.targets == padded.targets
    assert packing_gap(model) < 1e-5
    loss = TrainingForward(model, pack_to=20).loss(packed)
    assert_same(loss, model, full(twin, padded), twin)


@pytest.mark.parametrize("name", ["falcon-alibi", "bloom", "mistral", "gemma2"])
def test_models_that_would_mix_packed_texts_are_refused(name):
    model = model_of(name)
    assert not keeps_apart(model, 20)
    with pytest.raises(ValueError, match="share a row"):
        TrainingForward(model, pack_to=20)


def test_a_mask_that_leaks_is_noticed(monkeypatch):
    """The check itself: segments ignored, and positions that go on."""
    from unidetox_ray.core import attending

    model, honest = model_of("gpt2"), attending.causal
    assert keeps_apart(model, 20)
    monkeypatch.setattr(attending, "causal", lambda width, segments, device: honest(width, None, device))
    assert packing_gap(model) > 1e-2 and not keeps_apart(model, 20)


def test_the_loop_packs():
    settings = LoopSettings(steps=4, lr=1e-3, batch_size=2, pack_to=20)
    batch_of = batches(rows_of(), 0, settings)
    assert batch_of(0).tokens == sum(LENGTHS) and batch_of(0).segments is not None  # 37 tokens fit two rows
    log = train(PlainStepper(model_of("gpt2"), settings), rows_of(), 0, settings)
    assert log.tokens == [sum(LENGTHS)] * 4 and log.loss[-1] < log.loss[0]


# No waiting.


class Reads(TorchDispatchMode):
    """Counts what reads a tensor's value on the host: item, float(), bool(), int(). On CUDA each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pack_to", [0, 20])
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_read_between_two_looks_at_the_losses(name, pack_to):
    settings = LoopSettings(steps=6, lr=1e-3, batch_size=2, pack_to=pack_to)
    stepper, seen = PlainStepper(model_of(name), settings), []
    with Reads() as reads:
        train(
            stepper, rows_of(), 0, settings, every=3, on_progress=lambda done, log: seen.append(reads.count)
        )
    assert seen == [6, 12]  # three losses and three norms at each look


def test_the_counter_counts():
    with Reads() as reads:
        bool(torch.ones(3).all())
        float(torch.ones(()))
        torch.ones(2).sum().item()
    assert reads.count == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_waits_for_the_gpu(name):
    settings = LoopSettings(steps=1, lr=1e-3, batch_size=2, precision="bf16_pure", compile="off")
    stepper = PlainStepper(model_of(name).cuda(), settings)
    batch_of = batches(rows_of(), 0, settings)
    stepper.step(batch_of(0), 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            stepper.step(batch_of(step), 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_window_of_the_text_part_of_a_model_of_images_is_seen():
    """Its own config names none: texts longer than the window would be trained under a plain causal mask."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {
        "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 48, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    images = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(
        Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=4)
    )
    assert not takes_masks(model, 1 << 30) and not keeps_apart(model, 48)
