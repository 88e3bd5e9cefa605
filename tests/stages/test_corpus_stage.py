"""The corpus does not depend on who samples it, in how many pieces, or how often it was interrupted."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.errors import ArtifactError, DataError, StageError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.schemas import CORPUS
from unidetox_ray.stages import corpus

pytestmark = pytest.mark.ray

UNIDETOX = MethodEntry(method="unidetox", label="unidetox")
SAMPLES = MethodEntry(method="samples", label="samples")
SMALL = ("corpus.num_texts=12", "corpus.max_length=16", "corpus.shard_size=4")


def test_one_actor_two_actors_and_a_resumed_run_give_the_same_bytes(
    ray_session, models, make_context, monkeypatch
):
    base, toxic = models["gpt2"], models["toxic"]
    one = make_context("one", *SMALL, "cluster.corpus_actors=1")
    two = make_context("two", *SMALL, "cluster.corpus_actors=2")
    folder, manifest = corpus.run(one, UNIDETOX, base, toxic)
    again, other = corpus.run(two, UNIDETOX, base, toxic)
    whole = (folder / "corpus.parquet").read_bytes()
    assert (again / "corpus.parquet").read_bytes() == whole and other.key == manifest.key

    table = pl.read_parquet(folder / "corpus.parquet")
    assert dict(table.schema) == dict(CORPUS) and table["text_id"].to_list() == list(range(12))
    assert table["shard_id"].to_list() == [0] * 4 + [1] * 4 + [2] * 4
    # max_length counts the start token.
    assert table["n_tokens"].max() <= 15 and (table["n_tokens"] == table["token_ids"].list.len()).all()
    assert (table["n_tokens"].filter(~table["ended"]) == 15).all()
    assert table["text"].n_unique() == 12
    assert not (folder / "parts").exists()

    # Killed after the second of three shards: its parts lie there, the table does not.
    third = make_context("three", *SMALL)
    killed = third.folder.stage("corpus-unidetox", manifest.key)
    parts = killed / "parts"
    parts.mkdir(parents=True)
    for shard in (0, 2):
        table.filter(pl.col("shard_id") == shard).write_parquet(parts / f"shard-{shard:05d}.parquet")
    kept = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    read = []
    real = pl.read_parquet
    monkeypatch.setattr(
        corpus.pl,
        "read_parquet",
        lambda path: read.append((path.name, path.stat().st_mtime_ns)) or real(path),
    )
    resumed, _ = corpus.run(third, UNIDETOX, base, toxic)
    assert (resumed / "corpus.parquet").read_bytes() == whole
    assert {name: changed for name, changed in read if name in kept} == kept  # not sampled a second time
    assert [stage["reused"] for stage in third.stages] == [False]

    # Finished: reused without looking at the models, refused once damaged.
    corpus.run(third, UNIDETOX, base, toxic)
    assert third.stages[-1]["reused"]
    (resumed / "corpus.parquet").write_bytes(whole[:-1] + b"?")
    with pytest.raises(ArtifactError, match="--fresh"):
        corpus.run(third, UNIDETOX, base, toxic)


def test_corpora_of_one_pool_are_those_of_pools_of_their_own(samples, models, make_context):
    _, alone, manifest = samples
    base, toxic = models["gpt2"], models["toxic"]
    context = make_context("shared", *SMALL, "cluster.corpus_actors=2")
    spent = corpus.sample_together(context, [SAMPLES, UNIDETOX], base, toxic)
    assert set(spent) == {"samples", "unidetox"} and min(spent.values()) > 0
    folder, same = corpus.run(context, SAMPLES, base, toxic, spent=spent["samples"])
    assert same.key == manifest.key and same.seconds >= spent["samples"]
    assert (folder / "corpus.parquet").read_bytes() == (alone / "corpus.parquet").read_bytes()
    # What is left is one corpus, which waits for nothing: its parts lie there.
    assert corpus.sample_together(context, [SAMPLES, UNIDETOX], base, toxic) == {}
    contrasted, _ = corpus.run(context, UNIDETOX, base, toxic)
    own, _ = corpus.run(make_context("own", *SMALL), UNIDETOX, base, toxic)
    assert (contrasted / "corpus.parquet").read_bytes() == (own / "corpus.parquet").read_bytes()


@pytest.fixture(scope="module")
def samples(ray_session, models, context_at, tmp_path_factory):
    """(run folder, corpus folder, manifest, context maker) of the control's corpus, sampled once."""
    root = tmp_path_factory.mktemp("samples")

    def make(folder, *changes):
        return context_at(root / folder, *SMALL, *changes)

    folder, manifest = corpus.run(make("run"), SAMPLES, models["gpt2"], None)
    return make, folder, manifest


