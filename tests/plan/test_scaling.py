"""The same experiment on 1 to 1,000 devices."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from unidetox_ray.config import load
from unidetox_ray.plan import console, devices, page, planning, scaling

PAPER = Path(__file__).resolve().parents[2] / "experiments" / "paper_cluster.yaml"


@pytest.fixture(scope="module")
def paper() -> scaling.Scaling:
    return scaling.simulated(load(PAPER), devices.parse("a100-80:1"))


def test_time_falls_efficiency_falls_and_an_end_is_named(paper):
    assert [size.devices for size in paper.sizes] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert paper.sizes[0].efficiency == 1.0 and paper.sizes[-1].efficiency < 0.05
    seconds = [size.seconds for size in paper.sizes]
    assert seconds[0] > seconds[1] > seconds[2] > seconds[3] and max(seconds[6:]) < 1.2 * min(seconds)
    assert paper.ends is not None and paper.ends.devices <= 64
    assert paper.ends.bottleneck == "longest cell" and "Scaling ends at" in paper.sentence
    assert all(sum(size.lost.values()) < 1.0 for size in paper.sizes)


def test_workers_divide_the_batches(paper):
    assert {size.workers for size in paper.sizes} <= {1, 2, 4}  # toxic.batch_size is 4, finetune's 8


def test_a_million_texts_take_seconds_and_end_elsewhere():
    started = time.monotonic()
    found = scaling.simulated(load(PAPER, ["corpus.num_texts=1000000"]), devices.parse("a100-80:1"))
    assert time.monotonic() - started < 60
    # One order a corpus judges its content: the finding that a million texts bring.
    assert found.sizes[-1].bottleneck == "shard granularity" and found.sizes[-1].stage == "content"


def test_an_order_a_text_makes_the_driver_the_bottleneck():
    experiment = load(PAPER, ["corpus.num_texts=200000", "corpus.shard_size=1", "families=[gpt2]"])
    found = scaling.simulated(experiment, devices.parse("a100-80:1"), (1, 1000))
    assert found.sizes[-1].bottleneck == "driver" and found.sizes[-1].stage == "corpus"


def test_the_simulation_at_the_experiments_own_size_is_the_plan():
    experiment = load(PAPER)
    (four,) = scaling.simulated(experiment, devices.parse("a100-80:4"), (4,)).sizes
    made = planning.plan(experiment, devices.parse("a100-80:4"), advise=False)
    # paper_cluster.yaml is set for four.
    assert four.workers == 1 and four.seconds == pytest.approx(made.seconds)


def test_it_is_shown(paper):
    made = planning.plan(load(PAPER), devices.parse("a100-80:4"), advise=False)
    assert "1000" in console.scaling_table(paper) and paper.sentence in console.text(made, paper)
    html = page.render(made, paper)
    assert "Scaling" in html and html.count("<svg") >= 3
    # Axes in units that a reader knows: the Gantt chart of an hour and more, devices as they are counted.
    axes = re.findall(r'class="t axis"[^>]*>([^<]+)<', html)
    assert axes[0] in {"minutes", "hours"} and axes[1:] == ["hours", "devices", "efficiency, %", "devices"]
    assert re.search(r'class="t tick"[^>]*>1k<', html)
    values = paper.as_dict()
    assert values["ends_at"] == paper.ends.devices and len(values["sizes"]) == 11
