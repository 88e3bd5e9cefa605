"""Every kernel compiles to machine code for Ampere and Hopper; and the package imports where Triton is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("kernel_build.py")


def python(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    keep = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(PROGRAM.parents[2]), keep.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env=keep | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path, "UNIDETOX_TRITON": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.long
def test_every_kernel_compiles_for_sm_80_and_sm_90(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    done = python(str(PROGRAM), "80", "90", cache=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    built = {tuple(line.split()[1:3]) for line in done.stdout.splitlines() if line.startswith("built ")}
    names = [
        "_add_norm",
        "_activate",
        "_single",
        "_grouped",
        "_joined",
        "_rotate",
        "_write",
        "_rotate_write",
        "_sample",
    ]
    assert built == {(name, capability) for name in names for capability in ("sm_80", "sm_90")}


def test_the_package_imports_without_triton(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from unidetox_ray.core import graphs, kernels, memory\n"
        "from unidetox_ray.core.kernels import compiler\n"
        "print(compiler.missing)\n"
        "try: kernels.activate(torch.ones(1, 4), 'relu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = python("-c", program, cache=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    reason, refusal = done.stdout.splitlines()
    assert reason.startswith("triton cannot be imported")
    assert refusal == f"kernel _activate cannot run: {reason}"
