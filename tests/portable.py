"""Run lessons and numeric tests as on other processors; print what differs, and by how much.

    make portable            or     python tests/portable.py [course/04_vae.py …] [--least-similar]

Each processor has its own kernels for sums and products. This program makes the libraries choose
those of another processor: OpenBLAS (numpy, scipy), torch with oneDNN and MKL, the elementary
functions of numpy and of the system, on one thread and on two. For each choice it runs the lessons
with nbval and compares each printed number with the notebook's, as printed.py does. The table says,
per lesson, how many numbers there are, how many differ, and the largest difference in units of the
last digit, with its place and its tolerance. build/portable/ keeps the results as JSON. A processor
that this machine cannot imitate is skipped, and a line says so.

Exit status: 1 if a lesson or a test failed, else 0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "portable"
NUMERIC = [  # the tests of results of models, likelihoods, trainings and metrics
    ROOT / "tests" / f"test_{name}.py"
    for name in (
        *("bounds", "distributions", "exercises", "gmvae", "likelihoods", "metrics"),
        *("preprocessing", "reparametrization", "scanvi", "scvi", "simulate", "training", "vae"),
    )
]
INSTRUCTIONS = {  # the most that torch, oneDNN, MKL and the system's elementary functions use
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",  # MKL has no other choice on a processor that is not Intel's
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "DNNL_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_CBWR": "AVX512",
    },
}
BEYOND = {"default": "X86_V[34]|AVX.*|FMA.*|F16C", "avx2": "X86_V4|AVX512.*", "avx512": "(?!)"}
CHOICES = ("OPENBLAS_", "ATEN_", "DNNL_", "ONEDNN_", "MKL_", "NPY_", "OMP_", "NUMBA_NUM", "GLIBC_")

# Runs in a fresh interpreter, because each library reads its variables only once.
LOOK = """
import json, numpy, scipy.linalg, threadpoolctl, torch
blas = [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"]
core = getattr(numpy, "_core", None) or numpy.core
features = core._multiarray_umath.__cpu_features__
print(json.dumps({
    "kernels": {
        library: pool["architecture"]
        for library in ("numpy", "scipy")
        for pool in blas
        if f"{library}.libs" in pool["filepath"]
    },
    "torch": torch.backends.cpu.get_cpu_capability().lower(),
    "threads": torch.get_num_threads(),
    "features": [f for f in core._multiarray_umath.__cpu_dispatch__ if features.get(f)],
}))
"""


@dataclass(frozen=True)
class Processor:
    """A processor to imitate.

    Parameters
    ----------
    kernel
        The OpenBLAS kernel.
    instructions
        The newest instructions for everything else: torch with oneDNN and MKL, numpy, the system.
    threads
        The number of threads.
    """

    kernel: str
    instructions: str
    threads: int

    def __str__(self):
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.kernel}, {self.instructions}, {threads}"

    def is_within(self, instructions: str) -> bool:
        """True if a machine with these instructions can imitate it."""
        known = list(INSTRUCTIONS)
        return known.index(self.instructions) <= known.index(instructions)

    def environment(self, features: list[str]) -> dict[str, str]:
        """Variables that choose its kernels, given the CPU features that numpy finds here."""
        off = [name for name in features if re.fullmatch(BEYOND[self.instructions], name)]
        threads = str(self.threads)
        return INSTRUCTIONS[self.instructions] | {
            "OPENBLAS_CORETYPE": self.kernel,
            "NPY_DISABLE_CPU_FEATURES": " ".join(off),
            "OMP_NUM_THREADS": threads,
            "NUMBA_NUM_THREADS": threads,
        }


PROCESSORS = [  # together every kernel, every instruction set, and both numbers of threads
    Processor("Nehalem", "default", 1),
    Processor("SkylakeX", "avx512", 1),
    Processor("Haswell", "avx2", 2),
    Processor("Zen", "default", 2),
    Processor("SkylakeX", "avx512", 2),
    Processor("Haswell", "avx2", 1),
]
LEAST_SIMILAR = PROCESSORS[0]  # from any machine of the last ten years


def own() -> dict[str, str]:
    """This process's variables, without those that choose kernels or threads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(CHOICES)}


def look(environment: dict[str, str]) -> dict | None:
    """The kernels in use in a process with these variables; None if the process dies."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


@dataclass
class Lesson:
    """The numbers that a lesson printed on one processor.

    Parameters
    ----------
    name
        The name of its file.
    cells
        The record that printed.py wrote for each cell.
    failed
        The cells that failed, as pytest names them.
    """

    name: str
    cells: list[dict]
    failed: list[str]

    def lines(self) -> list[str]:
        """The lesson's line of the table, and one line for each problem."""
        numbers = [
            number | {"cell": cell["cell"]} for cell in self.cells for number in cell["numbers"]
        ]
        differ = [number for number in numbers if number["units"]]
        line = f"{self.name:<32} {len(numbers):>7} {len(differ):>6}"
        if differ:
            most = max(differ, key=lambda number: (number["units"], number["relative"]))
            line += (
                f" {most['units']:>6g} {most['relative']:>8.1e} {most['tolerance']:>9g}   "
                f"cell {most['cell']}: {most['expected']} -> {most['seen']}"
            )
        wrong = [
            f"    cell {cell['cell']}: {said}" for cell in self.cells for said in cell["complaints"]
        ]
        return [line, *wrong, *(f"    {line}" for line in self.failed)]


HEADER = f"{'':<32} {'numbers':>7} {'differ':>6} {'units':>6} {'relative':>8} {'tolerance':>9}"


def run_pytest(environment: dict[str, str], *words: str) -> tuple[list[str], str]:
    """The failures of a run, one line for each, and the run's last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", *words],
        cwd=ROOT,
        env=environment | {"VAELAB_BUDGET_SLACK": "10"},  # time is not tested here
        capture_output=True,
        text=True,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode and not failed:
        failed = lines[-5:]
    return failed, lines[-1] if lines else ""


def run_lesson(notebook: Path, environment: dict[str, str], folder: Path) -> Lesson:
    record = folder / f"{notebook.stem}.jsonl"
    record.unlink(missing_ok=True)
    failed, _ = run_pytest(
        environment, str(notebook), "--nbval", "--nbval-cell-timeout=900",
        "--record-numbers", str(record),
    )  # fmt: skip
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return Lesson(notebook.stem, [json.loads(line) for line in lines], failed)


def run_processor(processor: Processor, environment, notebooks: list[Path], tests: bool) -> dict:
    """Run everything on one processor, and print each line when it is known."""
    folder = OUT / re.sub(r"\W+", "-", str(processor)).lower()
    folder.mkdir(parents=True, exist_ok=True)
    print(HEADER)
    lessons, failed = [], []
    for notebook in notebooks:
        lesson = run_lesson(notebook, environment, folder)
        print(*lesson.lines(), sep="\n", flush=True)
        lessons.append(lesson)
        failed += lesson.failed
    if tests:
        wrong, last = run_pytest(environment, *map(str, NUMERIC))
        print(f"numeric tests: {last}", *wrong, sep="\n    ", flush=True)
        failed += wrong
    return {"lessons": [asdict(lesson) for lesson in lessons], "failed": failed}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lessons", nargs="*", type=Path, help="course/NN_name.py; default: all")
    parser.add_argument("--least-similar", action="store_true", help="one processor, lessons only")
    asked = parser.parse_args(words)
    lessons = asked.lessons or sorted((ROOT / "course").glob("[0-9]*.py"))
    notebooks = [lesson.resolve().with_suffix(".ipynb") for lesson in lessons]
    tests = not (asked.lessons or asked.least_similar)
    machine, results = look(own()), {}
    for processor in [LEAST_SIMILAR] if asked.least_similar else PROCESSORS:
        print(f"\n{processor}")
        environment = own() | processor.environment(machine["features"])
        in_use = processor.is_within(machine["torch"]) and look(environment)
        if not in_use:
            print("    skipped: this machine does not have the instructions")
            continue
        del in_use["features"]
        kernels = ", ".join(f"{library} {kernel}" for library, kernel in in_use["kernels"].items())
        print(f"    in use: {kernels}, torch {in_use['torch']}, threads {in_use['threads']}")
        if {*in_use["kernels"].values()} != {processor.kernel}:
            print(f"    no library here has kernels for {processor.kernel}; these are the nearest")
        if same := [name for name, result in results.items() if in_use.items() <= result.items()]:
            print(f"    skipped: the same as {same[0]}")
            continue
        results[str(processor)] = in_use | run_processor(processor, environment, notebooks, tests)
        (OUT / "portable.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    failed = [line for result in results.values() for line in result["failed"]]
    print(
        f"\n{len(results)} processors, {len(failed)} failures; each number: {OUT.relative_to(ROOT)}"
    )
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
