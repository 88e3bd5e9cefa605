"""Amounts → the stages of the pipeline as items for the engine.

The order of the stages, what shares a pool and what waits for what are `pipeline._stages`' own.
"""

from __future__ import annotations

from unidetox_ray.plan.amounts import Amounts
from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.measuring import Measuring


class Work(Measuring):
    """The stages of an experiment on a fleet. `stages` in the pipeline's order, `needs` by cell."""

    def __init__(self, amounts: Amounts, fleet: Fleet) -> None:
        super().__init__(amounts, fleet)
        self._models()
        self._copies()
        self._corpora()
        self._search()
        self._tune()
        self._finetune()
        self._edit()
        self._fits()
        self._generate()
        self._score()
        self._content()
        self._report()
