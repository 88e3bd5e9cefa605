"""The corpora's own judgement: scorers and classifiers on Ray, resumed corpus by corpus, reused when nothing changed."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest

from unidetox_ray.artifacts import file_sha256, write_manifest
from unidetox_ray.data.world import INSULT_WORDS, World
from unidetox_ray.errors import ModelError
from unidetox_ray.metrics.content_classifier import JUDGED
from unidetox_ray.stages import content
from unidetox_ray.stages.models import handle_of

pytestmark = pytest.mark.ray


@pytest.fixture
def corpora(tmp_path):
    """samples: plain world text with an empty one. unidetox: insults, so that the sign of a difference is known."""
    found = {}
    world = World()
    toxic, plain = world.toxic(30)["text"].to_list(), world.pretrain(40)["text"].to_list()
    texts = {"unidetox": toxic, "samples": [*plain, " "]}
    for label, rows in texts.items():
        place = tmp_path / label
        place.mkdir()
        pl.DataFrame({"text": rows, "n_tokens": [len(row.split()) for row in rows]}).write_parquet(
            place / "corpus.parquet"
        )
        extra = {"sha256": file_sha256(place / "corpus.parquet")}
        manifest = write_manifest(
            place, stage="corpus", key="0" * 16, seconds=0.0, config={}, inputs={}, extra=extra
        )
        found[label] = (place, manifest)
    return found


def experiment(models, **classifier):
    source = str(models.root / "classifier")
    return {
        "evaluate": {"scorers": [{"name": "world-bert", "source": source}, {"name": "lexicon", "kind": "lexicon", "source": "world"}]},
        "content": {"classifiers": [{"name": "kinds", "source": source, **classifier}]},
    }  # fmt: skip


def test_corpora_are_judged_compared_resumed_and_reused(ray_session, models, make_context, corpora):
    from unidetox_ray.settings import ModelRef

    scorer = handle_of(ModelRef(source=str(models.root / "classifier")), "world-bert")
    values = experiment(models)
    context = make_context("run", **values)
    folder, manifest = content.run(context, corpora, {"world-bert": scorer})
    found = json.loads((folder / "content.json").read_text())
    # The first corpus without the toxic model is what the others are compared with, whatever their order.
    assert found["reference"] == "samples" and [entry["corpus"] for entry in found["corpora"]] == list(
        corpora
    )
    assert found["corpora"][0]["lengths"]["tokens"]["total"] > 0
    assert found["corpora"][1]["empty_texts_left_out"] == 1
    judges = {judge["judge"]: judge for judge in found["judges"]}
    assert list(judges) == ["world-bert", "lexicon", "kinds"]
    share = {entry["corpus"]: entry["share"] for entry in judges["lexicon"]["numbers"]}
    assert share["unidetox"]["diff"] == share["unidetox"]["value"] - share["samples"]["value"] > 0
    assert judges["world-bert"]["about"]["sha256"] == judges["kinds"]["about"]["sha256"]
    assert judges["kinds"]["about"]["source"] == "classifier"
    # What is stored does not tell where on this machine models lie, and a list of insults is kept as its hash.
    stored = (folder / "manifest.json").read_text()
    assert str(models.root) not in stored + (folder / "content.json").read_text()
    assert (
        not any(word in stored for word in INSULT_WORDS) and len(manifest.config["scorers"][1]["words"]) == 64
    )
    judged = pl.read_parquet(folder / "judged.parquet")
    assert dict(judged.schema) == dict(JUDGED) and judged.height == 3 * 70 == manifest.counts["expected"]
    assert manifest.counts["failed"] == judged["values"].null_count()

    # Toxicity of the classifier's own label and the label's share agree, being one model.
    scores = judged.filter(judge="world-bert", corpus="unidetox")["values"].list.first()
    label = json.loads(judged.filter(judge="kinds")["about"][0])["labels"].index("toxic")
    others = judged.filter(judge="kinds", corpus="unidetox")["values"].list.get(label)
    assert (scores - others).abs().max() < 1e-4

    content.run(context, corpora, {"world-bert": scorer})
    assert [stage["reused"] for stage in context.stages] == [False, True]

    # Killed after the first corpus: its part is taken as it is, and the result is the same.
    second = make_context("second", **values)
    killed = second.folder.stage("content", manifest.key)
    (killed / "parts").mkdir(parents=True)
    judged.filter(corpus="samples").write_parquet(killed / "parts" / "samples.parquet")
    resumed, _ = content.run(second, corpora, {"world-bert": scorer})
    assert (resumed / "content.json").read_bytes() == (folder / "content.json").read_bytes()
    assert not (resumed / "parts").exists()

    # Another corpus is another key.
    changed = dict(corpora)
    place = corpora["samples"][0]
    shutil.copy(corpora["unidetox"][0] / "corpus.parquet", place / "corpus.parquet")
    changed["samples"] = (place, corpora["unidetox"][1])
    _, other = content.run(make_context("run", **values), changed, {"world-bert": scorer})
    assert other.key != manifest.key


def test_a_classifier_that_is_not_there_is_named_before_anything_is_judged(make_context, models, corpora):
    values = experiment(models)
    values["content"]["classifiers"][0]["source"] = "./nowhere"
    values["evaluate"]["scorers"] = values["evaluate"]["scorers"][1:]
    context = make_context("run", **values)
    with pytest.raises(ModelError, match=r"\./nowhere: no such folder"):
        content.run(context, corpora, {})
    assert context.stages == [] and not list(context.folder.root.glob("stages/content-*"))
