"""The command ``vaelab``: open the course, get the data, train, grade, find problems."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from . import datasets

REPOSITORY = Path(__file__).resolve().parents[1]  # in a checkout
IN_CHECKOUT = (REPOSITORY / "pyproject.toml").is_file()
ROOT = REPOSITORY if IN_CHECKOUT else Path.cwd()
SAVED = ROOT / "saved_model_parameters"
EDITIONS = ROOT / "course" / "exercises"
EVIDENCE = ROOT / "course" / "evidence"
WORK = ROOT / "my-course"  # the learner's folder
ENOUGH_MEMORY = 2e9  # bytes: the budget of a lesson

app = typer.Typer(
    help="Variational autoencoders for single-cell RNA-seq: the course and its tools.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="List, fetch and verify the data sets.", no_args_is_help=True)
app.add_typer(data, name="data")
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")]


@app.callback()
def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # an ASCII terminal gets "?" instead of a traceback


def _fail(sentence: object) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(1)


# ------------------------------------------------------------------------------------- course


@app.command()
def course(
    browser: Annotated[bool, typer.Option(help="Open a web browser.")] = True,
    update: Annotated[
        bool, typer.Option("--update", help="Also bring new versions of the notebooks there.")
    ] = False,
) -> None:
    """Bring the lessons into my-course/ and open them in JupyterLab; Ctrl-C ends it.

    What you wrote in my-course/ is never written over. BROWSER=no opens no web browser."""
    if not (ROOT / "course" / "exercises").is_dir():
        _fail(
            "There is no course folder next to this package: the lessons are in the repository. "
            "Clone it and run `make course` there."
        )
    try:
        from jupyterlab.labapp import LabApp

        from .teaching import my_course
    except ImportError:
        _fail('JupyterLab is not installed here. Install it with: pip install "vaelab[course]"')
    try:
        for sentence in my_course.bring(ROOT, WORK, update):
            typer.echo(sentence)
        options = my_course.arrange_jupyterlab(WORK)
    except OSError as error:
        _fail(error)
    # In JupyterLab's terminals `vaelab` is a command, also if its environment is not active.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    server = LabApp.initialize_server(
        [
            *options,
            f"--ServerApp.open_browser={browser and os.environ.get('BROWSER') != 'no'}",
            f"--ServerApp.allow_root={as_root}",
            "--ServerApp.log_level=ERROR",
            "--LabApp.log_level=ERROR",
        ]
    )
    # Jupyter's long greetings have this level; errors have another and are still shown.
    server.log.addFilter(lambda record: record.levelno != logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))  # stop without asking
    address = f"The course is at\n\n    {server.local_url}\n\nCtrl-C ends it."
    server.io_loop.add_callback(typer.echo, address)  # once the server answers
    server.start()
    typer.echo("\nThe course is closed.")


@app.command()
def progress() -> None:
    """Say which exercises you have done, which misconceptions you met, and what to repeat."""
    from .teaching import progress

    folder = progress.folder_of() or progress.folder_of(WORK)
    if folder is None:
        _fail("There is no record of your exercises yet: `vaelab course` makes the folder for it.")
    typer.echo(progress.read(folder))


# --------------------------------------------------------------------------------------- data


def _known_names(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in datasets.DATASETS:
            _fail(
                f"No data set is called {name!r}. The data sets are {', '.join(datasets.DATASETS)}."
            )
    return list(dict.fromkeys(names or datasets.DATASETS))


def _where(name: str) -> str:
    """Where the files of a data set are, for example "cache" or "cache (1), source (9)"."""
    places = Counter(datasets.locate(name).values())
    if not places:
        return "ships with scanpy"
    several = len(places) > 1
    return ", ".join(f"{place} ({n})" if several else place for place, n in places.items())


@data.command("list")
def list_() -> None:
    """List the data sets, their sizes, and where they are: cache, mirror, or only public source."""
    typer.echo(f"{'data set':18}{'files':>5}{'unpacked':>12}  found in")
    for name, files in datasets.DATASETS.items():
        known = all(file.size for file in files)
        size = f"{sum(file.size for file in files) / 1e6:.1f} MB" if known and files else "?"
        typer.echo(f"{name:18}{len(files):5}{size if files else '':>12}  {_where(name)}")
    typer.echo(f"\ncache: {datasets.cache_folder()}")
    typer.echo(f"mirror: {os.environ.get('VAELAB_MIRROR') or 'none (VAELAB_MIRROR is not set)'}")


@data.command()
def fetch(
    names: Names = None,
    all_: Annotated[bool, typer.Option("--all", help="Every data set.")] = False,
) -> None:
    """Download data sets into the cache, and check them."""
    if not names and not all_:
        _fail(f"Which data sets? Name some of {', '.join(datasets.DATASETS)}, or use --all.")
    failed = False
    for name in _known_names(None if all_ else names):
        try:
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always")  # whatever PYTHONWARNINGS says
                paths = datasets.fetch(name, progress=sys.stderr.isatty())
            for note in notes:
                typer.echo(note.message, err=True)
            where = f"{len(paths)} files in {paths[0].parent}" if paths else _where(name)
            typer.echo(f"{name}: {where}")
        except OSError as error:
            failed = True
            typer.echo(error, err=True)
    if failed:
        raise typer.Exit(1)


@data.command()
def verify(names: Names = None) -> None:
    """Compare the files in the cache with their content hashes.

    Exit code 1 if a file is damaged, or if a file of a named data set is missing."""
    failed = False
    for name in _known_names(names):
        for file, state in datasets.verify(name).items():
            typer.echo(f"{name:18}{file:54}{state}")
            failed |= state not in ("ok", "missing") or (state == "missing" and bool(names))
    if failed:
        raise typer.Exit(1)


# -------------------------------------------------------------------------------------- train


@app.command()
def train(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    seed: Annotated[int, typer.Option(help="Random seed for weights, split and draws.")] = 0,
    out: Annotated[Path, typer.Option(show_default="saved_model_parameters")] = SAVED,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's number.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only list the recipes.")] = False,
) -> None:
    """Train a recipe and write NAME.safetensors and its card NAME.json. Without NAME: a list."""
    from .teaching.recipes import RECIPES
    from .training import StopReason, TrainingError

    if name is None or list_:
        for recipe in RECIPES.values():
            typer.echo(f"{recipe.name:32}{recipe.description}")
        return
    if name not in RECIPES:
        _fail(f"No recipe is called {name!r}. The recipes are {', '.join(RECIPES)}.")
    if out.exists() and not out.is_dir():
        _fail(f"{out} is a file, but --out takes a folder.")
    try:
        model, history, card = RECIPES[name].train(seed, epochs, progress=sys.stdout.isatty())
        if not history.records:
            _fail("Stopped before the end of the first epoch; there is nothing to save.")
        if history.reason is StopReason.INTERRUPTED:  # must not replace a finished training
            name += "_interrupted"
        path = model.save(out / name, half=True, overwrite=True, **card)
    except (OSError, ValueError, TrainingError) as error:
        _fail(error)
    typer.echo(f"{card['training']}; {card['seconds']} s")
    typer.echo("  ".join(f"{score} {value:g}" for score, value in card["scores"].items()))
    typer.echo(f"Wrote {path} and its card.")


# ---------------------------------------------------------------------------------- evidence


@app.command()
def evidence(
    lesson: Annotated[str | None, typer.Argument(metavar="[LESSON]")] = None,
    claims: Annotated[list[str] | None, typer.Argument(metavar="[CLAIM]...")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Run also what has not changed since its last run.")
    ] = False,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Run one seed of what changed; the rest if it differs."),
    ] = False,
) -> None:
    """Run the claims of a lesson with every seed, and write their results next to them.

    For example: vaelab evidence 04, or vaelab evidence 04 short_name. Exit code 1 if a claim does
    not hold. After Ctrl-C, run it again to go on. Without LESSON: a list."""
    from tqdm import tqdm

    from .teaching import experiments
    from .teaching.evidence import in_words
    from .training import TrainingError

    if lesson is None:
        _list_evidence()
        return
    lesson = lesson.zfill(2)
    path = next(iter(sorted(EVIDENCE.glob(f"{lesson}_*.py"))), None)
    if path is None:
        there = ", ".join(file.stem[:2] for file in sorted(EVIDENCE.glob("[0-9]*.py"))) or "none"
        _fail(f"There is no {EVIDENCE / lesson}_….py. The lessons with evidence are: {there}.")
    failed = False
    try:
        all_, results = experiments.load(path), experiments.read_results(path)
        wanted = [f"E{lesson}.{name.rpartition('.')[2]}" for name in claims or ()] or [*all_]
        if unknown := [id for id in wanted if id not in all_]:
            _fail(f"There is no claim {unknown[0]}. The claims are {', '.join(all_)}.")
        n_seeds, show = sum(len(all_[id].seeds) for id in wanted), sys.stderr.isatty()
        with tqdm(total=n_seeds, unit="seed", disable=not show, file=sys.stderr) as bar:
            for id in wanted:
                bar.set_description(id)
                options = {"again": again, "renew": renew, "step": bar.update}
                done = bar.n
                result, how = experiments.prove(path, all_[id], results.get(id), **options)
                bar.update(done + len(all_[id].seeds) - bar.n)
                results[id] = result
                experiments.write_results(path, {i: results[i] for i in all_ if i in results})
                seconds = "" if how == "kept" else f", {sum(result['seconds']):.0f} CPU s"
                bar.write(f"{in_words(id, result)} ({how}{seconds})", file=sys.stdout)
                failed |= not result["holds"]
    except KeyboardInterrupt:
        typer.echo(
            "Interrupted. Finished claims are kept. Run the same command again to go on.", err=True
        )
        raise typer.Exit(130) from None
    except (OSError, ValueError, TrainingError) as error:
        _fail(error)
    typer.echo(f"Wrote {path.with_suffix('.json')}.")
    if failed:
        raise typer.Exit(1)


def _list_evidence() -> None:
    """Each claim of each lesson, and the state of its result."""
    from .teaching import experiments

    try:
        for path in sorted(EVIDENCE.glob("[0-9]*.py")):
            results = experiments.read_results(path)
            for id, claim in experiments.load(path).items():
                result = results.get(id)
                if result is None:
                    state = "never run"
                elif result["digest"] != experiments.digest(path, claim):
                    state = "stale"
                else:
                    state = "holds" if result["holds"] else "does not hold"
                typer.echo(f"{id:32}{state:15}{claim.sentence}")
    except (OSError, ValueError) as error:
        _fail(error)


# ----------------------------------------------------------------------------------- release


@app.command()
def release(
    lessons: Annotated[list[Path] | None, typer.Argument(metavar="[LESSON.py]...")] = None,
    out: Annotated[Path, typer.Option(show_default="course/exercises")] = EDITIONS,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if a file differs.")
    ] = False,
) -> None:
    """Make the learner's editions, with stubs for solutions. Without LESSON.py: of all lessons."""
    from ._internal.machine import write_atomically
    from .teaching import editions

    masters = lessons or sorted((REPOSITORY / "course").glob("[0-9]*.py"))
    if not masters:
        _fail("There are no lessons next to this package. Name the .py of a lesson.")
    if out.exists() and not out.is_dir():
        _fail(f"{out} is a file, but --out takes a folder.")
    made = {}
    try:
        for lesson in masters:
            edition = editions.release(lesson)
            if edition is not None:
                made[out / f"{lesson.stem}.ipynb"] = editions.to_text(edition).encode()
            elif lessons:
                typer.echo(f"{lesson} has no exercises.")
        if check:
            wrong = _differing(made) + ([] if lessons else _superfluous(made, out))
            if wrong:
                _fail(f"{out} differs from what `vaelab release` makes: {', '.join(wrong)}.")
            return
        for path in made:
            if path.exists() and not editions.is_untouched(path):
                _fail(f"{path} was changed since its release. Move it, so that no answer is lost.")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(made)
    except ImportError as error:
        _fail(f'{error.name} is not installed here. Install it with: pip install "vaelab[course]"')
    except (OSError, ValueError) as error:
        _fail(error)
    for path in made:
        typer.echo(f"Wrote {path}.")


