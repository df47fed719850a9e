"""How many processors a process may keep busy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from repq.machine import cpu
from repq.machine.cpu import cpu_cores, cpu_quota


def written(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5, id="version 2, a container's own view"),
        pytest.param("0::/docker/1f\n", {"cpu.max": "50000 100000\n"}, 0.5, id="version 2, known by the host's path"),
        pytest.param(
            "0::/a.slice/b.scope\n",
            {"a.slice/b.scope/cpu.max": "max 100000\n", "a.slice/cpu.max": "300000 100000\n"},
            3.0,
            id="version 2, a bound further up",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "150000 50000\n", "c/cpu.max": "1 100000\n"},
            3.0,
            id="version 2, the least of a chain",
        ),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="version 2, no bound"),
        pytest.param(
            "9:cpuset:/x\n3:cpu,cpuacct:/x\n0::/\n",
            {"cpu/x/cpu.cfs_quota_us": "150000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            1.5,
            id="version 1",
        ),
        pytest.param(
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
            id="version 1, no bound",
        ),
        pytest.param("9:cpuset:/x\n", {"x/cpu.max": "1 100000\n"}, None, id="no group for processors"),
        pytest.param("0::/with:colon\n", {"with:colon/cpu.max": "200000 100000\n"}, 2.0, id="a name with a colon"),
        pytest.param("0::/\n", {"cpu.max": "nonsense\n"}, None, id="another form"),
        pytest.param("0::/\n", {"cpu.max": "0 0\n"}, None, id="zeros"),
        pytest.param("", {}, None, id="nothing there"),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    written(tmp_path / "proc", {"cgroup": cgroup})
    written(tmp_path / "groups", {"unused": "", **files})
    assert cpu_quota(tmp_path / "proc", tmp_path / "groups") == quota


def test_a_system_without_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "proc", tmp_path / "groups") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 5), (0.3, 1), (1.0, 1), (2.9, 2), (5.0, 5), (64.0, 5)])
def test_a_quota_bounds_the_processors(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    assert cpu_cores() == cores
