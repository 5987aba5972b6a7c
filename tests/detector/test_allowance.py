"""What a process may use, as control groups say it, with files as Linux writes them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from reluguard.detector.allowance import available_cores, available_memory, available_workers

CORES = len(os.sched_getaffinity(0))
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
V1_GROUPS = "5:memory:{group}\n4:cpu,cpuacct:{group}\n1:name=systemd:/\n0::/\n"


def machine(root: Path, mounts: str, groups: str, files: Mapping[str, str]) -> Path:
    """Write what Linux shows of control groups."""
    whole = {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}
    for name, text in (whole | {f"sys/fs/cgroup/{n}": text for n, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", CORES),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("190000 100000", 1),
        ("6400000 100000", CORES),
        ("", CORES),
        ("broken", CORES),
    ],
)
@pytest.mark.parametrize("inside", ["", "kubepods/pod1/container/"])
def test_threads_follow_the_quota(tmp_path: Path, quota: str, cores: int, inside: str) -> None:
    """Version 2: of the group itself, in its own name space or not; never more than there are."""
    root = machine(tmp_path, V2, f"0::/{inside.rstrip('/')}\n", {f"{inside}cpu.max": quota})
    assert available_cores(root) == cores


def test_the_least_of_all_groups_around_it_counts(tmp_path: Path) -> None:
    """A generous container in a pod of little gets little."""
    files = {
        "pod/cpu.max": "100000 100000",
        "pod/container/cpu.max": "max 100000",
        "pod/memory.max": str(900 * MIB),
        "pod/container/memory.max": "max",
        "pod/container/memory.high": str(800 * MIB),
        "memory.max": str(1000 * MIB),
    }
    root = machine(tmp_path, V2, "0::/pod/container\n", files)
    assert available_cores(root) == 1
    assert available_memory(root) == 800 * MIB


@pytest.mark.parametrize(
    ("top", "group", "place"),
    [("/", "/pod", "pod/"), ("/docker/ab", "/docker/ab", ""), ("/", "/../..", "")],
    ids=["host", "container", "another name space"],
)
def test_version_1_is_read_too(tmp_path: Path, top: str, group: str, place: str) -> None:
    """Each controller has its own tree; a container sees its group on top of it."""
    files = {
        f"cpu,cpuacct/{place}cpu.cfs_quota_us": "100000\n",
        f"cpu,cpuacct/{place}cpu.cfs_period_us": "100000\n",
        f"memory/{place}memory.limit_in_bytes": f"{700 * MIB}\n",
    }
    root = machine(tmp_path, V1.format(top=top), V1_GROUPS.format(group=group), files)
    assert available_cores(root) == 1
    assert available_memory(root) == 700 * MIB


def test_no_limit_is_the_machine(tmp_path: Path) -> None:
    """Version 1 says it by -1 and by a huge number; a system without control groups by nothing."""
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    for root in (
        machine(tmp_path / "v1", V1.format(top="/"), V1_GROUPS.format(group="/"), files),
        tmp_path / "none",
    ):
        assert available_cores(root) == CORES
        assert available_memory(root) == MACHINE


def test_workers_follow_the_memory(tmp_path: Path) -> None:
    """Many cores and little memory are few workers, one at least."""
    for size in (100 * MIB, 2000 * MIB):
        root = machine(tmp_path / str(size), V2, "0::/\n", {"memory.max": str(size)})
        assert available_workers(root) == 1
    assert 1 <= available_workers() <= CORES
