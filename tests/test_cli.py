"""The command `vaelab`, as a learner meets it. Nothing here asks the public internet."""

import inspect
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import namedtuple
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from jupyter_client.blocking import BlockingKernelClient
from typer.testing import CliRunner

import vaelab
from vaelab import __main__ as cli
from vaelab import datasets
from vaelab.datasets import DataFile
from vaelab.teaching import recipes
from vaelab.teaching.recipes import Recipe

ROOT = Path(__file__).parents[1]
TINY = Recipe(
    name="tiny",
    description="Simulated",
    data_set="simulated",
    load=lambda: vaelab.simulate.dataset(n_cells=120, n_genes=60, n_types=3),
    model={"likelihood": "poisson", "n_latent": 2, "n_hidden": 8},
    fit={"epochs": 2},
)


def invoke(*words: str):
    result = CliRunner().invoke(cli.app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    """One small data set, whose public source is a closed port; an empty cache; no mirror."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/letters.txt"
    file = DataFile(
        name="letters.txt",
        url=closed,
        size=3,
        sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # of "abc"
    )
    monkeypatch.setattr(datasets, "DATASETS", {"letters": (file,), "nothing": ()})
    monkeypatch.setattr(datasets, "TRIES", 1)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("VAELAB_MIRROR", raising=False)


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "letters.txt").write_text("abc")
    monkeypatch.setenv("VAELAB_MIRROR", str(tmp_path / "mirror"))


# --------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", [["vaelab"], ["python", "-m", "vaelab"]], ids=" ".join)
def test_help_is_reached_both_ways(command):
    command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0 and done.stderr == ""
    for word in ("Usage: vaelab", "course", "data", "train", "doctor"):
        assert word in done.stdout


@pytest.mark.parametrize("word", ["course", "data", "train", "doctor"])
def test_every_command_explains_itself(word):
    assert invoke(word, "--help").exit_code == 0


# --------------------------------------------------------------------------------------- data


def test_list_says_where_each_data_set_is(mirror, tmp_path):
    assert line(invoke("data", "list"), "letters").split()[-1] == "mirror"
    assert "ships with scanpy" in line(invoke("data", "list"), "nothing")
    invoke("data", "fetch", "letters")
    assert line(invoke("data", "list"), "letters").split()[-1] == "cache"
    assert str(tmp_path / "cache") in invoke("data", "list").output


def test_list_says_what_only_the_public_source_has():
    result = invoke("data", "list")
    assert result.exit_code == 0 and line(result, "letters").split()[-1] == "source"


def test_fetch_brings_files_into_the_cache(mirror, tmp_path):
    result = invoke("data", "fetch", "--all")
    assert result.exit_code == 0 and result.stderr == ""
    assert (tmp_path / "cache" / "letters.txt").read_text() == "abc"


def test_fetch_mends_a_damaged_file_and_says_so(mirror, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "letters.txt").write_text("abx")
    result = invoke("data", "fetch", "letters")
    assert result.exit_code == 0 and "replaced" in result.stderr
    assert (tmp_path / "cache" / "letters.txt").read_text() == "abc"


def test_fetch_that_fails_says_why_on_stderr():
    result = invoke("data", "fetch", "letters", "nothing")
    assert result.exit_code == 1
    assert "letters.txt" in result.stderr and "refused" in result.stderr
    assert "letters" not in result.stdout and "nothing" in result.stdout  # the others are fetched


def test_fetch_asks_which():
    result = invoke("data", "fetch")
    assert result.exit_code == 1 and "letters, nothing" in result.stderr


@pytest.mark.parametrize("verb", ["fetch", "verify"])
def test_unknown_data_set(verb):
    result = invoke("data", verb, "leters")
    assert result.exit_code == 1 and "letters, nothing" in result.stderr and not result.stdout


def test_verify(mirror, tmp_path):
    assert invoke("data", "verify").exit_code == 0  # nothing here, nothing damaged
    missing = invoke("data", "verify", "letters")
    assert missing.exit_code == 1 and line(missing, "letters").split()[-1] == "missing"
    invoke("data", "fetch", "letters")
    sound = invoke("data", "verify", "letters")
    assert sound.exit_code == 0 and line(sound, "letters").split()[-1] == "ok"
    (tmp_path / "cache" / "letters.txt").write_text("abx")
    damaged = invoke("data", "verify")
    assert damaged.exit_code == 1 and "wrong content" in line(damaged, "letters")


def line(result, start: str) -> str:
    (found,) = (line for line in result.output.splitlines() if line.split()[:1] == [start])
    return found


# -------------------------------------------------------------------------------------- train


def test_train_writes_parameters_and_card(monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": TINY})
    result = invoke("train", "tiny", "--seed", "3", "--epochs", "4", "--out", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"tiny.safetensors", "tiny.json"}
    model = vaelab.VAE.load(tmp_path / "new" / "tiny")
    card = model.card
    assert (card["recipe"], card["data"]["name"], card["seed"]) == ("tiny", "simulated", 3)
    assert card["fit"]["epochs"] == 4 and card["fit"]["batch_size"] == 128
    assert card["configuration"]["seed"] == 3
    assert card["scores"].keys() >= {"held_out_bound", "asw", "kmeans_ari", "leiden_nmi"}
    # The card's scores are those of the parameters beside it.
    cells = TINY.cells()
    scores = vaelab.metrics.clustering_scores(model.embed(cells), cells.labels)
    assert card["scores"]["asw"] == round(scores["asw"], 3)
    assert 0 <= card["seconds"] < 60


def test_a_training_that_is_stopped_is_kept_beside_the_whole_one(monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": TINY})
    calls = []

    def elbo(self, cells, **options):
        calls.append(cells)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return whole(self, cells, **options)

    whole = vaelab.VAE.elbo
    monkeypatch.setattr(vaelab.VAE, "elbo", elbo)
    result = invoke("train", "tiny", "--epochs", "50", "--out", str(tmp_path))
    assert result.exit_code == 0 and "Ctrl-C" in result.stdout
    assert vaelab.VAE.load(tmp_path / "tiny_interrupted").card["training"].startswith("stopped")
    assert not (tmp_path / "tiny.json").exists()

    calls[:] = [None] * 7  # now in the first epoch
    result = invoke("train", "tiny", "--out", str(tmp_path / "none"))
    assert result.exit_code == 1 and "nothing to save" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("words", [[], ["--list"]], ids=str)
def test_train_lists_recipes(words):
    result = invoke("train", *words)
    assert result.exit_code == 0
    for name, recipe in recipes.RECIPES.items():
        assert f"{recipe.description}" in line(result, name)


def test_train_by_an_unknown_name():
    result = invoke("train", "pancreas_nbb")
    assert result.exit_code == 1 and "pancreas_nb, pancreas_zinb" in result.stderr


@pytest.mark.parametrize(
    ("recipe", "epochs", "says"),
    [
        (TINY, "0", "at least 1"),
        (replace(TINY, model={"likelihood": "nbb"}), "1", "nbb"),
        (replace(TINY, load=lambda: datasets.fetch("letters", progress=False)), "1", "letters.txt"),
    ],
    ids=["epochs", "likelihood", "data"],
)
def test_train_that_cannot_start_says_why(monkeypatch, tmp_path, recipe, epochs, says):
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": recipe})
    result = invoke("train", "tiny", "--epochs", epochs, "--out", str(tmp_path / "none"))
    assert result.exit_code == 1 and says in result.stderr
    assert not (tmp_path / "none").exists()


def test_train_into_a_file_is_refused_before_training(monkeypatch, tmp_path):
    unreached = replace(TINY, load=lambda: pytest.fail("trained first"))
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": unreached})
    (tmp_path / "file").touch()
    result = invoke("train", "tiny", "--out", str(tmp_path / "file"))
    assert result.exit_code == 1 and "is a file" in result.stderr


def test_recipes_fit_the_library():
    for name, recipe in recipes.RECIPES.items():
        model = recipe.kind(n_genes=20, **recipe.model)
        domain = {"counts": "counts", "unit_interval": "unit interval", "log_normalized": "real"}
        assert recipe.name == name and model.domain == domain[recipe.layer]
        inspect.signature(vaelab.fit).bind(model, TINY, **recipe.fit)


def test_a_mixture_starts_from_kmeans_and_is_scored_by_its_own_clusters():
    recipe = recipes.RECIPES["pbmc_gmvae"]
    tiny = replace(
        recipe,
        load=lambda: vaelab.simulate.dataset(n_cells=240, n_genes=60, n_types=3, separation=4),
        model=recipe.model | {"n_clusters": 3, "n_latent": 5, "n_hidden": 16},
        fit={"epochs": 25},
    )
    model, _, card = tiny.train(progress=False)
    again, _, _ = tiny.train(progress=False)
    cells = tiny.cells()
    assert isinstance(model, vaelab.GMVAE)
    assert (model.cluster(cells) == again.cluster(cells)).all()  # the seed decides it all
    own = model.cluster(cells).argmax(1)
    ari = vaelab.metrics.adjusted_rand_index(cells.labels, own)
    assert card["scores"].keys() == {"held_out_bound", "ari", "nmi", "used"}
    assert card["scores"]["ari"] == round(ari, 3) > 0.8 and card["scores"]["used"] == 3
    assert card["start"].startswith("k-means")


def test_scanvi_is_scored_on_the_cells_whose_type_was_hidden(monkeypatch):
    from sklearn.metrics import balanced_accuracy_score, f1_score

    simulated = vaelab.simulate.dataset(n_cells=240, n_genes=60, n_types=3)
    monkeypatch.setattr(datasets, "pbmc_sorted", simulated.copy)
    recipe = recipes.RECIPES["pbmc_scanvi"]
    small = recipe.model | {"n_labels": 3, "n_latent": 4, "n_hidden": 16}
    model, _, card = replace(recipe, model=small, fit={"epochs": 4}).train(progress=False)
    adata = recipe.load()
    hidden = (adata.obs["known"] == "unknown").to_numpy()
    truth = adata.obs["cell_type"].to_numpy(dtype=str)
    assert (np.unique(truth[~hidden], return_counts=True)[1] == 20).all()
    assert (adata.obs["known"][~hidden] == truth[~hidden]).all()
    predicted = recipes.predicted_types(model, recipe.cells())[hidden]
    truth = truth[hidden]
    scores = {
        "accuracy": (predicted == truth).mean(),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted),
        "macro_f1": f1_score(truth, predicted, average="macro"),
    }
    assert card["scores"].items() >= {k: round(v, 3) for k, v in scores.items()}.items()


def test_labels_of_the_second_mouse_are_hidden(monkeypatch):
    def pancreas(mouse):
        return vaelab.simulate.dataset(n_cells=30, n_genes=20, n_types=2, seed=mouse)

    monkeypatch.setattr(datasets, "pancreas", pancreas)
    adata = recipes.two_mice()
    hidden = adata.obs["known"] == "unknown"
    assert (hidden == (adata.obs["mouse"] == "mouse 2")).all() and hidden.sum() == 30
    first = pancreas(1)
    assert (adata.obs["known"][:30].to_numpy() == first.obs["cell_type"].astype(str)).all()
    assert (adata.X[:30] != first.X).sum() == 0


# ------------------------------------------------------------------------------------- doctor


def test_doctor_finds_this_environment_healthy(mirror):
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    for part in (
        "Python 3.",
        f"vaelab {version('vaelab')} in",
        "torch",
        "memory",
        "disk",
        "data letters: mirror",
    ):
        assert f"✓ {part}" in result.output
    assert "✓ Jupyter kernel python3" in result.output
    assert f"✓ can write to {ROOT / 'saved_model_parameters'}" in result.output


@pytest.fixture
def kernel_aside(monkeypatch):
    """The slow checks, when another is meant."""
    monkeypatch.setattr(cli, "_kernel", lambda: (True, "kernel"))
    monkeypatch.setattr(cli, "_walls", lambda: [])


def test_doctor_says_what_contains_notebooks(monkeypatch):
    from vaelab.teaching import sandbox

    ways = [sandbox._Way("a broken way", ("/bin/sh", "-c", "echo no luck; exit 1"))]
    monkeypatch.setattr(sandbox, "_ways", lambda: ways)
    monkeypatch.setattr(cli, "_kernel", lambda: (True, "kernel"))
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "memory of a run is counted" in result.output or "not Linux" in result.output
    if sys.platform.startswith("linux"):
        assert "! grading: a broken way: no luck" in result.output


@pytest.mark.parametrize("seconds", ["inf", "nan", "0", "-5"])
def test_grade_refuses_seconds_that_are_none(tmp_path, seconds):
    (tmp_path / "ada.ipynb").write_text("{}")
    options = ["--out", str(tmp_path / "out"), f"--seconds={seconds}"]
    result = invoke("grade", str(tmp_path), *options)
    assert result.exit_code == 1
    assert "a finite number above 0" in result.stderr
    assert not (tmp_path / "out").exists()


def test_doctor_takes_missing_data_lightly(kernel_aside):
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "! data letters" in result.output and "vaelab data fetch letters" in result.output


def test_doctor_wants_to_write(kernel_aside, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path / "file"))
    result = invoke("doctor")
    assert result.exit_code == 1 and f"✗ can't write to {tmp_path / 'file'}" in result.output


@pytest.mark.parametrize(
    ("total", "available", "mark", "code"), [(8e9, 1e9, "!", 0), (1e9, 1e9, "✗", 1)]
)
def test_doctor_wants_memory(kernel_aside, monkeypatch, total, available, mark, code):
    memory = namedtuple("memory", "total available")(total, available)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    result = invoke("doctor")
    assert result.exit_code == code and f"{mark} memory" in result.output


def test_doctor_sees_a_kernel_that_lacks_vaelab(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'vaelab'\" >&2; exit 1"
    )
    python.chmod(0o755)
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(python)], "display_name": "", "language": ""}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "✗ Jupyter kernel" in result.output and "No module named 'vaelab'" in result.output
    assert "ipykernel install" in result.output
    python.unlink()
    assert "✗ Jupyter kernel" in invoke("doctor").output


def test_doctor_without_jupyter(monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyter_client.kernelspec", None)
    result = invoke("doctor")
    assert result.exit_code == 1 and "✗ Jupyter is not installed" in result.output


def test_doctor_on_a_terminal_without_signs(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "VAELAB_DATA": str(tmp_path / "σ")}
    command = [sys.executable, "-m", "vaelab", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="latin-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok Python") and f"can write to {tmp_path}/?" in done.stdout


# ------------------------------------------------------------------------------------- course


def test_course_serves_until_ctrl_c(tmp_path):
    """It opens START, lists what a learner needs, asks nobody for news, and ends with Ctrl-C."""
    environment = os.environ | {"BROWSER": "no", "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    environment |= {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")}
    environment |= {"PATH": os.defpath}  # as where nobody activated the environment
    work = tmp_path / "my-course"
    code = (
        "import sys; from pathlib import Path; from vaelab import __main__ as cli; "
        "cli.WORK = Path(sys.argv.pop()); cli.app(['course'])"
    )
    keyboard, terminal = pty.openpty()  # at a terminal Jupyter would ask whether that was meant
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(work)],
        env=environment, cwd=tmp_path, text=True, stdin=terminal, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    limit = threading.Timer(90, server.kill)
    limit.start()
    try:
        address = next((line.strip() for line in server.stdout if "//" in line), "none")
        assert "/lab/tree/START.ipynb?" in address, server.stderr.read()
        with urllib.request.urlopen(address, timeout=30) as page:
            assert page.status == 200 and b"JupyterLab" in page.read()
        home, token = re.fullmatch(r"(.*)/lab/tree/START.ipynb\?token=(\w+)", address).groups()

        def ask(path: str, method: str = "GET"):
            headers = {"Authorization": f"token {token}"}
            request = urllib.request.Request(home + path, headers=headers, method=method)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        listed = {file["name"] for file in ask("/api/contents/")["content"]}
        assert listed == {"START.ipynb", "lessons"}
        lessons = {file["name"] for file in ask("/api/contents/lessons")["content"]}
        assert lessons == {path.name for path in (ROOT / "course" / "exercises").iterdir()}
        assert ask("/api/contents/evidence/04_vae.py")["name"] == "04_vae.py"  # lessons link to it
        news = ask("/lab/api/settings/@jupyterlab/apputils-extension:notification")
        assert news["schema"]["properties"]["fetchNews"]["default"] == "false"
        (panels,) = ask("/lab/api/workspaces/")["workspaces"]["values"]
        assert panels["data"]["layout-restorer:data"]["left"]["current"] == "@jupyterlab/toc:plugin"
        kernel = ask("/api/kernels", "POST")["id"]
        client = BlockingKernelClient()
        client.load_connection_file(str(tmp_path / "RUNTIME" / f"kernel-{kernel}.json"))
        client.start_channels()
        client.wait_for_ready(timeout=60)  # by now it would have warned, which ends on stderr
        asked = {"command": "__import__('shutil').which('vaelab')"}  # START says to give it
        found = client.execute("", user_expressions=asked, reply=True, timeout=60)["content"]
        client.stop_channels()
        assert "vaelab" in found["user_expressions"]["command"]["data"]["text/plain"]
        server.send_signal(signal.SIGINT)
        last, said = server.stdout.read(), server.stderr.read()
        assert last.endswith("\nThe course is closed.\n") and said == ""
        assert server.wait() == 0
    finally:
        limit.cancel()
        server.kill()
        os.close(keyboard)
        os.close(terminal)


def test_course_without_jupyterlab(monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)
    result = invoke("course")
    assert result.exit_code == 1 and 'pip install "vaelab[course]"' in result.stderr


def test_course_without_lessons(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)  # never serve from here
    result = invoke("course")
    assert result.exit_code == 1 and "make course" in result.stderr
