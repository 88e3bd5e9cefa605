"""Judges of a single text: a sequence classifier from Hugging Face, and a word list that shares nothing with it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidetox_ray.errors import ArtifactError, ConfigError, ModelError
from unidetox_ray.families.loading import load_classifier, load_tokenizer
from unidetox_ray.secrecy import hub_token

if TYPE_CHECKING:
    import torch

    from unidetox_ray.core.encoder import PackedEncoder

MAX_LENGTH = 512


class ToxicityClassifier:
    """Probability of one label under a sequence classifier, by default `toxic` of unitary/toxic-bert.

    The sigmoid of the label's own logit for a multi-label head (`problem_type: multi_label_classification`, which is
    what Detoxify applies), else its share of the softmax. Texts are cut at 512 tokens or at the model's own limit.
    """

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        sha256: str | None = None,
        label: str = "toxic",
        device: str = "cpu",
    ) -> None:
        """source: folder or hub id. sha256: what model.safetensors must hash to. ModelError, ArtifactError."""
        import torch

        self.source, self.revision, self.label, self.device = source, revision, label, torch.device(device)
        self.sha256 = _weights_hash(source, revision)
        if sha256 is not None and self.sha256 != sha256.lower():
            raise ArtifactError(
                f"scorer {source}: model.safetensors hashes to {self.sha256 or 'nothing (no such file)'}, "
                f"expected {sha256}; it is not the classifier that was pinned"
            )
        self.tokenizer = load_tokenizer(source, revision=revision)
        self.model = load_classifier(source, revision=revision)
        self.model.to(self.device)
        labels = {int(index): str(name) for index, name in self.model.config.id2label.items()}
        found = [index for index, name in labels.items() if name.lower() == label.lower()]
        if len(found) != 1:
            raise ModelError(
                f"scorer {source}: label {label!r} is not one of {sorted(labels.values())}; set the scorer's label"
            )
        self.index = found[0]
        self.multi_label = self.model.config.problem_type == "multi_label_classification" or len(labels) == 1
        limit = getattr(self.model.config, "max_position_embeddings", MAX_LENGTH)
        # RoBERTa counts positions from pad + 1 and so takes two fewer than it says; the tokenizer knows.
        self.max_length = min(MAX_LENGTH, limit, self.tokenizer.model_max_length)
        self.errors: list[str | None] = []
        self._encoder: PackedEncoder | None = None
        self._packed_from: list[tuple[int, int]] | None = None

    def score(self, texts: Sequence[str], token_budget: int = 16384) -> list[float | None]:
        """One probability per text in input order; None where `errors` (same order) says why. "" is scored as it is.

        Equal texts are scored once. Batches are sorted by length and hold at most `token_budget` tokens (fewer
        on the CPU, see `budget`): what a text scores does not depend on its neighbours beyond 1e-5.
        """
        import torch

        from unidetox_ray.core.batching import in_batches, reason, shares_of, side_by_side
        from unidetox_ray.core.packing import packed_linears

        self.errors = [
            None if isinstance(text, str) else f"not a text but {type(text).__name__}" for text in texts
        ]
        distinct = list(
            dict.fromkeys(t for t, error in zip(texts, self.errors, strict=True) if error is None)
        )
        found: dict[str, float | str] = {}
        if distinct:
            encoded = self.tokenizer(distinct, truncation=True, max_length=self.max_length)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            found = {
                t: "no token to score" for t, length in zip(distinct, lengths, strict=True) if not length
            }
            rows = [row for row, length in enumerate(lengths) if length]
            encoder = self._fast(sum(lengths))

            def work(batch: list[int]) -> None:
                with torch.inference_mode():
                    logits = self._logits(encoder, encoded, batch)
                    values = (
                        logits[:, self.index].sigmoid()
                        if self.multi_label
                        else logits.softmax(dim=-1)[:, self.index]
                    )
                for row, value in zip(batch, values.tolist(), strict=True):
                    finite = math.isfinite(value)
                    found[distinct[row]] = value if finite else "the classifier gave no finite probability"

            def failed(row: int, error: Exception) -> None:
                found[distinct[row]] = reason(error)

            budget = self.budget(token_budget)
            # Another classifier than the encoder knows: its own forward, with packed layers while it works.
            with packed_linears(self.model, 0 if encoder else sum(lengths)):
                sizes = [lengths[row] for row in rows]
                threads = torch.get_num_threads() if encoder and sum(sizes) > budget else 1
                jobs = [
                    partial(
                        in_batches, [rows[i] for i in mine], [sizes[i] for i in mine], budget, work, failed
                    )
                    for mine in shares_of(sizes, threads)
                ]
                side_by_side(jobs)
        scores: list[float | None] = [None] * len(texts)
        for row, text in enumerate(texts):
            if self.errors[row] is None:
                value = found[text]
                if isinstance(value, str):
                    self.errors[row] = value
                else:
                    scores[row] = value
        return scores

    def budget(self, token_budget: int) -> int:
        """Tokens of a batch: on the CPU as many as its caches hold."""
        from unidetox_ray.core.batching import cpu_budget

        width = int(getattr(self.model.config, "hidden_size", 0))
        return cpu_budget(token_budget, width) if self.device.type == "cpu" else token_budget

    def _logits(self, encoder: PackedEncoder | None, encoded: Any, batch: list[int]) -> torch.Tensor:
        """(texts, labels) float32 of the rows `batch` of the tokenizer's output."""
        ids = [encoded["input_ids"][row] for row in batch]
        if encoder is not None:
            types = encoded.get("token_type_ids")
            return encoder.logits(
                ids, [types[row] if types else [0] * len(ids[i]) for i, row in enumerate(batch)]
            )
        part = {name: [column[row] for row in batch] for name, column in encoded.items()}
        padded = self.tokenizer.pad(part, return_tensors="pt").to(self.device)
        logits: torch.Tensor = self.model(**padded).logits.float()
        return logits

    def _fast(self, tokens: int) -> PackedEncoder | None:
        """The packed encoder where the model allows it and packing pays; made anew when weights have changed."""
        if self.device.type != "cpu":
            return None
        from unidetox_ray.core.encoder import PackedEncoder
        from unidetox_ray.core.packing import WORTHWHILE_TOKENS

        now = [(parameter.data_ptr(), parameter._version) for parameter in self.model.parameters()]
        if now != self._packed_from:
            if tokens < WORTHWHILE_TOKENS:
                return None
            self._encoder, self._packed_from = PackedEncoder.of(self.model), now
        return self._encoder


