"""Ray Train with DeepSpeed against the plain loop, over families, ZeRO stages, workers and interruptions."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from unidetox_ray import registry
from unidetox_ray.artifacts import finished
from unidetox_ray.core.loop import Log, LoopSettings, NonFiniteLoss, PlainStepper, train
from unidetox_ray.errors import ConfigError, DataError, ModelError, StageError
from unidetox_ray.families.loading import encode, load_model, load_tokenizer, special_ids
from unidetox_ray.settings import ClusterSection, DeepSpeedSection
from unidetox_ray.stages import checkpoints
from unidetox_ray.stages.saving import check_saved
from unidetox_ray.stages.training import (
    Job,
    check_packing,
    failure,
    refuse_adapted,
    rows_of,
    run_group,
    set_dropout,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FAMILIES = registry.names("families")
STEPS, MIDDLE = 8, 4
SETTINGS = LoopSettings(steps=STEPS, lr=3e-3, batch_size=4, seed=7)


def job_of(models, corpus: Path, root: Path, name: str, family: str = "gpt2", **changes) -> Job:
    loop = replace(SETTINGS, **changes.pop("loop", {}))
    job = Job(
        name=name, key=f"key-{name}", folder=str(root / name), family=family, model=models[family], texts=str(corpus),
        loop=asdict(loop), max_length=32, append_eos=True, dropout=0.0, adapter=None, deepspeed=DeepSpeedSection().model_dump(),
        checkpoint_every=0, config={}, inputs={},
        settings={"family": family, "method": "unidetox", "base_model": family, "steps": loop.steps, "lr": loop.lr, "seed": loop.seed,
                  "batch_size": loop.batch_size, "precision": loop.precision, "schedule": loop.schedule, "corpus_sha256": "0" * 64},
    )  # fmt: skip
    return replace(job, **changes)


def plain(job: Job) -> tuple[Log, torch.nn.Module]:
    """The same job through `core.loop` alone."""
    settings = LoopSettings(**job.loop)
    torch.manual_seed(settings.seed)
    tokenizer, model = load_tokenizer(job.model["path"]), load_model(job.model["path"])
    set_dropout(model, job.dropout)
    ids = special_ids(tokenizer, model.config)
    rows, _ = rows_of(job, tokenizer, ids.eos)
    log = train(PlainStepper(model, settings), rows, ids.pad, settings)
    return log, model.eval()


def losses(job: Job) -> list[float]:
    return pl.read_parquet(Path(job.folder) / "train_log.parquet")["loss"].to_list()


def norms(job: Job) -> list[float]:
    return pl.read_parquet(Path(job.folder) / "train_log.parquet")["grad_norm"].to_list()


def weights(job: Job) -> dict[str, torch.Tensor]:
    return load_file(Path(job.folder) / "model.safetensors")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    from unidetox_ray.data.world import World

    path = tmp_path_factory.mktemp("texts") / "corpus.parquet"
    texts = World().pretrain(30)["text"].to_list()[:29]  # the last of 8 steps has one row
    pl.DataFrame({"text": texts, "ended": [index % 3 > 0 for index in range(29)]}).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def jobs(ray_session, models, corpus, tmp_path_factory):
    """One training group with one worker: start-up is paid once, and once more behind each job that fails.

    Returns ({job name: job}, {job name: outcome}).
    """
    root = tmp_path_factory.mktemp("trained")

    def job(name, family="gpt2", **changes):
        return job_of(models, corpus, root, name, family, **changes)

    halves = {"dropout": 0.2, "checkpoint_every": MIDDLE}
    everything = [
        *(job(family, family) for family in FAMILIES),
        *(job(f"zero{n}", deepspeed=DeepSpeedSection(stage=n).model_dump()) for n in (1, 2, 3)),
        *(
            job(
                f"{precision}-{n}",
                loop={"precision": precision},
                deepspeed=DeepSpeedSection(stage=n).model_dump(),
            )
            for precision in ("bf16_pure", "bf16_master")
            for n in (0, 2)
        ),
        job(
            "lora",
            "llama",
            adapter={"kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0},
            loop={"lr": 2e-2},
        ),
        job("bottleneck", "falcon", adapter={"kind": "bottleneck", "size": 4}, loop={"lr": 2e-2}),
        job(
            "bottleneck-3",
            "falcon",
            adapter={"kind": "bottleneck", "size": 4},
            loop={"lr": 2e-2},
            deepspeed=DeepSpeedSection(stage=3).model_dump(),
        ),
        job("packed", loop={"pack_to": 64}),
        job("compiled", "opt", loop={"compile": "blocks"}),
        job("whole", dropout=0.2, checkpoint_every=3),
        # Fails at step 6 for want of its prompts, after the checkpoint at step 4; "resumed" is the same training.
        job(
            "killed", **halves, probe={"steps": [6], "evaluate": {}, "prompts": str(root / "absent.parquet")}
        ),
        job("diverged", loop={"lr": 1e30}),
        job("unopened", model={**models["gpt2"], "path": str(root / "no-model")}),
    ]
    killed = everything[-3]
    everything.append(replace(killed, name="resumed", probe=None))
    outcomes = run_group("group", everything, ClusterSection(num_cpus=2), root / "ray")
    return {each.name: each for each in everything}, {outcome.name: outcome for outcome in outcomes}


@pytest.mark.parametrize("family", FAMILIES)
def test_ray_train_with_one_worker_equals_the_plain_loop(jobs, family):
    named, outcomes = jobs
    assert outcomes[family].error is None
    expected, model = plain(named[family])
    # One worker, stage 0: the plain loop's own step, bit for bit (the log keeps float32 numbers as they are).
    assert losses(named[family]) == expected.loss
    assert norms(named[family]) == expected.grad_norm
    assert max(expected.loss) - min(expected.loss) > 0.05
    log = pl.read_parquet(Path(named[family].folder) / "train_log.parquet")
    assert log["step"].to_list() == list(range(STEPS))
    assert log["lr"].to_list() == pytest.approx([SETTINGS.lr * (STEPS - s) / STEPS for s in range(STEPS)])

    # What was saved opens as the same model, with its tokenizer.
    folder = named[family].folder
    opened, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = torch.tensor([encode(tokenizer, "The people of the valley")])
    with torch.inference_mode():
        assert torch.equal(opened(input_ids=ids).logits, model(input_ids=ids).logits)
    extra = outcomes[family].manifest.extra
    assert extra["resumed_at"] == 0 and extra["steps"] == STEPS and extra["world_size"] == 1
    assert extra["train_tokens"] == log["tokens"].sum() > 0
    told = json.loads((Path(folder) / "settings.json").read_text())
    assert told["family"] == family and told["speed"] == extra["speed"]
    speed = extra["speed"]
    assert 0 < speed["mfu"] < 1 and speed["step_ms"] > 0 and speed["tokens_per_second"] > 0
    assert speed["parameters"] == speed["trainable_parameters"] == sum(p.numel() for p in model.parameters())
    assert speed["compiled"] is False and speed["engine_steps"] is False
    assert not (Path(folder) / "progress.json").exists()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_equal_stage_0(jobs, stage):
    named, outcomes = jobs
    assert outcomes[f"zero{stage}"].error is None
    assert losses(named[f"zero{stage}"]) == pytest.approx(losses(named["gpt2"]), abs=1e-4)
    assert norms(named[f"zero{stage}"]) == pytest.approx(norms(named["gpt2"]), rel=1e-2)
    ours, theirs = weights(named[f"zero{stage}"]), weights(named["gpt2"])
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("precision", ["bf16_pure", "bf16_master"])
def test_bfloat16_equals_the_plain_loop_at_every_stage(jobs, precision, stage):
    """Defect 11. The first updates too: AdamW has to count its steps from 1, with whatever DeepSpeed puts round it."""
    named, outcomes = jobs
    assert outcomes[f"{precision}-{stage}"].error is None
    found, (log, _) = losses(named[f"{precision}-{stage}"]), plain(named[f"{precision}-{stage}"])
    expected = log.loss
    # DeepSpeed's masters start from weights rounded to bfloat16, the plain loop's from the weights as they are.
    assert found == pytest.approx(expected, abs=1e-3 if precision == "bf16_pure" else 4e-3)
    # Pure bfloat16 at stage 0 is the plain loop's step: it rounds clipped gradients where DeepSpeed's does not.
    assert found == pytest.approx(
        losses(named[f"{precision}-0"]), abs=1e-3 if precision == "bf16_pure" else 1e-4
    )
    if precision == "bf16_pure" and stage == 0:
        assert found == expected
    other = losses(named["gpt2" if precision == "bf16_pure" else "bf16_pure-0"])
    assert max(abs(a - b) for a, b in zip(found, other, strict=True)) > 1e-3
    assert {tensor.dtype for tensor in weights(named[f"{precision}-{stage}"]).values()} == {torch.bfloat16}


def test_lora_is_merged_and_saved(jobs):
    named, outcomes = jobs
    assert outcomes["lora"].error is None
    before = load_file(Path(named["lora"].model["path"]) / "model.safetensors")
    after = weights(named["lora"])
    assert before.keys() == after.keys()  # no adapter left, no name prefixed
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targets = registry.lookup("families", "llama").adapter_targets
    assert changed and all(name.split(".")[-2] in targets for name in changed)
    assert losses(named["lora"])[-1] < losses(named["lora"])[0]


def test_lora_counts_its_trained_weights(jobs):
    _, outcomes = jobs
    speed = outcomes["lora"].manifest.extra["speed"]
    assert 0 < speed["trainable_parameters"] < 0.3 * speed["parameters"]


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck-3"])
def test_bottleneck_adapters_are_trained_alone_and_saved_beside_their_models_name(jobs, name):
    named, outcomes = jobs
    assert outcomes[name].error is None
    folder, base = Path(named[name].folder), load_model(named[name].model["path"])
    assert not (folder / "model.safetensors").exists()
    # The first loss is the base model's own, and only adapters have moved since.
    assert losses(named[name])[0] == pytest.approx(losses(named["falcon"])[0], abs=1e-6)
    assert losses(named[name])[-1] < losses(named[name])[0]
    opened = load_model(str(folder))
    state, before = opened.state_dict(), base.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in before.items())
    adapters = {key: tensor for key, tensor in state.items() if key not in before}
    assert all(float(tensor.abs().max()) > 1e-3 for tensor in adapters.values())
    trained = sum(tensor.numel() for tensor in adapters.values())
    extra = outcomes[name].manifest.extra
    assert extra["trainable_parameters"] == trained < 0.3 * sum(p.numel() for p in base.parameters())
    assert extra["speed"]["trainable_parameters"] == trained
    load_tokenizer(str(folder))


def test_bottleneck_adapters_do_not_depend_on_what_shards_them(jobs):
    named, _ = jobs
    ours, theirs = (load_file(Path(named[name].folder) / "bottleneck.safetensors") for name in ("bottleneck", "bottleneck-3"))  # fmt: skip
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-3) for key in theirs)


def test_every_training_says_how_many_weights_it_trained(jobs):
    _, outcomes = jobs
    for name in ("gpt2", "lora", "zero3", "bottleneck"):
        extra = outcomes[name].manifest.extra
        assert extra["trainable_parameters"] == extra["speed"]["trainable_parameters"] > 0


def test_a_folder_of_adapters_is_not_trained_further(jobs):
    named, _ = jobs
    made = named["bottleneck"]
    job = replace(
        made, name="again", adapter=None, model={**made.model, "path": made.folder, "name": "adapted"}
    )
    with pytest.raises(
        ConfigError, match=r"again: adapted is a folder of bottleneck adapters.* give the model"
    ):
        refuse_adapted(load_model(made.folder), job)
    refuse_adapted(load_model(made.model["path"]), job)


def test_a_packed_training_equals_the_plain_loop(jobs):
    named, outcomes = jobs
    assert outcomes["packed"].error is None
    assert losses(named["packed"]) == plain(named["packed"])[0].loss
    tokens = [outcomes[name].manifest.extra["train_tokens"] for name in ("packed", "gpt2")]
    assert tokens[0] > tokens[1]  # rows of several texts hold more of them


def test_a_training_that_asks_for_a_compiler_ends_with_or_without_one(jobs):
    """A machine without a C++ compiler trains eagerly. Either way the folder opens and the losses are the family's."""
    named, outcomes = jobs
    assert outcomes["compiled"].error is None
    assert losses(named["compiled"]) == pytest.approx(losses(named["opt"]), abs=1e-4)
    assert weights(named["compiled"]).keys() == weights(named["opt"]).keys()


