"""What lies around the marks: other files, the grader itself, the machine, the other learners.

Every kind of attack here succeeded on the grader of commit 2dacab0. Links in place of the report
and of outcomes did not; they stand here because they are of the same kind.
"""

import ctypes
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from vaelab.teaching import grading, report, sandbox, submissions
from vaelab.teaching.exercises.calls import Outcome
from vaelab.teaching.sandbox import Ending, Limits, Sandbox, walls

from . import mini

root = pytest.mark.skipif(os.geteuid() != 0, reason="what only root could lose")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")


@pytest.fixture(autouse=True)
def mini_lesson(monkeypatch):
    mini.install(monkeypatch)


def without_namespaces(monkeypatch):
    """As in many containers: what is left is Landlock."""
    ways = [way for way in sandbox._ways() if way.landlock]
    monkeypatch.setattr(sandbox, "_ways", lambda: ways)
    if Sandbox().contained is None:
        pytest.skip("this system has no Landlock for us")


def without_anything(monkeypatch):
    monkeypatch.setattr(sandbox, "_ways", lambda: [])


def run(tmp_path, *cells: str, contain=True, limits=None) -> tuple[Ending, Path]:
    """A notebook of these cells; where nothing may be seen, it runs as if it were the edition's."""
    folder = tmp_path / "scratch" / "run"
    folder.mkdir(parents=True)
    notebook = mini.notebook() | {"cells": [mini.code(textwrap.dedent(cell)) for cell in cells]}
    (folder / "lesson.ipynb").write_text(json.dumps(notebook))
    ending = Sandbox(limits or mini.LIMITS, contain=contain).run(folder, "lesson.ipynb", 100)
    return ending, folder


# ------------------------------------------------------- 4. what the grader reads from a run


READS = {
    # Each replaces a file that the grader reads, and ends the run so that it is read.
    "the log": ("pytest.log", "os.symlink({canary!r}, here / name)"),
    "the report": ("report.jsonl", "os.symlink({canary!r}, here / name)"),
    "an outcome": ("05.1.outcomes", "os.symlink({canary!r}, here / name)"),
    "a pipe for the log": ("pytest.log", "os.mkfifo(here / name)"),
    "a pipe for the report": ("report.jsonl", "os.mkfifo(here / name)"),
    "a log without end": ("pytest.log", "os.symlink('/dev/zero', here / name)"),
}


@pytest.mark.parametrize("kind", READS)
def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path, kind):
    canary = tmp_path / "diary"
    canary.write_text("CANARY " * 100)
    name, replace = READS[kind]
    attack = f"""import os, pathlib, signal
here, name = pathlib.Path(os.environ["VAELAB_GRADING"]), {name!r}
open(here / "report.jsonl", "w").close()
(here / name).unlink(missing_ok=True)
{replace.format(canary=str(canary))}
os.kill(os.getppid(), signal.SIGINT)
os._exit(0)"""
    began = time.monotonic()
    rows = mini.grade(tmp_path, {"mallory": mini.notebook(first=attack)}).rows
    assert time.monotonic() - began < 100
    assert "CANARY" not in json.dumps(rows)
    for page in (tmp_path / "out").rglob("*.*"):
        assert "CANARY" not in page.read_text()


# ------------------------------------------------------------------ 5. a zero nobody deserved


def test_a_run_that_did_not_reach_the_end_is_no_zero(tmp_path, monkeypatch):
    """As where a kernel is slow to start: pytest ends with code 1, and nothing has run."""
    with monkeypatch.context() as patched:
        jail = tmp_path / "jail.py"
        jail.write_text("raise SystemExit(1)")
        for name in sandbox.OWN_FILES.values():
            (tmp_path / name).write_bytes(sandbox.JAIL.with_name(name).read_bytes())
        patched.setattr(sandbox, "JAIL", jail)
        row = mini.grade(tmp_path, {"ada": mini.notebook()}, contain=False).rows["ada"]
    assert row["note"].startswith("Not graded")
    assert mini.grade(tmp_path, {}, contain=False).rows["ada"]["total"] == mini.ALL


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 0, -5, True, "9"])
def test_a_limit_is_a_number_above_nothing(seconds):
    with pytest.raises(ValueError, match="a finite number above 0"):
        Limits(seconds=seconds)
    with pytest.raises(ValueError, match="a finite number above 0"):
        Limits(memory=seconds)


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_jobs_are_counted(tmp_path, jobs):
    with pytest.raises(grading.GradingError, match="1 or more"):
        mini.grade(tmp_path, {"ada": mini.notebook()}, jobs=jobs)


