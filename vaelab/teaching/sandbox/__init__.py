"""Runs a notebook that nobody vouches for, and comes back whatever the notebook does.

This package holds three programs. :class:`Sandbox`, in the grader's process, starts a run and
watches it from outside: time, memory, processes, disk; it kills all of it when one runs over. It
starts ``jail.py``, a script that shuts itself in and becomes pytest. ``plugin.py`` is a plugin of
that pytest: it watches nbval from within, since nbval itself waits long for a kernel that is dead.

On Linux, where the system lets ordinary users make namespaces (or for root), a run has no network,
sees no process but its own, and of the files only the system's, Python's and its own folder. Where
it has them not, the limits are all there is: :attr:`Sandbox.contained` says which.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Ending", "Limits", "Sandbox", "read_untrusted"]

ETC = "alternatives fonts group hosts ld.so.cache ld.so.conf ld.so.conf.d localtime nsswitch.conf"
VISIBLE = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/passwd"]
VISIBLE += [f"/etc/{name}" for name in ETC.split()]
USERS = range(61184, 65184)  # systemd leaves these to passing users, as we do
JAIL = Path(__file__).with_name("jail.py").resolve()
PLUGIN = Path(__file__).with_name("plugin.py")
PROBE = "import os, socket; socket.create_server(('127.0.0.1', 0)); print('shut in', os.getpid())"


@dataclass(frozen=True)
class Limits:
    """What a submission may use.

    Parameters
    ----------
    seconds
        By the clock, all its runs together.
    cell_seconds
        By the clock, a cell.
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


@dataclass
class Ending:
    """How a run ended.

    Parameters
    ----------
    reason
        "done", or what ended it: "seconds", "memory", "processes", "disk", "output", "died"
        (the kernel), "hung" (a cell that could not be interrupted), "failed" (pytest).
    cell
        The code cell that ran last, counted from 0.
    errors
        What stopped a cell, by cell: "ValueError: …". The submission's own words: not to be
        trusted, only shown.
    seconds
        By the clock.
    """

    reason: str
    cell: int | None = None
    errors: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


