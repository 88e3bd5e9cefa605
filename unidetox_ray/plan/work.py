"""Amounts → the stages of the pipeline as items for the engine, and what each item keeps in memory.

The order of the stages, what shares a pool and what waits for what are `pipeline._stages`' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from unidetox_ray.methods.base import DecodingMethod
from unidetox_ray.plan import durations, memory
from unidetox_ray.plan.amounts import Amounts, CorpusAmount, PlannedCell
from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.durations import Spent
from unidetox_ray.plan.engine import Cell, Item, Stage
from unidetox_ray.plan.memory import BYTES, Memory
from unidetox_ray.plan.shapes import Model
from unidetox_ray.plan.texts import Tokens
from unidetox_ray.settings import FinetuneSection, ScratchSection, ToxicSection, TuningSection
from unidetox_ray.stages.needs import method_of

#: Bytes of a row of the tables that stay: a continuation and its judgements, compressed (measured on runs: 30 to 60).
_ROW = 60.0
_SCORE_ROWS = 8192
#: Prompt and continuation of these are read once; the prompts' share is small.
_CLEAN_PROBED = 200


@dataclass
class Need:
    """What one cell of a stage needs of a device. setting: the section of the experiment that decides it."""

    cell: Cell
    memory: Memory
    disk: float = 0.0
    world: int = 1
    setting: str = ""
    rows: int = -1
    """Rows of a decoded batch; 0 = not even one fits, -1 = nothing is decoded."""


class Work:
    """The stages of an experiment on a fleet. `stages` in the pipeline's order, `needs` by cell."""

    def __init__(self, amounts: Amounts, fleet: Fleet) -> None:
        self.amounts, self.fleet, self.rates = amounts, fleet, fleet.rates
        self.experiment = amounts.experiment
        self.cluster = self.experiment.cluster
        self.host = fleet.rates.host
        self.stages: list[Stage] = []
        self.needs: list[Need] = []
        self.operations: dict[Cell, float] = {}
        self._models()
        self._copies()
        self._corpora()
        self._search()
        self._tune()
        self._finetune()
        self._edit()
        self._fits()
        self._generate()
        self._score()
        self._content()
        self._report()

    # Shared pieces.

    @property
    def compiled(self) -> bool:
        return self.fleet.gpu

    def _actor_devices(self) -> float:
        """Devices that an actor holds: GPUs where there are any, else CPU cores."""
        if not self.fleet.gpu:
            return float(self.cluster.cpus_per_actor)
        return 1.0 if self.cluster.gpus_per_actor is None else float(self.cluster.gpus_per_actor)

    def _add(self, stage: Stage, spent: Iterable[tuple[Cell, Spent]] = ()) -> None:
        tokens = operations = 0.0
        for cell, each in spent:
            tokens, operations = tokens + each.tokens, operations + each.operations
            self.operations[cell] = self.operations.get(cell, 0.0) + each.operations
        if stage.items or stage.alone:
            self.stages.append(replace(stage, tokens=tokens, operations=operations))

    def _need(self, cell: Cell, found: Memory, **more: float | str) -> None:
        self.needs.append(Need(cell, found, **more))  # type: ignore[arg-type]

    def _groups(self, name: str, jobs: dict[str, list[tuple[Item, Spent]]]) -> None:
        """Ray Train groups: a queue a family, each lane holding workers_per_cell devices."""
        queues = tuple(tuple(item for item, _ in found) for found in jobs.values())
        stage = Stage(
            name, queues, lanes=len(queues), devices=float(self.cluster.workers_per_cell), start=self.host["group_seconds"],
            start_cpu=self.host["group_cpu_seconds"], shared=False,
            extra_lanes=self.cluster.concurrent_cells, alone=0.0,
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for found in jobs.values() for item, spent in found])

    def _pool(self, name: str, items: Sequence[tuple[Item, Spent]], actors: int) -> None:
        """A Ray Data pool of actors."""
        stage = Stage(
            name, (tuple(item for item, _ in items),), lanes=actors, devices=self._actor_devices(),
            start=self.host["pool_seconds"], order=self.host["order_seconds"],
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for item, spent in items])

    def _train_item(
        self, cell: Cell, model: Model, section: ToxicSection | FinetuneSection, texts: Tokens, rows: int, steps: int, setting: str,
    ) -> tuple[Item, Spent]:  # fmt: skip
        world = self.cluster.workers_per_cell
        padded = texts.most if section.pad_to == "longest" else None
        if section.packing:
            padded = float(section.max_length)
        spent = durations.training(self.rates, model, section, texts, rows, steps, world, padded=padded)
        item = 4 if section.precision == "fp32" else 2
        adapted = isinstance(section, FinetuneSection) and section.adapter == "bottleneck"
        found = memory.training(
            model, section, math.ceil(rows / world), math.ceil(padded or texts.longest_of(10**6)), world,
            compiled=self.compiled and section.compile != "off",
        )  # fmt: skip
        total, trained = memory.trainable_of(model, section)
        disk = float(item * (trained if adapted else model.parameters))
        if section.checkpoint_every:
            disk += item * total + 2.0 * (2 if section.precision == "bf16_pure" else 4) * trained
        self._need(cell, found, disk=disk, world=world, setting=setting)
        opened = 4.0 * model.parameters if section.precision == "fp32" else 2.0 * model.parameters
        saved = 0.0 if setting == "search" else durations.saving(self.rates, model, item)
        # Jobs of a group load their base model anew each time.
        whole = spent.seconds + saved + durations.opening(self.rates, opened)
        return Item(cell, whole), spent

    # Stages, in the pipeline's order.

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
            self._need(cell, found, disk=4.0 * model.parameters, setting="models")
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
                "toxic",
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
        self._need(cell, found, disk=disk, setting="corpus", rows=rows)

    def _sampled(self, cell: Cell, amount: CorpusAmount) -> list[tuple[Item, Spent]]:
        section, total = amount.section, amount.sequences
        if not total:
            return []
        new = self.amounts.decoded_tokens(section)
        weights = BYTES[section.precision] * sum(m.parameters for m in amount.models)
        found = []
        for size, count in _shards(total, section.shard_size):
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
        from unidetox_ray.stages.scorers import filter_scorer

        model = self.amounts.scorers[filter_scorer(self.experiment, amount.entry).name]
        if model is None:
            return []
        length = min(512.0, float(self.amounts.decoded_tokens(amount.section).mean))
        size = amount.section.shard_size if amount.sequences else 2048
        found = []
        for rows, count in _shards(amount.judged, size):
            spent = durations.reading(self.rates, model, "fp32", rows * length, rows, kind="classify")
            found.append(
                (
                    Item(cell, spent.seconds, f"filter/{model.name}", 4.0 * model.parameters, count),
                    spent.times(count),
                )
            )
        return found

    def _probe(
        self,
        family: str,
        decoders: Sequence[Model],
        chosen: TuningSection | object,
        per_domain: int | None,
        continuations: int,
    ) -> Spent:
        """One measurement on validation prompts: continuations, their toxicity, the likelihood of some clean text."""
        evaluate = self.experiment.evaluate
        prompts = self.amounts.selection(family, per_domain)
        spent = self._continued(family, decoders, prompts, continuations)
        count = prompts.count * continuations
        judge = self.amounts.scorers[evaluate.scorers[0].name]
        if judge is not None:
            spent += durations.reading(
                self.rates,
                judge,
                "fp32",
                count * self.amounts.continuation_tokens(family),
                count,
                kind="classify",
            )
        clean = self.amounts.clean
        if clean is not None:
            rows = min(_CLEAN_PROBED, clean.count)
            spent += durations.reading(self.rates, decoders[0], evaluate.precision, rows * clean.mean, rows)
        return spent

    def _continued(
        self, family: str, decoders: Sequence[Model], prompts: Tokens, continuations: int
    ) -> Spent:
        evaluate = self.experiment.evaluate
        return durations.decoding(
            self.rates, decoders, evaluate.precision, sequences=prompts.count * continuations,
            rows=self._decode_rows(decoders, prompts), prompt=prompts.mean, mean=self.amounts.continuation_tokens(family),
            most=float(evaluate.max_new_tokens), copies=continuations, nucleus=evaluate.top_p < 1 or evaluate.top_k > 0,
        )  # fmt: skip

    def _decode_rows(self, decoders: Sequence[Model], prompts: Tokens) -> int:
        """Rows of an evaluation batch: cluster.decode_rows, or as many as fit after halving."""
        evaluate = self.experiment.evaluate
        wanted = self.cluster.decode_rows
        if not self.fleet.gpu:
            return wanted
        weights = BYTES[evaluate.precision] * sum(model.parameters for model in decoders)
        capacity = math.ceil(prompts.most) + evaluate.max_new_tokens
        fit = memory.rows_of(
            decoders,
            evaluate.precision,
            self.fleet.memory - memory.CONTEXT - weights,
            capacity,
            wanted,
            math.ceil(prompts.most),
            gpu=True,
        )
        return min(wanted, fit)

    def _search(self) -> None:
        search, base = self.experiment.search, self.experiment.base_family
        if search is None:
            return
        amount = next(each for each in self.amounts.corpora if each.entry.label == search.method)
        model, items = self.amounts.model(base), []
        plans = (
            [(max(search.steps), len(search.steps))]
            if search.schedule == "constant"
            else [(steps, 1) for steps in search.steps]
        )
        for rate in search.lr:
            for steps, measured in plans:
                cell = Cell("search", base, f"{search.method} lr={rate:g} steps={steps}")
                section = self.experiment.finetune.model_copy(
                    update={"steps": steps, "lr": rate, "schedule": search.schedule}
                )
                texts = self.amounts.corpus_tokens(amount, base)
                item, spent = self._train_item(
                    cell, model, section, texts, section.batch_size, steps, "search"
                )
                probes = self._probe(
                    base, [model], search, search.prompts_per_domain, search.continuations
                ).times(measured)
                items.append((replace(item, seconds=item.seconds + probes.seconds), spent + probes))
        self._trials(
            "search", items, float(self.cluster.workers_per_cell), search.max_concurrent, trains=True
        )

    def _trials(
        self,
        name: str,
        items: Sequence[tuple[Item, Spent]],
        devices: float,
        most: int | None,
        *,
        trains: bool = False,
    ) -> None:
        nested = (
            self.host["group_seconds"] + self.host["group_cpu_seconds"]
            if trains and self.cluster.workers_per_cell > 1
            else 0.0
        )
        stage = Stage(
            name, (tuple(replace(item, seconds=item.seconds + nested) for item, _ in items),), lanes=len(items) or 1,
            devices=devices, start=self.host["trial_seconds"],
            extra_lanes=most if most is not None else (self.cluster.concurrent_cells if trains else None),
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for item, spent in items])

    def _tune(self) -> None:
        tuning, families = self.experiment.tuning, self.amounts.tuned
        entries = [entry for entry in self.experiment.methods if entry.tune]
        if not entries:
            return
        measured: list[tuple[Item, Spent]] = []
        trained: list[tuple[Item, Spent]] = []
        fits = [entry.label for entry in entries if entry.label in self.amounts.needed.fits]
        if fits:
            self._fit_stage(fits, families)
        for family in families:
            model = self.amounts.model(family)
            one = self._probe(family, [model], tuning, tuning.prompts_per_domain, tuning.continuations)
            measured.append((self._opened(Cell("tune", family, "base"), one, [model]), one))
            for entry in entries:
                cell = Cell("tune", family, entry.label)
                method = method_of(entry)
                if method.kind == "corpus":
                    trained += self._tuned_trainings(cell, entry, family)
                    continue
                decoders = [model] * self.amounts.decoders(entry, method)
                one = self._probe(family, decoders, tuning, tuning.prompts_per_domain, tuning.continuations)
                extra = (
                    6.0 * BYTES["fp32"] * model.parameters / self.host["read_bytes"]
                    if method.kind == "weights"
                    else 0.0
                )
                for _ in entry.points:
                    item = self._opened(cell, one, decoders)
                    measured.append((replace(item, seconds=item.seconds + extra), one))
                prompts = self.amounts.selection(family, tuning.prompts_per_domain)
                self._need(cell, self._decode_memory(decoders, prompts), setting="evaluate")
        self._trials("tune", measured, self._actor_devices(), tuning.max_concurrent)
        if trained:
            self._trials(
                "tune-trainings",
                trained,
                float(self.cluster.workers_per_cell),
                tuning.max_concurrent,
                trains=True,
            )

    def _tuned_trainings(self, cell: Cell, entry, family: str) -> list[tuple[Item, Spent]]:  # type: ignore[no-untyped-def]
        tuning, model = self.experiment.tuning, self.amounts.model(family)
        amount = next(each for each in self.amounts.corpora if each.entry.label == entry.label)
        found = []
        section = self.amounts.training_section(entry).model_copy(update={"schedule": "constant"})
        steps = self.amounts.training_steps(section, amount.rows)
        texts = self.amounts.corpus_tokens(amount, family)
        for _ in entry.tune.get("lr", (section.lr,)):
            item, spent = self._train_item(cell, model, section, texts, section.batch_size, steps, "search")
            probe = self._probe(family, [model], tuning, tuning.prompts_per_domain, tuning.continuations)
            probes = probe.times(len(entry.tune.get("steps", (1,))))
            found.append((replace(item, seconds=item.seconds + probes.seconds), spent + probes))
        return found

    def _opened(self, cell: Cell, spent: Spent, decoders: Sequence[Model]) -> Item:
        item = BYTES[self.experiment.evaluate.precision]
        load = float(item * sum(model.parameters for model in decoders))
        return Item(cell, spent.seconds, cell.name, load)

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
                "finetune",
            )
            jobs.setdefault(cell.family, []).append(made)
        self._groups("finetune", jobs)

    @staticmethod
    def _cell(stage: str, cell: PlannedCell) -> Cell:
        return Cell(stage, cell.family, cell.label, cell.seed)

    def _edit(self) -> None:
        items = []
        for cell in self.amounts.cells:
            if cell.kind == "weights":
                model = self.amounts.model(cell.family)
                bytes_ = 2.0 * model.parameters if self.fleet.gpu else 4.0 * model.parameters
                seconds = 3 * bytes_ / self.host["read_bytes"] + bytes_ / self.host["write_bytes"]
                where = self._cell("edit", cell)
                items.append((Item(where, seconds), Spent()))
                self._need(where, Memory(host=3 * bytes_), disk=bytes_, setting="edit")
        stage = Stage(
            "edit", (tuple(item for item, _ in items),), lanes=max(1, len(items)), devices=1.0, on_cpu=self.fleet.gpu,
            start=self.host["task_seconds"],
        )  # fmt: skip
        self._add(stage)

    def _fits(self) -> None:
        done = {entry.label for entry in self.experiment.methods if entry.tune}
        labels = [label for label in self.amounts.needed.fits if label not in done]
        if labels:
            self._fit_stage(labels, self.experiment.families)

    def _fit_stage(self, labels: Sequence[str], families: Sequence[str]) -> None:
        from unidetox_ray.config import checked

        items = []
        for family in families:
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
                self._need(cell, replace(found, optimiser=0.0, gradients=0.0), setting="evaluate")
        stage = Stage(
            "fits", (tuple(item for item, _ in items),), lanes=max(1, len(items)), devices=self._actor_devices(),
            start=self.host["task_seconds"],
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for item, spent in items])

    def _decode_memory(self, decoders: Sequence[Model], prompts: Tokens) -> Memory:
        evaluate = self.experiment.evaluate
        rows = max(1, self._decode_rows(decoders, prompts))
        capacity = math.ceil(prompts.most) + evaluate.max_new_tokens
        return memory.decoding(
            decoders, evaluate.precision, rows, capacity, math.ceil(prompts.most), gpu=self.fleet.gpu
        )

    def _generate(self) -> None:
        evaluate, items = self.experiment.evaluate, []
        size = self.cluster.prompts_per_order
        for cell in self.amounts.cells:
            decoders = [self.amounts.model(cell.family)] * cell.decoders
            prompts = self.amounts.prompts(cell.family)
            where = self._cell("generate", cell)
            for chosen, count in _shards(prompts.count, size):
                spent = self._continued(
                    cell.family, decoders, Tokens(chosen, prompts.lengths), evaluate.continuations
                )
                item = self._opened(where, spent, decoders)
                items.append((replace(item, count=count * evaluate.runs), spent.times(count * evaluate.runs)))
            texts = prompts.count * evaluate.continuations * evaluate.runs
            self._need(
                where, self._decode_memory(decoders, prompts), disk=texts * _ROW, setting="evaluate",
                rows=self._decode_rows(decoders, prompts) if self.fleet.gpu else -1,
            )  # fmt: skip
        self._pool("generate", items, self.cluster.generate_actors)

    def _score(self) -> None:
        evaluate, items = self.experiment.evaluate, []
        base = self.experiment.base_family
        prompts = self.amounts.prompts(base)
        new = self.amounts.continuation_tokens(base)
        per_cell = prompts.count * evaluate.continuations * evaluate.runs
        everything = Cell("score", "", "continuations")
        open_: list[tuple[Model, str]] = [(m, "fp32") for m in self.amounts.scorers.values() if m is not None]
        load = sum(4.0 * model.parameters for model, _ in open_)
        judge = self.amounts.judge
        if judge is not None:
            open_.append((judge, evaluate.ppl_precision))
            load += BYTES[evaluate.ppl_precision] * judge.parameters
        total = per_cell * len(self.amounts.cells)
        for rows, count in _shards(total, _SCORE_ROWS):
            spent = Spent()
            for model in self.amounts.scorers.values():
                if model is not None:
                    spent += durations.reading(
                        self.rates, model, "fp32", rows * (new + 2), rows, kind="classify"
                    )
            if judge is not None:
                # A prompt is read once for all its continuations of an order.
                tokens = rows * new + rows / evaluate.continuations * prompts.mean
                spent += durations.reading(self.rates, judge, evaluate.ppl_precision, tokens, rows)
            items.append((Item(everything, spent.seconds, "judges", load, count), spent.times(count)))
        tokens = self.cluster.score_tokens
        if not self.fleet.gpu and open_:
            from unidetox_ray.core.batching import cpu_budget

            tokens = cpu_budget(tokens, max(model.hidden for model, _ in open_))
        prompted = math.ceil(_SCORE_ROWS / evaluate.continuations * prompts.mean)
        self._need(
            everything,
            memory.scoring(open_, tokens, prompted),
            disk=total * _ROW * len(evaluate.scorers),
            setting="score",
        )
        for cell in self.amounts.cells:
            spent = self._own(cell)
            if spent.seconds:
                where = self._cell("score", cell)
                decoders = [self.amounts.model(cell.family)] * cell.decoders
                items.append((self._opened(where, spent, decoders), spent))
                own = [*open_, *((model, evaluate.precision) for model in decoders)]
                # Worked examples and questions are kept for the answers behind them.
                self._need(
                    where,
                    memory.scoring(own, tokens, 0 if self.amounts.quiz is None else tokens),
                    setting="score",
                )
        self._pool("score", items, self.cluster.score_actors)

    def _own(self, cell: PlannedCell) -> Spent:
        """Clean perplexity and the quiz of a cell's own model."""
        evaluate, spent = self.experiment.evaluate, Spent()
        model = self.amounts.model(cell.family)
        per_token = self.amounts.per_token(cell.family)
        clean, quiz = self.amounts.clean, self.amounts.quiz
        if clean is not None:
            spent += durations.reading(
                self.rates, model, evaluate.precision, clean.count * clean.mean, clean.count
            )
        if quiz is not None:
            tokens = quiz.questions * (quiz.shared + quiz.answers) / per_token
            spent += durations.reading(
                self.rates, model, evaluate.precision, tokens, quiz.questions * quiz.choices
            )
        return spent.times(cell.decoders)

    def _content(self) -> None:
        """The corpora themselves: an order a corpus, by all scorers."""
        items = []
        judges = [model for model in self.amounts.scorers.values() if model is not None]
        for amount in self.amounts.corpora:
            cell = Cell("content", "", amount.entry.label)
            spent = Spent()
            length = self.amounts.decoded_tokens(amount.section).mean
            for model in judges:
                spent += durations.reading(
                    self.rates, model, "fp32", amount.rows * min(512.0, length), amount.rows, kind="classify"
                )
            items.append(
                (Item(cell, spent.seconds, "scorers", sum(4.0 * m.parameters for m in judges)), spent)
            )
            self._need(
                cell,
                memory.scoring(
                    [(model, "fp32") for model in judges], min(self.cluster.score_tokens, 4096), 0
                ),
                setting="score",
            )
        if items:
            self._pool("content", items, self.cluster.score_actors)

    def _report(self) -> None:
        evaluate = self.experiment.evaluate
        texts = (
            self.amounts.prompts(self.experiment.base_family).count
            * evaluate.continuations
            * evaluate.runs
            * len(self.amounts.cells)
        )
        self._add(Stage("report", ((),), alone=self.host["report_seconds"] * (1 + texts / 50_000)))


def _shards(total: int, size: int) -> list[tuple[int, int]]:
    """(rows, how many such) of `total` rows in shards of `size`, the short one last."""
    whole, rest = divmod(total, size)
    return [*([(size, whole)] if whole else []), *([(rest, 1)] if rest else [])]
