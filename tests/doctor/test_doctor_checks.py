"""Each check, under the condition that it is for."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from unidetox_ray.artifacts import write_corpus_csv, write_parquet
from unidetox_ray.config import load
from unidetox_ray.doctor import CHECKS, Subject, examine, network, software, text
from unidetox_ray.doctor.checking import Registered, fail, ok
from unidetox_ray.doctor.needs import needs
from unidetox_ray.doctor.storage import kind_of_mount, shared
from unidetox_ray.plan import devices

HUGE = {"gpt2": {"source": "scratch:", "scratch": {"hidden": 65536, "layers": 96, "heads": 64}}}


class TestRunning:
    """What becomes of a check that does not do its work."""

    @pytest.fixture
    def registered(self, monkeypatch):
        def register(look, seconds=5.0):
            monkeypatch.setitem(CHECKS, "broken", Registered(look, seconds))
            return examine(Subject(), ["broken"])

        return register

    def test_one_that_raises_is_a_failed_line_with_its_reason(self, registered):
        def look(subject):
            raise KeyError("memory.max")

        (line,) = registered(look)
        assert line.status == "fail" and "KeyError" in line.seen and "memory.max" in line.seen and line.remedy

    def test_one_that_raises_half_way_is_one_failed_line(self, registered):
        def look(subject):
            yield ok("so far")
            raise OSError("gone")

        assert [line.status for line in registered(look)] == ["fail"]

    def test_one_that_hangs_is_left_behind(self, registered):
        started = time.monotonic()
        (line,) = registered(lambda subject: time.sleep(30), seconds=0.3)
        assert time.monotonic() - started < 5
        assert line.status == "fail" and "no answer within" in line.seen

    def test_what_it_says_holds_no_secret_and_cannot_steer_the_terminal(self, registered, monkeypatch):
        canary = f"canary-{secrets.token_hex(8)}"
        monkeypatch.setenv("HF_TOKEN", canary)
        (line,) = registered(lambda subject: fail(f"token {canary}\x1b[2J\nnext", f"use {canary}"))
        shown = text([line])
        assert canary not in shown and "\x1b" not in shown and "\n" not in line.seen


@pytest.mark.parametrize("name", CHECKS)
def test_every_line_that_is_not_ok_has_a_remedy(name, experiment):
    found = experiment()
    for subject in (Subject(), Subject(found, found.storage), Subject(found, "s3://bucket/none")):
        if name == "storage" and "://" in subject.storage:
            continue  # that would ask the network
        for line in examine(subject, [name]):
            assert line.check == name and line.seen
            assert line.remedy or line.status in ("ok", "skipped"), line


class TestSoftware:
    def test_what_is_installed_is_in_its_ranges(self):
        (line,) = examine(Subject(), ["packages"])
        assert line.status == "ok" and f"{len(software.required()[1])} in their ranges" in line.seen
        assert examine(Subject(), ["python"])[0].status == "ok"

    def test_wrong_and_missing_packages_are_named(self, monkeypatch):
        monkeypatch.setattr(
            software, "required", lambda: (">=4", ["polars<1", "no-such-package>=1", "numpy>=2"])
        )
        lines = examine(Subject(), ["packages"])
        assert [line.status for line in lines] == ["fail", "fail"]
        assert (
            "polars" in lines[0].seen
            and "<1" in lines[0].seen
            and "no-such-package is missing" in lines[1].seen
        )
        assert examine(Subject(), ["python"])[0].status == "fail"


class TestAuthentication:
    @pytest.fixture
    def token(self, tmp_path, monkeypatch) -> Path:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        place = tmp_path / "token"
        place.write_text(secrets.token_hex(32))
        place.chmod(0o600)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(place))
        return place

    def status(self, address: str | None = None) -> str:
        (line,) = examine(Subject(address=address), ["ray auth"])
        return line.status

    def test_a_private_token_is_well(self, token):
        assert self.status() == "ok"

    def test_a_cluster_needs_the_mode_said(self, token, monkeypatch):
        assert self.status("10.0.0.1:6379") == "warn"
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert self.status("10.0.0.1:6379") == "ok"

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_one_that_others_can_read_is_not(self, token, mode):
        token.chmod(mode)
        (line,) = examine(Subject(), ["ray auth"])
        assert line.status == "warn" and f"{mode:04o}" in line.seen and line.remedy == f"chmod 600 {token}"

    @pytest.mark.parametrize("content", ["", "short", "with blanks in it, which no header takes"])
    def test_one_that_is_none_is_not(self, token, content):
        token.write_text(content)
        assert self.status() == "fail"

    def test_one_that_is_not_there_is_not(self, token):
        token.unlink()
        assert self.status() == "fail"

    def test_none_at_all_is_well_on_one_machine_only(self, token, monkeypatch, tmp_path):
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert self.status() == "ok"
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert self.status("10.0.0.1:6379") == "fail"

    @pytest.mark.parametrize("mode", ["disabled", "DISABLED", "none"])
    def test_switched_off_fails(self, token, monkeypatch, mode):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        assert self.status() == "fail"


class TestStorage:
    def test_a_folder_that_can_be_written_is_left_as_it_was(self, looked, tmp_path):
        before = sorted(tmp_path.rglob("*"))
        (line,) = looked("storage")
        assert line.status == "ok" and "has file locks" in line.seen
        assert sorted(set(tmp_path.rglob("*")) - {tmp_path / "experiment.yaml"}) == before

    def test_one_that_cannot_is_named(self, looked, tmp_path):
        (tmp_path / "file").touch()
        assert looked("storage", storage=str(tmp_path / "file" / "below"))[0].status == "fail"
        assert looked("storage", storage="/proc/outputs")[0].status == "fail"
        assert (
            looked("clock", storage="/proc/outputs")[0].status == "ok"
        )  # that it cannot be written is no fault of the clock

    def test_an_object_store_is_written_to(self, looked, tmp_path):
        (line,) = looked("storage", storage="memory://bucket/runs")
        assert line.status == "ok" and "one node" in line.seen
        assert looked("storage", storage="nowhere://bucket")[0].status == "fail"

    def test_a_mount_is_known_by_its_kind(self):
        assert kind_of_mount(Path("/proc/self")) == "proc"
        assert [shared(kind) for kind in ("nfs4", "fuse.sshfs", "lustre", "ext4", "overlay", "xfs")] == [True] * 3 + [False] * 3  # fmt: skip

    def test_run_folders_that_others_can_read(self, looked, tmp_path):
        run = tmp_path / "outputs" / "mine"
        run.mkdir(parents=True, mode=0o700)
        (run / "config.yaml").touch()
        (tmp_path / "outputs" / "unrelated").mkdir(mode=0o755)
        assert looked("permissions")[0].status == "ok"
        run.chmod(0o755)
        (line,) = looked("permissions")
        assert line.status == "warn" and "mine 0755" in line.seen and "unrelated" not in line.seen

    def test_a_toxic_model_without_its_mark(self, looked, tmp_path):
        model = tmp_path / "outputs" / "mine" / "models" / "toxic-gpt2-0123"
        model.mkdir(parents=True)
        (tmp_path / "outputs" / "mine" / "config.yaml").touch()
        (model / "settings.json").write_text('{"do_not_deploy": true}')
        (model / "README.md").write_text("---\ntags: [unidetox_ray, do-not-deploy]\n---\n")
        (line,) = looked("toxic models")
        assert line.status == "ok" and line.seen.startswith("1 toxic models")
        (model / "README.md").write_text("---\ntags: [unidetox_ray]\n---\n")
        (line,) = looked("toxic models")
        assert line.status == "fail" and str(model) in line.seen
        (model / "README.md").unlink()
        assert looked("toxic models")[0].status == "fail"

    def test_text_without_its_warning(self, looked, tmp_path):
        run = tmp_path / "outputs" / "mine"
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        table = pl.DataFrame({"text": ["a"]})
        write_parquet(run / "corpus.parquet", table)
        write_parquet(run / "scores.parquet", pl.DataFrame({"value": [0.5]}))
        write_corpus_csv(run / "corpus.csv", ["a"])
        (run / "leaderboard.csv").write_text("cell,value\na,1\n")
        (line,) = looked("text files")
        assert line.status == "ok" and line.seen.startswith("2 files of text")
        table.write_parquet(run / "generations.parquet")
        (line,) = looked("text files")
        assert line.status == "warn" and "generations.parquet" in line.seen
        (run / "generations.parquet").write_bytes(b"cut")
        assert looked("text files")[0].status == "warn"
        (run / "generations.parquet").unlink()
        (run / "corpus.csv-metadata.json").unlink()
        assert "corpus.csv" in looked("text files")[0].seen


class TestRoom:
    def test_what_fits(self, looked):
        assert [looked(name)[0].status for name in ("memory", "disk")] == ["ok", "ok"]

    def test_what_does_not(self, looked):
        for name in ("memory", "disk"):
            (line,) = looked(name, models=HUGE)
            assert line.status == "fail" and "the experiment needs about" in line.seen

    def test_a_shape_that_nobody_knows_is_said(self, looked):
        for name in ("memory", "disk"):
            (line,) = looked(name, models={"gpt2": "some/unknown-model"})
            assert line.status == "skipped" and "some/unknown-model" in line.seen

    def test_the_paper_fits_one_a100_as_it_is_set(self, root):
        """Measured: 50-54 GiB for a 7B in pure bf16 with batch 8 x 256; fp32 master weights, over 100 (performance.md)."""
        one, four = (devices.parse(f"a100-80:{count}", devices.stored()) for count in (1, 4))
        paper = load(root / "experiments" / "single_a100.yaml")
        assert 50 < needs(paper, one)["memory_gib"] < 79
        assert 100 < needs(paper, one)["disk_gib"] < 300
        master = load(root / "experiments" / "single_a100.yaml", ["finetune.precision=bf16_master"])
        assert needs(master, one)["memory_gib"] > 100
        sharded = ["cluster.workers_per_cell=4", "finetune.deepspeed.stage=2"]
        master = load(root / "experiments" / "single_a100.yaml", ["finetune.precision=bf16_master", *sharded])
        assert needs(master, four)["memory_gib"] < 79


@contextmanager
def server(answer: int) -> Iterator[str]:
    """A web server on loopback that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *words) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


