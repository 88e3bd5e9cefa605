"""The released code's shared cache: where it goes wrong, and where it cannot."""

from __future__ import annotations

from decode_models import PROMPTS, UNIDETOX, arguments, lean, model

from unidetox_ray.core.decode import decode
from unidetox_ray.core.shared_cache import decode_shared_cache


def test_shared_cache_of_the_released_code_changes_the_text_from_the_second_token(pair):
    """Defect 1: the first contrast is right, later ones read the wrong keys and values."""
    options = {**arguments(24), "pad_id": 0, "mixture": UNIDETOX}
    prompts = [prompt for prompt in PROMPTS for _ in range(8)]
    right = decode([lean(each) for each in pair], prompts, **options)
    shared = decode_shared_cache(list(pair), prompts, **options)
    assert [s.ids[:1] for s in shared] == [s.ids[:1] for s in right]
    assert [s.ids for s in shared] != [s.ids for s in right]


def test_shared_cache_with_equal_models_is_no_difference():
    same = model("gpt2", 0)
    options = {**arguments(3), "pad_id": 0, "mixture": UNIDETOX}
    assert decode_shared_cache([same, same], PROMPTS, **options) == decode(
        [lean(same), lean(same)], PROMPTS, **options
    )
