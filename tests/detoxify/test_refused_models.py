"""What is no causal language model is refused in one line that says why, before anything is written."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf
from many_models import GROUPED, IDS, PLAIN, build

from unidetox_ray import registry
from unidetox_ray.detoxify.opened import opened
from unidetox_ray.errors import ConfigError, ModelError
from unidetox_ray.families.supported import refuse_not_causal, refuse_too_long, refuse_unsupported
from unidetox_ray.families.tokenizers import train_tokenizer

SMALL = {"vocab_size": 331, "d_model": 32}
ENCODER_DECODERS = {
    "t5": lambda: hf.T5Config(**SMALL, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
    "bart": lambda: hf.BartConfig(**SMALL),
    "mbart": lambda: hf.MBartConfig(**SMALL),
    "pegasus": lambda: hf.PegasusConfig(**SMALL),
}
ENCODERS = {"bert": hf.BertConfig, "roberta": hf.RobertaConfig, "electra": hf.ElectraConfig}
OTHERS = {
    "vit": hf.ViTConfig,
    "clip": hf.CLIPConfig,
    "wav2vec2": hf.Wav2Vec2Config,
    "distilbert": hf.DistilBertConfig,
}


def one_line(raised) -> str:
    said = str(raised.value)
    assert "\n" not in said and len(said) < 400
    return said


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders(name):
    with pytest.raises(ModelError, match="is an encoder-decoder") as raised:
        refuse_unsupported(ENCODER_DECODERS[name](), "me/mine")
    assert one_line(raised).startswith("model me/mine: ") and name in str(raised.value)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name):
    with pytest.raises(ModelError, match="is an encoder, which") as raised:
        refuse_unsupported(ENCODERS[name](), "me/mine")
    one_line(raised)
    refuse_unsupported(ENCODERS[name](is_decoder=True), "me/mine")  # trained to continue text


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_no_text(name):
    with pytest.raises(ModelError, match="no causal language model of model type"):
        refuse_unsupported(OTHERS[name](), "me/mine")


def test_quantised_weights():
    config = hf.Qwen2Config(**GROUPED, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"quantised \(gptq\)"):
        refuse_unsupported(config, "me/mine")


def test_what_looks_ahead_is_found_by_its_numbers():
    xlnet = hf.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=331)
    refuse_unsupported(xlnet, "me/mine")  # its config says nothing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(xlnet).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    model.train()
    with pytest.raises(ModelError, match="changes with the tokens behind it") as raised:
        refuse_not_causal(model, "me/mine")
    one_line(raised)
    assert model.training
    for name in ("mamba", "mixtral", "gpt-neo"):
        refuse_not_causal(build(name), name)


def test_what_looks_at_the_length_of_the_text_is_found_too():
    config = hf.ProphetNetConfig(
        hidden_size=32, num_decoder_layers=2, num_decoder_attention_heads=4, decoder_ffn_dim=48, vocab_size=331,
        max_position_embeddings=64, num_buckets=8, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    with pytest.raises(ModelError, match="changes with the tokens behind it"):
        refuse_not_causal(model, "me/mine")


def test_positions_that_the_config_names_and_the_model_lacks():
    config = hf.RobertaConfig(**PLAIN | {"pad_token_id": 1}, is_decoder=True, type_vocab_size=1)
    model = hf.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=r"cannot read 64 tokens.*names 64 positions; name max_length=62"):
        refuse_too_long(model, 64, "me/mine")
    refuse_too_long(model, 62, "me/mine")
    refuse_too_long(build("qwen3"), 64, "qwen3")


@pytest.fixture
def folder(tokenizer, tmp_path):
    build("qwen2").save_pretrained(tmp_path / "qwen2")
    tokenizer.save_pretrained(tmp_path / "qwen2")
    return tmp_path / "qwen2"


def test_a_folder_is_opened_without_its_weights(folder):
    found = opened(str(folder))
    assert found.model_type == "qwen2" and found.positions == 64 and found.hub_id is None
    assert all(weight.is_meta for weight in found.model.parameters())


def test_a_tokenizer_that_is_too_large_is_refused_before_anything_starts(folder, texts):
    train_tokenizer(registry.lookup("families", "gpt2"), texts, 400).save_pretrained(folder)
    with pytest.raises(ModelError, match="tokenizer has 400 tokens but the embedding 331 rows") as raised:
        opened(str(folder))
    one_line(raised)


def test_a_folder_without_a_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer") as raised:
        opened(str(folder))
    assert one_line(raised).startswith("tokenizer ")


def test_code_from_the_repository_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "of_my_own",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')\n")
    with pytest.raises(ModelError, match="needs code from its repository, which is never run") as raised:
        opened(str(folder))
    one_line(raised)


def test_a_config_that_describes_no_model(folder):
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": "no_such_function"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as raised:
        opened(str(folder))
    assert "no_such_function" in one_line(raised)


def test_a_model_made_of_other_sizes_than_its_tokenizer_is_no_hindrance(tokenizer):
    """More rows than tokens: what the model predicts there is never a token, and decoding is over all of them."""
    assert build("phi").get_input_embeddings().weight.shape[0] == IDS["vocab_size"] > len(tokenizer)
    assert PLAIN["vocab_size"] == IDS["vocab_size"]
