"""The quiz: batched answers against one text at a time, the released rule, and what each setting changes."""

import random

import numpy as np
import polars as pl
import pytest
import torch

from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics import mmlu
from unidetox_ray.metrics.likelihood import spans
from unidetox_ray.metrics.mmlu import answer_questions, quiz_answers
from unidetox_ray.schemas import QUIZ, frame

WORDS = ["the", "cat", "sat", "é", "NA", "so", "it", "is", "0", "mat.", "on", "a  b"]


def make_quiz(n=16, subjects=("s1", "s2"), seed=0, dev=2, words=(1, 6)):
    generator = random.Random(seed)

    def phrase(low, high):
        return " ".join(generator.choices(WORDS, k=generator.randint(low, high)))

    rows = []
    for i in range(n + dev * len(subjects)):
        held = i < dev * len(subjects)
        rows.append({
            "question_id": f"q{i}", "subject": subjects[i % len(subjects)], "question": phrase(*words),
            "choices": [phrase(1, 4) for _ in range(4)], "answer": generator.randrange(4), "split": "dev" if held else "validation",
        })  # fmt: skip
    return frame(rows, QUIZ)


def log_probabilities(model, tokenizer, quiz, *, shots, bos, span):
    """(questions, 4) sums, a forward pass per text; span "all" = after the first token, "answer" = after "Answer:"."""
    dev, table = quiz.filter(pl.col("split") == "dev"), []
    first = [tokenizer.bos_token_id] if bos else []
    counts = []
    for item in quiz.filter(pl.col("split") == "validation").iter_rows(named=True):
        shown = ""
        for example in dev.filter(pl.col("subject") == item["subject"]).head(shots).iter_rows(named=True):
            shown += f"Question: {example['question']}\nAnswer: {example['choices'][example['answer']]}\n\n"
        shown += f"Question: {item['question']}\nAnswer:"
        row, lengths = [], []
        for choice in item["choices"]:
            ids = first + tokenizer(shown + " " + choice, add_special_tokens=False)["input_ids"]
            context = first + tokenizer(shown, add_special_tokens=False)["input_ids"]
            start = 1
            if span == "answer":
                start = next(i for i in range(len(ids)) if i >= len(context) or ids[i] != context[i])
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            row.append(sum(logp[i - 1, ids[i]].item() for i in range(start, len(ids))))
            lengths.append(len(ids) - start)
        table.append(row)
        counts.append(lengths)
    return np.array(table), np.array(counts)


@pytest.mark.parametrize("shots", [0, 1, 2])
@pytest.mark.parametrize("bos", [True, False])
def test_answers_equal_one_text_at_a_time(model, tokenizer, shots, bos):
    quiz = make_quiz()
    truth = quiz.filter(pl.col("split") == "validation")["answer"].to_list()
    for score, span in (("full_text", "all"), ("answer_tokens", "answer")):
        wanted, _ = log_probabilities(model, tokenizer, quiz, shots=shots, bos=bos, span=span)
        correct, predicted = answer_questions(
            model, tokenizer, quiz, shots=shots, bos=bos, score=score, token_budget=333
        )
        assert predicted == wanted.argmax(axis=1).tolist()
        assert correct == [float(p == t) for p, t in zip(predicted, truth, strict=True)]


def test_normalised_answers_divide_by_their_tokens(model, tokenizer):
    quiz = make_quiz(24, seed=5)
    wanted, counts = log_probabilities(model, tokenizer, quiz, shots=1, bos=False, span="answer")
    _, predicted = answer_questions(model, tokenizer, quiz, normalise=True)
    assert predicted == (wanted / counts).argmax(axis=1).tolist()
    assert predicted != answer_questions(model, tokenizer, quiz)[1]


def test_the_released_rule_rounds_the_mean_loss_to_bf16(model, tokenizer):
    # Long questions: the grid is as wide as the rounding of one mean times the whole length.
    quiz = make_quiz(40, seed=3, words=(20, 30))
    wanted, counts = log_probabilities(model, tokenizer, quiz, shots=1, bos=True, span="all")
    mean = torch.tensor(-wanted / counts).float().bfloat16().double().numpy()
    _, predicted = answer_questions(model, tokenizer, quiz, score="full_text", loss_dtype="bf16", bos=True)
    # Values that lie on the border of two bf16 numbers may round either way.
    assert np.mean(np.array(predicted) == (-mean * counts).argmax(axis=1)) >= 0.95
    assert predicted != answer_questions(model, tokenizer, quiz, score="full_text", bos=True)[1]


def test_scoring_the_whole_text_is_not_scoring_the_answer(gpt2, tokenizer):
    """The tokeniser may join the answer's first word with what stands before it; apart from that they agree here."""
    quiz = make_quiz(30, seed=8)
    with_text, alone = (
        quiz_answers(gpt2, tokenizer, quiz, score=score) for score in ("full_text", "answer_tokens")
    )
    assert with_text.question_ids == alone.question_ids
    assert all(error is None for error in (*with_text.error, *alone.error))


