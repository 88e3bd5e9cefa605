"""Which jobs share a training group."""

from typing import Any

import pytest

from unidetox_ray.stages.groups import dealt

FAMILIES: dict[str, list[Any]] = {
    "gpt2": ["g1", "g2"],
    "opt": ["o1"],
    "falcon": ["f1", "f2", "f3"],
    "llama": ["l1"],
}


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 9])
def test_every_job_is_dealt_once_and_families_stay_together(at_once: int) -> None:
    shares = dealt(FAMILIES, at_once)
    assert sorted(job for share in shares for job in share) == sorted(
        job for jobs in FAMILIES.values() for job in jobs
    )
    assert len(shares) == min(at_once, len(FAMILIES)) and all(shares)
    for jobs in FAMILIES.values():
        (share,) = [share for share in shares if jobs[0] in share]
        start = share.index(jobs[0])
        assert share[start : start + len(jobs)] == jobs


def test_groups_are_even_and_families_apart_where_there_is_room() -> None:
    assert sorted(map(len, dealt(FAMILIES, 2))) == [3, 4]
    assert sorted(map(sorted, dealt(FAMILIES, 4))) == sorted(map(sorted, FAMILIES.values()))
