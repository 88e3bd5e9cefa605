"""Tiny random models of the four families with a byte-level tokenizer, made in memory; unusual texts."""

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

FAMILIES = ("gpt2", "opt", "falcon", "llama")
POSITIONS = 256


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with merges across the border of words, so that "ab" + "cd" can hold other tokens than "abcd"."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(
        ["the cat sat on the mat. ", "Question: why?\nAnswer: so it is", "a b c NA null "], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<s>")


def build(family: str, vocab: int):
    torch.manual_seed(7)
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS)
        )
    elif family == "opt":
        model = OPTForCausalLM(
            OPTConfig(
                vocab_size=vocab, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=POSITIONS, word_embed_proj_dim=32,
            )
        )  # fmt: skip
    elif family == "falcon":
        model = FalconForCausalLM(
            FalconConfig(
                vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=POSITIONS,
            )
        )  # fmt: skip
    # Random initial weights of 0.02 predict almost uniformly; larger ones make every position count.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.eval()


@pytest.fixture(scope="session", params=FAMILIES)
def model(request, tokenizer):
    return build(request.param, len(tokenizer))


@pytest.fixture(scope="session")
def builder():
    """build(family, vocab) for tests that need a model of their own."""
    return build


@pytest.fixture(scope="session")
def gpt2(tokenizer):
    return build("gpt2", len(tokenizer))


PIECES = (
    "the",
    "cat",
    "NA",
    "null",
    "a_b",
    "_",
    "é",
    "日本語",
    "🙂",
    "",
    "\n",
    "\r\n",
    "\t",
    "x" * 30,
    ",",
    '"',
    "0",
    "nan",
)


@pytest.fixture(scope="session")
def odd_texts():
    """200 texts with doubled spaces, line breaks, other scripts, underscores, what readers of tables take for nothing."""
    generator = random.Random(3)
    made = [" ".join(generator.choices(PIECES, k=generator.randint(0, 12))) for _ in range(190)]
    return [*made, "", " ", "  ", "NA", "a", "\n", "é", "_", "a_b c", "a b_c"]
