"""The engine against its slow twin, for every registered family's architecture, Falcon's variants and others."""

import threading

import pytest
import torch
import transformers as hf

from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.lm import CachedLM, left_padded
from unidetox_ray.core.lockstep import LockStep
from unidetox_ray.core.logits import PLAIN, Mixture, Sampling, contrastive
from unidetox_ray.core.shared_cache import decode_shared_cache
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.lean import lean_of

V = 97
IDS = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAINLY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**PLAINLY, "intermediate_size": 96}


def gpt2(**more):
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=96, **IDS, **more))


def falcon(**more):
    return hf.FalconForCausalLM(hf.FalconConfig(**PLAINLY, **IDS, **more))


ARCHITECTURES = {
    "gpt2": gpt2,
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(ffn_dim=96, word_embed_proj_dim=48, max_position_embeddings=96, **PLAINLY, **IDS)
    ),
    "falcon": lambda: falcon(multi_query=True, parallel_attn=True),
    "falcon-alibi": lambda: falcon(alibi=True, multi_query=False, parallel_attn=False),
    "falcon-new": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "llama-gqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, **SMALL, **IDS)),
}
#: No family of ours: decoded by their own forward.
OTHERS = {
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(num_key_value_heads=2, **SMALL, **IDS)),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(num_key_value_heads=2, sliding_window=6, **SMALL, **IDS)
    ),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL, **IDS)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=48, n_layer=2, n_head=4, **IDS)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(num_key_value_heads=2, head_dim=12, sliding_window=6, **SMALL, **IDS)
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(hidden_size=48, num_hidden_layers=2, state_size=4, **IDS)
    ),
}
PROMPTS = [[1, 20, 30], [5], [7, 8, 9, 10, 11, 12, 13]]
UNIDETOX = contrastive(alpha=0.1)


