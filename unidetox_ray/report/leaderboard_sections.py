"""The leaderboard: methods ranked over families, what each pays for lower toxicity, and every cell with its costs."""

from __future__ import annotations

from unidetox_ray.leaderboard import Board, Entry, Standing, board_of
from unidetox_ray.leaderboard.board import AXES, BASE, OWN, RATIO, TOXICITY
from unidetox_ray.report import charts, svg
from unidetox_ray.report.document import Block, Cell, Chart, Column, Row, Section, Table, prose, row
from unidetox_ray.report.model import Cell as Measured
from unidetox_ray.report.model import Metric, Run
from unidetox_ray.report.result_sections import legend, metric_cell, row_head, slots
from unidetox_ray.report.text import MISSING, TIMES, amount, count, listed, number, plural, seconds

MEAN = "mean over families"
#: Heads of columns and axes, with what they mean.
_TITLES = {
    TOXICITY: (TOXICITY, "toxicity probability, all domains; lower is better"),
    "emt_all": ("emt_all", "expected maximum toxicity, all domains; lower is better"),
    "ppl": ("ppl", "perplexity of the continuations under a separate judge model; lower is more fluent"),
    "dist2": ("dist2", "distinct word pairs over all words; higher is more diverse"),
    "mmlu": ("mmlu", "accuracy on the four-choice quiz; higher is better"),
    "clean_ppl": ("clean_ppl", "the cell's own perplexity on held-out clean text; lower is better"),
    RATIO: (f"clean {TIMES}", "clean_ppl over that of the family's base; lower is better"),
    "refusal_rate": ("refusal", "share of continuations that refuse"),
    "decode_tokens_per_second": (
        "tokens/s",
        "tokens decoded a second of decoding, by the workers' own clocks",
    ),
    "decode_relative_cost": (
        f"decode {TIMES}",
        "the family's base tokens/s over this cell's; 2 = twice as slow",
    ),
    "trainable_parameters": ("trained", "parameters that were trained for this cell"),
    "extra_memory_gib": ("extra GiB", "weights in memory while decoding, beside the base model's"),
    "train_seconds": ("training", "seconds of fine-tuning"),
    "fit_seconds": ("fit", "seconds of fitting what steers the model"),
    "edit_seconds": ("edit", "seconds of editing the weights"),
}
_ON = {RATIO: "clean", "ppl": "ppl"}  #: how the column `front` names an axis


def board_of_run(run: Run) -> Board:
    """The leaderboard of the report's cells."""
    return board_of([_as_row(cell) for cell in run.cells])


def _as_row(cell: Measured) -> dict[str, object]:
    names = ("value", "low", "high", "diff", "diff_low", "diff_high")
    stored = {"low": "ci_low", "high": "ci_high"}
    return {
        "cell": cell.cell, "family": cell.family, "method": cell.method, "seed": cell.seed, "settings": cell.settings,
        "status": "ok" if cell.ok else "failed", "error": "" if cell.ok else cell.error, "costs": cell.costs,
        "metrics": {
            key: {stored.get(name, name): getattr(metric, name) for name in names}
            for key, metric in cell.metrics.items()
        },
    }  # fmt: skip


def leaderboard(run: Run) -> Section | None:
    """Ranking, Pareto fronts, and the table methods by families; None where there is nothing to rank."""
    board = board_of_run(run)
    if len(board.standings) < 2 or all(standing.means.get(TOXICITY) is None for standing in board.standings):
        return None
    blocks: list[Block] = [_ranking(run, board)]
    short = [standing.method for standing in board.standings if standing.rank is None]
    if short:
        words = (
            f"Not ranked, having no {TOXICITY} in some family: {listed(short)}. "
            "Means over fewer families say so (“3 of 4”) and cannot be compared with the others."
        )
        blocks.append(prose(words, kind="warning"))
    if any(standing.shared for standing in board.standings):
        words = f"“{OWN}” has each family's own choice of settings; where that is the universal one, one cell counts for both."
        blocks.append(prose(words, kind="note"))
    blocks += [chart for axis in AXES if (chart := _front(run, board, axis)) is not None]
    blocks.append(_cells(run, board))
    if any(entry.costs for entry in board.entries):
        blocks.append(_costs(run, board))
    return Section("leaderboard", "Leaderboard", tuple(blocks))


