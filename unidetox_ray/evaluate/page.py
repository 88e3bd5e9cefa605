"""report.html and report.md of an evaluation: the same numbers as results.json, no text of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unidetox_ray.evaluate.measured import MEASURES
from unidetox_ray.evaluate.outputs import HEADS, p_value, scopes_of, tail_of
from unidetox_ray.report import charts, html, markdown, svg
from unidetox_ray.report.document import (
    Block,
    Cell,
    Chart,
    Column,
    Document,
    Facts,
    Legend,
    Points,
    Row,
    Section,
    Table,
    prose,
    row,
)
from unidetox_ray.report.files import write
from unidetox_ray.report.model import Metric
from unidetox_ray.report.text import MISSING, clean, count, interval, number, percent, plural

_MEANING = {
    "tp": "share of prompts with at least one text above the threshold",
    "emt": "mean over prompts of the worst score",
    "mean": "mean score of a prompt's texts, mean over prompts",
    "share": "share of a prompt's texts above the threshold, mean over prompts",
}


def build(results: Mapping[str, Any], folder: Path) -> None:
    """Write report.html and report.md."""
    made = document(results)
    write(folder / "report.html", html.render(made))
    write(folder / "report.md", markdown.render(made))


def document(results: Mapping[str, Any]) -> Document:
    sections = [_scores(results)]
    if any(source["domains"] for source in results["sources"]):
        sections.append(_domains(results))
    if results["comparisons"]:
        sections.append(_comparisons(results))
    if any(source.get("corrected") for source in results["sources"]):
        sections.append(_corrected(results))
    sections += [_counts(results), _protocol(results)]
    names = [clean(source["source"], 40) for source in results["sources"]]
    return Document(
        f"Toxicity of {', '.join(names[:4])}{' …' if len(names) > 4 else ''}",
        _subtitle(results),
        tuple(sections),
    )


def _subtitle(results: Mapping[str, Any]) -> str:
    counts = [next(iter(source["counts"].values())) for source in results["sources"] if source["counts"]]
    total = sum(each["continuations"] for each in counts)
    scorers = plural(len(results["scorers"]), "scorer")
    return f"{plural(total, 'text')} of {plural(len(results['sources']), 'source')}, judged by {scorers}"


def _measure_columns() -> tuple[Column, ...]:
    return tuple(Column(HEADS[name], _MEANING[name]) for name in MEASURES)


def _value(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None or entry["value"] is None:
        return Cell(MISSING, title=(entry or {}).get("reason", "not measured"), tone="muted")
    title = f"n = {count(entry['n'])} prompts"
    return Cell(
        number(entry["value"]), interval(entry["ci_low"], entry["ci_high"]), title=title, sort=entry["value"]
    )


def _head(results: Mapping[str, Any], source: Mapping[str, Any]) -> Cell:
    slot = [each["source"] for each in results["sources"]].index(source["source"])
    return Cell(clean(source["source"], 80), mark=svg.swatch(slot))


def _scores(results: Mapping[str, Any]) -> Section:
    columns = (Column("Source", numeric=False), Column("Scorer", numeric=False), *_measure_columns())
    rows: list[Row] = []
    for source in results["sources"]:
        if source["error"] is not None:
            failed = Cell(clean(source["error"], 300), tone="failed", span=len(columns) - 1)
            rows.append(row(_head(results, source), failed, first=True, failed=True))
            continue
        for number_of, scorer in enumerate(source["counts"]):
            tail = tail_of(scorer, results["scorer"])
            values = [_value(source["metrics"].get(f"{name}_all{tail}")) for name in MEASURES]
            rows.append(row(_head(results, source), scorer, *values, first=number_of == 0))
    caption = (
        f"Threshold {results['threshold']:g}; 95 % intervals by bootstrap over prompts. Lower is less toxic."
    )
    if any(source["domains"] for source in results["sources"]):
        caption += " Means over domains."
    blocks: list[Block] = [Table(caption, columns, tuple(rows), sortable=True)]
    blocks += [prose(clean(note, 600), kind="note") for note in results["notes"]]
    if len(results["scorers"]) > 1:
        blocks.append(
            prose(
                "Scores by different scorers are on different scales; compare sources under one scorer.",
                kind="note",
            )
        )
    return Section("scores", "Scores", tuple(blocks))


def _domains(results: Mapping[str, Any]) -> Section:
    columns = (
        Column("Source", numeric=False),
        Column("Scorer", numeric=False),
        Column("Over", numeric=False),
        *_measure_columns(),
    )
    rows = []
    for source in results["sources"]:
        for scorer in source["counts"]:
            tail = tail_of(scorer, results["scorer"])
            over = [
                (scope, {m: source["metrics"].get(f"{m}_{scope}{tail}") for m in MEASURES})
                for scope in scopes_of(source["metrics"], tail)
            ]
            over += [
                (name, {m: entries.get(f"{m}{tail}") for m in MEASURES})
                for name, entries in source["domains"].items()
            ]
            for place, (name, entries) in enumerate(over):
                values = [_value(entries[m]) for m in MEASURES]
                rows.append(row(_head(results, source), scorer, clean(name, 60), *values, first=place == 0))
    domains = list(dict.fromkeys(name for source in results["sources"] for name in source["domains"]))
    panels = []
    for measure in ("tp", "emt"):
        bands = []
        for domain in domains:
            dots, kind = [], ""
            for slot, source in enumerate(results["sources"]):
                entries = source["domains"].get(domain)
                if entries is not None:
                    kind = entries["distribution"]
                    dots.append(charts.Dot(slot, clean(source["source"], 40), _metric(entries.get(measure))))
            bands.append(((clean(domain, 60), clean(kind, 30)), dots))
        panels.append(charts.dot_plot(HEADS[measure], bands, HEADS[measure]))
    marks = tuple(
        Legend(clean(source["source"], 40), svg.swatch(slot))
        for slot, source in enumerate(results["sources"])
    )
    table = Table("Every source, scorer and domain", columns, tuple(rows), sortable=True)
    note = f"Under {results['scorer']}; whiskers are 95 % intervals."
    return Section("domains", "By domain", (Chart("Toxicity by domain", note, tuple(panels), table, marks),))


def _metric(entry: Mapping[str, Any] | None) -> Metric:
    if entry is None:
        return Metric(reason="not measured")
    return Metric(
        entry["value"], entry["ci_low"], entry["ci_high"], entry["n"], reason=entry.get("reason", "")
    )


def _comparisons(results: Mapping[str, Any]) -> Section:
    columns = (
        Column("Source", numeric=False), Column("Scorer", numeric=False), Column("Measure", numeric=False), Column("Prompts"),
        Column("Difference", "source minus reference, mean over domains, 95 % interval"),
        Column("d", "Cohen's d of the paired differences"), Column("Lower / higher", "prompts on which the source is less / more toxic"),
        Column("p", "two-sided, paired sign-flip test"), Column("p (Holm)", "corrected for all comparisons of this measure"),
    )  # fmt: skip
    rows: list[Row] = []
    blocks: list[Block] = []
    for pair in results["comparisons"]:
        source = next(each for each in results["sources"] if each["source"] == pair["source"])
        if pair.get("reason"):
            reason = Cell(f"not compared: {clean(pair['reason'], 200)}", tone="failed", span=len(columns) - 2)
            rows.append(row(_head(results, source), pair["scorer"], reason, first=True, failed=True))
            continue
        for place, (measure, entry) in enumerate(pair["measures"].items()):
            below = entry["diff_high"] is not None and entry["diff_high"] < 0
            above = entry["diff_low"] is not None and entry["diff_low"] > 0
            diff = Cell(
                number(entry["diff"], signed=True), interval(entry["diff_low"], entry["diff_high"], signed=True), strong=below or above,
                tone="better" if below else "worse" if above else "", sort=entry["diff"],
            )  # fmt: skip
            rows.append(
                row(
                    _head(results, source), pair["scorer"], HEADS[measure], Cell(count(entry["n"]), sort=entry["n"]), diff,
                    Cell(number(entry["cohens_d"], signed=True), sort=entry["cohens_d"]),
                    f"{count(entry['prompts_lower'])} / {count(entry['prompts_higher'])}",
                    Cell(p_value(entry["p"]), sort=entry["p"]), Cell(p_value(entry["p_holm"]), sort=entry["p_holm"]), first=place == 0,
                )
            )  # fmt: skip
    tests = sorted({e["test"] for pair in results["comparisons"] for e in pair["measures"].values()})
    blocks.append(
        Table(
            f"Against {clean(results['reference'], 80)}, on the prompts that both continued",
            columns,
            tuple(rows),
        )
    )
    if tests:
        blocks.append(
            prose(
                f"p: {'; '.join(tests)}. Holm's correction covers the comparisons of one measure; the four measures are views of "
                "the same scores, so decide on one beforehand.", kind="note",
            )
        )  # fmt: skip
    return Section("compared", "Compared", tuple(blocks))


def _corrected(results: Mapping[str, Any]) -> Section:
    columns = (
        Column("Source", numeric=False), Column("Scorer", numeric=False), Column("As judged"), Column("Corrected"),
        Column("Sensitivity"), Column("Specificity"),
    )  # fmt: skip
    rows = [
        row(_head(results, source), scorer, number(found["observed"]), _value(found | {"n": found.get("n")}), number(found["sensitivity"]), number(found["specificity"]))
        for source in results["sources"] for scorer, found in (source.get("corrected") or {}).items()
    ]  # fmt: skip
    caption = "Share of texts above the threshold, corrected for the scorer's errors on the labelled sample"
    return Section("corrected", "Corrected for the scorer's errors", (Table(caption, columns, tuple(rows)),))


def _counts(results: Mapping[str, Any]) -> Section:
    columns = (
        Column("Source", numeric=False), Column("Scorer", numeric=False), Column("Prompts"), Column("Texts a prompt"), Column("Texts"),
        Column("Scored"), Column("Failed", "no text, or no score; never a number"), Column("Of them no text"),
        Column("Cut", "texts that filled the scorer's longest input: what came after was not read"),
    )  # fmt: skip
    rows = []
    for source in results["sources"]:
        for scorer, counts in source["counts"].items():
            few, many = (
                counts["continuations_per_prompt"]["least"],
                counts["continuations_per_prompt"]["most"],
            )
            rows.append(
                row(
                    _head(results, source), scorer, count(counts["prompts"]), count(few) if few == many else f"{count(few)}–{count(many)}",
                    count(counts["continuations"]), count(counts["ok"]),
                    f"{count(counts['failed'])} ({percent(counts['failed_share'])})" if counts["failed"] else "0",
                    count(counts["generations_failed"]), count(counts["filled_the_scorer"]),
                )
            )  # fmt: skip
    return Section("counts", "Counts", (Table("Expected = scored + failed", columns, tuple(rows)),))


def _protocol(results: Mapping[str, Any]) -> Section:
    blocks: list[Block] = []
    for about in results["scorers"]:
        said = tuple((key, str(value)) for key, value in about.items() if value is not None and key != "name")
        blocks.append(Facts(f"Scorer {about['name']}", said))
    facts = [
        ("threshold", f"{results['threshold']:g}, strictly above"),
        (
            "bootstrap",
            f"{results['bootstrap']['samples']:,} resamples by prompt, seed {results['bootstrap']['seed']}",
        ),
    ]
    if results["prompts"] is not None:
        facts += [
            (f"prompts {key}", str(value)) for key, value in results["prompts"].items() if value is not None
        ]
    if results["sampling"] is not None:
        facts += [(key, str(value)) for key, value in results["sampling"].items()]
    facts += [(f"version of {name}", value) for name, value in results["versions"].items()]
    blocks.append(Facts("Protocol", tuple(facts)))
    columns = [
        (clean(source["source"], 80), clean(source["columns"] or source["kind"], 400))
        for source in results["sources"]
    ]
    blocks.append(Points(tuple(columns)))
    return Section("protocol", "Protocol", tuple(blocks))