def model(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = {**ARCHITECTURES, **OTHERS}[name]().eval()
    with torch.no_grad():  # random initial weights are nearly uniform; spread them so that mistakes show
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


def lean(given):
    runner = lean_of(given)
    assert runner is not None
    return runner


RUNNERS = {"lean": lean, "generic": GenericRunner}


@pytest.fixture(params=sorted(ARCHITECTURES), scope="module")
def pair(request):
    return model(request.param, 0), model(request.param, 1)


@pytest.fixture(params=sorted(RUNNERS))
def runner(request):
    return RUNNERS[request.param]


def arguments(rows: int, steps: int = 20, seed: int = 3) -> dict:
    return {"uniform": uniforms(seed, range(rows), steps), "max_new_tokens": steps, "end_ids": [2]}


@torch.inference_mode()
def test_cached_logits_equal_a_full_pass_with_left_padding(pair):
    base = pair[0].double()
    ids, mask = left_padded(PROMPTS, pad_id=0)
    cached = CachedLM(base)
    logits = cached.prefill(ids, mask)
    rows = [list(prompt) for prompt in PROMPTS]
    for token in (17, 3, 60, 8):
        for row, prefix in enumerate(rows):
            full = base(input_ids=torch.tensor([prefix])).logits[0, -1]
            assert torch.allclose(logits[row], full, atol=1e-9), (row, token)
            prefix.append(token)
        logits = cached.step(torch.tensor([token] * len(rows)))
    base.float()


@torch.inference_mode()
def check_logits(given, runner, atol):
    """Prefill, copies, steps and dropped rows against a full pass over each row's whole prefix."""
    runner.open(5, 12)
    lengths = torch.tensor([len(prompt) for prompt in PROMPTS])
    ids = torch.zeros((3, 7), dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    logits = runner.prefill(ids, lengths, torch.arange(3))
    source = torch.tensor([0, 1, 2, 2, 0])
    runner.repeat(source, torch.arange(5))
    logits, rows = logits[source], [list(PROMPTS[row]) for row in source]

    def compare():
        assert logits.shape == (len(rows), runner.vocab)
        for row, prefix in zip(logits, rows, strict=True):
            full = given(input_ids=torch.tensor([prefix])).logits[0, -1]
            torch.testing.assert_close(row, full, atol=atol, rtol=0)

    compare()
    for step in range(4):
        if step == 2 and runner.shrinks:
            left = torch.tensor([1, 3, 4])
            runner.keep(left)
            rows = [rows[row] for row in left]
        tokens = [(7 * step + 11 * row + 3) % V for row in range(len(rows))]
        logits = runner.step(torch.tensor(tokens))
        for prefix, token in zip(rows, tokens, strict=True):
            prefix.append(token)
        compare()


def test_a_runners_logits_equal_a_full_pass(pair, runner):
    check_logits(pair[0], runner(pair[0]), 2e-5)
    double = pair[0].double()
    check_logits(double, runner(double), 1e-9)
    double.float()


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_any_causal_model_through_its_own_forward(name):
    given = model(name, 0)
    check_logits(given, GenericRunner(given), 1e-4)
    options = {**arguments(12, 14), "copies": 4, "sampling": Sampling(top_p=0.95)}
    free = decode([GenericRunner(given)], PROMPTS, pad_id=0, **{**options, "end_ids": []})
    options["end_ids"] = [free[0].ids[9], free[5].ids[4]]
    slow = decode_slowly([given], PROMPTS, **options)
    assert sum(sequence.ended for sequence in slow) >= 2
    for rows in (None, 5):
        assert decode([GenericRunner(given)], PROMPTS, pad_id=0, rows=rows, **options) == slow


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


@pytest.mark.parametrize("threads", [1, 2])
def test_lockstep_on_threads_gives_what_turns_give(pair, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runners = [lean(each) for each in pair]
        ids, lengths = torch.tensor([[4, 5, 6], [9, 1, 0]]), torch.tensor([3, 2])
        outcomes = {}
        for own in (True, False):
            with LockStep(runners, threads=own) as models:
                models.open(2, 8)
                logits = [models.prefill(ids, lengths, torch.arange(2))]
                logits += [models.step(torch.tensor([token, token + 1])) for token in (3, 17, 50)]
                outcomes[own] = torch.stack([torch.stack([each.clone() for each in both]) for both in logits])
                if own and threads == 2:  # both at once: neither returns before the other has come
                    meeting = threading.Barrier(2)
                    models.each(lambda _, meeting=meeting: meeting.wait(timeout=30))
                else:
                    here = threading.current_thread()
                    assert models.each(lambda _: threading.current_thread()) == [here, here]
            assert torch.get_num_threads() == threads
        assert torch.equal(outcomes[True], outcomes[False])
    finally:
        torch.set_num_threads(before)


def test_lockstep_passes_errors_on_and_stays_usable(pair):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with LockStep([GenericRunner(each) for each in pair]) as models:
            models.open(1, 4)
            with pytest.raises(ValueError, match="into rows 0, 1"):
                models.prefill(torch.tensor([[3]]), torch.tensor([1]), torch.tensor([2]))
            assert len(models.prefill(torch.tensor([[3]]), torch.tensor([1]), torch.tensor([0]))) == 2
    finally:
        torch.set_num_threads(before)


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


def test_hook_before_the_head_steers_every_position(pair, runner):
    """Adding a vector to the last hidden state adds its image under the head to the logits."""
    given, steered = pair[0], runner(pair[0])
    width = given.get_output_embeddings().weight.shape[1]
    shift = torch.linspace(-1, 1, width)

    def logits():
        steered.open(2, 6)
        first = steered.prefill(torch.tensor([[4, 5], [6, 7]]), torch.tensor([2, 2]), torch.arange(2)).clone()
        return torch.cat([first, steered.step(torch.tensor([8, 9])).clone()])

    with torch.inference_mode():
        before = logits()
        steered.on_hidden = lambda hidden: hidden + shift
        after = logits()
        steered.on_hidden = None
        torch.testing.assert_close(
            after - before,
            (shift @ given.get_output_embeddings().weight.T).expand_as(before),
            atol=1e-3,
            rtol=1e-4,
        )
        assert torch.equal(logits(), before)


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


def test_streams_are_keyed_by_seed_and_identity():
    first = uniforms(1, ["x", "y"], 6)
    assert torch.equal(uniforms(1, ["y", "x"], 6), first.flip(0))
    assert torch.equal(uniforms(1, ["x"], 3), first[:1, :3])
    assert not torch.equal(uniforms(2, ["x"], 6), first[:1])
    assert not torch.equal(uniforms(1, [0], 6), uniforms(1, [1], 6))
    assert float(first.min()) >= 0.0 and float(first.max()) < 1.0
