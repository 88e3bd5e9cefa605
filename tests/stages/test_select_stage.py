"""Filtered corpora: the same bytes whoever makes them, only the least toxic, never by the judge's eyes."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.artifacts import finished
from unidetox_ray.core.packs import pack_texts
from unidetox_ray.data.world import World
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.families.loading import encode, load_tokenizer
from unidetox_ray.methods.sgeat import INSTRUCTIONS
from unidetox_ray.schemas import CORPUS
from unidetox_ray.stages import corpus, select, select_workers
from unidetox_ray.stages.corpus import corpus_section
from unidetox_ray.stages.needs import needed
from unidetox_ray.stages.scorers import filter_scorer

SMALL = ("corpus.num_texts=12", "corpus.max_length=24", "corpus.shard_size=8")
#: The judge is a word list, the filter a classifier with scores of many values.
JUDGE = {"name": "words", "kind": "lexicon", "source": "world"}
ANY = {"min_tokens": 0, "max_repetition": 1.0}


def entry_of(method="sgeat", label=None, **settings):
    return MethodEntry(method=method, label=label or method, settings=settings)


@pytest.fixture
def make(models, make_context):
    """Context maker with two scorers, the handles that the models stage would give, and a runner of the stage."""
    second = {"name": "bert", "source": models["classifier"]["path"]}
    handles = {"bert": {**models["classifier"], "sha256": None, "label": "toxic"}}

    def context(folder="run", *changes, scorers=(JUDGE, second), **values):
        return make_context(folder, *SMALL, *changes, evaluate={"scorers": list(scorers)}, **values)

    def made(context, entry):
        folder, manifest = corpus.run(context, entry, models["gpt2"], None, handles)
        assert finished(folder, manifest.key) is not None and not (folder / "parts").exists()
        return (
            pl.read_parquet(folder / "corpus.parquet"),
            pl.read_parquet(folder / "scores.parquet"),
            manifest,
        )

    context.made, context.handles = made, handles
    return context


def scored_again(models, texts):
    from unidetox_ray.metrics.toxicity import ToxicityClassifier

    return ToxicityClassifier(models["classifier"]["path"]).score(texts)


@pytest.mark.ray
def test_the_lowest_half_of_own_samples_whoever_makes_it_and_however_often(ray_session, models, make):
    one, two = make("one", "cluster.corpus_actors=1"), make("two", "cluster.corpus_actors=2")
    entry = entry_of(**ANY)
    table, scores, manifest = make.made(one, entry)
    same, same_scores, again = make.made(two, entry)
    assert same.equals(table) and same_scores.equals(scores) and again.key == manifest.key
    assert manifest.extra["sha256"] == again.extra["sha256"]

    assert dict(table.schema) == dict(CORPUS) and table.height == 12 and scores.height == 24
    chosen = manifest.extra["selection"]
    final = chosen["rounds"][-1]
    assert (final["texts"], final["kept"], final["dropped"]["ranked_out"]) == (24, 12, 12)
    assert sum(final["histogram"]["kept"]) == sum(final["histogram"]["dropped"]) == 12
    kept = scores.filter(pl.col("reason").is_null())
    assert kept["score"].max() == final["threshold"] <= final["lowest_ranked_out"]
    assert final["lowest_ranked_out"] == scores.filter(pl.col("reason") == "ranked_out")["score"].min()
    assert chosen["scorer"] == "bert" and chosen["sample_seconds"] > 0 and chosen["score_seconds"] > 0
    # What is in the corpus has those scores, and the order is drawn anew.
    by_id = dict(scores.select("text_id", "score").iter_rows())
    assert set(table["text_id"]) == set(kept["text_id"]) and table["text_id"].to_list() != sorted(
        table["text_id"]
    )
    assert scored_again(models, table["text"].to_list()) == pytest.approx(
        [by_id[i] for i in table["text_id"]], abs=1e-5
    )
    # No text of the dropped half is stored.
    assert "text" not in scores.columns
    card = (one.folder.stage("corpus-sgeat", manifest.key) / "README.md").read_text()
    assert "12 of 24 texts" in card and "Nobody has read them" in card

    # Killed behind the first of three shards: the rest is sampled, and no text differs.
    third = make("three")
    killed = third.folder.stage("corpus-sgeat", manifest.key)
    section = corpus_section(third, entry)
    worker = select_workers.SampleWorker(
        {
            "section": {**section.model_dump(mode="json"), "beta": section.beta}, "method": "sgeat", "models": [models["gpt2"]], "threads": 1,
            "scorer": select.spec_of(third, entry, make.handles), "token_budget": 4096, "prompts": [[]], "carry": False,
        }
    )  # fmt: skip
    part = worker.work({"shard": 0, "origin": 0, "first": 0, "rows": 8}).table
    (killed / "parts").mkdir(parents=True)
    part.write_parquet(killed / "parts" / "round1-shard-00000.parquet")
    resumed, _, _ = make.made(third, entry)
    assert resumed.equals(table)

    # Finished: found again under any label, by entries that differ in their training alone.
    _, _, found = make.made(
        third, entry_of(label="adapters", training="bottleneck", epochs=3, lr=1e-3, **ANY)
    )
    assert (
        found.key == manifest.key
        and third.stages[-1]["reused"]
        and third.stages[-1]["stage"] == "corpus-adapters"
    )
    # Another seed, other texts.
    worker.section = section.model_copy(update={"seed": 7})
    other = worker.work({"shard": 0, "origin": 0, "first": 0, "rows": 8}).table
    assert not set(other["text"]) & set(part["text"])


@pytest.mark.ray
def test_kept_texts_begin_those_of_the_second_round(ray_session, models, make):
    settings = {"min_tokens": 6, "max_repetition": 1.0, "prompt_tokens": 5}
    standard, plain, _ = make.made(make("plain"), entry_of(min_tokens=6, max_repetition=1.0))
    table, scores, manifest = make.made(make("run"), entry_of(prompts="augmented", **settings))
    rounds = manifest.extra["selection"]["rounds"]
    assert [each["texts"] for each in rounds] == [24, 24] and set(scores["round"]) == {1, 2}
    # The first round is the standard corpus, text by text.
    first = scores.filter(pl.col("round") == 1)
    assert first.drop("round").equals(plain.drop("round"))
    # The second keeps of its own texts alone, each a kept text's beginning continued.
    assert table["text_id"].min() >= 24 and table.height == rounds[1]["kept"] <= rounds[1]["wanted"] == 12
    assert table["n_tokens"].max() <= 23
    beginnings = {tuple(ids[:5]) for ids in standard["token_ids"].to_list()}
    assert {tuple(ids[:5]) for ids in table["token_ids"].to_list()} <= beginnings
    tokenizer = load_tokenizer(models["gpt2"]["path"])
    assert all(tokenizer.decode(ids, skip_special_tokens=True) == text for ids, text in table.select("token_ids", "text").iter_rows())  # fmt: skip


def worker_of(models, make, entry, prompts, carry=False):
    context = make()
    section = corpus_section(context, entry)
    return select_workers.SampleWorker(
        {
            "section": {**section.model_dump(mode="json"), "beta": section.beta}, "method": "sgeat", "models": [models["opt"]], "threads": 1,
            "scorer": select.spec_of(context, entry, make.handles), "token_budget": 4096, "prompts": prompts, "carry": carry,
        }
    )  # fmt: skip


def test_instructions_are_read_and_not_kept(models, make, monkeypatch):
    """OPT's tokenizer begins every text with a BOS: the instruction stands behind it, once."""
    tokenizer = load_tokenizer(models["opt"]["path"])
    prompts = [encode(tokenizer, text, bos="never") for text in INSTRUCTIONS[:2]]
    worker = worker_of(models, make, entry_of(prompts="heuristic", **ANY), prompts)
    asked = []
    real = worker.decoded
    monkeypatch.setattr(
        worker, "decoded", lambda ids, given, new: asked.extend(given) or real(ids, given, new)
    )
    worker.prompts = [ids[:20] for ids in prompts]  # the tiny model knows 64 positions
    table = worker.work({"shard": 0, "origin": 0, "first": 0, "rows": 4}).table
    assert asked == [[worker.ids.start, *worker.prompts[index % 2]] for index in range(4)]
    for text, ids in table.select("text", "token_ids").iter_rows():
        assert len(ids) <= 23 and tokenizer.decode(ids, skip_special_tokens=True) == text
        assert not any(instruction[:30] in text for instruction in INSTRUCTIONS)
    plain = worker_of(models, make, entry_of(**ANY), [[]]).work(
        {"shard": 0, "origin": 0, "first": 0, "rows": 4}
    )
    assert table["token_ids"].to_list() != plain.table["token_ids"].to_list()


