"""The system calls that Python's library lacks: namespaces, mounts, what a process inherits."""

from __future__ import annotations

import ctypes
import os
import signal

_LIBC = ctypes.CDLL(None, use_errno=True)
_KINDS = {"mnt": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "net": 0x40000000}
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29


def _checked(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def unshare(*kinds: str) -> None:
    """Leave the namespaces of these kinds (mnt, uts, ipc, net) for new ones."""
    flags = sum(_KINDS[kind] for kind in kinds)
    _checked(_LIBC.unshare(flags), f"new namespaces ({', '.join(kinds)})")


def enter(pid: int, *kinds: str) -> None:
    """Join the namespaces of a process."""
    opened = [(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), kind) for kind in kinds]
    for descriptor, kind in opened:  # all are opened first: /proc may be another afterwards
        _checked(_LIBC.setns(descriptor, _KINDS[kind]), f"/proc/{pid}/ns/{kind}")
        os.close(descriptor)


def mount(source: str, target: str, kind: str = "", options: str = "", flags: int = 0) -> None:
    """Mount a file system."""
    given = [text.encode() for text in (source, target, kind)]
    _checked(_LIBC.mount(*given, ctypes.c_ulong(flags), options.encode()), target)


def bind(source: str, target: str) -> None:
    """Show a folder or a file, with what is mounted below it, at another path as well."""
    mount(source, target, flags=_MS_BIND | _MS_REC)


def keep_mounts_private() -> None:
    """Let no later mount of this mount namespace be seen in others."""
    mount("none", "/", flags=_MS_REC | _MS_PRIVATE)


def die_with_parent(parent: int) -> None:
    """Let the calling process be killed when its parent ends, in whatever way; also after exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has ended before it could be asked for
        os._exit(1)


def outlive_parent() -> None:
    """Let the calling process live on when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(0), 0, 0, 0)


def wake_punctually() -> None:
    """Let short sleeps end in time, in this process and all that it starts.

    Many ranks share a core here that on real devices would have one each: they sleep while they
    wait, and Linux lets each sleep last 50 microseconds longer, to save power.
    """
    _LIBC.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1000), 0, 0, 0)
