"""Runs a notebook that nobody vouches for, and comes back whatever the notebook does.

Three parts. :class:`Sandbox`, in the grader's process, starts a run and watches it from outside:
time, memory, processes, disk; it kills all of it when one runs over. ``_enter`` is the door: this
very file, run as a script, shuts itself in and becomes pytest. The hooks at the end watch nbval
from within, since nbval itself waits long for a kernel that is dead.

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
DEVICES = ("null", "zero", "full", "random", "urandom")
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
        arguments += ["-p", "nbval.plugin", "-p", "sandbox", "-p", "no:cacheprovider"]
        arguments += ["-c", "/dev/null", "--rootdir=."]
        (folder / "sandbox.py").write_bytes(Path(__file__).read_bytes())
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
            user = 61184 + number % 4000  # systemd leaves these to passing users, as we do
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
        command += [sys.executable, "-I", "-S", str(Path(__file__).resolve()), json.dumps(spec)]
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


# ------------------------------------------------------------------------------------ the door


def _enter(spec: dict) -> None:
    """Shut this process in, and become pytest."""
    limits = spec["limits"]
    if spec["contained"]:
        _shut_in(spec)
    else:
        _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans stay in the tree that is watched
    with suppress(OSError):
        os.nice(10)
    import resource

    for name, value in {
        "CORE": 0,
        "CPU": int(2 * limits["seconds"]) + 10,
        "DATA": limits["memory"] + 1_000_000_000,
        "FSIZE": limits["disk"],
        "NOFILE": 512,
        "NPROC": spec["threads"] + limits["processes"],
    }.items():
        with suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if spec["contained"]:
        for capability in range(64):
            _prctl(24, capability)  # PR_CAPBSET_DROP: whatever is executed now gets none
        if spec["user"]:
            os.setgroups([])
            os.setresgid(*[spec["user"]] * 3)
            os.setresuid(*[spec["user"]] * 3)
        _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    os.execv(spec["arguments"][0], spec["arguments"])


def _prctl(*arguments: int) -> None:
    import ctypes

    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(*arguments, *[0] * (5 - len(arguments)))


def _shut_in(spec: dict) -> None:
    """A root folder of our own, with little in it, and a network that leads nowhere."""
    import ctypes
    import fcntl
    import socket
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    read_only, no_suid, no_devices, no_exec, remount, bind, recursive = 1, 2, 4, 8, 32, 4096, 16384

    def mount(source, target, kind, flags, data=None):
        parts = [part if part is None else part.encode() for part in (source, target, kind, data)]
        if libc.mount(*parts[:3], ctypes.c_ulong(flags), parts[3]) != 0:
            raise OSError(ctypes.get_errno(), f"mount of {source} at {target}")

    def show(source, target, flags=read_only | no_suid | no_devices):
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        elif not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "x").close()
        mount(source, target, None, bind | recursive)
        try:
            mount(None, target, None, remount | bind | flags)
        except PermissionError:  # what was mounted so has to stay so
            mount(None, target, None, remount | bind | flags | no_exec)

    def empty(target, size, mode):
        os.makedirs(target, exist_ok=True)
        mount("tmpfs", target, "tmpfs", no_suid | no_devices, f"size={size},mode={mode}")

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
        mount(None, path, None, remount | bind | read_only | no_suid | no_devices)
    for device in DEVICES:
        os.makedirs(f"{root}/dev", exist_ok=True)
        open(f"{root}/dev/{device}", "x").close()
        mount(f"/dev/{device}", f"{root}/dev/{device}", None, bind)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for path in ("/dev/shm", "/tmp"):
        empty(root + path, "64m", "1777")
    os.makedirs(root + "/proc")
    mount("proc", root + "/proc", "proc", no_suid | no_devices | no_exec)
    for path in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"):
        if os.path.exists(root + path):
            show(root + path, root + path, read_only | no_suid | no_devices | no_exec)
    show(spec["folder"], root + "/grading", no_suid | no_devices)
    for name, path in spec["lent"].items():
        show(path, f"{root}/grading/{name}")
    with socket.socket() as wire:  # SIOCSIFFLAGS, IFF_UP: the kernel is spoken to over loopback
        fcntl.ioctl(wire, 0x8914, struct.pack("16sh14x", b"lo", 1))
    mount(None, root, None, remount | bind | read_only | no_suid | no_devices)
    os.chroot(root)
    os.chdir("/grading")


# ------------------------------------------------------------------- within: a plugin of pytest


class _Reporter:
    """Says which cell runs, and ends the run when there is no kernel any more."""

    def __init__(self):
        self.file = Path("report.jsonl").open("a", encoding="utf-8")  # noqa: SIM115
        self.cell, self.printed = 0, 0
        self.waiting, self.running = [], False
        self.limit = int(os.environ["SANDBOX_OUTPUT"])

    def say(self, **entry):
        self.file.write(json.dumps({"cell": self.cell, **entry}) + "\n")
        self.file.flush()

    def stop(self, reason: str):
        self.say(reason=reason)
        os._exit(1)  # the kernel, if there is one, is killed from outside

    def take(self, message) -> None:
        content = message["content"]
        if message["msg_type"] == "error":
            self.say(error=f"{content['ename']}: {content['evalue']}"[:500])
        if message["msg_type"] in ("stream", "display_data", "execute_result"):
            self.printed += len(content.get("text", "")) + len(str(content.get("data", "")))
            if self.printed > self.limit:
                self.stop("output")
        else:
            self.waiting.append(message)


def pytest_configure(config):
    import queue
    import threading

    from nbval.kernel import RunningKernel

    reporter = config.reporter = _Reporter()

    def get_message(kernel, stream, timeout=None):
        """nbval's, but it sees that the kernel is dead, and reads as it is written to."""
        deadline = time.monotonic() + (timeout or 60)
        while True:
            while kernel.kc.iopub_channel.is_alive() and kernel.kc.iopub_channel.msg_ready():
                reporter.take(kernel.kc.get_iopub_msg(timeout=1))
            if stream == "iopub" and reporter.waiting:
                return reporter.waiting.pop(0)
            with suppress(queue.Empty):
                if stream == "shell":
                    return kernel.kc.get_shell_msg(timeout=0.1)
                reporter.take(kernel.kc.get_iopub_msg(timeout=0.1))
                continue
            if not kernel.is_alive():
                reporter.stop("died")
            if time.monotonic() > deadline:
                raise queue.Empty

    stop = RunningKernel.stop
    RunningKernel.get_message = get_message
    RunningKernel.stop = lambda kernel: reporter.stop("hung") if reporter.running else stop(kernel)

    def end_with_the_grader():
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=end_with_the_grader, daemon=True).start()


def pytest_runtest_call(item):
    reporter = item.config.reporter
    reporter.cell, reporter.running = item.cell_num, True
    reporter.say()


def pytest_runtest_teardown(item):
    item.config.reporter.running = False


if __name__ == "__main__":
    _enter(json.loads(sys.argv[1]))
