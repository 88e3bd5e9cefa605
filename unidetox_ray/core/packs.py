"""Several texts in one row: nothing is spent on padding, and no text sees another (`core.attending`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unidetox_ray.core.batch import Batch
from unidetox_ray.core.loss import IGNORE

Pack = list[list[int]]


def pack_texts(texts: Sequence[Sequence[int]], length: int) -> list[Pack]:
    """Texts (token ids, each of at most `length`) put into rows of at most `length` tokens, none cut.

    First fit, longest first: every row but the last few is full to within the shortest texts. Depends on nothing but
    the texts; which rows form a step is the loop's affair.
    """
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
    packs: list[Pack] = []
    room: list[int] = []
    for index in order:
        size = len(texts[index])
        place = next((at for at, left in enumerate(room) if left >= size), None)
        if place is None:
            packs.append([])
            room.append(length)
            place = len(packs) - 1
        packs[place].append(list(texts[index]))
        room[place] -= size
    return packs


def collate_packs(packs: Sequence[Pack], *, pad_id: int) -> Batch:
    """Right-padded rows of several texts each: positions restart with each text, whose first token has no label.

    Padding is a segment of its own, -1.
    """
    width = max(sum(map(len, pack)) for pack in packs)
    ids = torch.full((len(packs), width), pad_id, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    positions, segments = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, pack in enumerate(packs):
        start = 0
        for number, text in enumerate(pack):
            end = start + len(text)
            ids[row, start:end] = torch.tensor(text, dtype=torch.long)
            labels[row, start + 1 : end] = ids[row, start + 1 : end]
            positions[row, start:end] = torch.arange(len(text))
            segments[row, start:end] = number
            mask[row, start:end] = 1
            start = end
    tokens = sum(len(text) for pack in packs for text in pack)
    targets = tokens - sum(map(len, packs))
    return Batch(ids, mask, labels, tokens, targets, positions, segments)
