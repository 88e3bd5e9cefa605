"""Python and packages against the ranges of this project; Ray's version and authentication."""

from __future__ import annotations

import os
import platform
import stat
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from unidetox_ray.doctor.checking import Line, check, fail, ok, skipped, warn
from unidetox_ray.doctor.subject import Subject

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_INSTALL = "pip install -e . -c constraints.txt"
#: Shorter tokens can be guessed.
_SHORTEST_TOKEN = 16


def required() -> tuple[str, list[str]]:
    """(range of Python, requirements without extras): of the checkout, else of what is installed. Empty where neither says."""
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
        if project.get("name") == "unidetox-ray":
            return project["requires-python"], list(project["dependencies"])
    try:
        found = metadata.distribution("unidetox-ray")
    except metadata.PackageNotFoundError:
        return "", []
    wanted = [each for each in found.requires or [] if "extra ==" not in each]
    return str(found.metadata["Requires-Python"] or ""), wanted


@check("python")
def python(subject: Subject) -> Line:
    from packaging.specifiers import SpecifierSet

    accepted, version = required()[0], platform.python_version()
    if not accepted:
        return skipped(
            f"{version}; nothing says which versions are accepted", f"install the project: {_INSTALL}"
        )
    if version not in SpecifierSet(accepted):
        return fail(
            f"{version}, accepted: {accepted}", "make the virtual environment with an accepted Python"
        )
    return ok(f"{version} (accepted: {accepted})")


@check("packages")
def packages(subject: Subject) -> Iterator[Line]:
    from packaging.requirements import Requirement

    _, wanted = required()
    if not wanted:
        yield skipped("nothing says which versions are accepted", f"install the project: {_INSTALL}")
        return
    good = []
    for requirement in map(Requirement, wanted):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield fail(f"{requirement.name} is missing, wanted: {requirement.specifier}", _INSTALL)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{requirement.name} {version}")
        else:
            yield fail(f"{requirement.name} {version}, accepted: {requirement.specifier}", _INSTALL)
    if len(good) == len(wanted):
        main = [
            each
            for each in good
            if each.split()[0] in ("torch", "transformers", "ray", "deepspeed", "mlflow")
        ]
        yield ok(f"{len(good)} in their ranges: {', '.join(main)}")


@check("ray auth")
def authentication(subject: Subject) -> Line:
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    on = f"the cluster {subject.address}" if subject.address else "clusters on this machine"
    if mode == "disabled":
        return fail(
            f"RAY_AUTH_MODE=disabled: whoever reaches a port of {on} can run code on it",
            "unset RAY_AUTH_MODE or set it to token, and start Ray again",
        )
    if mode not in ("", "token"):
        return fail(f"RAY_AUTH_MODE={mode}: unknown", "set it to token")
    if mode == "" and subject.address:
        return warn(
            "RAY_AUTH_MODE is not set: this Ray sends no token to that cluster, and starts clusters without one",
            "export RAY_AUTH_MODE=token where Ray is started and where you submit",
        )
    where, place = _token_place()
    if place is None:
        return ok(where)
    return _token_file(where, place, wanted=bool(subject.address))


def _token_place() -> tuple[str, Path | None]:
    """(where Ray takes its token from, the file if it is one)."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if token:
        return f"token mode, token of {len(token)} characters in RAY_AUTH_TOKEN", None
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    return "RAY_AUTH_TOKEN_PATH" if named else "Ray's default", Path(
        named or "~/.ray/auth_token"
    ).expanduser()


def _token_file(where: str, place: Path, wanted: bool) -> Line:
    try:
        found, token = place.stat(), place.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if wanted or where != "Ray's default":
            return fail(f"{place} ({where}): no such file", "copy the cluster's token there, mode 0600")
        return ok("token mode; a private cluster makes a token that lives in its processes only")
    except OSError as error:
        return fail(f"{place} ({where}): {error.strerror}", "make it a file that you can read, mode 0600")
    if len(token) < _SHORTEST_TOKEN or len(token.split()) != 1:
        return fail(
            f"{place} ({where}): holds {len(token)} characters, or blanks",
            "ray get-auth-token --generate writes one",
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        return warn(
            f"{place} ({where}): mode {mode:04o}, other users can read the token", f"chmod 600 {place}"
        )
    return ok(f"token mode, token in {place}, mode {mode:04o}")
