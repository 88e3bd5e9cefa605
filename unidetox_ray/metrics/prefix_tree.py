"""Token sequences as a tree of shared beginnings, and its likelihoods with every token read once.

A question's four answers share the question, the questions of a subject its worked example, the samples of a prompt
the prompt. Inner nodes are read with their cache kept; their children continue it, in batches across parents.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unidetox_ray.core.batching import in_batches, out_of_memory, reason

if TYPE_CHECKING:
    from unidetox_ray.metrics.reader import Past, Reader

Label = tuple[Hashable, ...]


@dataclass(eq=False)
class Node:
    """A stretch of tokens that stands after its parent's. An end of sequences where `rows` is not empty."""

    ids: tuple[int, ...]
    #: Position of ids[0] in the sequence.
    offset: int
    parent: Node | None
    #: The first position scored of any sequence through this node.
    start: int
    #: The input's rows that end here.
    rows: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    #: (len(ids),) float64 nats per token; 0 before `start`.
    values: npt.NDArray[np.float64] | None = None
    error: str | None = None
    #: Row of this node in the batch it was read in.
    place: int = 0

    def total(self, start: int) -> float:
        """Nats of the whole sequence that ends here, from position `start` on."""
        node: Node | None = self
        total = 0.0
        while node is not None:
            if node.values is not None:
                total += float(node.values[max(0, start - node.offset) :].sum())
            node = node.parent
        return total


def grow(
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    labels: Sequence[Label],
    rows: Sequence[int],
    share: bool,
) -> list[Node]:
    """Roots of the tree over the sequences `rows`. Equal sequences with equal labels are one.

    labels: what a sequence may share its beginning with: all of equal first part, then those of equal second part
    among them, and so on. Without `share` every distinct sequence is a root of its own.
    """
    distinct: dict[tuple[Label, tuple[int, ...]], list[int]] = {}
    for row in rows:
        distinct.setdefault((labels[row] if share else (), tuple(sequences[row])), []).append(row)
    ends = [(label, ids, same) for (label, ids), same in distinct.items()]
    roots: list[Node] = []
    _grow(ends, 0, 0, None, roots, starts)
    return roots


def _grow(
    ends: list[tuple[Label, tuple[int, ...], list[int]]],
    depth: int,
    offset: int,
    parent: Node | None,
    into: list[Node],
    starts: Sequence[int],
) -> None:
    groups: dict[Label, list[tuple[Label, tuple[int, ...], list[int]]]] = {}
    for end in ends:
        # Past the last part of its label a sequence is alone.
        key = (end[0][depth],) if depth < len(end[0]) else (end[0], end[1])
        groups.setdefault(key, []).append(end)
    for group in groups.values():
        first = min(starts[row] for _, _, same in group for row in same)
        if len(group) == 1:
            _, ids, same = group[0]
            into.append(Node(ids[offset:], offset, parent, first, rows=same))
            continue
        # What the first and the last in order share, all between them share.
        low, high = min(ids for _, ids, _ in group), max(ids for _, ids, _ in group)
        end_of_shared = offset + common(low[offset:], high[offset:])
        if end_of_shared == offset:
            _grow(group, depth + 1, offset, parent, into, starts)
        else:
            node = Node(low[offset:end_of_shared], offset, parent, first)
            into.append(node)
            _grow(group, depth + 1, end_of_shared, node, node.children, starts)


def ends(nodes: Sequence[Node]) -> Iterator[Node]:
    """The nodes of a tree at which sequences end."""
    for node in nodes:
        if node.rows:
            yield node
        yield from ends(node.children)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def score(
    reader: Reader,
    nodes: Sequence[Node],
    token_budget: int,
    chunk_values: int,
    past: Past | None = None,
) -> None:
    """Fill `values` (or `error`) of the nodes and all below them. nodes: all continue `past`, each its row `place`.

    Memory that ran out for a single continuation is tried again with fewer prefixes at a time, by the caller.
    """
    before = past.mask.shape[1] if past is not None else 0

    def failed(node: Node, error: Exception) -> None:
        if past is not None and len(past.lengths) > 1 and out_of_memory(error):
            raise error
        _spread(node, reason(error))

    # What has children keeps its cache and reads its last token as well; so they go in batches of their own.
    inner, outer = [n for n in nodes if n.children], [n for n in nodes if not n.children]

    def read_inner(batch: list[Node]) -> None:
        below = _read(reader, batch, past, chunk_values, keep=True)
        children = []
        for row, node in enumerate(batch):
            for child in node.children:
                child.place = row
                children.append(child)
        score(reader, children, token_budget, chunk_values, below)

    def read_outer(batch: list[Node]) -> None:
        _read(reader, batch, past, chunk_values, keep=False)

    in_batches(inner, [before + len(node.ids) for node in inner], token_budget, read_inner, failed)
    in_batches(outer, [before + len(node.ids) for node in outer], token_budget, read_outer, failed)


def _spread(node: Node, error: str) -> None:
    node.error = error
    for child in node.children:
        _spread(child, error)


def _read(reader: Reader, nodes: list[Node], past: Past | None, chunk_values: int, keep: bool) -> Past | None:
    """Read one batch and set its nodes' `values`; what was read where `keep`."""
    import torch

    for node in nodes:
        node.values = np.zeros(len(node.ids))
    with torch.inference_mode():
        if past is not None:
            # A node's first token is predicted by what its parent ends with.
            begun = [node for node in nodes if node.ids and node.offset >= node.start]
            if begun:
                found = reader.nll(
                    past.last,
                    torch.tensor([node.place for node in begun], device=past.last.device),
                    torch.tensor([node.ids[0] for node in begun], device=past.last.device),
                    chunk_values,
                )
                for node, value in zip(begun, found.tolist(), strict=True):
                    assert node.values is not None
                    node.values[0] = value
        fed = [node.ids if keep else node.ids[:-1] for node in nodes]
        if not any(fed):
            return None
        hidden, kept = reader.read(fed, past, [node.place for node in nodes], keep=keep)
        longest = hidden.shape[1]
        # Hidden state j of a row predicts its token j + 1.
        asked = [
            (row, place)
            for row, node in enumerate(nodes)
            for place in range(max(1, node.start - node.offset), len(node.ids))
        ]
        if asked:
            found = reader.nll(
                hidden.reshape(-1, hidden.shape[-1]),
                torch.tensor([row * longest + place - 1 for row, place in asked], device=hidden.device),
                torch.tensor([nodes[row].ids[place] for row, place in asked], device=hidden.device),
                chunk_values,
            )
            for (row, place), value in zip(asked, found.tolist(), strict=True):
                values = nodes[row].values
                assert values is not None
                values[place] = value
        return kept
