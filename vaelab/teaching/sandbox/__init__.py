"""Runs a notebook that nobody vouches for, and comes back whatever the notebook does.

:class:`Sandbox`, in the grader's process, starts a run and watches it from outside: time, memory,
processes, disk. ``jail.py`` is the script that it starts: a warden, which leaves nothing of the run
alive, and the run itself, which shuts itself in and becomes pytest. ``walls.py`` holds the walls
that need no rights (Landlock, seccomp). ``plugin.py`` is a plugin of that pytest: it watches nbval
from within, since nbval itself waits long for a kernel that is dead.

The strongest containment that the system grants is used: namespaces of Linux (no network, no other
process, and of the files only the system's, Python's and its own folder); or Landlock (the same
files, and no signal to other processes). In both, seccomp refuses networks, keyrings and other
processes' memory. :attr:`Sandbox.contained` says which it is; where it is None, the limits
are all there is, and :attr:`Sandbox.why` says why.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import walls

__all__ = ["Ending", "Limits", "Sandbox", "protected", "read_untrusted", "walls_of_this_machine"]

ETC = "alternatives fonts group hosts ld.so.cache ld.so.conf ld.so.conf.d localtime nsswitch.conf"
VISIBLE = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/passwd"]
VISIBLE += [f"/etc/{name}" for name in ETC.split()]
USERS = range(61184, 65184)  # systemd leaves these to passing users, as we do
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
JAIL = Path(__file__).with_name("jail.py").resolve()
OWN_FILES = {"sandbox_plugin.py": "plugin.py", "sandbox_walls.py": "walls.py"}
DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
SYSTEM = ["/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm", "/sys/devices/system/cpu"]
# No backend of matplotlib is asked for by a magic: what only draws must not cost an answer.
STARTUP = """from IPython.core.magic import register_line_magic
@register_line_magic
def matplotlib(line): pass
del matplotlib, register_line_magic
"""
PROBE = """
import ctypes, os, socket
try:
    open({canary!r}).close(); raise SystemExit("a file outside can be read")
except OSError: pass
try:
    socket.create_connection(("127.0.0.1", 9), 1); raise SystemExit("there is a network")