def endings(monkeypatch, *all_: Ending):
    left = list(all_)
    monkeypatch.setattr(Sandbox, "run", lambda *_: left.pop(0) if left else Ending("done"))


@pytest.mark.parametrize("reason", ["seconds", "failed"])
def test_what_the_machine_may_have_cost_is_graded_again(tmp_path, monkeypatch, reason):
    endings(monkeypatch, Ending(reason, cell=3, seconds=500))
    notebook = mini.notebook()
    row = mini.grade(tmp_path, {"ada": notebook}, contain=False).rows["ada"]
    if reason == "seconds":
        assert "before this answer was reached" in row["marks"]["05.91"]["message"]
    assert not list((tmp_path / "out" / "results").iterdir())


def test_a_kept_mark_that_is_not_whole_is_not_believed(tmp_path, monkeypatch):
    endings(monkeypatch)
    mini.grade(tmp_path, {"ada": mini.notebook()}, contain=False)
    (kept,) = (tmp_path / "out" / "results").iterdir()
    row = json.loads(kept.read_text())
    mark = row["marks"].pop("05.90")
    for bad in ("[]", "{}", '{"marks": 1}', json.dumps(row), "[" * 9999):
        kept.write_text(bad)
        assert mini.grade(tmp_path, {}, contain=False).rows["ada"]["marks"]["05.90"] == mark
    canary = tmp_path / "other.json"
    kept.rename(canary)
    kept.symlink_to(canary)
    assert grading._kept(kept, grading.Edition("05", "", {}, ("05.90",))) is None


def test_the_key_holds_what_a_mark_depends_on():
    def key(cells="x", **changes):
        edition = grading.Edition("05", "", mini.notebook(), ("05.1",))
        contain = changes.pop("way", None)
        box = Sandbox(changes.pop("limits", None), contain=False)
        box.contained = contain
        options = {"edition": edition, "sandbox": box, "package": {}, "seed": 1, "salt": "s"}
        grader = grading.Grader(**options | {"version": "v"} | changes)
        return grader.key(submissions.Submission("ada", Path("ada"), digest=cells))

    other = grading.Edition("05", "", mini.notebook(first="x = 1"), ("05.1",))
    keys = [
        *(key(), key("y"), key(seed=2), key(salt="t"), key(version="w"), key(edition=other)),
        *(key(limits=Limits(seconds=5)), key(way=SimpleNamespace(name="Landlock"))),
    ]
    assert len({*keys}) == len(keys)
    assert key() == keys[0]


# ------------------------------------------------------------------------ 6. without containment


def test_nothing_runs_where_nothing_contains_it(tmp_path, monkeypatch):
    without_anything(monkeypatch)
    ran = []
    monkeypatch.setattr(Sandbox, "run", lambda *_: ran.append(1) or Ending("done"))
    with pytest.raises(grading.GradingError, match="--uncontained"):
        mini.grade(tmp_path, {"ada": mini.notebook()})
    assert not ran
    assert not (tmp_path / "out").exists()
    assert not mini.grade(tmp_path, {}, uncontained=True).contained
    assert ran


@linux
def test_it_says_why_there_is_none(monkeypatch):
    ways = [sandbox._Way("a way that fails", ("/bin/sh", "-c", "echo no such thing >&2; exit 1"))]
    monkeypatch.setattr(sandbox, "_ways", lambda: ways)
    assert Sandbox().why == ["a way that fails: no such thing"]


def test_python_below_an_empty_folder_is_seen(tmp_path, monkeypatch):
    """An environment under /tmp, over which an empty folder is laid."""
    link = tmp_path / "environment"
    link.mkdir()
    (link / "there").write_text("")
    monkeypatch.setattr(sandbox, "VISIBLE", [*sandbox.VISIBLE, str(link)])
    if not (box := Sandbox()).contained or not box.contained.namespaces:
        pytest.skip("this system has no namespaces for us")
    ending, _ = run(tmp_path, f"import os; raise OSError(os.listdir({str(link)!r}))")
    assert ending.errors == {0: "OSError: ['there']"}


