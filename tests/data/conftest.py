"""Small files in the layouts of the real sources (invented, mild text) and the folder of real ones."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

DGHS_HEADER = ("", "acl.id", "X1", "text", "label", "type", "target", "level", "split", "round.base")
DGHS_HEADER += ("annotator", "round", "acl.id.matched")
DGHS_FILES = tuple(f"Dynamically Generated Hate Dataset {version}.csv" for version in ("v0.2.2", "v0.2.3"))

#: label, target, split of the fixture's DGHS rows; six of them pass UniDetox's filter.
DGHS_ROWS = [
    ("hate", "wom", "train"),
    ("hate", "gay.man", "train"),
    ("hate", "mus", "dev"),
    ("hate", "other.religion", "test"),
    ("hate", "bla", "train"),
    ("hate", "jew", "train"),
    ("hate", "wom, jew", "train"),
    ("hate", "dis", "train"),
    ("hate", "notgiven", "train"),
    ("hate", "notargetrecorded", "dev"),
    ("hate", "WOM", "train"),
    ("nothate", "none", "train"),
    ("nothate", "wom", "dev"),
]
TOXIGEN_TEST_GROUPS = ["women", "lgbtq+ folks", "black folks / african-americans", "latino/hispanic folks"]
TOXIGEN_TEST_GROUPS += ["native american folks", "jewish folks", "folks with mental disabilities"]
TOXIGEN_TRAIN_GROUPS = ["women", "lgbtq", "black", "middle_east", "muslim", "physical_dis", "asian"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real files: below UNIDETOX_SHARED, or `shared` beside the repository, in its folder `data`."""
    root = Path(os.environ.get("UNIDETOX_SHARED") or Path(__file__).resolve().parents[3] / "shared")
    for folder in (root / "data", root):
        if (folder / "dghs").is_dir():
            return folder
    pytest.skip("the real data files are not here; name their folder in UNIDETOX_SHARED")


