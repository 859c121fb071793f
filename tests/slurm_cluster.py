"""A SLURM cluster of two nodes on this machine, made of the distribution's own packages.

Nothing is installed and no name is left behind: a node is a process with its own network, host
name, processes, /tmp and /dev/shm, which sees the packages' files over its /usr. When that process
ends, with the test or with the test's death, everything that it started ends too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "libpmix2")
NODES = ("node1", "node2")
ADDRESSES = ("10.99.6.1", "10.99.6.2")
CORES, MEMORY = 2, 2000  # of a node, as SLURM counts them; MiB

# Both nodes compute on the same cores and nobody else can reach them, so neither binding of tasks
# nor keys are needed; the rest is what a small site would write.
SETTINGS = """\
ClusterName=tpimpi
SlurmctldHost={node}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# The first process of a node. What it needs of the machine's /tmp is bound into its own: two
# daemons of PMIx in one /tmp take each other's files.
NODE = """\
set -e
name=$1 hosts=$2 packages=$3 stage=$4
shift 4
hostname "$name"
ip link set lo up
mount --bind "$hosts" /etc/hosts
mount -t overlay overlay -o "lowerdir=$packages/usr:/usr" /usr
mount -t tmpfs tmp "$stage"
chmod 1777 "$stage"
for path in "$@"; do
    mkdir -p "$stage/${path#/tmp/}"
    mount --rbind "$path" "$stage/${path#/tmp/}"
done
mount --move "$stage" /tmp
mount -t tmpfs shm /dev/shm
echo ready
sleep infinity & wait
"""


class Unavailable(Exception):
    """Say in a sentence why there can be no cluster on this machine."""


def fetch(folder: Path) -> Path:
    """Return the folder with the packages' files, downloaded and unpacked once."""
    for tool in ("apt-get", "dpkg-deb", "ip", "unshare", "nsenter", "setpriv"):
        if not shutil.which(tool):
            raise Unavailable(f"{tool} is needed for the packages of SLURM and its nodes")
    root = folder / "root"
    if root.exists():
        return root
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    _download(folder, archives)
    unpacked = folder / f"root.{os.getpid()}"
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    for name in ("slurmctld", "slurmd", "slurmstepd"):  # else links that an installation makes
        if not (unpacked / "usr/sbin" / name).exists():
            (unpacked / "usr/sbin" / name).symlink_to(f"{name}-wlm")
    for library in unpacked.glob("usr/lib/*/pmix2/lib/libpmix.so.2"):  # srun opens it by this name
        library.with_name("libpmix.so").symlink_to(library.name)
    unpacked.rename(root)
    return root


