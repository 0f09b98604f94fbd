"""What the system says is free, read from files as Linux has them."""

from pathlib import Path

from crestline.training.machine import Memory, gpu_memory, memory, processors

GB = 10**9


def system(root: Path, available: int, groups: str = "0::/\n", **files: str) -> Path:
    """A root with /proc/meminfo and control groups; files: by path, with __ for /."""
    told = {
        "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n",
        "proc/self/cgroup": groups,
        **{name.replace("__", "/"): text for name, text in files.items()},
    }
    for name, text in told.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_containers(tmp_path: Path) -> None:
    assert memory(system(tmp_path, 8 * 1024**3)) == Memory(free=8 * 1024**3)
    assert memory(tmp_path / "nowhere") is None


def test_a_containers_limit_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    root = system(tmp_path, 64 * GB)
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{8 * GB}\n")
    (group / "memory.current").write_text(f"{5 * GB}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {GB}\n")
    assert memory(root) == Memory(free=4 * GB, limit=8 * GB)
    (group / "memory.max").write_text("max\n")
    found = memory(root)
    assert found is not None and found.limit is None


def test_the_tightest_of_nested_groups_of_the_first_version(tmp_path: Path) -> None:
    root = system(tmp_path, 64 * GB, "9:cpu:/\n4:memory:/docker/a\n0::/\n")
    for name, limit, usage in (
        ("", 1 << 62, 9 * GB),
        ("docker", 6 * GB, 3 * GB),
        ("docker/a", 2 * GB, GB),
    ):
        group = root / "sys/fs/cgroup/memory" / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "memory.usage_in_bytes").write_text(str(usage))
        (group / "memory.stat").write_text("total_inactive_file 0\n")
    assert memory(root) == Memory(free=GB, limit=2 * GB)


def test_a_share_of_the_processors(tmp_path: Path) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    groups.mkdir(parents=True)
    assert processors(tmp_path) >= 1
    (groups / "cpu.max").write_text("50000 100000\n")
    assert processors(tmp_path) == 0.5
    (groups / "cpu.max").write_text("max 100000\n")
    assert processors(tmp_path) >= 1


def test_no_such_gpu() -> None:
    assert gpu_memory("cuda:4711") is None
