"""Submissions that break out, or break down, and files that are no submission.

What the limits hold is tested everywhere; what only the system's containment holds, where it is.
"""

import json
import os
import socket
import textwrap
import threading
import time

import psutil
import pytest

from vaelab.teaching import grading
from vaelab.teaching.sandbox import Limits, Sandbox

from . import mini

SMALL = Limits(seconds=120, cell_seconds=10, memory=1_500_000_000, processes=120)


def in_answer(body: str) -> str:
    return "def nb_log_prob(x, mean, theta):\n" + textwrap.indent(textwrap.dedent(body), "    ")


# By name: the answer, and what the learner is told (a part of it).
BREAKS = {
    "infinite loop": (in_answer("while True: pass"), "still running after 10 s"),
    "infinite loop in the cell": ("while True: pass", "its cell was still running after 10 s."),
    "infinite loop that can't be interrupted": (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "could not be interrupted",
    ),
    "_exit": ("import os\nos._exit(0)", "Python itself ended"),
    "_exit in the answer": (in_answer("import os; os._exit(0)"), "Python itself ended"),
    "200 MB of output": (
        "for _ in range(200): print('x' * 1_000_000)",
        "printed more than 2 million",
    ),
    "200 MB of errors": (
        "for _ in range(200): raise_ = print('x' * 10**6, file=__import__('sys').stderr)",
        "",
    ),
    "200 MB past the kernel": ("import os\nfor _ in range(200): os.write(1, b'x' * 10**6)", ""),
    "8 GB at once": (in_answer("return bytearray(8 * 10**9)"), "MemoryError"),
    "8 GB by and by": (
        "heap = []\nwhile True: heap.append(bytearray(b'x') * 50_000_000)",
        "",
    ),
    "8 GB over processes": (
        "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n"
        "        heap = bytearray(b'x') * 1_400_000_000\n        time.sleep(60)\ntime.sleep(60)",
        "more than 1.5 GB",
    ),
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", ""),
    "threads": (
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()",
        "",
    ),
    "fills the disk": (
        "n = 0\nwhile True:\n    open(f'full{n}', 'wb').write(b'x' * 20_000_000); n += 1",
        "wrote more than 200 MB",
    ),
    "folders without end": (
        "import os\nfor _ in range(3000):\n    os.mkdir('d'); os.chdir('d')",
        "",
    ),
    "huge answer": (in_answer("import torch; return torch.zeros(30_000_000)"), ""),
}

# The answer tries; `found` holds what it got, and goes out as the text of an error.
REACHES = {
    "files deleted": """
        import shutil
        shutil.rmtree({canary!r}, ignore_errors=True)
        shutil.rmtree({repository!r}, ignore_errors=True)
        found = "nothing"
    """,
    "home read": """
        import os, pathlib, pwd
        home = pathlib.Path(pwd.getpwuid({uid}).pw_dir)
        found = pathlib.Path({canary!r}, "diary").read_text()
        found += str([p for p in home.iterdir() if p.name != ".pyenv"])
    """,
    "another learner's file": """
        import json, pathlib
        other = json.loads(pathlib.Path({other!r}).read_text())
        exec(other["cells"][3]["source"], globals())
        return globals()["nb_log_prob"](x, mean, theta)
    """,
    "oracle read": """
        import os, sys
        names = {{}}
        for top in ({package!r}, *sys.path, "/"):
            for where, folders, files in os.walk(top):
                folders[:] = [f for f in folders if os.path.join(where, f) not in ("/proc", "/usr")]
                if where.endswith("vaelab/teaching/exercises") and "lesson_05.py" in files:
                    text = open(os.path.join(where, "lesson_05.py")).read()
                    text = text.partition("EXERCISES = ")[0].replace("from .core import", "#")
                    exec(text, names)
                    return names["nb"](x, mean, theta)
        found = "nothing"
    """,
    "grader's memory": """
        import os
        for pid in filter(str.isdigit, os.listdir("/proc")):
            said = open(f"/proc/{{pid}}/cmdline").read()
            assert "nbval" in said or "ipykernel" in said, "CANARY " + said
            open(f"/proc/{{pid}}/mem", "rb") if pid == "1" else None
        found = "nothing"
    """,
    "network": """
        import socket
        for place in (("127.0.0.1", {port}), ("8.8.8.8", 53)):
            try:
                socket.create_connection(place, 3).send(b"CANARY")
                found = "CANARY"
            except OSError as error:
                found = type(error).__name__
    """,
    "kills all it can": """
        import os
        assert os.getppid() == 1, "CANARY"  # or this would end the machine's processes
        os.kill(-1, 9)
        found = "nothing"
    """,
    "mounts undone": """
        import ctypes, os
        status = open("/proc/self/status").read()
        assert "CapEff:\\t" + "0" * 16 in status and "NoNewPrivs:\\t1" in status, "CANARY"
        libc = ctypes.CDLL(None)
        assert libc.umount2(b"/tmp", 2) != 0 and libc.unshare(0x10000000) != 0, "CANARY"
        assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) != 0, "CANARY"
        assert not os.access("/usr/bin", os.W_OK), "CANARY"
        assert not os.access("/proc/sys/kernel/core_pattern", os.W_OK), "CANARY"
        found = "nothing"
    """,
}


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as monkeypatch:
        mini.install(monkeypatch)
        yield monkeypatch