def _download(folder: Path, archives: Path) -> None:
    """Let apt fetch the packages and what they need, first by the machine's own lists of them."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    ours = ["-o", f"Dir::State::Lists={lists}"]
    install = ["install", "--download-only", "--reinstall", "--no-install-recommends", "-y"]

    def apt(*arguments) -> str | None:
        common = ["-o", f"Dir::Cache::Archives={archives}", "-o", "APT::Sandbox::User=root"]
        done = subprocess.run(
            ["apt-get", "-q", *common, *arguments], capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
        return (errors or ["it does not say why"])[0] if done.returncode else None

    if apt(*install, *PACKAGES) is None:
        return
    reason = apt("update", "-o", "APT::Update::Error-Mode=any", *ours)
    reason = reason or apt(*install, *ours, *PACKAGES)
    if reason:
        raise Unavailable(f"apt-get can't download the packages of SLURM: {reason}")


class Cluster:
    """Two nodes with their daemons, from `__enter__` to `__exit__`.

    folder: of the daemons' state and logs, for this cluster alone; shared: folders that the nodes
    must see where they lie in /tmp. Raises Unavailable where the machine doesn't allow it.
    """

    def __init__(self, folder: Path, packages: Path, shared: tuple[Path, ...]):
        self.folder, self._packages, self._shared = folder, packages, (folder, *shared)
        self._processes: list[subprocess.Popen] = []
        self._nodes: list[int] = []  # the first process of each

    def __enter__(self) -> Cluster:
        if os.geteuid() != 0:
            raise Unavailable("only root can make namespaces for the nodes of SLURM")
        try:
            self._make_nodes()
            self._start_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for process in reversed(self._processes):
            process.kill()
        for process in self._processes:
            process.wait()
            process.stdout.close()

    def _make_nodes(self) -> None:
        hosts, stage = self.folder / "hosts", self.folder / "stage"
        lines = [f"{a} {n}\n" for a, n in zip(ADDRESSES, NODES, strict=True)]
        hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
        stage.mkdir()
        paths = [str(p) for p in self._shared if p.is_relative_to("/tmp") and p.exists()]
        for name in NODES:
            spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc", "--kill-child"]
            arguments = [name, hosts, self._packages, stage, *paths]
            self._start(["unshare", *spaces, "sh", "-c", NODE, "sh", *arguments])
            outer = self._processes[-1]
            if outer.stdout.readline() != "ready\n":
                raise Unavailable(f"no namespaces or overlays here: {self._log().read_text()}")
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
            self._nodes.append(int(children))
        ends = [f"eth0 netns {node}".split() for node in self._nodes]
        self._machine("ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for node, address in enumerate(ADDRESSES):
            self._in(node, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            self._in(node, "ip", "link", "set", "eth0", "up")

    def _start_daemons(self) -> None:
        settings = SETTINGS.format(node=NODES[0], address=ADDRESSES[0], folder=self.folder)
        for name, address in zip(NODES, ADDRESSES, strict=True):
            settings += f"NodeName={name} NodeAddr={address} CPUs={CORES} RealMemory={MEMORY}\n"
            (self.folder / "spool" / name).mkdir(parents=True)
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(settings)
        self._start(self._entering(0, "slurmctld", "-D"))
        for node, name in enumerate(NODES):
            self._start(self._entering(node, "slurmd", "-D", "-N", name))
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-o", "%D %t").stdout.split() != [str(len(NODES)), "idle"]:
            if time.monotonic() > deadline:
                logs = "".join(p.read_text() for p in sorted(self.folder.glob("*.log")))
                raise RuntimeError(f"the nodes of SLURM don't become idle:\n{logs}")
            time.sleep(0.1)

    def _log(self) -> Path:
        return self.folder / "processes.log"

    def _start(self, command) -> None:
        with self._log().open("a") as log:
            # It dies with this process, whatever that dies of.
            self._processes.append(subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment({}),
            ))  # fmt: skip

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        # The launcher's variables of this process would be the job's.
        own = re.compile("SLURM|SBATCH|SRUN|PMI|OMPI|PRTE|HYDI|MPI_")
        kept = {k: v for k, v in os.environ.items() if not own.match(k)}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")} | more

    def _entering(self, node: int, *command) -> list[str]:
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid"]
        return ["nsenter", "--target", str(self._nodes[node]), *spaces, *map(str, command)]

    def _machine(self, *command) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{' '.join(map(str, command))}: {done.stderr.strip()}")

    def _in(self, node: int, *command) -> None:
        self._machine(*self._entering(node, *command))

    def run(self, *command, folder: Path | None = None, seconds: float = 120, **environment):
        """Run a command on the first node, as a user of the cluster; return it finished."""
        change = ["sh", "-c", 'cd "$0" && exec "$@"', folder or self.folder]
        return subprocess.run(
            self._entering(0, *change, *command), capture_output=True, text=True, check=False,
            timeout=seconds, stdin=subprocess.DEVNULL, env=self._environment(environment),
        )  # fmt: skip

    def submit(self, script: Path, *arguments, options=(), **environment) -> str:
        """Give a script to sbatch; return the number of its job."""
        done = self.run("sbatch", "--parsable", *options, script, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, job: str, seconds: float = 120) -> int:
        """Wait for a job's end; return its exit code, of an array the largest of its tasks'."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.run("scontrol", "-o", "show", "job", job).stdout
            states = set(re.findall(r"JobState=(\w+)", shown))
            if states and not states & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}:
                break
            if time.monotonic() > deadline:
                self.run("scancel", job)
                raise TimeoutError(f"job {job} has not ended after {seconds} s:\n{shown}")
            time.sleep(0.1)
        assert states <= {"COMPLETED", "FAILED"}, shown
        return max(int(code) for code in re.findall(r"ExitCode=(\d+):", shown))


def here() -> tuple[Path, ...]:
    """Return the folders that the program and its Python lie in."""
    return (Path(__file__).parent.parent, Path(sys.prefix), Path(sys.base_prefix))