def test_a_part_of_the_wrong_length_is_refused(samples, models):
    make, folder, manifest = samples
    other = make("other")
    parts = other.folder.stage("corpus-samples", manifest.key) / "parts"
    parts.mkdir(parents=True)
    table = pl.read_parquet(folder / "corpus.parquet")
    for shard in range(3):
        rows = table.filter(pl.col("shard_id") == shard).head(3 if shard == 1 else 4)
        rows.write_parquet(parts / f"shard-{shard:05d}.parquet")
    with pytest.raises(StageError, match="shard-00001 has 3 rows, expected 4"):
        corpus.run(other, SAMPLES, models["gpt2"], None)
    assert not (parts.parent / "corpus.parquet").exists() and not (parts.parent / "manifest.json").exists()


def test_samples_are_the_base_models_own_and_know_nothing_of_the_contrast(samples, models):
    make, folder, manifest = samples
    changed = make("run", "corpus.alpha=0.4", "corpus.kv_cache=shared")
    _, same = corpus.run(changed, SAMPLES, models["gpt2"], models["toxic"])
    assert changed.stages[-1]["reused"] and same.key == manifest.key and set(manifest.inputs) == {"base"}

    # The same random numbers through the slow twin of the decoder, one row at a time.
    from unidetox_ray.core.decode import decode_slowly
    from unidetox_ray.core.streams import uniforms
    from unidetox_ray.families.loading import load_model, load_tokenizer, special_ids

    path = models["gpt2"]["path"]
    model, tokenizer = load_model(path), load_tokenizer(path)
    ids = special_ids(tokenizer, model.config)
    slow = decode_slowly(
        [model],
        [[ids.start]] * 12,
        uniform=uniforms(changed.experiment.corpus.seed, range(12), 15),
        max_new_tokens=15,
        end_ids=[ids.eos],
    )
    table = pl.read_parquet(folder / "corpus.parquet")
    assert [row.ids for row in slow] == table["token_ids"].to_list()
    assert [row.ended for row in slow] == table["ended"].to_list()


def test_the_released_shared_cache_gives_other_text(models, make_context):
    """Defect 1: the toxic model reads the base model's cache. The actor's own worker, in this process."""

    def sampled(kind):
        section = make_context(kind, *SMALL, f"corpus.kv_cache={kind}").experiment.corpus
        worker = corpus.CorpusWorker(
            {
                "section": {**section.model_dump(mode="json"), "beta": section.beta},
                "method": "unidetox",
                "models": [models["gpt2"], models["toxic"]],
                "threads": 1,
            }
        )
        return worker.work({"shard": 0, "first": 0, "rows": 12})["token_ids"].to_list()

    separate, shared = sampled("separate"), sampled("shared")
    assert sum(a != b for a, b in zip(separate, shared, strict=True)) >= 6
    # The first token is drawn before any cache is handed on.
    assert [row[:1] for row in separate] == [row[:1] for row in shared]


def test_a_corpus_file_is_taken_as_it_is(models, make_context, tmp_path):
    """No Ray: the published 640 texts come in this way."""
    path = tmp_path / "published.csv"
    path.write_text('Text\n"one text, with a comma"\n"two\nlines"\nNA\n', encoding="utf-8")
    entry = MethodEntry(method="unidetox", label="published", settings={"source": str(path)})
    context = make_context()
    folder, manifest = corpus.run(context, entry, models["gpt2"], None)
    table = pl.read_parquet(folder / "corpus.parquet")
    assert table["text"].to_list() == ["one text, with a comma", "two\nlines", "NA"]
    assert dict(table.schema) == dict(CORPUS) and table["token_ids"].null_count() == 3
    assert manifest.counts == {"expected": 3, "ok": 3, "failed": 0}

    limited = make_context("limited", limit=2)
    folder, _ = corpus.run(limited, entry, models["gpt2"], None)
    assert pl.read_parquet(folder / "corpus.parquet").height == 2

    path.write_text("Text\n", encoding="utf-8")
    with pytest.raises(DataError):
        corpus.run(make_context("empty"), entry, models["gpt2"], None)


def test_the_contrast_without_a_toxic_model_is_refused(models, make_context):
    with pytest.raises(StageError, match="needs the toxic model"):
        corpus.run(make_context(), UNIDETOX, models["gpt2"], None)
