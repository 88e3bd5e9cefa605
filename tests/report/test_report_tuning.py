"""The section on tuning: both columns, what it says of universality, curves, failures, and hostile words."""

from __future__ import annotations

import json

import pytest

from unidetox_ray.report import build


def trial(
    family: str, label: str, value: object, tp: float | None, ratio: float = 1.0, error: str | None = None
) -> dict:
    row = {
        "trial": f"{family}-{label}-{value}",
        "settings": {"alpha": value},
        "key": "k",
        "error": error,
        "seconds": 2.5,
    }
    if tp is None:
        return row | {"status": "failed", "ratio": None, "seconds": None}
    ends = {
        "tp_all_low": tp - 0.05,
        "tp_all_high": tp + 0.05,
        "clean_ppl_low": 1.9 * ratio,
        "clean_ppl_high": 2.1 * ratio,
    }
    return row | {
        "status": "ok",
        "tp_all": tp,
        "emt_all": tp,
        "clean_ppl": 2.0 * ratio,
        "ratio": ratio,
        **ends,
    }


def course(holds: bool, against: dict | None = None) -> dict:
    return {"holds": holds, "change": {"value": -0.6, "low": -0.7, "high": -0.5}, "against": against}


def family_part(family: str, chosen: object, *trials: dict, toxicity: dict | None = None) -> dict:
    points = [{"strength": 0.0, "trial": f"{family}-base"}]
    points += [{"strength": each["settings"]["alpha"], "trial": each["trial"]} for each in trials]
    curve = {
        "dial": "alpha",
        "at": {},
        "points": points,
        "toxicity": toxicity or course(True),
        "perplexity": None,
    }
    point = None if chosen is None else {"alpha": chosen}
    return {"trials": list(trials), "chosen": point, "reason": "lowest", "curves": [curve]}


def tuning(hostile: dict[str, str]) -> dict:
    """Universal alpha 1; opt and falcon choose 2, llama has no trial that succeeded."""
    families = {
        "falcon": family_part("falcon", 2, trial("falcon", "unidetox", 1, 0.4), trial("falcon", "unidetox", 2, 0.2, 1.2)),
        "gpt2": family_part("gpt2", 1, trial("gpt2", "unidetox", 1, 0.3), trial("gpt2", "unidetox", "inf", 0.2, 300.0)),
        "llama": family_part("llama", None, trial("llama", "unidetox", 1, None, error=f"no memory {hostile['script']}")),
        "opt": family_part("opt", 2, trial("opt", "unidetox", 1, 0.4), trial("opt", "unidetox", 2, 0.3, 1.1),
                           toxicity=course(False, {"weaker": 1, "stronger": 2, "value": 0.2, "low": 0.1, "high": 0.3})),
    }  # fmt: skip
    universal = {"chosen": {"alpha": 1}, "reason": "lowest"}
    return {
        "metric": "tp_all", "reuse": "both", "max_clean_ppl": 1.5, "base_family": "gpt2", "selection_prompts": 80, "continuations": 10,
        "clean_texts": 40, "finetune_schedule": "linear",
        "bases": {name: trial(name, "base", 0, 0.9) | {"trial": f"{name}-base", "settings": {}} for name in families},
        "entries": {"unidetox": {"method": "unidetox", "kind": "decoding", "tune": {"alpha": [1, 2]}, "schedule": None, "universal": universal, "families": families}},
    }  # fmt: skip


def write(folder, values: dict, gaps: dict[str, tuple[float, float, float]]) -> str:
    """report.md of the run with own cells for the families of `gaps`: (difference, low, high) on test prompts."""
    (folder / "tuning.json").write_text(json.dumps(values), encoding="utf-8")
    cells = json.loads((folder / "results.json").read_text())
    for family in gaps:
        copy = next(c for c in cells if (c["family"], c["method"]) == (family, "unidetox"))
        cells.append({**copy, "method": "unidetox@own", "cell": f"{family}-unidetox@own-s1234"})
    (folder / "results.json").write_text(json.dumps(cells), encoding="utf-8")
    told = [
        {
            "own": f"{family}-unidetox@own-s1234", "universal": f"{family}-unidetox-s1234",
            "metrics": {"tp_all": {"diff": diff, "diff_low": low, "diff_high": high}},
        }
        for family, (diff, low, high) in gaps.items()
    ]  # fmt: skip
    (folder / "tuning_test.json").write_text(json.dumps(told), encoding="utf-8")
    text = build(folder).markdown.read_text(encoding="utf-8")
    return text[text.index("## Tuning") : text.index("\n## ", text.index("## Tuning") + 5)]


