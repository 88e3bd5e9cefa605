"""The verb as a whole, on a real cluster: interrupted and resumed, every kind of folder opened as its card says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch
from many_models import build
from transformers import AutoModelForCausalLM, AutoTokenizer

from unidetox_ray.core.loop import LoopSettings, PlainStepper, train
from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.detoxify.run import detoxify
from unidetox_ray.errors import ConfigError
from unidetox_ray.families.loading import encode, load_model
from unidetox_ray.settings import ClusterSection
from unidetox_ray.stages.context import Silent

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def ray_session():
    from unidetox_ray.stages.cluster import connected

    with connected(ClusterSection(num_cpus=2)):
        yield


@pytest.fixture(scope="session")
def model(tokenizer, texts, tmp_path_factory) -> Path:
    """A Qwen3 of 32 dimensions, trained for seconds, with a card that names a licence."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    made = build("qwen3")
    rows = [[tokenizer.bos_token_id, *encode(tokenizer, text)][:48] for text in texts]
    settings = LoopSettings(steps=25, lr=5e-3, batch_size=8, compile="off")
    train(PlainStepper(made, settings), rows, tokenizer.eos_token_id, settings)
    made.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (folder / "LICENSE").write_text("Do as you like.\n")
    return folder


@pytest.fixture
def own(tmp_path, texts) -> Path:
    path = tmp_path / "own.csv"
    pl.DataFrame({"Text": texts[:20]}).write_csv(path)
    return path


class Stops(Silent):
    """A person who presses Ctrl-C when a piece of work of this name begins; what was said is kept."""

    def __init__(self, at: str = "") -> None:
        self.at, self.said = at, []

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def task(self, label: str, unit: str):
        if self.at and label.startswith(self.at):
            raise KeyboardInterrupt
        with super().task(label, unit) as advance:
            yield advance


SMALL = ("steps=4", "batch_size=4", "lr=1e-3", "evaluate.continuations=2", "evaluate.max_new_tokens=6")
MEASURED = {"prompts": "world", "scorer": "world", "clean": "world", "limit": 6}


def logits(opened):
    with torch.inference_mode():
        return opened.eval()(input_ids=torch.tensor([[5, 6, 7, 300]])).logits


def test_an_interrupted_command_goes_on_where_it_ended(ray_session, model, own, tmp_path):
    asked = Asked(model=str(model), corpus=str(own), out=tmp_path / "new", overrides=SMALL, **MEASURED)
    with pytest.raises(KeyboardInterrupt):
        detoxify(asked, Stops(at="scoring"))
    assert not (tmp_path / "new").exists()
    display = Stops()
    facts = detoxify(asked, display)
    assert any("finished by an earlier attempt" in line for line in display.said)
    assert any("batch of 4 in 4 texts at once" in line for line in display.said)
    # Nothing but the folder is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "own.csv"]
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "detoxify.json",
        "LICENSE",
    } <= names
    assert not names & {"manifest.json", "train_log.parquet", "settings.json", "adapter"}
    assert json.loads((tmp_path / "new" / "detoxify.json").read_text()) == json.loads(json.dumps(facts))
    before, after = (
        AutoModelForCausalLM.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(tmp_path / "new"),
    )
    assert type(after) is type(before) and 1e-4 < (logits(before) - logits(after)).abs().max() < 10
    assert AutoTokenizer.from_pretrained(tmp_path / "new")("a b")["input_ids"]
    assert (
        facts["base"]["licence"] == "mit"
        and facts["corpus"]["texts"] == 6
        and facts["training"]["steps"] == 4
    )
    metrics = facts["evaluation"]["metrics"]
    assert {"tp_all", "emt_all", "clean_ppl"} <= metrics.keys()
    for entry in metrics.values():
        assert entry["before"]["n"] == entry["after"]["n"] and entry["after"]["diff_low"] is not None
    card = (tmp_path / "new" / "README.md").read_text()
    assert "license: " in card and "own.csv" in card and str(tmp_path) not in card
    with pytest.raises(ConfigError, match="already holds a model"):
        detoxify(asked, Stops())


def test_a_mistake_leaves_nothing(ray_session, model, own, tmp_path):
    """Found only once the device is known, when a work folder is there already."""
    overrides = (*SMALL, "max_length=65")
    with pytest.raises(ConfigError, match="the model knows 64 positions"):
        detoxify(
            Asked(
                model=str(model), corpus=str(own), out=tmp_path / "new", overrides=overrides, evaluate=False
            ),
            Stops(),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["own.csv"]


@pytest.mark.long
def test_adapters_leave_what_their_card_says(ray_session, model, own, tmp_path):
    from peft import AutoPeftModelForCausalLM

    common = {"model": str(model), "corpus": str(own), "overrides": SMALL, "evaluate": False}
    kept = detoxify(Asked(**common, out=tmp_path / "kept", adapter="lora", keep_adapter=True), Silent())
    detoxify(Asked(**common, out=tmp_path / "merged", adapter="lora"), Silent())
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "kept")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(adapted), logits(merged), atol=1e-4)
    assert (logits(merged) - logits(AutoModelForCausalLM.from_pretrained(model))).abs().max() > 1e-4
    assert not (tmp_path / "kept" / "model.safetensors").exists()
    assert kept["evaluation"] is None and "Not measured" in (tmp_path / "kept" / "README.md").read_text()
    place = tmp_path / "deeper" / "bottleneck"
    detoxify(Asked(**common, out=place, adapter="bottleneck"), Silent())
    values = json.loads((place / "bottleneck.json").read_text())
    assert (place / values["base"]["relative"]).resolve() == model.resolve()
    assert torch.isfinite(logits(load_model(str(place)))).all()


@pytest.mark.long
def test_the_command_distils_afresh_and_prints_what_came_out(model, tmp_path):
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    command = [
        sys.executable, "-m", "unidetox_ray", "detoxify", str(model), "--corpus", "fresh", "--toxic", "world", "--out", "new",
        "--prompts", "world", "--scorer", "world", "--limit", "6", *SMALL, "toxic.steps=3", "corpus.max_length=16",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("model: new\ntoxicity probability (TP): ")
        and "On these prompts" in done.stdout
    )
    assert "toxic model" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    facts = json.loads((tmp_path / "new" / "detoxify.json").read_text())
    assert facts["corpus"]["source"] == "distilled from tiny-qwen3 and a copy of it made toxic"
    assert facts["corpus"]["toxic_text"] == "built in" and facts["smoke_run_limit"] == 6
