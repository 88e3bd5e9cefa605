"""What the MLflow page shows without set-up: named views of an experiment, its kind and its description.

MLflow 3.17 keeps a view that somebody saved ("Views" on the runs page) as a tag of the experiment,
`mlflow.sharedViewState.<id>`, JSON with `name`, `createdAt`, `updatedAt` (ms) and `state`, itself JSON of the page's
filter, columns, grouping and charts, or `deflate;` and that JSON deflated in base 64. `?viewStateShareKey=<id>` opens it.
Servers that know nothing of views show the same runs without them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

#: Experiment tags that MLflow's page reads.
VIEW_TAG = "mlflow.sharedViewState."
NOTE_TAG = "mlflow.note.content"
#: Without it the page takes the experiment for one of traces and judges, and hides the runs.
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
#: Ids of the views, in the page's address.
CELLS, METHODS, TRIALS, SUBMISSIONS = (
    f"unidetox-{name}" for name in ("cells", "methods", "trials", "submissions")
)

#: Charts of the cells: what toxicity was left, what it cost.
_BARS = ("tp_id", "tp_ood", "emt_id", "emt_ood", "ppl", "clean_ppl", "mmlu", "dist2")
_CLOUDS = (("clean_ppl", "tp_all"), ("mmlu", "tp_all"))
_WHO = ("tags.`unidetox.family`", "tags.`unidetox.method`")
_DATA = "attributes.`Dataset`"
#: Groups of charts that the page makes by itself from names with a slash; closed, so that ours are seen first.
_CLOSED = (
    "ci_low",
    "ci_high",
    "n",
    "failed",
    "diff",
    "diff_low",
    "diff_high",
    "cost",
    "speed",
    "edit",
    "fit",
)


def experiment_tags(study: str) -> dict[str, str]:
    """The tags of an experiment: kind, description and views. The same every time, so they may be set again."""
    views = {
        CELLS: ("Families and methods", _state("cell", _charts(_BARS, _CLOUDS), columns=[*_WHO, _DATA, *_metrics(_BARS)])),
        METHODS: (
            "Methods, mean over families",
            _state("cell", _charts(_BARS, _CLOUDS), columns=[*_WHO, *_metrics(_BARS)], group_by="unidetox.method"),
        ),
        TRIALS: (
            "Search trials",
            _state("trial", _charts(("tp_all", "clean_ppl"), (("clean_ppl", "tp_all"),)), columns=[*_WHO, *_metrics(("tp_all", "clean_ppl"))]),
        ),
        SUBMISSIONS: ("Submissions", _state("parent", [], columns=[_DATA, *_metrics(("seconds", "failed_cells"))])),
    }  # fmt: skip
    tags = {f"{VIEW_TAG}{key}": _envelope(name, state) for key, (name, state) in views.items()}
    return {**tags, KIND_TAG: KIND, NOTE_TAG: _note(study)}


def view_path(experiment_id: str, view: str) -> str:
    """The page's path to a view of an experiment; the views of cells and trials open on their charts."""
    charts = "" if view == SUBMISSIONS else "&compareRunsMode=CHART"
    return (
        f"/#/experiments/{experiment_id}/runs?viewStateShareKey={view}{charts}&workflowType=machine_learning"
    )


def _note(study: str) -> str:
    return (
        f"Detoxification experiment **{study}**.\n\n"
        "Under *Views* of the runs page: *Families and methods* (one bar a cell), *Methods, mean over families*, "
        "*Search trials*, *Submissions*. Without a filter, sorted by Created, the runs are a tree: a submission, under it "
        "its cells, corpora, toxic models and searches, under a search its trials.\n\n"
        "Lower is better for `tp_…`, `emt_…`, `ppl` and `clean_ppl`, higher for `mmlu` and `dist…`. "
        "A cell's corpus is its dataset; `leaderboard.json`, `ranking.json` and `report/report.html` are artifacts of the "
        "submission. Tags `unidetox.family`, `unidetox.method`, `unidetox.seed` and `unidetox.corpus_sha256` stand on "
        "every run."
    )


def _metrics(names: Sequence[str]) -> list[str]:
    return [f"metrics.`{name}`" for name in names]


def _charts(bars: Sequence[str], clouds: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Cards of the chart page; `uuid` only has to differ within a view."""
    common = {"deleted": False, "isGenerated": False, "metricSectionId": "unidetox"}
    cards: list[dict[str, Any]] = [
        {**common, "uuid": f"bar-{name}", "type": "BAR", "metricKey": name, "runsCountToCompare": 100}
        for name in bars
    ]
    for across, up in clouds:
        axes = {
            "xaxis": {"type": "METRIC", "key": across, "index": 0},
            "yaxis": {"type": "METRIC", "key": up, "index": 0},
        }
        cards.append(
            {**common, "uuid": f"cloud-{across}", "type": "SCATTER", "runsCountToCompare": 100, **axes}
        )
    return cards


def _state(
    kind: str, charts: list[dict[str, Any]], *, columns: Sequence[str], group_by: str | None = None
) -> dict[str, Any]:
    grouping = None
    if group_by is not None:
        keys = [{"mode": "tag", "groupByData": group_by}]
        grouping = {"aggregateFunction": "average", "groupByKeys": keys}
    section = {"uuid": "unidetox", "name": "Toxicity and what it costs", "display": True, "isReordered": True}
    groups = _CLOSED if kind == "cell" else ()
    closed = [
        {"uuid": f"unidetox-{name}", "name": name, "display": False, "isReordered": True} for name in groups
    ]
    return {
        "searchFilter": f"tags.`unidetox.kind` = '{kind}'",
        # Sorted by time the page puts children below their parents and folds them away; sorted by a metric it does not.
        "orderByKey": "metrics.`tp_all`" if charts else "attributes.start_time",
        "orderByAsc": bool(charts),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": grouping,
        "compareRunCharts": charts,
        "compareRunSections": [section, *closed] if charts else [],
        "isAccordionReordered": True,
    }


def _envelope(name: str, state: Mapping[str, Any]) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode("ascii")
    # A fixed time keeps the tag equal from submission to submission.
    created = 1_735_689_600_000
    return json.dumps(
        {"name": name, "createdAt": created, "updatedAt": created, "state": f"deflate;{packed}"}
    )
