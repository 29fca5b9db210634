"""SCVI against quadrature over z and ℓ, sampling, and against itself with options left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

import vaelab
from vaelab import Cells
from vaelab.models import scvi

from .oracles import log_p_x, q_of

G, N, S = 5, 6, 60
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(S)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
B = np.array([0, 1, 1, 0, 1, 0])


def randomise(model, seed=0, size=0.4):
    """Every parameter random, also those that start at 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return model.eval()


def tiny(seed=0, **options):
    options = {"library": "latent", "likelihood": "nb"} | options
    model = vaelab.SCVI(
        G, n_batches=2, n_latent=1, n_hidden=6, normalization=None, seed=seed, **options
    ).double()
    if options["library"] == "latent":
        model.library_log_mean.copy_(torch.tensor([2.5, 3.0]))
        model.library_log_std.copy_(torch.tensor([0.3, 0.6]))
    randomise(model, seed)
    if options["library"] == "latent":  # near the posterior, for importance sampling
        model.library_encoder[-1].bias.data += torch.tensor([2.7, -1.0])
    return model


def as_cells(x, batch=B, **options):
    cells = Cells.from_array(np.asarray(x, float), batch=[f"b{b}" for b in batch], **options)
    return cells.to(dtype=torch.float64)


@pytest.fixture(scope="module")
def cells():
    return as_cells(np.random.default_rng(1).poisson(3, size=(N, G)))


# ------------------------------------------- an oracle in numpy, from the model's numbers alone


def by_quadrature(model, x, batch=B):
    """The three terms of the bound, z and ℓ by quadrature, the KLs too."""
    γ = np.eye(2)[batch] if model.configuration["encode_batch"] else None
    m, s = q_of(model.encoder, x, γ)
    m_l, s_l = q_of(model.library_encoder, x, γ)
    mean, std = model.library_log_mean.numpy()[batch], model.library_log_std.numpy()[batch]
    z, log_library = m[:, None] + s[:, None] * NODES, m_l[:, None] + s_l[:, None] * NODES
    each_z = np.broadcast_to(z[:, :, None], (len(x), S, S))
    each_l = np.broadcast_to(log_library[:, None, :], (len(x), S, S))
    log_p = log_p_x(model, x, each_z, each_l, batch)

    def kl(points, q, p):
        q, p = ([v[:, None] if np.ndim(v) else v for v in a] for a in (q, p))
        return (norm.logpdf(points, *q) - norm.logpdf(points, *p)) @ WEIGHTS

    return {
        "reconstruction": np.einsum("nij,i,j->n", log_p, WEIGHTS, WEIGHTS),
        "kl_z": kl(z, (m, s), (0.0, 1.0)),
        "kl_library": kl(log_library, (m_l, s_l), (mean, std)),
    }


def evidence(model, x, batch=B):
    """log p(x | γ) on a grid of z and log ℓ."""
    z, log_library = np.linspace(-8, 8, 801), np.linspace(-1, 7, 801)
    log_p = []
    for i, b in enumerate(batch):
        mean, std = model.library_log_mean[b].item(), model.library_log_std[b].item()
        grid = log_p_x(
            model, x[i : i + 1], np.broadcast_to(z[:, None], (1, 801, 801)),
            np.broadcast_to(log_library[None], (1, 801, 801)), batch[i : i + 1],
        )[0]  # fmt: skip
        grid = grid + norm.logpdf(z)[:, None] + norm.logpdf(log_library, mean, std)
        log_p.append(logsumexp(grid) + np.log((z[1] - z[0]) * (log_library[1] - log_library[0])))
    return np.array(log_p)


# ------------------------------------------------------------------------------- the exact bound

