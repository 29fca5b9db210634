"""A plugin of pytest that reports which cell runs and what stopped it, and ends a run that hangs.

The grader copies this file into the folder of a run, where there is nothing else of the sandbox: so
it imports nbval and the standard library alone. It writes ``report.jsonl``, which the grader does
not trust: a submission could have written there too.
"""

import json
import os
import queue
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import nbval.kernel
from nbval.kernel import KernelManager, RunningKernel

KERNEL = """
import sys
from ipykernel.iostream import IOPubThread
from ipykernel.kernelapp import launch_new_instance
def no_network(thread): thread._pipe_flag = False
IOPubThread._setup_pipe_in = no_network
sys.path.remove("")
launch_new_instance()
"""


class _Kernel(KernelManager):
    """A kernel that is spoken to without a network, and that can reach no service itself."""

    def __init__(self, **options):
        if os.environ["SANDBOX_SOCKETS"] == "unix":
            options |= {"transport": "ipc", "ip": f"@{uuid.uuid4().hex}"}  # without a file
        super().__init__(**options)

    def format_kernel_cmd(self, *arguments, **options):
        _python, _m, _launcher, *rest = super().format_kernel_cmd(*arguments, **options)
        walls = Path("sandbox_walls.py").absolute()
        start = [sys.executable, "-I", "-S", str(walls), os.environ["SANDBOX_KERNEL"]]
        return [*start, "-c", KERNEL, *rest]


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
    reporter = config.reporter = _Reporter()

    def get_message(kernel, stream, timeout=None):
        """nbval's, but it sees that the kernel is dead, and reads as it is written to."""
        timeout = timeout or 60
        if stream == "shell" and not reporter.running:
            timeout = max(timeout, 60)  # a kernel may be slow to start
        deadline = time.monotonic() + timeout
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
    nbval.kernel.KernelManager = _Kernel
    RunningKernel.get_message = get_message
    RunningKernel.stop = lambda kernel: reporter.stop("hung") if reporter.running else stop(kernel)


def pytest_runtest_call(item):
    reporter = item.config.reporter
    reporter.cell, reporter.running = item.cell_num, True
    reporter.say()


def pytest_runtest_teardown(item):
    reporter = item.config.reporter
    if reporter.running:  # else it was not even begun: there was no kernel
        reporter.running = False
        reporter.say(finished=True)
