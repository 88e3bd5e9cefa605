"""The experiment's views as MLflow's page reads them: named, small enough for a tag, and no burden on what a user wrote."""

from __future__ import annotations

import base64
import json
import zlib

from unidetox_ray.tracking import open_tracker
from unidetox_ray.tracking.address import connect
from unidetox_ray.tracking.names import TAG_LENGTH
from unidetox_ray.tracking.views import KIND_TAG, NOTE_TAG, VIEW_TAG, experiment_tags


def state_of(value: str) -> dict:
    """What the page makes of a view's tag."""
    packed = json.loads(value)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_every_view_is_named_and_fits_into_a_tag():
    tags = experiment_tags("unidetox/tiny")
    views = {name: value for name, value in tags.items() if name.startswith(VIEW_TAG)}
    assert [json.loads(value)["name"] for value in views.values()] == [
        "Families and methods", "Methods, mean over families", "Search trials", "Submissions",
    ]  # fmt: skip
    assert max(map(len, tags.values())) < TAG_LENGTH
    for value in views.values():
        state = state_of(value)
        assert state["searchFilter"].startswith("tags.`unidetox.kind` = '")
        cards = [card["uuid"] for card in state["compareRunCharts"]]
        assert len(cards) == len(set(cards))


def test_a_description_that_a_user_wrote_stays_and_views_are_brought_up_to_date(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for key in ("one", "two"):
        with open_tracker(uri, experiment="mine") as tracker:
            tracker.begin(key=key, name=key, params={}, tags={})
        client = connect(uri)
        found = client.get_experiment_by_name("mine")
        if key == "one":
            assert "mine" in found.tags[NOTE_TAG] and found.tags[KIND_TAG] == "custom_model_development"
            client.set_experiment_tag(found.experiment_id, NOTE_TAG, "my own words")
            client.set_experiment_tag(found.experiment_id, f"{VIEW_TAG}unidetox-cells", "{}")
    assert found.tags[NOTE_TAG] == "my own words"
    assert state_of(found.tags[f"{VIEW_TAG}unidetox-cells"])["orderByKey"] == "metrics.`tp_all`"
