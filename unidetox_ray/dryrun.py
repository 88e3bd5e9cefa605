"""`run --dry-run`: what would be done, checked as far as it can be without a network, a GPU or a written file."""

from __future__ import annotations

import math
from pathlib import Path

from unidetox_ray import registry
from unidetox_ray.config import Experiment
from unidetox_ray.experiment import checked
from unidetox_ray.methods.base import CorpusMethod, WeightsMethod
from unidetox_ray.methods.clean_text import CLEAN
from unidetox_ray.settings import DataSource
from unidetox_ray.stages.cells import OWN, seeds_of, tuned_families, words
from unidetox_ray.stages.needs import method_of, needed
from unidetox_ray.stages.scorers import filter_scorer


def describe(experiment: Experiment) -> str:
    """The plan as text. ConfigError or DataError for a local path that is not there."""
    lines = [
        f"experiment {experiment.name} (fidelity {experiment.fidelity}, key {experiment.key[:12]})",
        "models:",
    ]
    for family in dict.fromkeys([experiment.base_family, *experiment.families]):
        lines.append(f"  {family:<8} {_model(experiment, family)}")
    lines.append("data:")
    wanted = needed(experiment)
    toxic = wanted.families("toxic")
    for role in ("toxic", "prompts", "clean", "mmlu", "scorer"):
        source = getattr(experiment.data, role)
        if source is not None and (toxic or wanted.fits or role != "toxic"):
            lines.append(f"  {role:<8} {_data(experiment, source)}")
    corpus, finetune, evaluate = experiment.corpus, experiment.finetune, experiment.evaluate
    lines.append("stages:")
    section = experiment.toxic
    length = f"{section.steps} steps" if section.steps else f"{section.epochs} epochs"
    for need, text in (("toxic", "data.toxic"), ("expert", "data.clean")):
        if families := wanted.families(need):  # type: ignore[arg-type]
            lines.append(
                f"  {need:<9} {', '.join(families)}, on {text}, {length}, lr {section.lr:g}, {section.precision}"
            )
    shards = math.ceil(corpus.num_texts / corpus.shard_size)
    if wanted.sampled:
        contrast = f", alpha {corpus.alpha:g}, beta {corpus.beta:g}" if "toxic" in wanted.for_corpora else ""
        lines.append(
            f"  corpus    {corpus.num_texts} texts x {corpus.max_length} tokens in {shards} shards over {experiment.cluster.corpus_actors} actors{contrast}"
        )
    lines += _texts(experiment)
    if experiment.search is not None:
        search = experiment.search
        trainings = len(search.lr) * (1 if search.schedule == "constant" else len(search.steps))
        lines.append(
            f"  search    {len(search.steps)} x {len(search.lr)} settings, {trainings} trainings (schedule {search.schedule}) on {experiment.base_family}, lowest validation {search.metric}"
        )
    lines += _tuned(experiment)
    kinds = {method_of(entry).kind for entry in experiment.methods}
    if "corpus" in kinds:
        lines.append(
            f"  finetune  {finetune.steps if experiment.search is None else 'searched'} steps, lr {finetune.lr if experiment.search is None else 'searched'}, batch {finetune.batch_size}, {finetune.precision}, {finetune.schedule} schedule, ZeRO {finetune.deepspeed.stage}"
        )
    if wanted.fits:
        lines.append(
            f"  fit       {', '.join(wanted.fits)}: {', '.join(experiment.families)}, on data.toxic and data.clean"
        )
    lines += _shaped(experiment)
    lines.append(
        f"  generate  {evaluate.continuations} continuations x {evaluate.runs} runs, {evaluate.max_new_tokens} tokens, top-p {evaluate.top_p:g}, top-k {evaluate.top_k}"
    )
    lines.append(
        f"  score     {', '.join(scorer.name for scorer in evaluate.scorers)}; perplexity by {evaluate.ppl_model or 'nobody'}"
    )
    cells = [
        (family, entry.label, seed)
        for family in experiment.families
        for entry in experiment.methods
        for seed in seeds_of(experiment, entry)
    ]
    lines.append(f"cells: {len(cells)}")
    lines += [f"  {family}-{label}-s{seed}" for family, label, seed in cells]
    if experiment.tuning.reuse == "both" and any(entry.tune for entry in experiment.methods):
        lines.append(
            f"  and <label>{OWN}, for a family other than {experiment.base_family} whose own choice differs from the universal one"
        )
    return "\n".join(lines)


