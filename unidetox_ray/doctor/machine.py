"""The machine: its device, its memory, and what Ray and torch need of the operating system."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from unidetox_ray.container import memory_limit
from unidetox_ray.doctor.checking import Line, check, fail, ok, skipped, warn
from unidetox_ray.doctor.needs import needs
from unidetox_ray.doctor.subject import Subject, existing
from unidetox_ray.errors import UnidetoxError

_GIB = 2**30
#: Ray keeps objects in shared memory and falls back to files; Docker's own default of 64 MiB is felt.
_SHARED_MEMORY = 1 * _GIB
#: Ray opens several files for every worker; it asks for 65536 on large nodes.
_OPEN_FILES = 4096
#: Models of more parameters than a CPU trains in a day.
_LARGE_GIB = 8.0
_SKEW_SECONDS = 5.0


@check("device")
def device(subject: Subject) -> Line:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            return fail(
                f"a GPU's driver is here, but torch {torch.__version__} does not see a GPU",
                "install the CUDA build of torch; in a container start it with the GPUs (--gpus all); see nvidia-smi",
            )
        if subject.address:
            return skipped("no GPU on this machine; the cluster's are counted under nodes")
        if subject.experiment is not None and _wanted(subject, "memory_gib") > _LARGE_GIB:
            return warn("no GPU; models of this size take days on a CPU", "run it on a GPU: docs/clusters.md")
        return ok("no GPU; torch works on the CPU")
    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(each) for each in range(count)})
    least = min(torch.cuda.get_device_properties(each).total_memory for each in range(count)) / _GIB
    seen = f"{count} x {', '.join(names)}, {least:.0f} GiB each"
    if all(torch.cuda.get_device_capability(each) >= (8, 0) for each in range(count)):
        return ok(f"{seen}, bf16")
    if subject.experiment is not None and _in_bf16(subject):
        return fail(
            f"{seen}, no bf16 arithmetic", "set every precision to fp32, or use a GPU of 2020 or later"
        )
    return warn(f"{seen}, no bf16 arithmetic", "use fp32 in experiments")


def _in_bf16(subject: Subject) -> bool:
    assert subject.experiment is not None
    found = subject.experiment
    sections = (
        found.toxic.precision,
        found.finetune.precision,
        found.corpus.precision,
        found.evaluate.precision,
    )
    return any(each.startswith("bf16") for each in sections)


def _wanted(subject: Subject, what: str) -> float:
    """GiB that the experiment needs; 0 where nothing is known of its models."""
    assert subject.experiment is not None
    try:
        return needs(subject.experiment)[what]
    except UnidetoxError:
        return 0.0


@check("memory")
def memory(subject: Subject) -> Line:
    """The device's memory against what one process of the experiment needs at its fullest; the machine's where there is no GPU."""
    import psutil
    import torch

    if subject.address:
        return skipped("the experiment runs on the cluster's nodes")
    if torch.cuda.is_available():
        free = min(torch.cuda.mem_get_info(each)[0] for each in range(torch.cuda.device_count())) / _GIB
        where = "free on the fullest GPU"
    else:
        free, where = (
            min(psutil.virtual_memory().available, memory_limit()) / _GIB,
            "available on this machine",
        )
    if subject.experiment is None:
        return ok(f"{free:.1f} GiB {where}")
    try:
        wanted = needs(subject.experiment)["memory_gib"]
    except UnidetoxError as error:
        return skipped(f"{free:.1f} GiB {where}; what the experiment needs is not known: {error}")
    seen = f"{free:.1f} GiB {where}, the experiment needs about {wanted:.1f} GiB in one process"
    if wanted > free:
        return fail(
            seen,
            "lower finetune.batch_size, use precision bf16_pure, or several workers with deepspeed.stage 2 or 3; or free memory",
        )
    return warn(seen, "close to the limit: lower cluster.decode_rows") if wanted > 0.9 * free else ok(seen)


@check("disk")
def disk(subject: Subject) -> Line:
    folder = subject.folder
    if folder is None:
        return skipped(f"{subject.storage} is an object store")
    free = shutil.disk_usage(existing(folder)).free / _GIB
    if subject.experiment is None:
        seen = f"{free:.1f} GiB free at {folder}"
        return ok(seen) if free >= 1 else warn(seen, "free some, or name another storage")
    try:
        wanted = needs(subject.experiment)["disk_gib"]
    except UnidetoxError as error:
        return skipped(f"{free:.1f} GiB free at {folder}; what the experiment needs is not known: {error}")
    seen = f"{free:.1f} GiB free at {folder}, the experiment needs about {wanted:.1f} GiB with its downloads"
    return ok(seen) if free > wanted else fail(seen, "free some, or name another storage=")


@check("shared memory")
def shared_memory(subject: Subject) -> Line:
    place = Path("/dev/shm")  # nosec B108 - looked at, not written
    if not place.is_dir():
        return skipped("this system has no /dev/shm")
    size = shutil.disk_usage(place).total
    seen = f"{size / _GIB:.1f} GiB in /dev/shm"
    if size >= _SHARED_MEMORY:
        return ok(seen)
    return warn(seen, "docker run --shm-size=8g; in Kubernetes an emptyDir with medium: Memory at /dev/shm")


@check("open files")
def open_files(subject: Subject) -> Line:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = [str(each) if each != resource.RLIM_INFINITY else "unlimited" for each in (soft, hard)]
    seen = f"at most {shown[0]} at once (limit for this user: {shown[1]})"
    if soft == resource.RLIM_INFINITY or soft >= _OPEN_FILES:
        return ok(seen)
    return warn(seen, "ulimit -n 65536 in the shell that starts Ray")


@check("home")
def home(subject: Subject) -> Line:
    place = Path.home()
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".unidetox-doctor-"):
            return ok(f"{place} can be written")
    except OSError as error:
        return warn(
            f"{place}: {error.strerror}",
            "set HOME to a folder of yours: Ray, the hub's cache and torch's compiler keep files there",
        )


@check("clock")
def clock(subject: Subject) -> Line:
    """This machine's clock against the one that stamps the storage's files, which on a network mount is another machine's."""
    if time.gmtime().tm_year < 2026:
        return fail(
            f"it is {time.strftime('%Y-%m-%d')} here", "set the clock: certificates and caches go by it"
        )
    folder = existing(subject.folder) if subject.folder is not None else None
    if folder is None or not os.access(folder, os.W_OK):
        return ok(time.strftime("%Y-%m-%d %H:%M:%S %z"))
    before = time.time()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".unidetox-doctor-") as probe:
            stamped = os.stat(probe.name).st_mtime
    except OSError:  # the check of the storage says why
        return ok(time.strftime("%Y-%m-%d %H:%M:%S %z"))
    off = max(before - stamped, stamped - time.time(), 0.0)
    if off > _SKEW_SECONDS:
        return warn(f"the storage's clock is {off:.0f} s off this machine's", "set both by NTP")
    return ok(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, the storage's is within {max(off, 1):.0f} s")