def _fronts(fronts: dict[str, bool | None]) -> Cell:
    """Which fronts one is on, for a table."""
    on = [_ON[axis] for axis in AXES if fronts[axis]]
    absent = [_ON[axis] for axis in AXES if fronts[axis] is None]
    title = f"no number for {listed(absent)}" if absent else ""
    shown = " · ".join(on)
    return Cell(shown or (MISSING if absent else ""), title=title, sort=f"{2 - len(on)} {shown}")


_FRONT = Column(
    "front",
    "on the Pareto front of toxicity against this measure: nothing is at least as good in both and better in one",
    numeric=False,
)


def _columns(names: list[str]) -> list[Column]:
    return [Column(*_TITLES.get(name, (name, "judged by another scorer"))) for name in names]


def _ranking(run: Run, board: Board) -> Table:
    """One row per method, over families."""
    names = [name for name in board.measures if name not in ("clean_ppl", "refusal_rate")]
    names.insert(names.index(TOXICITY) + 1, RATIO)
    names += [
        name
        for name in ("decode_relative_cost", "trainable_parameters", "extra_memory_gib")
        if name in board.costs
    ]
    rows = []
    for standing in board.standings:
        place = "" if standing.rank is None else str(standing.rank)
        tuned = f"tuned: {standing.tuned}" if standing.tuned else ""
        mark = svg.swatch(slots(run)[standing.method])
        head = Cell(standing.method, label=standing.kind, title=tuned, mark=mark, sort=standing.method)
        values = [_mean(standing, name) for name in names]
        rows.append(
            row(
                head,
                Cell(
                    place or MISSING, sort=standing.rank, title="" if place else "a family lacks the number"
                ),
                values[0],
                _lowers(standing),
                _fronts(standing.fronts),
                *values[1:],
            )
        )
    first, *others = _columns(names)
    families = plural(standing.families, "family", "families")
    caption = (
        f"Means over {families}, by {TOXICITY}; they have no intervals, “lowers” rests on those of the cells. "
        f"clean {TIMES} and decode {TIMES} are averaged geometrically."
    )
    lowers = Column(
        "lowers", f"families whose paired interval of {TOXICITY} against base lies below 0, of those compared"
    )
    columns = (Column("method", numeric=False), Column("rank"), first, lowers, _FRONT, *others)
    return Table(caption, columns, tuple(rows), sortable=True)


def _mean(standing: Standing, name: str) -> Cell:
    value, counted = standing.means.get(name), standing.counts.get(name, 0)
    if value is None:
        return Cell(MISSING, tone="muted")
    note = "" if counted == standing.families else f"{counted} of {standing.families}"
    return Cell(_shown(name, value), note, sort=value)


def _shown(name: str, value: float | None) -> str:
    if name.endswith("_seconds"):
        return seconds(value)
    if name == "trainable_parameters":
        return amount(value)
    if name == "decode_tokens_per_second":
        return count(value) if value is not None and value >= 100 else number(value)
    return number(value)


def _lowers(standing: Standing) -> Cell:
    if not standing.compared:
        why = "what the others are compared with" if standing.method == BASE else "nothing to compare with"
        return Cell(MISSING, title="" if standing.method == BASE else why, tone="muted")
    up = f"raises in {standing.raises}" if standing.raises else ""
    return Cell(f"{standing.lowers} of {standing.compared}", up, sort=standing.lowers)


def _cells(run: Run, board: Board) -> Table:
    """Methods by families: every measure with its interval and its paired difference to base."""
    names = [*board.measures]
    at = names.index("clean_ppl") + 1 if "clean_ppl" in names else len(names)
    rows: list[Row] = []
    for first, cell, entry in _in_order(run, board):
        head = row_head(cell, run)
        if not cell.ok:
            words = Cell(f"failed: {cell.error}", tone="failed", span=len(names) + 2)
            rows.append(row(head, words, first=first, failed=True))
            continue
        values = [metric_cell(cell.metric(name), _direction(name)) for name in names]
        ratio = Cell(number(entry.ratio), sort=entry.ratio)
        rows.append(row(head, _fronts(entry.fronts), *values[:at], ratio, *values[at:], first=first))
    columns = _columns([*names[:at], RATIO, *names[at:]])
    caption = (
        "Every cell: value, 95 % interval, and Δ: paired difference to the family's base, bold where its interval "
        "excludes 0."
    )
    heads = (Column("family · method", numeric=False), _FRONT, *columns)
    return Table(caption, heads, tuple(rows), sortable=True)


