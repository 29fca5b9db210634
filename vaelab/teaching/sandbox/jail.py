"""A script that starts a run, watches over its processes, and shuts it in as far as the system can.

Its one argument is what :class:`Sandbox` asks for, as JSON. It runs without site-packages and
imports the standard library alone. It is two programs. The *warden* stays outside, with the rights
that the grader has: it starts the other one, and when that ends or the grader does, it kills all
that is left. The other one shuts itself in and becomes pytest.

Python has no names for these numbers of Linux: the names below are those of the headers
``prctl.h``, ``capability.h``, ``mount.h`` and ``keyctl.h``.
"""

import ctypes
import json
import os
import resource
import select
import signal
import stat
import struct
import subprocess
import sys
import time
from contextlib import suppress

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import walls  # -I leaves a script's own folder out

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_DROP = 1, 8, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAPABILITIES, CAP_DAC_READ_SEARCH, CAPABILITY_VERSION_3 = range(64), 2, 0x20080522
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1

TO_READ = MS_RDONLY | MS_NOSUID | MS_NODEV
TO_WRITE = MS_NOSUID | MS_NODEV
DEVICES = ("null", "zero", "full", "random", "urandom")
STRANGERS = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")  # where anybody may leave a file


# --------------------------------------------------------------------------------- the warden


def watch_over(spec: dict) -> int:
    """Start a run, and come back when nothing is left of it."""
    grader = os.getppid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # whoever loses its parent becomes ours
    for group in spec["cgroups"]:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
    command = [*spec["command"], sys.executable, "-I", "-S", __file__, "inside", sys.argv[2]]
    before = shared_memory()
    run = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    code = 1
    while True:
        ready, _, _ = select.select([0], [], [], 0.05)
        if ready and not os.read(0, 1):  # the grader is done with it, or is no more
            break
        if run.poll() is not None:
            code = run.returncode
            break
    kill_all(spec)
    if not spec["namespaces"]:
        for kind, number in shared_memory() - before:
            remove_shared(kind, number, spec["user"])
        if spec["user"] and not spec["landlock"]:
            for place in STRANGERS:
                sweep(place, spec["user"])
    if os.getppid() != grader:  # killed: nobody else clears up
        clear_up(spec)
    return code


