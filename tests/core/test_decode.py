"""The engine against its slow twin, for every registered family's architecture and Falcon's variants."""

from __future__ import annotations

import pytest
from decode_models import PROMPTS, UNIDETOX, V, arguments, lean, model

from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.lm import left_padded
from unidetox_ray.core.logits import PLAIN, Mixture, Sampling, contrastive
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.generic import GenericRunner


@pytest.mark.parametrize(
    "mixture",
    [PLAIN, UNIDETOX, contrastive(alpha=0.05, beta=0.7), Mixture((1.0, 1.5, -1.5), nucleus=0.9)],
    ids=["one-model", "contrast", "finite-beta", "three-models"],
)
def test_engine_equals_slow_twin(pair, runner, mixture):
    models = [*pair, pair[0]][: len(mixture.weights)]
    options = {**arguments(12, 12), "copies": 4, "sampling": Sampling(top_p=0.95), "mixture": mixture}
    runners = [runner(each) for each in models]
    free = decode(runners, PROMPTS, pad_id=0, **{**options, "end_ids": []})
    # End tokens taken from what the models say, so that some rows end early and leave the batch.
    options["end_ids"] = [free[0].ids[9], free[5].ids[4]]
    slow = decode_slowly(models, PROMPTS, **options)
    assert sum(sequence.ended for sequence in slow) >= 2
    assert slow != free
    for rows in (None, 1, 3, 5):  # one wave; one sequence at a time; parts of a prompt's copies; refills
        assert decode(runners, PROMPTS, pad_id=0, rows=rows, **options) == slow, rows


def test_text_does_not_depend_on_batch_order_or_companions(pair, runner):
    """Counter-based streams: the same sequences in batches of 16 and 64, the other way round, in parts."""
    lengths = (3, 1, 7, 3, 12, 5) if runner is lean else (3,) * 6  # left padding moves sums, and so rounding
    identities = [
        (f"{row}", [(row * 31 + 7 * place + 3) % V for place in range(lengths[row % 6])]) for row in range(20)
    ]
    runners = [runner(each) for each in pair]
    ends = [2, 5, 11, 40, 77]  # a few percent a step: rows end all the time

    def sample(chosen, **more):
        names = [f"{name}/{copy}" for name, _ in chosen for copy in range(4)]
        found = decode(
            runners, [prompt for _, prompt in chosen], uniform=uniforms(9, names, 16), max_new_tokens=16,
            end_ids=ends, pad_id=0, mixture=UNIDETOX, copies=4, **more,
        )  # fmt: skip
        return dict(zip(names, found, strict=True))

    together = sample(identities)
    assert 10 < sum(sequence.ended for sequence in together.values()) < 80
    for rows in (16, 64, 7):
        assert sample(identities, rows=rows) == together, rows
        assert sample(identities[::-1], rows=rows) == together, rows
    assert {**sample(identities[:1]), **sample(identities[1:8]), **sample(identities[8:])} == together


def test_same_prompt_other_stream_other_text(pair, runner):
    found = decode([runner(pair[0])], [[1, 20, 30]] * 2, pad_id=0, copies=2, **arguments(4))
    assert len({tuple(sequence.ids) for sequence in found}) == 4


def test_rows_are_refilled_and_dropped_and_prompts_are_read_once_for_their_copies():
    given, calls = model("llama-gqa", 0), []

    class Watched:
        """A runner that notes down what the engine asks of it."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            found = getattr(self.inner, name)
            if name not in ("open", "prefill", "repeat", "step", "keep"):
                return found

            def noted(*given):
                calls.append((name, given))
                return found(*given)

            return noted

    options = {**arguments(24, 10), "end_ids": [], "copies": 6}
    prompts = [[1, 20, 30], [5], [7, 8], [9, 3, 4, 4]]
    free = decode([lean(given)], prompts, pad_id=0, **options)
    # Of the shortest prompt, which comes last, three copies end while the other rows run on.
    options["end_ids"] = [free[row].ids[place] for row, place in ((6, 0), (8, 2), (9, 3))]
    found = decode([Watched(lean(given))], prompts, pad_id=0, rows=8, **options)
    names = [name for name, _ in calls]
    assert names.count("open") == 1 and names.count("prefill") > 1 and names.count("repeat") >= 2
    assert next(given for name, given in calls if name == "open") == (8, 4 + 10 - 1)
    # 8 rows hold one prompt's six copies and the first two of the next.
    ids, lengths, rows = next(given for name, given in calls if name == "prefill")
    assert ids.shape == (2, 4) and lengths.tolist() == [4, 3] and rows.tolist() == [0, 6]
    assert found == decode_slowly([given], prompts, **options)
    steps = [len(given[0]) for name, given in calls if name == "step"]
    assert max(steps) == 8 and min(steps) < 8 and "keep" in names


def test_progress_counts_every_sequence(pair, runner):
    seen: list[int] = []
    decode([runner(pair[0])], PROMPTS, pad_id=0, copies=4, rows=5, on_progress=seen.append, **arguments(12))
    assert sum(seen) == 12 and len(seen) > 1 and min(seen) > 0


def test_what_cannot_be_decoded_is_refused():
    one = GenericRunner(model("gpt2", 0))
    right = {"max_new_tokens": 4, "end_ids": [], "pad_id": 0}
    with pytest.raises(ValueError, match=r"uniform is \(1, 4\), expected \(3, 4\)"):
        decode([one], PROMPTS, uniform=uniforms(0, [1], 4), **right)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decode([one], [[1], []], uniform=uniforms(0, range(2), 4), **right)
    with pytest.raises(ValueError, match="rows = 0"):
        decode([one], [[1]], uniform=uniforms(0, [1], 4), rows=0, **right)
    with pytest.raises(ValueError, match="1 models, but the mixture has 2"):
        decode([one], [[1]], uniform=uniforms(0, [1], 4), mixture=UNIDETOX, **right)
    with pytest.raises(ValueError, match="stands twice"):
        decode([one, one], [[1]], uniform=uniforms(0, [1], 4), mixture=UNIDETOX, **right)
    with pytest.raises(ValueError, match="empty"):
        left_padded([[1], []], 0)
    assert decode([one], [], uniform=uniforms(0, [], 4), **right) == []
