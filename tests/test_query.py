"""A query meets a reference: genes in the model's order, and weights for new batches alone."""

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import vaelab
from vaelab import SCANVI, SCVI, VAE, Cells, fit

QUICK = {"epochs": 3, "progress": False}
MISSING = pytest.mark.filterwarnings("ignore:.*genes are not among these")
EVERYTHING = {
    "encode_batch": True, "library": "latent", "dispersion": "gene-batch", "n_layers": 2,
}  # fmt: skip


def reference_data(n_cells=120, n_batches=2):
    return vaelab.simulate.dataset(n_cells, 40, n_types=3, n_batches=n_batches, library=300, seed=0)


def query_data(n_cells=60, batch="new"):
    adata = vaelab.simulate.dataset(n_cells, 40, n_types=3, library=300, seed=0)
    adata.obs["batch"] = batch
    return adata


def cells_of(adata, **options):
    return Cells.from_anndata(adata, batch="batch", label="cell_type", **options)


def fitted(kind=SCVI, n_batches=2, **options):
    cells = cells_of(reference_data(n_batches=n_batches))
    if kind is SCANVI:
        options["n_labels"] = len(cells.label_names)
    model = kind(40, n_batches=n_batches, n_latent=3, n_hidden=16, **options)
    fit(model, cells, **QUICK)
    return model, cells


@pytest.fixture(scope="module")
def model():
    return fitted()[0]


# ------------------------------------------------------------------------------------------ genes


def some_genes(adata, n_missing=7, n_others=4):
    """The cells without some genes, with others, and all in another order."""
    order = np.random.default_rng(1).permutation(40)[n_missing:]
    others = anndata.AnnData(
        sparse.csr_matrix(np.full((adata.n_obs, n_others), 2.0, dtype=np.float32))
    )
    others.obs_names, others.var_names = adata.obs_names, [f"other {i}" for i in range(n_others)]
    return anndata.concat([adata[:, order], others], axis=1, merge="first")


def expected_of(adata, model):
    """Values in the model's order and the genes that there are, from pandas."""
    frame = adata.to_df().reindex(columns=list(model.gene_names))
    return frame.fillna(0).to_numpy(), frame.notna().to_numpy()


def on_disk(adata, path, **options):
    adata.write_h5ad(path)
    return cells_of(anndata.read_h5ad(path, backed="r"), **options)


@MISSING
@pytest.mark.parametrize("form", ["sparse", "dense", "sparse file", "dense file"])
def test_genes_come_in_the_models_order_and_what_is_missing_is_masked(model, form, tmp_path):
    adata = some_genes(query_data(batch=model.batch_names[1]))
    values, measured = expected_of(adata, model)
    if form.startswith("dense"):
        adata.X = adata.X.toarray()
    cells = on_disk(adata, tmp_path / "a.h5ad") if "file" in form else cells_of(adata)
    cells = cells.aligned_to(model)
    assert cells.gene_names == model.gene_names
    for rows in (slice(None), slice(5, 9), np.array([8, 3])):
        dense = cells[rows].to()
        np.testing.assert_array_equal(dense.x, values[rows])
        np.testing.assert_array_equal(dense.observed, measured[rows])
        assert dense.x.is_contiguous()  # else sums are rounded differently from those in memory
    in_memory = cells_of(adata).aligned_to(model)
    np.testing.assert_array_equal(model.embed(cells), model.embed(in_memory))
    again = cells.aligned_to(model)
    np.testing.assert_array_equal(again.library, cells.library)


@MISSING
@pytest.mark.parametrize("form", ["memory", "file"])
def test_a_mask_of_the_query_stays(model, form, tmp_path):
    adata = some_genes(query_data(batch=model.batch_names[0]))
    mask = np.random.default_rng(2).random(adata.shape) < 0.9
    adata.layers["seen"] = mask
    frame = adata.to_df(layer="seen").reindex(columns=list(model.gene_names))
    cells = cells_of(adata, observed="seen")
    if form == "file":
        cells = on_disk(adata, tmp_path / "a.h5ad", observed="seen")
    cells = cells.aligned_to(model)
    measured = frame.eq(True).to_numpy()
    np.testing.assert_array_equal(cells.to().observed, measured)
    np.testing.assert_array_equal(cells.to().x, expected_of(adata, model)[0] * measured)


