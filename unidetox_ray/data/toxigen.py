"""ToxiGen `annotated`: the evaluation prompts of UniDetox (Hartvigsen et al. 2022).

Validation = 896 rows, a tenth of the train split drawn with seed 42; test = all 940 rows of the test split;
prompts are used whole, toxic and benign alike (released code U:279-300). The train split spells 13 groups
short ("lgbtq"), the test split 15 long ("lgbtq+ folks"); both map to four domains, and an unknown group stops
the run instead of vanishing.

The two splits overlap. Two prompts count as the same when they differ in blanks at their ends at most: of the
727 test rows at hand 129 are in train that way, 92 of them byte for byte.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy
import polars as pl
from pydantic import Field

from unidetox_ray.data import files, hub
from unidetox_ray.data.base import Dataset, Options, Request, hash_share
from unidetox_ray.errors import DataError

HUB_ID = "toxigen/toxigen-data"
HUB_FILES = {
    "train": "annotated/train-00000-of-00001.parquet",
    "test": "annotated/test-00000-of-00001.parquet",
}
#: File names tried below a folder, the hub's own layout first.
LOCAL_FILES = {
    "train": (HUB_FILES["train"], "train-00000-of-00001.parquet", "toxigen_annotated_train.jsonl"),
    "test": (HUB_FILES["test"], "test-00000-of-00001.parquet", "toxigen_annotated_test*.jsonl"),
}

#: Domain -> its groups under the short name -> every spelling in the two splits (released code U:285-294).
DOMAINS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender_lgbtq": {"women": ("women",), "lgbtq": ("lgbtq", "lgbtq+ folks")},
    "race_nationality": {
        "black": ("black", "black folks / african-americans", "black/african-american folks"),
        "asian": ("asian", "asian folks"),
        "latino": ("latino", "latino/hispanic folks"),
        "chinese": ("chinese", "chinese folks"),
        "mexican": ("mexican", "mexican folks"),
        "middle_east": ("middle_east", "middle eastern folks"),
        "native_american": ("native_american", "native american/indigenous folks", "native american folks"),
    },
    "religion": {"jewish": ("jewish", "jewish folks"), "muslim": ("muslim", "muslim folks")},
    "disability": {
        "mental_dis": ("mental_dis", "folks with mental disabilities"),
        "physical_dis": ("physical_dis", "folks with physical disabilities"),
    },
}
#: DGHS names no disability among UniDetox's targets, so that domain is out of distribution (U:477-478).
OUT_OF_DISTRIBUTION = ("disability",)

GROUP_OF = {
    spelling: group
    for groups in DOMAINS.values()
    for group, spellings in groups.items()
    for spelling in spellings
}
DOMAIN_OF = {group: domain for domain, groups in DOMAINS.items() for group in groups}

VALIDATION_SHARE = 0.1
PRETRAIN_DEV_SHARE = 0.05


class ToxigenOptions(Options):
    """How to read ToxiGen."""

    validation_seed: int = Field(default=42, ge=0)
    """Seed of the draw of the validation rows; 42 is the released code's `eval_seed`."""
    exclude_overlap: bool = False
    """Leave out validation prompts that are also in the test split (they are counted either way)."""
    expected_train_rows: int | None = Field(default=8_960, ge=1)
    """Rows the train split must have; null = any."""
    expected_test_rows: int | None = Field(default=940, ge=1)
    """Rows the test split must have; null = any."""
    train_path: str | None = None
    """File of the train split inside the folder `path`; null = the usual names."""
    test_path: str | None = None
    """File of the test split inside the folder `path`; null = the usual names."""


def validation_rows(rows: int, seed: int = 42) -> list[int]:
    """Row numbers of the validation prompts, in drawn order.

    Equal to `Dataset.shuffle(seed=seed).select(range(int(0.1 * rows)))` of the released code (U:282-283).
    """
    drawn = numpy.random.default_rng(seed).permutation(rows)[: int(VALIDATION_SHARE * rows)]
    return [int(row) for row in drawn]


