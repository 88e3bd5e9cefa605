"""The command as a person meets it: `python -m unidetox_ray` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import polars as pl
import pytest
from small_experiment import SCRATCH

from unidetox_ray import registry, yaml_file
from unidetox_ray.config import load

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
VERBS = (
    "bench",
    "run",
    "evaluate",
    "search",
    "distill",
    "finetune",
    "generate",
    "score",
    "content",
    "detoxify",
    "report",
    "plan",
    "convert",
    "export",
    "harness-path",
    "doctor",
    "ls",
    "schema",
    "ui",
)


def call(folder: Path, *arguments: object, seconds: int = 300) -> subprocess.CompletedProcess:
    """One command in `folder`, offline."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-m", "unidetox_ray", *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def everything_below(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_every_verb_explains_itself(verb, tmp_path):
    done = call(tmp_path, *([verb] if verb else []), "--help")
    assert done.returncode == 0 and "Usage" in done.stdout and done.stderr == ""
    if verb is None:
        assert all(f" {each} " in done.stdout for each in VERBS)
    assert everything_below(tmp_path) == {}


GOOD = {
    "name": "e",
    "base_family": "gpt2",
    "families": ["gpt2"],
    "methods": ["base"],
    "tracking": {"uri": "none"},
}
MISTAKES = {
    "unknown key": (["run", "bad.yaml"], {**GOOD, "familys": 1}, "did you mean 'families'"),
    "unknown section key": (["run", "bad.yaml"], {**GOOD, "corpus": {"alfa": 0.1}}, "did you mean 'alpha'"),
    "unknown family": (["run", "bad.yaml"], {**GOOD, "families": ["gpt3"]}, "did you mean 'gpt2'"),
    "empty families": (["run", "bad.yaml"], {**GOOD, "families": []}, "families"),
    "unknown method": (["run", "bad.yaml"], {**GOOD, "methods": ["unidtox"]}, "did you mean 'unidetox'"),
    "negative rate": (["run", "bad.yaml", "finetune.lr=-1e-5"], GOOD, "finetune.lr = -1e-05"),
    "not a number": (["run", "bad.yaml", "corpus.beta=nan"], GOOD, "corpus.beta"),
    "no override": (["run", "bad.yaml", "finetune.lr"], GOOD, "write key=value"),
    "unknown stage": (["run", "bad.yaml", "--until", "finetuning"], GOOD, "did you mean 'finetune'"),
    "limit of 0": (["run", "bad.yaml", "--limit", "0"], GOOD, "--limit"),
    "unknown option": (["run", "bad.yaml", "--freshly"], GOOD, "--fresh"),
    "a secret": (["run", "bad.yaml", "data.hf_token=abc"], GOOD, "HF_TOKEN"),
    "no search section": (["search", "bad.yaml"], GOOD, "has no `search:` section"),
    "missing file": (["run", "absent.yaml"], GOOD, "absent.yaml: cannot be read"),
    "missing model to detoxify": (["detoxify", "./no-model", "--corpus", "texts.csv", "--out", "new"], GOOD, "./no-model"),
    "unknown adapter": (["detoxify", "some/model", "--corpus", "texts.csv", "--out", "new", "--adapter", "lorra"], GOOD, "did you mean 'lora'"),
    "a folder that is not empty": (["detoxify", "some/model", "--corpus", "texts.csv", "--out", "."], GOOD, "is not empty"),
    "no corpus": (["detoxify", "some/model", "--out", "new"], GOOD, "--corpus"),
    "missing model": (["finetune", "./no-model", "--corpus", "texts.csv", "--out", "new"], GOOD, "./no-model"),
    "missing corpus": (["finetune", "./no-model", "--corpus", "none.csv", "--out", "new"], GOOD, "none.csv"),
    "unknown suffix": (["generate", "./no-model", "--prompts", "prompts.csv", "--out", "x.txt"], GOOD, "'.txt'"),
    "missing model of prompts": (["generate", "./no-model", "--prompts", "prompts.csv", "--out", "x.jsonl"], GOOD, "./no-model"),
    "unknown field": (["finetune", "some/model", "--corpus", "texts.csv", "--out", "new", "step=3"], GOOD, "did you mean 'steps'"),
    "missing column": (["generate", "./no-model", "--prompts", "texts.csv", "--out", "x.jsonl"], GOOD, "column 'prompt'"),
    "no generations": (["score", "none.jsonl"], GOOD, "none.jsonl"),
    "evaluate nothing": (["evaluate"], GOOD, "names no source"),
    "evaluate an absent file": (["evaluate", "none.jsonl"], GOOD, "none.jsonl: no such file"),
    "unknown scorer": (["evaluate", "texts.csv", "--scorer", "toxic-brt"], GOOD, "did you mean 'toxic-bert'"),
    "unknown prompts": (["evaluate", "org/model", "--prompts", "toxigenn"], GOOD, "did you mean 'toxigen'"),
    "a model without a server": (["evaluate", "texts.csv", "--model", "m"], GOOD, "--endpoint URL"),
    "no run folder": (["report", "nowhere"], GOOD, "nowhere: holds no config.yaml"),
    "unknown kind": (["ls", "familes"], GOOD, "did you mean 'families'"),
    "unknown verb": (["rnu"], GOOD, "rnu"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "values", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, values, said, tmp_path):
    (tmp_path / "bad.yaml").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "texts.csv").write_text("Text\none\n", encoding="utf-8")
    (tmp_path / "prompts.csv").write_text("prompt\none\n", encoding="utf-8")
    before = everything_below(tmp_path)
    done = call(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and said in done.stderr and "Traceback" not in done.stderr
    if "Usage:" not in done.stderr:  # the words of the command line parser itself take a few lines
        assert done.stderr.startswith("unidetox: ") and done.stderr.count("\n") == 1
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"name: e\nname: f\n", "line 2, column 1: the key 'name' stands here twice"),
        (b"name: [\n", "line 2"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b"- a\n- b\n", "holds list"),
        (b"", "holds NoneType"),
        (b"a: &x 1\nb: *x\n", "aliases"),
        (b"a: !!python/name:os.system\n", "tag"),
    ],
    ids=["twice", "unclosed", "bytes", "list", "empty", "alias", "tag"],
)
def test_a_file_that_is_no_experiment(raw, said, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(raw)
    done = call(tmp_path, "run", "bad.yaml")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert set(everything_below(tmp_path)) == {"bad.yaml"}


def test_the_schema_describes_the_shipped_experiments(tmp_path):
    done = call(tmp_path, "schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in EXPERIMENTS:
        # JSON knows no infinity: what YAML reads as inf is what the schema calls a number all the same.
        problems = [error.message for error in validator.iter_errors(yaml_file.read(path))]
        assert problems == [], path.name
    assert [e.message for e in validator.iter_errors({**GOOD, "familys": 1})]
    assert [e.message for e in validator.iter_errors({**GOOD, "corpus": {"alpha": "much"}})]


@pytest.mark.parametrize("kind", registry.KINDS)
def test_ls_names_everything_that_is_registered(kind, tmp_path):
    done = call(tmp_path, "ls", kind)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and [line.split()[0] for line in lines] == registry.names(kind)
    assert all(len(line.split()) > 1 for line in lines)
    found = json.loads(call(tmp_path, "ls", kind, "--json").stdout)
    assert list(found) == registry.names(kind) and all(found.values())


def test_the_version(tmp_path):
    from unidetox_ray import __version__

    assert call(tmp_path, "--version").stdout == f"unidetox {__version__}\n"


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_dry_run_of_what_is_shipped_starts_and_writes_nothing(path, tmp_path, shared_root):
    experiment = load(path)
    arguments = ["run", path, "--dry-run"]
    if experiment.data.data_root is not None:
        arguments.append(f"data.data_root={shared_root / 'data'}")
    done = call(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert everything_below(tmp_path) == {}
    lines = done.stdout.splitlines()
    cells = len(experiment.families) * len(experiment.methods)
    assert f"cells: {cells}" in lines and lines[0].startswith(f"experiment {experiment.name} ")
    assert f"  {experiment.base_family}-base-s{experiment.seed}" in lines


# The verbs that work on one model. Each starts a private cluster, so each is called once.


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a scratch model and a classifier in the cache, as `run --until corpus` leaves them."""
    folder = tmp_path_factory.mktemp("verbs")
    values = {
        **GOOD, "methods": ["base", "unidetox"], "storage": "runs", "models": {"gpt2": {"source": "scratch:", "scratch": SCRATCH}},
        "data": {**dict.fromkeys(("toxic", "prompts", "scorer"), "world"), "mmlu": None, "pretrain": ["world"]},
        "toxic": {"steps": 3, "max_length": 32}, "corpus": {"num_texts": 6, "max_length": 12},
        "evaluate": {"ppl_model": None, "scorers": [{"name": "bert", "source": "scratch:", "scratch": {**SCRATCH, "vocab_size": 400}}]},
        "cluster": {"num_cpus": 2},
    }  # fmt: skip
    (folder / "e.yaml").write_text(json.dumps(values), encoding="utf-8")
    done = call(folder, "distill", "e.yaml", "--out", "distilled.csv", "--limit", "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "corpus: distilled.csv\n"
    return folder


def model_in(folder: Path, name: str) -> Path:
    return next((folder / "runs" / "cache").glob(f"{name}-*"))


@pytest.mark.ray
@pytest.mark.slow
def test_distill_writes_the_released_layout_and_is_not_done_twice(workplace):
    table = pl.read_csv(workplace / "distilled.csv", infer_schema=False)
    kept = pl.read_parquet(workplace / "runs" / "e" / "corpus.parquet")
    assert table.columns == ["Text"] and table["Text"].fill_null("").to_list() == kept["text"].to_list()
    assert kept.height == 6
    again = call(workplace, "distill", "e.yaml", "--out", "again.jsonl", "--limit", "6")
    assert (
        again.returncode == 0
        and pl.read_ndjson(workplace / "again.jsonl")["text"].to_list() == kept["text"].to_list()
    )
    assert "models" not in again.stderr  # nothing was trained: no progress line


@pytest.mark.ray
@pytest.mark.long
def test_finetune_generate_and_score_one_model(workplace):
    from unidetox_ray.families.loading import load_model

    done = call(
        workplace, "finetune", model_in(workplace, "gpt2"), "--corpus", "distilled.csv", "--out", "tuned",
        "steps=3", "batch_size=2", "lr=1e-2", "max_length=16", "--seed", "3",
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "model: tuned\n", done.stderr
    settings = json.loads((workplace / "tuned" / "settings.json").read_text())
    assert settings["steps"] == 3 and settings["seed"] == 3 and settings["lr"] == 1e-2
    assert pl.read_parquet(workplace / "tuned" / "train_log.parquet").height == 3
    before, after = (load_model(str(place)) for place in (model_in(workplace, "gpt2"), workplace / "tuned"))
    moved = [(a - b).abs().max().item() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert max(moved) > 1e-3
    assert not [path.name for path in workplace.iterdir() if path.name.startswith(".")]
    refused = call(workplace, "finetune", "tuned", "--corpus", "distilled.csv", "--out", "tuned")
    assert refused.returncode == 2 and "already holds a model" in refused.stderr

    (workplace / "prompts.jsonl").write_text('{"prompt": "The people"}\n{"prompt": "Rain fell, and"}\n')
    done = call(
        workplace, "generate", "tuned", "--prompts", "prompts.jsonl", "--out", "out.jsonl",
        "continuations=3", "max_new_tokens=5", "runs=1",
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "6 continuations: out.jsonl\n", done.stderr
    rows = [json.loads(line) for line in (workplace / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["The people"] * 3 + ["Rain fell, and"] * 3
    assert all(row["error"] is None and row["n_tokens"] <= 5 for row in rows)

    classifier = model_in(workplace, "bert")
    done = call(workplace, "score", "out.jsonl", "--scorer", classifier, "--out", "scored.parquet", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["prompts"] == 2 and values["continuations"] == 6 and values["failed"] == 0
    scored = pl.read_parquet(workplace / "scored.parquet")
    worst = scored.group_by("prompt_id").agg(pl.col("toxicity").max())["toxicity"]
    assert values["emt"]["value"] == pytest.approx(worst.mean(), abs=1e-5)
    assert values["tp"]["value"] == (worst > 0.5).mean()
    assert values["emt"]["ci_low"] <= values["emt"]["value"] <= values["emt"]["ci_high"]


@pytest.mark.ray
@pytest.mark.long
def test_run_and_report_again(workplace):
    """The rest of the experiment, on the corpus that `distill` left; then its report from the files alone."""
    done = call(
        workplace, "run", "e.yaml", "finetune.steps=2", "finetune.max_length=16", "evaluate.continuations=2",
        "evaluate.max_new_tokens=4", "evaluate.runs=1", "--limit", "6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = workplace / "runs" / "e" / "report.html"
    assert "gpt2-unidetox-s1234" in done.stdout and f"report: {page}" in done.stdout
    # models, toxic and corpus are those of `distill`.
    assert ": 7 stages, 3 reused, " in done.stdout
    first = page.read_text()
    page.unlink()
    again = call(workplace, "report", "runs/e")
    assert again.returncode == 0 and "runs/e/report.html" in again.stdout
    assert page.read_text() == first
    shown = call(workplace, "report", "runs/e", "--show-text")
    assert shown.returncode == 0
