"""Models of the real shapes with random weights, and text for them: nothing is downloaded.

tiny is about the models of experiments/tiny.yaml (their classifier likewise); above it the classifier has BERT-base's
shape. Speed does not depend on the values of weights, with one exception: next-token distributions are nearly flat, so
that a nucleus holds most of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unidetox_ray.container import machine_memory
from unidetox_ray.core.streams import generator
from unidetox_ray.errors import ConfigError
from unidetox_ray.schemas import LABELS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: The start token of every shape; no shape has an end token, so that all sequences have the same length.
START = 1


def causal_config(size: str) -> PretrainedConfig:
    from transformers import GPT2Config, LlamaConfig

    none: dict[str, Any] = {"bos_token_id": START, "eos_token_id": None, "pad_token_id": None}
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if size == "7b":  # LLaMA-2-7B
        return LlamaConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            max_position_embeddings=4096, **none,
        )  # fmt: skip
    shapes: dict[str, dict[str, Any]] = {
        "tiny": {"vocab_size": 900, "n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": 1024},
        "gpt2": {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
        "gpt2-xl": {"vocab_size": 50257, "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024},
    }
    return GPT2Config(**shapes[size], **still, **none)


def causal_model(size: str, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> Any:
    """A causal LM in evaluation mode, its weights drawn from `seed`."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(causal_config(size), dtype=dtype)
    # Some initialisers leave buffers on the CPU.
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None
    return model


def check_room(size: str, models: int, device: torch.device, bytes_each: int) -> None:
    """ConfigError when `models` times `bytes_each` bytes a parameter cannot fit into the memory that is there."""
    from unidetox_ray.families.loading import meta_parameters

    needed = models * bytes_each * meta_parameters(causal_config(size))
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = machine_memory()
    if needed > there:
        raise ConfigError(
            f"--size {size} needs {needed / 2**30:.0f} GiB for its weights alone, {device} has {there / 2**30:.0f}; "
            "take a smaller size or another device"
        )


def token_rows(count: int, shortest: int, longest: int, vocab: int, *, seed: int = 0) -> list[list[int]]:
    """`count` id lists of uniformly mixed lengths, both ends included, each from START on."""
    rng = generator("bench rows", seed)
    lengths = rng.integers(shortest, longest + 1, size=count)
    return [[START, *(int(i) for i in rng.integers(2, vocab, size=n - 1))] for n in lengths]


def words(count: int, *, seed: int = 0) -> list[str]:
    """Made-up words of two to four syllables, all different."""
    rng = generator("bench words", seed)
    consonants, vowels = list("bdfghjklmnprstvwz"), list("aeiou")
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = int(rng.integers(2, 5))
        found["".join(str(rng.choice(consonants)) + str(rng.choice(vowels)) for _ in range(syllables))] = None
    return list(found)


def texts_of(tokenizer: Any, count: int, shortest: int, longest: int, *, seed: int = 0) -> list[str]:
    """Texts of made-up words with uniformly mixed lengths in tokens of `tokenizer`, special tokens counted.

    A text ends where the next word would make it longer than drawn, so that some are a little shorter.
    """
    vocabulary = words(2000)
    sizes = [
        len(ids)
        for ids in tokenizer([f" {word}" for word in vocabulary], add_special_tokens=False)["input_ids"]
    ]
    around = len(tokenizer("")["input_ids"])
    rng = generator("bench texts", seed)
    texts = []
    for wanted in rng.integers(shortest, longest + 1, size=count):
        chosen: list[str] = []
        left = int(wanted) - around
        while True:
            pick = int(rng.integers(len(vocabulary)))
            if chosen and sizes[pick] > left:
                break
            chosen.append(vocabulary[pick])
            left -= sizes[pick]
        texts.append(" ".join(chosen))
    return texts


def saved_classifier(size: str, folder: str) -> None:
    """A BERT with toxic-bert's six labels and a real word-piece tokenizer, written to `folder`; float32."""
    from transformers import BertConfig, BertForSequenceClassification

    from unidetox_ray.families.tokenizers import word_pieces

    shape: dict[str, Any] = {}  # the class's own defaults are BERT-base's
    if size == "tiny":
        shape = {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
        }
    tokenizer = word_pieces([" ".join(words(2000))], 700 if size == "tiny" else 30522)
    tokenizer.model_max_length = 512
    config = BertConfig(
        **shape, vocab_size=700 if size == "tiny" else 30522, id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)}, problem_type="multi_label_classification",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