class LexiconClassifier:
    """1.0 where any word of a list stands between word boundaries, whatever its case; else 0.0."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(sorted({word.strip() for word in words if word.strip()}))
        if not self.words:
            raise ConfigError("lexicon: holds no word; give one word or phrase a line")
        # Longest first, and lookarounds rather than \b: a word may begin or end with a sign such as "$" or "'".
        alternatives = "|".join(re.escape(word) for word in sorted(self.words, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
        self.sha256 = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
        self.errors: list[str | None] = []

    @classmethod
    def from_file(cls, path: Path) -> LexiconClassifier:
        """A UTF-8 file with one word or phrase a line; ConfigError when it cannot be read."""
        try:
            return cls(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"lexicon {path}: cannot be read as UTF-8 text ({error})") from None

    def score(self, texts: Sequence[str], token_budget: int = 0) -> list[float | None]:
        """1.0 or 0.0 per text, None for what is no text (see `errors`). `token_budget` is not needed here."""
        self.errors = [
            None if isinstance(text, str) else f"not a text but {type(text).__name__}" for text in texts
        ]
        return [float(bool(self._pattern.search(t))) if isinstance(t, str) else None for t in texts]


def _weights_hash(source: str, revision: str | None) -> str | None:
    """sha256 of model.safetensors in a folder or on the hub; None where the model has no such single file."""
    path: Any = Path(source) / "model.safetensors"
    if not Path(source).is_dir():
        from transformers.utils.hub import cached_file

        try:
            path = cached_file(source, "model.safetensors", revision=revision, token=hub_token())
        except OSError:
            # Not there, not reachable or in shards: loading says which; a pinned hash is refused for want of a match.
            return None
    if path is None or not Path(path).is_file():
        return None
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