def test_ties_go_to_the_first(gpt2, tokenizer):
    quiz = make_quiz(6).with_columns(choices=pl.lit(["cat", "cat", "cat", "cat"]))
    correct, predicted = answer_questions(gpt2, tokenizer, quiz)
    assert predicted == [0] * 6
    assert correct == [float(a == 0) for a in quiz.filter(pl.col("split") == "validation")["answer"]]


def test_letters_list_the_options():
    given, scored = mmlu.item_text("Why?", ["w", "x", "y", "z"], 2, "letters")
    assert given == "Question: Why?\nA. w\nB. x\nC. y\nD. z\nAnswer:" and scored == " C"
    given, scored = mmlu.item_text("Why?", ["w", "x", "y", "z"], 2, "cloze")
    assert given + scored == "Question: Why?\nAnswer: y"


def test_letters_give_other_answers(model, tokenizer):
    quiz = make_quiz(30, seed=2)
    cloze, letters = (answer_questions(model, tokenizer, quiz, form=form)[1] for form in ("cloze", "letters"))
    assert cloze != letters and set(letters) <= {0, 1, 2, 3}


def test_the_prefix_is_the_first_dev_item_of_the_subject():
    quiz = make_quiz(4, dev=2)
    first = quiz.filter((pl.col("split") == "dev") & (pl.col("subject") == "s2")).row(0, named=True)
    shown = mmlu.prefixes(quiz, 1)
    assert shown["s2"] == f"Question: {first['question']}\nAnswer: {first['choices'][first['answer']]}\n\n"
    assert mmlu.prefixes(quiz, 3) == {}


def test_more_shots_than_dev_items_is_a_failure_with_a_reason(gpt2, tokenizer):
    found = quiz_answers(gpt2, tokenizer, make_quiz(4, dev=1), shots=2)
    assert found.correct == [None] * 4 and found.error == ["fewer than 2 dev items of its subject"] * 4


def test_a_bad_question_leaves_the_others_alone(gpt2, tokenizer):
    quiz = make_quiz(6)
    rows = quiz.to_dicts()
    rows[5]["choices"] = ["only", "three", "here"]
    rows[6]["answer"] = 7
    found = quiz_answers(gpt2, tokenizer, frame(rows, QUIZ))
    whole = quiz_answers(gpt2, tokenizer, quiz)
    assert found.correct[1] is None and found.correct[2] is None
    assert "4 answers" in found.error[1] and "answer 7" in found.error[2]
    assert [found.predicted[i] for i in (0, 3, 4, 5)] == [whole.predicted[i] for i in (0, 3, 4, 5)]


def test_a_text_longer_than_the_model_loses_its_beginning(gpt2, tokenizer):
    quiz = make_quiz(4)
    rows = quiz.to_dicts()
    for row in rows[:2]:
        row["question"] = "é 🙂 " * 200
    found = quiz_answers(gpt2, tokenizer, frame(rows, QUIZ), bos=True)
    assert all(error is None for error in found.error)
    # The shot is far away by then: with every token of it cut, the nearest 256 decide.
    assert all(p in range(4) for p in found.predicted)


@pytest.mark.parametrize("score", ["full_text", "answer_tokens"])
def test_sharing_changes_no_answer_also_of_cut_questions(monkeypatch, model, tokenizer, score):
    quiz = make_quiz(12, seed=4)
    rows = quiz.to_dicts()
    for row in rows[4:7]:
        row["question"] = "é 🙂 cat " * (40 + row["answer"])
    quiz = frame(rows, QUIZ)
    values = []

    def both(*args, **named):
        values.extend([spans(*args, **named), spans(*args, **{**named, "labels": None})])
        return values[1]

    monkeypatch.setattr(mmlu, "spans", both)
    alone = quiz_answers(model, tokenizer, quiz, bos=True, score=score)
    monkeypatch.undo()
    shared = quiz_answers(model, tokenizer, quiz, bos=True, score=score)
    assert shared.error == alone.error == [None] * 12 and shared.predicted == alone.predicted
    assert values[0].nll == pytest.approx(values[1].nll, rel=1e-5, abs=1e-5) and len(values[0].nll) == 48


def test_a_model_without_finite_logits_gives_no_answer(gpt2, tokenizer):
    weight = gpt2.transformer.ln_f.bias
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        found = quiz_answers(gpt2, tokenizer, make_quiz(3))
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert found.correct == [None] * 3 and all("finite" in error for error in found.error)


def test_bad_settings_are_named(gpt2, tokenizer):
    with pytest.raises(ConfigError, match=r"mmlu\.form: 'letter' is not known"):
        answer_questions(gpt2, tokenizer, make_quiz(2), form="letter")
    with pytest.raises(DataError, match="no question of split 'test'"):
        answer_questions(gpt2, tokenizer, make_quiz(2), split="test")
