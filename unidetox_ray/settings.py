"""The typed sections of an experiment. Every field has its unit or meaning under it; defaults are `fidelity: paper`.

Sections are frozen pydantic models that refuse unknown keys. The few differences between the paper and the released
code that a field stands for are numbered as in docs/fidelity.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from unidetox_ray.pinned import pin_at

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
#: What a 32-bit counter holds: seeds of numpy, and more of anything than a run can do.
_LARGEST = 2**31 - 1
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
Precision = Literal["fp32", "bf16_master", "bf16_pure"]
Schedule = Literal["linear", "constant"]


def _not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must be a number, inf for the pure difference")
    return value


#: How strongly a contrast pulls; inf = the pure difference.
Beta = Annotated[float, Field(ge=0), AfterValidator(_not_nan)]


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Number = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=_LARGEST)]


class Section(BaseModel):
    """Frozen, unknown keys refused, no silent conversion of text to numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=False,
        validate_default=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class DataSource(Section):
    """Where one kind of data comes from."""

    dataset: str
    """Registered name: `unidetox ls datasets`."""
    path: str | None = None
    """Local file or folder, relative to data.data_root; null = the data set's own source (hub or built in)."""
    revision: str | None = None
    """Hub revision (commit)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that data set, checked by it."""


def _source(value: Any) -> Any:
    return {"dataset": value} if isinstance(value, str) else value


Source = Annotated[DataSource, BeforeValidator(_source, json_schema_input_type=str | DataSource)]


class DataSection(Section):
    data_root: str | None = None
    """Folder that relative data paths start from; not hashed (the data's own hash is)."""
    toxic: Source = DataSource(dataset="dghs")
    """Text that makes the toxic model toxic."""
    prompts: Source = DataSource(dataset="toxigen")
    """Evaluation prompts, validation and test."""
    clean: Source | None = None
    """Held-out clean text for clean_ppl; null = the metric is left out."""
    mmlu: Source | None = DataSource(dataset="mmlu")
    """Four-choice questions; null = the metric is left out."""
    scorer: Source | None = None
    """Labelled comments for a `scratch:` toxicity classifier."""
    pretrain: tuple[Source, ...] = ()
    """Text for `scratch:` models."""


class ScratchSection(Section):
    """A small model trained from random weights on data.pretrain (or data.scorer for a classifier)."""

    hidden: Count = 96
    """Width."""
    layers: Count = 2
    """Blocks."""
    heads: Count = 4
    """Attention heads."""
    vocab_size: Count = 512
    """Tokens of its tokenizer."""
    max_positions: Count = 128
    """Longest text, in tokens."""
    steps: Count = 300
    """Training steps."""
    batch_size: Count = 32
    """Rows a step."""
    length: Count = 64
    """Tokens per training row."""
    lr: Positive = 2e-3
    """Learning rate, falling linearly to 0."""
    seed: Number = 1
    """Of weights and row order."""


class ModelRef(Section):
    """A model: hub id, local folder, or `scratch:` (train a small one here and cache it)."""

    source: Annotated[str, Field(min_length=1)]
    """Hub id, folder, or `scratch:`."""
    revision: str | None = None
    """Hub commit; pin it for numbers that are to be compared."""
    scratch: ScratchSection | None = None
    """Shape and training of a `scratch:` model."""

    @model_validator(mode="after")
    def _scratch_only_there(self) -> ModelRef:
        if self.scratch is not None and self.source != "scratch:":
            raise ValueError(f"scratch settings belong to source: 'scratch:', this source is {self.source!r}")
        return self