@MISSING
def test_missing_genes_have_no_part_in_the_bound(model):
    cells = cells_of(some_genes(query_data(batch=model.batch_names[0]))).aligned_to(model)
    nonsense = cells.to()
    nonsense.x[~nonsense.observed] = 50.0
    np.testing.assert_array_equal(model.embed(nonsense), model.embed(cells))
    np.testing.assert_array_equal(model.elbo_per_cell(nonsense), model.elbo_per_cell(cells))


def test_the_library_is_the_expected_total_over_all_genes_of_the_model(model):
    x = model.generate(1000, library=300, seed=1)  # cells whose genes follow the model
    data = anndata.AnnData(sparse.csr_matrix(x))
    data.var_names = model.gene_names
    total = x.sum(1)
    few = data[:, np.sort(np.argsort(x.sum(0))[:-5])]  # without the five largest genes
    with pytest.warns(UserWarning, match=r"5 of the model's 40 genes are not among these"):
        library = Cells.from_anndata(few).aligned_to(model).library.numpy()
    naive = np.asarray(few.X.sum(1)).ravel()
    assert naive.sum() / total.sum() < 0.85
    assert 0.97 < library.sum() / total.sum() < 1.03
    np.testing.assert_allclose(library / naive, library[0] / naive[0], rtol=1e-5)
    # Other genes, at first counted in the total, are taken off.
    more = some_genes(data, n_missing=0, n_others=9)
    library = Cells.from_anndata(more).aligned_to(model).library.numpy()
    np.testing.assert_allclose(library, total, rtol=1e-5)


def test_both_numbers_are_said_when_genes_are_missing(model):
    cells = cells_of(some_genes(query_data()))
    with pytest.warns(UserWarning, match=r"7 of the model's 40 genes .* 4 other genes") as caught:
        cells.aligned_to(model)
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match=r"7 of its 40 .* 4 others\. cells\.aligned_to\(model\)"):
        model.embed(cells)
    with pytest.raises(ValueError, match=r"in another order: cells\.aligned_to\(model\)"):
        model.embed(cells_of(query_data()[:, ::-1]))


def test_what_cannot_be_aligned_is_refused(model):
    adata = query_data()
    with pytest.raises(ValueError, match="fit it before you align"):
        cells_of(adata).aligned_to(SCVI(40))
    other = adata.copy()
    other.var_names = [f"ENSG{i}" for i in range(40)]
    with pytest.raises(ValueError, match=r"None of the model's 40 genes .*'ENSG0'"):
        cells_of(other).aligned_to(model)
    few = some_genes(adata)
    x = few.X.toarray()
    x[3, :33] = 0
    few.X = sparse.csr_matrix(x)
    with pytest.raises(ValueError, match="row 3 has only zeros in the 33 genes"):
        cells_of(few).aligned_to(model)


def test_names_are_those_of_the_model_or_are_kept():
    scanvi, cells = fitted(SCANVI)
    turned = reference_data()
    turned.obs["batch"] = turned.obs["batch"].astype(str)
    turned = turned[turned.obs["batch"] == scanvi.batch_names[1]]
    aligned = cells_of(turned).aligned_to(scanvi)
    assert aligned.batch_names == scanvi.batch_names and aligned.label_names == cells.label_names
    assert (aligned.batch == 1).all()
    np.testing.assert_array_equal(aligned.labels, turned.obs["cell_type"])
    new = cells_of(query_data()).aligned_to(scanvi)
    assert new.batch_names == ("new",)
    with pytest.raises(ValueError, match=r"model\.extend\(batches=\['new'\]\)"):
        scanvi.embed(new)


@MISSING
def test_any_model_aligns():
    data = query_data()
    real = VAE(40, n_latent=2, n_hidden=8, likelihood="normal")
    fit(real, Cells.from_anndata(data), **QUICK)
    cells = Cells.from_anndata(some_genes(data))
    aligned = cells.aligned_to(real)
    np.testing.assert_array_equal(aligned.library, cells.library)  # not used
    assert real.embed(aligned).shape == (60, 2)
    mixture = vaelab.GMVAE(40, n_clusters=2, n_latent=2, n_hidden=8)
    mixture.gene_names = real.gene_names
    assert (cells.aligned_to(mixture).library > 0).all()


