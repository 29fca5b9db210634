"""A script that shuts its own process in, as far as the system can, and becomes pytest.

Its one argument is what :class:`Sandbox` asks for, as JSON. It runs without site-packages and
imports the standard library alone. Python has no names for these numbers of Linux: the names below
are those of the headers ``prctl.h``, ``mount.h``, ``sockios.h`` and ``if.h``.
"""

import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
import sys
from contextlib import suppress

PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 24, 36, 38
CAPABILITIES = range(64)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

TO_READ = MS_RDONLY | MS_NOSUID | MS_NODEV
TO_WRITE = MS_NOSUID | MS_NODEV
DEVICES = ("null", "zero", "full", "random", "urandom")


def enter(spec: dict) -> None:
    """Shut this process in, and become pytest."""
    if spec["contained"]:
        shut_in(spec)
    else:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans stay in the tree that is watched
    with suppress(OSError):
        os.nice(10)
    set_limits(spec["limits"], spec["threads"])
    if spec["contained"]:
        give_up_rights(spec["user"])
    os.execv(spec["arguments"][0], spec["arguments"])


def set_limits(limits: dict, threads: int) -> None:
    """What the system itself can hold; ``threads`` of the same user run already."""
    for name, value in {
        "CORE": 0,
        "CPU": int(2 * limits["seconds"]) + 10,
        "DATA": limits["memory"] + 1_000_000_000,
        "FSIZE": limits["disk"],
        "NOFILE": 512,
        "NPROC": threads + limits["processes"],
    }.items():
        with suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def give_up_rights(user: int | None) -> None:
    """Keep no capability, and become ``user`` where there is one."""
    for capability in CAPABILITIES:
        prctl(PR_CAPBSET_DROP, capability)  # whatever is executed now gets none
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def prctl(*arguments: int) -> None:
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(*arguments, *[0] * (5 - len(arguments)))


def shut_in(spec: dict) -> None:
    """A root folder of our own, with little in it, and a network that leads nowhere."""
    root = spec["root"]
    empty(root, "1m", "755")
    covers = []
    places = [(path, True) for path in spec["visible"]] + [(path, False) for path in spec["hidden"]]
    for path, visible in sorted(places, key=lambda place: (place[0].count("/"), place)):
        if not visible:
            if os.path.isdir(root + path):
                empty(root + path, "1m", "755")
                covers.append(root + path)
        elif os.path.islink(path) and not os.path.lexists(root + path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.exists(path):
            show(path, root + path)
    for path in covers:
        mount(None, path, None, MS_REMOUNT | MS_BIND | TO_READ)
    for device in DEVICES:
        os.makedirs(f"{root}/dev", exist_ok=True)
        open(f"{root}/dev/{device}", "x").close()
        mount(f"/dev/{device}", f"{root}/dev/{device}", None, MS_BIND)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for path in ("/dev/shm", "/tmp"):
        empty(root + path, "64m", "1777")
    os.makedirs(root + "/proc")
    mount("proc", root + "/proc", "proc", TO_WRITE | MS_NOEXEC)
    for path in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"):
        if os.path.exists(root + path):
            show(root + path, root + path, TO_READ | MS_NOEXEC)
    show(spec["folder"], root + "/grading", TO_WRITE)
    for name, path in spec["lent"].items():
        show(path, f"{root}/grading/{name}")
    with socket.socket() as wire:  # the kernel is spoken to over loopback
        fcntl.ioctl(wire, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    mount(None, root, None, MS_REMOUNT | MS_BIND | TO_READ)
    os.chroot(root)
    os.chdir("/grading")


def show(source: str, target: str, flags: int = TO_READ) -> None:
    """A file or folder, seen at another place too."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "x").close()
    mount(source, target, None, MS_BIND | MS_REC)
    try:
        mount(None, target, None, MS_REMOUNT | MS_BIND | flags)
    except PermissionError:  # what was mounted so has to stay so
        mount(None, target, None, MS_REMOUNT | MS_BIND | flags | MS_NOEXEC)


def empty(target: str, size: str, mode: str) -> None:
    """An empty folder in memory."""
    os.makedirs(target, exist_ok=True)
    mount("tmpfs", target, "tmpfs", TO_WRITE, f"size={size},mode={mode}")


def mount(source, target: str, kind, flags: int, data=None) -> None:
    """``mount(2)``; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    parts = [part if part is None else part.encode() for part in (source, target, kind, data)]
    if libc.mount(*parts[:3], ctypes.c_ulong(flags), parts[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount of {source} at {target}")


if __name__ == "__main__":
    enter(json.loads(sys.argv[1]))
