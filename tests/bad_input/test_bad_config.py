"""Experiment files that are wrong, hostile or odd: one line that names the file and the place, exit 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unidetox_ray import yaml_file
from unidetox_ray.cli import app
from unidetox_ray.config import Experiment, load, resolve, to_yaml
from unidetox_ray.errors import ConfigError, UnidetoxError

GOOD = "name: good\nbase_family: gpt2\nfamilies: [gpt2]\nmethods: [base]\nmodels: {gpt2: some/model}\n"
VALUES = {"name": "x", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base"]}


def bomb(lines: int) -> str:
    names = [chr(ord("a") + index) for index in range(lines)]
    return "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9) if before else 'lol'}]\n"
        for before, name in zip([None, *names], names, strict=False)
    )


FILES = {
    "anchor bomb": (bomb(9).encode(), "aliases"),
    "merge key": (b"a: &a {x: 1}\nb: {<<: *a}\n", "aliases"),
    "python object": (GOOD.encode() + b"seed: !!python/object/new:os.system [id]\n", "is not accepted"),
    "a tag of its own": (GOOD.encode() + b"description: !secret x\n", "is not accepted"),
    "a tag on a key": (GOOD.encode() + b"!!str seed: 3\n", "is not accepted"),
    "binary": (GOOD.encode() + b"description: !!binary aGk=\n", "is not accepted"),
    "a mapping as key": (GOOD.encode() + b"{a: 1}: 2\n", "a key must be plain text"),
    "two documents": (GOOD.encode() + b"---\nname: other\n", "found another document"),
    "deep": (b"a: " + b"[" * 5000, "not readable as YAML"),
    "latin-1": (GOOD.encode() + "description: gr\u00fcn\n".encode("latin-1"), "is not UTF-8"),
    "utf-16": (GOOD.encode("utf-16"), "is not UTF-8"),
    "NUL": (GOOD.encode() + b"description: a\x00b\n", "not readable as YAML"),
    "escaped NUL": (GOOD.encode() + b'storage: "a\\0b"\n', "storage holds the character U+0000"),
    "escape codes": (GOOD.encode() + b'storage: "\\e[31mred"\n', "U+001B"),
    "half a pair": (GOOD.encode() + b'description: "\\ud800"\n', "U+D800"),
    "a line end in a name": (b'name: "a\\nb"\n' + GOOD[11:].encode(), "U+000A"),
    "too large": (b"#" * (yaml_file.MAX_BYTES + 1), "at most that"),
    "a number of 5000 digits": (GOOD.encode() + b"seed: " + b"9" * 5000 + b"\n", "not readable as YAML"),
    "a seed beyond 32 bits": (GOOD.encode() + b"seed: 99999999999\n", "seed = 99999999999"),
    "a negative seed": (GOOD.encode() + b"seed: -1\n", "seed = -1"),
    "infinity for a number of texts": (GOOD.encode() + b"corpus: {num_texts: .inf}\n", "corpus.num_texts = Infinity"),
    "NaN for beta": (GOOD.encode() + b"corpus: {beta: .nan}\n", "corpus.beta = NaN"),
    "NaN for a share": (GOOD.encode() + b"evaluate: {max_failed_share: .nan}\n", "evaluate.max_failed_share = NaN"),
    "true for a number": (GOOD.encode() + b"seed: true\n", "seed = true"),
    "text for a section": (GOOD.encode() + b"corpus: much\n", 'corpus = "much"'),
    "a list for a section": (GOOD.encode() + b"corpus: [1]\n", "corpus = [1]"),
    "null for a section": (GOOD.encode() + b"corpus: null\n", "corpus = null"),
    "storage above": (GOOD.encode() + b"storage: ../../etc\n", "storage = '../../etc' holds '..'"),
    "storage on the way": (GOOD.encode() + b"storage: s3://bucket/../other\n", "holds '..'"),
    "cache above": (GOOD.encode() + b"cache: a/../../b\n", "cache = "),
    "tracking above": (GOOD.encode() + b"tracking: {uri: 'sqlite:///../x.db'}\n", "tracking.uri = "),
    "data above": (GOOD.encode() + b"data: {clean: {dataset: text, path: ../../etc/passwd}}\n", "data.clean.path = "),
    "more data above": (
        GOOD.encode() + b"data: {pretrain: [{dataset: text, path: a.txt}, {dataset: text, path: ../b.txt}]}\n",
        "data.pretrain[1].path = ",
    ),
    "a name of dots": (GOOD.replace("good", "..").encode(), "name = "),
    "an encoded name": (GOOD.replace("good", "'%2e%2e'").encode(), "name = "),
    "a name with a slash": (GOOD.replace("good", "a/b").encode(), "name = "),
    "a long name": (GOOD.replace("good", "x" * 81).encode(), "name = "),
    "the cache's name": (GOOD.replace("good", "Cache").encode(), "the folder where storage keeps models"),
    "labels that differ in case": (
        GOOD.replace("[base]", "[base, {method: samples, label: Base}]").encode(), "stands twice",
    ),
    "a long label": (GOOD.replace("[base]", "[{method: base, label: " + "x" * 61 + "}]").encode(), "label"),
    "scorers that differ in case": (
        GOOD.encode() + b"evaluate: {scorers: [{name: a, kind: lexicon, source: world}, {name: A, kind: lexicon, source: world}]}\n",
        "differ in more than case",
    ),
    "a scorer's path as name": (GOOD.encode() + b"evaluate: {scorers: [{name: ../a}]}\n", "evaluate.scorers.0.name"),
    "a path of 5000 characters": (GOOD.encode() + b"storage: " + b"x" * 5000 + b"\n", "at most 4096"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_one_line_with_its_place_and_leaves_nothing(case, tmp_path, monkeypatch):
    raw, said = FILES[case]
    path = tmp_path / "bad.yaml"
    path.write_bytes(raw)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        app(["run", str(path)], standalone_mode=False)
    message = str(refused.value)
    assert said in message and str(path) in message and refused.value.exit_code == 2
    assert message.isprintable() and len(message) < 1600
    assert [each.name for each in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    (tmp_path / "plain.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "marked.yaml").write_text(GOOD, encoding="utf-8-sig")
    (tmp_path / "windows.yaml").write_text(GOOD, encoding="utf-8-sig", newline="\r\n")
    assert len({load(tmp_path / f"{name}.yaml").key for name in ("plain", "marked", "windows")}) == 1


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b", "x" * 5000, "/dev/zero"])
def test_what_is_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load(name)
    assert "\n" not in str(refused.value)


def test_a_file_that_comes_through_a_pipe(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write({GOOD!r})"])
    try:
        assert load(pipe).name == "good"
    finally:
        writer.wait(timeout=60)


# Fuzzing. Whatever comes in, an experiment comes out or one line of ours; and an experiment reads back to itself.

SECTIONS = sorted(Experiment.model_fields)
INNER = sorted({
    name for field in Experiment.model_fields.values() for name in getattr(field.annotation, "model_fields", {})
})  # fmt: skip
any_text = st.text(max_size=12) | st.text(
    st.characters(categories=["Cc", "Cs", "Cf", "Lo", "So"]), max_size=4
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | any_text
    | st.sampled_from(["base", "gpt2", "world", "..", "a/../b"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER) | any_text, inner, max_size=4)
    ),
    max_leaves=10,
)


def tried(function):
    """What a function gives, or None where it ends in one line of ours."""
    try:
        return function()
    except UnidetoxError as error:
        message = str(error)
        assert error.exit_code == 2 and "\n" not in message and message.isprintable() and len(message) < 1600
        return None


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.sampled_from(SECTIONS) | any_text, values, max_size=4))
@example({"description": "a\nb\tc"})
@example({"storage": "~nobody-of-this-name/x"})
@example({"corpus": {"beta": float("inf")}})
def test_any_values_are_an_experiment_or_one_line(found):
    experiment = tried(lambda: resolve({**VALUES, **found}))
    if experiment is not None:
        again = resolve(yaml_file.parse(to_yaml(experiment), "resolved"))
        assert again == experiment and again.key == experiment.key


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(SECTIONS), values, max_size=3).map(lambda found: {**VALUES, **found}),
    st.booleans(),
    st.data(),
)
def test_a_file_with_a_few_changed_bytes(found, flow, data):
    raw = bytearray(
        yaml.safe_dump(found, default_flow_style=flow, allow_unicode=True).encode("utf-8", "surrogatepass")
    )
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"&a ", b"*a", b"!!", b"\t", b": ", b"- "])
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return
    tried(lambda: resolve(parsed) if isinstance(parsed := yaml_file.parse(text, "file"), dict) else None)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from(SECTIONS + INNER) | any_text, min_size=1, max_size=3).map(".".join),
    any_text | scalars.map(str),
)
@example("corpus.beta", "inf")
@example("data.clean", "../../etc/passwd")
@example("__class__.__init__", "x")
def test_any_override_is_taken_or_one_line(key, value):
    tried(lambda: resolve({**VALUES, "models": {"gpt2": "some/model"}}, [f"{key}={value}"]))


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory, raw):
    path = Path(tmp_path_factory.getbasetemp()) / "fuzz.yaml"
    path.write_bytes(raw)
    tried(lambda: load(path))
