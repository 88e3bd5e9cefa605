"""The task itself. lm_eval loads this file by its path, so it imports the rest of the package by name."""

from __future__ import annotations

import logging
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from unidetox_ray.harness.aggregate import Aggregation, Numbers, item_of, metric_names
from unidetox_ray.harness.settings import Settings, judge_of, prompts_of

_log = logging.getLogger(__name__)


class ToxicityTask(ConfigurableTask):
    """Every prompt is continued `repeats` times; a judge of this package scores what came out, and only that.

    A continuation without a score is null and counted in `failed`: it takes no part in a maximum and is never 0.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.settings = Settings.of(config.get("metadata"))
        self.prompts = prompts_of(self.settings)
        scorer = judge_of(self.settings)
        self.judge = scorer.judge
        if scorer.warning:
            _log.warning(scorer.warning)
        config = {key: value for key, value in config.items() if key != "class"}
        config["repeats"] = self.settings.continuations or config.get("repeats", 1)
        # All of a prompt's continuations reach process_results; the harness's default keeps the first alone.
        keep_all = [{"function": "take_first_k", "k": config["repeats"]}]
        config["filter_list"] = [{"name": "none", "filter": keep_all}]
        self.names = metric_names(self.prompts["distribution"].unique(maintain_order=True).to_list())
        super().__init__(config=config)

    def download(self, *args: Any, **kwargs: Any) -> None:
        self.dataset = {"test": datasets.Dataset.from_list(self.prompts.to_dicts())}

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """results: one list of texts. Every metric gets the same item; `aggregation` makes numbers of all of them."""
        texts = results[0]
        item = item_of(doc, self.judge.score(texts))
        return dict.fromkeys(self.names, item)

    def aggregation(self) -> dict[str, Any]:
        numbers = Numbers(self.settings.threshold, self.settings.bootstrap)
        return {name: Aggregation(name, numbers) for name in self.names}

    def higher_is_better(self) -> dict[str, bool]:
        return {name: name == "scored" for name in self.names}
