"""The table of rates, what is fitted to its measurements, and `--gpus`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unidetox_ray.errors import ArtifactError, ConfigError
from unidetox_ray.plan import devices, fitting

TABLE = devices.stored()


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.1, 10.0), (10.0, 0.1), (1e-3, 1e-3), (2.0, 0.0)])
def test_measurements_are_found_again(a, b):
    rng = np.random.default_rng(0)
    amounts = np.exp(rng.uniform(0, 5, size=(40, 2)))
    points = [({"compute": x, "layers": y}, a * x + b * y) for x, y in amounts.tolist()]
    found = fitting.fitted(points, {"compute": 1.0, "layers": 1.0})
    assert found.error < 0.05 and min(found.coefficients.values()) >= 0
    larger = max(a, b)
    assert found.coefficients["compute" if a == larger else "layers"] == pytest.approx(larger, rel=0.05)
    assert found.share == pytest.approx(1 / found.coefficients["compute"])


def test_no_coefficient_is_negative_and_what_is_not_known_keeps_its_proportions():
    before = {"weights": 2.0, "cache": 1.0}
    found = fitting.fitted([({"weights": 1.0, "cache": 1.0}, 6.0)], before)
    assert found.coefficients["weights"] > found.coefficients["cache"] > 1
    downhill = [({"compute": x, "texts": 10.0 / x}, x) for x in (1.0, 2.0, 5.0)]
    assert min(fitting.fitted(downhill, {"compute": 1.0, "texts": 1.0}).coefficients.values()) >= 0
    assert fitting.fitted([], before).coefficients == before
    with pytest.raises(ValueError, match="no seconds"):
        fitting.fitted([({"compute": 1.0}, 0.0)], {"compute": 1.0})


@pytest.mark.parametrize("kind", TABLE["kinds"])
def test_every_entry_is_whole_and_says_where_it_is_from(kind):
    rates = devices.rates_of(kind, TABLE)
    assert set(rates.fits) == set(devices.WORK) and set(devices.HOST) <= set(rates.host)
    for part in ("matmul_tflops", "bandwidth_gb_s", "work", "host"):
        assert any(name.startswith(part) and text for name, text in rates.sources.items()), part
    for fit in rates.fits.values():
        assert fit.seconds({"compute": 1.0}) >= 0
    # No place of a machine.
    assert "/tmp" not in json.dumps(TABLE["kinds"][kind]) and "/work" not in json.dumps(TABLE["kinds"][kind])


@pytest.mark.parametrize("kind", ["cpu", "h200"])
def test_the_fits_reproduce_what_was_measured(kind):
    rates = devices.rates_of(kind, TABLE)
    assert rates.fits["train"].error < 0.15 and rates.fits["decode"].error < 0.15


def test_a_device_that_is_not_measured_has_anothers_shares_of_its_own_limits():
    here, like = devices.rates_of("a100-80", TABLE), devices.rates_of("h200", TABLE)
    assert here.fits == like.fits and here.matmul["bf16"] < like.matmul["bf16"]
    assert here.seconds("train", operations=1e15, precision="bf16") > like.seconds(
        "train", operations=1e15, precision="bf16"
    )


@pytest.mark.parametrize(
    ("spec", "kind", "count"), [("a100-80:8", "a100-80", 8), ("H200", "h200", 1), (" cpu:2 ", "cpu", 2)]
)
def test_gpus_are_named_with_their_number(spec, kind, count):
    found = devices.parse(spec)
    assert (found.rates.kind, found.count, found.name) == (kind, count, f"{kind}:{count}")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("a100:8", "did you mean 'a100-"), ("a100-80:0", "0 devices"), ("a100-80:-1", "KIND:COUNT"), ("a100-80:x", "KIND:COUNT"),
        ("", "KIND:COUNT"), ("a100-80:999999", "999999 devices"), ("a100-80:8:2", "KIND:COUNT"),
    ],
)  # fmt: skip
def test_anything_else_is_one_line(spec, words):
    with pytest.raises(ConfigError, match=words):
        devices.parse(spec)


def test_a_table_of_ones_own_lies_over_the_shipped_one(tmp_path):
    path = tmp_path / "rates.json"
    own = {**TABLE["kinds"]["h200"], "matmul_tflops": {"fp32": 1, "bf16": 2}}
    path.write_text(json.dumps({"schema": 1, "kinds": {"h200": own}}))
    table = devices.read_table(path)
    assert devices.rates_of("h200", table).matmul["bf16"] == 2e12
    assert devices.rates_of("cpu", table).matmul == devices.rates_of("cpu").matmul


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", '{"schema": 2, "kinds": {}}', '{"schema": 1, "kinds": {"h200": {}}}', '{"schema": 1, "kinds": {"x": 3}}',
        '{"schema": 1, "kinds": {"cpu": {"like": "nobody"}}}',
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_one_line(tmp_path, content):
    path = tmp_path / "rates.json"
    path.write_text(content)
    with pytest.raises((ArtifactError, ConfigError)) as raised:
        devices.read_table(path)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "gib", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80"), ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"), ("NVIDIA H100 80GB HBM3", 79.1, "h100-80"),
        ("NVIDIA H200", 139.8, "h200"), ("NVIDIA A10G", 22.0, "a10g-24"), ("NVIDIA L40S", 44.4, "l40s-48"), ("Tesla T4", 15.0, None),
    ],
)  # fmt: skip
def test_cards_are_known_by_their_names(name, gib, kind):
    assert devices.kind_named(name, gib, TABLE) == kind
