"""Saved models: what comes back is what was saved, anything else is refused in a sentence, and a
write that fails leaves the old files whole.
"""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vaelab import LIKELIHOODS, VAE, Cells, fit
from vaelab.models import Model, ParameterFileError, base

N_GENES = 7
NAMES = tuple(f"gene {g}" for g in range(N_GENES))


class OtherModel(Model):
    """A model that is not a VAE."""

    def __init__(self, n_genes):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(n_genes))


def some_cells(likelihood="nb", names=NAMES):
    x = np.random.default_rng(0).poisson(3.0, size=(30, N_GENES)) + 1.0
    return Cells.from_array(x / 20 if likelihood == "continuous_bernoulli" else x, gene_names=names)


@pytest.fixture(scope="module")
def fitted():
    model = VAE(N_GENES, n_latent=3, n_hidden=5, likelihood="nb", normalization="batch")
    fit(model, some_cells(), epochs=2, batch_size=10, progress=False)
    return model


@pytest.fixture
def saved(fitted, tmp_path):
    return fitted.save(tmp_path / "model", data="simulated", seed=0)


def rewrite(path, content):
    """Put other parameters under the name, with a card that vouches for them."""
    path.write_bytes(content)
    change_card(path, sha256=hashlib.sha256(content).hexdigest())


def change_card(path, **changes):
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | changes))


def assert_same_model(a, b, cells):
    assert all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())
    assert np.array_equal(a.embed(cells), b.embed(cells))
    assert np.array_equal(a.elbo_per_cell(cells), b.elbo_per_cell(cells))


# ------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("normalization", ["layer", "batch", None])
@pytest.mark.parametrize(
    ("likelihood", "dispersion"),
    [
        *((name, "gene") for name in LIKELIHOODS),
        ("nb", "gene-cell"),
        ("zinb", "gene-cell"),
        ("nb", "scalar"),
    ],
)
def test_a_loaded_model_answers_bit_for_bit_as_the_saved_one(
    tmp_path, likelihood, dispersion, normalization
):
    cells = some_cells(likelihood)
    model = VAE(
        N_GENES, n_latent=3, n_hidden=5, n_layers=2, seed=4,
        likelihood=likelihood, dispersion=dispersion, normalization=normalization,
    )  # fmt: skip
    fit(model, cells, epochs=2, progress=False)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = VAE.load(model.save(tmp_path / "model"))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_model(model, loaded, cells)
    assert loaded.configuration == model.configuration
    assert loaded.gene_names == cells.gene_names
    assert np.array_equal(loaded.generate(5), model.generate(5))
    assert not loaded.training
    again = VAE.load(loaded.save(tmp_path / "again"))
    assert_same_model(model, again, cells)


@pytest.mark.parametrize("name", ["model", "model.safetensors", "model.json", "model v1.2"])
def test_a_name_with_or_without_ending_means_the_same_files(fitted, tmp_path, name):
    written = fitted.save(tmp_path / "new" / "folder" / name)
    stem = name.removesuffix(".safetensors").removesuffix(".json")
    assert written == tmp_path / "new" / "folder" / f"{stem}.safetensors"
    assert {f.name for f in written.parent.iterdir()} == {f"{stem}.safetensors", f"{stem}.json"}
    for other in (stem, f"{stem}.safetensors", f"{stem}.json"):
        VAE.load(str(written.with_name(other)))


