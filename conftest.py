"""Lessons under test: those whose data can't be had are skipped, and each keeps its budget.

A notebook's metadata may say ``"vaelab": {"data": ["pancreas"]}``. A CI machine that is slower
than two cores of a laptop sets VAELAB_BUDGET_SLACK, a factor on the seconds.
"""

import os
import re
from functools import cache
from pathlib import Path

import printed
import pytest
from nbval.plugin import IPyNbCell

SECONDS = 90 * float(os.environ.get("VAELAB_BUDGET_SLACK", 1))
BYTES = 2e9

collect_ignore = ["course/exercises"]  # learners' editions fail until they are answered


def pytest_addoption(parser):
    parser.addoption("--record-numbers", metavar="FILE", help="append each compared number to FILE")


class Budget(pytest.Item):
    """Stands after a notebook's last cell, while its kernel is still there to be measured."""

    def runtest(self):
        seconds, peak = self.parent.seconds, peak_memory(self.parent.kernel)
        if seconds > SECONDS or peak > BYTES:
            pytest.fail(
                f"{self.path.name} took {seconds:.0f} s and {peak / 1e9:.2f} GB; "
                f"a lesson has {SECONDS:.0f} s and {BYTES / 1e9:g} GB",
                pytrace=False,
            )

    def reportinfo(self):
        return self.path, None, self.nodeid


def peak_memory(kernel) -> float:
    """Bytes that a kernel held at most; 0 where the system does not say (only Linux does)."""
    try:
        status = Path(f"/proc/{kernel.km.provisioner.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
    except (AttributeError, OSError, TypeError):  # no kernel any more, or no /proc
        return 0


@cache
def is_here(name: str) -> bool:
    from vaelab import datasets

    return "source" not in datasets.locate(name).values()


def pytest_collection_modifyitems(items):
    last = {item.parent: item for item in items if hasattr(item.parent, "nb")}
    for notebook, cell in last.items():
        needed = notebook.nb.metadata.get("vaelab", {}).get("data", [])
        absent = " ".join(name for name in needed if not is_here(name))
        if absent:
            why = pytest.mark.skip(reason=f"needs data; get them with: vaelab data fetch {absent}")
            notebook.add_marker(why)
        else:
            items.insert(items.index(cell) + 1, Budget.from_parent(notebook, name="budget"))


def pytest_itemcollected(item):
    if isinstance(item, IPyNbCell):
        item.__class__ = printed.Cell  # nbval makes its own, and asks nobody


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    notebook = item.parent
    if hasattr(notebook, "nb") and call.when != "teardown":  # setting up starts the kernel
        notebook.seconds = getattr(notebook, "seconds", 0.0) + call.duration
    return (yield)
