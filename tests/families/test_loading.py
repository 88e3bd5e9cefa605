"""Errors of opening models, special ids, and the published shapes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config

from unidetox_ray import registry
from unidetox_ray.errors import ModelError
from unidetox_ray.families import loading
from unidetox_ray.families.base import SpecialIds
from unidetox_ray.families.loading import (
    encode,
    family_of,
    load_model,
    load_tokenizer,
    meta_parameters,
    offline_config,
    special_ids,
)


@pytest.fixture
def saved(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def one_line(raised) -> str:
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_missing_folder():
    with pytest.raises(ModelError) as raised:
        load_model("./no/such/model")
    assert "./no/such/model: no such folder" in one_line(raised)
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer("./no/such/model")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(str(tmp_path))


def test_hub_id_without_network():
    with pytest.raises(ModelError) as raised:
        load_model("somebody/not-cached-here")
    assert "somebody/not-cached-here" in one_line(raised)
    assert "local folder" in str(raised.value)


def test_pickled_weights_are_not_opened(saved):
    model = load_model(str(saved))
    (saved / "model.safetensors").unlink()
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(ModelError) as raised:
        load_model(str(saved))
    assert ".bin" in one_line(raised) and "safetensors" in str(raised.value)


def test_remote_code_is_never_run(saved):
    config = json.loads((saved / "config.json").read_text())
    config |= {
        "model_type": "of_my_own",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    }
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "mine.py").write_text("raise SystemExit('remote code ran')\n")
    with pytest.raises(ModelError) as raised:
        load_model(str(saved))
    assert "never run" in one_line(raised)


def test_tokenizer_larger_than_the_embedding(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.add_tokens([f"<extra{index}>" for index in range(9)])
    tokenizer.save_pretrained(saved)
    with pytest.raises(ModelError) as raised:
        load_model(str(saved))
    assert f"{len(tokenizer)} tokens" in one_line(raised)


WEIGHT_DAMAGE = {
    "nothing": lambda raw: b"",
    "another file": lambda raw: b"nothing of the kind",
    "cut in the header": lambda raw: raw[:200],
    "cut in the numbers": lambda raw: raw[: len(raw) // 2],
    "one byte short": lambda raw: raw[:-1],
    "zeros": lambda raw: bytes(len(raw)),
}


@pytest.mark.parametrize("damage", WEIGHT_DAMAGE.values(), ids=WEIGHT_DAMAGE)
def test_damaged_weights(saved, damage):
    weights = saved / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ModelError) as raised:
        load_model(str(saved))
    assert str(saved) in one_line(raised) and "copy the folder again" in one_line(raised)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(saved):
    state = load_file(saved / "model.safetensors")
    lost = next(name for name in state if "0" in name and name.endswith("weight"))
    del state[lost]
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as raised:
        load_model(str(saved))
    assert lost in one_line(raised) and "lack 1 tensors" in one_line(raised)


TOKENIZER_DAMAGE = {
    "nothing": lambda raw: b"",
    "cut": lambda raw: raw[: len(raw) // 2],
    "bytes": lambda raw: b"\xff\xfe\x00garbled",
    "empty": lambda raw: b"{}",
    "a list": lambda raw: b"[]",
    "null": lambda raw: b"null",
    "another model": lambda raw: raw.replace(b'"BPE"', b'"Rune"'),
    "no vocabulary": lambda raw: json.dumps({**json.loads(raw), "model": {"type": "BPE"}}).encode(),
}


@pytest.mark.parametrize("damage", TOKENIZER_DAMAGE.values(), ids=TOKENIZER_DAMAGE)
def test_a_damaged_tokenizer(saved, damage):
    file = saved / "tokenizer.json"
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    for opens in (load_tokenizer, load_model):  # the model looks at the tokenizer that lies beside it
        with pytest.raises(ModelError) as raised:
            opens(str(saved))
        assert f"tokenizer {saved}: cannot be loaded" in one_line(raised)


@pytest.mark.parametrize(
    "raw", [b"[]", b'{"model_type', b"\xff\xfe", b'{"model_type": "gpt2", "n_layer": "two"}']
)
def test_a_damaged_config(saved, raw):
    (saved / "config.json").write_bytes(raw)
    for opens in (load_tokenizer, load_model):
        with pytest.raises(ModelError) as raised:
            opens(str(saved))
        assert str(saved) in one_line(raised)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GatedRepoError", "401 Client Error."),
        ("OSError", "You are trying to access a gated repo.\nMore"),
        ("HfHubHTTPError", "403 Client Error"),
    ],
)
def test_a_gated_model_says_what_to_do(name, text, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    error = OSError("cannot open it")
    error.__cause__ = type(name, (Exception,), {})(text)
    message = str(loading.explained(error, "meta-llama/Llama-2-7b-hf", "model"))
    assert "gated" in message and "HF_TOKEN" in message
    assert "hf_secretsecret" not in message


def test_unknown_dtype(saved):
    with pytest.raises(ModelError, match="accepted: auto, bfloat16"):
        load_model(str(saved), dtype="fp8")


def test_dtype_is_applied(saved):
    assert load_model(str(saved), dtype="bfloat16").dtype == torch.bfloat16


def test_model_is_not_in_training_mode(saved):
    assert not load_model(str(saved)).training


def test_random_weights_need_no_folder(tiny):
    model = load_model("meta-llama/Llama-2-7b-hf", random_weights_config=tiny.model.config)
    assert set(model.state_dict()) == set(tiny.model.state_dict())


def test_a_config_fills_in_the_end_token(tiny):
    tokenizer = AutoTokenizer.from_pretrained(_folder(tiny))
    before = special_ids(tokenizer, tiny.model.config)
    tokenizer.eos_token = None
    tokenizer.bos_token = None
    tokenizer.pad_token = None
    found = special_ids(tokenizer, Qwen2Config(eos_token_id=[before.eos, 7]))
    assert found == SpecialIds(bos=None, eos=before.eos, pad=before.eos, start=before.eos)
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        special_ids(tokenizer, None)


def _folder(tiny) -> str:
    import tempfile

    folder = tempfile.mkdtemp()
    tiny.tokenizer.save_pretrained(folder)
    return folder


def test_any_other_causal_model_gets_a_family_of_its_own(tiny):
    family = family_of(Qwen2Config(), tiny.tokenizer)
    assert family.name == family.model_type == "qwen2"
    assert family.adds_bos == tiny.family.adds_bos
    assert family.tiny_config is None and "q_proj" in family.adapter_targets


#: Billions of parameters in memory. Falcon's embedding is tied there; its file holds the output layer again (7.22).
PUBLISHED = {"gpt2": 1.558, "opt": 6.658, "falcon": 6.922, "llama": 6.738}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_shapes_are_known_offline(name):
    family = registry.lookup("families", name)
    config = offline_config(family.hub_id)
    assert config.model_type == family.model_type
    assert meta_parameters(config) / 1e9 == pytest.approx(PUBLISHED[name], abs=0.001)
    assert offline_config(family.hub_id.split("/")[-1]).to_dict() == config.to_dict()
    assert family_of(config) is family


def test_falcon_as_stored_has_its_output_layer_twice():
    config = offline_config("tiiuae/falcon-7b")
    assert (config.multi_query, config.parallel_attn, config.rotary, config.new_decoder_architecture) == (
        True,
        True,
        True,
        False,
    )
    stored = meta_parameters(config) + config.vocab_size * config.hidden_size
    assert stored / 1e9 == pytest.approx(7.217, abs=0.001)


def test_an_unknown_shape_gets_a_suggestion():
    with pytest.raises(ModelError, match="did you mean 'tiiuae/falcon-7b'"):
        offline_config("tiiuae/falcon-7c")


def test_encode_takes_special_looking_text_as_the_tokenizer_does(tiny):
    assert (
        encode(tiny.tokenizer, "x", bos="never") == tiny.tokenizer("x", add_special_tokens=False)["input_ids"]
    )