def test_the_card_says_what_the_parameters_are(fitted, saved):
    card = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["model"] == "VAE"
    assert card["configuration"] == fitted.configuration
    assert (card["data"], card["seed"]) == ("simulated", 0)
    assert card["gene_names"] == list(NAMES)
    assert card["versions"]["torch"] == torch.__version__
    assert card["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert VAE.load(saved).card == card
    assert set(load_file(saved)) == set(fitted.state_dict())


def test_numbers_of_numpy_and_torch_may_stand_in_a_card(fitted, tmp_path):
    scores = {"ari": np.float32(0.5), "each": np.arange(3), "bound": torch.tensor(-1.5)}
    path = fitted.save(tmp_path / "model", scores=scores, n=np.int64(3), text="θ")
    card = VAE.load(path).card
    assert card["scores"] == {"ari": 0.5, "each": [0, 1, 2], "bound": -1.5}
    assert (card["n"], card["text"]) == (3, "θ")


def test_an_unfitted_model_is_saved_without_genes(tmp_path):
    model = VAE(N_GENES, n_hidden=5)
    loaded = VAE.load(model.save(tmp_path / "model"))
    assert loaded.gene_names is None
    loaded.embed(some_cells(names=list("abcdefg")))


# ------------------------------------------------------------------------------- what is refused


def test_another_class_refuses_the_file_and_names_the_right_one(saved):
    with pytest.raises(ParameterFileError, match=r"VAE parameters: load it with vaelab\.VAE\.load"):
        OtherModel.load(saved)
    other = OtherModel(N_GENES).save(saved.with_name("other"))
    with pytest.raises(ParameterFileError, match="holds OtherModel parameters"):
        VAE.load(other)


def test_other_genes_are_refused_with_the_first_that_is_absent(saved):
    model = VAE.load(saved)
    others = some_cells(names=[*NAMES[:4], "x", "y", "z"])
    for question in (model.embed, model.elbo_per_cell, model.reconstruct, model.log_marginal):
        with pytest.raises(ValueError, match=r"other genes: 3 of its 7 .*'gene 4' is the first"):
            question(others)
    with pytest.raises(ValueError, match="other genes"):
        fit(model, others, epochs=1, progress=False)


def test_the_same_genes_in_another_order_are_refused(saved):
    model = VAE.load(saved)
    with pytest.raises(ValueError, match=r"in another order: cells\.aligned_to"):
        model.embed(some_cells(names=NAMES[::-1]))


def test_fewer_genes_are_refused_by_number(saved):
    with pytest.raises(ValueError, match=r"7 of its 7 are not among these .* 3 others"):
        VAE.load(saved).embed(Cells.from_array(np.ones((4, 3))))


@pytest.mark.parametrize("missing", [".safetensors", ".json"])
def test_a_missing_half_is_named(saved, missing):
    saved.with_suffix(missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"model{missing}: a saved model is a"):
        VAE.load(saved)


def test_a_folder_is_no_saved_model(saved):
    with pytest.raises(FileNotFoundError, match=r"No file .*\.safetensors"):
        VAE.load(saved.parent)
    saved.unlink()
    saved.mkdir()
    with pytest.raises(FileNotFoundError, match=r"No file .*model\.safetensors"):
        VAE.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
        lambda content: b"no parameters at all",
        lambda content: pickle.dumps({"weight": [1.0]}),
    ],
)
def test_parameters_that_were_changed_are_refused(saved, change):
    saved.write_bytes(change(saved.read_bytes()))
    with pytest.raises(ParameterFileError, match=r"is not the file that model\.json describes"):
        VAE.load(saved)


def test_a_pickle_is_refused_and_never_opened(saved, tmp_path):
    """Even one that its card vouches for: opening a pickle can run any program."""

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for content in (pickle.dumps(Trap()), torch_file({"encoder.0.weight": Trap()})):
        rewrite(saved, content)
        with pytest.raises(ParameterFileError, match="do not fit a VAE of this version"):
            VAE.load(saved)
    assert not (tmp_path / "sprung").exists()
    package = Path(base.__file__).parent.parent
    for source in package.rglob("*.py"):
        text = source.read_text(encoding="utf-8")
        assert not [word for word in ("torch.load(", "import pickle", "joblib") if word in text]


def torch_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize("text", ["", "{", "no card", "[]", "null", "3", '{"model": "VAE"}'])
def test_what_is_no_card_is_refused(saved, text):
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(ParameterFileError, match=r"model\.json is not a model's card"):
        VAE.load(saved)
    saved.with_suffix(".json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterFileError, match=r"model\.json is not a model's card"):
        VAE.load(saved)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_flows": 3}, "unexpected keyword argument 'n_flows'"),
        ({"n_hidden": 6}, r"size mismatch for encoder\.0\.weight"),
        ({"n_layers": 2}, "Missing key"),
        ({"likelihood": "zinb"}, "size mismatch"),
        ({"likelihood": "from the future"}, "likelihood is 'from the future'; choose from"),
        ({"n_genes": "seven"}, ""),
        ({"dropout_rate": 7}, "dropout_rate"),
    ],
)
def test_a_card_of_another_configuration_is_refused_with_the_reason(saved, changes, reason):
    card = json.loads(saved.with_suffix(".json").read_text())
    change_card(saved, configuration=card["configuration"] | changes)
    with pytest.raises(ParameterFileError, match=f"do not fit a VAE of this version.*{reason}"):
        VAE.load(saved)


@pytest.mark.parametrize("names", [["one"], 7, ["gene"] * 8])
def test_a_card_with_other_genes_than_the_model_has_is_refused(saved, names):
    change_card(saved, gene_names=names)
    with pytest.raises(ParameterFileError, match="do not fit a VAE"):
        VAE.load(saved)


def test_parameters_of_two_models_can_not_be_mixed_up(fitted, saved):
    other = VAE(N_GENES, n_latent=3, n_hidden=5, likelihood="nb", seed=9).save(saved.parent / "b")
    shutil.copy(other, saved)
    with pytest.raises(ParameterFileError, match="or is from another training"):
        VAE.load(saved)


