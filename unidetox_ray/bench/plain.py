"""The plain loops that the package is measured against: what one writes with transformers alone.

Contrast through `generate` with a logits processor, one prompt at a time, one text at a time, an eager training step.
They are written to be right and idiomatic, not to be slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class ContrastProcessor:
    """The second model beside `generate`: its own cache, log-softmax of both, the plausible set, the difference."""

    def __init__(self, toxic: Any, alpha: float) -> None:
        self.toxic, self.alpha = toxic, alpha
        self.cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T) so far, scores (B, V) of the base model -> (B, V), -inf outside the plausible set."""
        new = input_ids if self.cache is None else input_ids[:, -1:]
        output = self.toxic(input_ids=new, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        base = scores.float().log_softmax(dim=-1)
        toxic = output.logits[:, -1].float().log_softmax(dim=-1)
        implausible = base < base.max(dim=-1, keepdim=True).values + math.log(self.alpha)
        return (base - toxic).masked_fill(implausible, float("-inf"))


def _settings(new_tokens: int, **sampling: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True, max_new_tokens=new_tokens, min_new_tokens=new_tokens, use_cache=True, eos_token_id=None,
        pad_token_id=0, **{"top_k": 0, "top_p": 1.0, "temperature": 1.0, **sampling},
    )  # fmt: skip


@torch.inference_mode()
def contrast_texts(
    base: Any,
    toxic: Any,
    start: int,
    texts: int,
    new_tokens: int,
    *,
    alpha: float,
    batch: int,
    top_k: int = 0,
) -> list[list[int]]:
    """`texts` sequences of `new_tokens` ids from the start token, `batch` at a time."""
    found: list[list[int]] = []
    for first in range(0, texts, batch):
        ids = torch.full((min(batch, texts - first), 1), start, device=base.device)
        output = base.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_settings(new_tokens, top_k=top_k),
            logits_processor=[ContrastProcessor(toxic, alpha)],
        )
        found += output[:, 1:].tolist()
    return found


@torch.inference_mode()
def continued_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    copies: int,
    new_tokens: int,
    *,
    top_p: float,
    top_k: int = 0,
) -> list[list[int]]:
    """`copies` continuations of each prompt, one prompt at a time: `generate` with `num_return_sequences`."""
    found: list[list[int]] = []
    settings = _settings(new_tokens, num_return_sequences=copies, top_p=top_p, top_k=top_k)
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=model.device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        found += output[:, len(prompt) :].tolist()
    return found


@torch.inference_mode()
def label_scores(
    model: Any, tokenizer: Any, texts: Sequence[str], *, index: int, max_length: int
) -> list[float]:
    """The sigmoid of one label's logit, one text at a time, the tokenizer included."""
    found = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt").to(
            model.device
        )
        found.append(float(model(**encoded).logits[0, index].sigmoid()))
    return found


@torch.inference_mode()
def span_nlls(model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[float]:
    """-log p(sequence[start:] | sequence[:start]) in nats, one sequence at a time."""
    found = []
    for sequence, start in zip(sequences, starts, strict=True):
        ids = torch.tensor([list(sequence)], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
        found.append(float(F.cross_entropy(logits, ids[0, start:], reduction="sum")))
    return found


class EagerTraining:
    """The ordinary step: the model's own loss, gradients clipped at 1, `torch.optim.AdamW` as it comes."""

    def __init__(self, model: Any, lr: float) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)

    def step(self, ids: Tensor) -> float:
        """One update on (B, T) int64 ids without padding; the loss in nats."""
        ids = ids.to(self.model.device)
        loss = self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