KINDS = [
    {}, {"likelihood": "zinb"}, {"dispersion": "gene-batch"}, {"encode_batch": True},
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_that_of_quadrature(monkeypatch, cells, options, seed):
    model = tiny(seed, **options)
    places = [np.repeat(NODES, S), np.tile(NODES, S)]  # of z, then of log ℓ

    def at_nodes(mean, std, n_samples):
        at = torch.tensor(places.pop(0)).reshape(-1, *(1,) * mean.ndim)
        return mean + std * at

    monkeypatch.setattr(scvi, "gaussian", at_nodes)
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=S * S)
    weights = np.outer(WEIGHTS, WEIGHTS).ravel()
    for name, expected in by_quadrature(model, cells.x.numpy()).items():
        ours = bound.terms[name].value.numpy()
        ours = weights @ ours if ours.ndim == 2 else ours
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_bound_is_never_above_the_evidence_and_log_marginal_tends_to_it(cells, options):
    model, x = tiny(1, **options), cells.x.numpy()
    log_p = evidence(model, x)
    terms = by_quadrature(model, x)
    bound = terms["reconstruction"] - terms["kl_z"] - terms["kl_library"]
    assert (bound < log_p).all()
    ours = model.log_marginal(cells, n_samples=20_000)
    np.testing.assert_allclose(ours, log_p, atol=0.05)


def test_where_the_library_is_observed_there_is_no_term_of_it(cells):
    model = tiny(library="observed")
    bound = model.elbo(cells)
    assert list(bound.terms) == ["reconstruction", "kl_z"]
    z, twice = torch.zeros(N, 1).double(), replace(cells, library=2 * cells.library)
    once, more = (model.decode(z, c).mean for c in (cells, twice))
    np.testing.assert_allclose(more.detach(), 2 * once.detach())


def test_simplified_scvi_leaves_three_of_six_networks_out():
    full = vaelab.SCVI(50, n_batches=2, library="latent")
    simple = vaelab.SCVI(50, n_batches=2, library="observed", likelihood="nb")
    names = {n.split(".")[0] for n, _ in full.named_parameters()}
    assert names - {n.split(".")[0] for n, _ in simple.named_parameters()} == {"library_encoder"}
    assert full.likelihood.output.out_features == 100  # ρ and π
    assert simple.likelihood.output.out_features == 50


def test_of_one_batch_and_an_observed_library_it_has_the_bound_of_a_vae():
    """Where there is nothing that a VAE does not have, both are one model."""
    x = np.random.default_rng(0).poisson(3.0, (8, G))
    scvi_, vae = vaelab.SCVI(G, n_hidden=8, n_latent=2), vaelab.VAE(G, n_hidden=8, n_latent=2)
    vae.load_state_dict(scvi_.state_dict())
    cells = Cells.from_array(x)
    np.testing.assert_allclose(scvi_.embed(cells), vae.embed(cells), rtol=1e-6)
    np.testing.assert_allclose(scvi_.reconstruct(cells), vae.reconstruct(cells), rtol=1e-5)


def test_the_decoder_hears_the_batch_and_the_encoder_only_if_told(cells):
    other = replace(cells, batch=1 - cells.batch)
    for encode_batch in (False, True):
        model = tiny(encode_batch=encode_batch)
        same = np.allclose(model.embed(cells), model.embed(other))
        assert same is not encode_batch
        z = torch.zeros(N, 1).double()
        means = [model.decode(z, c).mean.detach() for c in (cells, other)]
        assert not np.allclose(*means)


def test_every_layer_hears_the_batch():
    model = randomise(
        vaelab.SCVI(G, n_batches=2, n_latent=2, n_layers=2, n_hidden=4, normalization=None)
    )
    first, second = (m for m in model.decoder if isinstance(m, torch.nn.Linear))
    assert (first.in_features, second.in_features) == (2 + 2, 4 + 2)
    with torch.no_grad():
        first.weight[:, 2:] = 0  # only the second layer hears it now
        both = model.blank_cells(2, library=1, batch=torch.tensor([0, 1]))
        one, other = model.decode(torch.zeros(2, 2), both).base.mean
    assert not torch.allclose(one, other)


