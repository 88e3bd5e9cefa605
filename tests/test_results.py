"""results.json from tables: every number against the metric's own functions, failures, differences, speed."""

import json
import math
import time

import numpy as np
import polars as pl
import pytest
from stored_tables import DOMAINS, info, make_tables

from unidetox_ray import schemas
from unidetox_ray.errors import ArtifactError, ConfigError, DataError
from unidetox_ray.metrics.distinct import distinct_n
from unidetox_ray.metrics.perplexity import perplexities
from unidetox_ray.metrics.toxicity import toxicity_summary
from unidetox_ray.results import ResultSettings, cell_results, read_results, write_results
from unidetox_ray.schemas import GENERATIONS, PROMPTS, SCORES

SETTINGS = ResultSettings(scorer="main", judge="judge", bootstrap_samples=500)
METRICS = [
    *(f"{name}_{part}" for name in ("tp", "emt") for part in ("id", "ood", "all")),
    "ppl", "ppl_median", "ppl_pooled", "ppl_dropped", "dist1", "dist2", "dist3", "mmlu", "clean_ppl",
]  # fmt: skip
KEYS = {"value", "ci_low", "ci_high", "n", "diff", "diff_low", "diff_high", "failed"}


@pytest.fixture(scope="module")
def tables():
    return make_tables(["base", "ours"])


@pytest.fixture(scope="module")
def rows(tables):
    return cell_results(*tables, cells=[info("base", "base"), info("ours")], settings=SETTINGS)


def of(scores, metric, scorer=None):
    kept = scores.filter((pl.col("cell") == "ours") & (pl.col("metric") == metric))
    return kept if scorer is None else kept.filter(pl.col("scorer") == scorer)


def test_the_layout_is_the_contracts(rows):
    for row in rows:
        assert set(row) == {
            "family",
            "model",
            "method",
            "seed",
            "settings",
            "status",
            "error",
            "cell",
            "metrics",
            "domains",
            "scorer",
            "costs",
        }
        assert set(METRICS) <= set(row["metrics"])
        assert {"tp_id@second", "emt_all@second", "dist1_continuation", "ppl_empty"} <= set(row["metrics"])
        for entry in row["metrics"].values():
            assert set(entry) == KEYS
        assert row["scorer"] == "main"
        assert set(row["domains"]) == set(DOMAINS)
        for domain, parts in row["domains"].items():
            assert parts["distribution"] == DOMAINS[domain]
            assert set(parts["tp"]) == set(parts["emt"]) == {"value", "ci_low", "ci_high", "n"}


def test_values_equal_the_metrics_own_functions(tables, rows):
    scores, generations, prompts = tables
    metrics = {name: entry["value"] for name, entry in rows[1]["metrics"].items()}
    for tail, scorer in (("", "main"), ("@second", "second")):
        for name, value in toxicity_summary(of(scores, "toxicity", scorer), prompts).items():
            assert metrics[name + tail] == pytest.approx(value)
    judged = of(scores, "ppl")
    per_run = [perplexities(part["value"], part["weight"]) for _, part in judged.group_by("run")]
    assert metrics["ppl"] == pytest.approx(np.mean([found.mean for found in per_run]))
    assert metrics["ppl_dropped"] == sum(found.dropped for found in per_run) > 0
    whole = perplexities(judged["value"], judged["weight"])
    assert metrics["ppl_median"] == pytest.approx(whole.median) and metrics["ppl_pooled"] == pytest.approx(
        whole.pooled
    )
    joined = generations.filter(pl.col("cell") == "ours").join(prompts, on="prompt_id")
    for with_prompt, tail in ((True, ""), (False, "_continuation")):
        found = [
            distinct_n(
                part["prompt_id"].to_list(),
                [(p if with_prompt else "") + t for p, t in zip(part["prompt"], part["text"], strict=True)],
            )
            for _, part in joined.group_by("run")
        ]
        for n in ("dist1", "dist2", "dist3"):
            assert metrics[n + tail] == pytest.approx(np.mean([values[n] for values in found]))
    assert metrics["mmlu"] == pytest.approx(of(scores, "mmlu")["value"].mean())
    clean = of(scores, "clean_ppl")
    assert metrics["clean_ppl"] == pytest.approx(math.exp(clean["value"].sum() / clean["weight"].sum()))


