"""Rows of docs/fidelity.md that a setting's value or a whole run decides, and the table itself."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from unidetox_ray.artifacts import RunFolder
from unidetox_ray.config import resolve
from unidetox_ray.core.loop import LoopSettings, PlainStepper, adamw, rows_at, train
from unidetox_ray.data import hub
from unidetox_ray.data.base import Options, Request
from unidetox_ray.errors import ConfigError, DataError, ModelError
from unidetox_ray.families.loading import load_model, load_tokenizer
from unidetox_ray.metrics.classifier import ToxicityClassifier
from unidetox_ray.metrics.content_classifier import ContentClassifier
from unidetox_ray.single import context_of
from unidetox_ray.stages.cells import cells_of
from unidetox_ray.stages.context import Context, Silent
from unidetox_ray.stages.finetune import cell_job
from unidetox_ray.stages.training import loop_settings

VALUES = {
    "name": "fidelity",
    "base_family": "gpt2",
    "families": ["gpt2", "opt"],
    "methods": ["base", "samples", "unidetox"],
}
BASES = {
    family: {"path": "nowhere", "revision": None, "key": f"key-{family}", "family": family, "name": family}
    for family in ("gpt2", "opt")
}
ROWS = [[1, 5, 9, 3], [1, 7, 2], [1, 4, 4, 4, 8, 2], [1, 6], [1, 9, 9, 2], [1, 3, 5, 7, 2]]


def experiment(*changes: str, **values):
    return resolve({**VALUES, **values}, changes)


def tiny() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=16, **off))


def names_in(path: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))


def test_every_row_of_the_table_names_tests_that_exist(root):
    rows = re.findall(r"^\| (4\.1|\d+) \|.*\| ([^|]+) \|$", (root / "docs" / "fidelity.md").read_text(), re.M)
    assert [name for name, _ in rows] == ["4.1", *map(str, range(1, 38))]
    for row, cell in rows:
        file, named = None, 0
        for quoted in re.findall(r"`([^`]+)`", cell):
            if quoted.endswith(".py"):
                file = root / "tests" / quoted
            else:
                assert file is not None, f"row {row}: no file before {quoted}"
                assert quoted in names_in(file), f"row {row}: {file.name} has no {quoted}"
                named += 1
        assert named and "no test" not in cell, f"row {row}"


# Row 12: what the released code takes from its library without saying so.


@pytest.mark.parametrize("fidelity", ["paper", "as_released"])
@pytest.mark.parametrize("name", ["toxic", "finetune"])
def test_the_silent_recipe_is_the_default_of_both_trainings(fidelity, name):
    section = getattr(experiment(f"fidelity={fidelity}"), name)
    assert (section.schedule, section.max_grad_norm, section.weight_decay) == ("linear", 1.0, 0.0)
    assert section.dropout is None and section.checkpoint_every == 0
    loop = loop_settings(section, steps=4, seed=1)
    optimizer = adamw([torch.nn.Parameter(torch.zeros(2))], loop).defaults
    assert (optimizer["betas"], optimizer["eps"], optimizer["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.0)
    assert optimizer["lr"] == section.lr and (loop.schedule, loop.max_grad_norm) == ("linear", 1.0)


def first_moments(**changes) -> tuple[float, float]:
    """(norm that the log shows, norm of what the optimiser was given) of one step."""
    loop = LoopSettings(steps=1, lr=1e-3, batch_size=6, **changes)
    stepper = PlainStepper(tiny(), loop)
    log = train(stepper, ROWS, 0, loop)
    moments = [state["exp_avg"] for state in stepper.optimizer.state.values()]
    return log.grad_norm[0], float(torch.linalg.vector_norm(torch.cat([m.flatten() for m in moments]))) / 0.1


def test_gradients_are_clipped_to_max_grad_norm_and_logged_before():
    shown, _ = first_moments(max_grad_norm=1e9)
    for limit in (shown / 3, shown / 50):
        before, given_on = first_moments(max_grad_norm=limit)
        assert before == pytest.approx(shown, rel=1e-5) and given_on == pytest.approx(limit, rel=1e-4)
    assert first_moments(max_grad_norm=2 * shown)[1] == pytest.approx(shown, rel=1e-4)


def test_weight_decay_moves_what_no_gradient_reaches():
    """Positions that no text is long enough for stay as they were, unless weights decay."""

    def positions(**changes):
        loop = LoopSettings(steps=3, lr=1e-2, batch_size=6, **changes)
        stepper = PlainStepper(tiny(), loop)
        train(stepper, ROWS, 0, loop)
        return stepper.model.transformer.wpe.weight.detach()[8:]

    before = tiny().transformer.wpe.weight.detach()[8:]
    assert torch.equal(positions(), before)
    assert torch.allclose(
        positions(weight_decay=0.5), before * (1 - 5e-3) * (1 - 5e-3 * 2 / 3) * (1 - 5e-3 / 3)
    )


# Row 14: why a decaying rate needs one training per step count.


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_shorter_linear_training_is_no_checkpoint_of_a_longer_one(schedule):
    def after_10(steps):
        loop = LoopSettings(steps=steps, lr=1e-2, batch_size=4, seed=3, schedule=schedule)
        stepper, kept = PlainStepper(tiny(), loop), []
        train(
            stepper, ROWS, 0, loop, stops=[10],
            on_stop=lambda *_: kept.extend(p.detach().clone() for p in stepper.model.parameters()),
        )  # fmt: skip
        return torch.cat([parameter.flatten() for parameter in kept])

    short, checkpoint = after_10(10), after_10(20)
    assert torch.equal(short, checkpoint) is (schedule == "constant")
    assert schedule == "constant" or float((short - checkpoint).abs().max()) > 1e-3


# Rows 15 and 16: seeds and batch sizes.


def test_seeds_make_cells_of_their_own_and_have_one_default():
    one = experiment()
    assert (one.seed, one.all_seeds) == (1234, (1234,))
    assert (one.toxic.seed, one.corpus.seed, one.evaluate.seed) == (123, 1234, 42)
    several = experiment(seeds=[42, 1234, 7])
    names = [cell.name for cell in cells_of(several, BASES)]
    assert names == [
        f"{family}-{end}"
        for family in ("gpt2", "opt")
        for end in ["base-s42", *(f"{method}-s{seed}" for method in ("samples", "unidetox") for seed in (42, 1234, 7))]
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="names a seed twice"):
        experiment(seeds=[7, 7])


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    root = tmp_path_factory.mktemp("fidelity")
    return Context(experiment(seeds=[42, 1234]), RunFolder(root, "fidelity", root / "cache"))


def corpus_with(sha256: str, key: str = "k"):
    return Path("corpus"), SimpleNamespace(key=key, extra={"sha256": sha256})


def test_a_seed_reaches_the_order_of_the_texts(context):
    cells = [cell for cell in cells_of(context.experiment, BASES) if cell.method.label == "unidetox"][:2]
    jobs = [cell_job(context, cell, context.experiment.finetune, corpus_with("0" * 64)) for cell in cells]
    assert [job.loop["seed"] for job in jobs] == [42, 1234] == [job.settings["seed"] for job in jobs]
    orders = [rows_at(0, 640, LoopSettings(**job.loop)) for job in jobs]
    assert orders[0] != orders[1] and jobs[0].key != jobs[1].key


@pytest.mark.parametrize("fidelity", ["paper", "as_released"])
def test_a_batch_size_has_one_default(fidelity, tmp_path):
    found = experiment(f"fidelity={fidelity}")
    assert (found.toxic.batch_size, found.finetune.batch_size) == (4, 8)
    # The verb for one model and the loop below have none of their own.
    verb = context_of(tmp_path / "out", [], "finetune", Silent()).experiment.finetune
    assert verb.batch_size == 8 and loop_settings(verb, steps=1, seed=1).batch_size == 8
    with pytest.raises(TypeError, match="batch_size"):
        LoopSettings(steps=1, lr=1e-5)


# Rows 7 and 29: work is found by what it is made from.

trainings = st.tuples(
    st.sampled_from([5e-5, 1e-5, 1e-4, 0.1]),
    st.sampled_from([100, 1000, 3000]),
    st.integers(0, 3),
    st.sampled_from(["0" * 64, "1" * 64]),
    st.sampled_from(["linear", "constant"]),
)


@given(st.lists(trainings, min_size=2, max_size=12))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_settings_never_share_a_folder(context, chosen):
    """Rate, steps, seed, corpus, schedule: the released code's file names lack three of them."""
    cell = next(cell for cell in cells_of(context.experiment, BASES) if cell.kind == "corpus")
    folders = {}
    for lr, steps, seed, sha256, schedule in chosen:
        cell.seed = seed
        section = context.experiment.finetune.model_copy(
            update={"lr": lr, "steps": steps, "schedule": schedule}
        )
        job = cell_job(context, cell, section, corpus_with(sha256))
        assert job.inputs["corpus_sha256"] == job.settings["corpus_sha256"] == sha256
        assert Path(job.folder).name.endswith(job.key)
        folders.setdefault(job.folder, set()).add((lr, steps, seed, sha256, schedule))
    assert all(len(same) == 1 for same in folders.values())
    assert len(folders) == len(set(chosen))


