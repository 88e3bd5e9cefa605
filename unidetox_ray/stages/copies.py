"""Fine-tuned copies of the base models, as cells see them: handles of those that exist, errors of those that do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from unidetox_ray.artifacts import Manifest
from unidetox_ray.errors import ModelError, UnidetoxError
from unidetox_ray.methods.base import Need
from unidetox_ray.stages.models import Handle

Copy = tuple[Need, str]
"""(need, family)."""


@dataclass
class Copies:
    """What the stage `toxic` left."""

    models: dict[Copy, Handle] = field(default_factory=dict)
    manifests: dict[Copy, Manifest] = field(default_factory=dict)
    errors: dict[Copy, UnidetoxError] = field(default_factory=dict)

    def of(self, needs: Iterable[Need], family: str) -> dict[Need, Handle]:
        """A family's copies by need; ModelError, one line, when one is not there, in the words of what failed."""
        found: dict[Need, Handle] = {}
        for need in needs:
            if (need, family) in self.errors:
                raise ModelError(str(self.errors[need, family]))
            if (need, family) not in self.models:
                raise ModelError(f"needs the {need} model of {family}, which was not made")
            found[need] = self.models[need, family]
        return found
