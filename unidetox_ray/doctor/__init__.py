"""`unidetox doctor`: whether this machine, and the cluster that is named, can carry an experiment, and what to do where not.

    checking    a line of the report, the registry of checks, and how they are run
    subject     what is examined: an experiment or none, its storage, its cluster
    needs       what an experiment takes, for memory and disk
    software    Python and packages against their ranges; Ray's authentication
    machine     device, memory, shared memory, open files, home, clock
    storage     the storage's disk, whether it takes files and locks, permissions, toxic models without their mark
    access      hub, gated models and data sets, tracking store
    network     what of Ray and MLflow listens beyond loopback
    nodes       the same from every node of a running cluster

A check looks and changes nothing (a probe file that it writes, it removes). One that fails to do so is a line of the report.
"""

from __future__ import annotations

# Each registers its checks; the report lists them in this order.
from unidetox_ray.doctor import software, machine, storage, access, network, nodes  # noqa: F401  # isort: skip
from unidetox_ray.doctor.checking import CHECKS, Line, examine, text
from unidetox_ray.doctor.subject import Subject, subject_of

__all__ = ["CHECKS", "Line", "Subject", "examine", "subject_of", "text"]
