"""The folder for a room without a network: what it holds, and how it is installed from."""

import subprocess
import sys
from pathlib import Path

import pytest

from . import stick

ROOT = Path(__file__).parents[1]


def test_each_platform_gets_its_own_packages():
    linux, macos, windows = (stick.pins_for(name) for name in ("linux", "macos", "windows"))
    assert {"torch", "jupyterlab", "scanpy", "latex2mathml", "pexpect"} <= {*linux}
    assert {*macos} - {*linux} >= {"appnope"} and "appnope" not in windows
    assert {*windows} - {*linux} >= {"colorama", "pywinpty"} and "pexpect" not in windows
    assert linux["torch"] == windows["torch"]
    assert "scvi-tools" not in linux and "nbgrader" not in linux
    assert not [name for name in linux if name.startswith("nvidia")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the environment is of Linux")
def test_what_it_takes_along_is_what_is_installed():
    """Closed under what packages ask for: nothing that is installed and needed is left out."""
    import importlib.metadata as metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = stick.pins_for("linux")
    for name in pins:
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pins, f"{name} needs {requirement}"


def test_a_wheel_that_did_not_come_is_named(tmp_path):
    names = ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64", "PyYAML-6.0.2-cp311-abi3-any")
    for name in names:
        (tmp_path / f"{name}.whl").touch()
    pins = {"torch": "2.13.0", "pyyaml": "6.0.2", "numpy": "2.3.0"}
    assert stick.missing_in(tmp_path, pins) == ["numpy==2.3.0"]
    assert stick.missing_in(tmp_path, {"torch": "2.12.0"}) == ["torch==2.12.0"]


def test_it_holds_the_course_and_its_data_but_nobodys_work(tmp_path, monkeypatch):
    root = tmp_path / "root"
    for path in ("course/exercises", "data", "my-course", ".git", "build/slides", "build/bench"):
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
    assert there == {"course/exercises/file", "data/file", "slides/file"}
    assert fetched == ["letters"] and datasets.cache_folder() == tmp_path / "out" / "data"


def test_with_wheels_make_asks_no_network(tmp_path):
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    show = ["make", "-C", str(tmp_path), "-n", "-p", "course"]
    assert "PIP_NO_INDEX" not in subprocess.run(show, capture_output=True, text=True).stdout
    (tmp_path / "wheels").mkdir()
    said = subprocess.run(show, capture_output=True, text=True).stdout
    assert "export PIP_NO_INDEX" in said or "PIP_NO_INDEX = 1" in said
    assert f"{tmp_path}/wheels" in said or "$(CURDIR)/wheels" in said