class Sandbox:
    """Where notebooks run.

    Parameters
    ----------
    limits
        Of a run.
    hidden
        Folders that no run may see, even below one that it does see.
    lent
        Folders that a run may read, by the name that they have in its own folder.
    contain
        Whether to use the system's containment where it has one.
    """

    def __init__(self, limits=None, hidden=(), lent=None, contain: bool = True):
        self.limits = limits or Limits()
        self.hidden = [str(Path(path).resolve()) for path in hidden]
        self.hidden = [path for path in self.hidden if path not in _visible()]
        self.lent = {n: str(Path(p).resolve()) for n, p in (lent or {}).items() if Path(p).is_dir()}
        self.contained = None
        for candidate in _candidates() if contain else ():
            self.contained = candidate
            if self._works():
                break
            self.contained = None

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
        arguments += ["--nbval-current-env", "--nbval-cell-timeout", cell_seconds, "--tb=no"]
        arguments += ["-p", "nbval.plugin", "-p", "sandbox_plugin", "-p", "no:cacheprovider"]
        arguments += ["-c", "/dev/null", "--rootdir=."]
        (folder / "sandbox_plugin.py").write_bytes(PLUGIN.read_bytes())
        with open(folder / "pytest.log", "wb") as log:
            process = self._start(folder, arguments, seconds, number, stdout=log, stderr=log)
            try:
                reason = self._watch(process, folder, started + seconds, stop)
            finally:
                _kill(process)
        ending = _read_report(report)
        ending.seconds = time.monotonic() - started
        if reason != "done" or (ending.reason == "done" and process.returncode not in (0, 1)):
            ending.reason = reason if reason != "done" else "failed"
        return ending

    def _start(self, folder: Path, arguments, seconds: float, number: int, **streams):
        own = Path(tempfile.mkdtemp(prefix="root-", dir=folder.parent))
        user = None
        if self.contained and self.contained["drop"]:
            user = USERS[number % len(USERS)]
            for path in (folder, *folder.rglob("*")):  # made by us, no link among it
                os.chown(path, user, user, follow_symlinks=False)
        elif not self.contained:
            for name, path in self.lent.items():
                with suppress(FileExistsError):
                    (folder / name).symlink_to(path)
        here = "/grading" if self.contained else str(folder)
        for name in ("home", "tmp"):
            (folder / name).mkdir(exist_ok=True)
            if user:
                os.chown(folder / name, user, user)
        spec = {
            "limits": asdict(self.limits) | {"seconds": seconds},
            "arguments": arguments,
            "here": here,
            "contained": bool(self.contained),
            "root": str(own),
            "folder": str(folder),
            "visible": _visible(),
            "hidden": self.hidden,
            "lent": self.lent,
            "user": user,
            "threads": 0 if user else _threads_of_this_user(),
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
            "LANG": "C.UTF-8",
        }
        environment |= {f"{k}_NUM_THREADS": "1" for k in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
        command = [*(self.contained or {"command": []})["command"]]
        command += [sys.executable, "-I", "-S", str(JAIL), json.dumps(spec)]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,  # never written to: it ends when the grader does
            start_new_session=True,
            **streams,
        )

    def _works(self) -> bool:
        """Whether this containment can be had here: by trying it."""
        with tempfile.TemporaryDirectory(prefix="vaelab-") as scratch:
            folder = Path(scratch, "run")
            folder.mkdir()
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            arguments = [sys.executable, "-I", "-c", PROBE]
            with suppress(OSError):
                process = self._start(folder, arguments, 20, 0, **pipes)
                with suppress(subprocess.TimeoutExpired):
                    said, _ = process.communicate(timeout=20)
                    return said.strip() == b"shut in 1"
                _kill(process)
        return False

    def _watch(self, process, folder: Path, deadline: float, stop) -> str:
        """Wait for the end of a run, or for what it has too much of."""
        import psutil

        checks = 0
        while process.poll() is None:
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                return "seconds"
            memory = n = 0
            for member in _tree(process.pid):
                with suppress(psutil.Error):
                    used = member.memory_info()
                    memory += used.rss - getattr(used, "shared", 0)
                    n += member.num_threads()
            if memory > self.limits.memory:
                return "memory"
            if n > self.limits.processes:
                return "processes"
            checks += 1
            if checks % 10 == 0 and _size(folder, self.limits.disk) > self.limits.disk:
                return "disk"
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        return "done"


def _candidates():
    """Ways to be shut in, the strongest first."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        return
    command = ["unshare", "--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child"]
    if os.geteuid() == 0:
        yield {"command": command, "drop": True}
    yield {"command": [*command, "--user", "--map-root-user"], "drop": False}


def _visible() -> list[str]:
    """The system, and where Python and its packages are."""
    own = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
    own |= {path for path in sys.path if path.endswith("-packages")}
    return VISIBLE + sorted(path for path in own if os.path.isdir(path) and path != "/")


def _threads_of_this_user() -> int:
    """The system counts a limit of processes over all that one user runs."""
    import psutil

    n = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, AttributeError):
            n += process.num_threads() if process.uids().real == os.getuid() else 0
    return n


def _tree(pid: int) -> list:
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    return []


def _kill(process) -> None:
    """All of a run: what it started first, lest it be lost from sight."""
    import psutil

    for _ in range(100):
        *started, _first = _tree(process.pid) or [None]
        if not started:
            break
        for member in started:
            with suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(started, timeout=0.2)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    process.stdin.close()


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


def read_untrusted(path: Path, most: int) -> bytes:
    """A file that a run left: an ordinary one, no link out of its folder, and not too large.

    Raises
    ------
    OSError
        It is none of these.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path.name} is no file")
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path.name} is larger than {most} bytes")
    return content


def _read_report(path: Path) -> Ending:
    """What the run says of itself, as far as it makes sense: it could have written anything."""
    ending = Ending("done")
    with suppress(OSError, ValueError, RecursionError):
        for line in read_untrusted(path, 2_000_000).splitlines():
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("cell"), int):
                continue
            ending.cell = entry["cell"]
            if isinstance(entry.get("error"), str):
                ending.errors[ending.cell] = entry["error"][:500]
            if entry.get("reason") in ("died", "hung", "output"):
                ending.reason = entry["reason"]
    return ending
