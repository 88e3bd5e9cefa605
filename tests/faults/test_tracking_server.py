"""A real MLflow server that is down at the start, away in the middle, or away until after the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from drivers import MOMENTS, Driver, begun, experiment, same_results

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


class Server:
    """`mlflow server` on loopback, always on the same port and database."""

    def __init__(self, root) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.root, self.process = root, None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.root}/server.db", "--artifacts-destination", str(self.root / "artifacts"),
        ]  # fmt: skip
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.root / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.stop()


def unfinished(server: Server) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    ids = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(ids, max_results=1000)
    assert len(runs) > 5
    return [run.info.run_name for run in runs if run.info.status != "FINISHED"]


def test_a_server_that_is_down_at_the_start_is_one_line_before_any_work(server, tmp_path, place):
    path = experiment(tmp_path / "down", cache=str(place / "cache"), tracking={"uri": server.uri})
    driver = Driver(path, environment={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"})
    assert driver.wait() == 2
    assert server.uri in driver.output and len(driver.output.strip().splitlines()) == 1, driver.output
    assert not (driver.folder / "stages").exists()


def test_a_server_that_goes_away_in_the_middle_and_comes_back(server, tmp_path, undisturbed):
    server.start()
    redo = ("stages/corpus-unidetox", "stages/generate", "stages/score")
    path = begun(undisturbed, tmp_path / "away", redo, tracking={"uri": server.uri, "patience": 120})
    driver = Driver(path, environment={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"})
    driver.until(MOMENTS["stages/corpus-unidetox"])
    server.stop()
    driver.until(MOMENTS["stages/score"])
    server.start()
    assert driver.wait() == 0, driver.output
    assert "the run goes on" in driver.output and "is back" in driver.output
    assert unfinished(server) == []
    same_results(driver.folder, undisturbed)


def test_a_server_that_stays_away_loses_no_result_and_the_same_command_records_it(
    server, tmp_path, undisturbed
):
    server.start()
    redo = ("stages/generate", "stages/score")
    path = begun(undisturbed, tmp_path / "lost", redo, tracking={"uri": server.uri, "patience": 1})
    driver = Driver(path, environment={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"})
    driver.until(MOMENTS["stages/generate"])
    server.stop()
    assert driver.wait() == 1
    assert "the same command again records them" in driver.output
    same_results(driver.folder, undisturbed)
    server.start()
    driver = Driver(path)
    assert driver.wait() == 0, driver.output
    assert unfinished(server) == []
    same_results(driver.folder, undisturbed)