@linux
@pytest.mark.parametrize("contain", [True, False])
def test_calls_that_no_notebook_needs_are_refused(tmp_path, contain):
    """The session's keys, other processes' memory, memory that can't be counted."""
    if not walls.has_seccomp():
        pytest.skip("this system filters no calls")
    names = "keyctl add_key request_key ptrace process_vm_readv bpf userfaultfd memfd_create shmget"
    tried = [*names.split(), "perf_event_open", "io_uring_setup", "unshare", "mount"]
    known = walls.REFUSED | walls.ABSENT
    numbers = {name: walls._here(known[name]) for name in tried}
    ending, _ = run(
        tmp_path,
        f"""
        import ctypes, os, socket
        libc, got = ctypes.CDLL(None, use_errno=True), []
        for name, number in {numbers!r}.items():
            ctypes.set_errno(0)
            if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() not in (1, 38):
                got.append(name)
        for family, kind in ((2, 1), (2, 2), (10, 1), (16, 3), (1, 2)):
            try:
                got.append(str(socket.socket(family, kind)))
            except OSError:
                pass
        try:
            socket.socket(1, 1).connect("\\0nobody")
        except OSError as error:
            got += [] if error.errno == 13 else [str(error)]
        raise OSError(got)
        """,
        contain=contain,
    )
    assert ending.errors == {0: "OSError: []"}


@root
@linux
def test_root_gives_up_its_rights_even_uncontained(tmp_path):
    ending, folder = run(
        tmp_path,
        f"""
        import os
        got = []
        for path in ("/etc/vaelab-was-here", "/usr/vaelab-was-here"):
            try: open(path, "w").close(); os.remove(path); got.append(path)
            except OSError: pass
        try: os.kill({os.getpid()}, 0); got.append("the grader")
        except OSError: pass
        raise OSError([os.getuid() > 0, os.getgid() > 0, os.getgroups(), got])
        """,
        contain=False,
    )
    assert ending.errors == {0: "OSError: [True, True, [], []]"}
    assert folder.stat().st_uid in sandbox.USERS


LEAVES = """
import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(3137)"])
    os._exit(0)
os.wait()
"""


def daemons() -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if "import time; time.sleep(3137)" in (process.info["cmdline"] or []):
            found += [process.pid] if process.info["status"] != "zombie" else []
    return found


@linux
def test_nothing_outlives_a_run(tmp_path):
    ending, _ = run(tmp_path, LEAVES, contain=False)
    assert ending.reason == "done"
    assert not daemons()


@linux
def test_nothing_outlives_a_killed_grader(tmp_path):
    """A hostile one: its processes are nobody's children, and pytest does nothing any more."""
    program = tmp_path / "grader.py"
    stops = "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)"
    program.write_text(
        f"from pathlib import Path\nfrom tests.tamper import test_around as t\n"
        f"t.run(Path({str(tmp_path)!r}), {LEAVES + stops!r}, contain=False)\n"
    )
    repository = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{grading.PACKAGE.parent}:{repository}"}
    grader = subprocess.Popen([sys.executable, str(program)], env=environment)
    deadline = time.monotonic() + 60
    while not daemons():
        assert time.monotonic() < deadline
        assert grader.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    deadline = time.monotonic() + 20
    while daemons() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not daemons()


SHARES = {
    "shared": """
import mmap
held = mmap.mmap(-1, 900_000_000)
for i in range(0, len(held), 4096):
    held[i] = 1
""",
    "shared by processes": """
import mmap, os, time
held = [mmap.mmap(-1, 250_000_000) for _ in "abcd"]
for part in held:
    if os.fork() == 0:
        for i in range(0, len(part), 4096):
            part[i] = 1
        time.sleep(60)
""",
    "a file in memory": """
import os
file = os.memfd_create("x")
for _ in range(900):
    os.write(file, b"x" * 10**6)
""",
}


@linux
@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("kind", SHARES)
def test_memory_in_all_its_forms_counts(tmp_path, monkeypatch, kind, group):
    if not group:
        monkeypatch.setattr(sandbox._Group, "make", lambda limits: None)
    limits = Limits(seconds=60, cell_seconds=30, memory=600_000_000)
    ending, _ = run(tmp_path, SHARES[kind], "import time; time.sleep(20)", limits=limits)
    refused = ending.errors.get(0, "").startswith("OSError: [Errno 38]")
    assert ending.reason == "memory" or (kind == "a file in memory" and refused)


@linux
def test_files_without_a_name_count(tmp_path):
    """Written, removed and still open: no folder shows them."""
    hidden = """
        import os
        files = []
        for i in range(5):
            files.append(open(f"f{i}", "wb"))
            os.remove(f"f{i}")
            files[-1].write(b"x" * 20_000_000)
            files[-1].flush()
    """
    limits = Limits(seconds=60, cell_seconds=30, disk=60_000_000)
    assert run(tmp_path, hidden, "import time; time.sleep(20)", limits=limits)[0].reason == "disk"


