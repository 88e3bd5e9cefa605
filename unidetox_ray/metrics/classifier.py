"""Judges of a single text: a sequence classifier from Hugging Face, and a word list that shares nothing with it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unidetox_ray.errors import ArtifactError, ConfigError, ModelError
from unidetox_ray.families.loading import load_classifier, load_tokenizer
from unidetox_ray.families.positions import positive
from unidetox_ray.secrecy import hub_token

if TYPE_CHECKING:
    import torch

    from unidetox_ray.core.encoder import PackedEncoder

MAX_LENGTH = 512

#: Of a long text so many characters a token are read at first, and so many tokens more than are kept.
_CHARACTERS, _BEHIND_THE_CUT = 16, 64

#: A padding id that no text holds.
_NO_TOKEN = -1

Activation = Literal["auto", "sigmoid", "softmax"]


class ToxicityClassifier:
    """Probability of a label under a sequence classifier, by default `toxic` of unitary/toxic-bert.

    The sigmoid of the label's own logit for a multi-label head (`problem_type: multi_label_classification`, which is
    what Detoxify applies) and for a head of one logit, else its share of the softmax; `activation` overrules what the
    config says. Of several labels: the largest of their sigmoids, the sum of their shares. Texts are cut at 512 tokens or
    at the model's own limit; `full` (same order as `errors`) says which filled it, so that more may have followed.
    """

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        sha256: str | None = None,
        label: str | Sequence[str] | None = "toxic",
        activation: Activation = "auto",
        device: str = "cpu",
    ) -> None:
        """source: folder or hub id. sha256: what model.safetensors must hash to. label: one of the model's, several, or
        None = `toxic`, else the only one there is. ModelError, ArtifactError.
        """
        import torch

        self.source, self.revision, self.device = source, revision, torch.device(device)
        self.sha256 = _weights_hash(source, revision)
        if sha256 is not None and self.sha256 != sha256.lower():
            raise ArtifactError(
                f"scorer {source}: model.safetensors hashes to {self.sha256 or 'nothing (no such file)'}, "
                f"expected {sha256}; it is not the classifier that was pinned"
            )
        self.tokenizer = load_tokenizer(source, revision=revision)
        self.model = load_classifier(source, revision=revision)
        self.model.to(self.device)
        self.names_by_index = {int(index): str(name) for index, name in self.model.config.id2label.items()}
        self.indices = self._indices(label)
        self.label = "+".join(self.names_by_index[index] for index in self.indices)
        self.multi_label = self._is_multi_label(activation)
        self._give_padding()
        self.max_length = min(
            MAX_LENGTH, _positions(self.model) or MAX_LENGTH, self.tokenizer.model_max_length
        )
        self.errors: list[str | None] = []
        self.full: list[bool] = []
        self._encoder: PackedEncoder | None = None
        self._packed_from: list[tuple[int, int]] | None = None

    @property
    def index(self) -> int:
        """The logit of the first label."""
        return self.indices[0]

    def _indices(self, label: str | Sequence[str] | None) -> list[int]:
        if label is None:
            toxic = [index for index, name in self.names_by_index.items() if name.lower() == "toxic"]
            found = toxic if len(toxic) == 1 else list(self.names_by_index)
            if len(found) == 1:
                return found
            raise ModelError(
                f"scorer {self.source}: none of its labels {sorted(self.names_by_index.values())} is called toxic; say which means it"
            )
        wanted = [label] if isinstance(label, str) else list(label)
        indices = []
        for each in wanted:
            found = [index for index, name in self.names_by_index.items() if name.lower() == each.lower()]
            if len(found) != 1:
                raise ModelError(
                    f"scorer {self.source}: label {each!r} is not one of {sorted(self.names_by_index.values())}; set the scorer's label"
                )
            indices += found
        return list(dict.fromkeys(indices))

    def _is_multi_label(self, activation: Activation) -> bool:
        kind = self.model.config.problem_type
        if activation != "auto":
            if activation == "softmax" and len(self.names_by_index) == 1:
                raise ModelError(
                    f"scorer {self.source}: has one label, of which softmax makes 1 for every text; take sigmoid"
                )
            return activation == "sigmoid"
        if kind == "regression":
            raise ModelError(
                f"scorer {self.source}: problem_type is regression, whose numbers are no probabilities; if they are the logits of "
                "one, give the activation sigmoid"
            )
        return bool(kind == "multi_label_classification" or len(self.names_by_index) == 1)

    def _give_padding(self) -> None:
        """A model made from a decoder reads a text's class off its last token, which it finds by its padding.

        Where there is none, texts of one length are read together and nothing is padded: a token that stands in for it, such as
        the end of a text, could be part of a text.
        """
        self.pads = self.tokenizer.pad_token_id is not None
        if getattr(self.model.config, "pad_token_id", None) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id if self.pads else _NO_TOKEN

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
        filled: set[str] = set()
        if distinct:
            heads = [self._head(text) for text in distinct]
            encoded = self.tokenizer(heads, truncation=True, max_length=self.max_length)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            found = {
                t: "no token to score" for t, length in zip(distinct, lengths, strict=True) if not length
            }
            rows = [row for row, length in enumerate(lengths) if length]
            filled = {distinct[row] for row in rows if lengths[row] >= self.max_length}
            encoder = self._fast(sum(lengths))

            def work(batch: list[int]) -> None:
                with torch.inference_mode():
                    logits = self._logits(encoder, encoded, batch)
                    values = (
                        logits[:, self.indices].sigmoid().amax(dim=-1)
                        if self.multi_label
                        else logits.softmax(dim=-1)[:, self.indices].sum(dim=-1)
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
        self.full = [isinstance(text, str) and text in filled for text in texts]
        for row, text in enumerate(texts):
            if self.errors[row] is None:
                value = found[text]
                if isinstance(value, str):
                    self.errors[row] = value
                else:
                    scores[row] = value
        return scores

    def _head(self, text: str) -> str:
        """As much of a long text as its first `max_length` tokens come from: reading megabytes to keep 512 tokens takes
        seconds a text, and memory for all of them."""
        size = _CHARACTERS * self.max_length
        if self.tokenizer.truncation_side != "right":
            return text
        while size < len(text):
            # Where the text is cut its tokens are not those of the whole; they lie behind the ones that count.
            if (
                len(self.tokenizer(text[:size], verbose=False)["input_ids"])
                >= self.max_length + _BEHIND_THE_CUT
            ):
                return text[:size]
            size *= 4
        return text

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
        if not self.pads:
            return self._unpadded(encoded, batch)
        part = {name: [column[row] for row in batch] for name, column in encoded.items()}
        padded = self.tokenizer.pad(part, return_tensors="pt").to(self.device)
        logits: torch.Tensor = self.model(**padded).logits.float()
        return logits

    def _unpadded(self, encoded: Any, batch: list[int]) -> torch.Tensor:
        """The same, texts of one length together."""
        import torch

        found: dict[int, torch.Tensor] = {}
        for _, same in groupby(batch, key=lambda row: len(encoded["input_ids"][row])):
            rows = list(same)
            part = {
                name: torch.tensor([column[row] for row in rows], device=self.device)
                for name, column in encoded.items()
            }
            found |= dict(zip(rows, self.model(**part).logits.float(), strict=True))
        return torch.stack([found[row] for row in batch])

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
        self.full: list[bool] = []

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
        self.full = [False] * len(texts)
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


def _positions(model: Any) -> int | None:
    """How many tokens the model has positions for; None for one with relative positions, which says None or -1."""
    for name, module in model.named_modules():
        # RoBERTa and its like count positions from behind the padding's, and so take fewer tokens than they say.
        if name.endswith("position_embeddings") and isinstance(getattr(module, "padding_idx", None), int):
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return positive(model.config, "max_position_embeddings")