@pytest.fixture(scope="module")
def broken(tmp_path_factory, module_patch):
    submissions = {name: mini.notebook(middle=answer) for name, (answer, _) in BREAKS.items()}
    if not mini.contained():  # then only the watch from outside holds it: leave this machine alone
        del submissions["fork bomb"]
    submissions["honest"] = mini.notebook()
    return mini.grade(tmp_path_factory.mktemp("breaking"), submissions, limits=SMALL).rows


@pytest.mark.parametrize("name", BREAKS)
def test_it_keeps_the_points_of_the_others(broken, name):
    if name not in broken:
        pytest.skip("this system has no namespaces for us")
    row, told = broken[name], BREAKS[name][1]
    assert row["total"] == mini.HONEST_PART, row
    assert row["marks"]["05.1"]["points"] == 0
    assert told in row["marks"]["05.1"]["message"]
    assert row["seconds"] < 90


def test_what_an_earlier_answer_keeps_is_not_charged_to_a_later_one(tmp_path, module_patch):
    """Each takes less than the limit; both together take more."""
    keeps = f"heap = bytearray(b'x') * 700_000_000\n{mini.HONEST}"
    needs = """
        import time
        space = bytearray(b'x') * 600_000_000
        time.sleep(0.5)
        return x.cumsum(0)
    """
    later = "def running_sum(x):\n" + textwrap.indent(textwrap.dedent(needs), "    ")
    both = {"both": mini.notebook(middle=keeps, last=later)}
    row = mini.grade(tmp_path, both, limits=SMALL).rows["both"]
    assert row["total"] == mini.ALL, row


def test_an_honest_one_among_them_has_all(broken):
    assert broken["honest"]["total"] == mini.ALL


def test_no_process_is_left(broken):
    for process in psutil.process_iter(["cmdline"]):
        assert "vaelab-grade-" not in " ".join(process.info["cmdline"] or [])


@pytest.fixture(scope="module")
def reached(tmp_path_factory, module_patch):
    if not mini.contained():
        pytest.skip("this system has no namespaces for us")
    folder = tmp_path_factory.mktemp("reaching")
    canary = folder / "home"
    canary.mkdir()
    (canary / "diary").write_text("CANARY")
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    heard.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        words = {
            "canary": str(canary),
            "repository": str(folder / "editions"),
            "package": str(grading.PACKAGE.parent),
            "other": str(folder / "in" / "another.ipynb"),
            "port": server.getsockname()[1],
            "uid": os.getuid(),
        }
        submissions = {
            name: mini.notebook(
                middle=in_answer(body.format(**words)) + "\n    raise OSError(found)"
            )
            for name, body in REACHES.items()
        }
        submissions["another"] = mini.notebook()
        rows = mini.grade(folder, submissions).rows
    assert (canary / "diary").read_text() == "CANARY"
    assert (folder / "editions" / "05_mini.ipynb").exists()
    assert not heard
    return rows


@pytest.mark.parametrize("name", REACHES)
def test_it_reaches_nothing(reached, name):
    row = reached[name]
    assert row["total"] == mini.HONEST_PART, row
    assert "CANARY" not in json.dumps(row["marks"]["05.1"]["message"]), row


def test_the_other_learner_has_all(reached):
    assert reached["another"]["total"] == mini.ALL


FILES = {
    "no JSON": ("not a notebook {", "holds no JSON"),
    "deep JSON": ("[" * 100_000, "holds no JSON"),
    "a list": ("[1, 2]", "no cells"),
    "empty": ("", "is empty"),
    "no cells": ({"cells": [], "metadata": {}}, "no answer cell"),
    "strange cells": ({"cells": [1, {"metadata": 3}, {"source": {}}]}, "no answer cell"),
    "other lesson": (
        json.loads(json.dumps(mini.notebook()).replace("05.", "06.")),
        "of lesson 06; lesson 05 is being graded",
    ),
    "50 MB": (
        json.dumps({**mini.notebook(), "padding": "x" * 50_000_000}),
        "more than 20 MB, the most that is read",
    ),
}


def test_what_is_no_submission_is_told_so(tmp_path, module_patch):
    files = {name: content for name, (content, _) in FILES.items()}
    files["older release"] = mini.notebook(release="0000")
    files["honest"] = mini.notebook()
    rows = mini.grade(tmp_path, files, lesson="05").rows
    for name, (_, told) in FILES.items():
        assert rows[name]["total"] == 0
        assert rows[name]["max"] == mini.ALL
        assert told in rows[name]["note"], rows[name]["note"]
    assert rows["older release"]["total"] == mini.ALL
    assert "release 0000, not 0123" in rows["older release"]["note"]
    assert rows["honest"]["total"] == mini.ALL
    assert rows["honest"]["note"] == ""


@pytest.mark.parametrize("contain", [True, False])
def test_a_dead_kernel_is_reported_within_ten_seconds(tmp_path, contain):
    folder = tmp_path / "run"
    folder.mkdir()
    dies = "import os, time\nopen('died', 'w').write(str(time.time()))\nos._exit(0)"
    (folder / "lesson.ipynb").write_text(json.dumps(mini.notebook(first=dies)))
    ending = Sandbox(contain=contain).run(folder, "lesson.ipynb", 60)
    assert ending.reason == "died"
    assert ending.cell == 1
    assert time.time() - float((folder / "died").read_text()) < 10
