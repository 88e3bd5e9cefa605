"""Methods × families in one ranking: from the rows of results.json alone.

front    which points no other beats on both axes (Pareto)
board    rows → entries, means over families, ranks, fronts
files    leaderboard.json, leaderboard.csv and the same as tables
"""

from __future__ import annotations

from unidetox_ray.leaderboard.board import Board, Entry, Standing, board_of
from unidetox_ray.leaderboard.files import cell_table, method_table, write_leaderboard
from unidetox_ray.leaderboard.front import pareto_front

__all__ = [
    "Board",
    "Entry",
    "Standing",
    "board_of",
    "cell_table",
    "method_table",
    "pareto_front",
    "write_leaderboard",
]
