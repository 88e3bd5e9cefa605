"""A private cluster says nothing on the console that is no error of the work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: As many waiting actors as four trainings with their controllers and drivers have, and a pool of Ray Data.
CODE = """
from unidetox_ray.settings import ClusterSection
from unidetox_ray.stages.cluster import connected
with connected(ClusterSection(num_cpus=2)):
    import ray
    class Waiting:
        def here(self):
            return 1
    actors = [ray.remote(num_cpus=0)(Waiting).remote() for _ in range(10)]
    print(sum(ray.get([actor.here.remote() for actor in actors])))
    def collects_rarely():
        import gc
        return gc.get_threshold()[0] > 10_000
    print(ray.get(ray.remote(collects_rarely).remote()))
    def broken():
        raise ValueError("what a worker met")
    try:
        ray.get(ray.remote(broken).remote())
    except ValueError as error:
        print("what a worker met" in str(error))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_the_console_is_quiet_and_errors_still_arrive(tmp_path, root):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**environment, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["10", "True", "True"] and done.stderr == ""
