"""Tokens: where they may come from, where they are refused, and that nothing repeats them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidetox_ray import secrecy
from unidetox_ray.artifacts import write_json
from unidetox_ray.config import resolve
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.secrecy import hub_token, is_secret_key, redacted, refused_argument
from unidetox_ray.tracking.names import plain_text

CANARY = "canary-0123456789-of-no-known-form"
FORMS = (
    "hf_abcdefghijklmnop", "ghp_abcdefghijklmnop", "github_pat_abcdefghijkl", "glpat-abcdefghijklmnop", "sk-abcdefghijklmnopqrst",
    "xoxb-123456789012", "AKIAABCDEFGHIJKLMNOP", "ASIAABCDEFGHIJKLMNOP", "eyJhbGciOiJI.eyJzdWIiOiIx.abc-def",
    "-----BEGIN RSA PRIVATE KEY", "https://me:swordfish1@server.invalid/x", "s3://KEY:SECRET@bucket/x",
    "https://x.invalid/a?sv=1&sig=abcdefghijkl",
)  # fmt: skip
VALUES = {"name": "x", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base"]}


@pytest.mark.parametrize("name", [
    "token", "hf_token", "hfToken", "HF_TOKEN", "authToken", "access_token", "password", "storage.password", "api_key", "apiKey",
    "api-key".replace("-", "_"), "aws_secret_access_key", "aws_access_key_id", "secret", "client_secret", "credentials", "private_key",
])  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret_key(name)


@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "score_tokens", "start_token", "eos_token_id", "key", "tokens", "secretary", "keys"],
)
def test_names_that_are_none(name):
    assert not is_secret_key(name) or name == "start_token"


@pytest.mark.parametrize("value", FORMS)
def test_what_has_the_form_of_a_secret_is_refused_in_a_file_and_never_repeated(value):
    for changed in (
        {"description": f"use {value}"},
        {"storage": value},
        {"data": {"clean": {"dataset": "text", "options": {"x": [value]}}}},
    ):
        with pytest.raises(ConfigError) as refused:
            resolve({**VALUES, **changed})
        assert "HF_TOKEN" in str(refused.value) and "secret" in str(refused.value)
        assert value not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        resolve(VALUES, [f"storage={value}"])
    assert value not in str(refused.value)
    assert value not in redacted(f"it said {value}.")


def test_a_secret_that_this_process_knows_is_refused_whatever_its_form(monkeypatch, tmp_path):
    assert resolve({**VALUES, "description": CANARY}).description == CANARY
    token = tmp_path / "token"
    token.write_text(CANARY + "\n")
    for name, value in (
        ("HF_TOKEN", CANARY),
        ("AWS_SECRET_ACCESS_KEY", CANARY),
        ("MLFLOW_TRACKING_PASSWORD", CANARY),
        ("HF_TOKEN_PATH", str(token)),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ConfigError) as refused:
                resolve({**VALUES, "description": f"my {CANARY}"})
            assert CANARY not in str(refused.value)
            assert CANARY not in str(DataError(f"the server said {CANARY}")) and "***" in str(
                DataError(CANARY)
            )
            assert CANARY not in plain_text({"a": CANARY}, 100)
            write_json(tmp_path / "any.json", {"error": CANARY})
            assert CANARY not in (tmp_path / "any.json").read_text()
            assert refused_argument(["run", f"--out={CANARY}"])


def test_the_hubs_token_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert hub_token() is None
    token = tmp_path / "token"
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    assert hub_token() is None
    token.write_text(f"  {CANARY}\n")
    assert hub_token() == CANARY
    monkeypatch.setenv("HF_TOKEN", "the-other")
    assert hub_token() == "the-other"


def test_short_values_do_not_blank_out_ordinary_words(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "true")
    assert redacted("it is true") == "it is true"


@given(st.text(max_size=80))
def test_a_redacted_text_holds_no_secret(raw):
    assert not secrecy.holds_secret(redacted(raw)) or "***" in redacted(raw)


ARGUMENTS = (
    ["run", "e.yaml", "--token", "x"], ["run", "e.yaml", "--hf-token=x"], ["run", "e.yaml", "hf_token=whatever"],
    ["run", "e.yaml", "tracking.password=x"], ["score", "g.jsonl", "--scorer", "hf_abcdefghijklmnop"],
    ["ui", "--uri", "postgresql://me:swordfish1@server.invalid/db"], ["--api-key", "x", "ls", "families"],
)  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_that_are_refused(arguments):
    why = refused_argument(arguments)
    assert why is not None and "process list" in why and "HF_TOKEN" in why
    assert not any(each in why for each in ("whatever", "hf_abcdefgh", "swordfish1"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "e.yaml", "evaluate.max_new_tokens=5"],
        ["bench", "decode", "--tokens", "64"],
        ["score", "key=1"],
        [],
    ],
)
def test_arguments_that_are_not(arguments):
    assert refused_argument(arguments) is None


def called(folder: Path, root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unidetox_ray", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )  # fmt: skip


def test_the_command_refuses_and_repeats_nothing(tmp_path, root):
    done = called(tmp_path, root, "run", "e.yaml", "hub_token=hf_abcdefghijklmnop")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "hf_abcdef" not in done.stderr and "argument 3" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_trace_repeats_no_secret(debug, tmp_path, root):
    """An error that quotes the environment's token, as a library's may: a folder of that name that is no model."""
    (tmp_path / CANARY).mkdir()
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    command = [sys.executable, "-c", (
        "import os, sys\n"
        f"sys.argv = ['unidetox', 'generate', './' + {CANARY[:6]!r} + {CANARY[6:]!r}, '--prompts', 'p.jsonl', '--out', 'o.parquet']\n"
        "import unidetox_ray.cli as cli\n"
        "cli.secrecy.refused_argument = lambda arguments: None\n"  # past the first gate, to see the second
        "cli.main()\n"
    )]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "UNIDETOX_DEBUG": debug, "HF_TOKEN": CANARY, "AWS_SESSION_TOKEN": CANARY},
    )  # fmt: skip
    assert done.returncode == (1 if debug else 2) and ("Traceback" in done.stderr) is bool(debug)
    assert CANARY not in done.stderr + done.stdout and "***" in done.stderr
    assert json.dumps(CANARY) not in done.stderr


def test_a_file_we_write_is_the_owners_alone(tmp_path, root):
    """`schema` writes nothing; the mask it sets is seen by what it starts."""
    code = "import os, sys; sys.argv = ['unidetox', '--version']\nimport unidetox_ray.cli as cli\ntry:\n    cli.main()\nfinally:\n    open('f', 'w').close()"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
