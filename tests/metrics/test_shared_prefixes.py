"""Shared beginnings and batches against one sequence at a time in float64 sums, for the families and their variants."""

import random

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from unidetox_ray.errors import ModelError
from unidetox_ray.metrics import likelihood
from unidetox_ray.metrics.likelihood import span_nll, spans
from unidetox_ray.metrics.perplexity import continuation_nll, judge_texts
from unidetox_ray.metrics.prefix_tree import ends, grow
from unidetox_ray.metrics.reader import Reader

FAMILIES = ("gpt2", "opt", "falcon", "llama")
VOCAB = 400
FALCON = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**FALCON, "intermediate_size": 64, "max_position_embeddings": 64}
VARIANTS = {
    "falcon-alibi": lambda: FalconForCausalLM(FalconConfig(**FALCON, alibi=True, multi_query=False)),
    "falcon-alibi-one-key": lambda: FalconForCausalLM(FalconConfig(**FALCON, alibi=True, multi_query=True)),
    "falcon-grouped": lambda: FalconForCausalLM(
        FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "llama-grouped": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, num_key_value_heads=2)),
    # A head whose logits are scaled afterwards, and a cache that forgets: read whole.
    "cohere": lambda: CohereForCausalLM(CohereConfig(**LLAMA, logit_scale=0.25)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=8)),
}


def variant(name):
    torch.manual_seed(5)
    model = VARIANTS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module", params=[*FAMILIES, *VARIANTS])
def named(request, builder):
    name = request.param
    return name, builder(name, VOCAB) if name in FAMILIES else variant(name)


@pytest.fixture(scope="module")
def tree():
    """Three levels: two subjects, four questions each, four answers; duplicates, a prefix that ends, loners."""
    generator = random.Random(1)

    def ids(low, high):
        return [generator.randrange(3, VOCAB) for _ in range(generator.randint(low, high))]

    sequences, starts, labels = [], [], []

    def add(sequence, start, *label):
        sequences.append(sequence)
        starts.append(start)
        labels.append(label)

    for subject in range(2):
        shown = ids(3, 20)
        for question in range(4):
            asked = shown + ids(1, 12)
            for _ in range(4):
                whole = asked + ids(1, 6)
                add(whole, generator.randint(1, len(whole)), subject, (subject, question))
        add(asked, 1, subject, (subject, 3))
        add(sequences[-2], 1, subject, (subject, 3))
        add(sequences[-2], len(asked) - 1, subject, (subject, 3))
    for alone in range(5):
        add(ids(2, 40), 1, f"alone {alone}", 0)
    add([7, 9], 1, "shares nothing", 0)
    add([8, 9, 10], 1, "shares nothing", 0)
    return sequences, starts, labels


def one_at_a_time(model, sequence, start):
    with torch.no_grad():
        table = model(torch.tensor([sequence])).logits[0].double().log_softmax(-1)
    return sum(-table[i - 1, sequence[i]].item() for i in range(start, len(sequence)))


@pytest.mark.parametrize("budget", [1, 60, 16384])
def test_shared_equals_one_at_a_time(named, tree, budget):
    _, model = named
    sequences, starts, labels = tree
    found = spans(model, sequences, starts, labels=labels, token_budget=budget)
    wanted = [one_at_a_time(model, s, start) for s, start in zip(sequences, starts, strict=True)]
    assert found.error == [None] * len(sequences)
    assert found.nll == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert spans(model, sequences, starts, token_budget=budget).nll == pytest.approx(
        wanted, rel=1e-5, abs=1e-5
    )


def test_what_can_be_shared_is_known(named):
    name, model = named
    reader = Reader(model)
    assert reader.shares == (name != "mistral"), reader.why_not
    assert reader.splits == (name != "cohere")
    if name == "mistral":
        assert "more or less than keys and values" in reader.why_not


def test_shared_tokens_are_read_once(gpt2):
    """Two prompts of 30 ids, 25 continuations of 5: a prompt's ids, and of each continuation all but the last."""
    generator = random.Random(2)
    prompts = [[generator.randrange(3, 200) for _ in range(30)] for _ in range(2)]
    sequences = [[*prompts[i % 2], *(generator.randrange(3, 200) for _ in range(5))] for i in range(50)]
    read = []
    with torch.no_grad():
        Reader(gpt2)
    handle = gpt2.transformer.wte.register_forward_hook(
        lambda module, given, out: read.append(given[0].numel())
    )
    try:
        labels = [(i % 2,) for i in range(50)]
        shared = spans(gpt2, sequences, [30] * 50, labels=labels).nll
        with_sharing = sum(read)
        read.clear()
        alone = spans(gpt2, sequences, [30] * 50).nll
    finally:
        handle.remove()
    assert shared == pytest.approx(alone, rel=1e-5)
    probing = 60
    assert with_sharing <= 2 * 30 + 50 * 4 + probing < sum(read) / 4


