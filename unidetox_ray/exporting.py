"""`unidetox export`: a finished model of a run, or the corpora and results of a whole run, with their cards. Nothing is uploaded."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import yaml_file
from unidetox_ray.artifacts import (
    MANIFEST,
    Manifest,
    file_sha256,
    finished,
    private_folder,
    read_json,
    read_manifest,
    write_corpus_csv,
    write_text,
)
from unidetox_ray.cards import dataset_card
from unidetox_ray.errors import ArtifactError, ConfigError
from unidetox_ray.leaderboard.files import safe_for_spreadsheets
from unidetox_ray.report import content
from unidetox_ray.results import read_results

#: Of the run, not of the model: the log of its training and the state it resumed from.
_LEFT = {"train_log.parquet", MANIFEST}
#: Of a run: tables that hold no text. Prompts, continuations and scores of single texts stay.
_TABLES = (
    "results.json",
    "results.parquet",
    "leaderboard.json",
    "leaderboard.csv",
    "tuning.json",
    "search.json",
)


def export_model(cell: Path, to: Path, *, allow_toxic: bool = False) -> Path:
    """Copy the model in `cell` to `to`, which must not exist; returns `to`.

    The files are compared with their hashes first. ConfigError: `to` exists, `cell` is no finished model, or it was made to write
    hateful text and allow_toxic is not given. ArtifactError: a file is damaged or was changed.
    """
    manifest = read_manifest(cell) if cell.is_dir() else None
    if manifest is None or "config.json" not in manifest.files:
        raise ConfigError(
            f"{cell}: holds neither a run nor a finished model; give a folder such as outputs/tiny or "
            "outputs/tiny/models/gpt2-unidetox-s1234-…"
        )
    finished(cell, manifest.key)
    if is_toxic(cell) and not allow_toxic:
        raise ConfigError(
            f"{cell}: this model was made to write hateful text and is marked do-not-deploy; --allow-toxic copies it all the same"
        )
    with _new_folder(to) as work:
        for name in sorted(manifest.files):
            if name in _LEFT or name.startswith("."):
                continue
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cell / name, work / name)
    return to


def export_run(run: Path, to: Path, *, licence: str = "unknown") -> tuple[Path, list[str]]:
    """The corpora of a run, each as a data set folder with card, parquet and CSV, and its tables of results.

    Models, prompts and continuations stay; `to` must not exist. Returns (`to`, labels of the corpora).

    ConfigError: `to` exists, the run holds neither corpora nor results, or licence is no identifier. ArtifactError: a corpus
    is not what a stage of the run made.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", licence):
        raise ConfigError(
            f"--licence {licence!r}: accepted: an identifier of the Hub's list, such as mit, cc-by-4.0, other or unknown"
        )
    corpora = {path.stem: path for path in sorted((run / "corpora").glob("*.parquet"))}
    tables = [name for name in _TABLES if (run / name).is_file()]
    if not corpora and not tables:
        raise ConfigError(
            f"{run}: this run has neither a corpus nor results yet; run it with --until corpus or further"
        )
    made = {path: read_manifest(path.parent) for path in (run / "stages").glob("corpus-*/manifest.json")}
    by_hash = {each.extra.get("sha256"): each for each in made.values() if each is not None}
    config = yaml_file.read(run / "config.yaml")
    judges = _judges(run / "content.json")
    with _new_folder(to) as work:
        for label, path in corpora.items():
            manifest = by_hash.get(file_sha256(path))
            if manifest is None:
                raise ArtifactError(
                    f"{path}: is not what a stage of this run made, so nothing says where it comes from; run it again with --fresh"
                )
            _export_corpus(
                label, path, manifest, config, judges.get(label, []), licence, work / "corpora" / label
            )
        if tables:
            private_folder(work / "results")
        for name in tables:
            shutil.copyfile(run / name, work / "results" / name)
        if "results.parquet" in tables:
            flat = safe_for_spreadsheets(pl.read_parquet(run / "results.parquet"))
            write_text(work / "results" / "results.csv", flat.write_csv())
        shutil.copyfile(run / "config.yaml", work / "config.yaml")
        write_text(work / "README.md", _index(run, config, list(corpora), tables))
    return to, list(corpora)


