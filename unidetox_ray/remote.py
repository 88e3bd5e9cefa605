"""Run folders on s3://, gs:// and other fsspec stores: worked on locally, mirrored stage by stage.

What an earlier submission left is fetched at the start, so the same command resumes on another machine; what a stage finishes is
sent before the next begins, manifests last. Workers read the local side: several nodes need a shared path as storage instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import MANIFEST, private_folder
from unidetox_ray.errors import ConfigError, StageError
from unidetox_ray.hashing import digest
from unidetox_ray.settings import is_url

#: Never sent: what only this machine can use.
_LOCAL_ONLY = {"ray", "parts", ".checkpoints"}


class Mirror:
    """One remote run folder and its local side."""

    def __init__(self, url: str, name: str, local: Path) -> None:
        """ConfigError when the scheme's driver is not installed or the address is not one."""
        import fsspec

        self.local = local
        try:
            self.files, root = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{name}")
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"storage = {url!r}: {error}; install its driver (s3fs, gcsfs) or give a folder"
            ) from None
        self.root = str(root).rstrip("/")
        self.url = url
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self) -> int:
        """Bring what is there; returns the number of files."""
        try:
            self.files.invalidate_cache()
            names = self.files.find(self.root) if self.files.exists(self.root) else []
            for name in names:
                relative = str(name)[len(self.root) :].lstrip("/")
                target = self.local / relative
                private_folder(target.parent)
                if not target.exists() or target.stat().st_size != self.files.size(name):
                    self.files.get_file(name, str(target))
                self._sent[relative] = self._state(target)
        except OSError as error:
            raise StageError(
                f"storage {self.url}: cannot be read ({error}); check the address and the credentials"
            ) from None
        return len(names)

    def send(self) -> int:
        """Send what is new or changed, each folder's manifest after its files; returns the number of files."""
        changed = []
        for path in self.local.rglob("*"):
            relative = path.relative_to(self.local)
            if not path.is_file() or path.name.startswith(".") or _LOCAL_ONLY & set(relative.parts):
                continue
            if self._sent.get(relative.as_posix()) != self._state(path):
                changed.append(path)
        try:
            for path in sorted(changed, key=lambda p: (p.name == MANIFEST, str(p))):
                name = path.relative_to(self.local).as_posix()
                target = f"{self.root}/{name}"
                self.files.makedirs(os.path.dirname(target), exist_ok=True)
                self.files.put_file(str(path), target)
                self._sent[name] = self._state(path)
        except OSError as error:
            raise StageError(
                f"storage {self.url}: cannot be written ({error}); the results so far lie in {self.local}"
            ) from None
        return len(changed)

    def forget(self) -> None:
        """Remove the remote run folder (`--fresh`)."""
        if self.files.exists(self.root):
            self.files.rm(self.root, recursive=True)
        self._sent.clear()

    @staticmethod
    def _state(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_size, found.st_mtime_ns


def local_side(storage: str) -> Path:
    """Where a remote storage is worked on: a private folder of this user, the same for the same address."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "unidetox_ray" / "storage" / digest(storage)[:16]


def mirror_of(storage: str, name: str) -> tuple[Path, Any]:
    """(folder that plays `storage` here, its mirror or None when storage is a path)."""
    if not is_url(storage):
        return Path(storage).expanduser(), None
    local = local_side(storage)
    return local, Mirror(storage, name, private_folder(local / name))
