"""The hub as it answers, by a server on loopback that answers likewise: status and the header by which it names its reasons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PROGRAM = """
import json, sys
from dataclasses import asdict
from unidetox_ray.config import load
from unidetox_ray.doctor import Subject, examine
print(json.dumps([asdict(line) for line in examine(Subject(load(sys.argv[1])), ["hub"])]))
"""
#: Repository -> what the hub answers for it: status, its X-Error-Code.
ANSWERS = {
    "open/model": (200, ""),
    "gated/model": (403, "GatedRepo"),
    "absent/model": (404, "RepoNotFound"),
    "broken/model": (404, "RevisionNotFound"),
}


class Hub(BaseHTTPRequestHandler):
    tokens: set[str]

    def do_HEAD(self) -> None:
        self.server.tokens.add(self.headers.get("authorization", ""))  # type: ignore[attr-defined]
        name = "/".join(self.path.lstrip("/").split("/")[:2])
        status, code = ANSWERS[name]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        else:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "2")
        self.end_headers()

    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.tokens = set()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def lines(path, folder, **environment: str) -> dict[str, dict]:
    """What the check says, by the model that it says it of; the hub's own line under ""."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    values |= {"HF_HOME": str(folder / "home"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path], env=values, capture_output=True, text=True, timeout=300, cwd=folder
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {
        line["seen"].split(":")[0].removeprefix("model ") if line["seen"].startswith("model ") else "": line
        for line in found
    }


def models(*names: str) -> dict:
    """Changes of an experiment: the first as the model, the others as classifiers of content."""
    others = [{"name": f"c{number}", "source": name} for number, name in enumerate(names[1:])]
    return {"models": {"gpt2": names[0]}, "content": {"classifiers": others}}


def test_what_can_be_fetched_and_what_cannot(hub, write, tmp_path):
    found = lines(
        write(**models(*ANSWERS)),
        tmp_path,
        HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
        HF_TOKEN="hf_canarycanary",
    )
    assert {name: line["status"] for name, line in found.items()} == {
        "": "ok", "open/model": "ok", "gated/model": "fail", "absent/model": "fail", "broken/model": "fail",
    }  # fmt: skip
    assert (
        "accept its terms" in found["gated/model"]["remedy"]
        and "not been given access" in found["gated/model"]["seen"]
    )
    assert hub.tokens == {"Bearer hf_canarycanary"}
    assert "canary" not in json.dumps(found)


def test_without_a_token_it_says_so(hub, write, tmp_path):
    found = lines(write(**models("gated/model")), tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    assert (
        "there is no token" in found["gated/model"]["seen"] and "HF_TOKEN" in found["gated/model"]["remedy"]
    )


def test_offline_the_cache_counts(write, tmp_path):
    snapshot = tmp_path / "home" / "hub" / "models--open--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").touch()
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    found = lines(write(**models("open/model", "absent/model")), tmp_path, HF_HUB_OFFLINE="1")
    assert found["open/model"]["status"] == "ok" and "in the cache" in found["open/model"]["seen"]
    assert found["absent/model"]["status"] == "fail" and "HF_HUB_OFFLINE" in found["absent/model"]["seen"]


def test_a_hub_that_nobody_answers_for_takes_seconds(write, tmp_path):
    started = time.monotonic()
    # Documentation addresses (RFC 5737) lead nowhere.
    found = lines(write(**models("open/model")), tmp_path, HF_ENDPOINT="http://192.0.2.1:9")
    assert found["open/model"]["status"] == "fail" and "offline" in found["open/model"]["seen"]
    assert time.monotonic() - started < 60


def test_a_local_experiment_needs_no_hub(write, tmp_path):
    assert lines(write(), tmp_path)[""]["status"] == "ok"


def test_data_counts_where_a_method_needs_it(write, experiment):
    from unidetox_ray.doctor import Subject
    from unidetox_ray.doctor.access import wanted_from_hub

    hub_data = {
        "data": {"prompts": "world", "mmlu": None, "pretrain": ["world"]}
    }  # the toxic texts are the hub's
    with_toxic = wanted_from_hub(Subject(experiment(**hub_data)))
    assert [kind for kind, _, _ in with_toxic] == ["dataset"]
    assert wanted_from_hub(Subject(experiment(methods=["base"], **hub_data))) == []