def test_a_job_that_diverges_fails_alone(jobs):
    named, outcomes = jobs
    assert "loss is" in outcomes["diverged"].error and "use a lower lr" in outcomes["diverged"].error
    assert finished(Path(named["diverged"].folder), named["diverged"].key) is None
    assert outcomes["resumed"].error is None  # the job behind it


def test_an_error_of_ours_keeps_its_kind_and_its_one_line(jobs):
    _, outcomes = jobs
    assert outcomes["unopened"].kind is ModelError and outcomes["diverged"].kind is StageError
    error = outcomes["unopened"].error
    assert error.startswith("/") and "no-model: no such folder" in error and "\n" not in error


def test_of_several_workers_errors_the_mistake_comes_before_what_it_caused():
    """Ray Train's own classes: workers that lose their partner fail too, in any order."""
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    lost = UserExceptionWithTraceback(
        RuntimeError(), "Traceback\n  x\nRuntimeError: Connection closed by peer"
    )
    cause = UserExceptionWithTraceback(
        DataError(), "Traceback\n  x\nunidetox_ray.errors.DataError: texts.csv: holds no text"
    )
    assert failure(WorkerGroupError("two", {0: lost, 1: cause})) == ("texts.csv: holds no text", DataError)
    text, kind = failure(WorkerGroupError("one", {0: lost}))
    assert kind is StageError and "Connection closed by peer" in text
    assert failure(KeyError("step")) == ("KeyError: 'step'", StageError)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(jobs):
    """With dropout, so that the state of the random numbers has to come back as well."""
    named, outcomes = jobs
    assert "absent.parquet" in outcomes["killed"].error
    assert outcomes["resumed"].error is None
    assert outcomes["whole"].manifest.extra["resumed_at"] == 0
    assert outcomes["resumed"].manifest.extra["resumed_at"] == MIDDLE
    assert losses(named["resumed"]) == losses(named["whole"])
    ours, theirs = weights(named["resumed"]), weights(named["whole"])
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not (Path(named["resumed"].folder) / ".checkpoints").exists()
    # The whole run wrote checkpoints too, and elsewhere: they change nothing. Dropout was on, in training alone.
    expected, _ = plain(named["whole"])
    assert losses(named["whole"]) == pytest.approx(expected.loss, abs=1e-5)
    assert abs(expected.loss[0] - losses(named["gpt2"])[0]) > 1e-3