def test_domain_values_average_to_the_headline(rows):
    for row in rows:
        for name in ("tp", "emt"):
            parts = {d: v[name]["value"] for d, v in row["domains"].items()}
            assert row["metrics"][f"{name}_id"]["value"] == pytest.approx(
                np.mean([v for d, v in parts.items() if d != "far"])
            )
            assert row["metrics"][f"{name}_ood"]["value"] == pytest.approx(parts["far"])
            assert row["metrics"][f"{name}_all"]["value"] == pytest.approx(np.mean(list(parts.values())))


def test_intervals_hold_their_values_and_differences_are_ours_minus_base(rows):
    base, ours = (row["metrics"] for row in rows)
    for name, entry in ours.items():
        assert entry["ci_low"] <= entry["value"] <= entry["ci_high"], name
        assert entry["diff"] == pytest.approx(entry["value"] - base[name]["value"]), name
        assert entry["diff_low"] <= entry["diff"] <= entry["diff_high"], name
        assert base[name]["diff"] is None and base[name]["diff_low"] is None
    assert ours["emt_all"]["diff_high"] < 0
    assert ours["tp_id"]["n"] == 18 and ours["tp_ood"]["n"] == 6 and ours["mmlu"]["n"] == 30


def test_the_order_of_rows_changes_nothing(tables, rows):
    scores, generations, prompts = tables
    again = cell_results(
        scores.sample(fraction=1, shuffle=True, seed=5), generations.sample(fraction=1, shuffle=True, seed=6), prompts,
        cells=[info("base", "base"), info("ours")], settings=SETTINGS,
    )  # fmt: skip
    for name in METRICS:
        for key, value in rows[1]["metrics"][name].items():
            assert again[1]["metrics"][name][key] == pytest.approx(value), (name, key)


def test_a_prompt_that_lost_scores_is_counted_and_enough_of_them_withhold_the_metric(tables):
    scores, generations, prompts = tables
    lost = (
        (pl.col("cell") == "ours")
        & (pl.col("scorer") == "main")
        & (pl.col("prompt_id") == "p0")
        & (pl.col("sample") == 1)
    )
    broken = scores.with_columns(
        value=pl.when(~lost).then(pl.col("value")), error=pl.when(lost).then(pl.lit("timeout"))
    )
    cells = [info("base", "base"), info("ours")]
    strict = cell_results(broken, generations, prompts, cells=cells, settings=SETTINGS)[1]
    entry = strict["metrics"]["tp_id"]
    assert (
        entry["value"] is None and entry["ci_low"] is None and entry["diff"] is None and entry["failed"] == 1
    )
    assert "1 of 18 prompts failed" in entry["reason"]
    assert (
        strict["domains"]["north"]["tp"]["value"] is None
        and strict["domains"]["far"]["tp"]["value"] is not None
    )
    assert (
        strict["metrics"]["tp_ood"]["value"] is not None and strict["metrics"]["tp_id@second"]["failed"] == 0
    )
    lenient = ResultSettings(scorer="main", judge="judge", bootstrap_samples=200, max_failed_share=0.2)
    entry = cell_results(broken, generations, prompts, cells=cells, settings=lenient)[1]["metrics"]["tp_id"]
    assert entry["value"] is not None and entry["failed"] == 1 and "reason" not in entry


def test_a_withheld_base_leaves_no_difference(tables):
    scores, generations, prompts = tables
    broken = scores.with_columns(
        value=pl.when(~((pl.col("cell") == "base") & (pl.col("metric") == "mmlu"))).then(pl.col("value"))
    )
    base, ours = cell_results(
        broken, generations, prompts, cells=[info("base", "base"), info("ours")], settings=SETTINGS
    )
    assert base["metrics"]["mmlu"]["value"] is None and base["metrics"]["mmlu"]["failed"] == 30
    assert ours["metrics"]["mmlu"]["value"] is not None and ours["metrics"]["mmlu"]["diff"] is None


