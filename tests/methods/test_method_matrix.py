"""What holds for every registered method, and for every corpus method; decoding and weights methods have more of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError

from unidetox_ray import registry
from unidetox_ray.methods.base import CorpusMethod, DecodingMethod, UnchangedMethod, WeightsMethod
from unidetox_ray.settings import CorpusSection, FinetuneSection, Section

KINDS = {
    "unchanged": UnchangedMethod,
    "corpus": CorpusMethod,
    "weights": WeightsMethod,
    "decoding": DecodingMethod,
}
ROOT = Path(__file__).resolve().parents[2]
NAMES = registry.names("methods")

#: Printed by a fresh process: for each method the heavy modules that its import brought in.
LOADS = """
import sys, json
from unidetox_ray import registry
heavy = ("torch", "transformers", "ray", "mlflow", "deepspeed", "polars", "safetensors", "peft")
found = {}
for name in registry.names("methods"):
    before = set(sys.modules)
    method = registry.lookup("methods", name)
    method.settings()
    found[name] = [module for module in heavy if module in sys.modules and module not in before]
print(json.dumps(found))
"""


def of_kind(kind: str) -> list[str]:
    return [name for name in NAMES if registry.lookup("methods", name).kind == kind]


@pytest.fixture(params=NAMES)
def method(request):
    return registry.lookup("methods", request.param), request.param


@pytest.fixture(params=of_kind("corpus"))
def corpus_method(request):
    return registry.lookup("methods", request.param)


def test_it_is_what_it_is_registered_as(method):
    found, name = method
    assert found.name == name and isinstance(found, KINDS[found.kind])
    assert found.summary.strip() == found.summary and 10 <= len(found.summary) <= 110
    assert "\n" not in found.summary and not found.summary.endswith(".")


def test_reading_its_settings_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == {name: [] for name in NAMES}


def test_its_settings_have_valid_defaults_are_typed_frozen_and_survive_json(method):
    found, _ = method
    assert issubclass(found.settings, Section)
    settings = found.settings()
    hints = typing.get_type_hints(found.settings)
    for name in found.settings.model_fields:
        assert hints[name] is not typing.Any and hints[name] is not object, f"{name} is of no type"
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, name, getattr(settings, name))
    # As a task carries them to a worker.
    sent = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert found.settings.model_validate(sent) == settings


def test_a_setting_that_it_does_not_have_is_refused_by_name(method):
    with pytest.raises(ValidationError, match="no_such_setting"):
        method[0].settings.model_validate({"no_such_setting": 1})


def test_its_dial_is_a_setting_and_takes_its_neutral_value(method):
    found, _ = method
    if found.strength is None:
        assert found.kind in ("unchanged", "corpus"), "a method that steers or edits has a dial"
        return
    assert found.strength in found.settings.model_fields
    neutral = found.settings.model_validate({found.strength: found.neutral})
    assert getattr(neutral, found.strength) == found.neutral
    assert getattr(found.settings(), found.strength) != found.neutral, "by default it does nothing"
    with pytest.raises(ValidationError, match=found.strength):
        found.settings.model_validate({found.strength: "much"})
    with pytest.raises(ValidationError, match=found.strength):
        found.settings.model_validate({found.strength: float("nan")})


def test_what_it_needs_for_a_setting_is_among_what_it_needs_at_all(method):
    found, _ = method
    chosen = [found.settings()]
    if found.strength is not None:
        chosen.append(found.settings.model_validate({found.strength: found.neutral}))
    for settings in chosen:
        needed = found.needed_for(settings)
        assert needed <= found.needs <= {"toxic", "expert", "fit"} and found.needed_for(settings) == needed
    if found.kind != "decoding":
        # The stages make these for other kinds: the toxic model, of which a corpus takes the base family's.
        assert found.needs <= {"toxic"}
    assert ("fit" in found.needs) is (getattr(found, "fit", None) is not None)
    assert found.needed_for(chosen[0]) == found.needs, "its default settings need what the method needs"


def test_its_page_says_what_it_is_and_explains_every_setting(method):
    found, name = method
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert {"Settings", "Cost", "When to use it"} <= set(headings)
    settings = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    # A row may explain several settings.
    named = re.findall(r"^\| (`[^|]+) \|", settings, re.MULTILINE)
    explained = [name for cell in named for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(explained) == sorted(found.settings.model_fields)
    for target in re.findall(r"\]\(([\w./-]+\.md)\)", page):
        assert (ROOT / "docs" / "methods" / target).is_file(), f"{target} is not there"


def test_a_corpus_methods_recipe_depends_on_nothing_but_its_arguments(corpus_method):
    settings = corpus_method.settings()
    for section in (CorpusSection(), CorpusSection(num_texts=7, alpha=0.3, temperature=0.5, seed=9)):
        before = section.model_dump()
        first, second = (corpus_method.recipe(settings, section) for _ in range(2))
        assert first == second and section.model_dump() == before
        # A copy with changes is not checked by pydantic: its values have to be such as the section takes.
        assert CorpusSection.model_validate(first.model_dump()) == first
        assert corpus_method.recipe(settings, first) == first, "applied to its own result it changes nothing"
        if corpus_method.source != "select":  # which samples more than it keeps
            assert first.num_texts == section.num_texts
        assert (first.max_length, first.seed) == (section.max_length, section.seed)


def test_a_corpus_methods_training_depends_on_nothing_but_its_arguments(corpus_method):
    settings = corpus_method.settings()
    for section in (FinetuneSection(), FinetuneSection(steps=5, lr=1e-3, batch_size=2)):
        before = section.model_dump()
        first, second = (corpus_method.training(settings, section) for _ in range(2))
        assert first == second and section.model_dump() == before
        assert FinetuneSection.model_validate(first.model_dump()) == first
        assert corpus_method.training(settings, first) == first


def test_a_corpus_method_says_how_its_text_comes_about(corpus_method):
    settings = corpus_method.settings()
    section = corpus_method.recipe(settings, CorpusSection())
    if corpus_method.mixture is None:
        assert corpus_method.source != "sample" and section.source != "distil", "neither sampled nor read"
        return
    assert section.source == "distil" and corpus_method.source != "text"
    mixture = corpus_method.mixture(section)
    # The models of the stage: the base model, and the toxic one where it is needed.
    assert len(mixture.weights) == 1 + ("toxic" in corpus_method.needed_for(settings))
    assert mixture.weights[0] > 0 and all(weight < 0 for weight in mixture.weights[1:])


def test_every_method_of_the_table_is_of_a_kind_that_is_tested():
    assert sorted(NAMES) == sorted(name for kind in KINDS for name in of_kind(kind))
    assert all(of_kind(kind) for kind in KINDS)