# Row 33: nothing that is shipped points into somebody's home.


def test_no_file_that_is_shipped_names_a_home_folder(root):
    kinds = {".py", ".yaml", ".yml", ".md", ".toml", ".txt", ".sh"}
    places = ("unidetox_ray", "experiments", "cluster", "docs")
    files = [path for place in places for path in (root / place).rglob("*") if path.suffix in kinds]
    files += [root / "README.md", root / "Makefile", root / "pyproject.toml"]
    assert len(files) > 80
    home = re.compile(r"(?<![\w.])/(?:home|Users|root)/\w")
    assert {path.name for path in files if home.search(path.read_text(encoding="utf-8"))} == set()
    assert home.search("model: /home/somebody/models") and not home.search("https://a.b/home/x")


# Row 34: the token goes with every call to the hub, which cannot be reached from here.


@pytest.mark.parametrize("token", ["hf_of_this_test", None])
def test_the_token_goes_with_models_tokenizers_classifiers_and_data(token, monkeypatch):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    asked = []

    def refuse(name, **options):
        asked.append((name, options["token"]))
        raise OSError(f"401 Client Error: a gated repo ({options['token']})")

    for loader in (AutoTokenizer, AutoModelForCausalLM, AutoConfig):
        monkeypatch.setattr(loader, "from_pretrained", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    calls = [
        (ModelError, lambda: load_tokenizer("some/model")),
        (ModelError, lambda: load_model("some/model")),
        (ModelError, lambda: ToxicityClassifier("some/model")),
        (ModelError, lambda: ContentClassifier("some/model")),
        (DataError, lambda: hub.fetch("some/data", {"a": "a.csv"}, Request(None, Options()), local="a file")),
    ]
    for kind, call in calls:
        with pytest.raises(kind, match="HF_TOKEN") as caught:
            call()
        assert token is None or token not in str(caught.value)
    assert asked == [("some/model", token)] * 4 + [("some/data", token)]