def test_the_order_of_cells_genes_and_batches_means_nothing(cells):
    model = tiny(1)
    expected = by_quadrature(model, cells.x.numpy())
    rows = np.array([3, 0, 5, 1, 4, 2])
    for name, value in by_quadrature(model, cells.x.numpy()[rows], B[rows]).items():
        np.testing.assert_allclose(value, expected[name][rows], rtol=1e-10)
    bound, swapped = model.elbo(cells[rows])["kl_z"].detach(), model.elbo(cells)["kl_z"].detach()
    np.testing.assert_allclose(bound, swapped[rows], rtol=1e-10)

    genes, other = [4, 2, 0, 1, 3], tiny(1)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for mlp in (other.encoder, other.library_encoder):
            mlp[0].weight.copy_(mlp[0].weight[:, genes])
        for parameter in (*other.likelihood.output.parameters(),
                          other.likelihood.log_inverse_dispersion):  # fmt: skip
            parameter.copy_(parameter[genes])
    for m, c in ((model, cells), (other, replace(cells, x=cells.x[:, genes]))):
        torch.manual_seed(0)
        bounds = m.elbo(c).per_cell().detach()
        expected = bounds if m is model else expected
    np.testing.assert_allclose(bounds, expected, rtol=1e-10)

    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.decoder[0].weight[:, 1:] = model.decoder[0].weight[:, [2, 1]]
        for name in ("library_log_mean", "library_log_std"):
            getattr(other, name).copy_(getattr(model, name)[[1, 0]])
    torch.manual_seed(0)
    renumbered = other.elbo(replace(cells, batch=1 - cells.batch)).per_cell().detach()
    np.testing.assert_allclose(renumbered, expected, rtol=1e-10)


# ------------------------------------------------------- the generative story is its likelihood


def test_gamma_poisson_and_dropout_give_the_zinb():
    """w ~ Gamma(mean ρ, shape θ), y ~ Poisson(ℓw), h ~ Bernoulli(π), x = y (1 − h)."""
    model = tiny(likelihood="zinb", library="observed")
    z, n = torch.tensor([[0.7]]).double(), 200_000
    with torch.no_grad():
        p = model.decode(z, model.blank_cells(1, library=20.0, batch=1))
    rho, theta = (p.base.mean / 20).numpy()[0], p.base.inverse_dispersion.numpy().ravel()
    rng = np.random.default_rng(0)
    w = rng.gamma(theta, rho / theta, size=(n, G))
    x = rng.poisson(20 * w) * (rng.random((n, G)) >= torch.sigmoid(p.logits).numpy())
    for g in range(G):
        for count in range(6):
            at = torch.full((1, G), float(count)).double()
            expected = p.log_prob(at).exp()[0, g].item()
            error = np.sqrt(expected * (1 - expected) / n)
            assert abs((x[:, g] == count).mean() - expected) < 5 * error + 1e-6


# ------------------------------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def fitted():
    adata = vaelab.simulate.dataset(400, 40, n_types=3, n_batches=2, batch_effect=1.0, seed=0)
    cells = Cells.from_anndata(adata, batch="batch", label="cell_type")
    model = vaelab.SCVI(40, n_batches=2, n_latent=3, n_hidden=32, library="latent")
    vaelab.fit(model, cells, epochs=100, batch_size=32, progress=False)
    return adata, cells, model


def test_the_library_prior_is_that_of_each_batch(fitted):
    _, cells, model = fitted
    for b in range(2):
        log_library = cells.library[cells.batch == b].log().numpy()
        assert model.library_log_mean[b].item() == pytest.approx(log_library.mean(), rel=1e-5)
        assert model.library_log_std[b].item() == pytest.approx(log_library.std(), rel=1e-4)
    assert model.batch_names == ("batch 1", "batch 2")