def _export_corpus(
    label: str, path: Path, manifest: Manifest, config: Mapping[str, Any], judged: list[dict[str, Any]],
    licence: str, folder: Path,
) -> None:  # fmt: skip
    private_folder(folder)
    shutil.copyfile(path, folder / "corpus.parquet")
    texts = pl.read_parquet(path, columns=["text"])["text"].to_list()
    write_corpus_csv(folder / "corpus.csv", texts)
    base = str(config.get("base_family", ""))
    model = (config.get("models") or {}).get(base) or {}
    extra = {name: value for name, value in manifest.extra.items() if isinstance(value, (str, int, float))}
    facts = {
        "Where it comes from": {
            "made by": f"unidetox_ray {manifest.code.get('version', '')}, commit {manifest.code.get('git', '')}",
            "made on": manifest.created,
            "experiment": config.get("name", ""),
            "fidelity": config.get("fidelity", ""),
            "base family": base,
            "its model": f"{model.get('source', '')} {model.get('revision') or ''}".strip(),
            "key": manifest.key,
        },
        "Settings": _flat(manifest.config),
        "Inputs (hash or key)": manifest.inputs,
        "Counts": {**manifest.counts, **extra},
        "Versions": manifest.versions,
    }
    files = {name: file_sha256(folder / name) for name in ("corpus.parquet", "corpus.csv")}
    write_text(
        folder / "README.md",
        dataset_card(label, facts, judged, rows=len(texts), licence=licence, files=files),
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings on one level, names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _judges(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What content.json says of each corpus by a toxicity scorer; empty where the run has not judged its corpora."""
    problems: list[str] = []
    stored = content.read(path, problems)
    if problems:
        raise ArtifactError(f"{path}: {problems[0]}; `unidetox run` makes it again")
    found: dict[str, list[dict[str, Any]]] = {}
    for judge in stored.judges if stored else ():
        if judge.kind != "toxicity":
            continue
        for corpus, _, mean, share in judge.numbers:
            line = {"mean": mean.value, "share": share.value, "low": share.low, "high": share.high}
            shown = {name: "withheld" if value is None else f"{value:.3f}" for name, value in line.items()}
            who = {"scorer": judge.name, "n": share.n, "failed": share.failed}
            found.setdefault(corpus, []).append({**who, **shown})
    return found


def _index(run: Path, config: Mapping[str, Any], corpora: list[str], tables: list[str]) -> str:
    """README.md of the whole: what lies where, and the headline numbers."""
    from unidetox_ray.table import headline

    lines = [
        f"# Run {config.get('name', run.name)}",
        "",
        "Made by unidetox_ray; config.yaml is the whole experiment.",
        "",
    ]
    lines += [
        f"- [corpora/{label}](corpora/{label}/README.md): a data set folder with its card"
        for label in corpora
    ]
    lines += [f"- results/{name}" for name in tables]
    lines += [
        "",
        "Models, prompts and continuations are not part of this folder. The corpora can hold hateful text.",
        "",
    ]
    if "results.json" in tables and (rows := read_results(run)):
        lines += ["```", headline(rows), "```", ""]
    return "\n".join(lines)


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder that becomes `to` when the block ends, and nothing where it fails. ConfigError: `to` exists."""
    if to.exists():
        raise ConfigError(f"--to {to}: exists; name a new folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        yield work
        work.replace(to)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_toxic(cell: Path) -> bool:
    """Whether the model's settings or its card say so. A model without either is none of ours: ArtifactError."""
    settings, card = cell / "settings.json", cell / "README.md"
    if not settings.is_file() or not card.is_file():
        raise ArtifactError(
            f"{cell}: holds no settings.json and README.md, so nothing says what this model is; run it again"
        )
    values = read_json(settings)
    marked = bool(values.get("do_not_deploy")) if isinstance(values, dict) else True
    return marked or "do-not-deploy" in card.read_text(encoding="utf-8")
