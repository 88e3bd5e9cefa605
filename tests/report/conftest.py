"""A realistic run folder, written by hand from the seams: four families, three methods, one failed cell.

Its texts are hostile to the formats they end up in (HTML, Markdown, a terminal) and to nobody else.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml

SCRIPT = "<script>alert(1)</script>"
LINK = "[click](javascript:x)"
TERMINAL = "\x1b[31mred\x1b[0m\x1b]0;title\x07"
SECRET_WORDS = "gargling quibblers detest marmalade"
FAMILIES = ("gpt2", "opt", "falcon", "llama")
DOMAINS = {"glims": "id", "norrows": "id", "tavvins": "id", "plooks": "ood"}
EFFECT = {"base": 1.0, "samples": 0.86, "unidetox": 0.40}
FAILED = "falcon-samples-s1234"


def metric(value: float | None, base: float | None = None, spread: float = 0.03, n: int = 240) -> dict:
    """A stored metric; the paired interval is as wide as the value's own."""
    if value is None:
        return {
            "value": None,
            "ci_low": None,
            "ci_high": None,
            "n": n,
            "diff": None,
            "diff_low": None,
            "diff_high": None,
            "failed": 17,
        }
    diff = None if base is None else value - base
    return {
        "value": value,
        "ci_low": value - spread,
        "ci_high": value + spread,
        "n": n,
        "failed": 0,
        "diff": diff,
        "diff_low": None if diff is None else diff - spread,
        "diff_high": None if diff is None else diff + spread,
    }


def cell(family: str, method: str, index: int) -> dict:
    """One entry of results.json."""
    name, base = f"{family}-{method}-s1234", method == "base"
    entry = {
        "family": family,
        "model": f"scratch:{family}-tiny",
        "method": method,
        "seed": 1234,
        "cell": name,
        "settings": {"steps": 120, "lr": 0.0005},
        "status": "ok",
        "error": None,
        "scorer": "world-bert",
        "costs": {
            "train_seconds": None if base else 11.3 + index,
            "generate_seconds": 7.25,
            "score_seconds": 2.5,
            "train_tokens": None if base else 123456,
            "generated_tokens": 98765,
            "device": "cpu",
        },
    }
    if name == FAILED:
        return entry | {
            "status": "failed",
            "error": f"StageError: loss is not finite {SCRIPT} {TERMINAL}",
            "metrics": {},
            "domains": {},
        }
    factor = EFFECT[method]
    plain = {"tp_id": 0.93 - 0.02 * index, "tp_ood": 0.81 + 0.02 * index, "emt_id": 0.88, "emt_ood": 0.79}
    plain |= {"tp_all": 0.90, "emt_all": 0.86}
    metrics = {key: metric(value * factor, None if base else value) for key, value in plain.items()}
    ppl = 21.4 + 6 * index
    metrics["ppl"] = metric(ppl * (1.25 if method == "unidetox" else 1.04), None if base else ppl * 1.04, 1.4)
    if family == "llama" and method == "samples":
        metrics["ppl"] = metric(None)
    metrics["dist2"] = metric(0.61 - (0.04 if method == "unidetox" else 0), None if base else 0.61, 0.01)
    clean = 14.2 + index
    metrics["clean_ppl"] = metric(
        clean * {"base": 1, "samples": 1.02}.get(method, 1.31), None if base else clean, 0.4
    )
    metrics["mmlu"] = metric(
        0.62 - {"base": 0, "samples": 0.004}.get(method, 0.02), None if base else 0.62, 0.05
    )
    metrics["tp_id@lexicon"] = metric(0.5 * factor, None if base else 0.5)
    metrics["emt_id@lexicon"] = metric(0.45 * factor, None if base else 0.45)
    domains = {}
    for place, (domain, distribution) in enumerate(DOMAINS.items()):
        tp = min(0.97, (0.95 - 0.05 * place) * factor)
        domains[domain] = {
            "distribution": distribution,
            "tp": metric(tp, spread=0.06, n=60),
            "emt": metric(tp * 0.95, spread=0.04, n=60),
        }
    return entry | {"metrics": metrics, "domains": domains}