def _texts(experiment: Experiment) -> list[str]:
    """A line per corpus of real text or of chosen texts; DataError for a file that is not there."""
    lines = []
    for entry in experiment.methods:
        method = method_of(entry)
        if isinstance(method, CorpusMethod) and method.source in ("text", "select"):
            section, settings = method.recipe(checked(entry), experiment.corpus), checked(entry)
            if method.source == "select":
                source = "the base model's own" if section.source == "distil" else section.source
                lines.append(
                    f"  corpus    {entry.label}: the least toxic {settings.keep:g} of texts from {source}, by {filter_scorer(experiment, entry).name}"
                )
            if section.source not in (CLEAN, "distil"):
                from unidetox_ray.data.base import resolve

                resolve(section.source, experiment.data.data_root)
            if method.source == "text":
                lines.append(
                    f"  corpus    {entry.label}: {section.num_texts} texts of at most {section.max_length - 1} tokens from {section.source}"
                )
    return lines


def _tuned(experiment: Experiment) -> list[str]:
    """A line per tuned entry: its trials by name, and on which families; one more for the base models' own trials."""
    lines, families = [], tuned_families(experiment)
    where, times = ", ".join(families), len(families)
    for entry in experiment.methods:
        if not entry.tune:
            continue
        named = " ".join(words(point) for point in entry.points)
        trials = f"{len(entry.points)} x {times} trials"
        if method_of(entry).kind == "corpus":
            trials += f", {len(entry.tune.get('lr', ((),))) * times} trainings (schedule constant)"
        lines.append(f"  tune      {entry.label}: {named} on {where}: {trials}")
    if lines:
        tuning = experiment.tuning
        lines.append(f"  tune      base models: {where}: {times} trials")
        lines.append(
            f"  choose    {tuning.reuse}: lowest validation {tuning.metric}, clean_ppl at most {tuning.max_clean_ppl:g} x the base model's"
        )
    return lines


def _shaped(experiment: Experiment) -> list[str]:
    """A line per method that edits weights or steers decoding: its settings. ModelError for a folder that is not there."""
    from unidetox_ray.stages.edit import given_model

    lines = []
    for entry in experiment.methods:
        method = method_of(entry)
        verb = {"weights": "edit", "decoding": "steer"}.get(method.kind)
        if verb is not None:
            for variant in entry.variants:
                given = method.given(checked(variant)) if isinstance(method, WeightsMethod) else None
                for family in experiment.families if given is not None else ():
                    given_model(str(given), family)
            values = {**checked(entry).model_dump(), **dict.fromkeys(entry.tune, "tuned")}
            told = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
            lines.append(f"  {verb:<9} {entry.label}: {told}")
    return lines


def _model(experiment: Experiment, family: str) -> str:
    from unidetox_ray.families.loading import meta_parameters, offline_config

    ref = experiment.model_of(family)
    if ref.source == "scratch:":
        spec = ref.scratch
        return (
            f"scratch: width {spec.hidden}, {spec.layers} layers, {spec.steps} steps" if spec else "scratch:"
        )
    if Path(ref.source).expanduser().is_dir():
        from unidetox_ray.stages.models import handle_of

        handle_of(ref, family)
        return f"{ref.source} (local folder)"
    return f"{ref.source} ({meta_parameters(offline_config(ref.source)) / 1e9:.2f} B parameters)"


def _data(experiment: Experiment, source: DataSource) -> str:
    entry = registry.lookup("datasets", source.dataset)
    if source.path is not None:
        from unidetox_ray.data.base import resolve

        resolve(source.path, experiment.data.data_root)
        return f"{source.dataset} from {source.path}"
    return f"{source.dataset} from {'the hub: ' + entry.hub_id if entry.hub_id else 'its own generator'}"