# ---------------------------------------------------------------------------------------- surgery

KINDS = {
    "as released": (SCVI, 2, {}),
    "everything": (SCVI, 2, EVERYTHING),
    "one batch": (SCVI, 1, EVERYTHING),
    "layer norm": (SCVI, 2, {"normalization": "layer", "encode_batch": True}),
    "scanvi": (SCANVI, 2, {}),
    "scanvi, everything": (SCANVI, 2, EVERYTHING | {"encode_batch_z2": True}),
    "scanvi, one batch": (SCANVI, 1, {"encode_batch": True, "encode_batch_z2": True}),
}


def answers(model, cells):
    """What the model says about cells, with the same draws."""
    found = {
        "z": model.embed(cells),
        "z of one cell": model.embed(cells[5]),  # another kernel of the matrix product
        "bound": model.elbo_per_cell(cells),
        "mean": model.reconstruct(cells),
    }
    if isinstance(model, SCANVI):
        found |= {"c": model.predict(cells), "z2": model.embed(cells, of="z2")}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_does_not_move_by_a_bit(kind):
    cls, n_batches, options = KINDS[kind]
    model, cells = fitted(cls, n_batches, **options)
    before = answers(model, cells)
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    extended = model.extend(batches=["new"])
    query = cells_of(query_data()).aligned_to(extended)
    at_start = {name: value.clone() for name, value in extended.state_dict().items()}
    fit(extended, query, train="new batch", weight_decay=0.1, learning_rate=0.01, **QUICK)
    for name, value in before.items():
        now = answers(extended, cells.named(extended.batch_names))[name]
        np.testing.assert_array_equal(now, value, err_msg=name)
    moved = {}
    for name, value in extended.state_dict().items():
        old = parameters[name]
        assert torch.equal(value[tuple(map(slice, old.shape))], old), name
        if not torch.equal(value, at_start[name]):
            changed = (value != at_start[name]).nonzero()
            moved[name] = set(changed[:, extended.entries_of_batches()[name]].tolist())
    sizes = {name: parameters[name].shape for name in moved}
    for name, entries in moved.items():  # only the last entry
        dim = extended.entries_of_batches()[name]
        assert entries == {extended.state_dict()[name].shape[dim] - 1}, (name, sizes[name])
    assert {*moved} == {*extended.entries_of_batches()}
    assert torch.equal(extended.typical_library, model.typical_library)
    assert all(p.requires_grad for n, p in extended.named_parameters() if n != "logits_c")
    for name, value in parameters.items():  # of the model that was extended
        assert torch.equal(model.state_dict()[name], value)


def test_new_weights_start_at_the_mean_of_the_others():
    model, _ = fitted(**EVERYTHING)
    state = model.extend(batches=["a", "b"]).state_dict()
    old = model.state_dict()
    for name in ("decoder.0.weight", "encoder.4.weight", "library_encoder.0.weight"):
        mean = old[name][:, -2:].mean(1, keepdim=True)
        torch.testing.assert_close(state[name][:, -2:], mean.expand(-1, 2))
    for name in ("library_log_mean", "library_log_std", "likelihood.log_inverse_dispersion"):
        torch.testing.assert_close(state[name][2:], old[name].mean(0).expand_as(state[name][2:]))


@pytest.mark.parametrize("kind", ["everything", "scanvi, one batch"])
def test_an_extended_model_is_saved_with_its_new_batches(kind, tmp_path):
    cls, n_batches, options = KINDS[kind]
    model, cells = fitted(cls, n_batches, **options)
    before = model.embed(cells)
    extended = model.extend(batches="new")
    assert extended.new_batches == ("new",)
    assert extended.batch_names == (*model.batch_names, "new")
    assert extended.configuration["n_batches"] == n_batches + 1
    extended.save(tmp_path / "m")
    loaded = cls.load(tmp_path / "m")
    assert loaded.new_batches == ("new",) and loaded.configuration == extended.configuration
    query = cells_of(query_data()).aligned_to(loaded)
    np.testing.assert_array_equal(loaded.embed(query), extended.embed(query))
    fit(loaded, query, train="new batch", **QUICK)
    np.testing.assert_array_equal(loaded.embed(cells.named(loaded.batch_names)), before)


