"""Linux control groups, versions 1 and 2: those of this process, and its share of the cores."""

from __future__ import annotations

from pathlib import Path


def folders(
    controller: str, proc: Path = Path("/proc"), root: Path = Path("/")
) -> list[tuple[Path, int]]:
    """List a controller's cgroups that hold this process, innermost first, and their version.

    In a container the path of /proc/self/cgroup may lie outside of what is mounted; then the mount
    itself is the container's own group.
    """
    try:
        mounts = (proc / "self" / "mountinfo").read_text().splitlines()
        groups = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in mounts:
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            version, own = 2, [g.split(":", 2)[2] for g in groups if g.startswith("0::")]
        elif kind == "cgroup" and controller in options.split()[-1].split(","):
            named = (g.split(":", 2) for g in groups)
            version, own = 1, [path for _, names, path in named if controller in names.split(",")]
        else:
            continue
        base, mount = left.split(" ")[3:5]
        for path in own:
            found += [(f, version) for f in _upwards(root / mount.lstrip("/"), path, base)]
    return found


def _upwards(mount: Path, path: str, base: str) -> list[Path]:
    inside = path[len(base) :] if base != "/" and path.startswith(base) else path
    folder = mount / inside.strip("/")
    if not folder.is_dir():
        return [mount]
    return [folder, *(p for p in folder.parents if p == mount or mount in p.parents)]


def cpu_quota(proc: Path = Path("/proc"), root: Path = Path("/")) -> float | None:
    """Return how many cores the tightest cgroup (version 1 or 2) gives; None: all."""
    found = []
    for folder, version in folders("cpu", proc, root):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            continue  # the root group has none
        if quota.isdigit():  # not max, nor -1
            found.append(int(quota) / int(period))
    return min(found, default=None)
