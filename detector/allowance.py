"""What this process may use of its machine: processors and memory, as its control groups say.

In a container the machine's own numbers mislead: a quota of one processor on a machine of 64 is 64
threads that take turns, and are halted together when the quota is used up.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
"""

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_cores", "available_memory", "available_workers"]

_ROOT = Path("/")
_NO_LIMIT = 2**60  # bytes: what version 1 says where there is none is about 2**63
_WORKER_BYTES = 3 * 2**29  # a process that attacks photographs with a network of today's size


def available_cores(root: Path = _ROOT) -> int:
    """Return how many threads may compute at once: 1 or more.

    As many as the CPU affinity has, or as the quota pays for if that is less. Of a broken quota the
    whole processors count: a thread more would be halted for a part of every period.

    Args:
        root: where the machine's `proc` and `sys` lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, int(min([cores or 1, *quotas]) + 1e-9))


def available_memory(root: Path = _ROOT) -> int | None:
    """Return how many bytes of memory this process may have; None where the system does not say.

    Args:
        root: where the machine's `proc` and `sys` lie.
    """
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    found = [_number(folder / name) for folder in _groups(root, "memory") for name in names]
    limits = [limit for limit in found if limit is not None and 0 < limit < _NO_LIMIT]
    try:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not every system knows these names
        return min(limits, default=None)
    return min(limits)


def available_workers(root: Path = _ROOT) -> int:
    """Return how many processes may attack images side by side: as cores and memory allow.

    Args:
        root: where the machine's `proc` and `sys` lie.
    """
    cores, memory = available_cores(root), available_memory(root)
    return cores if memory is None else max(1, min(cores, memory // _WORKER_BYTES))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of those that these are in."""
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if number != "0" and controller not in names.split(","):
            continue  # version 2 has one line, of number 0, for all controllers
        wanted = "cgroup2" if number == "0" and not names else "cgroup"
        for top, mounted in _mounts(root, wanted, controller):
            inside = _below(group, mounted)
            yield from (top / part for part in [inside, *inside.parents])


def _mounts(root: Path, wanted: str, controller: str) -> Iterator[tuple[Path, str]]:
    """Yield where control groups of a kind are mounted, and which group is on top there."""
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, kind = line.partition(" - ")
        fields, told = place.split(), kind.split()
        if len(fields) < 5 or len(told) < 3 or told[0] != wanted:
            continue
        if wanted == "cgroup" and controller not in told[2].split(","):
            continue
        yield root / fields[4].lstrip("/"), fields[3]


def _below(group: str, mounted: str) -> Path:
    """Return where a group lies below its mount; a container sees its own group on top."""
    if group.startswith("/..") or not f"{group}/".startswith(f"{mounted.rstrip('/')}/"):
        return Path()
    return Path(group[len(mounted.rstrip("/")) :].lstrip("/"))


def _quota(folder: Path) -> float | None:
    """Return how many processors' time a group may have, None for any."""
    for line in _lines(folder / "cpu.max"):
        quota, _, period = line.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    quota_us, period_us = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return None
    return quota_us / period_us


def _number(file: Path) -> int | None:
    """Return the number in a file, None if it holds none."""
    for line in _lines(file):
        try:
            return int(line)
        except ValueError:
            return None
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