@linux
def test_system_v_memory_is_gone_afterwards(tmp_path, monkeypatch):
    """Where no call is filtered: it has to be removed."""
    monkeypatch.setattr(walls, "has_seccomp", lambda: False)
    libc = ctypes.CDLL(None)

    def segments():
        return len(Path("/proc/sysvipc/shm").read_text().splitlines())

    before = segments()
    run(tmp_path, "import ctypes; ctypes.CDLL(None).shmget(77777, 4096, 0o1600)", contain=False)
    assert segments() == before, libc


def test_files_that_no_notebook_may_change_are_watched(tmp_path, monkeypatch):
    """What a run could reach without containment: the edition, another's notebook."""
    without_anything(monkeypatch)
    victim = tmp_path / "in" / "ben.ipynb"

    def spoils(*_):
        victim.write_text("{}")
        return Ending("done")

    monkeypatch.setattr(Sandbox, "run", spoils)
    files = {"ada": mini.notebook(), "ben": mini.notebook()}
    with pytest.raises(grading.GradingError, match=r"ben\.ipynb"):
        mini.grade(tmp_path, files, uncontained=True)
    assert not list((tmp_path / "out" / "results").iterdir())


def test_a_second_copy_of_the_package_is_hidden(tmp_path, monkeypatch):
    packages = tmp_path / "lib" / "site-packages"
    (packages / "vaelab" / "teaching").mkdir(parents=True)
    (packages / "vaelab" / "oracle").write_text("CANARY")
    (packages / "other").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    assert str(packages / "vaelab") in Sandbox(contain=False).hidden
    read, listed = sandbox._grants([str(packages)], Sandbox(contain=False).hidden)
    assert str(packages) in listed
    assert read == [str(packages / "other")]
    ending, _ = run(tmp_path, f"raise OSError(open({str(packages / 'vaelab/oracle')!r}).read())")
    if Sandbox().contained:
        assert "CANARY" not in ending.errors[0]


@linux
def test_landlock_holds_the_files(tmp_path, monkeypatch):
    without_namespaces(monkeypatch)
    (tmp_path / "diary").write_text("CANARY")
    ending, folder = run(
        tmp_path,
        f"""
        import os, pathlib
        got = []
        for path in ({str(tmp_path / "diary")!r}, "/etc/shadow", "/proc/1/environ"):
            try: got.append(open(path).read())
            except OSError: pass
        for path in ("/tmp/vaelab-was-here", "/dev/shm/vaelab-was-here"):
            try: open(path, "w").close(); got.append(path)
            except OSError: pass
        for pid in (os.getppid(), {os.getpid()}):
            try: os.kill(pid, 0); got += [pid] if pid == {os.getpid()} else []
            except OSError: pass
        pathlib.Path("mine").write_text("mine")
        os.chmod("mine", 0o777)
        import numpy, torch
        raise OSError(got, pathlib.Path("mine").read_text())
        """,
    )
    assert ending.errors == {0: "OSError: [Errno []] mine"}
    assert stat.S_IMODE((folder / "mine").stat().st_mode) != 0o777


# ------------------------------------------------------------------------- 7. the others' marks


def test_each_file_is_one_learners_matter(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "other.json").write_text(json.dumps(mini.notebook()))
    (folder / "a link.ipynb").symlink_to(folder / "other.json")
    (folder / "a loop").symlink_to(folder)
    (folder / "loop.ipynb").symlink_to("loop.ipynb")
    (folder / "nowhere.ipynb").symlink_to("/nowhere")
    os.mkfifo(folder / "pipe.ipynb")
    (folder / "folder.ipynb").mkdir()
    deep = folder
    for _ in range(30):
        deep = deep / "d"
        deep.mkdir()
    (folder / "text.ipynb.txt").write_text(json.dumps(mini.notebook()))
    (folder / "work.rar").touch()
    files = {"honest": mini.notebook(), "x" * 249: "{}", "new\nline": "{}", "half \udcff": "{}"}
    files |= {"...": "[]", "-rf": "[[],[]]", "commas": "[" + "1," * 3_000_000 + "1]"}
    told = []
    rows = mini.grade(folder.parent, files, tell=told.append).rows
    (folder / "BIG.IPYNB").write_text("{}")
    assert rows["honest"]["total"] == mini.ALL
    assert len(rows) == len(files)
    assert all(row["note"] for name, row in rows.items() if name != "honest")
    for name in [
        "a link",
        "a loop",
        "loop.ipynb",
        "nowhere",
        "pipe",
        "text.ipynb.txt",
        "work.rar",
        "folders deep",
    ]:
        assert [sentence for sentence in told if name in sentence], name
    page = (tmp_path / "out" / "report.html").read_text()
    assert "text.ipynb.txt" in page
    assert len(list((tmp_path / "out" / "feedback").iterdir())) == len(files)
    assert "BIG" in mini.grade(folder.parent, {}).rows