def _differing(made: dict[Path, bytes]) -> list[str]:
    missing = [path for path in made if not path.exists()]
    differ = [path for path in made if path not in missing and path.read_bytes() != made[path]]
    return [f"{p.name} is missing" for p in missing] + [f"{p.name} differs" for p in differ]


def _superfluous(made: dict[Path, bytes], out: Path) -> list[str]:
    others = sorted({*out.glob("*.ipynb")} - {*made})
    return [f"{path.name} belongs to no lesson (remove it)" for path in others]


# ------------------------------------------------------------------------------------ slides


@app.command()
def slides(
    lessons: Annotated[list[Path] | None, typer.Argument(metavar="[LESSON.ipynb]...")] = None,
    out: Annotated[Path, typer.Option(show_default="build/slides")] = ROOT / "build" / "slides",
) -> None:
    """Make slides, one HTML file for each lesson, and answers.html. Without LESSON: of all."""
    from ._internal.machine import write_atomically
    from .teaching import slides

    paths = lessons or sorted((ROOT / "course").glob("[0-9]*.ipynb"))
    if not paths:
        _fail("There are no lessons next to this package. Name the .ipynb of a lesson.")
    try:
        made = {out / f"{path.stem}.html": slides.deck(path).encode() for path in paths}
        made[out / "answers.html"] = slides.answers_page(paths).encode()
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(made)
    except ImportError as error:
        _fail(f'{error.name} is not installed here. Install it with: pip install "vaelab[dev]"')
    except (OSError, ValueError) as error:
        _fail(error)
    for path, page in made.items():
        typer.echo(f"Wrote {path} ({len(page) / 1e6:.1f} MB).")


