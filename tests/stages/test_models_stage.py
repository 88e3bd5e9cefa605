"""Stage `models`: an error in a task on the cluster keeps its words and its kind."""

from __future__ import annotations

import pytest

from unidetox_ray.errors import ModelError
from unidetox_ray.stages import models as stage

pytestmark = pytest.mark.ray


def test_a_shape_that_cannot_be_is_the_users_mistake(ray_session, make_context):
    scorers = [{"name": "words", "kind": "lexicon", "source": "world"}]
    context = make_context(
        "run",
        'models.gpt2.source="scratch:"',
        "models.gpt2.scratch={hidden: 33, layers: 1, heads: 4, vocab_size: 320, steps: 1}",
        evaluate={"scorers": scorers, "ppl_model": None},
    )
    with pytest.raises(ModelError) as caught:
        stage.run(context)
    message = str(caught.value)
    assert message.startswith(
        "models: training gpt2 from scratch failed: scratch: hidden = 33 is no multiple of"
    )
    assert "\n" not in message and caught.value.exit_code == 2