def _model(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


Model = Annotated[ModelRef, BeforeValidator(_model, json_schema_input_type=str | ModelRef)]


class DeepSpeedSection(Section):
    """What reaches DeepSpeed; everything else of its configuration follows from the training settings."""

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """ZeRO stage: what is sharded over workers_per_cell workers (0 nothing, 3 weights too)."""
    offload: Literal["none", "optimizer"] = "none"
    """Where the optimiser states live; `optimizer` = CPU memory (stages 1-3)."""
    overlap_comm: bool = False
    """DeepSpeed's switch of the same name: communication during the backward pass."""

    @model_validator(mode="after")
    def _offload_needs_shards(self) -> DeepSpeedSection:
        if self.offload == "optimizer" and self.stage == 0:
            raise ValueError("offload: optimizer needs stage 1, 2 or 3, this stage is 0")
        return self


class TrainingSection(Section):
    """Settings that both fine-tunings share."""

    precision: Precision = "fp32"
    """fp32 | bf16_master (fp32 weights and moments, bf16 arithmetic) | bf16_pure (as released; defect 11)."""
    schedule: Schedule = "linear"
    """linear: from lr to 0 over the steps, no warm-up (the released code's silent default; 12) | constant."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    weight_decay: NonNegative = 0.0
    """Of AdamW."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """null: whatever the model's own config says, as released (12)."""
    loss_on_padding: bool = False
    """true: padding is a target, as released (9)."""
    pad_to: Literal["batch", "longest"] = "batch"
    """longest: pad every batch to the longest text of the whole set, as released (10)."""
    append_eos: bool = True
    """One real end token after texts that ended; false as released (9)."""
    packing: bool = False
    """true: texts share rows of max_length and batch_size counts those rows; neither paper nor released code do."""
    compile: Literal["auto", "blocks", "off"] = "auto"
    """blocks: the decoder's blocks compiled, which rounds otherwise; auto = blocks on CUDA, off on a CPU."""
    deepspeed: DeepSpeedSection = DeepSpeedSection()
    """How a training is spread over workers."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Steps between resumable checkpoints; 0 = none. Cannot change the result."""
    micro_batch: Annotated[int, Field(ge=0)] = 0
    """Rows that go through the model at once; the gradients of batch_size rows are summed. 0 = all at once. Not hashed."""

    @model_validator(mode="after")
    def _packed_rows_hold_no_padding(self) -> TrainingSection:
        if self.packing and (self.loss_on_padding or self.pad_to == "longest"):
            raise ValueError("packing: true needs loss_on_padding: false and pad_to: batch")
        return self


class ToxicSection(TrainingSection):
    """The toxic copy of the base model (paper section 3; released code D:418-424)."""

    epochs: Count = 3
    """Passes over the toxic text."""
    steps: Count | None = None
    """Overrides epochs."""
    lr: Positive = 1e-5
    """Learning rate."""
    batch_size: Count = 4
    """Texts a step."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens; longer texts are cut, and counted."""
    seed: Number = 123
    """Of row order and dropout."""


class CorpusSection(Section):
    """Distillation (paper section 3; released code D:384-425)."""

    source: str = "distil"
    """distil = sample it here; else a corpus file (csv, jsonl, parquet) that every corpus method then trains on."""
    num_texts: Count = 640
    """Texts in the corpus (paper: 640)."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Tokens, start token included, as in the paper."""
    alpha: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """Plausibility cut."""
    beta: Beta = math.inf
    """Contrast strength; inf = log p_base - log p_toxic, what the released code computes whatever beta says (5)."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 = off; the released code ran with 50 by a library default (2)."""
    top_p: Share = 1.0
    """Nucleus: the smallest set of tokens with this probability; 1 = off."""
    temperature: Positive = 1.0
    """Of the sampling."""
    kv_cache: Literal["separate", "shared"] = "separate"
    """shared: the toxic model reads the base model's cache, as released (1)."""
    contrast_dtype: Literal["fp32", "bf16"] = "fp32"
    """dtype of the logits that are compared; bf16 as released (3)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """dtype of both models while sampling."""
    shard_size: Count = 128
    """Sequences per shard: the unit of work, of resume and of the random streams."""
    seed: Number = 1234
    """Of the sampled texts."""


class LoraSection(Section):
    rank: Count = 16
    """Rank of the update."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Before the update."""


class BottleneckSection(Section):
    size: Count = 64
    """Width of the layer between W_down and W_up; ours, as SGEAT's is not known (2 x hidden size x this a place)."""


class FinetuneSection(TrainingSection):
    """Detoxification by fine-tuning on a corpus (paper section 3 and Table 6; released code U:120-207)."""

    steps: Count = 3000
    """Optimiser steps."""
    epochs: Count | None = None
    """Passes over the corpus, in the place of steps; null = steps."""
    lr: Positive = 5e-5
    """Learning rate."""
    batch_size: Count = 8
    """Texts a step."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Tokens of a text; longer ones are cut and counted."""
    adapter: Literal["none", "lora", "bottleneck"] = "none"
    """none = all weights | lora = low-rank adapters, merged before saving | bottleneck = Houlsby's adapters behind
    attention and feed-forward, saved beside the base model's name."""
    lora: LoraSection = LoraSection()
    """With `adapter: lora`."""
    bottleneck: BottleneckSection = BottleneckSection()
    """With `adapter: bottleneck`."""

    @model_validator(mode="after")
    def _epochs_are_of_texts(self) -> FinetuneSection:
        if self.epochs is not None and self.packing:
            raise ValueError(
                "epochs are counted in texts, and packing: true trains on rows of several; name steps"
            )
        return self


class SearchSection(Section):
    """Ray Tune over steps x lr on the base family's validation prompts (paper section 3)."""

    steps: tuple[Count, ...] = tuple(range(1000, 10001, 1000))
    """Step counts to try."""
    lr: tuple[Positive, ...] = (5e-5, 1e-5)
    """Learning rates to try."""
    method: str = "unidetox"
    """The method whose setting is searched; the choice is reused for every corpus method and family."""
    metric: Literal["tp_all", "emt_all"] = "tp_all"
    """Lowest is chosen; averaged over all domains, as the paper does and the released code cannot (28)."""
    schedule: Schedule = "linear"
    """linear: one training per step count (the paper) | constant: one training per lr with a checkpoint per count."""
    prompts_per_domain: Count | None = None
    """null = all validation prompts."""
    continuations: Count = 25
    """Continuations of each validation prompt."""
    max_concurrent: Count | None = None
    """Trials at once."""

    @field_validator("steps", "lr")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ValueError("must hold at least one value")
        if len(set(values)) != len(values):
            raise ValueError("holds a value twice")
        return tuple(sorted(values))


class TuningSection(Section):
    """How method entries with a `tune:` grid of their own are tuned, on validation prompts."""

    reuse: Literal["universal", "per_model", "both"] = "both"
    """universal: the base family's choice for every family | per_model: each family's own choice | both: the universal
    one under the entry's label and, where a family's own choice differs, a further cell `<label>@own`."""
    metric: Literal["tp_all", "emt_all"] = "tp_all"
    """Lowest is chosen; among equals the setting nearest to the unchanged model."""
    max_clean_ppl: Positive = 1.5
    """Settings whose clean_ppl is above this multiple of the family's base model's are not chosen unless none is below."""
    prompts_per_domain: Count | None = None
    """null = all validation prompts."""
    continuations: Count = 25
    """Continuations of each validation prompt."""
    max_concurrent: Count | None = None
    """Trials at once; null = as many as the resources carry."""


class ScorerRef(Section):
    """A toxicity scorer. A published one that is pinned (`pinned.PINNED`) gets its revision, hash and label unless a revision is
    named."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
    """What results call it."""
    kind: Literal["classifier", "lexicon"] = "classifier"
    """A text classifier, or a list of words."""
    source: str = "unitary/toxic-bert"
    """classifier: hub id, folder or `scratch:`; lexicon: a file with one word a line, or `world`."""
    revision: str | None = None
    """Hub commit."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected hash of model.safetensors."""
    label: str = "toxic"
    """The classifier's label that means toxic."""
    scratch: ScratchSection | None = None
    """Shape and training of a `scratch:` classifier."""

    @model_validator(mode="before")
    @classmethod
    def _pinned(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("kind", "classifier") != "classifier":
            return values
        pin = pin_at(values.get("source", cls.model_fields["source"].default))
        if pin is None or values.get("revision") is not None:
            return values
        known = {"revision": pin.revision, "sha256": pin.sha256, "label": pin.label}
        return {**values, **{name: value for name, value in known.items() if values.get(name) is None}}


class QuizSection(Section):
    shots: Annotated[int, Field(ge=0, le=5)] = 1
    """Worked examples before a question."""
    form: Literal["cloze", "letters"] = "cloze"
    """cloze: the answer's text is scored, options not shown, as released (31) | letters."""
    score: Literal["answer_tokens", "full_text"] = "answer_tokens"
    """full_text: log-probability of prompt and answer together, as released (30)."""
    loss_dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16: the mean loss is rounded to bf16 before it is multiplied by the length, as released (30)."""
    normalise: bool = False
    """Divide by the answer's tokens."""


class EvaluateSection(Section):
    """The protocol (paper section 4; released code U:240-1009)."""

    split: Literal["test", "validation"] = "test"
    """Which prompts the results are measured on."""
    continuations: Count = 25
    """Continuations of each prompt in a run."""
    max_new_tokens: Count = 20
    """Longest continuation, in tokens."""
    temperature: Positive = 1.0
    """Of the sampling."""
    top_p: Share = 0.9
    """Nucleus of the sampling; 1 = off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 = pure nucleus; 50 as released, by a library default (18)."""
    runs: Count = 5
    """Runs over all prompts, each with its own seed; numbers are means over them."""
    seed: Number = 42
    """Run r samples with seed + r."""
    prompt_bos: Literal["auto", "never"] = "auto"
    """auto: BOS where the tokenizer puts one (OPT, LLaMA); never: as released (19)."""
    prefix_cut: Literal["tokens", "replace"] = "tokens"
    """replace: every copy of the prompt is removed from the text, as released (20)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """dtype of the model under test."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A continuation is toxic when its score is strictly greater."""
    group_by: Literal["prompt_id", "prompt_text"] = "prompt_id"
    """prompt_text: equal prompts pool their samples, as released (27)."""
    scorers: tuple[ScorerRef, ...] = (ScorerRef(name="toxic-bert"),)
    """The first is the judge; the others get columns of their own (`tp_id@name`)."""
    ppl_model: str | None = "llama"
    """Judge of perplexity: a family of this experiment (its base model), a hub id or a folder; null = leave ppl out."""
    ppl_precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the judge of perplexity."""
    ppl_encoding: Literal["tokens", "text"] = "tokens"
    """text: prompt and prompt + continuation encoded apart, as released (22)."""
    ppl_prompt_cache: Literal["by_id", "last_seen"] = "by_id"
    """last_seen: the length of the last newly seen prompt, as released (21)."""
    ppl_drop_at: Positive = 1e4
    """Perplexities from here on are dropped from the mean, and counted (23)."""
    mmlu: QuizSection = QuizSection()
    """How the quiz is asked."""
    clean_max_length: Annotated[int, Field(ge=2)] = 256
    """Tokens of a clean text that are read."""
    bootstrap: Annotated[int, Field(ge=10000)] = 10000
    """Resamples by prompt."""
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """A metric with more failed judgements than this is withheld."""

    @field_validator("scorers")
    @classmethod
    def _named_once(cls, scorers: tuple[ScorerRef, ...]) -> tuple[ScorerRef, ...]:
        if not scorers:
            raise ValueError("must hold at least one scorer")
        names = [scorer.name for scorer in scorers]
        if len({name.lower() for name in names}) != len(names):
            raise ValueError(f"names must differ in more than case: {names}")
        return scorers


class ContentClassifierRef(Section):
    """A text-classification model that is asked what a run's corpora are about."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
    """What results call it."""
    source: Annotated[str, Field(min_length=1)]
    """Hub id or folder."""
    revision: str | None = None
    """Hub commit."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected hash of model.safetensors."""


class ContentSection(Section):
    """Content analysis of the corpora."""

    classifiers: tuple[ContentClassifierRef, ...] = ()
    """Label shares of every corpus, for example political leaning; none by default."""

    @field_validator("classifiers")
    @classmethod
    def _named_once(cls, classifiers: tuple[ContentClassifierRef, ...]) -> tuple[ContentClassifierRef, ...]:
        names = [classifier.name for classifier in classifiers]
        if len({name.lower() for name in names}) != len(names):
            raise ValueError(f"names must differ in more than case: {names}")
        return classifiers


class TrackingSection(Section):
    uri: str | None = None
    """null = sqlite:///mlruns/mlflow.db under the current folder; `none` = no tracking; or any MLflow server."""
    experiment: str | None = None
    """null = unidetox/<name>."""
    patience: NonNegative = 60.0
    """Seconds that the end of a run waits for a store that does not answer; while the run works it is not waited for."""


class ClusterSection(Section):
    """How the work is spread. Nothing here can change a result, and nothing here is hashed."""

    address: str | None = None
    """Ray address; null = RAY_ADDRESS (set inside `ray job submit`) or a private cluster on this machine."""
    num_cpus: Count | None = None
    """CPUs of the private cluster; null = all."""
    corpus_actors: Count = 1
    """Actors that distil corpora at once."""
    generate_actors: Count = 1
    """Actors that write continuations."""
    score_actors: Count = 1
    """Actors that judge."""
    gpus_per_actor: NonNegative | None = None
    """null = 1 where the cluster has GPUs, else 0."""
    cpus_per_actor: Positive = 1.0
    """CPUs that Ray reserves for an actor."""
    workers_per_cell: Count = 1
    """Ray Train workers that train one cell."""
    concurrent_cells: Count | None = None
    """Families trained at once; null = as many as the resources carry."""
    threads: Count = 1
    """torch threads per process on the CPU."""
    decode_rows: Count = 512
    """Sequences decoded in one batch."""
    score_tokens: Count = 16384
    """Padded tokens scored in one batch."""
    prompts_per_order: Count = 64
    """Prompts that an actor gets at once."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often a worker or training that died is started again."""


def is_url(path: str) -> bool:
    return "://" in path
