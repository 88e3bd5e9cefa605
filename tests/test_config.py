"""Experiments: reading, refusing, overriding, hashing."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidetox_ray import yaml_file
from unidetox_ray.config import PRESETS, Experiment, load, resolve, to_yaml
from unidetox_ray.errors import ConfigError, UnidetoxError

GOOD = """
name: good
base_family: gpt2
families: [gpt2, opt]
methods: [base, unidetox]
models: {gpt2: some/model}
finetune: {lr: 1e-5, steps: 10}
"""


def write(tmp_path, text, mode="w", **options):
    path = tmp_path / "e.yaml"
    with path.open(mode, **options) as stream:
        stream.write(text)
    return path


def refused(path, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    return message


def test_numbers_are_numbers(tmp_path):
    experiment = load(write(tmp_path, GOOD), ["toxic.lr=2e-4", "corpus.beta=inf", "corpus.alpha=0.05"])
    assert (experiment.finetune.lr, experiment.toxic.lr, experiment.corpus.alpha) == (1e-5, 2e-4, 0.05)
    assert load(write(tmp_path, GOOD), ["corpus.beta=.inf"]).corpus == load(write(tmp_path, GOOD)).corpus


BAD = {
    "unknown key": (GOOD + "fintune: {lr: 1}\n", "unknown key 'fintune'; did you mean 'finetune'?"),
    "unknown inner key": (GOOD.replace("steps", "stepps"), "did you mean 'steps'?"),
    "duplicate key": (GOOD + "name: twice\n", "line 8, column 1: the key 'name' stands here twice"),
    "duplicate inner key": (GOOD.replace("steps: 10", "lr: 2"), "the key 'lr' stands here twice"),
    "negative lr": (GOOD.replace("1e-5", "-1e-5"), "finetune.lr = -1e-05"),
    "NaN lr": (GOOD.replace("1e-5", ".nan"), "finetune.lr = NaN"),
    "infinite lr": (GOOD.replace("1e-5", ".inf"), "finetune.lr = Infinity"),
    "text for a number": (GOOD.replace("1e-5", "fast"), 'finetune.lr = "fast"'),
    "half a step": (GOOD.replace("steps: 10", "steps: 1.5"), "finetune.steps = 1.5"),
    "no steps": (GOOD.replace("steps: 10", "steps: 0"), "finetune.steps = 0"),
    "empty families": (GOOD.replace("[gpt2, opt]", "[]"), "families = []"),
    "unknown family": (GOOD.replace("opt", "otp"), "unknown family 'otp'; did you mean 'opt'?"),
    "family twice": (GOOD.replace("[gpt2, opt]", "[gpt2, gpt2]"), "twice"),
    "unknown method": (
        GOOD.replace("unidetox]", "unidetx]"),
        "unknown method 'unidetx'; did you mean 'unidetox'?",
    ),
    "method twice": (GOOD.replace("unidetox]", "unidetox, unidetox]"), "stands twice"),
    "unknown method setting": (
        GOOD.replace("unidetox]", "{method: unidetox, settings: {aplha: 1}}]"),
        "did you mean 'alpha'?",
    ),
    "missing name": (GOOD.replace("name: good", ""), "name is missing"),
    "path as name": (GOOD.replace("name: good", "name: ../good"), "name = "),
    "unknown fidelity": (GOOD + "fidelity: papre\n", "did you mean 'paper'?"),
    "secret": (GOOD + "hub_token: hf_abcdefghijkl\n", "looks like a secret"),
    "secret in a value": (GOOD + "description: use hf_abcdefghijkl\n", "looks like a secret"),
    "a tag": (GOOD + "description: !!python/object/apply:os.system [x]\n", "is not accepted"),
    "an alias": ("a: &a [x]\nb: *a\n", "aliases"),
    "a list": ("- 1\n", "holds list"),
    "nothing": ("", "holds NoneType"),
    "broken": (GOOD + "data: [\n", "line "),
    "a tab": ("name: good\n\tx: 1\n", "line 2"),
    "alpha over one": (GOOD + "corpus: {alpha: 2}\n", "corpus.alpha = 2"),
    "scratch without text": (GOOD.replace("some/model", "'scratch:'"), "data.pretrain is empty"),
    "unknown data set": (GOOD + "data: {toxic: dghss}\n", "unknown data set 'dghss'; did you mean 'dghs'?"),
    "search for a method not there": (GOOD + "search: {method: samples}\n", "search.method is 'samples'"),
    "empty search": (GOOD + "search: {lr: []}\n", "at least one value"),
    "offload without shards": (
        GOOD.replace("steps: 10", "steps: 10, deepspeed: {offload: optimizer}"),
        "needs stage 1, 2 or 3",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line_that_names_the_place(case, tmp_path):
    text, expected = BAD[case]
    path = write(tmp_path, text)
    message = refused(path)
    assert expected in message and str(path) in message
    assert [p.name for p in tmp_path.iterdir()] == ["e.yaml"]


def test_unreadable_files(tmp_path):
    assert "cannot be read" in refused(tmp_path / "absent.yaml")
    assert "cannot be read" in refused(tmp_path)
    assert "is not UTF-8" in refused(write(tmp_path, b"name: \xff\xfe", "wb"))
    assert "at most" in refused(write(tmp_path, "x" * (yaml_file.MAX_BYTES + 1)))
    assert load(write(tmp_path, "\ufeff" + GOOD, encoding="utf-8")).name == "good"


def test_overrides(tmp_path):
    path = write(tmp_path, GOOD)
    assert load(path, ["families=[llama]", "base_family=llama"]).families == ("llama",)
    assert load(path, ["models.gpt2.revision=abc"]).models["gpt2"].source == "some/model"
    assert "write key=value" in refused(path, "finetune.lr")
    assert "holds no keys" in refused(path, "name.x=1")
    assert "did you mean 'lr'?" in refused(path, "finetune.lrr=1")


def test_the_same_experiment_has_the_same_key_wherever_it_runs(tmp_path):
    path = write(tmp_path, GOOD)
    key = load(path).key
    for neutral in (
        "cluster.corpus_actors=7",
        "storage=/else",
        "tracking.uri=none",
        "description=other",
        "finetune.checkpoint_every=5",
        "cache=/c",
        "data.data_root=/d",
    ):
        assert load(path, [neutral]).key == key, neutral
    for changing in (
        "seed=2",
        "finetune.lr=2e-5",
        "corpus.beta=3",
        "evaluate.top_k=50",
        "fidelity=as_released",
        "families=[gpt2]",
    ):
        assert load(path, [changing]).key != key, changing
    assert load(path, limit=3).key != key


def test_resolved_yaml_reads_back_to_an_equal_experiment(tmp_path):
    for override in ("fidelity=paper", "fidelity=as_released"):
        experiment = load(write(tmp_path, GOOD), [override, "search.lr=[1e-5, 2e-5]"])
        again = resolve(yaml_file.parse(to_yaml(experiment), "again"))
        assert again == experiment and again.key == experiment.key


def test_as_released_sets_every_difference_and_the_file_still_wins(tmp_path):
    """One row per setting of docs/fidelity.md."""
    path = write(tmp_path, GOOD + "data: {toxic: dghs}\n")
    released, paper = load(path, ["fidelity=as_released"]), load(path)
    expected = {
        "data.toxic.options": ({}, {"version": "both"}),
        "toxic.precision": ("fp32", "bf16_pure"), "toxic.loss_on_padding": (False, True), "toxic.pad_to": ("batch", "longest"), "toxic.append_eos": (True, False),
        "corpus.kv_cache": ("separate", "shared"), "corpus.contrast_dtype": ("fp32", "bf16"), "corpus.precision": ("fp32", "bf16"), "corpus.top_k": (0, 50),
        "finetune.precision": ("fp32", "bf16_pure"), "finetune.loss_on_padding": (False, True), "finetune.pad_to": ("batch", "longest"), "finetune.append_eos": (True, False),
        "evaluate.top_k": (0, 50), "evaluate.prompt_bos": ("auto", "never"), "evaluate.prefix_cut": ("tokens", "replace"), "evaluate.precision": ("fp32", "bf16"),
        "evaluate.group_by": ("prompt_id", "prompt_text"), "evaluate.ppl_precision": ("fp32", "bf16"), "evaluate.ppl_encoding": ("tokens", "text"),
        "evaluate.ppl_prompt_cache": ("by_id", "last_seen"), "evaluate.mmlu.score": ("answer_tokens", "full_text"), "evaluate.mmlu.loss_dtype": ("fp32", "bf16"),
    }  # fmt: skip

    def at(experiment, place):
        for part in place.split("."):
            experiment = getattr(experiment, part)
        return experiment

    for place, (in_paper, as_released) in expected.items():
        assert at(paper, place) == in_paper, place
        assert at(released, place) == as_released, place

    def leaves(preset, prefix=""):
        for name, value in preset.items():
            yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]

    named = {
        leaf.replace("options.version", "options").replace("toxic.dataset", "toxic.options")
        for leaf in leaves(PRESETS["as_released"])
    }
    assert named == set(expected), "a preset value without a row here"
    assert load(path, ["fidelity=as_released", "corpus.top_k=7"]).corpus.top_k == 7


def test_shipped_experiments_load_and_key_differently(root):
    found = {path.name: load(path) for path in sorted((root / "experiments").glob("*.yaml"))}
    assert {"tiny.yaml", "mini.yaml", "single_a100.yaml", "paper_cluster.yaml", "search.yaml"} <= set(found)
    assert all(name == f"{experiment.name}.yaml" for name, experiment in found.items())
    assert all(experiment.families == ("gpt2", "opt", "falcon", "llama") for experiment in found.values())


def test_schema_knows_every_section():
    schema = Experiment.model_json_schema()
    assert {"finetune", "corpus", "toxic", "evaluate", "search", "cluster"} <= set(schema["properties"])
    json.dumps(schema)


def test_config_and_help_load_neither_torch_nor_ray():
    code = (
        "import sys, unidetox_ray.cli, unidetox_ray.config as c;"
        "c.resolve({'name':'x','base_family':'gpt2','families':['gpt2'],'methods':['base','unidetox','samples'],'models':{'gpt2':'m'}});"
        "print([m for m in ('torch','ray','mlflow','transformers','deepspeed') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "families", "finetune", "lr", "corpus", "beta", "data", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values)
@settings(deadline=None, max_examples=150)
def test_any_values_are_accepted_or_refused_in_one_line(value):
    try:
        resolve(
            {
                "name": "x",
                "base_family": "gpt2",
                "families": ["gpt2"],
                "methods": ["base"],
                **(value if isinstance(value, dict) else {"corpus": value}),
            }
        )
    except UnidetoxError as error:
        assert "\n" not in str(error)


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_text_parses_or_is_refused_in_one_line(text):
    try:
        yaml_file.parse(text, "text")
    except UnidetoxError as error:
        assert "\n" not in str(error)
