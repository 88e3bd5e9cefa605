"""Continuations from a server: the API's forms, every fault, keys and redirects, going on from the journal."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import polars as pl
import pytest
from loopback_server import Loopback, Reply, choices, serving

from unidetox_ray.errors import ConfigError, DataError, StageError
from unidetox_ray.evaluate.answers import asked_pause
from unidetox_ray.evaluate.endpoint import GENERATED, Sampling, generate
from unidetox_ray.evaluate.server import base_of

FAST = {"first_pause": 0.01, "timeout": 20.0, "retries": 2}


def prompts(count=3, **columns):
    ids = [f"p{number}" for number in range(count)]
    return pl.DataFrame(
        {"prompt_id": ids, "prompt": [f"say the word number {i}" for i in range(count)], **columns}
    )


def several(body, number):
    return choices(*(f"{body['prompt']} / {i}" for i in range(body.get("n", 1))))


def run(loopback, table=None, continuations=2, sampling=None, **options):
    with serving(loopback):
        return generate(
            prompts() if table is None else table, loopback.url, options.pop("model", "tiny"), sampling or Sampling(),
            continuations=continuations, **{**FAST, **options},
        )  # fmt: skip


class Told:
    """A display that keeps what it is told."""

    def __init__(self):
        self.lines, self.progress = [], []

    def say(self, text):
        self.lines.append(text)

    def task(self, label, unit):
        from contextlib import nullcontext

        return nullcontext(lambda done, total: self.progress.append((done, total)))


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("UNIDETOX_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_table_has_every_continuation_in_order_and_the_agreed_columns():
    loopback = Loopback(several)
    table = prompts(3, domain=["a", "b", "b"], distribution=["id", "ood", "ood"])
    display = Told()
    found = run(loopback, table, 3, display=display, model=None)
    assert dict(found.schema) == GENERATED
    assert found["prompt_id"].to_list() == [f"p{i}" for i in range(3) for _ in range(3)]
    assert found["continuation"].to_list() == [0, 1, 2] * 3
    assert found["text"].to_list() == [f"say the word number {i} / {k}" for i in range(3) for k in range(3)]
    assert found["domain"].to_list() == ["a"] * 3 + ["b"] * 6
    assert found["distribution"].to_list() == ["id"] * 3 + ["ood"] * 6
    assert found["error"].null_count() == 9
    assert found["source"].unique().to_list() == [f"tiny@{loopback.url.removeprefix('http://')}"]
    assert display.progress[-1] == (9, 9)
    assert len(loopback.bodies) == 3  # one call a prompt


def test_the_call_carries_the_sampling_and_seeds_that_differ():
    loopback = Loopback(several)
    run(loopback, sampling=Sampling(max_new_tokens=7, temperature=0.5, top_p=0.8, top_k=50, seed=1))
    for body in loopback.bodies:
        assert {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "top_k", "n")} == {
            "model": "tiny", "max_tokens": 7, "temperature": 0.5, "top_p": 0.8, "top_k": 50, "n": 2,
        }  # fmt: skip
    first = {body["prompt"]: body["seed"] for body in loopback.bodies}
    assert len(set(first.values())) == 3
    again, other = Loopback(several), Loopback(several)
    run(again, sampling=Sampling(seed=1))
    run(other, sampling=Sampling(seed=2))
    assert {body["prompt"]: body["seed"] for body in again.bodies} == first
    assert {body["prompt"]: body["seed"] for body in other.bodies} != first
    bare = Loopback(several)
    run(bare, continuations=1, sampling=Sampling(seed=None))
    assert not {"seed", "n", "top_k"} & set(bare.bodies[0])


def test_a_server_that_leaves_n_aside_is_asked_one_by_one():
    loopback = Loopback(lambda body, number: choices(f"seed {body['seed']}"))
    found = run(loopback, prompts(4), 5, concurrency=1)
    assert found["text"].null_count() == 0
    assert found["text"].n_unique() == 20  # a seed of its own for each
    assert sum("n" in body for body in loopback.bodies) == 1
    assert len(loopback.bodies) == 20


def test_a_server_that_refuses_n_is_asked_one_by_one():
    def answer(body, number):
        return (
            Reply(400, {"error": {"message": "n must be 1"}})
            if "n" in body
            else choices(f"seed {body['seed']}")
        )

    loopback = Loopback(answer)
    found = run(loopback, prompts(4), 3, concurrency=1)
    assert found["text"].null_count() == 0
    assert len(loopback.bodies) == 1 + 12


def test_fewer_choices_than_asked_for_are_made_up_and_more_are_dropped():
    at_most_two = Loopback(
        lambda body, number: choices(*(f"{number}.{i}" for i in range(min(2, body.get("n", 1)))))
    )
    found = run(at_most_two, prompts(1), 5, concurrency=1)
    assert found["text"].to_list() == ["0.0", "0.1", "1.0", "1.1", "2.0"]
    found = run(Loopback(lambda body, number: choices("a", "b", "c", "d")), prompts(2), 3)
    assert found["text"].to_list() == ["a", "b", "c"] * 2


def test_choices_are_put_in_the_order_of_their_index():
    def answer(body, number):
        value = choices("first", "second")
        value["choices"].reverse()
        return value

    assert run(Loopback(answer), prompts(1), 2)["text"].to_list() == ["first", "second"]


def test_chat_sends_a_message_and_reads_the_content():
    loopback = Loopback(
        lambda body, number: choices(
            *(f"re: {body['messages'][0]['content']}",) * body.get("n", 1), chat=True
        )
    )
    found = run(loopback, chat=True)
    assert loopback.calls[0][0] == "/v1/chat/completions"
    assert found["text"][0] == "re: say the word number 0"
    silent = Loopback(lambda body, number: choices(None, None, chat=True))
    found = run(silent, chat=True)
    assert found["text"].null_count() == 6
    assert set(found["error"]) == {"the message has no content"}


def test_newer_chat_models_get_the_other_name_of_the_length():
    def answer(body, number):
        if "max_tokens" in body:
            return Reply(
                400,
                {
                    "error": {
                        "message": "Use 'max_completion_tokens' instead.",
                        "code": "unsupported_parameter",
                    }
                },
            )
        return choices(*["yes"] * body.get("n", 1), chat=True)

    loopback = Loopback(answer)
    found = run(loopback, prompts(6), chat=True, concurrency=3)
    assert found["text"].to_list() == ["yes"] * 12
    assert all(body["n"] == 2 for body in loopback.bodies)


def test_an_empty_text_is_a_text_and_a_withheld_one_is_not():
    def answer(body, number):
        value = choices("", "")
        value["choices"][1]["finish_reason"] = "content_filter"
        return value

    found = run(Loopback(answer), prompts(1))
    assert found["text"].to_list() == ["", None]
    assert found["error"].to_list() == [None, "withheld by the server's content filter"]


def test_half_a_surrogate_pair_fails_alone():
    answer = json.dumps(choices("x", "y")).replace('"y"', '"\\ud83d"').encode()
    found = run(Loopback(lambda body, number: Reply(200, answer)), prompts(1))
    assert found["text"].to_list() == ["x", None]


FAULTS = {
    "429": Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "500": Reply(500, b"<html>oops</html>"),
    "503": Reply(503, {"error": "busy"}),
    "not JSON": Reply(200, b'{"choices": [{"te'),
    "truncated": Reply(200, choices("a", "b"), cut=50),
    "truncated chunks": Reply(200, choices("a", "b"), cut=1, chunked=True),
    "no gzip": Reply(200, choices("a", "b"), {"Content-Encoding": "gzip"}),
    "list": Reply(200, b"[]"),
    "no choices": Reply(200, {"choices": []}),
    "no text": Reply(200, {"choices": [{"index": 0}, {"index": 1}]}),
    "number": Reply(200, {"choices": [{"text": 3}, {"text": 4}]}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_leaves_no_trace(fault):
    loopback = Loopback(lambda body, number: FAULTS[fault] if number % 2 == 0 else several(body, number))
    found = run(loopback, prompts(4), concurrency=1)
    assert found["text"].null_count() == 0
    assert len(loopback.bodies) == 8


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_null_with_its_reason_and_leaves_the_others(fault):
    loopback = Loopback(
        lambda body, number: FAULTS[fault] if "number 1" in body["prompt"] else several(body, number)
    )
    display = Told()
    found = run(loopback, prompts(3), display=display)
    assert found["text"].is_null().to_list() == [False, False, True, True, False, False]
    assert found["error"].is_null().to_list() == [True, True, False, False, True, True]
    assert sum("number 1" in body["prompt"] for body in loopback.bodies) == 3  # the first try and two more
    assert any("2 of 6 continuations failed" in line for line in display.lines)


def test_chunks_and_compression_are_read():
    packed = gzip.compress(json.dumps(choices("a", "b")).encode())
    for reply in (
        Reply(200, choices("a", "b"), chunked=True),
        Reply(200, packed, {"Content-Encoding": "gzip"}, chunked=True),
    ):
        assert run(Loopback(lambda body, number, r=reply: r), prompts(1))["text"].to_list() == ["a", "b"]


def test_retry_after_is_a_number_or_a_date():
    then = datetime.now(UTC) + timedelta(seconds=30)
    assert 27 < (asked_pause(format_datetime(then, usegmt=True)) or 0) <= 30
    assert asked_pause(format_datetime(then - timedelta(days=1), usegmt=True)) == 0
    assert [asked_pause(given) for given in ("2.5", "-3", "soon", None)] == [2.5, 0, None, None]


def test_a_server_on_this_machine_is_not_looked_for_behind_a_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert run(Loopback(several))["text"].null_count() == 0


def test_silence_and_dripping_end_at_the_time_limit():
    slow = {
        "say the word number 0": Reply(200, choices("a", "b"), wait=3),
        "say the word number 1": Reply(200, choices("a", "b"), drip=0.2),
    }
    loopback = Loopback(lambda body, number: slow.get(body["prompt"]) or several(body, number))
    started = time.monotonic()
    found = run(loopback, prompts(3), timeout=0.6, retries=1)
    assert found["text"].is_null().to_list() == [True, True, True, True, False, False]
    assert all("within 0.6 s" in error for error in found["error"][:4])
    assert time.monotonic() - started < 2.9  # neither waits for the whole answer


def test_retry_after_is_honoured_by_all_callers():
    seen = []

    def answer(body, number):
        seen.append(time.monotonic())
        return Reply(429, {}, {"Retry-After": "1"}) if number == 0 else several(body, number)

    loopback = Loopback(answer)
    found = run(loopback, prompts(5), concurrency=1)
    assert found["text"].null_count() == 0
    assert seen[1] - seen[0] >= 0.99


def test_what_is_refused_for_its_length_fails_at_once_and_n_stays():
    def answer(body, number):
        if "number 0" in body["prompt"]:
            return Reply(
                400, {"error": {"message": "maximum context length is 16 tokens", "type": "BadRequestError"}}
            )
        return several(body, number)

    loopback = Loopback(answer)
    found = run(loopback, prompts(4), 5, concurrency=1)
    assert found["text"].null_count() == 5
    assert found["error"][0] == "HTTP 400 BadRequestError: maximum context length is 16 tokens"
    assert len(loopback.bodies) == 2 + 3  # with n and without, then one call a prompt


def test_a_reason_never_repeats_the_prompt():
    loopback = Loopback(
        lambda body, number: Reply(400, {"error": {"message": f"flagged: {body['prompt'][3:]}"}})
    )
    found = run(loopback)
    assert set(found["error"]) == {"HTTP 400"}


def test_no_more_calls_at_once_than_asked_for():
    loopback = Loopback(lambda body, number: Reply(200, choices("a", "b"), wait=0.05))
    run(loopback, prompts(12), concurrency=3)
    assert loopback.most_at_once == 3


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "set UNIDETOX_API_KEY"), (404, "no model 'tiny'")],
)
def test_what_no_call_can_mend_is_one_line(status, words):
    loopback = Loopback(lambda body, number: Reply(status, {"error": {"message": "no"}}))
    with pytest.raises(ConfigError, match=words):
        run(loopback, prompts(50))
    assert len(loopback.bodies) <= 16


def test_a_server_that_is_not_there_ends_the_work():
    with serving(Loopback(several)) as gone:
        url = gone.url
    for count in (2, 100):
        with pytest.raises(StageError, match="calls in a row failed with 1 retries"):
            generate(prompts(count), url, "tiny", Sampling(), continuations=1, **{**FAST, "retries": 1})
    with pytest.raises(StageError, match="cannot be reached"):
        generate(prompts(), url, None, Sampling(), continuations=1, **FAST)


def test_the_model_is_the_only_one_or_named():
    for names, words in (
        (("a", "b"), r"has 2 models \('a', 'b'\)"),
        ((), "has 0 models"),
        (None, "name the model"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(Loopback(several, models=names), model=None)


def test_the_key_goes_to_the_given_host_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("UNIDETOX_API_KEY", "uk-1234567890")
    monkeypatch.setenv("OPENAI_API_KEY", "ok-1234567890")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password from-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    elsewhere = Loopback(several)
    with serving(elsewhere):
        for status in (301, 302, 307, 308):
            loopback = Loopback(
                lambda body, number, s=status: Reply(s, b"", {"Location": elsewhere.url + "/v1/completions"})
            )
            with pytest.raises(ConfigError, match=r"redirect to http://127\.0\.0\.1, which is not followed"):
                run(loopback, prompts(1))
            assert loopback.calls[0][1]["Authorization"] == "Bearer uk-1234567890"
    assert elsewhere.calls == []
    monkeypatch.delenv("UNIDETOX_API_KEY")
    loopback = Loopback(several)
    run(loopback)
    assert all("Authorization" not in headers for _, headers, _ in loopback.calls)
    run(loopback, key_variable="OPENAI_API_KEY")
    assert loopback.calls[-1][1]["Authorization"] == "Bearer ok-1234567890"


def test_a_key_that_cannot_be_sent_or_hidden_is_refused(monkeypatch):
    monkeypatch.setenv("MY_LOGIN", "abcdefghijkl")
    monkeypatch.setenv("UNIDETOX_API_KEY", "two words of it")
    for options, words in (
        ({"key_variable": "MY_LOGIN"}, "_API_KEY or …_TOKEN"),
        ({"key_variable": "UNSET_API_KEY"}, "is not set"),
        ({}, "no header"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            run(Loopback(several), **options)
        assert "abcdefghijkl" not in str(error.value) and "two words" not in str(error.value)


def test_a_key_that_the_server_repeats_is_blanked_out(monkeypatch):
    monkeypatch.setenv("UNIDETOX_API_KEY", "uk-1234567890")
    loopback = Loopback(lambda body, number: Reply(400, {"error": {"message": "bad key uk-1234567890"}}))
    assert set(run(loopback)["error"]) == {"HTTP 400: bad key ***"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1/completions", "https://h/v1"),
        ("https://h/api/v1/chat/completions/", "https://h/api/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_addresses(given, wanted):
    assert base_of(given) == wanted


@pytest.mark.parametrize(
    "given", ["localhost:8000", "ftp://h", "http://", "http://h:99999", "http://u:p@h", "http://h?key=1", ""]
)
def test_addresses_that_are_none(given):
    with pytest.raises(ConfigError):
        base_of(given)


def test_prompts_that_do_not_fit_are_refused_before_any_call():
    loopback = Loopback(several)
    for table, words in (
        (prompts().drop("prompt"), "'prompt' is missing"),
        (prompts(0), "no rows"),
        (prompts().with_columns(prompt=pl.Series(["a", None, "b"])), "empty in row 2"),
        (prompts().with_columns(prompt_id=pl.lit("same")), "names a prompt twice"),
    ):
        with pytest.raises(DataError, match=words):
            run(loopback, table)
    with pytest.raises(ConfigError):
        Sampling(top_p=float("nan"))
    assert loopback.calls == []


def test_the_journal_goes_on_and_makes_failed_calls_again(tmp_path):
    journal = tmp_path / "folder" / "calls.jsonl"
    broken = Loopback(
        lambda body, number: Reply(500) if "number 2" in body["prompt"] else several(body, number)
    )
    first = run(broken, prompts(4), 2, journal=journal)
    assert first["text"].null_count() == 2
    assert journal.stat().st_mode & 0o077 == 0
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-7])  # killed in the middle of a line
    display = Told()
    loopback = Loopback(several)
    loopback.url = broken.url
    with serving(loopback):
        # Another port is another server: the texts are not mixed.
        with pytest.raises(ConfigError, match="belongs to another server"):
            generate(prompts(4), loopback.url, "tiny", Sampling(), continuations=2, journal=journal, **FAST)
        head, *rest = journal.read_text().splitlines(keepends=True)
        head = head.replace(broken_port := broken.url, loopback.url)
        assert broken_port
        journal.write_text("".join([head, *rest]))
        found = generate(
            prompts(4),
            loopback.url,
            "tiny",
            Sampling(),
            continuations=2,
            journal=journal,
            display=display,
            **FAST,
        )
        assert found["text"].null_count() == 0
        assert len(loopback.bodies) == 2  # the failed prompt and the one whose line was cut
        assert "4 continuations are in the journal, 4 are left" in display.lines
        changed = prompts(4).with_columns(prompt=pl.col("prompt").str.replace("number 0", "number nought"))
        again = generate(changed, loopback.url, "tiny", Sampling(), continuations=3, journal=journal, **FAST)
        assert again["text"].null_count() == 0
        assert len(loopback.bodies) == 2 + 4  # an edited prompt whole, of the others the third continuation
        assert again["text"][0] == "say the word nought / 0".replace("word", "word number")
        with pytest.raises(ConfigError, match="another server, model or sampling"):
            generate(
                prompts(4), loopback.url, "tiny", Sampling(seed=7), continuations=2, journal=journal, **FAST
            )
    for text in ("what\n", "{}\n", '{"journal": 3}\n', "what"):
        journal.write_text(text)
        with pytest.raises(ConfigError, match="not a"):
            run(Loopback(several), journal=journal)
        assert journal.read_text() == text


def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(tmp_path):
    slow = Loopback(
        lambda body, number: (
            several(body, number) if number < 4 else Reply(200, several(body, number), wait=30)
        )
    )
    journal = tmp_path / "calls.jsonl"
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_endpoint import prompts; from unidetox_ray.evaluate.endpoint import Sampling, generate\n"
        "generate(prompts(10), sys.argv[1], 'tiny', Sampling(), continuations=2, concurrency=2, journal=Path(sys.argv[2]))"
    )
    with serving(slow):
        process = subprocess.Popen(
            [sys.executable, "-c", code, slow.url, str(journal)],
            stderr=subprocess.DEVNULL,
            env={**os.environ},
        )
        deadline = time.monotonic() + 120
        while len(slow.bodies) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(slow.bodies) == 6
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.wait(60) != 0
        assert time.monotonic() - started < 20  # not the 30 seconds of the calls under way
        slow.answer = several
        found = generate(prompts(10), slow.url, "tiny", Sampling(), continuations=2, journal=journal, **FAST)
    assert found["text"].null_count() == 0
    assert len(slow.bodies) == 6 + 6


def test_a_real_model_behind_the_server():
    """A tiny GPT-2 with random weights, sampled with the call's own settings and seed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()

    def answer(body, number):
        ids = torch.tensor([[ord(letter) for letter in body["prompt"]]])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(body["seed"])
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_p=body["top_p"], temperature=body["temperature"],
                max_new_tokens=body["max_tokens"], num_return_sequences=body["n"], pad_token_id=0, eos_token_id=127,
            )  # fmt: skip
        return choices(*("".join(map(chr, row[ids.shape[1] :].tolist())) for row in made))

    # torch's generator is one for all threads, so one call at a time.
    tables = [
        run(Loopback(answer), prompts(2), 4, sampling=Sampling(max_new_tokens=5, seed=seed), concurrency=1)
        for seed in (1, 1, 2)
    ]
    assert tables[0]["text"].to_list() == tables[1]["text"].to_list() != tables[2]["text"].to_list()
    assert all(len(text) == 5 for text in tables[0]["text"] if "\x7f" not in text)
    assert tables[0]["text"].n_unique() == 8