# ------------------------------------------------------------------------ writes that go wrong


def full_disk(monkeypatch, at_write):
    """The disk is full after some bytes of a write, counted from 1."""
    write, writes = Path.write_bytes, []

    def write_bytes(path, content):
        writes.append(path)
        if len(writes) == at_write:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("at_write", [1, 2])
def test_a_full_disk_leaves_the_old_model_whole(fitted, saved, monkeypatch, at_write):
    before = {file.name: file.read_bytes() for file in saved.parent.iterdir()}
    other = VAE(N_GENES, n_latent=3, n_hidden=5, likelihood="nb", seed=9)
    full_disk(monkeypatch, at_write)
    with pytest.raises(OSError, match="No space left"):
        other.save(saved, overwrite=True)
    assert {file.name: file.read_bytes() for file in saved.parent.iterdir()} == before
    assert_same_model(VAE.load(saved), fitted, some_cells())


@pytest.mark.parametrize("card", [{"score": object()}, {"where": Path()}, {"by": {1: {2}}}])
def test_a_card_that_json_can_not_hold_leaves_the_old_model_whole(fitted, saved, card):
    before = {file.name: file.read_bytes() for file in saved.parent.iterdir()}
    with pytest.raises(TypeError, match=r"JSON cannot hold .*: give text, numbers"):
        VAE(N_GENES).save(saved, overwrite=True, **card)
    assert {file.name: file.read_bytes() for file in saved.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["model", "configuration", "sha256", "versions", "gene_names"])
def test_what_the_model_writes_into_its_card_can_not_be_overwritten(fitted, saved, name):
    with pytest.raises(ValueError, match=f"The model writes '{name}' into its card"):
        fitted.save(saved, overwrite=True, **{name: "mine"})
    VAE.load(saved)


def test_a_folder_that_can_not_be_written_to_is_named(fitted, tmp_path, monkeypatch):
    def denied(path, content):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", denied)
    with pytest.raises(PermissionError, match=r"Permission denied.*model"):
        fitted.save(tmp_path / "model")
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_left_as_it_was(fitted, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        fitted.save(tmp_path / "model")
    tmp_path.chmod(0o700)
    assert not [*tmp_path.iterdir()]


def test_a_folder_under_the_name_is_not_written_over(fitted, tmp_path):
    (tmp_path / "model.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.json is a folder"):
        fitted.save(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]


# ------------------------------------------------------- questions that make no sense to a model


def test_no_cells_give_no_rows(fitted):
    none = some_cells()[[]]
    assert fitted.embed(none).shape == (0, 3)
    assert fitted.reconstruct(none).shape == (0, N_GENES)
    assert fitted.elbo_per_cell(none).shape == fitted.log_marginal(none, n_samples=2).shape == (0,)
    assert fitted.generate(0).shape == (0, N_GENES)


@pytest.mark.parametrize("n_cells", [-1, 2.5, "3", None])
def test_a_number_of_new_cells_that_is_none_is_refused(fitted, n_cells):
    with pytest.raises(ValueError, match=r"n_cells is .*; it must be a whole number"):
        fitted.generate(n_cells)


@pytest.mark.parametrize("library", [0, -1, np.nan, np.inf, [1.0, 2.0], [1.0, -1.0, 1.0], "much"])
def test_a_library_of_new_cells_that_is_none_is_refused(fitted, library):
    with pytest.raises(ValueError, match=r"library is .*it must be a number above 0"):
        fitted.generate(3, library=library)


def test_new_cells_come_at_the_library_asked_for(fitted):
    libraries = np.array([10.0, 1000.0, 100.0])
    means = [fitted.generate(3, library=libraries, seed=seed).sum(1) for seed in range(200)]
    np.testing.assert_allclose(np.mean(means, 0), libraries, rtol=0.2)
    assert np.array_equal(fitted.generate(4, seed=1), fitted.generate(4, seed=1))
    assert not np.array_equal(fitted.generate(4, seed=1), fitted.generate(4, seed=2))


@pytest.mark.parametrize("n_samples", [0, -1, 2.5, "3"])
def test_a_number_of_draws_that_is_none_is_refused(fitted, n_samples):
    with pytest.raises(ValueError, match=r"n_samples is .*; it must be a whole number"):
        fitted.log_marginal(some_cells(), n_samples=n_samples)


def test_an_anndata_is_refused_with_the_way_to_cells(fitted):
    with pytest.raises(TypeError, match=r"reads Cells, not ndarray.*Cells\.from_anndata"):
        fitted.embed(np.ones((3, N_GENES)))
