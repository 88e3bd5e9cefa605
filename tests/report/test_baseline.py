"""What a run took as a portable file, and one run beside another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unidetox_ray.artifacts import RunFolder, write_text
from unidetox_ray.config import Experiment, load, to_yaml
from unidetox_ray.errors import ArtifactError, ConfigError
from unidetox_ray.report import baseline, baseline_sections, build
from unidetox_ray.stages.context import Context

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"toxic": 1000.0, "corpus-unidetox": 100.0, "finetune": 8000.0, "generate": 3000.0, "score": 3000.0}


def run_folder(
    place: Path,
    *overrides: str,
    name: str = "single_a100",
    devices: float = 1,
    faster: float = 1.0,
    **partial: bool,
) -> Path:
    """A run folder whose stages took STAGES / faster seconds on `devices` GPUs, written by the stages' own record."""
    experiment: Experiment = load(ROOT / "experiments" / f"{name}.yaml", list(overrides))
    folder = RunFolder(place, experiment.name)
    write_text(folder.root / "config.yaml", to_yaml(experiment))
    context = Context(experiment, folder)
    context._gpu, context._devices, context._accelerator = True, devices, "A100"
    for stage, seconds in STAGES.items():
        context.record(
            stage,
            f"key-{stage}",
            seconds / faster,
            reused=False,
            tokens=10.0,
            devices=devices,
            partial=partial.get(stage, False),
        )
    return folder.root


@pytest.fixture
def one(tmp_path):
    return run_folder(tmp_path / "one")


def test_a_baseline_is_portable(one, tmp_path):
    path = baseline.save(one, tmp_path / "deep" / "base.json")
    value = json.loads(path.read_text())
    assert value["schema"] == 1 and value["seconds"] == sum(STAGES.values()) and value["devices"] == 1
    assert [each["stage"] for each in value["stages"]] == list(STAGES)
    assert (
        str(tmp_path) not in path.read_text()
        and "/tmp" not in path.read_text()
        and "storage" not in path.read_text()
    )
    again = baseline.read(path)
    assert (again.key, again.stages) == (baseline.costs_of_run(one).key, baseline.costs_of_run(one).stages)


def test_places_of_this_machine_stay_here(tmp_path):
    root = run_folder(
        tmp_path, f"models.llama={tmp_path}/secret-place/llama", "data.toxic.path=/home/me/files/toxic.jsonl"
    )
    text = json.dumps(baseline.portable(baseline.costs_of_run(root)))
    assert (
        "/home/me" not in text
        and str(tmp_path) not in text
        and "…/llama" in json.loads(text)["settings"].values()
    )


def test_speed_up_efficiency_and_cost(one, tmp_path):
    other = run_folder(tmp_path / "four", devices=4, faster=3.0)
    found = baseline.compared(baseline.costs_of_run(other), baseline.read(one), price=2.0, base_price=1.0)
    assert found.total.speedup == pytest.approx(3.0) and found.total.efficiency == pytest.approx(0.75)
    hours = sum(STAGES.values()) / 3600
    assert found.total.base_cost == pytest.approx(1.0 * hours) and found.total.run_cost == pytest.approx(
        2.0 * 4 * hours / 3
    )
    assert (
        found.total.run.device_seconds == pytest.approx(4 * sum(STAGES.values()) / 3, rel=1e-4)
        and found.remarks == ()
    )
    text = baseline_sections.console(found)
    assert "75.0 %" in text and "3.00 times as fast" in text


def test_another_experiment_of_the_same_work_is_compared_and_marked(one, tmp_path):
    # paper_cluster.yaml differs from single_a100.yaml in its name and its shards.
    other = run_folder(tmp_path, name="paper_cluster", devices=4, faster=3.0)
    found = baseline.compared(baseline.costs_of_run(other), baseline.read(one))
    assert found.total.speedup == pytest.approx(3.0)
    assert any("same amount of work: corpus.shard_size, name differ" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    "override",
    [
        "finetune.steps=100",
        "evaluate.runs=1",
        "families=[gpt2]",
        "seeds=[1,2,3]",
        "limit=8",
        "models.llama=x/y",
    ],
)
def test_another_amount_of_work_is_refused(one, tmp_path, override):
    other = run_folder(tmp_path, override)
    with pytest.raises(ConfigError, match="another amount of work") as raised:
        baseline.compared(baseline.costs_of_run(other), baseline.read(one))
    assert override.partition("=")[0] in str(raised.value) and "\n" not in str(raised.value)


def test_parts_and_unknown_times_are_left_out_and_said(one, tmp_path):
    other = run_folder(tmp_path, faster=2.0, finetune=True)
    rows = json.loads((other / "stages.json").read_text())
    rows[0]["spent"] = None
    rows.append({**rows[1], "stage": "content", "key": "key-content"})
    (other / "stages.json").write_text(json.dumps(rows))
    found = baseline.compared(baseline.costs_of_run(other), baseline.read(one))
    by_stage = {line.stage: line for line in found.lines}
    assert by_stage["finetune"].speedup is by_stage["toxic"].speedup is by_stage["content"].speedup is None
    assert found.total.base.seconds == STAGES["corpus-unidetox"] + STAGES["generate"] + STAGES["score"]
    said = " ".join(found.remarks)
    assert (
        "content: only this run has it" in said
        and "finetune: this run found part" in said
        and "toxic: this run has no time" in said
    )


def test_the_report_shows_the_comparison(one, tmp_path):
    other = run_folder(tmp_path, devices=4, faster=3.0)
    found = baseline.compared(baseline.costs_of_run(other), baseline.read(one), price=2.0)
    paths = build(other, comparison=found)
    for text in (paths.html.read_text(), paths.markdown.read_text()):
        assert "Against the baseline" in text and "75.0 %" in text
    assert "Against the baseline" not in build(other).html.read_text()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"kind": "unidetox-baseline", "schema": 9}',
        '{"kind": "unidetox-baseline", "schema": 1}',
        "\x00\x01",
    ],
)
def test_a_file_that_is_no_baseline_is_one_line(tmp_path, content):
    path = tmp_path / "base.json"
    path.write_text(content)
    with pytest.raises(ArtifactError) as raised:
        baseline.read(path)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 2
    with pytest.raises(ArtifactError, match="no such run folder or file"):
        baseline.read(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"holds no config.yaml"):
        baseline.read(tmp_path)
