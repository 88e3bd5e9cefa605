"""content.json as MLflow metrics of the submission's parent run: numbers only, no word of a corpus.

Names: `content/<corpus>/tokens` and other counts of the corpus itself; `content/<corpus>/<judge>/<label>`, the share of
its texts that a judge gives a label, with `mean/…`, `ci_low/…`, `ci_high/…`, `failed/…` and, against the reference
corpus, `diff/…`, `diff_low/…`, `diff_high/…` in front of the label; `content/<corpus>/overlap/<measure>` with the
reference. They pass through `names.mlflow_name` like all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Numbers of a judge beside its share; `n` follows from `failed` and the number of texts.
_PARTS = ("ci_low", "ci_high", "failed", "diff", "diff_low", "diff_high")


def content_metrics(value: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `metrics.content.analyse` under the names of the module's text; nulls are left out."""
    found: dict[str, float | None] = {}
    for corpus in value["corpora"]:
        tokens = corpus["lengths"]["tokens"]
        own = {
            "texts": corpus["texts"],
            "tokens": None if tokens is None else tokens["total"],
            "words_per_text": corpus["lengths"]["words"]["mean"],
            "types": corpus["types"],
            "compression_ratio": corpus["compression_ratio"],
            **{f"duplicates_{kind}": count for kind, count in corpus["duplicates"].items()},
            **{f"distinct_{n}": share for n, share in corpus["distinct"].items()},
            **{
                f"distinct_{n}_at_equal_words": share
                for n, share in corpus["distinct_at_equal_words"].items()
            },
            **{f"repeated_{n}": share for n, share in corpus["repeated"].items()},
        }
        found |= {f"content/{corpus['corpus']}/{name}": number for name, number in own.items()}
    for pair in value["pairs"]:
        shared = {
            **pair["overlap"],
            "tf_idf_cosine": pair["tf_idf_cosine"],
            "shared_texts": pair["shared_texts"],
        }
        found |= {f"content/{pair['corpus']}/overlap/{name}": number for name, number in shared.items()}
    for judge in value["judges"]:
        for entry in judge["numbers"]:
            place = f"content/{entry['corpus']}/{judge['judge']}"
            # A toxicity scorer has one label, which it does not name.
            label = entry.get("label", "toxic")
            share = entry["share"]
            found[f"{place}/{label}"] = share["value"]
            found[f"{place}/mean/{label}"] = entry["mean"]["value"]
            found |= {f"{place}/{part}/{label}": share[part] for part in _PARTS}
    return {name: float(number) for name, number in found.items() if number is not None}