def test_normalized_expression_is_a_share_and_the_mean_over_batches(fitted):
    _, cells, model = fitted
    one, two, both = (
        model.normalized_expression(cells, batch=batch) for batch in ("batch 1", "batch 2",
                                                                ["batch 1", "batch 2"])
    )  # fmt: skip
    np.testing.assert_allclose(one.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-5)
    own = model.normalized_expression(cells)
    first = (cells.batch == 0).numpy()
    np.testing.assert_allclose(own[first], one[first], rtol=1e-5)
    np.testing.assert_allclose(own[~first], two[~first], rtol=1e-5)
    per_ten_thousand = model.normalized_expression(cells, library=1e4)
    np.testing.assert_allclose(per_ten_thousand, 1e4 * own, rtol=1e-5)
    zeros = vaelab.SCVI(40, n_batches=2, n_latent=2, n_hidden=8, likelihood="zinb")
    np.testing.assert_allclose(zeros.normalized_expression(cells).sum(1), 1, rtol=1e-5)
    with pytest.raises(
        ValueError, match="batch is 'batch 3'; choose from those of the model: batch 1, b"
    ):
        model.normalized_expression(cells, batch="batch 3")
    with pytest.raises(ValueError, match="batch is empty; name one"):
        model.normalized_expression(cells, batch=[])


def test_replicates_are_as_the_cells_were_measured(fitted):
    _, cells, model = fitted
    x = model.replicate(cells)
    assert x.shape == (400, 40)
    assert (x == x.round()).all()
    assert not np.array_equal(x, model.replicate(cells, seed=1))
    np.testing.assert_array_equal(x, model.replicate(cells))
    total = cells.library.numpy()
    assert np.corrcoef(np.log(x.sum(1) + 1), np.log(total))[0, 1] > 0.3  # drawn again: noisy
    with torch.no_grad():
        inferred = model.encode_log_library(cells.to()).mean
    assert np.corrcoef(inferred, np.log(total))[0, 1] > 0.6
    silent = [(values == 0).mean(0) for values in (x, cells.x.toarray())]
    assert np.abs(silent[0] - silent[1]).mean() < 0.05  # share of zeros, gene by gene


def test_cells_are_reconstructed_at_the_library_that_was_inferred(fitted):
    _, cells, model = fitted
    with torch.no_grad():
        part = cells.to()
        z, library = model.encode(part).mean, model.encode_log_library(part).mean.exp()
        expected = model.decode(z, replace(part, library=library)).mean
    np.testing.assert_allclose(model.reconstruct(cells), expected, rtol=1e-4)
    observed = vaelab.SCVI(40, n_batches=2, n_latent=2, n_hidden=8, likelihood="nb")
    totals = observed.reconstruct(cells).sum(1)
    np.testing.assert_allclose(totals, cells.library, rtol=1e-4)


def test_new_cells_are_of_the_batch_that_was_asked_for(fitted):
    adata, _, model = fitted
    of_batch = {name: adata.X[(adata.obs["batch"] == name).to_numpy()].mean(0).A1
                for name in model.batch_names}  # fmt: skip
    for name, other in (("batch 1", "batch 2"), ("batch 2", "batch 1")):
        x = model.generate(2000, batch=name).mean(0)
        near, far = (np.abs(np.log1p(x) - np.log1p(of_batch[b])).sum() for b in (name, other))
        assert near < far
    assert model.generate(5, library=100.0).shape == (5, 40)
    with pytest.raises(ValueError, match="batch is 'x'; choose"):
        model.generate(5, batch="x")


def test_batches_are_mixed_where_the_decoder_knows_them(fitted):
    """At least as much of the batch is gone as a model without batches leaves in."""
    adata, cells, model = fitted
    blind = vaelab.SCVI(40, n_latent=3, n_hidden=32)
    one_batch = Cells.from_anndata(adata)
    vaelab.fit(blind, one_batch, epochs=30, batch_size=32, progress=False)

    def separation(latent):
        return vaelab.metrics.average_silhouette_width(latent, cells.batch.numpy())

    assert (
        separation(model.embed(cells)) < separation(blind.embed(Cells.from_anndata(adata))) - 0.05
    )