except OSError: pass
open("probe", "w").close()
print("contained")
"""


@dataclass(frozen=True)
class Limits:
    """What a submission may use.

    Parameters
    ----------
    seconds
        Wall-clock time of a notebook, all its runs together.
    cell_seconds
        Wall-clock time of a cell.
    memory
        Bytes, all its processes together.
    processes
        Its processes and their threads.
    output
        Characters that its cells may print in a run.
    disk
        Bytes in its folder.
    """

    seconds: float = 300
    cell_seconds: float = 60
    memory: int = 2_000_000_000
    processes: int = 150
    output: int = 2_000_000
    disk: int = 200_000_000

    def __post_init__(self):
        for name, value in asdict(self).items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} is {value!r}; a limit of a run is a finite number above 0."
                )


@dataclass
class Ending:
    """How a run ended.

    Parameters
    ----------
    reason
        "done": the last cell was reached and is over. Or what ended the run before: "seconds",
        "memory", "processes", "disk", "output", "died" (the kernel), "hung" (a cell that could not
        be interrupted), "failed" (pytest).
    cell
        The code cell that ran last, counted from 0.
    errors
        What stopped a cell, by cell: "ValueError: …". The submission's own words: not to be
        trusted, only shown.
    seconds
        Seconds of wall-clock time.
    said
        The end of what pytest said, for the instructor.
    """

    reason: str
    cell: int | None = None
    errors: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    said: str = ""


class Sandbox:
    """Where notebooks run.

    Parameters
    ----------
    limits
        Limits of a run.
    hidden
        Folders that no run may see, even below one that it does see.
    lent
        Folders that a run may read, by the name that they have in its own folder.
    contain
        Whether to use the system's containment where it has one.

    Attributes
    ----------
    contained
        The containment that works here; None where there is none.
    why
        Why each stronger containment does not work here.
    """

    def __init__(self, limits=None, hidden=(), lent=None, contain: bool = True):
        self.limits = limits or Limits()
        self.hidden = {str(Path(path).resolve()) for path in hidden} | set(_other_copies())
        self.hidden = sorted(self.hidden - set(_visible()) - {"/"})
        self.lent = {n: str(Path(p).resolve()) for n, p in (lent or {}).items() if Path(p).is_dir()}
        self.contained: _Way | None = None
        self.why: list[str] = []
        for way in _ways() if contain else ():
            self.contained = way
            reason = self._fails()
            if reason is None:
                break
            self.why.append(f"{way.name}: {reason}")
            self.contained = None
        if contain and not self.contained and not self.why:
            self.why.append("This system is not Linux.")

    def run(self, folder: Path, notebook: str, seconds: float, number=0, stop=None) -> Ending:
        """Run a notebook under nbval.

        Parameters
        ----------
        folder
            All that it may write to.
        notebook
            Its path in that folder.
        seconds
            What is left for it, by the clock.
        number
            Runs at the same time have different ones: each gets a user of its own, for root.
        stop
            An event; once it is set the run is killed, and KeyboardInterrupt raised.
        """
        started = time.monotonic()
        cell_seconds = f"{min(self.limits.cell_seconds, seconds):g}"
        report = folder / "report.jsonl"
        report.touch()
        arguments = [sys.executable, "-m", "pytest", notebook, "-q", "--nbval-lax", "-s"]
        arguments += ["--nbval-current-env", "--nbval-cell-timeout", cell_seconds, "--tb=short"]
        arguments += ["--nbval-kernel-startup-timeout", f"{math.ceil(seconds)}"]
        arguments += ["-p", "nbval.plugin", "-p", "sandbox_plugin", "-p", "no:cacheprovider"]
        arguments += ["-c", "/dev/null", "--rootdir=.", "--confcutdir=."]
        for name, source in OWN_FILES.items():
            (folder / name).write_bytes(JAIL.with_name(source).read_bytes())
        startup = folder / "home" / "profile_default" / "startup" / "00.py"
        startup.parent.mkdir(parents=True)
        startup.write_text(STARTUP)
        cells = json.loads((folder / notebook).read_bytes())["cells"]
        last = sum(cell["cell_type"] == "code" for cell in cells) - 1
        with tempfile.TemporaryFile() as log:  # it lies where no run could put a link
            with self._started(folder, arguments, seconds, number, log, log) as (process, group):
                reason = self._watch(process, folder, group, log, started + seconds, stop)
            log.seek(-min(1000, log.seek(0, os.SEEK_END)), os.SEEK_END)
            said = log.read(1000).decode(errors="replace")
        ending = _read_report(report, last)
        ending.seconds, ending.said = time.monotonic() - started, said
        if reason != "done":
            ending.reason = reason
        elif ending.reason == "done" and process.returncode not in (0, 1):
            ending.reason = "failed"
        return ending

    @contextmanager
    def _started(self, folder: Path, arguments, seconds: float, number: int, stdout, stderr):
        """A warden and its run; whatever happens, nothing of them is left afterwards."""
        own = Path(tempfile.mkdtemp(prefix="root-", dir=folder.parent))
        way = self.contained or _Way("no containment", drop=_is_root())
        user = USERS[(os.getpid() * 61 + number) % len(USERS)] if way.drop else None
        if not way.namespaces:
            for name, path in self.lent.items():
                with suppress(FileExistsError):
                    (folder / name).symlink_to(path)
        for name in ("home", "tmp"):
            (folder / name).mkdir(exist_ok=True)
        if user:
            folder.parent.chmod(0o711)  # its own folder is the only name below that it knows
            folder.chmod(0o700)
            for path in (folder, *folder.rglob("*")):  # made by us, no link of others among it
                os.chown(path, user, user, follow_symlinks=False)
        here = "/grading" if way.namespaces else str(folder)
        read, listed = _grants([*_visible(), *self.lent.values()], self.hidden)
        group = _Group.make(self.limits)
        spec = {
            "limits": asdict(self.limits) | {"seconds": seconds},
            "arguments": arguments,
            "command": list(way.command),
            "namespaces": way.namespaces,
            "landlock": way.landlock,
            "root": str(own),
            "folder": str(folder),
            "visible": _visible(),
            "hidden": [*self.hidden, str(folder.parent)],
            "lent": self.lent,
            "read": [*read, *SYSTEM],
            "list": listed,
            "write": [str(folder), *DEVICES],
            "needed": [sys.executable, sys.prefix, sys.base_prefix, *self.lent.values()],
            "user": user,
            "threads": 0 if user else _threads_of_this_user(),
            "cgroups": [str(group.path)] if group else [],
        }
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": f"{here}/home",
            "TMPDIR": f"{here}/tmp",
            "PYTHONPATH": here,
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "IPYTHONDIR": f"{here}/home",
            "JUPYTER_RUNTIME_DIR": f"{here}/tmp",
            "JUPYTER_PLATFORM_DIRS": "1",
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": f"{here}/home",
            "VAELAB_DATA": f"{here}/data",
            "VAELAB_GRADING": here,
            "SANDBOX_OUTPUT": str(self.limits.output),
            "SANDBOX_SOCKETS": "unix" if sys.platform.startswith("linux") else "tcp",
            "SANDBOX_KERNEL": "filtered" if walls.has_seccomp() else "plain",
            "LANG": "C.UTF-8",
        }
        environment |= {f"{k}_NUM_THREADS": "1" for k in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(JAIL), "outside", json.dumps(spec)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,  # never written to: it ends when the grader does
            start_new_session=True,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            yield process, group
        finally:
            _kill(process)
            if group:
                group.remove()

    def _fails(self) -> str | None:
        """Why this containment does not work here, found by trying it; None if it works."""
        with tempfile.TemporaryDirectory(prefix="vaelab-") as scratch:
            folder = Path(scratch, "run")
            folder.mkdir()
            canary = Path(scratch, "canary")
            canary.touch()
            arguments = [sys.executable, "-I", "-c", PROBE.format(canary=str(canary))]
            with tempfile.TemporaryFile() as log:
                try:
                    with self._started(folder, arguments, 60, 0, log, log) as (process, _):
                        process.wait(60)
                except (OSError, subprocess.SubprocessError) as error:
                    return str(error)
                log.seek(0)
                said = log.read(10_000).decode(errors="replace").strip().splitlines()
        said = said[-1] if said else "it ended without a word"
        return None if said == "contained" else said

    def _watch(self, process, folder: Path, group, log, deadline: float, stop) -> str:
        """Wait for the end of a run, or for what it has too much of."""
        import psutil

        checks = 0
        while process.poll() is None:
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                return "seconds"
            members = _tree(process.pid)
            n = 0
            for member in members:
                with suppress(psutil.Error):
                    n += member.num_threads()
            if (group.memory() if group else _memory(members)) > self.limits.memory:
                return "memory"
            if n > self.limits.processes + 1:  # the warden
                return "processes"
            checks += 1
            if checks % 10 == 0:
                written = os.fstat(log.fileno()).st_size + _unlinked(members)
                if written + _size(folder, self.limits.disk) > self.limits.disk:
                    return "disk"
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        return "memory" if group and group.overran() else "done"


@dataclass(frozen=True)
class _Way:
    """A way to contain a run.

    ``command`` makes the namespaces; ``drop`` is for root: a run becomes a user without rights.
    """

    name: str
    command: tuple[str, ...] = ()
    namespaces: bool = False
    landlock: bool = False
    drop: bool = False


def _ways():
    """Ways to contain a run, the strongest first."""
    if not sys.platform.startswith("linux"):
        return
    root = _is_root()
    kinds = ("net", "pid", "mount", "ipc", "uts")
    command = ("unshare", *(f"--{kind}" for kind in kinds), "--fork", "--kill-child")
    if root:
        yield _Way("namespaces, made by root", command, namespaces=True, drop=True)
    own = (*command, "--user", "--map-root-user")
    yield _Way("namespaces of an ordinary user", own, namespaces=True)
    yield _Way(f"Landlock (ABI {walls.landlock_abi()}) and seccomp", landlock=True, drop=root)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


@contextmanager
def protected(wanted: bool = True):
    """Meanwhile other processes of this user can't look into this one: its memory, its secrets."""
    if not wanted or not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    before = libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_DUMPABLE, int(before == 1), 0, 0, 0)


