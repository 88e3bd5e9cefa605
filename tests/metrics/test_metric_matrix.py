"""Every registered metric: what a new one inherits."""

import subprocess
import sys

import pytest

from unidetox_ray import registry
from unidetox_ray.metrics.base import Metric


@pytest.mark.parametrize("name", registry.names("metrics"))
def test_registered(name):
    metric = registry.lookup("metrics", name)
    assert isinstance(metric, Metric) and metric.name == name
    assert metric.direction in ("lower", "higher")
    assert metric.range[0] < metric.range[1]
    assert all(len(text) > 3 for text in (metric.unit, metric.description, metric.source))


def test_importing_the_definitions_loads_no_torch():
    """Tables and reports are made where no model is; only what runs a model loads torch."""
    code = (
        "import sys; import unidetox_ray.results; from unidetox_ray import registry;"
        "[registry.lookup('metrics', name) for name in registry.names('metrics')];"
        "print(sorted({'torch', 'transformers', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
