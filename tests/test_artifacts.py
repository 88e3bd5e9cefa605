"""What counts as done, what counts as damaged, and that nothing is ever half there."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys

import polars as pl
import pytest

from unidetox_ray import artifacts
from unidetox_ray.artifacts import (
    MANIFEST,
    RunFolder,
    atomic_path,
    file_sha256,
    finished,
    key_for,
    private_folder,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
    write_parquet,
    write_text,
)
from unidetox_ray.errors import ArtifactError, ConfigError


@pytest.fixture
def done(tmp_path):
    """A finished folder under the key "k", with a file in a folder of its own."""
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "deep" / "b.txt", "two")
    write_manifest(
        tmp_path, stage="corpus", key="k", seconds=1.23456, config={"n": 1}, inputs={"base": "x"},
        counts={"expected": 2, "ok": 2, "failed": 0}, extra={"tokens": 7},
    )  # fmt: skip
    return tmp_path


def test_a_manifest_says_what_was_made_from_what(done):
    manifest = finished(done, "k")
    assert manifest is not None and manifest == read_manifest(done)
    assert manifest.files == {
        "a.txt": file_sha256(done / "a.txt"),
        "deep/b.txt": file_sha256(done / "deep" / "b.txt"),
    }
    assert manifest.sizes == {"a.txt": 3, "deep/b.txt": 3} and manifest.seconds == 1.235
    assert (
        manifest.config == {"n": 1} and manifest.inputs == {"base": "x"} and manifest.extra == {"tokens": 7}
    )
    assert manifest.versions["torch"] != "absent" and manifest.code["version"]
    # Readable without this package.
    assert json.loads((done / MANIFEST).read_text())["stage"] == "corpus"


def test_a_fresh_manifest_equals_the_one_read_again(tmp_path):
    """In what it says too: key order and tuples would else make a reused stage look changed in the tracking store."""
    config = {"steps": (1, 2), "scorers": [{"source": "x", "name": "b", "kind": "a"}]}
    extra = {"trials": [{"steps": 1, "lr": 1e-5, "error": None}], "chosen": {"z": 1, "a": (2,)}}
    fresh = write_manifest(tmp_path, stage="s", key="k", seconds=0, config=config, inputs={}, extra=extra)
    again = finished(tmp_path, "k")
    assert fresh == again and repr(fresh) == repr(again)
    assert fresh.config["steps"] == [1, 2] and list(fresh.config["scorers"][0]) == ["kind", "name", "source"]


def test_the_code_is_known_by_version_and_commit(root):
    versions = artifacts.versions()
    assert {"python", *artifacts.PACKAGES} == set(versions) and "absent" not in versions.values()
    code = artifacts.code_version()
    commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert code["version"] == artifacts.__version__
    assert code["git"].removesuffix("-dirty") == (
        commit.stdout.strip() if commit.returncode == 0 else "unknown"
    )


def test_a_package_below_somebody_elses_checkout_has_no_commit(tmp_path):
    """As in a virtual environment that lies in another project."""
    place = tmp_path / "site-packages" / "unidetox_ray"
    place.mkdir(parents=True)
    shutil.copy(artifacts.__file__, place / "artifacts.py")
    author = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    spec = importlib.util.spec_from_file_location("copied_artifacts", place / "artifacts.py")
    assert spec is not None and spec.loader is not None
    copied = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copied  # dataclasses look their module up
    try:
        spec.loader.exec_module(copied)
    finally:
        del sys.modules[spec.name]
    assert copied.code_version()["git"] == "unknown"


def test_without_a_manifest_or_under_another_key_it_is_not_done(done, tmp_path_factory):
    assert finished(done, "other") is None
    assert finished(tmp_path_factory.mktemp("empty"), "k") is None
    (done / MANIFEST).unlink()
    assert finished(done, "k") is None


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    """A kill while files are hashed leaves a folder that is not done."""
    write_text(tmp_path / "a.txt", "one")

    def killed(path):
        assert not (tmp_path / MANIFEST).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "file_sha256", killed)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path, stage="s", key="k", seconds=0, config={}, inputs={})
    assert finished(tmp_path, "k") is None and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "a.txt").unlink(), "a.txt: missing"),
        (lambda folder: (folder / "a.txt").write_text("longer"), "a.txt: 6 bytes, not 3"),
        (lambda folder: (folder / "deep" / "b.txt").write_text("owt"), "b.txt: its hash differs"),
        (lambda folder: (folder / MANIFEST).write_text('{"stage": "co'), "manifest.json: damaged"),
        (
            lambda folder: (folder / MANIFEST).write_text('{"stage": "corpus"}'),
            "not a manifest of this version",
        ),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe{}"), "manifest.json: damaged"),
    ],
    ids=["missing", "longer", "changed", "half a manifest", "another manifest", "not UTF-8"],
)
def test_damage_is_named_and_never_taken_for_unfinished(done, damage, said):
    damage(done)
    with pytest.raises(ArtifactError) as caught:
        finished(done, "k")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert "--fresh" in str(caught.value) or "again" in str(caught.value)


def test_a_file_added_later_is_no_damage(done):
    write_text(done / "note.txt", "mine")
    assert finished(done, "k") is not None


@pytest.mark.parametrize("before", [None, "old"])
def test_a_writer_that_raises_leaves_nothing_behind(tmp_path, before):
    path = tmp_path / "deep" / "file.txt"
    if before is not None:
        write_text(path, before)
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the ")
        assert temporary.parent == path.parent and temporary != path
        raise ZeroDivisionError
    names = [each.name for each in path.parent.iterdir()]
    assert names == ([] if before is None else ["file.txt"])
    if before is not None:
        assert path.read_text() == before


def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1} and [each.name for each in tmp_path.iterdir()] == ["values.json"]
    with pytest.raises(ArtifactError, match="is missing"):
        read_json(tmp_path / "absent.json")


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from unidetox_ray.artifacts import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('new and half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], timeout=120)
    assert killed.returncode == -9 and path.read_text() == "old"
    # What it left is hidden, and a manifest does not count it.
    left = [each.name for each in tmp_path.iterdir() if each != path]
    assert all(name.startswith(".") for name in left)
    manifest = write_manifest(tmp_path, stage="s", key="k", seconds=0, config={}, inputs={})
    assert set(manifest.files) == {"file.txt"}


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    for name in (".results.parquet._sldh286", ".config.yaml.abcdefgh"):
        (tmp_path / name).write_bytes(b"half")
    kept = [".lock", "results.parquet", ".hidden.file.of.mine", "notes.abcdefgh"]
    for name in kept:
        (tmp_path / name).write_bytes(b"whole")
    (tmp_path / ".folder.abcdefgh").mkdir()
    artifacts.clear_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".folder.abcdefgh"])


def test_the_same_table_gives_the_same_bytes(tmp_path):
    table = pl.DataFrame(
        {"text": ["one", None, "zwölf"], "ids": [[1, 2], [], None], "value": [0.5, float("nan"), None]}
    )
    for name in ("first", "second"):
        write_parquet(tmp_path / name, table)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert pl.read_parquet(tmp_path / "first").equals(table)
    # And in another process, where nothing is left of this one's state.
    code = (
        "import sys, polars as pl\n"
        "from pathlib import Path\n"
        "from unidetox_ray.artifacts import write_parquet\n"
        "write_parquet(Path(sys.argv[2]), pl.read_parquet(sys.argv[1]))\n"
    )
    third = tmp_path / "third"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "first"), str(third)], check=True, timeout=120)
    assert third.read_bytes() == (tmp_path / "first").read_bytes()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_their_owners_alone(tmp_path):
    before = os.umask(0o000)
    try:
        folder = private_folder(tmp_path / "outputs")
        run = RunFolder(tmp_path / "outputs", "study")
    finally:
        os.umask(before)
    assert mode(folder) == mode(run.root) == mode(run.cache) == 0o700
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o755)
    assert mode(private_folder(loose)) == 0o700


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give a folder you own"):
        private_folder(tmp_path / "file" / "below")


def test_keys_follow_what_decides_the_result():
    key = key_for("corpus", {"alpha": 0.1, "beta": "inf"}, {"base": "x", "toxic": "y"})
    assert len(key) == 16 and set(key) <= set("0123456789abcdef")
    assert key == key_for("corpus", {"beta": "inf", "alpha": 0.1}, {"toxic": "y", "base": "x"})
    others = {
        key_for("toxic", {"alpha": 0.1, "beta": "inf"}, {"base": "x", "toxic": "y"}),
        key_for("corpus", {"alpha": 0.2, "beta": "inf"}, {"base": "x", "toxic": "y"}),
        key_for("corpus", {"alpha": 0.1, "beta": "inf"}, {"base": "z", "toxic": "y"}),
    }
    assert len(others | {key}) == 4


def test_forgetting_keeps_the_cache(tmp_path):
    run = RunFolder(tmp_path, "study")
    for path in (
        run.stage("corpus", "k") / "x.parquet",
        run.model("cell", "k") / "w",
        run.cache / "gpt2" / "w",
    ):
        write_text(path, "x")
    write_text(run.root / "results.json", "[]")
    write_text(run.root / "notes.txt", "a user's own")
    run.forget()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["cache/gpt2/w", "study/notes.txt"]