def test_a_second_query_leaves_the_first_alone():
    model, cells = fitted(**EVERYTHING)
    first = model.extend(batches=["new"])
    query = cells_of(query_data()).aligned_to(first)
    fit(first, query, train="new batch", **QUICK)
    second = first.extend(batches=["newer"])
    assert second.new_batches == ("new", "newer")
    newer = cells_of(query_data(batch="newer")).aligned_to(second)
    fit(second, newer, train="new batch", **QUICK)
    for some in (cells, query):
        np.testing.assert_array_equal(
            second.embed(some.named(second.batch_names)),
            first.embed(some.named(first.batch_names)),
        )
    after = second.state_dict()
    before = {name: value.clone() for name, value in after.items()}
    fit(second, query.named(second.batch_names), train="new batch", **QUICK)
    for name, mask in second.new_weights(newer).items():
        dim = second.entries_of_batches()[name]
        changed = set((after[name] != before[name]).nonzero()[:, dim].tolist())
        assert changed == {mask.shape[dim] - 2}, name  # the first new batch alone
    assert not np.array_equal(
        second.embed(newer), second.embed(query.named(second.batch_names))[: len(newer)]
    )


def test_the_new_weights_learn_what_is_different():
    model, _ = fitted(encode_batch=True, likelihood="nb")
    data = query_data(600)
    x = data.X.toarray()
    x[:, :10] *= 6  # ten genes are measured better
    data.X = sparse.csr_matrix(x)
    extended = model.extend(batches=["new"])
    query = cells_of(data).aligned_to(extended)
    before = extended.elbo_per_cell(query).mean()
    fit(extended, query, train="new batch", epochs=30, learning_rate=0.02, progress=False)
    assert extended.elbo_per_cell(query).mean() > before + 2  # nats per cell


def test_a_checkpoint_goes_on_with_the_new_weights_alone(tmp_path):
    model, _ = fitted(encode_batch=True)
    extended, whole = (model.extend(batches=["new"]) for _ in range(2))
    query = cells_of(query_data()).aligned_to(extended)
    settings = {"train": "new batch", "epochs": 4, "progress": False, "weight_decay": 0.1}
    fit(whole, query, **settings)
    step, n_steps = extended.after_step, []

    def stop():
        n_steps.append(1)
        if len(n_steps) == 2:
            raise RuntimeError("stopped")

    extended.after_step = stop
    with pytest.raises(RuntimeError, match="stopped"):
        fit(extended, query, checkpoint=tmp_path / "c", **settings)
    assert (tmp_path / "c").exists() and all(p.requires_grad for p in extended.parameters())
    extended.after_step = step
    fit(extended, query, checkpoint=tmp_path / "c", **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(extended.state_dict()[name], value), name


def test_what_cannot_be_extended_or_trained_is_refused(model):
    reference = cells_of(reference_data())
    with pytest.raises(ValueError, match="fit it before you extend"):
        SCVI(40).extend(batches=["new"])
    for names in ([], ["new", "new"], [model.batch_names[0]]):
        with pytest.raises(ValueError, match="must name one new batch or more"):
            model.extend(batches=names)
    with pytest.raises(ValueError, match=r"choose from \['all', 'new batch'\]"):
        fit(model, reference, train="new", **QUICK)
    with pytest.raises(ValueError, match="The model has no new batch"):
        fit(model, reference, train="new batch", **QUICK)
    with pytest.raises(ValueError, match="VAE has no batches"):
        fit(VAE(40), reference, train="new batch", **QUICK)
    extended = model.extend(batches=["new"])
    with pytest.raises(ValueError, match=r"120 of these cells are of another batch \('"):
        fit(extended, reference.aligned_to(extended), train="new batch", **QUICK)
