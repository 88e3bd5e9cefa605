"""Random numbers that belong to a sequence and a position, not to a batch or a process.

Each sequence owns a counter-based stream (Philox, Salmon et al. 2011) keyed by a seed and the sequence's
identity, so its text is the same whichever actor, batch or attempt produces it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

_WORD = (1 << 64) - 1


def key_of(*parts: int | str) -> int:
    """A 64-bit key from any mix of names and numbers; stable across processes and versions."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator on the Philox stream named by `parts`."""
    return np.random.Generator(np.random.Philox(key=key_of(*parts)))


def uniforms(seed: int, sequence_ids: Sequence[int | str], length: int) -> torch.Tensor:
    """One row of random numbers per sequence.

    seed: any integer. sequence_ids: N identities, unique within the job.
    Returns (N, length) float64 in [0, 1), on the CPU; row i depends on (seed, sequence_ids[i]) alone.
    """
    high = key_of("sequence", seed)
    rows = np.empty((len(sequence_ids), length), dtype=np.float64)
    for index, sequence_id in enumerate(sequence_ids):
        low = sequence_id & _WORD if isinstance(sequence_id, int) else key_of(sequence_id)
        # Philox takes a 128-bit key: the seed fills one half, the sequence the other.
        rows[index] = np.random.Generator(np.random.Philox(key=(high << 64) | low)).random(length)
    return torch.from_numpy(rows)
