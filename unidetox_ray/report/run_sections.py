"""The sections that show how it was done: training, corpus, cost, protocol, provenance, notes."""

from __future__ import annotations

from typing import Any

from unidetox_ray.report import charts, readers, search_sections, svg
from unidetox_ray.report.document import (
    Block,
    Cell,
    Chart,
    Column,
    Facts,
    Legend,
    Points,
    Section,
    Table,
    prose,
    row,
)
from unidetox_ray.report.model import TOXIC, Run
from unidetox_ray.report.notes import NOTES, REDACTION
from unidetox_ray.report.result_sections import slots
from unidetox_ray.report.text import (
    MISSING,
    clean,
    count,
    is_number,
    listed,
    number,
    percent,
    plural,
    sample,
    seconds,
    without_secrets,
)

HASH_SHOWN = 16


def search(run: Run) -> Section | None:
    """The search of this run, if it made one."""
    if run.search is None:
        return None
    return Section("search", "Search", tuple(search_sections.blocks(run.search)))


def training(run: Run) -> Section | None:
    """Loss by step: a panel for each model that was trained toxic, then one per family."""
    if not run.curves:
        return None
    order = slots(run)
    by_cell = {cell.cell: cell for cell in run.cells}
    groups: dict[str, list[charts.Line]] = {}
    rows, used = [], {}
    places = {name: place for place, name in enumerate(run.families)}
    for curve in sorted(run.curves, key=lambda c: (c.method != TOXIC, places.get(c.family, len(places)))):
        toxic = curve.method == TOXIC
        cell = by_cell.get(curve.cell)
        slot = order.get(cell.method if cell else curve.method, len(order))
        name = curve.method or curve.cell
        used[name] = slot
        panel = f"{TOXIC} ({curve.family})" if toxic else curve.family
        groups.setdefault(panel, []).append(charts.Line(slot, name, list(curve.points)))
        losses = [loss for _, loss in curve.points]
        picks = (
            [losses[round(share * (len(losses) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)] if losses else []
        )
        shown = [number(loss) for loss in picks] or [MISSING] * 5
        rows.append(row(curve.family, name, count(curve.steps), *shown))
    panels = [charts.line_chart(title, lines, ("step", "loss")) for title, lines in groups.items()]
    marks = tuple(Legend(name, svg.swatch(slot)) for name, slot in used.items())
    columns = (
        Column("family", numeric=False),
        Column("model", numeric=False),
        Column("steps"),
        Column("loss at start"),
        Column("at 25 %"),
        Column("at 50 %"),
        Column("at 75 %"),
        Column("at the end"),
    )
    note = f"Training loss in nats a token, at most {readers.MAX_CURVE_POINTS} points a line (local means)."
    table = Table("Training loss along each training", columns, tuple(rows))
    return Section("training", "Training", (Chart("Training loss", note, tuple(panels), table, marks),))


def corpus(run: Run, show_text: bool) -> Section | None:
    """The distilled corpora: size, lengths, how many ended, hash, and a redacted sample."""
    if not run.corpora:
        return None
    rows = []
    for item in run.corpora:
        digest = Cell((item.sha256 or MISSING)[:HASH_SHOWN], title=item.sha256 or "")
        rows.append(
            row(
                item.label,
                count(item.rows),
                count(item.tokens) if item.lengths else Cell(MISSING, title="no n_tokens column"),
                number(item.median_length),
                count(min(item.lengths, default=None)),
                count(max(item.lengths, default=None)),
                percent(item.ended),
                digest,
            )
        )
    columns = (
        Column("file", numeric=False),
        Column("texts"),
        Column("tokens"),
        Column("median length"),
        Column("shortest"),
        Column("longest"),
        Column("ended", "share that ended by itself, not by the length limit"),
        Column("sha256", numeric=False),
    )
    blocks: list[Block] = [
        Table("Distilled corpora; lengths in tokens of the base model", columns, tuple(rows))
    ]
    panels, lengths = [], []
    for item in (item for item in run.corpora if item.lengths):
        found = charts.bins(item.lengths)
        panels.append(charts.histogram(item.label, found, ("tokens", "texts")))
        lengths += [
            row(item.label, f"{count(low)} to {count(high - 1)}", count(texts)) for low, high, texts in found
        ]
    if panels:
        heads = (Column("file", numeric=False), Column("tokens"), Column("texts"))
        table = Table("Texts by length", heads, tuple(lengths))
        blocks.append(Chart("Length of the texts", "Tokens of the base model.", tuple(panels), table))
    shown = [
        row(str(index), count(len(raw)), sample(raw, show_text))
        for item in run.corpora[:1]
        for index, raw in enumerate(item.samples)
    ]
    if shown:
        heads = (Column("row", numeric=False), Column("characters"), Column("text", numeric=False))
        caption = f"The first texts of {run.corpora[0].label}, " + (
            "as they are" if show_text else "redacted"
        )
        blocks.append(Table(caption, heads, tuple(shown)))
        if not show_text:
            blocks.append(prose(REDACTION, kind="note"))
    return Section("corpus", "Corpus", tuple(blocks))


def cost(run: Run) -> Section | None:
    """Time and tokens per stage and per cell."""
    blocks: list[Block] = []
    if run.manifests:
        rows = []
        for item in run.manifests:
            tallies = [count(item.counts.get(key)) for key in ("expected", "ok", "failed")]
            rows.append(
                row(
                    item.stage,
                    Cell(seconds(item.seconds), sort=item.seconds),
                    *tallies,
                    item.created[:19].replace("T", " "),
                )
            )
        total = sum(item.seconds or 0 for item in run.manifests)
        columns = (
            Column("stage", numeric=False),
            Column("time"),
            Column("expected"),
            Column("ok"),
            Column("failed"),
            Column("finished", numeric=False),
        )
        blocks.append(
            Table(
                f"Stages and trainings, {seconds(total)} added up, some of it at once; counts are their own units of work",
                columns,
                tuple(rows),
            )
        )
    if any(cell.costs for cell in run.cells):
        names = (
            ("train_seconds", "training"),
            ("generate_seconds", "generation"),
            ("score_seconds", "scoring"),
        )
        tokens = (("train_tokens", "trained tokens"), ("generated_tokens", "generated tokens"))
        rows = []
        for family in run.families:
            for index, cell in enumerate(run.of_family(family)):
                values = [
                    Cell(seconds(cell.costs.get(key)), sort=_real(cell.costs.get(key))) for key, _ in names
                ]
                values += [
                    Cell(count(cell.costs.get(key)), sort=_real(cell.costs.get(key))) for key, _ in tokens
                ]
                device = clean(cell.costs.get("device") or MISSING, 60)
                rows.append(
                    row(
                        f"{family} · {cell.label}{'' if cell.ok else ' (failed)'}",
                        *values,
                        device,
                        first=index == 0,
                    )
                )
        heads = (
            Column("cell", numeric=False),
            *(Column(title) for _, title in (*names, *tokens)),
            Column("device", numeric=False),
        )
        blocks.append(Table("Cells; a dash was not measured", heads, tuple(rows), sortable=True))
    return Section("cost", "Cost", tuple(blocks)) if blocks else None


def _real(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def protocol(run: Run) -> Section:
    """The settings that a number depends on."""
    if not run.config:
        return Section(
            "protocol",
            "Protocol",
            (prose("config.yaml is absent or empty, so the protocol is not known here.", kind="warning"),),
        )
    pairs = [("fidelity", clean(run.config.get("fidelity") or "not set", 60))]
    pairs += readers.flatten({"evaluate": run.config.get("evaluate") or {}})
    data = readers.mapping(run.config.get("data"))
    pairs += readers.flatten(
        {"data": {key: data[key] for key in ("prompts", "scorer", "mmlu", "clean") if key in data}}
    )
    scorers = sorted({cell.scorer for cell in run.cells if cell.scorer})
    pairs.append(("toxicity judged by", listed(scorers) or MISSING))
    made = readers.flatten(
        {key: run.config[key] for key in ("toxic", "corpus", "finetune") if key in run.config}
    )
    boxes = [Facts("Evaluation", tuple(pairs))]
    if made:
        boxes.append(Facts("Training and corpus", tuple(made)))
    return Section("protocol", "Protocol", tuple(boxes))


def provenance(run: Run) -> Section:
    """Hashes, keys, seeds, versions and the tracking run."""
    commits = sorted({clean(m.code.get("git") or "", 60) for m in run.manifests} - {""})
    codes = sorted({clean(m.code.get("version") or "", 40) for m in run.manifests} - {""})
    seeds = sorted({cell.seed for cell in run.cells if cell.seed is not None})
    facts = [
        ("config.yaml sha256", run.config_sha256 or MISSING),
        ("seed of the experiment", clean(run.config.get("seed", MISSING), 40)),
        ("seeds of the cells", ", ".join(str(seed) for seed in seeds) or MISSING),
        ("unidetox_ray", listed(codes) or MISSING),
        ("git commit", listed(commits) or MISSING),
        ("MLflow", _tracking(run)),
    ]
    blocks: list[Block] = [Facts("Run", tuple(facts))]
    if run.manifests:
        rows = []
        for item in run.manifests:
            inputs = ", ".join(f"{clean(k, 60)} {_short(v)}" for k, v in item.inputs.items()) or MISSING
            files = (
                ", ".join(f"{clean(k, 60)} {_short(v)}" for k, v in list(item.files.items())[:6]) or MISSING
            )
            more = f" and {plural(len(item.files) - 6, 'more file')}" if len(item.files) > 6 else ""
            rows.append(row(item.stage, Cell(item.key[:HASH_SHOWN], title=item.key), inputs, files + more))
        columns = (
            Column("stage", numeric=False),
            Column("key", numeric=False),
            Column("inputs", numeric=False),
            Column("files", numeric=False),
        )
        blocks.append(
            Table(
                "Stages: key, inputs and files with the first figures of their hashes", columns, tuple(rows)
            )
        )
        versions: dict[str, set[str]] = {}
        for item in run.manifests:
            for name, version in item.versions.items():
                versions.setdefault(clean(name, 40), set()).add(clean(version, 40))
        if versions:
            listed_versions = tuple((name, listed(sorted(found))) for name, found in sorted(versions.items()))
            blocks.append(Facts("Package versions", listed_versions))
    models = {cell.family: cell.model for cell in run.cells if cell.model}
    if models:
        blocks.append(Facts("Models", tuple(models.items())))
    return Section("provenance", "Provenance", tuple(blocks))


def _short(value: Any) -> str:
    words = clean(value, 80)
    return words[:12] if len(words) in (40, 64) else words


def _tracking(run: Run) -> str:
    tracking = readers.mapping(run.config.get("tracking"))
    parts = [without_secrets(clean(tracking["uri"], 200))] if tracking.get("uri") else []
    for item in run.manifests:
        for key, value in item.extra.items():
            if key.startswith("mlflow"):
                parts.append(f"{clean(key, 40)} {without_secrets(clean(value, 120))}")
    return (
        "; ".join(dict.fromkeys(parts)) + " (open with unidetox ui)" if parts else "no tracking run recorded"
    )


def notes() -> Section:
    """What the numbers mean."""
    return Section("notes", "Notes on the methods", (Points(NOTES),))
