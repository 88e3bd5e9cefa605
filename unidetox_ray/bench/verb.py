"""One benchmark by name, with standard output kept for its record."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable

from unidetox_ray.bench.options import Options, checked
from unidetox_ray.bench.result import BenchResult, table


def bench(name: str, options: Options | None = None) -> BenchResult:
    """Run one of `options.NAMES`. ConfigError for what cannot be run as asked."""
    chosen = checked(name, options or Options())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a fork after the first use warns
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: no look at the hub either
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: BenchResult = importlib.import_module(f"unidetox_ray.bench.{name}").run(chosen)
    return result


def report(
    name: str, options: Options, *, as_json: bool, then: Callable[[BenchResult], object] | None = None
) -> str:
    """The record as JSON or as a table. What libraries print meanwhile goes to standard error. then: called with the record."""
    with contextlib.redirect_stdout(sys.stderr):
        result = bench(name, options)
        if then is not None:
            then(result)
    return json.dumps(result.as_dict(), indent=1, allow_nan=False) if as_json else table([result])