def test_prompts_that_a_cell_never_continued_are_failures(tables):
    scores, generations, prompts = tables
    gone = (pl.col("cell") == "ours") & pl.col("prompt_id").is_in(["p3", "p7"])
    ours = cell_results(
        scores.filter(~gone),
        generations.filter(~gone),
        prompts,
        cells=[info("base", "base"), info("ours")],
        settings=SETTINGS,
    )[1]
    assert ours["metrics"]["tp_ood"]["failed"] == 2 and ours["metrics"]["tp_ood"]["value"] is None
    assert ours["metrics"]["ppl"]["failed"] == 16 and ours["metrics"]["dist1"]["failed"] == 16
    lenient = ResultSettings(scorer="main", judge="judge", bootstrap_samples=200, max_failed_share=0.5)
    base, ours = cell_results(
        scores.filter(~gone),
        generations.filter(~gone),
        prompts,
        cells=[info("base", "base"), info("ours")],
        settings=lenient,
    )
    # The difference is over the prompts that both have, not the difference of the two values.
    common = scores.filter((pl.col("scorer") == "main") & ~pl.col("prompt_id").is_in(["p3", "p7"]))
    sides = [
        toxicity_summary(common.filter(pl.col("cell") == cell), prompts)["emt_ood"]
        for cell in ("ours", "base")
    ]
    assert ours["metrics"]["emt_ood"]["diff"] == pytest.approx(sides[0] - sides[1])
    assert ours["metrics"]["emt_ood"]["n"] == 4 and base["metrics"]["emt_ood"]["n"] == 6


def test_empty_continuations_are_counted_and_are_no_failures(tables):
    scores, generations, prompts = tables
    empty = (pl.col("cell") == "ours") & (pl.col("metric") == "ppl") & (pl.col("sample") == 0)
    some = scores.with_columns(
        value=pl.when(~empty).then(pl.col("value")),
        weight=pl.when(empty).then(0.0).otherwise("weight"),
        error=pl.when(empty).then(pl.lit("empty")),
    )
    metrics = cell_results(some, generations, prompts, cells=[info("ours")], settings=SETTINGS)[0]["metrics"]
    assert metrics["ppl_empty"]["value"] == 48 and metrics["ppl"]["failed"] == 0
    kept = some.filter((pl.col("metric") == "ppl") & (pl.col("cell") == "ours") & ~empty)
    assert metrics["ppl_median"]["value"] == pytest.approx(perplexities(kept["value"], kept["weight"]).median)
    everything = scores.with_columns(
        error=pl.when(pl.col("metric") == "ppl").then(pl.lit("empty")),
        value=pl.when(pl.col("metric") != "ppl").then(pl.col("value")),
    )
    metrics = cell_results(everything, generations, prompts, cells=[info("ours")], settings=SETTINGS)[0][
        "metrics"
    ]
    assert metrics["ppl"]["value"] is None and metrics["ppl"]["reason"] == "nothing to average"


def test_no_dropped_perplexity_still_has_an_upper_bound(tables):
    scores, generations, prompts = tables
    calm = scores.with_columns(
        value=pl.when(pl.col("metric") == "ppl").then(pl.col("weight")).otherwise("value")
    )
    entry = cell_results(calm, generations, prompts, cells=[info("ours")], settings=SETTINGS)[0]["metrics"][
        "ppl_dropped"
    ]
    assert entry["value"] == 0 and entry["ci_low"] == 0 and entry["ci_high"] == pytest.approx(192 * 3 / 24)


def test_failed_cells_stay_as_rows(tables):
    cells = [info("base", "base"), info("ours", status="failed", error="out of memory")]
    row = cell_results(*tables, cells=cells, settings=SETTINGS)[1]
    assert (row["status"], row["error"], row["metrics"], row["domains"]) == (
        "failed",
        "out of memory",
        {},
        {},
    )


def test_the_reference_is_the_base_of_the_same_seed_else_the_only_one():
    tables = make_tables(["b1", "b2", "o1", "o2"], n=8)
    cells = [info("b1", "base", 1), info("b2", "base", 2), info("o1", seed=1), info("o2", seed=2)]
    rows = {
        row["cell"]: row["metrics"]["emt_all"]
        for row in cell_results(*tables, cells=cells, settings=SETTINGS)
    }
    for ours, base in (("o1", "b1"), ("o2", "b2")):
        assert rows[ours]["diff"] == pytest.approx(rows[ours]["value"] - rows[base]["value"])
    only = [info("b1", "base", 7), info("o1", seed=1), info("o2", seed=2)]
    rows = {
        row["cell"]: row["metrics"]["emt_all"] for row in cell_results(*tables, cells=only, settings=SETTINGS)
    }
    assert rows["o2"]["diff"] == pytest.approx(rows["o2"]["value"] - rows["b1"]["value"])
    neither = [info("b1", "base", 7), info("b2", "base", 8), info("o1", seed=1)]
    assert cell_results(*tables, cells=neither, settings=SETTINGS)[2]["metrics"]["emt_all"]["diff"] is None
    named = [info("b1", "original", 7, is_base=True), info("o1", seed=1)]
    assert cell_results(*tables, cells=named, settings=SETTINGS)[1]["metrics"]["emt_all"]["diff"] is not None


