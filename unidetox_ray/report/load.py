"""A run folder's files into the dataclasses of `model`.

Any part but `results.json` may be absent or damaged; `Run.problems` names what could not be read.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.errors import ArtifactError
from unidetox_ray.report import content, readers, text
from unidetox_ray.report.model import TOXIC, Cell, Corpus, Curve, Domain, Manifest, Metric, Run

_KEY = re.compile(r"-[0-9a-f]{16}$")


def load(run_dir: Path) -> Run:
    """Read a run folder; ArtifactError when it does not exist or its results.json is not a list of cells."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ArtifactError(f"report: {run_dir} is not a folder; give the folder of a run, outputs/<name>")
    problems: list[str] = []
    config = readers.read_config(run_dir / "config.yaml", problems)
    entries, has_results = _read_results(run_dir / "results.json")
    search, tuning = (_mapping(run_dir / name, problems) for name in ("search.json", "tuning.json"))
    compared = readers.read_json(run_dir / "tuning_test.json", problems, "tuning_test.json")
    cells = _cells(entries)
    manifests = _manifests(run_dir, problems)
    used = _used(run_dir, manifests, search)
    return Run(
        folder=run_dir,
        name=text.clean(config.get("name") or run_dir.resolve().name, 80),
        config=config,
        config_sha256=readers.sha256(run_dir / "config.yaml"),
        cells=cells,
        corpora=_corpora(run_dir, problems),
        curves=_curves(run_dir, cells, manifests, used, problems),
        manifests=tuple(manifest for manifest in manifests if manifest.folder in used),
        search=search,
        has_results=has_results,
        content=content.read(run_dir / "content.json", problems),
        tuning=tuning,
        tuning_test=tuple(readers.mapping(one) for one in compared) if isinstance(compared, list) else (),
        problems=problems,
    )


def _mapping(path: Path, problems: list[str]) -> dict[str, Any] | None:
    found = readers.read_json(path, problems, path.name)
    if found is not None and not isinstance(found, dict):
        problems.append(f"{path.name} holds no mapping")
        return None
    return found


def _read_results(path: Path) -> tuple[list[dict[str, Any]], bool]:
    if not path.is_file():
        return [], False
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"report: results.json is damaged ({error}); score the run again") from error
    if not isinstance(entries, list) or any(
        not isinstance(entry, dict) or not {"family", "method"} <= entry.keys() for entry in entries
    ):
        raise ArtifactError("report: results.json is no list of cells; score the run again")
    return entries, True


def _metric(stored: Any) -> Metric:
    if not isinstance(stored, dict):
        return Metric(reason="" if stored is None else "the stored entry is no metric")

    def real(key: str) -> float | None:
        return float(stored[key]) if text.is_number(stored.get(key)) else None

    def whole(key: str) -> int | None:
        return int(stored[key]) if text.is_number(stored.get(key)) else None

    raw, reason = stored.get("value"), text.clean(stored.get("reason") or stored.get("error") or "", 200)
    if raw is not None and not text.is_number(raw):
        reason = reason or "withheld: the stored value is not a finite number"
    return Metric(
        real("value"),
        real("ci_low"),
        real("ci_high"),
        whole("n"),
        real("diff"),
        real("diff_low"),
        real("diff_high"),
        whole("failed"),
        reason,
    )


def _cells(entries: list[dict[str, Any]]) -> tuple[Cell, ...]:
    """Cells with a label that tells those of a family apart: method, then seed, then the cell's id."""
    cells = []
    names = [(str(e["family"]), str(e["method"])) for e in entries]
    seeded = [(*name, e.get("seed")) for name, e in zip(names, entries, strict=True)]
    for name, seed_name, entry in zip(names, seeded, entries, strict=True):
        identity, label = str(entry.get("cell") or "-".join(name)), name[1]
        if names.count(name) > 1:
            label += f" (seed {entry.get('seed')})" if seeded.count(seed_name) == 1 else f" ({identity})"
        stored_metrics = readers.mapping(entry.get("metrics"))
        stored_domains = readers.mapping(entry.get("domains"))
        domains = [
            Domain(
                text.clean(key, 60),
                str(part.get("distribution") or ""),
                _metric(part.get("tp")),
                _metric(part.get("emt")),
            )
            for key, part in stored_domains.items()
            if isinstance(part, dict)
        ]
        cells.append(
            Cell(
                family=text.clean(name[0], 60),
                model=text.clean(entry.get("model") or "", 120),
                method=text.clean(name[1], 60),
                seed=entry.get("seed") if isinstance(entry.get("seed"), int) else None,
                settings=readers.mapping(entry.get("settings")),
                ok=entry.get("status") == "ok",
                error=text.clean(entry.get("error") or "no error text was stored", 400),
                cell=text.clean(identity, 120),
                label=text.clean(label, 100),
                metrics={str(key): _metric(value) for key, value in stored_metrics.items()},
                domains=tuple(sorted(domains, key=lambda domain: domain.distribution == "ood")),
                scorer=text.clean(entry.get("scorer") or "", 100),
                costs=readers.mapping(entry.get("costs")),
            )
        )
    return tuple(cells)


