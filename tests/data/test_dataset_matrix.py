"""What holds for every registered data set and each of its roles."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray import registry
from unidetox_ray.data.base import ROLES, SPLITS, Dataset, Options, load
from unidetox_ray.errors import ConfigError

NAMES = registry.names("datasets")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_describes_itself(name):
    entry = registry.lookup("datasets", name)
    assert isinstance(entry, Dataset)
    assert entry.name == name
    assert entry.licence.strip() and entry.citation.strip()
    assert entry.roles and set(entry.roles) <= set(ROLES)
    assert issubclass(entry.options, Options)
    assert entry.options().model_config["extra"] == "forbid"


def test_every_role_gives_a_table_in_its_schema(name, layouts, tmp_path):
    case = layouts.case(name, tmp_path)
    for role in registry.lookup("datasets", name).roles:
        loaded = load(role, dataset=name, **case)
        schema, key = ROLES[role]
        assert dict(loaded.table.schema) == dict(schema), role
        assert loaded.table.height == loaded.notes["rows"] > 0
        assert loaded.table[key].n_unique() == loaded.table.height
        assert set(loaded.notes["splits"]) <= set(SPLITS[role])
        assert sum(loaded.notes["splits"].values()) == loaded.table.height
        assert len(loaded.sha256) == 64
        assert str(tmp_path) not in loaded.where


def test_no_text_is_in_two_splits(name, layouts, tmp_path):
    case = layouts.case(name, tmp_path)
    for role in registry.lookup("datasets", name).roles:
        loaded = load(role, dataset=name, **case)
        text = {"prompts": "prompt", "mmlu": "question"}.get(role, "text")
        spread = loaded.table.group_by(pl.col(text).str.strip_chars()).agg(pl.col("split").n_unique())
        shared = spread.filter(pl.col("split") > 1).height
        # ToxiGen's splits really overlap: there the overlap has to be reported.
        assert shared == loaded.notes.get("validation_rows_also_in_test", 0), role


def test_loading_again_gives_the_same_table_and_hash(name, layouts, tmp_path):
    case = layouts.case(name, tmp_path)
    for role in registry.lookup("datasets", name).roles:
        first, second = (load(role, dataset=name, **case) for _ in range(2))
        assert first.table.equals(second.table)
        assert first.sha256 == second.sha256


def test_unknown_option_is_refused(name, layouts, tmp_path):
    case = layouts.case(name, tmp_path)
    role = registry.lookup("datasets", name).roles[0]
    with pytest.raises(ConfigError, match="unknown option 'colour'"):
        load(role, dataset=name, path=case["path"], options={"colour": 1})


def test_role_it_does_not_serve_is_refused(name):
    foreign = next(
        role for role in [*ROLES, "nothing"] if role not in registry.lookup("datasets", name).roles
    )
    with pytest.raises(ConfigError, match="role"):
        load(foreign, dataset=name)
