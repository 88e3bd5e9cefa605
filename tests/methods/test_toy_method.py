"""A method is one file and one registry line: the examples of docs/extending.md, one of each kind, as they stand there.

Each is written to a scratch folder, gets its line, and then runs through the functions that the stages call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from decoding_models import make_kit
from safetensors.torch import load_file

from unidetox_ray import registry
from unidetox_ray.artifacts import RunFolder, finished
from unidetox_ray.config import resolve
from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.errors import ConfigError
from unidetox_ray.families.loading import load_model
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages.cells import cells_of, steer
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.corpus import CorpusWorker, corpus_section
from unidetox_ray.stages.edit import edit_task, inputs_of, toxic_of, write_edit
from unidetox_ray.stages.needs import method_of, needed
from unidetox_ray.stages.opening import OpenModel

TOYS = {"cool": "corpus", "mixed": "decoding", "trimmed": "weights"}
EVALUATE = EvaluateSection(continuations=2, max_new_tokens=6, runs=1)
PROMPTS = [("a", "The river is"), ("b", "Most owls"), ("c", "A calm fox of the hills said that")]


def example(root: Path, name: str) -> str:
    """The block of Python behind the file's name in the section on methods."""
    text = (root / "docs" / "extending.md").read_text(encoding="utf-8").partition("\n## A method\n")[2]
    section = text.partition("\n## A metric\n")[0]
    block = section.partition(f"`unidetox_ray/methods/{name}.py`:\n\n```python\n")[2].partition("```")[0]
    line = f'`"{name}": "unidetox_ray.methods.{name}:METHOD",`'
    assert block and line in section
    return block


@pytest.fixture(autouse=True)
def registered(root, tmp_path, monkeypatch):
    """The three files and the three lines, until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in TOYS:
        (tmp_path / f"scratch_{name}.py").write_text(example(root, name), encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"scratch_{name}", raising=False)
        monkeypatch.setitem(registry.METHODS, name, f"scratch_{name}:METHOD")


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return make_kit("gpt2", tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def handles(kit, tmp_path_factory):
    """Handles of gpt2's base model and its copies."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for role, model in kit.models.items():
        model.save_pretrained(root / role)
        kit.tokenizers[role].save_pretrained(root / role)
        found[role] = {
            "path": str(root / role),
            "revision": None,
            "key": role,
            "family": "gpt2",
            "name": role,
        }
    return found


@pytest.fixture
def make_context(tmp_path):
    def make(*methods, **values):
        data = dict.fromkeys(("toxic", "prompts", "clean", "mmlu", "scorer"), "world")
        given = {
            "name": "toys", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base", *methods],
            "models": {"gpt2": "scratch:"}, "data": {**data, "pretrain": ["world"]}, **values,
        }  # fmt: skip
        return Context(resolve(given), RunFolder(tmp_path / "run", "toys", None))

    return make


def cells_by_label(context, handles):
    return {cell.method.label: cell for cell in cells_of(context.experiment, {"gpt2": handles["base"]})}


def sampled(handle):
    model, tokenizer = OpenModel("cpu", "fp32").open(handle)
    rows = continuations(model, tokenizer, PROMPTS, EVALUATE, cell="c", run=0, decode_rows=8)
    assert all(row["error"] is None for row in rows)
    return model, [row["text"] for row in rows]


def test_they_are_named_checked_and_asked_what_they_need(make_context):
    assert {name: registry.lookup("methods", name).kind for name in TOYS} == TOYS
    context = make_context(*TOYS)
    found = needed(context.experiment)
    assert found.copies == (("toxic", "gpt2"), ("expert", "gpt2"))
    assert [entry.label for entry in found.sampled] == ["cool"] and found.for_corpora == frozenset()
    with pytest.raises(ConfigError, match=r"mixed.*wieght.*did you mean 'weight'"):
        make_context({"method": "mixed", "settings": {"wieght": 0.5}})
    with pytest.raises(ConfigError, match="unknown method 'mixes'; did you mean 'mixed'"):
        make_context("mixes")


