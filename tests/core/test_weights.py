"""Streamed edits of stored weights: the ends of the dial, tied weights, buffers, shards, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unidetox_ray.core.weights import (
    INDEX,
    SINGLE,
    Layout,
    Part,
    StoredWeights,
    distance,
    require_equal,
    write_edited,
)
from unidetox_ray.errors import ModelError

SHAPES = {
    "body.embed.weight": (11, 6),
    "body.linear.weight": (6, 6),
    "body.norm.weight": (6,),
    "body.mask": (4,),
}
ROLES = {"body.embed.weight": "embedding", "body.norm.weight": "norm"}
LAYOUT = Layout(
    parts={name: Part(name, ROLES.get(name, "other")) for name in SHAPES},
    shapes=SHAPES,
    tied={"head.weight": "body.embed.weight"},
    prefix="body",
)


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in SHAPES.items()}
    made["body.mask"] = torch.tensor([1, 0, 1, 1])
    made["body.norm.weight"][0] = -0.0
    return made


def store(folder, values, what="base") -> StoredWeights:
    folder.mkdir()
    save_file(values, folder / SINGLE)
    return StoredWeights(folder, LAYOUT, what)


def negated(strength: float):
    return lambda _part, base, toxic: torch.lerp(base, toxic, -strength)


@pytest.fixture
def pair(tmp_path):
    return store(tmp_path / "base", tensors(1)), store(tmp_path / "toxic", tensors(2), "toxic")


@pytest.mark.parametrize(("strength", "end"), [(0.0, 1), (-1.0, 2)])
def test_the_ends_of_the_dial_are_the_two_models_bit_for_bit(pair, tmp_path, strength, end):
    out = tmp_path / "out"
    out.mkdir()
    write_edited(*pair, out, negated(strength))
    expected, found = tensors(end), load_file(out / SINGLE)
    assert set(found) == set(SHAPES)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        if name == "body.mask":
            assert torch.equal(tensor, tensors(1)[name])
        else:
            assert torch.equal(tensor, expected[name]), name


def test_an_edit_is_the_equation_and_its_norms_say_so(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    done = write_edited(*pair, out, negated(0.7))
    base, toxic, found = tensors(1), tensors(2), load_file(out / SINGLE)
    for name in SHAPES:
        if name != "body.mask":
            expected = base[name].double() - 0.7 * (toxic[name].double() - base[name].double())
            assert torch.allclose(found[name].double(), expected, atol=1e-6)
    assert done.step_norm == pytest.approx(0.7 * done.toxic_norm, rel=1e-6) and done.toxic_norm > 1
    assert (done.edited, done.copied, done.parameters) == (3, 1, 66 + 36 + 6)
    saved = StoredWeights(out, LAYOUT, "saved")
    assert distance(pair[0], saved) == pytest.approx(done.step_norm, rel=1e-6)


def test_parts_that_are_not_edited_keep_their_bits(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    done = write_edited(*pair, out, negated(2.0), edits=lambda part: part.role == "other")
    base, found = tensors(1), load_file(out / SINGLE)
    assert torch.equal(
        found["body.norm.weight"].view(torch.int32), base["body.norm.weight"].view(torch.int32)
    )
    assert torch.equal(found["body.embed.weight"], base["body.embed.weight"])
    assert not torch.equal(found["body.linear.weight"], base["body.linear.weight"])
    assert done.edited == 1 and done.parameters == 36


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_the_stored_dtype_is_kept_and_the_arithmetic_is_fp32(tmp_path, stored):
    base, toxic = (
        store(tmp_path / "base", tensors(1, stored)),
        store(tmp_path / "toxic", tensors(2, stored), "toxic"),
    )
    out = tmp_path / "out"
    out.mkdir()
    seen = []

    def edit(part, before, other):
        seen.append((before.dtype, other.dtype))
        return negated(0.5)(part, before, other)

    write_edited(base, toxic, out, edit)
    assert set(seen) == {(torch.float32, torch.float32)}
    one, two, found = tensors(1, stored), tensors(2, stored), load_file(out / SINGLE)
    name = "body.linear.weight"
    assert found[name].dtype == stored and found["body.mask"].dtype == torch.int64
    assert torch.equal(
        found[name], torch.lerp(one[name].float(), two[name].float(), torch.tensor(-0.5)).to(stored)
    )
    wide = tmp_path / "wide"
    wide.mkdir()
    write_edited(base, toxic, wide, negated(0.5), dtype=torch.float32)
    assert load_file(wide / SINGLE)[name].dtype == torch.float32


def test_shards_hold_each_tensor_once_and_read_back_the_same(pair, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    write_edited(*pair, whole, negated(0.5))
    done = write_edited(*pair, parts, negated(0.5), shard_bytes=180)
    index = json.loads((parts / INDEX).read_text())
    assert (
        set(index["weight_map"]) == set(SHAPES) and done.files == len(set(index["weight_map"].values())) == 3
    )
    one, two = StoredWeights(whole, LAYOUT, "whole"), StoredWeights(parts, LAYOUT, "parts")
    assert distance(one, two) == 0.0
    # A sharded model can itself be edited.
    again = tmp_path / "again"
    again.mkdir()
    write_edited(two, pair[1], again, negated(0.0))
    assert distance(two, StoredWeights(again, LAYOUT, "again")) == 0.0


def test_files_without_the_prefix_or_with_tied_copies_are_read_by_the_layout(pair, tmp_path):
    values = tensors(1)
    old = {name.removeprefix("body."): tensor for name, tensor in values.items()}
    old |= {"head.weight": values["body.embed.weight"].clone(), "attention.bias": torch.ones(1, 1, 4, 4)}
    stored = store(tmp_path / "old", old)
    assert stored.foreign == {"attention.bias"}
    assert distance(pair[0], stored) == 0.0
    out = tmp_path / "out"
    out.mkdir()
    write_edited(stored, pair[1], out, negated(1.0))
    assert set(load_file(out / SINGLE)) == set(SHAPES)  # tied once, no stray buffer


def test_what_does_not_fit_is_refused_in_one_line(pair, tmp_path):
    values = tensors(3)
    del values["body.linear.weight"]
    with pytest.raises(ModelError, match=r"^lacking: lacks 1 of its architecture's 4 tensors \(body\.linear"):
        store(tmp_path / "lacking", values, "lacking")
    values = tensors(3) | {"body.embed.weight": torch.zeros(12, 6)}
    with pytest.raises(
        ModelError, match=r"^resized: body\.embed\.weight is \[12, 6\], its config says \[11, 6\]"
    ):
        store(tmp_path / "resized", values, "resized")
    more = store(tmp_path / "more", tensors(3) | {"score.weight": torch.zeros(2, 6)}, "more")
    with pytest.raises(ModelError, match=r"^more: holds score\.weight, which base lacks"):
        require_equal(pair[0], more)
    shapes = SHAPES | {"body.embed.weight": (12, 6)}
    folder = tmp_path / "wider"
    folder.mkdir()
    save_file(values, folder / SINGLE)
    wider = StoredWeights(folder, Layout(LAYOUT.parts, shapes, {}, "body"), "wider")
    with pytest.raises(ModelError, match=r"^wider: body\.embed\.weight is 12x6, in base 11x6; give a model"):
        require_equal(pair[0], wider)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / SINGLE).write_bytes((tmp_path / "base" / SINGLE).read_bytes()[:90])
    with pytest.raises(ModelError, match=r"^cut: model\.safetensors cannot be read"):
        StoredWeights(tmp_path / "cut", LAYOUT, "cut")


def test_an_edit_that_is_not_finite_or_changes_a_shape_writes_no_file(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"body\.embed\.weight is not finite after the edit"):
        write_edited(*pair, out, negated(3e38))
    with pytest.raises(ModelError, match=r"the edit made \[11\] of \[11, 6\]"):
        write_edited(*pair, out, lambda _part, base, _toxic: base.sum(-1))
    assert list(out.iterdir()) == []
    values = tensors(4)
    values["body.linear.weight"][0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"^odd: body\.linear\.weight holds values that are not finite"):
        distance(pair[0], store(tmp_path / "odd", values, "odd"))
