"""What a run tells the tracker: one parent per submission, a child for every cell, the toxic model, each corpus, the search and its trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import polars as pl

from unidetox_ray.artifacts import Manifest, code_version
from unidetox_ray.stages.context import Context

if TYPE_CHECKING:
    from unidetox_ray.stages.cells import Cell

P = ParamSpec("P")


def waits(
    method: Callable[Concatenate[Recorder, P], None],
) -> Callable[Concatenate[Recorder, P], None]:
    """The method's call goes through the recorder's journal, so that a store that is away does not end the run."""

    @wraps(method)
    def journaled(self: Recorder, *args: P.args, **kwargs: P.kwargs) -> None:
        self.journal.do(partial(method, self, *args, **kwargs))

    return journaled


class Recorder:
    """Writes to the tracker what stages return; every number also lies in the run folder.

    `begin` needs the store at once: an address that is wrong should not be found after days of work.
    """

    def __init__(self, context: Context, tracker: Any) -> None:
        from unidetox_ray.tracking import Journal

        self.context, self.tracker = context, tracker
        self.journal = Journal(context.display.say)
        experiment = context.experiment
        self.tags = {
            "study": experiment.name,
            "fidelity": experiment.fidelity,
            "scorer": experiment.evaluate.scorers[0].name,
            "precision": experiment.finetune.precision,
        }
        self._corpora: dict[str, tuple[Path, Manifest]] = {}

    def begin(self) -> None:
        experiment = self.context.experiment
        code = code_version()
        self.tracker.begin(
            key=experiment.key,
            name=experiment.name,
            params={**experiment.hashed(), "storage": experiment.storage},
            tags={
                **self.tags,
                "seed": experiment.seed,
                "code_version": code["version"],
                "git_commit": code["git"],
                "kind": "submission",
            },
        )

    def _child(
        self, kind: str, key: str, name: str, manifest: Manifest, *, parent: Any = None, **tags: Any
    ) -> Any:
        run = self.tracker.child(
            kind, key=key, name=name, params={**manifest.config, **{f"input_{k}": v for k, v in manifest.inputs.items()}},
            tags={**self.tags, "stage": kind, **tags}, parent=parent,
        )  # fmt: skip
        run.metrics(
            {
                "seconds": manifest.seconds,
                **{f"rows_{name}": float(value) for name, value in manifest.counts.items()},
            }
        )
        return run

    @waits
    def copy(self, manifest: Manifest) -> None:
        """A toxic model, or an expert: the tracker's kind is the stage that made it."""
        extra = manifest.extra
        need = extra["name"].partition("-")[0]
        run = self._child(
            "toxic",
            manifest.key,
            extra["name"],
            manifest,
            family=extra["family"],
            method=need,
            seed=self.context.experiment.toxic.seed,
        )
        folder = self.context.folder.model(extra["name"], manifest.key)
        run.model(extra["name"], card=folder / "README.md", params=manifest.config, tags={**self.tags, "family": extra["family"], "method": need, "do-not-deploy": need == "toxic"})  # fmt: skip
        self._training(run, folder, manifest)
        run.end("FINISHED")

    def _training(self, run: Any, folder: Path, manifest: Manifest) -> None:
        log = pl.read_parquet(folder / "train_log.parquet")
        for name in ("loss", "lr", "grad_norm"):
            run.history(name, list(log.select("step", name).iter_rows()))
        device = "gpu" if str(manifest.extra["device"]).startswith("cuda") else "cpu"
        run.metrics({
            "cost/train_seconds": manifest.extra["train_seconds"], "cost/train_tokens": float(manifest.extra["train_tokens"]),
            f"cost/{device}_seconds": manifest.seconds * manifest.extra["world_size"], "final_loss": manifest.extra["final_loss"],
            **{f"speed/{name}": float(value) for name, value in manifest.extra.get("speed", {}).items()},
        })  # fmt: skip

    @waits
    def corpus(self, label: str, folder: Path, manifest: Manifest) -> None:
        self._corpora[label] = (folder, manifest)
        run = self._child(
            "corpus", f"{label}-{manifest.key}", f"corpus {label}", manifest, method=label, corpus_sha256=manifest.extra["sha256"],
            seed=self.context.experiment.corpus.seed, family=self.context.experiment.base_family,
        )  # fmt: skip
        run.metrics({"tokens": float(manifest.extra["tokens"]), "ended": float(manifest.extra["ended"])})
        marks = {"documents": "text", "selection": "select"}
        kind = next((kind for mark, kind in marks.items() if mark in manifest.extra), "distil")
        run.artifact(folder / "corpus.parquet", "corpus")
        for reader in (run, self.tracker.parent):
            reader.dataset(
                f"corpus-{label}",
                folder / "corpus.parquet",
                manifest.extra["sha256"],
                kind,
                manifest.counts["ok"],
            )
        run.end("FINISHED")

    @waits
    def content(self, folder: Path) -> None:
        """The numbers of content.json; its words stay in the run folder."""
        from unidetox_ray.tracking import content_metrics

        value = json.loads((folder / "content.json").read_text(encoding="utf-8"))
        self.tracker.parent.metrics(content_metrics(value))

    @waits
    def search(self, manifest: Manifest) -> None:
        values = manifest.extra
        run = self._child(
            "search",
            manifest.key,
            f"search steps x lr on {values['base_family']}",
            manifest,
            family=values["base_family"],
            method=values["method"],
        )
        run.metrics(
            {
                "chosen_steps": float(values["chosen"]["steps"]),
                "chosen_lr": values["chosen"]["lr"],
                "trials": float(len(values["trials"])),
            }
        )
        for trial in values["trials"]:
            numbers = {
                name: value
                for name, value in trial.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool)
            }
            child = self.tracker.child(
                "trial", key=f"{trial['key']}-{trial['steps']}", name=trial["trial"], params={"steps": trial["steps"], "lr": trial["lr"], "schedule": values["schedule"]},
                tags={**self.tags, "stage": "search", "family": values["base_family"], "method": values["method"]}, parent=run,
            )  # fmt: skip
            child.metrics(
                {name: float(value) for name, value in numbers.items() if name not in {"steps", "lr"}}
            )
            child.end("FINISHED" if trial["status"] == "ok" else "FAILED")
        run.table(
            pl.DataFrame(
                [{k: v for k, v in trial.items() if k != "key"} for trial in values["trials"]],
                infer_schema_length=None,
            ),
            "trials.json",
        )
        run.end("FINISHED")

    @waits
    def tuning(self, values: dict[str, Any], manifest: Manifest) -> None:
        """A run for the tuning and, below it, one for every trial, base models included."""
        run = self._child("search", manifest.key, "tuning", manifest, method="tuning")
        run.metrics({"trials": float(manifest.counts["expected"])})
        lines = [("base", family, row) for family, row in values["bases"].items()] + [
            (label, family, row)
            for label, entry in values["entries"].items()
            for family, part in entry["families"].items()
            for row in part["trials"]
        ]
        for label, family, row in lines:
            child = self.tracker.child(
                "trial", key=f"{row['key']}-{row['trial']}", name=row["trial"], params=row["settings"],
                tags={**self.tags, "stage": "search", "family": family, "method": label}, parent=run,
            )  # fmt: skip
            child.metrics({name: value for name, value in row.items() if isinstance(value, float)})
            child.end("FINISHED" if row["status"] == "ok" else "FAILED")
        table = [
            {
                "family": family,
                "method": label,
                **{k: v for k, v in row.items() if k != "key"},
                "settings": json.dumps(row["settings"]),
            }
            for label, family, row in lines
        ]
        run.table(pl.DataFrame(table, infer_schema_length=None), "trials.json")
        chosen = [
            {"family": family, "method": label, "universal": (entry["universal"] or {}).get("chosen"), "own": part["chosen"], "reason": part["reason"]}
            for label, entry in values["entries"].items()
            for family, part in entry["families"].items()
        ]  # fmt: skip
        shown = [
            {name: json.dumps(value) if isinstance(value, dict) else value for name, value in line.items()}
            for line in chosen
        ]
        run.table(pl.DataFrame(shown, infer_schema_length=None), "chosen.json")
        run.end("FINISHED")

    @waits
    def results(
        self, rows: Sequence[dict[str, Any]], cells: Sequence[Cell], corpora: dict[str, tuple[Path, Manifest]]
    ) -> None:
        from unidetox_ray.tracking import log_results

        for cell in cells:
            if cell.edit is not None:
                self._edit(cell)
            if cell.fit is not None:
                self._fit(cell)
            if cell.training is None:
                continue
            label = cell.method.label
            folder, manifest = corpora[cell.entry]
            run = self.tracker.child("cell", key=cell.name, name=cell.name, params=cell.settings, tags={
                **self.tags, "stage": "cell", "family": cell.family, "method": label, "seed": cell.seed, "corpus_sha256": manifest.extra["sha256"],
            })  # fmt: skip
            trained = Path(cell.training_folder)
            run.model(cell.name, card=trained / "README.md", params=cell.settings, tags={
                **self.tags, "family": cell.family, "method": label, "seed": cell.seed, "corpus_sha256": manifest.extra["sha256"],
            })  # fmt: skip
            self._training(run, trained, cell.training)
            run.dataset(
                f"corpus-{cell.entry}",
                folder / "corpus.parquet",
                manifest.extra["sha256"],
                "train",
                manifest.counts["ok"],
            )
        self._prompts([cell for cell in cells if cell.error is None])
        log_results(self.tracker, rows, tags=self.tags)

    def _prompts(self, cells: Sequence[Cell]) -> None:
        """The prompts that the cells were measured on, as their data set; what is recorded afterwards was measured on it."""
        table = self.context.folder.root / "prompts.parquet"
        if not table.is_file():
            return
        rows = pl.scan_parquet(table).select(pl.len()).collect().item()
        for cell in cells:
            self._run_of(cell).dataset("prompts", table, self.context.prompts_sha(), "eval", rows)

    def _run_of(self, cell: Cell) -> Any:
        label = cell.method.label
        tags = {**self.tags, "stage": "cell", "family": cell.family, "method": label, "seed": cell.seed}
        return self.tracker.child("cell", key=cell.name, name=cell.name, params=cell.settings, tags=tags)

    def _edit(self, cell: Cell) -> None:
        """The norms of an edit, on the run of its cell."""
        names = ("toxic_norm", "step_norm", "parameters")
        run = self._run_of(cell)
        folder = self.context.folder.model(cell.name, cell.edit.key)
        run.model(cell.name, card=folder / "README.md", params=cell.settings, tags={**self.tags, "family": cell.family, "method": cell.method.label})  # fmt: skip
        run.metrics({f"edit/{name}": float(cell.edit.extra[name]) for name in names})

    def _fit(self, cell: Cell) -> None:
        """The numbers among the facts of what its method fitted, on the run of its cell."""
        facts = cell.fit.extra.items()
        self._run_of(cell).metrics(
            {
                f"fit/{name}": float(v)
                for name, v in facts
                if isinstance(v, (int, float)) and not isinstance(v, bool)
            }
        )

    @waits
    def report(self, root: Path) -> None:
        for name in (
            "report.html",
            "report.md",
            "results.json",
            "leaderboard.json",
            "leaderboard.csv",
            "config.yaml",
        ):
            if (root / name).exists():
                self.tracker.parent.artifact(root / name, "report")

    def finish(self, *, seconds: float, failed_cells: int) -> None:
        """Per stage: wall clock, tokens, and the CPU or GPU seconds that its processes held."""
        device = "gpu" if self.context.on_gpu else "cpu"
        numbers: dict[str, float] = {"seconds": seconds, "failed_cells": float(failed_cells)}
        for stage in self.context.stages:
            if stage["reused"]:
                continue
            numbers[f"stage_seconds/{stage['stage']}"] = float(stage["seconds"])
            numbers[f"stage_tokens/{stage['stage']}"] = float(stage["tokens"])
            numbers[f"stage_{device}_seconds/{stage['stage']}"] = float(stage["spent"]["device_seconds"])
        self._finish(numbers)
        self.journal.finish(self.context.experiment.tracking.patience)

    @waits
    def _finish(self, numbers: dict[str, float]) -> None:
        self.tracker.parent.metrics(numbers)
        self.tracker.parent.params({"data_sha256": self.context.data_hashes()})


@contextmanager
def open_recorder(context: Context) -> Iterator[Recorder]:
    """The tracker of this submission; leaving the block ends every run it opened."""
    from unidetox_ray.tracking import open_tracker

    experiment = context.experiment
    uri = experiment.tracking.uri
    artifacts = None
    if uri is None:
        root = Path("mlruns").absolute()
        uri, artifacts = f"sqlite:///{root / 'mlflow.db'}", root / "artifacts"
    name = experiment.tracking.experiment or f"unidetox/{experiment.name}"
    with open_tracker(uri, experiment=name, artifact_root=artifacts) as tracker:
        recorder = Recorder(context, tracker)
        recorder.begin()
        yield recorder