# ------------------------------------------------------------------------------------- grade


@app.command()
def grade(
    submissions: Annotated[list[Path], typer.Argument(metavar="SUBMISSION...")],
    out: Annotated[Path, typer.Option(help="A folder for grades, feedback and report.")],
    lesson: Annotated[
        str | None, typer.Option(help='For example "05"; default: most frequent.')
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the hidden inputs.")] = 1,
    salt: Annotated[
        str,
        typer.Option(envvar="VAELAB_SALT", help="A secret, so that nobody guesses the inputs."),
    ] = "",
    jobs: Annotated[int | None, typer.Option(help="Number of notebooks at a time.")] = None,
    seconds: Annotated[float, typer.Option(help="Time limit of a notebook.")] = 300,
    editions: Annotated[Path, typer.Option(show_default="course/exercises")] = EDITIONS,
    uncontained: Annotated[
        bool,
        typer.Option("--uncontained", help="Run notebooks even where nothing contains them."),
    ] = False,
) -> None:
    """Grade notebooks: files, zips, or folders of them. After Ctrl-C, run it again to go on."""
    from .teaching import grading
    from .teaching.report import NOT_CONTAINED
    from .teaching.sandbox import Limits

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # same as Ctrl-C: no process stays
    progress = sys.stderr.isatty()

    def tell(sentence: str) -> None:
        typer.echo(f"Not taken: {sentence}", err=True)

    try:
        limits = Limits(seconds=seconds, cell_seconds=min(60, seconds))
        rows, contained = grading.grade(
            submissions,
            out,
            editions,
            lesson=lesson,
            seed=seed,
            salt=salt,
            jobs=jobs,
            limits=limits,
            progress=progress,
            uncontained=uncontained,
            tell=tell,
        )
    except (OSError, ValueError) as error:
        _fail(error)
    except KeyboardInterrupt:
        typer.echo(
            "Interrupted. What was graded is kept. Run the same command again to go on.", err=True
        )
        raise typer.Exit(130) from None
    for row in rows:
        typer.echo(f"{row['name']:30}{row['total']:4} of {row['max']}  {row['note']}".rstrip())
    if not contained:
        typer.echo(NOT_CONTAINED, err=True)
    typer.echo(f"Wrote grades.csv, report.html and feedback/ in {out}.")


# ------------------------------------------------------------------------------------- doctor


@app.command()
def doctor() -> None:
    """Check if the course can run here, and say what to do if it cannot."""
    marks = {True: "✓", False: "✗", None: "!"}
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        marks = {True: "ok", False: "no", None: "! "}
    healthy = True
    for good, text in _diagnose():  # None is a warning
        typer.echo(f"{marks[good]} {text}")
        healthy &= good is not False
    if not healthy:
        raise typer.Exit(1)


def _diagnose() -> Iterator[tuple[bool | None, str]]:
    import psutil
    import torch

    yield sys.version_info >= (3, 11), f"Python {platform.python_version()} (3.11 or newer)"
    yield True, f"vaelab {version('vaelab')} in {Path(__file__).parent}"

    mps = torch.backends.mps.is_available()
    device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        works = torch.ones(3, device=device).sum().item() == 3
    except (AssertionError, RuntimeError):  # the driver is too old, or the card is in use
        works = False
    yield works, f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads"

    memory = psutil.virtual_memory()
    memory_text = f"memory {memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB available"
    if memory.total < ENOUGH_MEMORY:
        yield False, f"{memory_text}; a lesson may need 2 GB"
    elif memory.available < ENOUGH_MEMORY:
        yield None, f"{memory_text}; a lesson may need 2 GB: close other programs"
    else:
        yield True, memory_text

    cache = datasets.cache_folder()
    free = shutil.disk_usage(_existing(cache)).free
    yield free > 1e9 or None, f"disk {free / 1e9:.1f} GB free in {cache}"
    for name in datasets.DATASETS:
        found = _where(name)
        if "source" in found:
            yield None, f"data {name}: {found}; to download it: vaelab data fetch {name}"
        else:
            yield True, f"data {name}: {found}"
    yield _kernel()
    for folder in (cache, SAVED):
        yield _writable(folder)
    yield from _walls()


def _walls() -> Iterator[tuple[bool | None, str]]:
    """What would contain learners' notebooks here; nobody needs it but who grades."""
    from .teaching.sandbox import walls_of_this_machine

    for works, says in walls_of_this_machine():
        yield works or None, f"grading: {says}"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _writable(folder: Path) -> tuple[bool, str]:
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return True, f"can write to {folder}"
    except OSError as error:
        return False, f"can't write to {folder}: {error.strerror}"


def _kernel() -> tuple[bool, str]:
    try:
        from jupyter_client.kernelspec import NoSuchKernel
        from jupyter_client.manager import KernelManager

        python = KernelManager(kernel_name="python3").format_kernel_cmd()[0]
        imports = [python, "-c", "import ipykernel, vaelab"]
        # Run in another folder: in the repository any Python would find vaelab.
        done = subprocess.run(imports, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    except ImportError:
        return False, 'Jupyter is not installed. Install it with: pip install "vaelab[course]"'
    except (NoSuchKernel, OSError) as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return True, f"Jupyter kernel python3 is {python}"
        reason = f"{python}: " + (done.stderr.strip().splitlines() or ["no answer"])[-1]
    cure = f"{sys.executable} -m ipykernel install --sys-prefix"
    return False, f"Jupyter kernel python3 can't run the lessons ({reason}). Fix it with: {cure}"


if __name__ == "__main__":
    app(prog_name="vaelab")
