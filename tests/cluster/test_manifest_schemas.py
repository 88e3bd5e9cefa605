"""Manifests against the schemas of those who read them: KubeRay's CRDs, Kubernetes, Ray's cluster launcher, SkyPilot."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from shipped import CLUSTER, KUBERNETES, MANIFESTS, RAY_UP, read, schema


def strict(value: Any) -> Any:
    """A CRD's schema that refuses what Kubernetes would drop in silence: fields it does not know."""
    if isinstance(value, list):
        return [strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = {name: strict(each) for name, each in value.items()}
    known = inner.get("properties")
    if known and inner.get("type") == "object" and not inner.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


@pytest.fixture(scope="module")
def kuberay() -> dict[str, jsonschema.Draft202012Validator]:
    spec = strict(schema("kuberay-rayjob-v1"))["properties"]["spec"]
    return {
        "RayJob": jsonschema.Draft202012Validator(spec),
        "RayCluster": jsonschema.Draft202012Validator(spec["properties"]["rayClusterSpec"]),
    }


def problems(validator: jsonschema.Draft202012Validator, spec: Any) -> list[str]:
    return [f"{'.'.join(map(str, each.path))}: {each.message[:200]}" for each in validator.iter_errors(spec)]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_takes_its_manifests(name, kuberay):
    manifest = read(CLUSTER / "kuberay" / f"{name}.yaml")
    assert manifest["apiVersion"] == "ray.io/v1"
    assert problems(kuberay[manifest["kind"]], manifest["spec"]) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("authOptions", "mode"), "password"),
        (("autoscalerOptions", "idleTimeout"), 5),
        (("headGroupSpec", "template", "spec", "containers"), [{"image": "x"}]),
        (("workerGroupSpecs", 0, "maxReplicas"), "many"),
        (("workerGroupSpecs", 0, "template", "spec", "securtyContext"), {}),
    ],
)
def test_the_check_of_kuberay_finds(path, value, kuberay):
    spec = copy.deepcopy(read(CLUSTER / "kuberay" / "raycluster.yaml")["spec"])
    place = spec
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert problems(kuberay["RayCluster"], spec)


@pytest.mark.parametrize(
    "path", [each for each in KUBERNETES if "ray" not in each.stem], ids=lambda each: each.stem
)
def test_kubernetes_takes_the_others(path):
    program = Path(sys.executable).with_name("kubernetes-validate")
    if not program.exists():
        pytest.skip("kubernetes-validate is not installed (pip install -e '.[dev]' -c constraints.txt)")
    done = subprocess.run([program, "--strict", path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RAY_UP, ids=lambda each: each.stem)
def test_ray_up_takes_its_files(path):
    """What `ray up` does with a file before it calls the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(path))
    validate_config(config)
    workers = config["available_node_types"]["gpu"]
    assert workers["min_workers"] == workers["max_workers"] == config["max_workers"] == 4
    assert workers["resources"]["GPU"] == 1 and config["head_node_type"] == "head"


@pytest.mark.parametrize(
    "change",
    [{"head_node_typ": "head"}, {"max_workers": "four"}, {"head_start_ray_commands": "ray start --head"}, {"provider": {"type": "aws", "module": 1}}],
    ids=str,
)  # fmt: skip
def test_the_check_of_ray_up_finds(change):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = {**read(RAY_UP[0]), **change}
    with pytest.raises((jsonschema.ValidationError, TypeError, ValueError)):
        validate_config(prepare_config(config))


def test_skypilot_takes_its_task():
    task = read(CLUSTER / "skypilot.yaml")
    for name, value in (("task", task), ("resources", task["resources"])):
        validator = jsonschema.Draft7Validator(schema(f"skypilot-{name}"))
        assert [each.message for each in validator.iter_errors(value)] == []


def test_the_check_of_skypilot_finds():
    task = read(CLUSTER / "skypilot.yaml")
    bad = [("task", {**task, "number_of_nodes": 2}), ("resources", {**task["resources"], "gpus": 1})]
    for name, value in bad:
        assert list(jsonschema.Draft7Validator(schema(f"skypilot-{name}")).iter_errors(value))


def test_the_yaml_is_tidy():
    program = Path(sys.executable).with_name("yamllint")
    if not program.exists():
        pytest.skip("yamllint is not installed (pip install -e '.[dev]' -c constraints.txt)")
    rules = (
        "{extends: default, rules: {line-length: disable, document-start: disable, braces: {max-spaces-inside: 0}, "
        "truthy: {check-keys: false}, octal-values: disable, comments: {min-spaces-from-content: 1}}}"
    )
    done = subprocess.run(
        [program, "--strict", "-d", rules, *MANIFESTS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
