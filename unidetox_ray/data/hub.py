"""Files of a Hugging Face data set, named one by one, through `datasets.load_dataset`.

Naming the files keeps a repository that holds two versions of its data from being read as one set
(reference: DGHS). `datasets` is imported on first use: it takes seconds, and most runs read local files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from unidetox_ray.data.base import TOKEN_VARIABLE, Request
from unidetox_ray.errors import DataError
from unidetox_ray.secrecy import redacted


def fetch(
    hub_id: str,
    files: Mapping[str, str],
    request: Request,
    *,
    local: str,
    columns: Sequence[str] | None = None,
) -> dict[str, pl.DataFrame]:
    """Tables of the named files: key -> table. `columns` picks columns of a csv and reads them as text.

    `local` says which local file would do instead; it ends the DataError raised when the hub cannot be read.
    """
    import datasets

    csv = all(name.endswith(".csv") for name in files.values())
    settings: dict[str, object] = {}
    if csv:
        # keep_default_na: pandas would turn the texts "NA" and "null" into nothing.
        settings = {"keep_default_na": False}
        if columns is not None:
            text = datasets.Features({name: datasets.Value("string") for name in columns})
            settings |= {"usecols": list(columns), "features": text}
    tables = {}
    for key, name in files.items():
        try:
            # One file a call: the split is then always "train" and files may differ in their columns.
            part = datasets.load_dataset(
                hub_id,
                data_files={"train": name},
                split="train",
                revision=request.revision,
                token=request.token,
                **settings,
            )
        except (
            Exception
        ) as error:  # the network stack raises a dozen unrelated classes; all mean "not available"
            raise DataError(_explain(error, hub_id, name, request, local)) from error
        tables[key] = part.to_polars()
    request.notes["hub"] = {"id": hub_id, "revision": request.revision or "main", "files": dict(files)}
    return tables


def _explain(error: Exception, hub_id: str, name: str, request: Request, local: str) -> str:
    reason = redacted((str(error).strip().splitlines() or [""])[0])[:160]
    lowered = f"{type(error).__name__} {error}".lower()
    gated = any(word in lowered for word in ("401", "403", "gated", "unauthorized", "forbidden"))
    advice = (
        f"it asks for access: accept its terms and set {TOKEN_VARIABLE}, or " if gated else "go online, or "
    )
    what = f"cannot read {name!r} of hub data set {hub_id} ({type(error).__name__}: {reason})"
    return f"{what}; {advice}give `path`: {local}"
