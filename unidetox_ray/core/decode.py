"""Sampling from one model, or from several in lock-step, in batches; and the slow twin that proves it right.

A batch has a fixed number of rows. A prompt is read once and its row copied for its continuations. Rows that end
are given to the next prompts in the queue, where the runners can read some rows while others are under way;
otherwise a wave of prompts of similar length is decoded to its end. When the queue is empty, rows that ended leave.
Each sequence has its own random numbers, so none of this shows in the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unidetox_ray.core.graphs import EagerStep, step_for
from unidetox_ray.core.lockstep import LockStep
from unidetox_ray.core.logits import NOTHING, PLAIN, Mixture, Sampling, draw, filtered
from unidetox_ray.core.memory import chosen_rows, with_fewer_rows
from unidetox_ray.core.runner import Runner

#: Rows that ended are replaced, or dropped, once they are this share of the batch: each time costs a pass or a copy.
_RENEW_AT = 0.25
#: Steps between two looks at which rows ended. A look waits for the device; on the CPU that costs nothing.
_LOOK_EVERY = {"cpu": 1}
_LOOK_EVERY_ELSEWHERE = 8


@dataclass(frozen=True)
class Decoded:
    """One sequence: its new ids without the end token, and whether an end token stopped it.

    broken: the models' scores stopped being finite behind the last id (a diverged model, or float16 that overflowed), so that
    there is no next token.
    """

    ids: list[int]
    ended: bool
    broken: bool = False


def decode(
    runners: Sequence[Runner],
    prompts: Sequence[Sequence[int]],
    *,
    uniform: Tensor,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    mixture: Mixture = PLAIN,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    copies: int = 1,
    rows: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Decoded]:
    """`copies` continuations of every prompt.

    runners: same vocabulary, same device, one per weight of the mixture. prompts: N id lists, each with >= 1 id.
    uniform: (N * copies, max_new_tokens) float64 in [0, 1): row i * copies + j drives copy j of prompt i.
    end_ids: ids that end a row (may be empty). rows: rows of the batch at most, >= 1; None = as many as the
    device's free memory carries. When memory runs out all the same, half of them, and the same text.
    on_progress: called with the number of sequences finished since the last call.
    Returns N * copies sequences in that order. They do not depend on `rows`, on the order of the prompts or on each
    other, as far as the runners' own arithmetic does not (the lean runner in float32 on the CPU: bit for bit).
    ValueError: shapes that do not fit, an empty prompt.
    """
    total = len(prompts) * copies
    if uniform.shape != (total, max_new_tokens):
        raise ValueError(f"uniform is {tuple(uniform.shape)}, expected {(total, max_new_tokens)}")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty; a model needs at least one id (its start token)")
    if rows is not None and rows < 1:
        raise ValueError(f"rows = {rows}: a batch has at least one row")
    if len(runners) != len(mixture.weights):
        raise ValueError(f"{len(runners)} models, but the mixture has {len(mixture.weights)} weights")
    if total == 0 or max_new_tokens == 0:
        return [Decoded([], False)] * total
    longest = max(len(prompt) for prompt in prompts)
    if rows is None:
        rows = chosen_rows(runners, longest + max_new_tokens - 1, total, prompt=longest)
    tell = _Told(on_progress)
    with torch.inference_mode(), LockStep(runners) as models:

        def attempt(size: int) -> list[Decoded]:
            job = _Job(models, prompts, uniform, max_new_tokens, end_ids, pad_id, mixture, sampling, copies)
            return job.run(size, tell)

        return with_fewer_rows(attempt, min(rows, total))[0]


class _Told:
    """Passes on how many sequences are finished, each once, also when a job starts over with fewer rows."""

    def __init__(self, on_progress: Callable[[int], None] | None) -> None:
        self.on_progress, self.most = on_progress, 0

    def __call__(self, finished: int) -> None:
        if self.on_progress and finished > self.most:
            self.on_progress(finished - self.most)
            self.most = finished


class _Job:
    """One call of `decode`: the queue, the batch and what came out.

    A sequence is known by its number in 0..N * copies - 1. A row of the batch holds one sequence or none (-1).
    """

    def __init__(
        self,
        models: LockStep,
        prompts: Sequence[Sequence[int]],
        uniform: Tensor,
        max_new_tokens: int,
        end_ids: Sequence[int],
        pad_id: int,
        mixture: Mixture,
        sampling: Sampling,
        copies: int,
    ) -> None:
        self.models, self.prompts, self.copies = models, prompts, copies
        self.device, self.pad_id = models.device, pad_id
        self.uniform = uniform.to(models.device)
        self.limit, self.mixture, self.sampling = max_new_tokens, mixture, sampling
        self.ends = np.array(sorted(end_ids), dtype=np.int64)
        total = len(prompts) * copies
        self.tokens = np.zeros((total, max_new_tokens), dtype=np.int64)
        self.lengths = np.zeros(total, dtype=np.int64)  # tokens so far, without the end token
        self.ended = np.zeros(total, dtype=bool)
        self.broken = np.zeros(total, dtype=bool)
        # Longest first: what does not fit fails before anything is spent, and neighbours pad each other little.
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        self.queue = deque(number * copies + copy for number in order for copy in range(copies))
        self.holds = np.empty(0, dtype=np.int64)
        self.last = torch.empty(0, dtype=torch.long, device=self.device)
        self.look_every = _LOOK_EVERY.get(self.device.type, _LOOK_EVERY_ELSEWHERE)
        self.step: EagerStep  # belongs to an `open` of the models
        self._counted = torch.arange(max(self.look_every, 1), device=self.device)[:, None]

    def run(self, rows: int, tell: Callable[[int], None]) -> list[Decoded]:
        while self.queue:
            size = min(rows, len(self.queue))
            if not self.models.refills and size > self.copies:
                size -= size % self.copies  # no prompt is read for two waves without need
            # The last new token is drawn but never read.
            capacity = len(self.prompts[self.queue[0] // self.copies]) + self.limit - 1
            self.models.open(size, capacity)
            self.step = step_for(self.models, self.mixture, self.sampling, capacity=capacity)
            self.holds = np.full(size, -1, dtype=np.int64)
            self.last = torch.full((size,), self.pad_id, dtype=torch.long, device=self.device)
            self._admit()
            while True:
                if self.models.refills:
                    self._admit()
                tell(self._finished())
                if (self.holds < 0).all():
                    break
                self._shrink()
                self._steps()
        return [
            Decoded(row[:length].tolist(), bool(ended), bool(broken))
            for row, length, ended, broken in zip(
                self.tokens, self.lengths, self.ended, self.broken, strict=True
            )
        ]

    def _finished(self) -> int:
        return int((self.ended | self.broken | (self.lengths == self.limit)).sum())

    def _admit(self) -> None:
        """Give free rows to sequences from the queue, and draw their first tokens."""
        free = np.flatnonzero(self.holds < 0)
        if not self.queue or len(free) < _RENEW_AT * len(self.holds):
            return
        count = min(len(free), len(self.queue))
        new = np.array([self.queue.popleft() for _ in range(count)])
        chosen, first, source = np.unique(new // self.copies, return_index=True, return_inverse=True)
        by_queue = np.argsort(first)  # prompts in the order of the queue: the longest first
        source = np.argsort(by_queue)[source]
        places = free[:count]
        # Where rows may be named, a prompt is read into the row of its first copy.
        home = places[first[by_queue]] if self.models.refills else np.arange(len(chosen))
        ids, lengths = self._padded([self.prompts[number] for number in chosen[by_queue]])
        logits = self.models.prefill(ids, lengths, self._tensor(home))
        if self.models.refills:
            copied = home[source] != places
            if copied.any():
                self.models.repeat(self._tensor(home[source][copied]), self._tensor(places[copied]))
        elif count > len(chosen):
            self.models.repeat(self._tensor(source), self._tensor(places))
        spread = self._tensor(source)
        drawn = self.step.draw([rows[spread] for rows in logits], self.uniform[self._tensor(new), 0])
        self.last[self._tensor(places)] = drawn
        self.holds[places] = new
        self._take(places, drawn.cpu().numpy()[None])

    def _shrink(self) -> None:
        """Drop rows that ended, once nothing is left to fill them with."""
        left = np.flatnonzero(self.holds >= 0)
        if not self.models.shrinks or (self.queue and self.models.refills):
            return
        if len(left) <= (1.0 - _RENEW_AT) * len(self.holds):
            rows = self._tensor(left)
            self.models.keep(rows)
            self.last, self.holds = self.last[rows], self.holds[left]

    def _steps(self) -> None:
        """Some steps of all rows, at most until the first row is at its limit; then look at what was drawn."""
        held = np.maximum(self.holds, 0)
        at = np.where(self.holds >= 0, self.lengths[held], 0)
        count = int(min(self.look_every, (self.limit - at[self.holds >= 0]).min()))
        sequences, position = self._tensor(held), self._tensor(at)
        drawn = self.step(self.last, self.uniform[sequences, position + self._counted[:count]])
        self.last = drawn[-1]
        self._take(np.arange(len(self.holds)), drawn.cpu().numpy())

    def _take(self, places: np.ndarray[Any, Any], drawn: np.ndarray[Any, Any]) -> None:
        """Note down the tokens (steps, rows) that the rows `places` drew, and free the rows that are finished."""
        for tokens in drawn:
            used = self.holds[places] >= 0
            sequences, new = self.holds[places][used], tokens[used]
            stops, lost = np.isin(new, self.ends), new == NOTHING
            goes = ~(stops | lost)
            going = sequences[goes]
            self.tokens[going, self.lengths[going]] = new[goes]
            self.lengths[going] += 1
            self.ended[sequences[stops]] = True
            self.broken[sequences[lost]] = True
            over = ~goes | (self.lengths[sequences] == self.limit)
            self.holds[places[used][over]] = -1

    def _padded(self, prompts: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long)
        ids = torch.full((len(prompts), int(lengths.max())), self.pad_id, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        return ids.to(self.device), lengths.to(self.device)

    def _tensor(self, numbers: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)).to(self.device)


@torch.inference_mode()
def decode_slowly(
    models: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    *,
    uniform: Tensor,
    max_new_tokens: int,
    end_ids: Sequence[int],
    mixture: Mixture = PLAIN,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    copies: int = 1,
) -> list[Decoded]:
    """The twin of `decode`: one row at a time, the whole prefix recomputed at each step, no cache, no padding.

    models: callables with Hugging Face's forward, not runners.
    """
    device = next(models[0].parameters()).device
    results = []
    for row in range(len(prompts) * copies):
        prefix, ended, broken = list(prompts[row // copies]), False, False
        new: list[int] = []
        for step in range(max_new_tokens):
            ids = torch.tensor([prefix + new], device=device)
            logits = [model(input_ids=ids, use_cache=False).logits[:, -1] for model in models]
            scores = filtered(mixture.scores(logits), sampling)
            token = int(draw(scores, uniform[row : row + 1, step].to(device)))
            ended, broken = token in end_ids, token == NOTHING
            if ended or broken:
                break
            new.append(token)
        results.append(Decoded(new, ended, broken))
    return results
