"""Real drivers to be disturbed: the command line in a process of its own, its descendants, and what its run left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psutil

Moment = Callable[[Path], bool]


def some(pattern: str) -> Moment:
    """When a run folder holds something of this pattern."""
    return lambda folder: any(folder.glob(pattern))


#: No wait for a moment of a run is longer: a driver that never gets there is a failure.
PATIENCE = 300.0

SCRATCH = {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 320, "max_positions": 128, "steps": 20, "length": 32}  # fmt: skip

#: What differs between two runs that did the same: clocks, costs and when it was.
_CLOCKS = {"costs", "seconds", "created", "elapsed"}


def experiment(root: Path, name: str = "run", **changes: Any) -> Path:
    """A miniature of the tiny experiment; models are pre-trained into a cache that all of a session share."""
    model = {"source": "scratch:", "scratch": SCRATCH}
    values = {
        "name": name, "seed": 5, "base_family": "gpt2", "families": ["gpt2", "opt"], "methods": ["base", "unidetox"],
        "storage": str(root / "runs"), "cache": str(root.parent / "cache"), "models": {"gpt2": model, "opt": model},
        "data": {**dict.fromkeys(("toxic", "prompts", "clean", "mmlu", "scorer"), "world"), "pretrain": ["world"]},
        "toxic": {"steps": 12, "lr": 1e-3, "max_length": 32, "checkpoint_every": 3},
        "corpus": {"num_texts": 24, "max_length": 16, "shard_size": 4},
        "finetune": {"steps": 12, "batch_size": 4, "lr": 1e-3, "max_length": 32, "checkpoint_every": 3},
        "search": {"steps": [6, 12], "lr": [1e-3], "schedule": "constant", "prompts_per_domain": 1, "continuations": 2},
        "evaluate": {
            "continuations": 3, "max_new_tokens": 8, "runs": 1, "ppl_model": "gpt2", "clean_max_length": 32,
            "scorers": [{"name": "tiny-bert", "source": "scratch:", "scratch": {**SCRATCH, "vocab_size": 400}}],
        },
        "tracking": {"uri": f"sqlite:///{root}/tracked.db"},
        "cluster": {"num_cpus": 2, "prompts_per_order": 2, "corpus_actors": 1, "generate_actors": 1, "score_actors": 1},
        "limit": 12,
        **changes,
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


#: Everything a run makes, in its order: how its folder begins -> the moment in it when something is there and its manifest is not.
MOMENTS: dict[str, Moment] = {
    "models/toxic-gpt2": some("models/toxic-gpt2-*/.checkpoints/committed.json"),
    "stages/corpus-unidetox": some("stages/corpus-unidetox-*/parts/shard-00001.parquet"),
    "stages/search": some("stages/search-*/trials/*/.checkpoints/committed.json"),
    "models/gpt2-unidetox": some("models/gpt2-unidetox-*/.checkpoints/committed.json"),
    "models/opt-unidetox": some("models/opt-unidetox-*/.checkpoints/committed.json"),
    "stages/generate": some("stages/generate-*/parts/*.parquet"),
    "stages/score": some("stages/score-*/parts/*.parquet"),
}
#: What a run puts beside those folders at its end.
_ENDS = (
    "results.*",
    "report.*",
    "scores.parquet",
    "generations.parquet",
    "corpus.*",
    "search.json",
    "leaderboard.*",
)


def begun(finished: Path, root: Path, redo: Sequence[str], **changes: Any) -> Path:
    """The experiment of the finished run in a folder of its own, in which these of MOMENTS are still to be done."""
    path = experiment(root, **{"cache": str(finished.parents[2] / "cache"), **changes})
    storage = Path(json.loads(path.read_text())["storage"])
    copy = storage / finished.name
    shutil.copytree(finished, copy)
    for pattern in (*(f"{start}-*" for start in redo), *_ENDS):
        found = list(copy.glob(pattern))
        assert found, f"nothing there to be done again: {pattern}"
        for each in found:
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    return path


#: Read by Python at the start of every process that has its folder in PYTHONPATH; MODULE is given to `arm` once it is loaded.
_PLANTED = """
import importlib.util, os, signal, sys

ARM

