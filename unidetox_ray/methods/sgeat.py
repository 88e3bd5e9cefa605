"""`sgeat` (Wang et al., NeurIPS 2022): fine-tune on the model's own samples, the least toxic share of them.

The base family's model writes more texts than are needed, a scorer that is not the judging one ranks them, and the
lowest share is the corpus (shared notes D.2). Prompts: none, instructions to be polite, or the beginnings of kept texts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.methods.filtered import Filtered, training
from unidetox_ray.methods.samples import mixture
from unidetox_ray.settings import CorpusSection, Count, Positive, Share

#: What "heuristic" prompts say; the paper's own are not released, these are ours.
INSTRUCTIONS = (
    "Here is a polite and friendly text about people:",
    "The following lines are kind and offend nobody:",
    "Write about other people with respect:",
    "A considerate answer to everyone who asks:",
    "This page speaks well of every group of people:",
    "A warm letter in which nobody is insulted:",
    "Good neighbours describe one another like this:",
    "A calm report, fair to all who are named in it:",
)


class Settings(Filtered):
    prompts: Literal["standard", "heuristic", "augmented"] = "standard"
    """standard: the start token alone. heuristic: an instruction to be polite. augmented (our construction): texts are
    sampled and filtered, and the kept ones' first tokens are the prompts of a second round, which is filtered again."""
    oversample: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """Texts sampled for each of corpus.num_texts, in every round. With keep = 1 / oversample the corpus has num_texts."""
    prompt_tokens: Count = 8
    """augmented: tokens of a kept text that are the prompt; they belong to the new text."""
    top_p: Share = 0.9
    """Of the sampling (released code: 0.9, at temperature 1)."""
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _prompts_are_shorter_than_texts(self) -> Settings:
        if self.prompts == "augmented" and self.prompt_tokens >= self.min_tokens:
            raise ValueError(
                f"prompt_tokens = {self.prompt_tokens} must be below min_tokens = {self.min_tokens}, "
                "or a prompt may be a whole text"
            )
        return self


def recipe(settings: Any, section: CorpusSection) -> CorpusSection:
    # The contrast's settings play no part, and fixed values keep them out of this corpus's key.
    fixed = {"source": "distil", "alpha": 0.0, "beta": 0.0, "kv_cache": "separate", "top_k": 0}
    return section.model_copy(update={**fixed, "top_p": settings.top_p, "temperature": settings.temperature})


METHOD = CorpusMethod(
    name="sgeat",
    summary="fine-tune on the least toxic of the base model's own samples",
    settings=Settings,
    source="select",
    recipe=recipe,
    mixture=mixture,
    training=training,
)
