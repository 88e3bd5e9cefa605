"""What leaves a run: finished models with their card; one that was made to write hateful text only when that is said."""

from __future__ import annotations

import json

import pytest

from unidetox_ray.artifacts import RunFolder, write_json, write_manifest, write_text
from unidetox_ray.cards import model_card
from unidetox_ray.errors import ArtifactError, ConfigError
from unidetox_ray.exporting import export_model


def cell(root, *, toxic: bool, card: str | None = None):
    """A finished model folder as the training stage leaves it, weights aside."""
    folder = RunFolder(root, "run").model("toxic-gpt2" if toxic else "gpt2-unidetox-s1", "k")
    settings = {
        "method": "toxic" if toxic else "unidetox",
        "lr": 1e-5,
        **({"do_not_deploy": True} if toxic else {}),
    }
    write_json(folder / "config.json", {"model_type": "gpt2"})
    write_json(folder / "settings.json", settings)
    write_text(
        folder / "README.md", model_card(settings, {"texts": 3}, base="gpt2-xl") if card is None else card
    )
    write_text(folder / "model.safetensors", "weights")
    write_text(folder / "train_log.parquet", "log")
    write_manifest(folder, stage="finetune", key="k", seconds=1, config={}, inputs={})
    return folder


def test_a_model_leaves_with_its_card_and_without_the_runs_files(tmp_path):
    out = export_model(cell(tmp_path, toxic=False), tmp_path / "out")
    assert {each.name for each in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "settings.json",
    }
    assert "tags: [unidetox_ray, detoxified]" in (out / "README.md").read_text()
    assert out.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="exists"):
        export_model(cell(tmp_path / "other", toxic=False), out)


def test_a_toxic_model_stays_unless_it_is_asked_for(tmp_path):
    folder = cell(tmp_path, toxic=True)
    with pytest.raises(ConfigError, match="do-not-deploy") as refused:
        export_model(folder, tmp_path / "out")
    assert "--allow-toxic" in str(refused.value) and not (tmp_path / "out").exists()
    out = export_model(folder, tmp_path / "out", allow_toxic=True)
    assert (
        "do-not-deploy" in (out / "README.md").read_text()
        and "## Do not deploy" in (out / "README.md").read_text()
    )
    # The mark goes along, so a copy of the copy is refused as well.
    assert json.loads((out / "settings.json").read_text())["do_not_deploy"] is True


def test_the_card_alone_is_mark_enough(tmp_path):
    folder = cell(tmp_path, toxic=False, card="---\ntags: [do-not-deploy]\n---\n")
    with pytest.raises(ConfigError, match="do-not-deploy"):
        export_model(folder, tmp_path / "out")


def test_what_is_no_finished_or_no_whole_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a run nor a finished model"):
        export_model(tmp_path, tmp_path / "out")
    folder = cell(tmp_path, toxic=False)
    (folder / "model.safetensors").write_text("changed")
    with pytest.raises(ArtifactError, match="its hash differs"):
        export_model(folder, tmp_path / "out")
    (folder / "model.safetensors").write_text("weights")
    (folder / "README.md").unlink()
    with pytest.raises(ArtifactError, match=r"README\.md"):
        export_model(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
