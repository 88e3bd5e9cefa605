"""Models of every registered family for the decoding methods, made once."""

from __future__ import annotations

import pytest
from decoding_models import Kit, make_kit

from unidetox_ray import registry


@pytest.fixture(scope="session", params=registry.names("families"))
def kit(request, tmp_path_factory) -> Kit:
    return make_kit(request.param, tmp_path_factory.mktemp("fits"))
