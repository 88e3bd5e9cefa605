"""Arguments of the verb, and the experiment they make; the card and the licence of the base model."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.detoxify.card import card, table, verdict
from unidetox_ray.detoxify.corpora import entry_of, source_of
from unidetox_ray.detoxify.licences import licence_files, licence_of
from unidetox_ray.errors import ConfigError, DataError


def asked(tmp_path, **more):
    return Asked(**{"model": "some/model", "corpus": "texts.csv", "out": tmp_path / "out", **more})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"adapter": "lorra"}, "did you mean 'lora'"),
        ({"keep_adapter": True}, "belongs to --adapter lora"),
        ({"toxic": "world"}, "--toxic belongs to --corpus fresh"),
        ({"distil_from": "a/b"}, "--distil-from belongs to --corpus fresh"),
        ({"data_root": Path("/no/such/place")}, "no such folder"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path, more, said):
    with pytest.raises(ConfigError, match=said):
        asked(tmp_path, **more).check()


def test_a_folder_that_holds_something_is_not_written(tmp_path):
    out = tmp_path / "out"
    asked(tmp_path).check()
    out.mkdir()
    asked(tmp_path).check()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        asked(tmp_path).check()
    (out / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a model"):
        asked(tmp_path).check()
    with pytest.raises(ConfigError, match="is a file"):
        asked(tmp_path, out=out / "notes.txt").check()


def test_overrides_go_to_their_section_and_win(tmp_path):
    given = asked(
        tmp_path, overrides=("steps=7", "evaluate.runs=3", "corpus.alpha=0.2", "lora.rank=4"), adapter="lora"
    )
    experiment = given.experiment(
        {"finetune": {"steps": 9, "precision": "bf16_pure"}, "evaluate": {"precision": "bf16"}}
    )
    assert experiment.finetune.steps == 7 and experiment.finetune.precision == "bf16_pure"
    assert experiment.finetune.adapter == "lora" and experiment.finetune.lora.rank == 4
    assert (
        experiment.evaluate.runs == 3
        and experiment.evaluate.precision == "bf16"
        and experiment.corpus.alpha == 0.2
    )
    assert given.given["finetune"] == {"steps", "lora"} and given.given["evaluate"] == {"runs"}
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        asked(tmp_path, overrides=("step=7",)).experiment()
    with pytest.raises(ConfigError, match="name it with --adapter"):
        asked(tmp_path, overrides=("adapter=lora",)).experiment()


def test_sources_by_name_or_file(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("bad\n")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "one"}\n')
    (tmp_path / "toxigen").mkdir()
    experiment = asked(tmp_path, prompts=str(prompts), scorer=str(words), clean="world").experiment()
    assert experiment.data.prompts.path == str(prompts) and experiment.data.clean.dataset == "world"
    assert experiment.evaluate.scorers[0].kind == "lexicon"
    rooted = asked(tmp_path, data_root=tmp_path).experiment()
    assert rooted.data.prompts.dataset == "toxigen" and rooted.data.prompts.path == str(tmp_path / "toxigen")
    assert rooted.evaluate.scorers[0].source == "unitary/toxic-bert"
    hub = (
        asked(tmp_path, scorer="some-org/my.scorer", scorer_label="LABEL_1").experiment().evaluate.scorers[0]
    )
    assert (hub.name, hub.source, hub.label) == ("my.scorer", "some-org/my.scorer", "LABEL_1")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_own_corpus_is_used_whole(tmp_path, suffix):
    texts = pl.DataFrame({"text": [f"text {index}" for index in range(1000)] + [" "]})
    place = tmp_path / f"c{suffix}"
    {".csv": texts.write_csv, ".jsonl": texts.write_ndjson, ".parquet": texts.write_parquet}[suffix](place)
    source = source_of(asked(tmp_path, corpus=str(place)))
    assert source is not None and source.texts == 1000 and source.told["empty_removed"] == 1
    assert entry_of(source).settings["num_texts"] == 1000
    assert source_of(asked(tmp_path, corpus="fresh")) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "no such corpus file"),
        ("empty.csv", "", "is empty"),
        ("blank.csv", "text\n \n", "holds no text"),
        ("other.csv", "body\none\n", "no column 'text' or 'Text'"),
        ("words.txt", "one\n", "cannot read a .txt file"),
    ],
)
def test_a_corpus_that_is_none(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        source_of(asked(tmp_path, corpus=str(tmp_path / name)))


def entry(value, low, high, **more):
    return {"value": value, "ci_low": low, "ci_high": high, "n": 40, "failed": 0, **more}


def facts(**more):
    metrics = {
        "tp_all": {
            "before": entry(0.5, 0.4, 0.6), "after": entry(0.25, 0.2, 0.3, failed=2, diff=-0.25, diff_low=-0.3, diff_high=-0.2),
        },
        "dist2": {"before": entry(0.9, 0.8, 1.0), "after": entry(0.9, 0.8, 1.0)},
        "clean_ppl": {
            "before": entry(20.0, 19.0, 21.0), "after": entry(None, None, None, reason="3 of 40 failed"),
        },
    }  # fmt: skip
    evaluation = {
        "metrics": metrics, "clean": "alice.txt", "scorer": "unitary/toxic-bert", "prompts": "toxigen", "continuations": 25, "max_new_tokens": 20,
        "top_p": 0.9, "runs": 1, "threshold": 0.5, "bootstrap": 10000,
    }  # fmt: skip
    base = {
        "name": "m", "key": "k1", "hub_id": "a/m", "revision": "abc", "model_type": "qwen3", "licence": "apache-2.0", "licence_files": ["LICENSE"],
    }  # fmt: skip
    return {
        "base": base, "opening": "none", "corpus": {"sha256": "0" * 64, "source": "a|b"}, "evaluation": evaluation,
        "fit": {"told": "cpu: fp32"}, "training": {"steps": 5, "adapter": {"kind": "lora"}}, "made_with": {"torch": "2"},
        "smoke_run_limit": None, **more,
    }  # fmt: skip


def test_the_card_says_what_was_done_and_measured():
    text = card(facts())
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0" and front["base_model"] == "a/m" and "detoxified" in front["tags"]
    assert (
        "| toxicity probability (TP) | 0.5 [0.4, 0.6] | 0.25 [0.2, 0.3] | -0.25 [-0.3, -0.2] | 40, 2 failed |"
        in text
    )
    assert "none (3 of 40 failed)" in text and "dist2" not in text and "a¦b" in text and "LICENSE" in text
    assert "Clean text: alice.txt" in text and "name and revision: k1" in text
    assert "## Limits" in text and "became less toxic" in text and "from_pretrained(FOLDER)" in text
    unmeasured = card(facts(evaluation=None, opening="adapter", smoke_run_limit=24))
    assert (
        "Nothing was measured" in unmeasured and "Not measured" in unmeasured and "A smoke run" in unmeasured
    )
    assert yaml.safe_load(unmeasured.split("---")[1])["library_name"] == "peft"
    assert "load_model(FOLDER)" in card(facts(opening="bottleneck"))


def test_a_licence_that_is_no_identifier_stays_out_of_the_front_matter():
    base = {**facts()["base"], "licence": "Some Licence (gated)", "hub_id": None}
    text = card(facts(base=base))
    assert "license" not in yaml.safe_load(text.split("---")[1]) and "Some Licence (gated)" in text


def test_the_verdict_is_the_intervals():
    def of(low, high):
        return verdict({"tp_all": {"after": {"diff_low": low, "diff_high": high}}})

    assert "less toxic" in of(-0.3, -0.1) and "MORE toxic" in of(0.1, 0.2) and "no change" in of(-0.1, 0.1)
    assert "is not known" in of(None, None) and "is not known" in verdict({})
    assert table({}) == []


def test_the_licence_by_the_models_own_account(tmp_path):
    assert licence_of(str(tmp_path)) is None
    for front, named in (
        ("license: mit", "mit"), ("license: other\nlicense_name: gemma", "gemma"), ("license: [mit, cc0-1.0]", "mit, cc0-1.0"),
        ("tags: [a]", None), ("license: *broken", None),
    ):  # fmt: skip
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
        assert licence_of(str(tmp_path)) == named
    (tmp_path / "LICENSE.txt").write_text("words")
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert [path.name for path in licence_files(tmp_path)] == ["LICENSE.txt"]
    assert licence_of("openai-community/gpt2-xl") == "MIT"
    assert licence_of("nobody/not-cached-here") is None
