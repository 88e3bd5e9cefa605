"""Before and after: the base model and the new one under the package's own protocol, by its own stages and statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.errors import DataError, ModelError, StageError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.settings import ModelRef
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle

BEFORE = "base"


def prepared(asked: Asked, context: Context, say: Callable[[str], None]) -> dict[str, Handle] | None:
    """Handles of the scorers, with prompts and clean text read; None where nothing is measured, and why was said.

    What the user named must be there: DataError, ModelError. What is only the default may be out of reach.
    """
    if not asked.evaluate:
        return None
    try:
        _prompts(asked, context)
        scorers = _scorers(context)
        if asked.clean is not None:
            context.data("clean", context.experiment.data.clean)
        return scorers
    except (DataError, ModelError) as error:
        if asked.prompts is not None or asked.scorer is not None or asked.clean is not None:
            raise
        say(
            f"not evaluated, for the default prompts or scorer cannot be opened ({error}); name some with --prompts and --scorer"
        )
        return None


def _prompts(asked: Asked, context: Context) -> None:
    source = context.experiment.data.prompts
    if source.dataset != "text":
        context.data("prompts", source)
        return
    from unidetox_ray.artifacts import file_sha256
    from unidetox_ray.single import prompt_table

    path = Path(str(source.path))
    context.use_prompts(prompt_table(path), file_sha256(path))


def _scorers(context: Context) -> dict[str, Handle]:
    from unidetox_ray.families.loading import load_classifier
    from unidetox_ray.stages.models import handle_of
    from unidetox_ray.stages.scorers import lexicon

    found: dict[str, Handle] = {}
    for scorer in context.experiment.evaluate.scorers:
        if scorer.kind == "lexicon":
            lexicon(scorer, None)
            continue
        handle = handle_of(ModelRef(source=scorer.source, revision=scorer.revision), scorer.name)
        labels = {
            str(name).lower()
            for name in load_classifier(handle["path"], revision=scorer.revision).config.id2label.values()
        }
        if scorer.label.lower() not in labels:
            raise ModelError(
                f"scorer {scorer.source}: has no label {scorer.label!r} but {', '.join(sorted(labels))}; "
                "name the one that means toxic with --scorer-label"
            )
        found[scorer.name] = {**handle, "sha256": scorer.sha256, "label": scorer.label}
    return found


def measured(context: Context, cell: Cell, scorers: dict[str, Handle]) -> list[dict[str, Any]]:
    """Two rows of results.json, before and after; the second has the paired differences.

    cell: with its model. A model that gives no text at all is an error of the whole: StageError in its words.
    """
    from unidetox_ray.pipeline import tabulate
    from unidetox_ray.stages import generate, score

    before = Cell(
        BEFORE, cell.family, MethodEntry(method="base", label=BEFORE), cell.seed, cell.base, model=cell.base
    )
    cells = [before, cell]
    generated = generate.run(context, cells)
    for each in cells:
        if each.error is not None:
            raise StageError(
                f"evaluation: {each.base['name'] if each is before else 'the new model'}: {each.error}; "
                "--no-evaluate writes the model, which is finished, without numbers"
            )
    scored = score.run(context, cells, generated, {}, scorers)
    return tabulate(context, cells, generated, scored)