def test_a_decoding_method_of_ones_own_is_opened_and_sampled_like_any_other(make_context, handles):
    entries = [{"method": "mixed", "label": f"mixed-{w}", "settings": {"weight": w}} for w in (0, 0.5, 1)]
    cells = cells_by_label(make_context(*entries), handles)
    steer(list(cells.values()), Copies(models={("expert", "gpt2"): handles["expert"]}))
    texts = {label: sampled(cell.model) for label, cell in cells.items()}
    assert texts["mixed-0"][1] == texts["base"][1]
    assert texts["mixed-1"][1] == sampled(handles["expert"])[1]
    middle, text = texts["mixed-0.5"]
    assert isinstance(middle, SteeredModel) and text != texts["base"][1] != texts["mixed-1"][1] != text
    # The mean of the two models' logits, which is what its likelihoods are read from.
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        both = [load_model(handles[role]["path"])(input_ids=ids).logits for role in ("base", "expert")]
        expected = (sum(both) / 2).log_softmax(-1)
        torch.testing.assert_close(middle(ids).logits.log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_a_weights_method_of_ones_own_is_edited_saved_and_opened_like_any_other(
    make_context, handles, tmp_path
):
    entries = [{"method": "trimmed", "label": f"trimmed-{s}", "settings": {"strength": s}} for s in (0, 1)]
    cells = cells_by_label(make_context(*entries), handles)
    folders = {}
    for strength in (0, 1):
        cell, copies = cells[f"trimmed-{strength}"], Copies(models={("toxic", "gpt2"): handles["toxic"]})
        toxic = toxic_of(cell, method_of(cell.method), copies)
        assert inputs_of(cell, toxic) == {"model": "base", "toxic": "toxic"}
        task = edit_task(cell, method_of(cell.method), toxic, tmp_path / cell.name, "key")
        write_edit(json.loads(json.dumps(task)))
        folders[strength] = tmp_path / cell.name
        assert finished(folders[strength], "key").extra["device"] == "cpu"
    base, toxic, none, whole = (
        load_file(Path(folder) / "model.safetensors")
        for folder in (handles["base"]["path"], handles["toxic"]["path"], folders[0], folders[1])
    )
    assert all(torch.equal(none[name], base[name]) for name in base)
    changes = {name: (toxic[name] - base[name], whole[name] - base[name]) for name in base}
    matrices = [pair for pair in changes.values() if pair[0].dim() == 2 and bool(pair[0].any())]
    for change, made in matrices:
        moved = made != 0
        assert 0.15 < float(moved.float().mean()) < 0.25
        assert float(change[moved].abs().min()) >= float(change[~moved].abs().max())
        torch.testing.assert_close(made[moved], -change[moved], atol=1e-6, rtol=1e-4)
    assert len(matrices) > 5
    texts = [sampled({**handles["base"], "path": str(folder)})[1] for folder in folders.values()]
    assert texts[0] == sampled(handles["base"])[1] != texts[1]


def test_a_corpus_method_of_ones_own_is_sampled_like_any_other(make_context, handles):
    corpora = {}
    for temperature in (0.1, 1.0):
        entry = {"method": "cool", "settings": {"temperature": temperature}}
        context = make_context(entry, corpus={"num_texts": 12, "max_length": 12, "alpha": 0.4})
        section = corpus_section(context, context.experiment.methods[1])
        assert (section.temperature, section.alpha, section.num_texts) == (temperature, 0.0, 12)
        settings = {
            "section": section.model_dump(),
            "method": "cool",
            "models": [handles["base"]],
            "threads": 1,
        }
        corpora[temperature] = CorpusWorker(settings).work({"shard": 0, "first": 0, "rows": 12})
    assert corpora[0.1].height == corpora[1.0].height == 12
    kinds = {temperature: table["token_ids"].explode().n_unique() for temperature, table in corpora.items()}
    assert kinds[0.1] < kinds[1.0], "a low temperature says fewer different things"


@pytest.mark.long
def test_they_inherit_the_shared_matrices(root, tmp_path):
    lines = [f"registry.METHODS[{name!r}] = 'scratch_{name}:METHOD'" for name in TOYS]
    (tmp_path / "registers_toys.py").write_text(
        "\n".join(["from unidetox_ray import registry", *lines, ""]), encoding="utf-8"
    )
    files = [f"tests/methods/test_{name}_matrix.py" for name in ("method", "decoding", "weights")]
    # One family is enough here, and no page is written for a toy.
    chosen = "(cool or mixed or trimmed) and not (opt or falcon or llama or page)"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "registers_toys", "-v", "--color=no", "-k", chosen, *files],
        cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    passed = [line.split()[0].partition("::")[2] for line in done.stdout.splitlines() if " PASSED" in line]
    assert done.returncode == 0, done.stdout
    counts = {name: sum(name in test for test in passed) for name in TOYS}
    assert counts["cool"] >= 8 and counts["mixed"] >= 16 and counts["trimmed"] >= 12, counts