def test_texts_get_an_end_token_where_they_ended_and_survive_packing(models, make):
    """Through the training's own rows: what is packed is what was kept, end tokens between documents."""
    from dataclasses import replace

    from test_training import job_of

    from unidetox_ray.stages.training import rows_of

    context = make()
    table = (
        worker_of(models, make, entry_of(**ANY), [[]])
        .work({"shard": 0, "origin": 0, "first": 0, "rows": 40})
        .table
    )
    path = context.folder.root / "corpus.parquet"
    table.select(list(CORPUS)).with_columns(ended=pl.col("text_id") % 2 == 0).write_parquet(path)
    tokenizer = load_tokenizer(models["gpt2"]["path"])
    job = replace(job_of(models, path, context.folder.root, "rows"), append_eos=True)
    rows, _ = rows_of(job, tokenizer, tokenizer.eos_token_id)
    packs = pack_texts(rows, 64)
    assert sorted(row for pack in packs for row in pack) == sorted(rows) and len(packs) < len(rows)
    texts = table["text"].to_list()
    assert len(rows) == len(texts)
    for number, row in enumerate(rows):
        has_end = row[-1] == tokenizer.eos_token_id
        assert has_end == (number % 2 == 0)
        assert tokenizer.decode(row[:-1] if has_end else row) == texts[number]


