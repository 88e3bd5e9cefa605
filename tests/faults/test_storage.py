"""Storage that is full, read-only or gone for a while, on a small file system of the driver's own."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from drivers import MOMENTS, Driver, begun, experiment, leftovers, same_results

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a tmpfs of so many KiB; skips where this user may not."""
    made = []

    def mount(name: str, kib: int):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "tmpfs", str(folder)], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a file system here: {done.stderr.decode().strip()[:100]}")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def remount(folder, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_more_space_is_enough(mounted, tmp_path, place, undisturbed):
    disk = mounted("disk", 600)
    path = experiment(tmp_path / "full", storage=str(disk), cache=str(place / "cache"))
    driver = Driver(path)
    assert driver.wait() in (1, 2, 3), driver.output
    assert "No space left" in driver.output, driver.output
    assert not (driver.folder / "results.json").exists()
    remount(disk, "size=512m")
    driver = Driver(path)
    assert driver.wait() == 0, driver.output
    same_results(driver.folder, undisturbed)
    assert leftovers(driver.folder) == []


@pytest.mark.brief
def test_a_read_only_storage_is_refused_in_one_line(mounted, tmp_path, place):
    disk = mounted("disk", 4096)
    path = experiment(tmp_path / "fixed", storage=str(disk), cache=str(place / "cache"))
    remount(disk, "ro")
    driver = Driver(path)
    assert driver.wait() == 2
    lines = driver.output.strip().splitlines()
    assert len(lines) == 1 and "cannot be made or written" in lines[0], driver.output


def test_storage_that_vanishes_and_comes_back(tmp_path, undisturbed):
    driver = Driver(begun(undisturbed, tmp_path, ("stages/generate", "stages/score")))
    driver.until(MOMENTS["stages/generate"])
    storage, away = tmp_path / "runs", tmp_path / "away"
    shutil.move(storage, away)
    assert driver.wait() != 0, "nobody noticed that the storage was gone"
    shutil.rmtree(storage, ignore_errors=True)
    shutil.move(away, storage)
    driver = Driver(driver.path)
    assert driver.wait() == 0, driver.output
    same_results(driver.folder, undisturbed)
    assert leftovers(driver.folder) == []
