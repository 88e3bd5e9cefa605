"""The operations of `core/ops.py` and the sampler as Triton kernels, under the same names: pass this package as `ops`.

Importable without Triton and without a GPU; `why_not` says whether the kernels can be used for a device. They have
not run on a GPU yet: they were compared with their torch twins in Triton's interpreter and compiled for sm_80 and
sm_90 (`tests/core/test_kernels.py`, `tests/core/test_kernels_build.py`).
"""

from __future__ import annotations

from unidetox_ray.core.kernels.activation import activate
from unidetox_ray.core.kernels.attention import attend
from unidetox_ray.core.kernels.compiler import interpreted, why_not
from unidetox_ray.core.kernels.norm import add_norm
from unidetox_ray.core.kernels.positions import rotate, rotate_write, write
from unidetox_ray.core.kernels.sampling import sample, why_not_fused

#: A loose `longest` costs `attend` nothing here: one graph serves a cache's whole capacity.
READS_ONLY_VALID = True

__all__ = [
    "READS_ONLY_VALID",
    "activate",
    "add_norm",
    "attend",
    "interpreted",
    "rotate",
    "rotate_write",
    "sample",
    "why_not",
    "why_not_fused",
    "write",
]
