"""The packed encoder against the models' own forward: BERT and RoBERTa; others are refused."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from unidetox_ray.core.encoder import PackedEncoder
from unidetox_ray.core.linear import packing_works

pytestmark = pytest.mark.skipif(not packing_works(), reason="this build of torch has no packed product")
SHAPE = {
    "vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 80, "num_labels": 3,
}  # fmt: skip


def made(kind):
    torch.manual_seed(3)
    model = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**SHAPE)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SHAPE, pad_token_id=1)),
        "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(vocab_size=300, dim=48, n_heads=4, hidden_dim=96, n_layers=2)),
        "relu": lambda: BertForSequenceClassification(BertConfig(**SHAPE, hidden_act="relu")),
    }[kind]()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_logits_equal_one_text_at_a_time(kind):
    model = made(kind)
    encoder = PackedEncoder.of(model)
    assert encoder is not None
    generator = torch.Generator().manual_seed(0)
    lengths = [60, 60, 31, 7, 7, 7, 2, 1, 9]
    texts = [torch.randint(5, 300, (n,), generator=generator).tolist() for n in lengths]
    types = [[0] * n for n in lengths]
    if kind == "bert":
        types[2] = [0] * 10 + [1] * 21
    with torch.inference_mode():
        found = encoder.logits(texts, types)
        wanted = torch.cat([
            model(input_ids=torch.tensor([t]), token_type_ids=torch.tensor([k])).logits for t, k in zip(texts, types, strict=True)
        ])  # fmt: skip
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["distilbert", "relu"])
def test_what_is_built_otherwise_is_refused(kind):
    assert PackedEncoder.of(made(kind)) is None


def test_what_is_not_finite_or_not_float32_is_refused():
    model = made("bert")
    assert PackedEncoder.of(model.to(torch.bfloat16)) is None
    model = made("bert")
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    assert PackedEncoder.of(model) is None
