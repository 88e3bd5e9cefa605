"""The stages that measure: the search, the tuning, continuations of prompts, their judgement, the corpora's content, the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from unidetox_ray.experiment import MethodEntry
from unidetox_ray.plan import durations, memory, shapes
from unidetox_ray.plan.amounts import PlannedCell
from unidetox_ray.plan.counting import Model
from unidetox_ray.plan.durations import Spent
from unidetox_ray.plan.engine import Cell, Item, Stage
from unidetox_ray.plan.making import Making
from unidetox_ray.plan.memory import BYTES
from unidetox_ray.plan.parts import shards
from unidetox_ray.plan.texts import Tokens
from unidetox_ray.stages.needs import method_of

#: Bytes of a row of the tables that stay: a continuation and its judgements, compressed (measured on runs: 30 to 60).
_ROW = 60.0
#: Continuations of a scoring order (`stages.score`), and clean texts of a probe (`stages.search`).
_SCORE_ROWS = 8192
_CLEAN_PROBED = 200


class Measuring(Making):
    """See the module."""

    def _probe(
        self,
        family: str,
        decoders: Sequence[Model],
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
                    cell, model, section, texts, section.batch_size, steps, kept=False
                )
                probes = self._probe(base, [model], search.prompts_per_domain, search.continuations).times(
                    measured
                )
                items.append((replace(item, seconds=item.seconds + probes.seconds), spent + probes))
        self._trials(
            "search", items, float(self.cluster.workers_per_cell), search.max_concurrent, trains=True
        )

    def _tune(self) -> None:
        tuning, families = self.experiment.tuning, self.amounts.tuned
        entries = [entry for entry in self.experiment.methods if entry.tune]
        if not entries:
            return
        measured: list[tuple[Item, Spent]] = []
        trained: list[tuple[Item, Spent]] = []
        fits = [entry.label for entry in entries if entry.label in self.amounts.needed.fits]
        if fits:
            self._fit_stage(dict.fromkeys(families, fits))
        for family in families:
            model = self.amounts.model(family)
            one = self._probe(family, [model], tuning.prompts_per_domain, tuning.continuations)
            measured.append((self._opened(Cell("tune", family, "base"), one, [model]), one))
            for entry in entries:
                cell = Cell("tune", family, entry.label)
                method = method_of(entry)
                if method.kind == "corpus":
                    trained += self._tuned_trainings(cell, entry, family)
                    continue
                decoders = [model] * self.amounts.decoders(entry, method)
                one = self._probe(family, decoders, tuning.prompts_per_domain, tuning.continuations)
                extra = (
                    6.0 * BYTES["fp32"] * model.parameters / self.host["read_bytes"]
                    if method.kind == "weights"
                    else 0.0
                )
                for _ in entry.points:
                    item = self._opened(cell, one, decoders)
                    measured.append((replace(item, seconds=item.seconds + extra), one))
                prompts = self.amounts.selection(family, tuning.prompts_per_domain)
                self._need(cell, self._decode_memory(decoders, prompts))
        self._trials("tune", measured, self._actor_devices(), tuning.max_concurrent)
        if trained:
            self._trials(
                "tune-trainings",
                trained,
                float(self.cluster.workers_per_cell),
                tuning.max_concurrent,
                trains=True,
            )

    def _tuned_trainings(self, cell: Cell, entry: MethodEntry, family: str) -> list[tuple[Item, Spent]]:
        tuning, model = self.experiment.tuning, self.amounts.model(family)
        amount = next(each for each in self.amounts.corpora if each.entry.label == entry.label)
        found = []
        section = self.amounts.training_section(entry).model_copy(update={"schedule": "constant"})
        steps = self.amounts.training_steps(section, amount.rows)
        texts = self.amounts.corpus_tokens(amount, family)
        for _ in entry.tune.get("lr", (section.lr,)):
            item, spent = self._train_item(cell, model, section, texts, section.batch_size, steps, kept=False)
            probe = self._probe(family, [model], tuning.prompts_per_domain, tuning.continuations)
            probes = probe.times(len(entry.tune.get("steps", (1,))))
            found.append((replace(item, seconds=item.seconds + probes.seconds), spent + probes))
        return found

    def _generate(self) -> None:
        evaluate, items = self.experiment.evaluate, []
        size = self.cluster.prompts_per_order
        for cell in self.amounts.cells:
            decoders = [self.amounts.model(cell.family)] * cell.decoders
            prompts = self.amounts.prompts(cell.family)
            where = self._cell("generate", cell)
            for chosen, count in shards(prompts.count, size):
                spent = self._continued(
                    cell.family, decoders, Tokens(chosen, prompts.lengths), evaluate.continuations
                )
                item = self._opened(where, spent, decoders)
                items.append((replace(item, count=count * evaluate.runs), spent.times(count * evaluate.runs)))
            texts = prompts.count * evaluate.continuations * evaluate.runs
            self._need(
                where, self._decode_memory(decoders, prompts), disk=texts * _ROW,
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
        for rows, count in shards(total, _SCORE_ROWS):
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
        judges += [
            shapes.classifier_model(each.source, each.revision, f"content.classifiers.{each.name}")
            for each in self.experiment.content.classifiers
        ]
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