BETTER, UNCLEAR, WORSE = (-0.2, -0.3, -0.1), (-0.02, -0.1, 0.06), (0.2, 0.1, 0.3)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ({"opt": BETTER, "falcon": UNCLEAR}, ["Universality fails", "is better on test prompts in opt (alpha 2: Δ tp_all −0.200", "not better beyond the interval in falcon"]),
        ({"opt": UNCLEAR, "falcon": WORSE}, ["Universality is not settled", "worse in falcon", "no trial succeeded in llama"]),
        ({"opt": UNCLEAR}, ["Universality is not settled", "not compared on test prompts in falcon (alpha 2)"]),
    ],
    ids=["fails", "holds but for one without trials", "not compared"],
)  # fmt: skip
def test_what_is_said_of_universality(run_folder, hostile, gaps, expected):
    section = write(run_folder, tuning(hostile), gaps)
    for words in ["Universal setting: alpha 1.", *expected]:
        assert words in section, words


def test_it_holds_where_no_family_does_better_with_its_own(run_folder, hostile):
    values = tuning(hostile)
    families = values["entries"]["unidetox"]["families"]
    families["llama"] = family_part("llama", 1, trial("llama", "unidetox", 1, 0.3))
    section = write(run_folder, values, {"opt": UNCLEAR, "falcon": WORSE})
    assert "Universality holds: the own setting is not better beyond the interval in opt" in section
    assert "llama chooses the same setting" in section


def test_other_ways_of_reuse_say_what_was_not_asked(run_folder, hostile):
    values = tuning(hostile)
    section = write(run_folder, {**values, "reuse": "universal"}, {})
    assert "Other families were not searched" in section and "own: setting" not in section
    section = write(run_folder, {**values, "reuse": "per_model"}, {})
    assert "no universal one was tried" in section and "universal: setting" not in section
    values["entries"]["unidetox"]["universal"] = {
        "chosen": None,
        "reason": "all 2 trials failed; first error: it broke",
    }
    assert "No universal setting: all 2 trials failed; first error: it broke." in write(
        run_folder, values, {}
    )


def test_curves_tables_and_failures(run_folder, hostile):
    section = write(run_folder, tuning(hostile), {"opt": BETTER, "falcon": UNCLEAR})
    lines = section.splitlines()
    # Families in the run's order, the base model where each curve starts, the choice marked.
    order = [line.split("|")[1].strip() for line in lines if "(base)" in line]
    assert order == ["gpt2", "opt", "falcon", "llama"]
    assert any("| opt | **2 ★** |" in line for line in lines)
    assert any(line.startswith("| gpt2 | inf |") and "300" in line for line in lines)
    assert "tp_all is not monotone: more at alpha 2 than at 1, +0.200" in section
    assert "tp_all falls monotonically within the intervals (−0.600" in section
    assert "clean_ppl: too few strengths were measured to say." in section
    (both,) = [line for line in lines if line.startswith("| opt · unidetox")]
    assert "alpha 1" in both and "alpha 2" in both and "−0.200" in both
    (failed,) = [line for line in lines if line.startswith("| llama | 1 |")]
    assert failed.count("–") >= 4
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert hostile["script"] not in page and "tp_all and clean_ppl by alpha, gpt2" in page


def test_corpus_trials_have_a_table_and_a_word_on_the_schedule(run_folder, hostile):
    values = tuning(hostile)
    entry = values["entries"]["unidetox"]
    entry |= {"kind": "corpus", "schedule": "constant"}
    for part in entry["families"].values():
        part["curves"] = []
    section = write(run_folder, values, {})
    assert "Trained at a constant rate, the cells with schedule linear" in section
    assert "failed: no memory" in section and hostile["script"] not in section


def test_damaged_and_absent_files(run_folder, hostile):
    assert "## Tuning" not in build(run_folder).markdown.read_text(encoding="utf-8")
    (run_folder / "tuning.json").write_text("[]", encoding="utf-8")
    text = build(run_folder).markdown.read_text(encoding="utf-8")
    assert "tuning.json holds no mapping" in text and "## Tuning" not in text
    (run_folder / "tuning.json").write_text(json.dumps(tuning(hostile)), encoding="utf-8")
    (run_folder / "tuning_test.json").write_text("{", encoding="utf-8")
    text = build(run_folder).markdown.read_text(encoding="utf-8")
    assert "tuning\\_test.json could not be read" in text or "tuning_test.json could not be read" in text
    assert "## Tuning" in text