def clear_up(spec: dict) -> None:
    """Remove the folder and the control group of a run whose grader is no more."""
    scratch = os.path.dirname(spec["folder"])
    if os.path.basename(scratch).startswith("vaelab-"):
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, "--", scratch], stderr=subprocess.DEVNULL)
    for group in spec["cgroups"]:
        with suppress(OSError):
            with open(f"{os.path.dirname(group)}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            os.rmdir(group)


def kill_all(spec: dict) -> None:
    """Until no process is left that this one, or one of its, has started."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if spec["user"] and os.geteuid() == 0:  # at one stroke: nothing can be forked meanwhile
            killer = os.fork()
            if killer == 0:
                become(spec["user"])
                with suppress(OSError):
                    os.kill(-1, signal.SIGKILL)
                os._exit(0)
            with suppress(ChildProcessError):
                os.waitpid(killer, 0)
        left = below(os.getpid())
        for process in left:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.005)


def below(process: int) -> list[int]:
    """The processes that have this one as an ancestor."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError, ValueError, IndexError):
                    with open(f"/proc/{name}/stat", "rb") as file:
                        parent = int(file.read().rpartition(b")")[2].split()[1])
                    children.setdefault(parent, []).append(int(name))
    found, todo = [], [process]
    while todo:
        some = children.get(todo.pop(), [])
        found += some
        todo += some
    return found


def shared_memory() -> set[tuple[str, int]]:
    """What of System V outlives processes: kind and number."""
    found = set()
    for kind in ("shm", "sem", "msg"):
        with suppress(OSError, ValueError, IndexError), open(f"/proc/sysvipc/{kind}") as table:
            found |= {(kind, int(line.split()[1])) for line in table.readlines()[1:]}
    return found


def remove_shared(kind: str, number: int, user: int | None) -> None:
    """Remove one, if it is the run's: of its user, or memory that a process left that is gone."""
    with suppress(OSError, ValueError), open(f"/proc/sysvipc/{kind}") as table:
        columns = table.readline().split()
        rows = [dict(zip(columns, map(int, line.split()), strict=False)) for line in table]
        row = next(row for row in rows if row[f"{kind}id" if kind != "msg" else "msqid"] == number)
        left = kind == "shm" and not os.path.exists(f"/proc/{row['cpid']}")
        if row["uid"] == (user or os.getuid()) and (user or left):
            remove = getattr(ctypes.CDLL(None), f"{kind}ctl")
            remove(number, 0, 0) if kind == "sem" else remove(number, 0, None)


def sweep(place: str, user: int) -> None:
    """Remove what this user left where anybody may write."""
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if found.st_uid == user:
                subprocess.run(["rm", "-rf", "--", entry.path], stderr=subprocess.DEVNULL)
            elif stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IWOTH:
                sweep(entry.path, user)


# ----------------------------------------------------------------------------------- the run


def enter(spec: dict) -> None:
    """Shut this process in, and become pytest."""
    with suppress(KeyError):  # a session keyring of its own, empty
        ctypes.CDLL(None).syscall(KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)
    if spec["namespaces"]:
        shut_in(spec)
    with suppress(OSError):
        os.nice(10)
    set_limits(spec["limits"], spec["threads"])
    read_on = bool(spec["user"]) and not spec["namespaces"] and not is_open(spec["needed"])
    give_up_rights(spec["user"], read_on)
    if spec["landlock"]:
        walls.allow_only(*(spec[kind] for kind in ("read", "list", "write")))
    try:
        walls.filter_calls(ignore=spec["landlock"])
    except OSError:
        if spec["landlock"]:  # its network is not held otherwise
            raise
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user took it away
    os.execv(spec["arguments"][0], spec["arguments"])


def is_open(paths: list[str]) -> bool:
    """True if everybody may enter the folders above these paths, links resolved."""
    for path in paths:
        where = os.path.dirname(os.path.realpath(path))
        while where != "/":
            if not os.stat(where).st_mode & stat.S_IXOTH:
                return False
            where = os.path.dirname(where)
    return True


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


def give_up_rights(user: int | None, read_on: bool) -> None:
    """Keep no capability, and become ``user`` where there is one.

    ``read_on`` keeps a single one: to read where Python lies in a folder of root's.
    """
    for capability in CAPABILITIES:
        if not (read_on and capability == CAP_DAC_READ_SEARCH):
            prctl(PR_CAPBSET_DROP, capability)  # whatever is executed now gets none
    if user:
        prctl(PR_SET_KEEPCAPS, int(read_on))
        become(user)
    if read_on:
        bit = 1 << CAP_DAC_READ_SEARCH
        data = struct.pack("6I", bit, bit, bit, 0, 0, 0)
        ctypes.CDLL(None).capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), data)
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def prctl(*arguments: int) -> None:
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(*arguments, *[0] * (5 - len(arguments)))


def shut_in(spec: dict) -> None:
    """A root folder of our own, with little in it."""
    root = spec["root"]
    empty(root, "1m", "755")
    for path in ("/dev/shm", "/tmp"):  # before what is shown: Python may lie below them
        empty(root + path, "64m", "1777")
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
    os.makedirs(root + "/proc")
    mount("proc", root + "/proc", "proc", TO_WRITE | MS_NOEXEC)
    for path in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"):
        if os.path.exists(root + path):
            show(root + path, root + path, TO_READ | MS_NOEXEC)
    show(spec["folder"], root + "/grading", TO_WRITE)
    for name, path in spec["lent"].items():
        show(path, f"{root}/grading/{name}")
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
    wanted = json.loads(sys.argv[2])
    if sys.argv[1] == "inside":
        enter(wanted)
    sys.exit(watch_over(wanted))