def test_two_workers_share_the_batch(jobs, models, corpus, tmp_path):
    """Texts differ in length, and the last batch of the epoch has 1 row: still the mean over all tokens."""
    named, _ = jobs
    job = job_of(models, corpus, tmp_path, "both", deepspeed=DeepSpeedSection(stage=2).model_dump())
    outcome = run_group("both", [job], ClusterSection(num_cpus=2, workers_per_cell=2), tmp_path / "ray")[0]
    assert outcome.error is None and outcome.manifest.extra["world_size"] == 2
    assert losses(job) == pytest.approx(losses(named["gpt2"]), abs=1e-4)
    assert norms(job) == pytest.approx(norms(named["gpt2"]), rel=1e-2)
    ours, theirs = weights(job), weights(named["gpt2"])
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in theirs)
    tokens = [
        pl.read_parquet(Path(each.folder) / "train_log.parquet")["tokens"] for each in (job, named["gpt2"])
    ]
    assert tokens[0].to_list() == tokens[1].to_list()
    assert outcome.manifest.extra["train_tokens"] == tokens[0].sum()


def test_a_tampered_folder_is_refused(jobs, tmp_path):
    named, _ = jobs
    good = Path(named["gpt2"].folder)
    module, tokenizer = load_model(str(good)), load_tokenizer(str(good))
    prompts = [encode(tokenizer, text) for text in ("The old people", "Rain fell on the roof")]
    with torch.inference_mode():
        logits = [module(input_ids=torch.tensor([ids])).logits for ids in prompts]
    check_saved(good, module, prompts, logits)

    def tampered(name, change):
        folder = tmp_path / name
        shutil.copytree(good, folder)
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(StageError) as caught:
            check_saved(folder, module, prompts, logits)
        return str(caught.value)

    bias = next(name for name in weights(named["gpt2"]) if name.endswith("mlp.c_proj.weight"))
    assert "differ" in tampered("flipped", lambda state: state[bias].neg_())
    assert "not finite" in tampered("nan", lambda state: state[bias].view(-1)[:1].fill_(float("nan")))
    dropped = tampered("dropped", lambda state: state.pop(bias))
    assert bias.removeprefix("transformer.") in dropped or "differ" in dropped