def test_links_are_not_followed_when_they_are_given(tmp_path):
    mini.write(tmp_path / "private", "other", mini.notebook())
    mini.write(tmp_path, "ada", mini.notebook())
    (tmp_path / "link").symlink_to(tmp_path / "private")
    os.mkfifo(tmp_path / "pipe.ipynb")
    given = [tmp_path / name for name in ("ada.ipynb", "link", "pipe.ipynb")]
    found, left = submissions.collect(given, tmp_path / "out")
    assert [file.name for file in found] == ["ada"]
    assert len(left) == 2


@root
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    mini.write(tmp_path / "in", "ada", "{}")
    mini.write(tmp_path / "in" / "closed", "ben", "{}")
    listdir = os.listdir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    found, left = submissions.collect([tmp_path / "in"], tmp_path / "out")
    assert len(found) == len(left) == 1
    assert "closed: this folder can't be read" in left[0]


def test_one_learners_files_choose_no_lesson(tmp_path):
    other = json.loads(json.dumps(mini.notebook()).replace("05.", "06.").replace('"05"', '"06"'))
    for i in range(9):
        mini.write(tmp_path / "in" / "mallory", f"try {i}", other)
    for name in ("ada", "ben"):
        mini.write(tmp_path / "in" / name, "05_mini", mini.notebook())
    editions = mini.write_edition(tmp_path / "editions")
    mini.write(editions, "06_mini", json.dumps(other))
    found, _ = submissions.collect([tmp_path / "in"], tmp_path / "out", ["05_mini"])
    read = [submissions.Submission.read(file) for file in found]
    assert grading._edition(editions, read, None).lesson == "05"


# ----------------------------------------------------------------- 8. the grader's own process


def test_what_an_answer_gave_is_bounded(tmp_path):
    def written(value, form=("tensor",)):
        (tmp_path / "05.1.outcomes").write_text(
            json.dumps({"seen": [["value", value, "why" * 10**5, form, form]], "hidden": []})
        )
        return grading._outcomes(tmp_path, "05.1")

    (outcome,) = written("word " * 10**5)["seen"]
    assert len(outcome.value) <= 500
    assert len(outcome.message) <= 500
    (outcome,) = written({"tuple": ["word " * 10**5]})["seen"]
    assert len(outcome.value[0]) <= 500
    (outcome,) = written(1, ["tensor " * 10**3] * 10**2)["seen"]
    assert len(str(outcome.form)) + len(str(outcome.reached)) < 10_000
    assert written(1, 5) is None and written(1, {}) is not None
    with pytest.raises(grading._TooLarge):
        written([[]] * 10**6)


def test_a_message_is_bounded(tmp_path):
    name = "05.1"
    exercise = grading.exercises.find(name)
    cases = {name: {"seen": exercise.cases(0), "hidden": exercise.cases(1)}}
    run_ = grading._Run({name: {"seen": [Outcome("value", "w" * 10**6)] * 3, "hidden": []}})
    grader = grading.Grader(grading.Edition("05", "", {}), Sandbox(contain=False), {}, 1, "", "")
    mark = grader._mark(name, cases, run_, submissions.Submission("", Path()))
    assert len(json.dumps(mark)) < 5000


def test_many_large_files_are_not_held(tmp_path):
    """A class's notebooks were all kept in memory, with their pictures."""
    big = mini.notebook() | {"padding": "x" * 15_000_000}
    (file,) = submissions.collect([mini.write(tmp_path, "ada", big)], tmp_path / "out")[0]
    read = submissions.Submission.read(file)
    assert not read.problem
    assert len(repr(vars(read))) < 20_000
    long = mini.notebook(middle="# " + "x" * 2_000_000)
    (file,) = submissions.collect([mini.write(tmp_path, "ben", long)], tmp_path / "out")[0]
    assert "up to 1 million are read" in submissions.Submission.read(file).problem


def test_a_page_has_a_short_name_and_no_orders():
    for name in ("x" * 249, "字" * 83, "half \udcff", "...", ".hidden", "a/b\\c"):
        page = report._file_name(name)
        assert len(page.encode()) < 140
        assert not page.startswith(".") and "/" not in page
    assert submissions.printable("a\x1b[2Jb\u202ec\n") == "a [2Jb c"
    assert report._harmless("  =1+1").startswith("'")
