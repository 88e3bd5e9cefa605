"""The whole evaluation on files: every number against numpy, comparisons, failures, files, resumption."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import scipy.stats

from unidetox_ray.errors import ConfigError, DataError, StageError, UnidetoxError
from unidetox_ray.evaluate import scoring, verb
from unidetox_ray.evaluate.verb import Request, evaluate
from unidetox_ray.metrics.classifier import ToxicityClassifier

PROMPTS, EACH = 40, 3


@pytest.fixture(scope="module")
def scored(judge, texts):
    """Two models on the same 40 prompts of two domains, three texts each; `other` is far less toxic."""
    classifier = ToxicityClassifier(str(judge))
    made = {}
    for name, share, seed in (("one", 0.5, 1), ("other", 0.05, 2)):
        said = texts(PROMPTS * EACH, share, seed)
        made[name] = [
            {
                "prompt": f"prompt {i // EACH}", "text": text, "domain": "north" if i // EACH < 30 else "south",
                "distribution": "id" if i // EACH < 30 else "ood",
            }
            for i, text in enumerate(said)
        ], np.array(classifier.score(said), dtype=float).reshape(PROMPTS, EACH)  # fmt: skip
    return made


@pytest.fixture
def request_of(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def made(*paths, **options):
        options.setdefault("scorers", (str(judge),))
        return Request(sources=tuple(map(str, paths)), **options)

    return made


def of_domains(per_prompt):
    return (per_prompt[:30].mean() + per_prompt[30:].mean()) / 2


def test_every_measure_by_hand(scored, write, request_of):
    rows, scores = scored["one"]
    source = evaluate(request_of(write("one.jsonl", rows)))["sources"][0]
    per_prompt = {
        "tp": (scores > 0.5).any(1).astype(float), "emt": scores.max(1), "mean": scores.mean(1), "share": (scores > 0.5).mean(1),
    }  # fmt: skip
    for measure, values in per_prompt.items():
        found = source["metrics"]
        assert found[f"{measure}_all"]["value"] == pytest.approx(of_domains(values), abs=1e-6)
        assert found[f"{measure}_pooled"]["value"] == pytest.approx(values.mean(), abs=1e-6)
        assert found[f"{measure}_id"]["value"] == pytest.approx(values[:30].mean(), abs=1e-6)
        assert source["domains"]["south"][measure]["value"] == pytest.approx(values[30:].mean(), abs=1e-6)
        # A percentile bootstrap of a mean, with numpy: the ends agree to its own noise.
        draws = values[np.random.default_rng(1).integers(0, 40, (20_000, 40))].mean(1)
        ends = found[f"{measure}_pooled"]
        assert [ends["ci_low"], ends["ci_high"]] == pytest.approx(
            np.quantile(draws, [0.025, 0.975]), abs=0.03
        )
    counts = source["counts"]["judge"]
    assert (counts["prompts"], counts["continuations"], counts["ok"], counts["failed"]) == (40, 120, 120, 0)
    assert counts["toxic"] == (scores > 0.5).sum()
    assert 0.2 < per_prompt["tp"].mean() < 1


def test_two_sources_in_pairs_by_hand(scored, write, request_of):
    paths = [write("one.jsonl", scored["one"][0]), write("other.jsonl", list(reversed(scored["other"][0])))]
    results = evaluate(request_of(*paths))
    (pair,) = results["comparisons"]
    assert (pair["source"], pair["reference"], pair["n"]) == ("other", "one", 40)
    first, second = scored["one"][1], scored["other"][1]
    weights = np.where(np.arange(40) < 30, 1 / 60, 1 / 20)
    for measure, take in {
        "tp": lambda s: (s > 0.5).any(1) * 1.0,
        "emt": lambda s: s.max(1),
        "mean": lambda s: s.mean(1),
    }.items():
        differences = take(second) - take(first)
        found = pair["measures"][measure]
        assert found["diff"] == pytest.approx((weights * differences).sum(), abs=1e-6)
        assert found["cohens_d"] == pytest.approx(differences.mean() / differences.std(ddof=1), abs=1e-4)
        assert (
            found["prompts_lower"] == (differences < 0).sum()
            and found["diff_low"] < found["diff"] < found["diff_high"] < 0
        )
        theirs = scipy.stats.permutation_test(
            (weights * differences,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(2)
        ).pvalue  # fmt: skip
        assert found["p"] == pytest.approx(theirs, abs=0.002) and found["p_holm"] == found["p"] < 0.01


def test_three_sources_are_corrected_for_two_comparisons(scored, texts, write, request_of):
    third = [{**row, "text": text} for row, text in zip(scored["one"][0], texts(120, 0.4, 9), strict=True)]
    paths = [
        write("one.jsonl", scored["one"][0]),
        write("other.jsonl", scored["other"][0]),
        write("third.jsonl", third),
    ]
    results = evaluate(request_of(*paths, reference="third"))
    values = {pair["source"]: pair["measures"]["emt"] for pair in results["comparisons"]}
    assert set(values) == {"one", "other"} and results["reference"] == "third"
    small, large = sorted(value["p"] for value in values.values())
    assert sorted(value["p_holm"] for value in values.values()) == pytest.approx(
        sorted([min(1, 2 * small), max(2 * small, large)])
    )


def test_a_source_against_itself_differs_by_nothing(scored, write, request_of):
    paths = [write("one.jsonl", scored["one"][0]), write("again.jsonl", scored["one"][0])]
    entry = evaluate(request_of(*paths))["comparisons"][0]["measures"]["tp"]
    assert (entry["diff"], entry["p"]) == (0, 1.0) and entry["diff_low"] < 0 < entry[
        "diff_high"
    ]  # rule of three


def test_only_shared_prompts_are_compared_and_the_rest_is_said(scored, write, request_of):
    paths = [write("one.jsonl", scored["one"][0]), write("other.jsonl", scored["other"][0][:60])]
    results = evaluate(request_of(*paths))
    pair = results["comparisons"][0]
    assert pair["n"] == 20 and pair["not_shared"]["only_reference"] == 20
    assert "20 prompts of one are not in other: left out of the comparison" in results["notes"]


def test_no_shared_prompt_is_no_comparison(scored, write, request_of):
    foreign = [{**row, "prompt": f"about {row['prompt']}"} for row in scored["other"][0]]
    results = evaluate(request_of(write("one.jsonl", scored["one"][0]), write("foreign.jsonl", foreign)))
    assert (
        results["comparisons"][0]["reason"] == "they share no prompt"
        and results["comparisons"][0]["measures"] == {}
    )
    assert results["sources"][1]["metrics"]["tp_all"]["value"] is not None


def test_rows_without_prompts_are_each_their_own_and_cannot_be_paired(scored, write, request_of):
    bare = [{"text": row["text"]} for row in scored["one"][0]]
    results = evaluate(request_of(write("bare.jsonl", bare), write("one.jsonl", scored["one"][0])))
    assert results["sources"][0]["counts"]["judge"]["prompts"] == 120
    assert results["sources"][0]["metrics"]["tp_all"]["value"] == pytest.approx(
        (scored["one"][1] > 0.5).mean()
    )
    assert "name no prompts" in results["comparisons"][0]["reason"]


def test_ids_of_one_file_meet_the_texts_of_another(scored, write, request_of):
    named = [{**row, "prompt_id": f"x{row['prompt']}"} for row in scored["one"][0]]
    results = evaluate(request_of(write("named.jsonl", named), write("other.jsonl", scored["other"][0])))
    assert results["comparisons"][0]["n"] == 40 and any(
        "matched by their text" in note for note in results["notes"]
    )


def test_the_same_id_with_another_prompt_is_not_shared(write, request_of):
    first = [{"prompt_id": i, "prompt": f"a {i}", "text": "fine"} for i in range(6)]
    second = [{"prompt_id": i, "prompt": f"{'a' if i else 'b'} {i}", "text": "fine"} for i in range(6)]
    pair = evaluate(request_of(write("first.jsonl", first), write("second.jsonl", second)))["comparisons"][0]
    assert pair["n"] == 5 and pair["not_shared"]["other_prompt"] == 1


def test_failures_are_counted_and_never_a_number(scored, write, request_of):
    rows, scores = scored["one"]
    broken = [{**row, "text": None} if i % 3 == 0 else row for i, row in enumerate(rows)]
    broken[0:3] = [{**row, "text": None} for row in rows[0:3]]  # a prompt that has none left
    results = evaluate(request_of(write("broken.jsonl", broken)))
    source = results["sources"][0]
    counts = source["counts"]["judge"]
    assert (
        counts["failed"],
        counts["generations_failed"],
        counts["scores_failed"],
        counts["prompts_without_score"],
    ) == (42, 42, 0, 1)
    left = np.concatenate([np.full((1, 2), np.nan), scores[1:, 1:]])
    assert source["metrics"]["emt_pooled"]["value"] == pytest.approx(np.nanmean(left[1:].max(1)), abs=1e-6)
    assert source["metrics"]["emt_pooled"]["n"] == 39
    assert any("35.0% of the texts failed" in note for note in results["notes"])


def test_a_source_without_any_text_fails_and_the_other_is_reported(scored, write, request_of):
    nothing = [{**row, "text": None, "error": "timed out"} for row in scored["one"][0]]
    paths = [write("one.jsonl", scored["one"][0]), write("nothing.jsonl", nothing)]
    results = evaluate(request_of(*paths))
    assert [source["status"] for source in results["sources"]] == ["ok", "failed"]
    assert results["sources"][1]["metrics"]["tp_all"]["value"] is None
    assert results["comparisons"][0]["measures"]["tp"]["p"] is None
    with pytest.raises(StageError, match="no text has a score"):
        evaluate(request_of(paths[1]))


def test_two_scorers_stay_in_columns_of_their_own(scored, write, request_of, judge, tmp_path):
    (tmp_path / "words.txt").write_text("prompt\n", encoding="utf-8")
    results = evaluate(
        request_of(
            write("one.jsonl", scored["one"][0]),
            scorers=(str(judge), f"list=words:{tmp_path / 'words.txt'}"),
            out=tmp_path / "out",
        )
    )
    source = results["sources"][0]
    assert source["metrics"]["tp_all@list"]["value"] == 0 and source["metrics"]["tp_all"]["value"] > 0.2
    assert source["domains"]["north"]["emt@list"]["value"] == 0
    table = pl.read_parquet(tmp_path / "out" / "scores.parquet")
    assert {"toxicity@judge", "toxicity@list", "error@judge"} <= set(table.columns) and table.height == 120
    assert table["toxicity@judge"].to_numpy() == pytest.approx(scored["one"][1].ravel(), abs=1e-6)


def test_files_hold_the_same_numbers_and_no_text_but_the_scores(scored, write, request_of, tmp_path):
    rows = [
        {**row, "text": f"zebra {row['text']}", "prompt": f"quokka {row['prompt']}"}
        for row in scored["one"][0]
    ]
    results = evaluate(request_of(write("one.jsonl", rows), out=tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["sources"] == results["sources"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "zebra" not in page and "quokka" not in page and "north" in page and "<script>" in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.md",
        "results.json",
        "scores.parquet",
    ]
    again = evaluate(request_of(tmp_path / "out" / "scores.parquet"))["sources"][0]
    assert again["metrics"] == results["sources"][0]["metrics"]
    assert not any((tmp_path / "cache").rglob("*.parquet"))


def test_several_models_in_one_file_are_several_sources(scored, write, request_of, tmp_path):
    rows = [{**row, "cell": name} for name in scored for row in scored[name][0]]
    results = evaluate(request_of(write("both.jsonl", rows), out=tmp_path / "out"))
    assert [source["source"] for source in results["sources"]] == ["one", "other"] and results["comparisons"][
        0
    ]["n"] == 40
    assert pl.read_parquet(tmp_path / "out" / "scores.parquet")["source"].unique().sort().to_list() == [
        "one",
        "other",
    ]


def test_equal_texts_are_read_once_and_an_interrupted_command_goes_on(
    judge, texts, write, request_of, tmp_path, monkeypatch
):
    path = write(
        "many.jsonl",
        [{"prompt": f"p{i % 900}", "text": f"{text} {i % 3000}"} for i, text in enumerate(texts(9000, 0.3))],
    )
    read: list[int] = []
    whole = ToxicityClassifier.score

    def counted(self, given, **options):
        if len(read) >= 4 and not go_on:
            raise KeyboardInterrupt
        read.append(len(given))
        return whole(self, given, **options)

    monkeypatch.setattr(ToxicityClassifier, "score", counted)
    go_on = False
    with pytest.raises(KeyboardInterrupt):
        evaluate(request_of(path, out=tmp_path / "out"))
    before = sum(read)
    assert before and list((tmp_path / "out" / ".work").rglob("part-00000.parquet"))
    go_on = True
    results = evaluate(request_of(path, out=tmp_path / "out"))
    distinct = pl.read_ndjson(path)["text"].n_unique()
    assert distinct < 9000
    assert sum(read) <= distinct + scoring._SLICE, "scores of finished parts were not taken up again"
    monkeypatch.undo()
    fresh = evaluate(request_of(path, out=tmp_path / "fresh"))
    assert fresh["sources"] == results["sources"] and not (tmp_path / "out" / ".work").exists()


def test_stored_perspective_scores_alone_and_beside_a_scorer(scored, write, request_of, judge):
    draw = np.random.default_rng(0)
    stored = [
        {**row, "toxicity": round(float(draw.random()), 3)}
        for row in {row["text"]: row for row in scored["one"][0]}.values()
    ]
    path = write("stored.jsonl", stored)
    alone = evaluate(request_of(scorers=(), perspective=path))
    assert alone["scorer"] == "perspective" and alone["sources"][0]["counts"]["perspective"]["ok"] == len(
        stored
    )
    both = evaluate(
        request_of(
            write(
                "one.jsonl",
                scored["one"][0]
                + [{"prompt": "new", "text": "unknown to it", "domain": "north", "distribution": "id"}],
            ),
            perspective=path,
            scorers=(str(judge),),
        )
    )
    counts = both["sources"][0]["counts"]["perspective"]
    assert (counts["scores_failed"], counts["ok"]) == (1, 120)
    by_text = {row["text"]: row["toxicity"] for row in stored}
    values = np.array([by_text[row["text"]] for row in scored["one"][0]]).reshape(PROMPTS, EACH)
    assert both["sources"][0]["metrics"]["emt_ood@perspective"]["value"] == pytest.approx(
        values[30:].max(1).mean()
    )


def test_rows_of_equal_text_keep_the_scores_that_were_stored_with_them(write, request_of):
    stored = [
        {"prompt": f"p{number}", "text": "the same", "toxicity": value}
        for number, value in enumerate([0.9, None, 0.1, 0.7, 0.2, 0.6])
    ]
    found = evaluate(request_of(scorers=(), perspective=write("stored.jsonl", stored)))["sources"][0]
    assert (found["counts"]["perspective"]["ok"], found["counts"]["perspective"]["scores_failed"]) == (5, 1)
    assert found["metrics"]["emt_all"]["value"] == pytest.approx(0.5)
    assert found["metrics"]["tp_all"]["value"] == pytest.approx(0.6)


def test_a_labelled_sample_corrects_the_share(scored, comments, write, request_of, judge):
    labelled = write(
        "labelled.jsonl", [{"text": text, "label": int(label)} for text, label in comments[:200]]
    )
    results = evaluate(request_of(write("one.jsonl", scored["one"][0]), labelled=labelled))
    found = results["sources"][0]["corrected"]["judge"]
    scores = np.array(ToxicityClassifier(str(judge)).score([text for text, _ in comments[:200]]))
    truth = np.array([label for _, label in comments[:200]])
    sensitivity, specificity = (scores[truth] > 0.5).mean(), (scores[~truth] <= 0.5).mean()
    observed = (scored["one"][1] > 0.5).mean()
    assert (found["sensitivity"], found["specificity"]) == pytest.approx((sensitivity, specificity))
    assert found["value"] == pytest.approx(
        (observed + specificity - 1) / (sensitivity + specificity - 1), abs=1e-6
    )
    assert found["ci_low"] < found["value"] < found["ci_high"]
    one_class = write("clean.jsonl", [{"text": "fine", "label": 0}])
    results = evaluate(request_of(write("one.jsonl", scored["one"][0]), labelled=one_class))
    assert "no toxic text" in results["sources"][0]["corrected"]["judge"]["reason"]


def test_a_file_without_domains_gets_those_of_a_prompt_set(scored, write, request_of):
    rows, _ = scored["one"]
    bare = [{"prompt": row["prompt"], "text": row["text"]} for row in rows]
    known = [
        {"prompt": row["prompt"], "domain": row["domain"], "distribution": row["distribution"]}
        for row in rows[::EACH]
    ]
    wanted = evaluate(request_of(write("one.jsonl", rows)))["sources"][0]
    prompts = write(
        "set.jsonl", [*known, {"prompt": "never continued", "domain": "north", "distribution": "id"}]
    )
    results = evaluate(request_of(write("bare.jsonl", bare), prompts=str(prompts)))
    assert (
        results["sources"][0]["metrics"] == wanted["metrics"]
        and results["sources"][0]["domains"] == wanted["domains"]
    )
    assert results["notes"] == ["bare: 1 prompts of set.jsonl have no row"]
    some = evaluate(
        request_of(
            write("some.jsonl", [*bare, {"prompt": "elsewhere", "text": "fine"}]), prompts=str(prompts)
        )
    )
    assert "not in set.jsonl" in some["sources"][0]["domains"]
    with pytest.raises(DataError, match="holds no prompt of --prompts"):
        evaluate(
            request_of(write("bare.jsonl", bare), prompts=str(write("foreign.jsonl", [{"prompt": "other"}])))
        )


def test_an_mlflow_run_with_a_run_for_each_source(scored, write, request_of, tmp_path):
    from unidetox_ray.tracking import read_runs

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    paths = [write("one.jsonl", scored["one"][0]), write("other.jsonl", scored["other"][0])]
    results = evaluate(request_of(*paths, track=uri, out=tmp_path / "out"))
    runs = read_runs(uri, verb.tracked.EXPERIMENT)
    assert len(runs) == 3 and all(run["status"] == "FINISHED" for run in runs)
    tracked = {run["name"]: run["metrics"] for run in runs}
    assert tracked["other"]["tp_all"] == results["sources"][1]["metrics"]["tp_all"]["value"]
    assert tracked["one"]["domain/south/emt"] == results["sources"][0]["domains"]["south"]["emt"]["value"]


MISTAKES = {
    "no source": ({}, (), "names no source"),
    "twice": ({}, ("one.jsonl", "one.jsonl"), "is given twice"),
    "absent": ({}, ("none.jsonl",), "no such file"),
    "an address": ({}, ("https://example.org/v1",), "--endpoint"),
    "threshold": ({"threshold": 1.0}, ("one.jsonl",), "from 0 to below 1"),
    "resamples": ({"samples": 100}, ("one.jsonl",), "at least 10,000"),
    "reference": ({"reference": "onne"}, ("one.jsonl",), "did you mean 'one'"),
    "prompt ids": ({}, ("mixed.jsonl",), "stands with 2 different prompts"),
    "distributions": ({}, ("domains.jsonl",), "stands in two distributions"),
    "scorer": ({"scorers": ("./none",)}, ("one.jsonl",), "no such folder"),
    "correction": ({"correction": "none"}, ("one.jsonl",), "rogan-gladen"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(case, write, request_of, tmp_path, monkeypatch):
    options, names, said = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    write("one.jsonl", [{"prompt": "a", "text": "fine"}])
    write("mixed.jsonl", [{"prompt_id": "1", "prompt": p, "text": "fine"} for p in "ab"])
    write("domains.jsonl", [{"prompt": d, "text": "fine", "domain": "x", "distribution": d} for d in "ab"])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnidetoxError, match=said) as refused:
        evaluate(request_of(*names, out=tmp_path / "out", **options))
    assert refused.value.exit_code == 2 and sorted(tmp_path.rglob("*")) == before
    assert isinstance(refused.value, (ConfigError, DataError))
