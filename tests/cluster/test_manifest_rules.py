"""What every shipped manifest keeps to: no secret in it, nobody root, nothing privileged, one version, commands that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from shipped import CLUSTER, KUBERNETES, MANIFESTS, RAY_UP, ROOT, SCRIPTS, commands, pods, read, script

from unidetox_ray import secrecy
from unidetox_ray.cli import app
from unidetox_ray.config import load

RAY_KINDS = [path for path in KUBERNETES if path.stem in ("raycluster", "rayjob")]
ALL = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
IMAGE = f"unidetox-ray:{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}"


def pinned(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, name
    return found[1]


@pytest.mark.parametrize("path", ALL, ids=lambda each: str(each.relative_to(CLUSTER)))
def test_no_file_holds_a_secret(path):
    assert not secrecy.holds_secret(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RAY_KINDS, ids=lambda each: each.stem)
class TestPods:
    def test_nobody_is_root_and_nothing_is_privileged(self, path):
        for name, template in pods(read(path)).items():
            spec = template["spec"]
            assert (
                spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
            ), name
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
            assert not any("hostPath" in volume for volume in spec.get("volumes", ()))
            for container in spec["containers"]:
                context = container["securityContext"]
                assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name
                assert container["resources"]["limits"] and container["resources"]["requests"]

    def test_secrets_come_by_reference(self, path):
        for template in pods(read(path)).values():
            for container in template["spec"]["containers"]:
                for variable in container.get("env", ()):
                    # Names of files may be written here, values of secrets may not.
                    assert not secrecy.is_secret_key(variable["name"].lower()) or "valueFrom" in variable
        head = pods(read(path))["head"]["spec"]
        (token,) = (volume for volume in head["volumes"] if volume["name"] == "hub-token")
        assert token["secret"]["secretName"] == "unidetox-hub" and token["secret"]["defaultMode"] == 0o440

    def test_token_autoscaling_storage_and_gpus(self, path):
        manifest = read(path)
        cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        assert cluster["authOptions"] == {"mode": "token"} and cluster["enableInTreeAutoscaling"] is True
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        (group,) = cluster["workerGroupSpecs"]
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (worker,) = group["template"]["spec"]["containers"]
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
        claim = read(CLUSTER / "kuberay" / "storage.yaml")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for name in ("head", "gpu"):
            spec = pods(manifest)[name]["spec"]
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
            assert {"name": "storage", "mountPath": "/shared"} in spec["containers"][0]["volumeMounts"]

    def test_the_network_policy_holds_for_every_pod(self, path):
        policy = read(CLUSTER / "kuberay" / "networkpolicy.yaml")["spec"]
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        for name, template in pods(read(path)).items():
            labels = template["metadata"]["labels"]
            assert policy["podSelector"]["matchLabels"].items() <= labels.items(), name
        assert all("from" in rule for rule in policy["ingress"]), "a rule without `from` lets everybody in"

    def test_one_image_and_its_ray(self, path):
        manifest = read(path)
        cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        assert cluster["rayVersion"] == pinned("ray")
        images = {c["image"] for template in pods(manifest).values() for c in template["spec"]["containers"]}
        assert images == {IMAGE}


def test_both_kinds_start_the_same_cluster():
    cluster, job = (read(CLUSTER / "kuberay" / f"{name}.yaml")["spec"] for name in ("raycluster", "rayjob"))
    assert job["rayClusterSpec"] == cluster


@pytest.mark.parametrize("path", RAY_UP, ids=lambda each: each.stem)
def test_ray_up_starts_with_a_token_on_loopback(path):
    config = read(path)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in (each for each in starts if "ray start" in each):
        assert "export RAY_AUTH_MODE=token" in command
    (head,) = (each for each in config["head_start_ray_commands"] if "--head" in each)
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any(each.startswith("chmod 600 ~/.ray/auth_token") for each in config["setup_commands"])


def test_skypilots_own_ray_is_left_alone():
    task = read(CLUSTER / "skypilot.yaml")
    words = task["setup"] + task["run"]
    assert "ray stop" not in words and "ray start" not in words and "RAY_ADDRESS=" not in words
    assert task["secrets"] == {"HF_TOKEN": None}, "named here, given on the command line"


class TestContainer:
    def test_it_runs_as_nobody_special_from_a_pinned_base(self):
        assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-bookworm$", DOCKERFILE, re.MULTILINE)
        users = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
        assert users[-1] == "1000:1000"
        entry = DOCKERFILE.index("ENTRYPOINT")
        assert DOCKERFILE.rindex("USER ") < entry and "sudo" not in DOCKERFILE

    def test_packages_are_the_pinned_ones(self):
        (install,) = re.findall(r"^RUN python -m pip install (.+)$", DOCKERFILE, re.MULTILINE)
        assert install == ". -c constraints.txt"

    def test_no_secret_can_get_into_it(self):
        assert not re.search(r"^(ARG|ENV)\b.*(TOKEN|PASSWORD|SECRET|KEY)", DOCKERFILE, re.MULTILINE)
        assert re.search(r"^ENV (.|\\\n)*RAY_AUTH_MODE=token", DOCKERFILE, re.MULTILINE)
        ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split("\n")
        rules = [line for line in ignored if line and not line.startswith("#")]
        assert rules[0] == "*"
        sent = {line[1:] for line in rules if line.startswith("!")}
        copied = {
            name
            for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
            for name in line.split()[:-1]
        }
        assert sent == copied and all((ROOT / name).exists() for name in copied)


def parsed(words: list[str]) -> tuple[str, dict]:
    """(verb, its arguments) as our own command line reads them; a usage error raises."""
    command: Any = typer.main.get_command(app)
    with command.make_context("unidetox", list(words)) as context:
        verb, found, rest = command.resolve_command(context, list(words))
        with found.make_context(verb, rest, parent=context) as inner:
            return verb, inner.params


def experiment_of(path: Path, words: list[str]) -> list[str]:
    """The words with the variables of the manifest filled in and paths of the image and of the nodes found in this checkout."""
    filled = []
    for word in words:
        if word == '"$@"' or word == "$@" or word.startswith("${settings"):
            continue
        word = word.replace("/opt/unidetox/", f"{ROOT}/").replace("~/unidetox/", f"{ROOT}/")
        word = word.replace("$EXPERIMENT", read(CLUSTER / "skypilot.yaml")["envs"]["EXPERIMENT"])
        word = re.sub(r"^\$experiment$", "experiments/paper_cluster.yaml", word)
        word = re.sub(r"\$BUCKET", "s3://bucket/folder", word)
        word = word.replace("$head_ip:$port", "192.0.2.1:6379").replace("$storage", "/shared/outputs")
        filled.append(str(ROOT / word) if word.startswith("experiments/") else word)
    return filled


SOURCES = [
    *MANIFESTS,
    *SCRIPTS,
    CLUSTER / "Dockerfile",
    CLUSTER / "README.md",
    ROOT / "docs" / "clusters.md",
    ROOT / "docs" / "doctor.md",
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda each: each.name)
def test_commands_are_ones_that_we_have(path):
    found = commands(script(path))
    for words in found:
        if len(words) == 1 and path.suffix == ".md":  # the verb is spoken of
            assert words[0] in typer.main.get_command(app).commands
            continue
        verb, arguments = parsed(experiment_of(path, words))
        if arguments.get("experiment"):
            load(
                arguments["experiment"], list(arguments.get("overrides") or ()), limit=arguments.get("limit")
            )
        assert verb


@pytest.mark.parametrize("name", ["kuberay/rayjob.yaml", "slurm.sbatch", "skypilot.yaml", "single_node.sh"])
def test_every_way_runs_an_experiment(name):
    found = commands(script(CLUSTER / name))
    assert any(words[0] == "run" for words in found), found


def test_what_is_to_be_filled_in_is_explained():
    told = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    for path in ALL:
        if "CHANGE-ME" in path.read_text(encoding="utf-8") and path.suffix == ".yaml":
            assert path.name in told, path.name
    assert "CHANGE-ME" in told
