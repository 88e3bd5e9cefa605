"""Storage by address, through fsspec's in-memory store: the code path of s3:// and gs://."""

import json

import fsspec
import pytest

from unidetox_ray.errors import ConfigError
from unidetox_ray.remote import Mirror, mirror_of


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    address = f"memory://bucket-{tmp_path.name}"
    yield address
    store = fsspec.filesystem("memory")
    if store.exists(address):
        store.rm(address, recursive=True)


def test_a_folder_is_sent_once_and_fetched_on_another_machine(url, tmp_path):
    local, mirror = mirror_of(url, "exp")
    assert isinstance(mirror, Mirror) and mirror.fetch() == 0
    stage = local / "exp" / "stages" / "corpus-1"
    stage.mkdir(parents=True)
    (stage / "manifest.json").write_text(json.dumps({"key": "1"}))
    (stage / "corpus.parquet").write_bytes(b"text")
    (stage / "parts").mkdir()
    (stage / "parts" / "shard.parquet").write_bytes(b"unfinished")
    order = []
    put = mirror.files.put_file
    mirror.files.put_file = lambda source, target: (
        order.append(target.rsplit("/", 1)[-1]),
        put(source, target),
    )
    assert mirror.send() == 2 and order == ["corpus.parquet", "manifest.json"]
    assert mirror.send() == 0
    (stage / "corpus.parquet").write_bytes(b"other text")
    assert mirror.send() == 1
    del mirror.files.put_file

    elsewhere = Mirror(url, "exp", tmp_path / "other")
    assert elsewhere.fetch() == 2 and elsewhere.send() == 0
    assert (tmp_path / "other" / "stages" / "corpus-1" / "corpus.parquet").read_bytes() == b"other text"
    assert not (tmp_path / "other" / "stages" / "corpus-1" / "parts").exists()
    elsewhere.forget()
    assert Mirror(url, "exp", tmp_path / "third").fetch() == 0


def test_a_path_needs_no_mirror(tmp_path):
    assert mirror_of(str(tmp_path), "exp") == (tmp_path, None)


def test_an_unknown_scheme_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="storage = 'nowhere://x'") as caught:
        mirror_of("nowhere://x", "exp")
    assert "\n" not in str(caught.value)
