"""`bench pipeline` on a very small experiment: both sides make the same, and each stage is timed on both."""

import pytest
import yaml

from unidetox_ray.bench.options import Options
from unidetox_ray.bench.pipeline import _experiment
from unidetox_ray.bench.verb import bench
from unidetox_ray.errors import ConfigError

SCRATCH = {
    "source": "scratch:",
    "scratch": {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 400, "steps": 20},
}
SMALL = {
    "name": "small", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base", "unidetox"],
    "models": {"gpt2": SCRATCH},
    "data": {"toxic": "world", "prompts": "world", "clean": "world", "mmlu": "world", "scorer": "world", "pretrain": ["world"]},
    "toxic": {"steps": 6, "max_length": 64},
    "corpus": {"max_length": 16},
    "finetune": {"steps": 8, "lr": 1.0e-3, "batch_size": 4, "max_length": 32, "schedule": "constant"},
    "evaluate": {
        "runs": 1, "continuations": 3, "max_new_tokens": 6, "ppl_model": "gpt2",
        "scorers": [
            {"name": "bert", "source": "scratch:", "scratch": {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 300, "steps": 20}}
        ],
    },
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.mark.ray
@pytest.mark.long
def test_plain_calls_make_what_ray_makes(small, tmp_path):
    options = Options(experiment=str(small), texts=8, cache=tmp_path / "cache")
    record = bench("pipeline", options).as_dict()
    assert record["same_text"] is True and record["corpus_texts"] == 8 and record["cells"] == 2
    assert record["ratio_to_plain"] == pytest.approx(record["seconds"] / record["plain_seconds"], rel=2e-3)
    assert set(record["plain_stages"]) == set(record["stages"]) - {"models"}
    assert all(seconds > 0 for seconds in record["plain_stages"].values())
    assert sum(record["plain_stages"].values()) <= record["plain_seconds"] * 1.01
    # 2 cells x 8 prompts x 3 continuations, by the classifier and by the judge; 8 clean texts and 8 questions a cell.
    assert record["judgements"] == 2 * (8 * 3 * 2 + 8 + 8)
    assert 0 < record["plain_training_loops"] < record["plain_seconds"] and record["training_loops"] > 0
    assert record["warmup_seconds"] > 0 and record["peak_gib"] > 0
    assert (
        len(list((tmp_path / "cache").iterdir())) >= 2
    )  # the language model and the classifier, for the next time


def test_experiments_that_cannot_be_compared_are_refused(small, tmp_path):
    options = Options(experiment=str(small))
    assert _experiment(options, tmp_path).limit is None
    chosen = _experiment(Options(experiment=str(small), actors=3, texts=5), tmp_path)
    assert chosen.cluster.corpus_actors == 3 and chosen.cluster.concurrent_cells == 3 and chosen.limit == 5
    for change, words in (
        ({"finetune": {**SMALL["finetune"], "adapter": "lora"}}, "full-parameter training"),
        ({"toxic": {**SMALL["toxic"], "deepspeed": {"stage": 1}}}, "full-parameter training"),
        ({"methods": ["base"]}, "no corpus method"),
    ):
        small.write_text(yaml.safe_dump({**SMALL, **change}))
        with pytest.raises(ConfigError, match=words):
            _experiment(options, tmp_path)