class TestTracking:
    def test_a_server(self, looked):
        for answer, status in ((200, "ok"), (404, "fail"), (401, "fail")):
            with server(answer) as uri:
                assert looked("tracking", tracking={"uri": uri})[0].status == status
        assert looked("tracking", tracking={"uri": uri})[0].status == "fail", "nobody listens there any more"

    def test_a_database_elsewhere_and_its_password(self, looked, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            monkeypatch.setenv("STORE", "postgresql://me:hunter2hunter2@127.0.0.1/x")
            (line,) = looked(
                "tracking", tracking={"uri": f"postgresql://127.0.0.1:{listening.getsockname()[1]}/x"}
            )
            assert line.status == "ok"
        assert looked("tracking", tracking={"uri": "postgresql://127.0.0.1:1/x"})[0].status == "fail"

    def test_a_file(self, looked, tmp_path):
        from unidetox_ray.tracking.address import open_store

        file = tmp_path / "store" / "mlflow.db"
        uri = {"uri": f"sqlite:///{file}"}
        assert looked("tracking", tracking=uri)[0].status == "ok" and not file.parent.exists()
        open_store(uri["uri"], "e", None)
        assert looked("tracking", tracking=uri)[0].status == "ok"
        file.chmod(0o644)
        assert looked("tracking", tracking=uri)[0].status == "warn"

    def test_a_file_of_something_else(self, looked, tmp_path):
        (tmp_path / "other.db").write_bytes(b"not a database, but long enough to be taken for one" * 100)
        (line,) = looked("tracking", tracking={"uri": f"sqlite:///{tmp_path / 'other.db'}"})
        assert line.status == "fail" and "not a database" in line.seen and "move the file away" in line.remedy
        (line,) = looked("tracking", tracking={"uri": f"sqlite:///{tmp_path}"})
        assert line.status == "fail" and "is a folder" in line.seen and "mlflow.db" in line.remedy

    def test_none_and_nonsense(self, looked):
        assert looked("tracking")[0].status == "ok"
        assert looked("tracking", tracking={"uri": "file:///old/mlruns"})[0].status == "fail"


class TestPorts:
    @contextmanager
    def listening(self, title: str, address: str) -> Iterator[int]:
        """A process of this title that listens there; the port."""
        program = f"import socket, time; s = socket.create_server(({address!r}, 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"
        process = subprocess.Popen(
            ["bash", "-c", 'exec -a "$0" "$@"', title, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def test_rays_worker_that_all_can_reach(self):
        with self.listening("ray::Sampler", "0.0.0.0") as port:
            found = [line for line in examine(Subject(), ["open ports"]) if line.seen.startswith("Ray ")]
            assert [line.status for line in found] == ["warn"]
        with self.listening("ray::Sampler", "127.0.0.1"):
            seen = " ".join(line.seen for line in examine(Subject(), ["open ports"]))
            assert f"{port} (" not in seen

    @pytest.mark.parametrize(("words", "whose"), [
        (["/x/ray/core/src/ray/gcs/gcs_server", "--port=6379"], "Ray"), (["/x/ray/core/src/ray/raylet/raylet"], "Ray"),
        (["ray::IDLE"], "Ray"), (["python3", "-u", "/x/site-packages/ray/dashboard/agent.py"], "Ray"),
        (["python3", "-m", "mlflow", "server", "--host", "0.0.0.0"], "MLflow"), (["/x/bin/mlflow", "ui"], "MLflow"),
        (["python3", "train.py", "--stingray"], ""), (["sshd"], ""), ([], ""), (["python3", "mlflow_notes.py"], ""),
    ])  # fmt: skip
    def test_whose_a_process_is(self, words, whose):
        assert network.owner(words, words[0] if words else "") == whose

    @pytest.mark.parametrize(("address", "open_"), [
        ("127.0.0.1", False), ("127.8.9.1", False), ("::1", False), ("::ffff:127.0.0.1", False), ("0.0.0.0", True), ("::", True),
        ("10.0.0.1", True), ("::ffff:10.0.0.1", True), ("fe80::1%eth0", True),
    ])  # fmt: skip
    def test_what_is_beyond_loopback(self, address, open_):
        assert network.beyond_loopback(address) is open_


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path):
    assert examine(Subject(), ["home"])[0].status == "ok"
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert examine(Subject(), ["home"])[0].status == "warn"


def test_few_open_files():
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512));"
        "from unidetox_ray.doctor import Subject, examine; print(examine(Subject(), ['open files'])[0].status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env={**os.environ}
    )
    assert done.stdout.strip() == "warn", done.stderr


def test_a_cluster_that_is_not_there_is_said_within_seconds(looked):
    started = time.monotonic()
    (line,) = looked("nodes", address="127.0.0.1:1")
    assert line.status == "fail" and time.monotonic() - started < 30
    assert looked("nodes")[0].status == "skipped"
    (line,) = looked("nodes", address="no such host")
    assert line.status == "fail" and "accepted: host:port" in line.seen and line.remedy
