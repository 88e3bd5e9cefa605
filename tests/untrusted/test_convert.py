"""Pickled weights: converted on purpose, in a process of its own, from bytes that were pinned; anything else is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from unidetox_ray import registry
from unidetox_ray.artifacts import file_sha256
from unidetox_ray.convert import convert
from unidetox_ray.errors import ConfigError, ModelError, UnidetoxError
from unidetox_ray.families.loading import load_model
from unidetox_ray.families.tokenizers import train_tokenizer

FOUND_OUT = "hf_convertcanaryconvertcanary"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(registry.lookup("families", "gpt2"), ["the cat sat on the mat"], 300)


@pytest.fixture
def pickled(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Path, GPT2LMHeadModel]:
    """A model folder as they were before safetensors, with a code file beside it, and the model."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    folder = tmp_path / "old"
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "modeling_mine.py").write_text("raise SystemExit('ran')\n")
    return folder, model


class Runs:
    """Leaves a file when it is unpickled, with whatever token it finds."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        code = f"import os; open({str(self.place)!r}, 'w').write(os.environ.get('HF_TOKEN', 'no token'))"
        return (exec, (code,))


def test_a_converted_model_is_the_same_model(pickled, tmp_path):
    folder, model = pickled
    weights = folder / "pytorch_model.bin"
    out = tmp_path / "new"
    with pytest.raises(ModelError, match="unidetox convert") as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value)
    made = convert(str(folder), out, [file_sha256(weights).upper()])
    assert made["files"] == {"model.safetensors": file_sha256(out / "model.safetensors")}
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.inference_mode():
        assert torch.equal(load_model(str(out))(ids).logits, model(ids).logits)
    left = {path.name for path in out.iterdir()}
    assert not any(name.endswith((".bin", ".py")) or name.startswith(".") for name in left)
    assert out.stat().st_mode & 0o077 == 0


def test_shards_stay_shards(pickled, tmp_path):
    folder, model = pickled
    (folder / "pytorch_model.bin").unlink()
    state = list(model.state_dict().items())
    weight_map = {}
    for number, part in enumerate((state[:5], state[5:])):
        name = f"pytorch_model-0000{number + 1}-of-00002.bin"
        torch.save(dict(part), folder / name)
        weight_map |= {key: name for key, _ in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert(str(folder), tmp_path / "new", [file_sha256(path) for path in folder.glob("*.bin")])
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.inference_mode():
        assert torch.equal(load_model(str(tmp_path / "new"))(ids).logits, model(ids).logits)
    weight_map[state[0][0]] = "../../elsewhere.bin"
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"no \.bin file of its own folder"):
        convert(str(folder), tmp_path / "other", ["0" * 64])


@pytest.mark.parametrize("kind", ["plain pickle", "torch file", "torch file with a program in it"])
def test_a_malicious_pickle_is_refused_and_does_not_run(kind, pickled, tmp_path, monkeypatch):
    folder, _ = pickled
    ran = tmp_path / "ran"
    weights = folder / "pytorch_model.bin"
    if kind == "plain pickle":
        weights.write_bytes(pickle.dumps(Runs(ran)))
    elif kind == "torch file":
        torch.save({"a": torch.zeros(2), "b": Runs(ran)}, weights)
    else:
        torch.save(Runs(ran), weights)
    monkeypatch.setenv("HF_TOKEN", FOUND_OUT)
    with pytest.raises(ModelError) as refused:
        convert(str(folder), tmp_path / "new", [file_sha256(weights)])
    message = str(refused.value)
    assert "nothing was written" in message and "\n" not in message and FOUND_OUT not in message
    assert not ran.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    # It would have run where a pickle is simply opened: the test's own pickle is a real one.
    with weights.open("rb") as stream:
        torch.load(stream, weights_only=False) if kind != "plain pickle" else pickle.load(stream)
    assert ran.read_text() == FOUND_OUT


def test_the_process_that_reads_has_no_token(tmp_path, monkeypatch, pickled):
    """What it is started with, seen from a Python that prints its environment instead of converting."""
    folder, _ = pickled
    token = tmp_path / "token"
    token.write_text(FOUND_OUT)
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, FOUND_OUT + name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{FOUND_OUT}@server.invalid")
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    spy = tmp_path / "spy"
    spy.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\nexit 1\n")
    spy.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(spy))
    with pytest.raises(ModelError):
        convert(str(folder), tmp_path / "new", [file_sha256(folder / "pytorch_model.bin")])
    seen = (tmp_path / "environment").read_text()
    assert "PATH=" in seen and FOUND_OUT not in seen and str(token) not in seen


def test_other_bytes_than_were_pinned_are_not_opened(pickled, tmp_path):
    folder, _ = pickled
    weights = folder / "pytorch_model.bin"
    before = file_sha256(weights)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(ModelError, match="not the file you trust"):
        convert(str(folder), tmp_path / "new", [before])
    assert not (tmp_path / "new").exists()


REFUSED = {
    "no hash": ([], "give --sha256 once for each"),
    "half a hash": (["abc"], "64 hexadecimal digits"),
    "a name for a hash": (["z" * 64], "64 hexadecimal digits"),
    "another hash": (["0" * 64], "not the file you trust"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hash_is_needed(case, pickled, tmp_path):
    hashes, words = REFUSED[case]
    with pytest.raises(UnidetoxError, match=words) as refused:
        convert(str(pickled[0]), tmp_path / "new", hashes)
    assert refused.value.exit_code == 2 and not (tmp_path / "new").exists()


def test_a_file_that_holds_more_than_tensors_is_refused(pickled, tmp_path):
    folder, _ = pickled
    weights = folder / "pytorch_model.bin"
    for value in ({"a": torch.zeros(1), "b": 1}, [torch.zeros(1)]):  # each is a process of its own
        torch.save(value, weights)
        with pytest.raises(ModelError, match=r"not converted \(ValueError"):
            convert(str(folder), tmp_path / "new", [file_sha256(weights)])


def test_nothing_to_convert(pickled, tmp_path):
    folder, model = pickled
    with pytest.raises(ConfigError, match="exists"):
        convert(str(folder), tmp_path / "old", ["0" * 64])
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is missing"):
        convert(str(folder), tmp_path / "new", ["0" * 64])
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match="need no conversion"):
        convert(str(folder), tmp_path / "new", ["0" * 64])


def test_the_verb(pickled, tmp_path, root):
    folder, _ = pickled
    done = subprocess.run(
        [sys.executable, "-m", "unidetox_ray", "convert", str(folder), "--out", "new", "--sha256",
         file_sha256(folder / "pytorch_model.bin")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "model.safetensors: sha256" in done.stdout and (tmp_path / "new" / "config.json").exists()