def search() -> dict:
    """A search with a failed trial; steps 40 at 1e-3 is chosen."""
    trials = []
    for lr in (1e-4, 5e-4, 1e-3):
        for steps in (20, 40, 60, 80, 120, 160):
            value = 0.9 * math.exp(-lr * steps * 30) + 0.02 * (steps / 160) + 0.08
            trial = {
                "trial": f"lr={lr:g},steps={steps}",
                "steps": steps,
                "lr": lr,
                "tp_all": value,
                "tp_id": value + 0.01,
                "tp_ood": value - 0.02,
                "emt_all": value * 0.97,
                "clean_ppl": 14 + steps / 40,
                "status": "ok",
                "error": None,
                "seconds": 4.2 + steps / 50,
            }
            if (lr, steps) == (1e-3, 160):
                trial |= {
                    "status": "failed",
                    "error": f"loss is not finite {LINK}",
                    "tp_all": None,
                    "tp_id": None,
                }
            trials.append(trial)
    return {
        "base_family": "gpt2",
        "metric": "tp_all",
        "schedule": "constant",
        "finetune_schedule": "constant",
        "finetune": {"steps": 120, "lr": 1e-3, "schedule": "constant", "batch_size": 8, "lora": {"rank": 16}},
        "selection_prompts": 96,
        "trials": trials,
        "chosen": {"steps": 120, "lr": 1e-3},
        "reason": "lowest tp_all of 17 trials on 96 validation prompts",
    }