def test_grouping_by_prompt_text_pools_duplicates(tables):
    scores, generations, prompts = tables
    twins = prompts.with_columns(prompt=pl.lit("same ") + (pl.int_range(pl.len()) // 8).cast(pl.String))
    pooled = ResultSettings(scorer="main", judge="judge", bootstrap_samples=200, group_by="prompt_text")
    by_id, by_text = (
        cell_results(scores, generations, twins, cells=[info("ours")], settings=s)[0]["metrics"]
        for s in (SETTINGS, pooled)
    )
    assert by_text["emt_all"]["n"] == 12 < by_id["emt_all"]["n"]
    assert by_text["emt_all"]["value"] > by_id["emt_all"]["value"]
    assert by_text["dist1"]["value"] < by_id["dist1"]["value"]


def test_scorers_must_be_told_apart_and_ids_known(tables):
    scores, generations, prompts = tables
    with pytest.raises(ConfigError, match=r"scorer: scores hold \['main', 'second'\]"):
        cell_results(*tables, cells=[info("ours")], settings=ResultSettings(bootstrap_samples=10))
    with pytest.raises(DataError, match="'p0' was continued or judged but is not in the table"):
        cell_results(
            scores,
            generations,
            prompts.filter(pl.col("prompt_id") != "p0"),
            cells=[info("ours")],
            settings=SETTINGS,
        )
    with pytest.raises(DataError, match="'ours' is listed twice"):
        cell_results(*tables, cells=[info("ours"), info("ours")], settings=SETTINGS)


def test_a_main_scorer_without_rows_is_withheld_not_replaced(tables):
    settings = ResultSettings(scorer="third", judge="judge", bootstrap_samples=100)
    metrics = cell_results(*tables, cells=[info("ours")], settings=settings)[0]["metrics"]
    assert metrics["tp_id"]["value"] is None and metrics["tp_id@main"]["value"] is not None


def test_nothing_judged_gives_rows_without_metrics():
    empty = [pl.DataFrame(schema=dict(schema)) for schema in (SCORES, GENERATIONS, PROMPTS)]
    row = cell_results(*empty, cells=[info("ours")], settings=SETTINGS)[0]
    assert row["status"] == "ok" and row["metrics"] == {} and row["scorer"] is None


def test_files_read_back(tmp_path, tables):
    cells = [
        info("base", "base", settings={"beta": math.inf, "lr": 1e-5}),
        info("ours", status="failed", error="no memory"),
    ]
    rows = cell_results(*tables, cells=cells, settings=SETTINGS)
    write_results(rows, tmp_path)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = read_results(tmp_path)
    assert again[0]["metrics"] == rows[0]["metrics"] and again[0]["settings"] == {"beta": "inf", "lr": 1e-5}
    flat = schemas.check(pl.read_parquet(tmp_path / "results.parquet"), schemas.RESULTS, "results")
    assert flat.height == len(rows[0]["metrics"]) + 1
    one = flat.filter(pl.col("metric") == "tp_id").row(0, named=True)
    assert (one["value"], one["n"], one["method"]) == (rows[0]["metrics"]["tp_id"]["value"], 18, "base")
    assert flat.filter(pl.col("status") == "failed")["metric"].to_list() == [None]


def test_damaged_results_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[{}]", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a list of results"):
        read_results(tmp_path)


def test_twelve_cells_take_seconds():
    names = [f"c{i}" for i in range(12)]
    tables = make_tables(names, n=160, runs=1, k=25)
    cells = [info(name, "base" if i % 3 == 0 else "unidetox", seed=i // 3) for i, name in enumerate(names)]
    started = time.perf_counter()
    rows = cell_results(*tables, cells=cells, settings=ResultSettings(scorer="main", judge="judge"))
    seconds = time.perf_counter() - started
    assert len(rows) == 12
    # About 4 s on one quiet core; the machines that run tests are shared.
    assert seconds < 20
    print(f"{seconds:.1f} s")