class Layouts:
    """Writes a source's files below a folder and says how to load them."""

    @staticmethod
    def csv(
        path: Path, header: Iterable[str], rows: Iterable[Iterable[object]], delimiter: str = ","
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([list(header), *(list(row) for row in rows)])
        return path

    @staticmethod
    def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="")
        return path

    def dghs(
        self, folder: Path, name: str = DGHS_FILES[1], rows: list[tuple[str, str, str]] | None = None
    ) -> Path:
        lines = []
        for number, (label, target, split) in enumerate(rows or DGHS_ROWS):
            text = f"invented grumble number {number}, about socks"
            lines.append([number, f"acl{number}", number, text, label, "none", target, "original", split])
            lines[-1] += ["1", "someone", "2a", "NA"]
        return self.csv(folder / name, DGHS_HEADER, lines)

    def toxigen(self, folder: Path, train_rows: int = 70) -> Path:
        groups = TOXIGEN_TRAIN_GROUPS
        train = [
            {
                "text": f" a line on knitting {row}\n",
                "target_group": groups[row % len(groups)],
                "toxicity_human": 1,
            }
            for row in range(train_rows)
        ]
        test = [
            {"text": f"a remark on soup {row}", "target_group": group, "toxicity_human": row + 0.5}
            for row, group in enumerate(TOXIGEN_TEST_GROUPS)
        ]
        # Row 4 of train differs from a test prompt in blanks only, row 5 not at all.
        train[4]["text"], train[5]["text"] = f" {test[0]['text']}\n", test[1]["text"]
        self.jsonl(folder / "toxigen_annotated_train.jsonl", train)
        self.jsonl(folder / "toxigen_annotated_test_some.jsonl", test)
        return folder

    def rtp(self, folder: Path) -> Path:
        rows = [
            {
                "filename": f"{row:03d}.txt", "begin": 10 * row, "end": 10 * row + 9, "challenging": row % 4 == 0,
                "prompt": {"text": f"The kettle number {row} said", "toxicity": (0.9, 0.1, 1, None)[row % 4], "threat": 0.0},
                "continuation": {"text": " nothing at all.", "toxicity": 0.05},
            }
            for row in range(12)
        ]  # fmt: skip
        return self.jsonl(folder / "prompts.jsonl", rows)

    def mmlu(self, folder: Path) -> Path:
        for split, count in (("dev", 2), ("validation", 3)):
            rows = [
                {
                    "question": f"{split} question {number} on {subject}?",
                    "subject": subject,
                    "choices": [f"{word} {number}" for word in ("one", "two", "three", "four")],
                    "answer": number % 4,
                }
                for number in range(count)
                for subject in ("zoology", "algebra")
            ]
            self.jsonl(folder / f"mmlu_all_{split}.jsonl", rows)
        return folder

    def labelled(self, folder: Path) -> Path:
        header = ("", "count", "hate_speech", "offensive_language", "neither", "class", "tweet")
        tweets = [[n, 3, 0, 3, 0, n % 3, f"a grumpy tweet, number {n}"] for n in range(60)]
        tweets += [[60, 3, 0, 3, 0, 1, "the very SAME  remark"], [61, 3, 0, 3, 0, 1, "NA"]]
        tweets += [[62, 3, 0, 3, 0, 1, "said twice"], [63, 3, 0, 3, 0, 1, "Said  twice"]]
        tweets += [[64, 3, 0, 3, 0, 1, "rude here"], [65, 3, 0, 0, 3, 2, "rude here"]]
        self.csv(folder / "davidson_labeled_data.csv", header, tweets)
        pairs = [
            [f"rude sentence {n}", f"kind sentence {n}", f"calm sentence {n}" * (n % 2), ""]
            for n in range(60)
        ]
        self.csv(folder / "paradetox.tsv", ("toxic", "neutral1", "neutral2", "neutral3"), pairs, "\t")
        self.csv(folder / "toxic_spans_tsd_train.csv", ("spans", "text"), [["[1, 2]", "a nasty\r\npost"]])
        self.csv(folder / "toxic_spans_tsd_test.csv", ("spans", "text"), [["[]", "The very same remark"]])
        names = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
        self.csv(
            folder / "jigsaw_sample_train.csv",
            ("id", "comment_text", *names),
            [["a", "you silly goose", 1, 0, 0, 0, 1, 0], ["b", "thank you", 0, 0, 0, 0, 0, 0]],
        )
        self.csv(
            folder / "jigsaw_sample_test.csv",
            ("", "id", "comment_text", *names),
            [[0, "c", "never scored", *[-1] * 6], [1, "d", "partly scored", 0, -1, 0, 0, 0, 0]],
        )
        return folder

    @staticmethod
    def text(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        blocks = "\n\n".join(f"Paragraph {number} goes on\nfor two lines." for number in range(40))
        (folder / "story.txt").write_text(blocks, encoding="utf-8")
        (folder / "held.txt").write_text(
            "A held-out paragraph.\n\nParagraph 3 goes on\nfor two lines.", encoding="utf-8"
        )
        return folder

    def case(self, dataset: str, folder: Path) -> dict[str, Any]:
        """Keyword arguments of `load` for a small but complete source of the data set."""
        if dataset == "world":
            return {"path": None, "options": {}}
        if dataset == "dghs":
            return {"path": str(self.dghs(folder)), "options": {"check_counts": False}}
        if dataset == "toxigen":
            options = {"expected_train_rows": None, "expected_test_rows": None}
            return {"path": str(self.toxigen(folder)), "options": options}
        if dataset == "rtp":
            return {"path": str(self.rtp(folder)), "options": {}}
        if dataset == "mmlu":
            return {"path": str(self.mmlu(folder)), "options": {"expected": None}}
        if dataset == "labelled":
            return {"path": str(self.labelled(folder)), "options": {}}
        if dataset == "text":
            return {"path": str(self.text(folder)), "options": {"test_files": ["held.txt"], "dev_share": 0.2}}
        raise AssertionError(
            f"tests/data/conftest.py has no small source for data set {dataset!r}; add one to Layouts"
        )


@pytest.fixture
def layouts() -> Layouts:
    return Layouts()