def test_the_head_sees_scored_positions_only(gpt2, tree):
    sequences, _, labels = tree
    starts, seen = [len(sequence) - 1 for sequence in sequences], []
    handle = gpt2.lm_head.register_forward_hook(
        lambda module, given, out: seen.append(out.numel() // out.shape[-1])
    )
    try:
        spans(gpt2, [[i % 200 for i in s] for s in sequences], starts, labels=labels)
    finally:
        handle.remove()
    assert sum(seen) <= len(sequences) + 20


def test_rows_near_the_last_position_share_a_batch_with_longer_ones(builder):
    """GPT-2 has 256 positions; the padding behind the long prompt's short continuation has none."""
    model = builder("gpt2", VOCAB)
    long, short = [(7 * i) % 390 for i in range(250)], [5, 6, 7]
    sequences = [[*long, 1, 2], [*long, 3], [*short, *range(40)], [*short, *range(9, 60)]]
    found = spans(model, sequences, [250, 250, 3, 3], labels=[("l",), ("l",), ("s",), ("s",)])
    wanted = [one_at_a_time(model, s, start) for s, start in zip(sequences, [250, 250, 3, 3], strict=True)]
    assert found.error == [None] * 4 and found.nll == pytest.approx(wanted, rel=1e-5)


def test_a_sequence_that_cannot_be_read_fails_alone(gpt2, tree):
    """An id that the vocabulary does not have, once at an end and once in a beginning that two share."""
    sequences = [[5, 6, 7, 8], [5, 6, 7, 10**6, 9], [5, 6, 9], [10**6, 1, 2], [10**6, 1, 3], [4, 4, 4]]
    labels = [("a",)] * 3 + [("b",)] * 2 + [("c",)]
    for given in (labels, None):
        found = spans(gpt2, sequences, [1] * 6, labels=given)
        assert [error is None for error in found.error] == [True, False, True, False, False, True]
        assert "IndexError" in found.error[1] and "IndexError" in found.error[4]
        good = [0, 2, 5]
        assert [found.nll[i] for i in good] == pytest.approx(
            [one_at_a_time(gpt2, sequences[i], 1) for i in good], rel=1e-5
        )
    with pytest.raises(ModelError, match="sequence 1 of 5 tokens"):
        span_nll(gpt2, sequences, [1] * 6)


class Short(torch.nn.Module):
    """Runs out of memory beyond `room` positions (rows x keys), like a device that is too small."""

    def __init__(self, body, room):
        super().__init__()
        self.body, self.room, self.refused = body, room, 0

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        **more,
    ):
        keys = input_ids if attention_mask is None else attention_mask
        if keys.numel() > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        return self.body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache, **more,
        )  # fmt: skip


@pytest.mark.parametrize("room", [60, 150, 400])
def test_out_of_memory_gives_smaller_batches_and_the_same_numbers(tree, room):
    sequences, starts, labels = tree
    model = variant("llama-grouped")
    wanted = spans(model, sequences, starts, labels=labels)
    small = Short(model.model, room)
    model.model = small
    found = spans(model, sequences, starts, labels=labels)
    assert small.refused > 0 and found.error == [None] * len(sequences)
    assert found.nll == pytest.approx(wanted.nll, rel=1e-5, abs=1e-5)


def test_equal_sequences_are_one_node_and_lengths_add_up(tree):
    sequences, starts, labels = tree
    rows = list(range(len(sequences)))
    roots = grow(sequences, starts, labels, rows, True)
    reached = {}
    for node in ends(roots):
        ids, above = (), node
        while above is not None:
            ids, above = above.ids + ids, above.parent
        for row in node.rows:
            assert list(ids) == list(sequences[row])
            reached[row] = node
    assert sorted(reached) == rows
    assert len({id(node) for node in reached.values()}) < len(rows)


def test_many_continuations_of_one_prompt_with_duplicates_and_empty_ones(model, tokenizer, odd_texts):
    prompts = [*[text for text in odd_texts if text][:6], "", " "]
    pairs = [
        (prompt, odd_texts[(7 * i + 3 * j) % 200]) for i, prompt in enumerate(prompts) for j in range(25)
    ]
    pairs += [pairs[3], pairs[30], (prompts[0], "")]
    for encoding in ("tokens", "text"):
        together = continuation_nll(model, tokenizer, *zip(*pairs, strict=True), bos=True, encoding=encoding)
        for index, (prompt, continuation) in enumerate(pairs):
            if index % 7 and index < 198:
                continue
            alone = continuation_nll(model, tokenizer, [prompt], [continuation], bos=True, encoding=encoding)
            assert together.n[index] == alone.n[0] and together.error[index] == alone.error[0]
            if alone.error[0] is None:
                assert together.nll[index] == pytest.approx(alone.nll[0], rel=1e-5, abs=2e-5)
        assert together.nll[200] == together.nll[3] and together.error[202] == "empty"


def test_small_chunks_of_logits_across_shared_first_tokens(monkeypatch, gpt2, tree):
    sequences, starts, labels = tree
    sequences = [[i % 200 for i in s] for s in sequences]
    wanted = spans(gpt2, sequences, starts, labels=labels).nll
    monkeypatch.setattr(likelihood, "CHUNK_VALUES", 2 * gpt2.config.vocab_size)
    assert spans(gpt2, sequences, starts, labels=labels).nll == pytest.approx(wanted, abs=1e-5)


def test_judged_texts_say_why_a_value_is_missing(gpt2, tokenizer):
    found = judge_texts(gpt2, tokenizer, ["the cat", "", None], bos=True)
    assert found.error == [None, "no token to score", "not a text"]
    assert found.nll[0] > 0 and found.nll[1:] == [None, None]