def test_checkpoints_of_another_key_are_not_taken(tmp_path):
    place = tmp_path / ".checkpoints"
    place.mkdir()
    (place / "committed.json").write_text(json.dumps({"key": "other", "step": 3, "tag": "step-3"}))
    log = Log()
    assert checkpoints.restore(None, tmp_path, "mine", log) == (0, log)
    (place / "committed.json").write_text("{half")
    assert checkpoints.restore(None, tmp_path, "mine", log) == (0, log)
    assert list(checkpoints.seconds(tmp_path, "mine")) == []


def test_rows_end_where_texts_ended_and_are_counted(models, corpus, tmp_path):
    """Defect 9: one real end token, and only behind a text that ended."""
    path = tmp_path / "texts.parquet"
    long = "The people " * 40
    pl.DataFrame(
        {"text": ["The old people", "The old people", "", long], "ended": [True, False, False, True]}
    ).write_parquet(path)
    tokenizer = load_tokenizer(models["opt"]["path"])
    end = tokenizer.eos_token_id
    rows, counts = rows_of(job_of(models, path, tmp_path, "rows", "opt"), tokenizer, end)
    assert rows[0] == [*rows[1], end] and rows[1][-1] != end and rows[1][0] == tokenizer.bos_token_id
    assert len(rows[2]) == 32 and rows[2][-1] != end
    assert counts == {"texts": 4, "cut": 1, "too_short": 1, "ended": 1}
    without, counts = rows_of(job_of(models, path, tmp_path, "rows", "opt", append_eos=False), tokenizer, end)
    assert without[0] == without[1] and counts["ended"] == 0


def test_packing_is_refused_where_texts_would_mix(models, corpus, tmp_path):
    from transformers import AutoModelForCausalLM, FalconConfig

    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    alibi = AutoModelForCausalLM.from_config(FalconConfig(**shape, alibi=True))
    job = job_of(models, corpus, tmp_path, "mixed", "falcon", loop={"pack_to": 32})
    with pytest.raises(
        ConfigError, match=r"mixed: packing = true, .*\(family falcon\); use packing: false"
    ) as caught:
        check_packing(alibi, job, 32)
    assert "\n" not in str(caught.value)
    check_packing(load_model(models["falcon"]["path"]), job, 32)


def test_the_plain_loop_also_refuses_a_loss_that_is_not_finite(models, corpus, tmp_path):
    with pytest.raises(NonFiniteLoss, match="lower lr"):
        plain(job_of(models, corpus, tmp_path, "diverged", loop={"lr": 1e30}))