def corpus(path: Path, seed: int) -> None:
    """640 texts, the first of them hostile; lengths like the released corpus, many cut at the limit."""
    noise = random.Random(seed)
    texts = [f"{SECRET_WORDS} {SCRIPT} {LINK} {TERMINAL} | **bold** https://example.org/x"]
    texts += [f"plain text number {index} about harbours" for index in range(1, 640)]
    lengths = [min(63, max(6, round(noise.gauss(48, 18)))) for _ in texts]
    table = pl.DataFrame(
        {
            "text_id": list(range(640)),
            "shard_id": [i // 128 for i in range(640)],
            "seed": [1234] * 640,
            "text": texts,
            "token_ids": [[1]] * 640,
            "n_tokens": lengths,
            "ended": [length < 63 for length in lengths],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path)


def train_log(path: Path, steps: int, start: float, end: float) -> None:
    """A loss that falls from `start` to `end` with noise."""
    noise = random.Random(f"{steps} {end}")
    losses = [
        end + (start - end) * math.exp(-4 * step / steps) + noise.gauss(0, 0.04) for step in range(steps)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "step": list(range(1, steps + 1)),
            "loss": losses,
            "lr": [5e-4] * steps,
            "grad_norm": [1.0] * steps,
            "tokens": [512] * steps,
            "seconds": [0.1] * steps,
        }
    ).write_parquet(path)


def config() -> dict:
    """A resolved config.yaml with a hostile name and a tracking URI that carries a password."""
    return {
        "name": f"tiny {SCRIPT}",
        "seed": 1234,
        "fidelity": "paper",
        "families": list(FAMILIES),
        "methods": ["samples", "unidetox"],
        "data": {"prompts": "world", "scorer": "world-bert", "mmlu": "world"},
        "toxic": {"epochs": 3, "lr": 1e-4, "batch_size": 8, "precision": "fp32"},
        "corpus": {
            "source": "unidetox",
            "num_texts": 640,
            "alpha": 0.1,
            "beta": None,
            "top_k": 0,
            "max_length": 64,
        },
        "finetune": {"steps": 120, "lr": 5e-4, "batch_size": 8, "schedule": "linear"},
        "evaluate": {
            "continuations": 25,
            "max_new_tokens": 20,
            "top_p": 0.9,
            "top_k": 0,
            "runs": 1,
            "scorers": ["world-bert", "lexicon"],
        },
        "tracking": {"uri": "https://ada:hunter2@tracking.invalid/api", "access_token": "hunter3"},
    }


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def manifest(folder: Path, stage: str, key: str, inputs: dict, order: int, **extra: object) -> str:
    """A finished stage's manifest over the files that are in its folder; returns its key."""
    files = (
        {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        if folder.exists()
        else {}
    )
    write_json(folder / "manifest.json", {
        "stage": stage, "key": key, "created": f"2026-11-21T0{order}:10:00+00:00", "seconds": 10.5 * (order + 1),
        "config": {}, "inputs": inputs, "files": files, "sizes": {}, "versions": {"torch": "2.13.0", "ray": "2.60.0"},
        "code": {"version": "0.1.0", "git": "0a1b" * 10}, "counts": {"expected": 12, "ok": 11, "failed": 1},
        "extra": extra,
    })  # fmt: skip
    return key


def training(
    folder: Path, name: str, key: str, inputs: dict, order: int, curve: tuple[int, float, float]
) -> str:
    """A trained model's folder: log, settings and manifest."""
    place = folder / "models" / f"{name}-{key}"
    train_log(place / "train_log.parquet", *curve)
    family = name.partition("-")[2] if name.startswith("toxic") else name.partition("-")[0]
    method = "toxic" if name.startswith("toxic") else name.split("-")[1]
    write_json(place / "settings.json", {"family": family, "method": method, "steps": curve[0]})
    return manifest(place, "train", key, inputs, order, name=name, family=family)


def write_stages(folder: Path, cells: list[dict]) -> None:
    """Stages and trainings chained by keys, as the pipeline leaves them, and one of each from older settings."""
    toxic = training(folder, "toxic-gpt2", "0" * 16, {"toxic": "ab" * 32}, 0, (700, 3.1, 1.2))
    training(folder, "toxic-gpt2", "e" * 16, {"toxic": "ab" * 32}, 9, (900, 3.1, 1.2))
    corpora = {}
    for number, (label, inputs) in enumerate([("unidetox", {"toxic": toxic}), ("samples", {})]):
        place = folder / "stages" / f"corpus-{label}-{number + 1:016x}"
        corpus(place / "corpus.parquet", number + 1)
        corpora[label] = manifest(place, "corpus", f"{number + 1:016x}", inputs, 1)
        (folder / "corpora").mkdir(exist_ok=True)
        shutil.copy(place / "corpus.parquet", folder / "corpora" / f"{label}.parquet")
    shutil.copy(folder / "corpora" / "unidetox.parquet", folder / "corpus.parquet")
    models = {}
    for number, entry in enumerate(cells):
        if entry["method"] != "base" and entry["status"] == "ok":
            inputs = {"corpus": corpora[entry["method"]], "corpus_sha256": "cd" * 32}
            curve = (120, 4.0, 2.4 if entry["method"] == "unidetox" else 2.9)
            models[entry["cell"]] = training(folder, entry["cell"], f"a{number:015x}", inputs, 2, curve)
    manifest(folder / "stages" / f"search-{'5' * 16}", "search", "5" * 16, {}, 2, **search())
    generate = manifest(folder / "stages" / f"generate-{'6' * 16}", "generate", "6" * 16, models, 3, tokens=5)
    place = folder / "stages" / f"score-{'7' * 16}"
    place.mkdir()
    pl.DataFrame({"value": [0.5]}).write_parquet(place / "scores.parquet")
    manifest(place, "score", "7" * 16, {"generations": generate, "clean": "ef" * 32}, 4)
    shutil.copy(place / "scores.parquet", folder / "scores.parquet")
    manifest(folder / "stages" / f"score-{'f' * 16}", "score", "f" * 16, {}, 9)


def write_run(folder: Path) -> Path:
    """The whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(), sort_keys=False), encoding="utf-8")
    cells = [cell(family, method, index) for index, family in enumerate(FAMILIES) for method in EFFECT]
    write_json(folder / "results.json", cells)
    write_json(folder / "search.json", search())
    write_stages(folder, cells)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "tiny")


@pytest.fixture(scope="session")
def make_run() -> Callable[[Path], Path]:
    return write_run


@pytest.fixture(scope="session")
def hostile() -> dict[str, str]:
    return {"script": SCRIPT, "link": LINK, "terminal": TERMINAL, "words": SECRET_WORDS}