def walls_of_this_machine() -> list[tuple[bool, str]]:
    """What holds a run here, each found by trying it: whether it works, and what to say of it."""
    if not sys.platform.startswith("linux"):
        return [(False, "nothing contains notebooks here: this system is not Linux")]
    said = []
    sandbox = Sandbox(contain=False)
    for way in _ways():
        sandbox.contained = way
        reason = sandbox._fails()
        said.append((reason is None, way.name + (f": {reason}" if reason else "")))
    group = _Group.make(Limits())
    if group:
        group.remove()
    how = "counted by the system (cgroup)" if group else "counted process by process (no cgroup)"
    return [*said, (bool(group), f"memory of a run is {how}")]


def _visible() -> list[str]:
    """The system, and where Python and its packages are."""
    own = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
    own |= {path for path in sys.path if path.endswith("-packages")}
    return VISIBLE + sorted(path for path in own if os.path.isdir(path) and path != "/")


def _other_copies() -> list[str]:
    """This package wherever Python could find it: a run has a copy of its own."""
    name = __name__.partition(".")[0]
    places = {*sys.path, *_visible()}
    places |= {str(path) for v in _visible() for path in Path(v).glob("lib/python*/*-packages")}
    copies = [Path(place, name) for place in places if place]
    return [str(copy.resolve()) for copy in copies if (copy / "teaching").is_dir()]


