"""`python -m unidetox_ray.bench NAME`: the verb without the command line's packages, for a bare GPU machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unidetox_ray.bench.options import DTYPES, KINDS, NAMES, SIZES, Options
from unidetox_ray.errors import UnidetoxError


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or that of the error whose one line went to standard error."""
    parser = argparse.ArgumentParser(prog="unidetox bench", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--size", help=", ".join(SIZES))
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help=", ".join(DTYPES))
    for name in ("batch", "texts", "tokens", "threads", "actors"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--repeats", type=int, default=Options.repeats)
    parser.add_argument("--patience", type=float, default=Options.patience)
    parser.add_argument("--no-plain", action="store_false", dest="plain")
    parser.add_argument("--kind", default=Options.kind, help=", ".join(KINDS))
    parser.add_argument("--experiment")
    parser.add_argument("--cache", type=Path)
    given = vars(parser.parse_args(arguments))
    name, as_json = given.pop("name"), given.pop("as_json")
    from unidetox_ray.bench.verb import report

    try:
        print(report(name, Options(**given), as_json=as_json))
    except UnidetoxError as error:
        print(f"unidetox: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