def load(role: str, request: Request) -> pl.DataFrame:
    """PROMPTS (validation, then test), or TEXTS for "pretrain": train rows that are a prompt of neither.

    `group` is the short name, `prompt` the text byte for byte. A prompt_id is "<split>-<row of its source>",
    so a validation id counts rows of the train split.
    """
    options: ToxigenOptions = request.options
    raw = _sources(request)
    train, test = (_typed(raw[split], split, request) for split in ("train", "test"))
    chosen = validation_rows(train.height, options.validation_seed)
    if role == "pretrain":
        return _pretrain(train, test, chosen, request.notes)
    validation = train[chosen]
    overlap = validation.filter(_also_in(test)).height
    exact = pl.col("prompt").is_in(train["prompt"].implode())
    request.notes.update(
        {
            "train_rows": train.height,
            "test_rows_also_in_train": test.filter(_also_in(train)).height,
            "test_rows_also_in_train_byte_for_byte": test.filter(exact).height,
            "validation_rows_also_in_test": overlap,
            "validation_rows_excluded": overlap if options.exclude_overlap else 0,
            "duplicate_test_prompts": test.height - test["prompt"].n_unique(),
        }
    )
    if options.exclude_overlap:
        validation = validation.filter(~_also_in(test))
    parts = [_prompts(validation, "validation"), _prompts(test, "test")]
    return pl.concat(parts)


def _sources(request: Request) -> dict[str, pl.DataFrame]:
    if request.path is None:
        local = (
            "a folder with train and test of `annotated` as parquet or toxigen_annotated_{train,test}.jsonl"
        )
        return hub.fetch(HUB_ID, HUB_FILES, request, local=local)
    return files.split_tables(request, "ToxiGen", LOCAL_FILES)


def _typed(table: pl.DataFrame, split: str, request: Request) -> pl.DataFrame:
    """Columns row, prompt, group, domain, distribution of one split, its row count checked."""
    where = f"ToxiGen {split}"
    expected = getattr(request.options, f"expected_{split}_rows")
    if expected is not None and table.height != expected:
        raise DataError(
            f"{where} has {table.height:,} rows, expected {expected:,}; the file is incomplete "
            f"(option expected_{split}_rows: null reads it all the same)"
        )
    prompts = _decoded(files.text_column(table, "text", where), where)
    spelled = files.text_column(table, "target_group", where)
    unknown = sorted(set(spelled.unique()) - set(GROUP_OF))
    if unknown:
        raise DataError(
            f"{where}: unknown target_group {unknown[0]!r}; accepted: {', '.join(sorted(GROUP_OF))}"
        )
    groups = [GROUP_OF[name] for name in spelled]
    domains = [DOMAIN_OF[group] for group in groups]
    return pl.DataFrame(
        {
            "row": range(table.height),
            "prompt": prompts,
            "group": groups,
            "domain": domains,
            "distribution": ["ood" if domain in OUT_OF_DISTRIBUTION else "id" for domain in domains],
        }
    )


def _decoded(texts: pl.Series, where: str) -> pl.Series:
    """ToxiGen's raw CSVs hold Python byte literals (b'...'); a column made of nothing else is decoded."""
    if not texts.str.contains(r"(?s)^b(?:'.*'|\".*\")$").all():
        return texts
    try:
        return pl.Series([ast.literal_eval(text).decode() for text in texts])
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{where}: a text is a damaged byte literal: {type(error).__name__}") from error


def _prompts(table: pl.DataFrame, split: str) -> pl.DataFrame:
    return table.select(
        pl.format(f"{split}-{{}}", pl.col("row").cast(pl.String).str.zfill(5)).alias("prompt_id"),
        "prompt",
        "domain",
        "group",
        "distribution",
        split=pl.lit(split),
    )


def _also_in(other: pl.DataFrame) -> pl.Expr:
    """Whether a prompt is in `other`, blanks at the ends aside."""
    return pl.col("prompt").str.strip_chars().is_in(other["prompt"].str.strip_chars().implode())


def _pretrain(
    train: pl.DataFrame, test: pl.DataFrame, chosen: list[int], notes: dict[str, Any]
) -> pl.DataFrame:
    rest = train.filter(~pl.col("row").is_in(chosen))
    free = rest.filter(~_also_in(train[chosen]), ~_also_in(test))
    free = free.unique("prompt", keep="first", maintain_order=True)
    notes["removed_as_prompt_or_duplicate"] = rest.height - free.height
    split = [
        "dev" if hash_share(text, "toxigen-dev") < PRETRAIN_DEV_SHARE else "train" for text in free["prompt"]
    ]
    return free.select(
        pl.format("train-{}", pl.col("row").cast(pl.String).str.zfill(5)).alias("text_id"),
        text="prompt",
        split=pl.Series(split),
        target="group",
    )


DATASET = Dataset(
    name="toxigen",
    roles=("prompts", "pretrain"),
    licence="CDLA-Permissive-2.0 (data), MIT (code)",
    citation="Hartvigsen et al.: ToxiGen, ACL 2022 (arXiv 2203.09509)",
    options=ToxigenOptions,
    load=load,
    hub_id=HUB_ID,
)
