"""The published corpus: fetched once, the very bytes or an error; a real server on loopback stands for the web's."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unidetox_ray.detoxify import published as module
from unidetox_ray.detoxify.published import FILE, published
from unidetox_ray.errors import DataError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        return None


@pytest.fixture
def served(tmp_path):
    """(folder, its address)"""
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def known(monkeypatch):
    """Content that counts as the published one here."""
    import hashlib

    content = b"Text\none text\nanother\n"
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_it_is_fetched_once_and_kept(served, known, home):
    folder, address = served
    (folder / FILE).write_bytes(known)
    first = published(source=address)
    assert first.read_bytes() == known and home in first.parents
    (folder / FILE).unlink()
    assert published(source=address) == first
    first.write_bytes(b"changed")
    with pytest.raises(DataError, match="is not the published file"):
        published(source=address)


def test_another_file_is_refused_and_not_kept(served, known, home):
    folder, address = served
    (folder / FILE).write_bytes(known + b"more\n")
    with pytest.raises(DataError, match="gave another file"):
        published(source=address)
    assert not home.exists()


def test_out_of_reach_says_what_to_do(served, known):
    with pytest.raises(DataError, match="cannot be fetched") as raised:
        published(source=served[1])
    assert "--data-root" in str(raised.value) and "\n" not in str(raised.value)


def test_a_data_root_comes_first(tmp_path, known):
    place = tmp_path / "data" / "unidetox" / FILE
    place.parent.mkdir(parents=True)
    place.write_bytes(known)
    assert published(tmp_path / "data", source="http://127.0.0.1:9") == place
    place.write_bytes(b"another")
    with pytest.raises(DataError, match="is not the published file"):
        published(tmp_path / "data", source="http://127.0.0.1:9")


def test_the_real_file_is_the_one_that_is_named(shared_root):
    from unidetox_ray.data.text import read_corpus

    found = published(shared_root / "data", source="http://127.0.0.1:9")
    assert read_corpus(found).table.height == 640