def _direction(name: str) -> str:
    """The name that says which way is better, or "": refusing is not better or worse by itself."""
    return "" if name == "refusal_rate" else name


def _costs(run: Run, board: Board) -> Table:
    rows = []
    for first, cell, entry in _in_order(run, board):
        values = [
            Cell(_shown(name, entry.costs.get(name)), sort=entry.costs.get(name)) for name in board.costs
        ]
        rows.append(row(row_head(cell, run), *values, first=first, failed=not cell.ok))
    columns = (Column("family · method", numeric=False), *_columns(list(board.costs)))
    caption = (
        "What each cell cost; a dash: it has no such step, or it was not measured. What cells share (toxic models, "
        "experts, corpora) is under Cost. Speeds are of this run's machines while they were doing other things too."
    )
    return Table(caption, columns, tuple(rows), sortable=True)


def _in_order(run: Run, board: Board) -> list[tuple[bool, Measured, Entry]]:
    """(first of its family, cell, its entry), family by family."""
    entries = {id(cell): entry for cell, entry in zip(run.cells, board.entries, strict=True)}
    return [
        (index == 0, cell, entries[id(cell)])
        for family in run.families
        for index, cell in enumerate(run.of_family(family))
    ]


def _front(run: Run, board: Board, axis: str) -> Chart | None:
    """Toxicity against one axis: a panel over all families, then one per family, with the same axes."""
    shown = _TITLES[axis][0]
    panels: dict[str, list[charts.Spot]] = {}
    if len(run.families) > 1:
        whole = [standing for standing in board.standings if standing.fronts[axis] is not None]
        spots = [_mean_spot(run, standing, axis) for standing in whole]
        panels[MEAN] = spots
    for _, cell, entry in _in_order(run, board):
        if entry.fronts[axis] is not None:
            x = Metric(entry.ratio) if axis == RATIO else cell.metric(axis)
            spot = charts.Spot(
                slots(run)[cell.method], cell.label, x, cell.metric(TOXICITY), bool(entry.fronts[axis])
            )
            panels.setdefault(cell.family, []).append(spot)
    values = [spot.x.value for spots in panels.values() for spot in spots if spot.x.value is not None]
    if not values:
        return None
    x_range = _range(min(values), max(values))
    rows = [
        row(
            title,
            spot.name,
            metric_cell(spot.x, axis),
            metric_cell(spot.y, TOXICITY),
            Cell("yes" if spot.front else "no", strong=spot.front),
            first=index == 0,
        )
        for title, spots in panels.items()
        for index, spot in enumerate(spots)
    ]
    drawn = [
        charts.scatter(title, spots, x_range, (shown, TOXICITY)) for title, spots in panels.items() if spots
    ]
    columns = (
        Column("family", numeric=False), Column("method", numeric=False), Column(shown), Column(TOXICITY),
        Column("on the front", numeric=False),
    )  # fmt: skip
    note = (
        "Left and down is better. Ringed and joined by the dashed line: the Pareto front, the methods that none "
        "beats on both; behind it, some method is at least as good on both and better on one. Lines through a mark "
        "are 95 % intervals."
    )
    labels = {cell.cell: f"{cell.family} · {cell.label}" for cell in run.cells}
    absent = [labels[name] for name in board.left_out[axis]]
    note += f" Not drawn for want of a number: {listed(absent)}." if absent else ""
    table = Table(f"{TOXICITY} and {shown} by family and method", columns, tuple(rows))
    return Chart(f"{TOXICITY} against {shown}", note, tuple(drawn), table, legend(run))


def _mean_spot(run: Run, standing: Standing, axis: str) -> charts.Spot:
    x, y = (Metric(standing.means[name]) for name in (axis, TOXICITY))
    return charts.Spot(slots(run)[standing.method], standing.method, x, y, bool(standing.fronts[axis]))


def _range(low: float, high: float) -> tuple[float, float]:
    """A little wider than the values, for both kinds of axis."""
    if low > 0 and high > 8 * low:
        return low / 1.5, high * 1.5
    pad = 0.12 * (high - low) or 0.1 * high or 1.0
    return max(0.0, low - pad), high + pad
