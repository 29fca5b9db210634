"""The folder for a room without a network: what it holds, and how it is installed from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from . import stick

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
RECORD = Path(sys.prefix) / ".pins"  # what `make` pinned this environment to
locked = pytest.mark.skipif(
    RECORD.exists() and RECORD.read_bytes() != LOCK.read_bytes(),
    reason="a stick is made with the locked versions, and this environment has others",
)


@locked
def test_each_platform_gets_its_own_packages():
    linux, macos, windows = (stick.pins_for(name) for name in ("linux", "macos", "windows"))
    assert {"torch", "jupyterlab", "scanpy", "latex2mathml", "pexpect"} <= {*linux}
    assert {*macos} - {*linux} >= {"appnope"} and "appnope" not in windows
    assert {*windows} - {*linux} >= {"colorama", "pywinpty"} and "pexpect" not in windows
    assert linux["torch"] == windows["torch"]
    assert "scvi-tools" not in linux and "nbgrader" not in linux
    assert not [name for name in linux if name.startswith("nvidia")]


@locked
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the environment is of Linux")
def test_what_it_takes_along_is_what_is_installed():
    """Closed under what packages ask for: nothing that is installed and needed is left out."""
    import importlib.metadata as metadata

    pins = stick.pins_for("linux")
    for name in pins:
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pins, f"{name} needs {requirement}"


@locked
@pytest.mark.parametrize("last", (0, 2, 99))
def test_a_laptop_may_have_another_release_of_this_python(last):
    """Debian 12 has 3.11.2. A marker of the lock can tell it from 3.11.7, which made the stick."""
    there = {
        "python_full_version": f"{stick.PYTHON}.{last}",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    pins, wanted = stick.pins_for("linux"), {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        pin = None if line.startswith("#") else Requirement(line)
        if pin and (pin.marker is None or pin.marker.evaluate(there)):
            wanted[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    lacking = {name for name in pins if wanted[name] not in pins[name]}
    assert not lacking


def test_a_package_that_the_lock_does_not_name_is_refused(monkeypatch):
    """As in an environment with older packages, which need others."""
    asked = stick.metadata.requires

    def requires(name):
        return [*(asked(name) or []), "needed-only-in-the-past"]

    monkeypatch.setattr(stick.metadata, "requires", requires)
    with pytest.raises(SystemExit, match="does not name needed-only-in-the-past"):
        stick.pins_for("linux")


def test_a_wheel_asks_for_no_newer_system_than_pytorch_does():
    """glibc 2.28 and macOS 14: pip takes the first wheel that fits, so newer ones are not named."""
    tags = [tag for tags, _ in stick.PLATFORMS.values() for tag in tags]
    glibc = [int(tag.split("_")[2]) for tag in tags if tag.startswith("manylinux_2_")]
    macos = [int(tag.split("_")[1]) for tag in tags if tag.startswith("macosx_")]
    assert max(glibc) == 28 and max(macos) == 14


def test_a_wheel_that_did_not_come_is_named(tmp_path):
    names = ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64", "PyYAML-6.0.2-cp311-abi3-any")
    for name in names:
        (tmp_path / f"{name}.whl").touch()
    pins = {"torch": ["2.13.0"], "pyyaml": ["6.0.1", "6.0.2"], "numpy": ["2.3.0"]}
    assert stick.missing_in(tmp_path, pins) == ["pyyaml==6.0.1", "numpy==2.3.0"]
    assert stick.missing_in(tmp_path, {"torch": ["2.12.0"]}) == ["torch==2.12.0"]


def test_it_holds_the_course_and_its_data_but_nobodys_work(tmp_path, monkeypatch):
    root = tmp_path / "root"
    built = ("build/site/html/.doctrees", "build/site/source", "build/slides", "build/bench")
    (root / "build" / "site" / "html").mkdir(parents=True)
    (root / "build" / "site" / "html" / "file").touch()
    for path in ("course/exercises", "data", "my-course", ".git", *built):
        (root / path).mkdir(parents=True)
        (root / path / "file").touch()
    edition = '{"metadata": {"vaelab": {"data": ["letters"]}}}'
    (root / "course" / "exercises" / "01_x.ipynb").write_text(edition)
    from vaelab import datasets

    fetched = []
    monkeypatch.setattr(stick, "ROOT", root)
    monkeypatch.setattr(datasets, "fetch", lambda name, progress: fetched.append(name))
    monkeypatch.setattr(datasets, "verify", lambda name: {"letters.txt": "ok"})
    monkeypatch.setenv("VAELAB_DATA", "put back afterwards")
    stick.copy_course(tmp_path / "out")
    there = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("file")}
    assert there == {"course/exercises/file", "data/file", "site/file", "slides/file"}
    assert fetched == ["letters"] and datasets.cache_folder() == tmp_path / "out" / "data"


@pytest.fixture
def a_stick(tmp_path):
    folder = tmp_path / "My USB"
    (folder / "wheels").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def made(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = ["make", "-C", str(folder), f"PYTHON={sys.executable}", *words]
    # Nothing of the `make` that runs these tests, such as its VENV=...
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_with_wheels_make_asks_no_network(a_stick):
    """pip itself says what it was told, from a folder with a blank in its name."""
    (a_stick / "more.mk").write_text("include Makefile\nshow:\n\t@$(PYTHON) -m pip config list\n")
    said = made(a_stick, "-s", "-f", "more.mk", "show").stdout
    assert ":env:.no-index='1'" in said and ":env:.find-links='wheels'" in said
    (a_stick / "wheels").rmdir()
    said = made(a_stick, "-s", "-f", "more.mk", "show").stdout
    assert "no-index" not in said and "'wheels'" not in said


def test_a_python_that_the_wheels_do_not_fit_is_refused(a_stick):
    (a_stick / "wheels" / "python").write_text("3.9")
    done = made(a_stick, "venv")
    assert done.returncode and "wheels in this folder are for Python 3.9" in done.stderr
    assert not (a_stick / ".venv").exists()
    none = made(a_stick, "venv", "PYTHON=python-that-is-not-here")
    assert none.returncode and "another one or missing" in none.stderr
    (a_stick / "wheels" / "python").write_text(stick.PYTHON)
    assert "-m venv --clear .venv" in made(a_stick, "-n", "venv").stdout


def test_its_note_gives_the_lines_of_the_instructors_page():
    """Windows has no make: the two pages must not differ in what to type there."""
    note = stick.STICK.format(python="3.11", platforms="Linux")
    page = (ROOT / "course" / "INSTRUCTORS.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in note.splitlines() if line.startswith("       ")]
    assert len(lines) == 5 and all(line in page for line in lines)