def _grants(visible: list[str], hidden: list[str]) -> tuple[list[str], list[str]]:
    """What has to be said so that all visible and nothing hidden is read: Landlock can't take back
    a part of what was granted. Returns what is read with all below, and what is only listed."""
    read, listed, todo = [], [], list(visible)
    while todo:
        path = todo.pop()
        where = os.path.realpath(path)
        below = [h for h in hidden if f"{h}/".startswith(f"{where}/")]
        if where in below:
            continue
        if below:
            listed.append(where)
            with suppress(OSError):
                todo += [os.path.join(where, name) for name in os.listdir(where)]
        else:
            read.append(where)
    return read, listed


def _threads_of_this_user() -> int:
    """The system counts a limit of processes over all that one user runs."""
    import psutil

    n = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, AttributeError):
            n += process.num_threads() if process.uids().real == os.getuid() else 0
    return n


# ------------------------------------------------------------------------------------- memory


class _Group:
    """A control group of Linux: it counts the memory of a run in whatever form it is held."""

    def __init__(self, path: Path, unified: bool):
        self.path, self.unified = path, unified

    @classmethod
    def make(cls, limits: Limits) -> _Group | None:
        """A new group below ours; None where the system doesn't let us."""
        most = int(limits.memory * 1.25)  # the watch is to see it first, and to say so
        top = Path("/sys/fs/cgroup")
        places = []
        with suppress(OSError):
            for line in Path("/proc/self/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if controllers == "":
                    places += [(top / path.lstrip("/"), True), (top, True)]
                elif "memory" in controllers.split(","):
                    places.append((top / "memory" / path.lstrip("/"), False))
        for where, unified in places:
            with suppress(OSError):
                group = cls(Path(tempfile.mkdtemp(prefix="vaelab-", dir=where)), unified)
                try:
                    limit = "memory.max" if unified else "memory.limit_in_bytes"
                    if (group.path / limit).exists():  # nothing may be made there but by the system
                        (group.path / limit).write_text(str(most))
                        group.memory()
                        return group
                except (OSError, ValueError, KeyError):
                    pass
                group.remove()
        return None

    def memory(self) -> int:
        """Bytes in use, without files that the system keeps to read them faster."""
        try:
            used = int(self._read("memory.current" if self.unified else "memory.usage_in_bytes"))
            rows = dict(line.split() for line in self._read("memory.stat").splitlines())
        except OSError:  # it is over, and its group gone
            return 0
        total = "" if self.unified else "total_"
        return used - sum(int(rows[f"{total}{kind}_file"]) for kind in ("active", "inactive"))

    def overran(self) -> bool:
        """True if the system had to kill a process."""
        name = "memory.events" if self.unified else "memory.oom_control"
        with suppress(OSError):
            return any(
                line.startswith("oom_kill ") and line != "oom_kill 0"
                for line in self._read(name).splitlines()
            )
        return False

    def remove(self) -> None:
        for _ in range(50):  # the system may still be clearing up
            with suppress(OSError):
                self.path.rmdir()
            if not self.path.exists():
                return
            time.sleep(0.02)

    def _read(self, name: str) -> str:
        return (self.path / name).read_text()


def _memory(members: list) -> int:
    """Bytes that these processes hold, memory that they share among them."""
    import psutil

    used = 0
    for member in members:
        with suppress(psutil.Error, OSError):
            used += _rows(f"/proc/{member.pid}/status", "RssAnon", "RssShmem")
    if not used:  # not Linux
        for member in members:
            with suppress(psutil.Error):
                used += member.memory_info().rss
        return used
    if used < 500_000_000:
        return used
    shared = 0  # dearer to count: each page in parts, one for each process that has it
    for member in members:
        with suppress(OSError):
            shared += _rows(f"/proc/{member.pid}/smaps_rollup", "Pss_Anon", "Pss_Shmem")
    return shared or used


def _rows(path: str, *names: str) -> int:
    with open(path) as file:
        rows = (line.split() for line in file)
        return 1024 * sum(int(row[1]) for row in rows if row[0].rstrip(":") in names)


# ---------------------------------------------------------------------------------- processes


def _tree(pid: int) -> list:
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    return []


def _kill(process) -> None:
    """End the warden, and with it the run; if it can't do its work, do it from here."""
    import psutil

    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
        return
    for _ in range(100):
        *started, _first = _tree(process.pid) or [None]
        if not started:
            break
        for member in started:
            with suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(started, timeout=0.2)
    process.kill()
    process.wait()


def _size(folder: Path, enough: int) -> int:
    """Bytes in a folder, counted until they are enough."""
    total = 0
    with suppress(RecursionError):  # folders in folders, by the thousand
        for where, folders, files in os.walk(folder):
            total += 4096 * len(folders)
            for file in files:
                with suppress(OSError):
                    total += 4096 + os.lstat(os.path.join(where, file)).st_blocks * 512
            if total > enough:
                break
        return total
    return enough + 1


def _unlinked(members: list) -> int:
    """Bytes in files that these processes hold open and no folder shows any more."""
    sizes = {}
    for member in members:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{member.pid}/fd"):
                with suppress(OSError):
                    about = os.stat(f"/proc/{member.pid}/fd/{name}")
                    if stat.S_ISREG(about.st_mode) and not about.st_nlink:
                        sizes[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(sizes.values())


def read_untrusted(path: Path, most: int, cut: bool = False) -> bytes:
    """A file of a stranger's: an ordinary one, no link out of its folder, and not too large.

    Parameters
    ----------
    most
        The bytes that it may have.
    cut
        Return one byte more than ``most`` of a larger file instead of an error.

    Raises
    ------
    OSError
        It is none of these.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a file")
        content = file.read(most + 1)
    if len(content) > most and not cut:
        raise OSError(errno.EFBIG, f"{path.name} is larger than {most} bytes")
    return content


def _read_report(path: Path, last: int) -> Ending:
    """What the run says of itself, as far as it makes sense: it could have written anything."""
    ending, finished, lines = Ending("failed"), None, []
    with suppress(OSError):
        lines = read_untrusted(path, 2_000_000).splitlines()
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or type(entry.get("cell")) is not int:
            continue
        if not 0 <= entry["cell"] <= last:
            continue
        ending.cell = entry["cell"]
        if isinstance(entry.get("error"), str):
            ending.errors[ending.cell] = entry["error"][:500]
        if entry.get("finished") is True:
            finished = ending.cell
        if entry.get("reason") in ("died", "hung", "output"):
            ending.reason = entry["reason"]
    if ending.reason == "failed" and finished == last:
        ending.reason = "done"
    return ending
