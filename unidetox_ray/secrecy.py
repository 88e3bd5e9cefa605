"""What is a secret, where it may stand, and how it is kept out of everything that is written.

Tokens come from the environment or from a file that a variable names:

    HF_TOKEN, HF_TOKEN_PATH                                         gated models and data sets
    MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME, …_PASSWORD     a tracking server
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN     s3:// storage
    RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH                             a Ray cluster

In a YAML file and on a command line they are refused. `redacted` blanks out the ones that this process knows, and whatever
looks like one; every error message, manifest, report and MLflow value goes through it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

BLANK = "***"
#: Shorter values of a secret variable are not blanked out: "true" or "none" would vanish from ordinary sentences.
SHORTEST = 8

_KEY = re.compile(
    r"(^|[._-])((hf|hub|auth|access|api|bearer|session|refresh)_?)?"
    r"(token|password|passwd|passphrase|secret|api_?key|access_key(_id)?|private_key|secret_key|credentials?)$"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\bgh[pousr]_[A-Za-z0-9]{8,}|\bgithub_pat_\w{8,}|\bglpat-[\w-]{8,}|\bsk-[A-Za-z0-9_-]{16,}"
    r"|\bxox[abprs]-[\w-]{8,}|\bA(?:KI|SI)A[A-Z0-9]{12,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?<=[?&])(?:sig|token|access_token|api_key|X-Amz-Signature)=[^&\s]{8,}"
)
#: The user's name stays readable: user:password@host -> user:***@host.
_USER_INFO = re.compile(r"(?<=://)([^/\s:@]*:)[^/\s@]+(?=@)")
_VARIABLE = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY)(_ID)?$")
#: Variables that name a file with a token.
FILES = ("HF_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_TOKEN_FILE")
_LARGEST_TOKEN_FILE = 1 << 16

ADVICE = (
    "set it in the environment (HF_TOKEN, MLFLOW_TRACKING_TOKEN, AWS_…) or in a file that HF_TOKEN_PATH names"
)


def is_secret_key(name: str) -> bool:
    """Whether a setting of this name would hold a secret: hf_token, apiKey, storage.password …"""
    return bool(_KEY.search(_CAMEL.sub("_", name).lower()))


def holds_secret(text: str) -> bool:
    """Whether a text holds what has the form of a token or password, or one that this process knows."""
    return bool(_VALUE.search(text) or _USER_INFO.search(text)) or any(secret in text for secret in known())


def known() -> list[str]:
    """Secrets of this process, longest first: those in variables whose name says so, and in the token files named."""
    found = set()
    for name, value in os.environ.items():
        if _VARIABLE.search(name.upper()):
            found.add(value)
        found.update(match[0].rpartition(":")[2] for match in _USER_INFO.finditer(value))
    for name in FILES:
        found.add(_token_in(os.environ.get(name, "")))
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def _token_in(path: str) -> str:
    try:
        place = Path(path).expanduser()
        if not path or not place.is_file() or place.stat().st_size > _LARGEST_TOKEN_FILE:
            return ""
        return place.read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):
        return ""


def redacted(text: str) -> str:
    """The text with every secret blanked out."""
    for secret in known():
        text = text.replace(secret, BLANK)
    text = _USER_INFO.sub(rf"\1{BLANK}", text)
    return _VALUE.sub(BLANK, text)


def hub_token() -> str | None:
    """The hub's token: HF_TOKEN, else the file that HF_TOKEN_PATH names, else None (and the hub's own login, if any)."""
    return os.environ.get("HF_TOKEN") or _token_in(os.environ.get("HF_TOKEN_PATH", "")) or None


def refused_argument(arguments: Sequence[str]) -> str | None:
    """Why a command line is refused, without the secret: it holds one, or an option that is made for one; else None."""
    for number, argument in enumerate(arguments, start=1):
        name, equals, _ = argument.partition("=")
        option = name.lstrip("-") if name.startswith("-") or equals else ""
        if (option and is_secret_key(option.replace("-", "_"))) or holds_secret(argument):
            return (
                f"argument {number} of the command line looks like a secret, which other users can read in the process list, "
                f"the shell's history and Ray's job list; {ADVICE}, and replace it if it was a real one"
            )
    return None