def _corpora(run_dir: Path, problems: list[str]) -> tuple[Corpus, ...]:
    """The run's own corpus first, then every other distilled corpus that is not the same file again."""
    found: list[Corpus] = []
    for path in [run_dir / "corpus.parquet", *sorted((run_dir / "corpora").glob("*.parquet"))]:
        digest = readers.sha256(path)
        if digest is None:
            continue
        if found and digest == found[0].sha256:
            found[0] = replace(found[0], label=f"corpus.parquet ({text.clean(path.stem, 60)})")
            continue
        name = path.relative_to(run_dir).as_posix()
        table = readers.read_table(path, ("text",), problems, name)
        if table is None:
            continue
        lengths = table["n_tokens"].drop_nulls().to_list() if "n_tokens" in table.columns else []
        ended = table["ended"].cast(pl.Float64).mean() if "ended" in table.columns and table.height else None
        found.append(
            Corpus(
                label=name,
                rows=table.height,
                lengths=tuple(int(length) for length in lengths),
                ended=float(ended) if text.is_number(ended) else None,
                sha256=digest,
                samples=tuple(str(item) for item in table["text"].head(4).to_list()),
            )
        )
    return tuple(found)


def _curves(
    run_dir: Path,
    cells: tuple[Cell, ...],
    manifests: tuple[Manifest, ...],
    used: set[str],
    problems: list[str],
) -> tuple[Curve, ...]:
    """Training curves of models/<name>-<key>/ folders; those that the results do not rest on are left out."""
    by_cell = {cell.cell: cell for cell in cells}
    by_folder = {manifest.folder: manifest for manifest in manifests}
    curves = []
    for path in sorted((run_dir / "models").glob("*/train_log.parquet")):
        place = path.parent.relative_to(run_dir).as_posix()
        manifest = by_folder.get(place)
        if manifest is not None and place not in used:
            continue
        table = readers.read_table(path, ("step", "loss"), problems, f"{place}/train_log.parquet")
        if table is None or not table.height:
            continue
        settings = readers.mapping(
            readers.read_json(path.parent / "settings.json", problems, f"{place}/settings.json")
        )
        name = str(manifest.extra.get("name")) if manifest else _KEY.sub("", path.parent.name)
        cell = by_cell.get(name)
        method = cell.label if cell else text.clean(settings.get("method") or "", 60)
        if cell is None and (method == "toxic" or name.startswith("toxic")):
            method = TOXIC
        table = table.sort("step")
        curves.append(
            Curve(
                cell=text.clean(name, 120),
                family=cell.family if cell else text.clean(settings.get("family") or name, 60),
                method=method,
                points=tuple(readers.thin(table["step"].to_list(), table["loss"].to_list())),
                steps=max(table["step"].to_list()),
            )
        )
    return tuple(curves)


def _used(run_dir: Path, manifests: tuple[Manifest, ...], search: dict[str, Any] | None) -> set[str]:
    """Folders that the run's own files rest on: an experiment keeps the stages of earlier settings too.

    Starts from the stages whose files are the ones in the run folder, and follows their inputs' keys upstream.
    """
    names = ("scores.parquet", "generations.parquet", "corpus.parquet", "content.json", "tuning.json")
    paths = [*(run_dir / name for name in names), *(run_dir / "corpora").glob("*.parquet")]
    shown = {readers.sha256(path) for path in paths} - {None}
    by_key = {manifest.key: manifest for manifest in manifests}
    todo = [m for m in manifests if shown & set(m.files.values()) or (search and m.extra == search)]
    if not todo:
        return {manifest.folder for manifest in manifests}
    used: set[str] = set()
    while todo:
        manifest = todo.pop()
        if manifest.folder not in used:
            used.add(manifest.folder)
            todo += [by_key[str(value)] for value in manifest.inputs.values() if str(value) in by_key]
    return used


def _manifests(run_dir: Path, problems: list[str]) -> tuple[Manifest, ...]:
    found = []
    for path in sorted(run_dir.glob("stages/*/manifest.json")) + sorted(
        run_dir.glob("models/*/manifest.json")
    ):
        stored = readers.read_json(path, problems, path.relative_to(run_dir).as_posix())
        if not isinstance(stored, dict):
            continue

        found.append(
            Manifest(
                folder=path.parent.relative_to(run_dir).as_posix(),
                stage=("train " if stored.get("stage") == "train" else "")
                + text.clean(_KEY.sub("", path.parent.name), 80),
                key=text.clean(stored.get("key") or "", 80),
                created=text.clean(stored.get("created") or "", 40),
                seconds=stored.get("seconds") if text.is_number(stored.get("seconds")) else None,
                inputs=readers.mapping(stored.get("inputs")),
                files=readers.mapping(stored.get("files")),
                versions=readers.mapping(stored.get("versions")),
                code=readers.mapping(stored.get("code")),
                counts=readers.mapping(stored.get("counts")),
                extra=readers.mapping(stored.get("extra")),
            )
        )
    return tuple(sorted(found, key=lambda manifest: manifest.created))