@pytest.mark.ray
def test_the_least_toxic_documents_become_texts_of_the_corpus_size(ray_session, models, make):
    clean = World().clean()
    train = clean.filter(pl.col("split") == "train")["text"].to_list()
    table, scores, manifest = make.made(make(), entry_of("dapt", keep=0.05, min_tokens=4, max_repetition=1.0))
    chosen = manifest.extra["selection"]
    final = chosen["rounds"][0]
    assert (
        final["texts"] == scores.height == len(train)
        and final["kept"] == int(0.05 * len(train)) == chosen["documents"]
    )
    assert table.height == 12 and set(table["n_tokens"]) == {23} and chosen["passes"] > 0
    kept = [train[index] for index in scores.filter(pl.col("reason").is_null())["text_id"]]
    assert all(any(text.startswith(document[: len(text)]) for document in kept) for text in table["text"])
    assert max(scored_again(models, kept)) <= min(scored_again(models, [text for text in train if text not in kept])) + 1e-5  # fmt: skip
    with pytest.raises(DataError, match=r"corpus dapt: keep = the lowest 0 of 400 texts leaves none"):
        make.made(make("none"), entry_of("dapt", keep=0.001))


def test_the_judge_never_filters(make, models):
    def chosen(scorers, **settings):
        return filter_scorer(make(scorers=scorers).experiment, entry_of(**settings)).name

    second, third = ({"name": name, "kind": "lexicon", "source": "world"} for name in ("second", "third"))
    assert (
        chosen([JUDGE, second, third]) == "second"
        and chosen([JUDGE, second, third], scorer="third") == "third"
    )
    with pytest.raises(
        ConfigError, match=r"^methods\.sgeat: settings\.scorer = 'words' is the judge, .*accepted: second$"
    ):
        chosen([JUDGE, second], scorer="words")
    with pytest.raises(ConfigError, match=r"settings\.scorer = 'secnd' is no scorer .*did you mean 'second'"):
        chosen([JUDGE, second], scorer="secnd")
    with pytest.raises(ConfigError, match=r"evaluate\.scorers holds 'words' alone; add a second one there$"):
        chosen([JUDGE])


def test_refusals_come_before_anything_is_made(make, models):
    def needs(entry, scorers=(JUDGE, {**JUDGE, "name": "second"}), **values):
        return needed(make(scorers=scorers, methods=["base", entry], **values).experiment)

    found = needs("sgeat")
    assert found.copies == () and [entry.label for entry in found.sampled] == ["sgeat"]  # no toxic model
    assert needs({"method": "dapt", "settings": {"keep": 0.5}}).sampled == ()
    with pytest.raises(ConfigError, match="add a second one"):
        needs("sgeat", scorers=(JUDGE,))
    with pytest.raises(ConfigError, match="add a second one"):
        needs("dapt", scorers=(JUDGE,))
    data = {"toxic": "world", "prompts": "world", "mmlu": None, "pretrain": ["world"]}
    with pytest.raises(ConfigError, match=r"^methods\.dapt: takes its text from data\.clean, which is null"):
        needs("dapt", data=data)
    fixed = {"method": "sgeat", "settings": {"epochs": 3}}
    with pytest.raises(
        ConfigError, match=r"settings\.epochs fixes the training and so contradicts the search"
    ):
        needs(fixed, search={"method": "sgeat"})
    with pytest.raises(
        ConfigError, match=r"settings\.epochs fixes the training and so contradicts tune\.steps"
    ):
        needs({**fixed, "tune": {"steps": [10, 20]}})
    with pytest.raises(ConfigError, match="prompt_tokens = 30 leaves no room"):
        corpus.run(
            make(),
            entry_of(prompts="augmented", prompt_tokens=30, min_tokens=31),
            models["gpt2"],
            None,
            make.handles,
        )