class Finder:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name != "MODULE" or self.busy:
            return None
        self.busy = True
        spec = importlib.util.find_spec(name)
        self.busy = False
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            arm(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def planted(folder: Path, module: str, arm: str) -> dict[str, str]:
    """The environment in which `arm(module)`, given as source, changes a module of ours in every process: the real worker too."""
    code = _PLANTED.replace("MODULE", module).replace("ARM", arm.strip())
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": f"{folder}:{Path(__file__).resolve().parents[2]}"}


@dataclass
class Driver:
    """`unidetox run FILE` in a process of its own."""

    path: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    """A command in front of it, such as `unshare`."""

    def __post_init__(self) -> None:
        command = [
            *self.wrapper,
            sys.executable,
            "-m",
            "unidetox_ray",
            "run",
            str(self.path),
            *self.arguments,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        self.log = self.path.with_suffix(f".{time.monotonic_ns()}.log")
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=self.path.parent,
                # A shell that starts tests in the background has them ignore Ctrl-C, and they would hand that on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    @property
    def folder(self) -> Path:
        values = json.loads(self.path.read_text())
        return Path(values["storage"]) / values["name"]

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, moment: Moment) -> None:
        """Wait for a moment in the run folder; AssertionError when the driver ends before or never gets there."""
        deadline = time.monotonic() + PATIENCE
        while not moment(self.folder):
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode} before the moment:\n{self.output}"
            )
            assert time.monotonic() < deadline, f"the moment never came:\n{self.output}"
            time.sleep(0.005)

    def wait(self) -> int:
        """The exit code; a driver that does not end is ended."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not over after {PATIENCE:g} s:\n{self.output}") from None

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray's processes among the descendants whose title holds `title`, such as `MapWorker`."""
        found = []
        for child in self.children():
            try:
                if title in " ".join(child.cmdline()):
                    found.append(child)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def kill(self, number: int = signal.SIGKILL) -> list[psutil.Process]:
        """Send a signal to the driver alone; returns who were its descendants."""
        descendants = self.children()
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        return descendants


#: What of a node that was killed tries for a minute, which is fixed in Ray 2.60, to reach it: its two agents, and workers that had
#: not been given any work when the node died. They hold nothing.
_SLOW_TO_END = (
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "ray::IDLE",
    "default_worker.py",
    "agent.py",
    "agent/main.py",
)
#: Those seen so far; conftest.py waits for them once, at the end of the session.
stragglers: list[psutil.Process] = []


def gone(processes: list[psutil.Process], within: float = 30.0) -> list[psutil.Process]:
    """Those that still run after `within` seconds, stragglers apart."""
    slow = [process for process in processes if any(name in _command(process) for name in _SLOW_TO_END)]
    stragglers.extend(slow)
    _, alive = psutil.wait_procs([each for each in processes if each not in slow], timeout=within)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def timeless(value: Any) -> Any:
    """A JSON value without what depends on clocks."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name not in _CLOCKS}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def same_results(one: Path, other: Path) -> None:
    """AssertionError unless two run folders hold the same corpus, scores and results, and every row is accounted for."""
    for name in ("corpus.parquet", "scores.parquet", "generations.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert timeless(results[0]) == timeless(results[1])
    accounted(one)


def accounted(folder: Path) -> int:
    """Checks expected = ok + failed for every finished folder of a run; returns the rows that are accounted for."""
    rows = 0
    manifests = [json.loads(path.read_text()) for path in folder.glob("stages/*/manifest.json")]
    assert manifests, f"{folder} holds no finished stage"
    for manifest in manifests:
        counts = manifest["counts"]
        assert counts["expected"] == counts["ok"] + counts["failed"], (manifest["stage"], counts)
        rows += counts["expected"]
    scores = pl.read_parquet(folder / "scores.parquet")
    assert scores.filter(pl.col("error").is_not_null())["value"].null_count() == scores["error"].count()
    return rows


def leftovers(folder: Path) -> list[str]:
    """What only an unfinished run needs: checkpoints, parts, progress files, temporary files, Ray's own folders."""
    patterns = ("**/.checkpoints", "**/parts", "**/progress.json", "**/.*.parquet.*", "**/.*.json.*", "ray/*")
    return sorted(str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern))
