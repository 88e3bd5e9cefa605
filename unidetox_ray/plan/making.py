"""The stages that make models and corpora, as the pipeline's own stages do: pre-training, copies, sampling, fine-tuning, edits, fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from unidetox_ray.experiment import checked
from unidetox_ray.methods.base import DecodingMethod
from unidetox_ray.plan import durations, memory
from unidetox_ray.plan.amounts import CorpusAmount
from unidetox_ray.plan.counting import Model
from unidetox_ray.plan.durations import Spent
from unidetox_ray.plan.engine import Cell, Item, Stage
from unidetox_ray.plan.memory import BYTES, Memory
from unidetox_ray.plan.parts import Parts, shards
from unidetox_ray.settings import FinetuneSection, ScratchSection
from unidetox_ray.stages.needs import method_of
from unidetox_ray.stages.scorers import filter_scorer


class Making(Parts):
    """See the module."""

    def _models(self) -> None:
        experiment, items = self.experiment, []
        pretrain = [
            self.amounts.data.texts("pretrain", s, "train", limited=False) for s in experiment.data.pretrain
        ]
        characters = sum(float(t.characters.sum()) * t.count / max(1, len(t.characters)) for t in pretrain)
        specs: list[tuple[Cell, Model, ScratchSection, float]] = []
        for family in self.amounts.families:
            if self.amounts.is_scratch(family):
                spec = experiment.model_of(family).scratch or ScratchSection()
                specs.append((Cell("models", family, ""), self.amounts.model(family), spec, characters))
        for scorer in experiment.evaluate.scorers:
            model = self.amounts.scorers[scorer.name]
            if scorer.source == "scratch:" and model is not None and experiment.data.scorer is not None:
                labelled = self.amounts.data.texts("scorer", experiment.data.scorer, "train", limited=False)
                spec = scorer.scratch or ScratchSection()
                lengths = labelled.tokens(self.amounts.per_token("bert"), 2, spec.length)
                spec = spec.model_copy(update={"length": max(1, round(lengths.longest_of(spec.batch_size)))})
                specs.append(
                    (Cell("models", "bert", scorer.name), model, spec, float(labelled.characters.sum()))
                )
        for cell, model, spec, read in specs:
            spent = durations.pretraining(self.rates, model, spec.steps, spec.batch_size, spec.length, read)
            items.append((Item(cell, spent.seconds), spent))
            plain = FinetuneSection(precision="fp32")
            found = memory.training(model, plain, spec.batch_size, spec.length, 1, compiled=False)
            self._need(cell, found, disk=4.0 * model.parameters)
        stage = Stage(
            "models", (tuple(item for item, _ in items),), lanes=max(1, len(items)), devices=0.25 if self.fleet.gpu else 1.0,
            start=self.host["ray_seconds"] + self.host["task_seconds"],
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for item, spent in items])

    def _copies(self) -> None:
        jobs: dict[str, list[tuple[Item, Spent]]] = {}
        section = self.experiment.toxic
        for need, family in self.amounts.needed.copies:
            texts, steps = self.amounts.copy_texts(need, family), self.amounts.copy_steps(need, family)
            made = self._train_item(
                Cell("toxic", family, need),
                self.amounts.model(family),
                section,
                texts,
                section.batch_size,
                steps,
            )
            jobs.setdefault(family, []).append(made)
        self._groups("toxic", jobs)

    def _corpora(self) -> None:
        """Sampled corpora share a pool, which comes first; those of chosen texts have one each."""
        together: list[tuple[Item, Spent]] = []
        apart: list[tuple[str, list[tuple[Item, Spent]]]] = []
        base = self.experiment.base_family
        for amount in self.amounts.corpora:
            cell = Cell("corpus", base, amount.entry.label)
            self._need_corpus(cell, amount)
            if amount.reused:
                continue
            items = self._sampled(cell, amount) + self._filtered(cell, amount)
            if method_of(amount.entry).source == "sample":  # type: ignore[attr-defined]
                together += items
            elif items:
                apart.append((f"corpus-{amount.entry.label}", items))
        for name, items in [("corpus", together), *apart]:
            if items:
                self._pool(name, items, self.cluster.corpus_actors)

    def _need_corpus(self, cell: Cell, amount: CorpusAmount) -> None:
        section = amount.section
        if not amount.sequences:
            return
        weights = BYTES[section.precision] * sum(m.parameters for m in amount.models)
        rows = memory.rows_of(
            amount.models, section.precision, self.fleet.memory - memory.CONTEXT - weights, section.max_length,
            min(section.shard_size, amount.sequences), 1, gpu=self.fleet.gpu,
        )  # fmt: skip
        found = memory.decoding(
            amount.models, section.precision, max(rows, 1), section.max_length, 1, gpu=self.fleet.gpu
        )
        disk = amount.rows * section.max_length * 6.0
        self._need(cell, found, disk=disk, rows=rows)

    def _sampled(self, cell: Cell, amount: CorpusAmount) -> list[tuple[Item, Spent]]:
        section, total = amount.section, amount.sequences
        if not total:
            return []
        new = self.amounts.decoded_tokens(section)
        weights = BYTES[section.precision] * sum(m.parameters for m in amount.models)
        found = []
        for size, count in shards(total, section.shard_size):
            rows = memory.rows_of(
                amount.models, section.precision, self.fleet.memory - memory.CONTEXT - weights, section.max_length, size, 1,
                gpu=self.fleet.gpu,
            )  # fmt: skip
            spent = durations.decoding(
                self.rates, amount.models, section.precision, sequences=size, rows=max(rows, 1), prompt=1.0, mean=new.mean,
                most=float(section.max_length - 1), nucleus=section.top_p < 1,
            )  # fmt: skip
            item = Item(
                cell,
                spent.seconds,
                "+".join(sorted({m.name for m in amount.models})) + f"/{len(amount.models)}",
                float(weights),
                count,
            )
            found.append((item, spent.times(count)))
        return found

    def _filtered(self, cell: Cell, amount: CorpusAmount) -> list[tuple[Item, Spent]]:
        """Scores of the texts that a filter ranks."""
        if not amount.judged:
            return []
        model = self.amounts.scorers[filter_scorer(self.experiment, amount.entry).name]
        if model is None:
            return []
        length = min(512.0, float(self.amounts.decoded_tokens(amount.section).mean))
        size = amount.section.shard_size if amount.sequences else 2048
        found = []
        for rows, count in shards(amount.judged, size):
            spent = durations.reading(self.rates, model, "fp32", rows * length, rows, kind="classify")
            found.append(
                (
                    Item(cell, spent.seconds, f"filter/{model.name}", 4.0 * model.parameters, count),
                    spent.times(count),
                )
            )
        return found

    def _finetune(self) -> None:
        jobs: dict[str, list[tuple[Item, Spent]]] = {}
        corpora = {amount.entry.label: amount for amount in self.amounts.corpora}
        for cell in self.amounts.cells:
            if cell.kind != "corpus":
                continue
            amount = corpora[cell.label]
            section = self.amounts.training_section(cell.entry)
            steps = self.amounts.training_steps(section, amount.rows)
            texts = self.amounts.corpus_tokens(amount, cell.family)
            made = self._train_item(
                self._cell("finetune", cell),
                self.amounts.model(cell.family),
                section,
                texts,
                section.batch_size,
                steps,
            )
            jobs.setdefault(cell.family, []).append(made)
        self._groups("finetune", jobs)

    def _edit(self) -> None:
        items = []
        for cell in self.amounts.cells:
            if cell.kind == "weights":
                model = self.amounts.model(cell.family)
                bytes_ = 2.0 * model.parameters if self.fleet.gpu else 4.0 * model.parameters
                seconds = 3 * bytes_ / self.host["read_bytes"] + bytes_ / self.host["write_bytes"]
                where = self._cell("edit", cell)
                items.append((Item(where, seconds), Spent()))
                self._need(where, Memory(host=3 * bytes_), disk=bytes_)
        stage = Stage(
            "edit", (tuple(item for item, _ in items),), lanes=max(1, len(items)), devices=1.0, on_cpu=self.fleet.gpu,
            start=self.host["task_seconds"],
        )  # fmt: skip
        self._add(stage)

    def _fits(self) -> None:
        """Those that the tuning has not made for its trials."""
        made = {entry.label: self.amounts.tuned for entry in self.experiment.methods if entry.tune}
        wanted = {
            family: [label for label in self.amounts.needed.fits if family not in made.get(label, ())]
            for family in self.experiment.families
        }
        if any(wanted.values()):
            self._fit_stage(wanted)

    def _fit_stage(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """wanted: labels of entries, by family."""
        items = []
        for family, labels in wanted.items():
            model = self.amounts.model(family)
            for entry in self.experiment.methods:
                method = method_of(entry)
                if entry.label not in labels or not isinstance(method, DecodingMethod):
                    continue
                settings = checked(entry.variants[-1])
                texts = self.amounts.copy_texts("toxic", family)
                rows = int(getattr(settings, "batch_size", 16))
                steps = getattr(settings, "steps", None)
                if steps is None:
                    steps = int(getattr(settings, "epochs", 1)) * math.ceil(texts.count / rows)
                plain = FinetuneSection(
                    precision="fp32" if self.experiment.evaluate.precision == "fp32" else "bf16_pure"
                )
                whole = durations.training(self.rates, model, plain, texts, rows, steps)
                # Two thirds at most: frozen weights need no gradient of their own (`core.flops`).
                spent = whole.times(2.0 / 3.0)
                cell = Cell("fits", family, entry.label)
                items.append((self._opened(cell, spent, [model]), spent))
                found = memory.training(model, plain, rows, math.ceil(texts.most), 1, compiled=False)
                self._need(cell, replace(found, optimiser=0.0, gradients=0.0))
        stage = Stage(
            "fits", (tuple(item for item, _ in items),), lanes=max(1, len(items)), devices=self._actor_devices(),
            start=self.host["task_seconds"],
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for item, spent in items])
