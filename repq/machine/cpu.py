"""What the processor is and which of its instructions matter for INT8 and reduced precision."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path

_FEATURES = {
    "avx2": "avx2",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimddp": "arm_dotprod",
    "i8mm": "arm_i8mm",
    "sve": "arm_sve",
    "asimdhp": "arm_fp16",
    # macOS spells the same things differently
    "AVX2": "avx2",
    "hw.optional.arm.FEAT_DotProd": "arm_dotprod",
    "hw.optional.arm.FEAT_I8MM": "arm_i8mm",
    "hw.optional.arm.FEAT_FP16": "arm_fp16",
}
"""Operating system's name of an instruction set -> the name that repq reports."""

DOT_PRODUCT_FEATURES = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "arm_dotprod", "arm_i8mm"})
"""Instruction sets that multiply and add 8-bit integers in one step. Without one, INT8 gains little, and on x86 the
older instruction (``vpmaddubsw``) saturates its 16-bit sums, so results can differ from the exact ones."""

BFLOAT16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})
"""Instruction sets that multiply bfloat16 and add in float32. Without one, torch takes longer than in float32."""


def is_x86() -> bool:
    """Whether the processor is one of Intel's architecture, of 32 or 64 bits."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def has_dot_products() -> bool:
    """Whether the processor multiplies and adds 8-bit integers in one step; see `DOT_PRODUCT_FEATURES`."""
    return not DOT_PRODUCT_FEATURES.isdisjoint(cpu_features())


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32; see `BFLOAT16_FEATURES`."""
    return not BFLOAT16_FEATURES.isdisjoint(cpu_features())


@functools.cache
def cpu_name() -> str:
    """Model name of the processor, or the machine type where the system does not say."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "cpu model"} and value.strip():
            return value.strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """Instruction sets of this processor that matter here, sorted; empty where the system does not say."""
    flags: set[str] = set()
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            flags.update(value.split())
    flags.update(_sysctl("machdep.cpu.leaf7_features").split())
    flags.update(name for name in _FEATURES if name.startswith("hw.") and _sysctl(name) == "1")
    return tuple(sorted({_FEATURES[flag] for flag in flags if flag in _FEATURES}))


def bound_cores() -> int:
    """Number of processors that the system lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_cores() -> int:
    """How many processors this process may keep busy: those that it may run on, or as many as its quota fills.

    A container's ``--cpus 2`` is a quota. Of two and a half processors two count: where threads wait for each other,
    all would wait for the one that the quota stops.
    """
    quota = cpu_quota()
    return bound_cores() if quota is None else max(1, min(bound_cores(), int(quota)))


def threads_within_quota() -> None:
    """Let OpenMP, and so torch, have no more threads than the quota fills, unless the user says how many.

    OpenMP reads it when torch loads: before is when to call this.
    """
    if "OMP_NUM_THREADS" not in os.environ and cpu_cores() < bound_cores():
        os.environ["OMP_NUM_THREADS"] = str(cpu_cores())


def cpu_quota(proc: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The processor time per time that Linux grants this process's control group, such as 2.5; None: no bound.

    Sources: the kernel's "Control Group v2" (``cpu.max``) and "CFS Bandwidth Control" (version 1); cgroups(7).

    Args:
        proc: the process's folder of procfs.
        groups: where control groups are mounted.
    """
    bounds = []
    for line in _lines(proc / "cgroup"):
        _, kinds, path = line.split(":", 2)
        if not kinds:  # version 2, the only hierarchy without a list of its kinds
            read, top = _quota_of_version_2, groups
        elif "cpu" in kinds.split(","):
            read, top = _quota_of_version_1, groups / "cpu"
        else:
            continue
        group = top / path.strip("/")
        # A container that sees its own group at the top may know it by its path on the host all the same.
        chain = [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
        bounds += [quota for quota in map(read, chain) if quota is not None]
    return min(bounds, default=None)


def _quota_of_version_2(group: Path) -> float | None:
    return _share(" ".join(_lines(group / "cpu.max")).split())


def _quota_of_version_1(group: Path) -> float | None:
    return _share([*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")])


def _share(words: list[str]) -> float | None:
    """Microseconds of ``words[1]``; no quota is ``max`` in version 2, -1 in version 1."""
    if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
        return None
    quota, period = map(int, words)
    return quota / period if quota and period else None


@functools.cache
def _cpuinfo() -> tuple[str, ...]:
    return _lines(Path("/proc/cpuinfo"))


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a file of the system; none where it is not there."""
    try:
        return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def _sysctl(key: str) -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        return subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