# ---------------------------------------------------------------------- cells that do not fit it


def test_cells_of_batches_that_it_does_not_know_are_refused(fitted):
    adata, _, model = fitted
    other = adata[:20].copy()
    other.obs["batch"] = "batch 3"
    with pytest.raises(ValueError, match="it does not know 'batch 3'"):
        model.embed(Cells.from_anndata(other, batch="batch"))
    with pytest.raises(ValueError, match=r"these cells have no batch: name their column.*batch=…"):
        model.embed(Cells.from_anndata(adata))
    one = adata[(adata.obs["batch"] == "batch 2").to_numpy()].copy()
    one.obs["batch"] = one.obs["batch"].astype(str)
    apart = Cells.from_anndata(one, batch="batch")
    with pytest.raises(ValueError, match=r"cells\.named\(model\.batch_names"):
        model.embed(apart)
    named = apart.named(model.batch_names)
    assert (named.batch == 1).all()
    together = Cells.from_anndata(adata, batch="batch")
    here = (together.batch == 1).numpy()
    np.testing.assert_allclose(model.embed(named), model.embed(together)[here], atol=1e-5)
    with pytest.raises(ValueError, match="There are cells of batch 'batch 2', which is not one of"):
        apart.named(("batch 1",))
    blind = vaelab.SCVI(40, n_hidden=8)  # knows no batches, so that their one name says nothing
    vaelab.fit(blind, Cells.from_anndata(adata), epochs=1, progress=False)
    assert blind.embed(apart).shape == (len(apart), 10)
    with pytest.raises(ValueError, match="made for 3 batch names, these cells have 2"):
        vaelab.fit(vaelab.SCVI(40, n_batches=3), together, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("n_batches", 0), ("library", "known"), ("dispersion", "gene-label"), ("n_latent", 0)],
)
def test_arguments_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        vaelab.SCVI(G, **{argument: value})


@pytest.mark.parametrize("likelihood", ["normal", "continuous_bernoulli"])
def test_a_latent_library_needs_counts(likelihood):
    with pytest.raises(
        ValueError, match=f"'latent' needs a count likelihood, but likelihood is '{likelihood}'"
    ):
        vaelab.SCVI(G, library="latent", likelihood=likelihood)
    vaelab.SCVI(G, library="observed", likelihood=likelihood)


def test_cells_to_decode_at_are_made_without_counts():
    model = tiny(likelihood="zinb")
    model.typical_library.fill_(50.0)
    z = torch.randn(3, 1).double()
    with torch.no_grad():
        typical, given = (
            model.decode(z, model.blank_cells(3, library, batch)).base.mean.sum(-1)
            for library, batch in ((None, 0), (np.array([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1])))
        )
        of_batch = [model.decode(z, model.blank_cells(3, 1.0, b)).base.mean for b in (0, 1)]
        mixed = model.decode(z, model.blank_cells(3, 1.0, torch.tensor([1, 0, 1]))).base.mean
    np.testing.assert_allclose(typical, [50.0] * 3)
    np.testing.assert_allclose(given, [1.0, 2.0, 3.0])
    assert not torch.allclose(*of_batch)
    assert torch.equal(mixed, torch.stack([of_batch[b][i] for i, b in enumerate((1, 0, 1))]))


def test_it_is_saved_with_its_batches(tmp_path, fitted):
    _, cells, model = fitted
    model.save(tmp_path / "m")
    loaded = vaelab.SCVI.load(tmp_path / "m")
    assert loaded.batch_names == model.batch_names
    np.testing.assert_array_equal(loaded.elbo_per_cell(cells), model.elbo_per_cell(cells))
