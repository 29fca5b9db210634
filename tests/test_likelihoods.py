"""Likelihood modules: from a hidden layer to a distribution of all genes."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import vaelab
from vaelab.distributions import ContinuousBernoulli, NegativeBinomial, Poisson, ZeroInflated
from vaelab.likelihoods import LIKELIHOODS, bounded, make_likelihood

S, B, N_IN, G = 5, 4, 6, 3

# Every likelihood, with each of its dispersions.
KINDS = [
    (name, d) for name, kind in LIKELIHOODS.items() for d in kind.dispersions if d != "gene-batch"
]
COUNTS = ("poisson", "zip", "nb", "zinb")
EACH = pytest.mark.parametrize(("name", "dispersion"), KINDS, ids=map(" ".join, KINDS))


def make(name, dispersion="gene", seed=0):
    """A likelihood with weights, and parameters of genes, that are all different."""
    torch.manual_seed(seed)
    likelihood = make_likelihood(name, N_IN, G, dispersion).double()
    for parameter in likelihood.parameters():
        torch.nn.init.normal_(parameter)
    return likelihood


def hidden_and_library(*shape, seed=1):
    torch.manual_seed(seed)
    h = torch.randn(*shape, N_IN, dtype=torch.float64)
    return h, 10 + 100 * torch.rand(shape[-1], dtype=torch.float64)


def data_for(likelihood):
    x = torch.tensor([[0, 3, 11], [1, 0, 0], [40, 2, 1], [0, 0, 7]], dtype=torch.float64)
    return {"counts": x, "unit interval": x / 40, "real": x - 5}[likelihood.domain]


def test_the_registry_knows_each_likelihood_by_its_name():
    kinds = {
        "normal": ("real", Normal, None),
        "continuous_bernoulli": ("unit interval", ContinuousBernoulli, None),
        "poisson": ("counts", Poisson, None),
        "zip": ("counts", ZeroInflated, Poisson),
        "nb": ("counts", NegativeBinomial, None),
        "zinb": ("counts", ZeroInflated, NegativeBinomial),
    }
    assert list(LIKELIHOODS) == list(kinds)
    for name, (domain, family, base) in kinds.items():
        likelihood = make_likelihood(name, N_IN, G)
        assert type(likelihood) is LIKELIHOODS[name]
        assert likelihood.domain == domain
        p = likelihood(torch.zeros(B, N_IN), torch.ones(B))
        assert type(p) is family
        assert base is None or type(p.base) is base


def test_unknown_names_and_dispersions_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"likelihood is 'znib'; choose from \['normal', .*'zinb'"):
        make_likelihood("znib", N_IN, G)
    known = r"\['scalar', 'gene', 'gene-batch', 'gene-cell'\]"
    with pytest.raises(ValueError, match=rf"dispersion is 'cell'; choose from {known}"):
        make_likelihood("nb", N_IN, G, "cell")
    for name in ("normal", "continuous_bernoulli", "poisson", "zip"):
        with pytest.raises(ValueError, match=r"'gene-cell'; choose from \['gene'\]"):
            make_likelihood(name, N_IN, G, "gene-cell")


@EACH
@pytest.mark.parametrize("shape", [(B,), (S, B), (1,), (0,)], ids=str)
def test_one_distribution_a_gene_for_cells_and_for_draws_of_cells(name, dispersion, shape):
    likelihood = make(name, dispersion)
    p = likelihood(*hidden_and_library(*shape))
    assert p.batch_shape == p.mean.shape == p.variance.shape == (*shape, G)
    if shape[-1] == B:
        assert p.log_prob(data_for(likelihood)).shape == (*shape, G)
    assert p.sample().shape == (*shape, G)


@EACH
def test_each_draw_is_treated_as_if_it_were_alone(name, dispersion):
    likelihood = make(name, dispersion)
    x = data_for(likelihood)
    h, library = hidden_and_library(S, B)
    together = likelihood(h, library).log_prob(x)
    for s in range(S):
        assert torch.allclose(together[s], likelihood(h[s], library).log_prob(x), rtol=1e-12)


@EACH
def test_outputs_mean_what_the_table_says(name, dispersion):
    likelihood = make(name, dispersion)
    h, library = hidden_and_library(B)
    p, x = likelihood(h, library), data_for(likelihood)

    # By hand, in numpy: pieces of G outputs are f, then dropout logits g, then log θ.
    weight, bias = (t.detach().numpy() for t in likelihood.output.parameters())
    pieces = np.split(h.numpy() @ weight.T + bias, len(bias) // G, axis=1)
    assert len(pieces) == 1 + name.startswith("z") + (dispersion == "gene-cell")
    f = pieces[0]
    μ = library.numpy()[:, None] * np.exp(f) / np.exp(f).sum(1, keepdims=True)
    if name in ("nb", "zinb"):
        log_θ = pieces[-1] if dispersion == "gene-cell" else likelihood.log_inverse_dispersion
        θ = torch.as_tensor(log_θ).detach().exp()
        base = NegativeBinomial(torch.tensor(μ), θ)
    else:
        base = Poisson(torch.tensor(μ))
    expected = {
        "normal": lambda: Normal(torch.tensor(f), likelihood.log_std.exp()),
        "continuous_bernoulli": lambda: ContinuousBernoulli(torch.tensor(f)),
        "poisson": lambda: base,
        "nb": lambda: base,
        "zip": lambda: ZeroInflated(base, torch.tensor(pieces[1])),
        "zinb": lambda: ZeroInflated(base, torch.tensor(pieces[1])),
    }[name]()
    assert torch.allclose(p.mean, expected.mean, rtol=1e-12)
    assert torch.allclose(p.variance, expected.variance, rtol=1e-12)
    assert torch.allclose(p.log_prob(x), expected.log_prob(x), rtol=1e-12)


@EACH
def test_means_of_counts_sum_to_the_library_but_for_dropout(name, dispersion):
    likelihood = make(name, dispersion)
    if likelihood.domain != "counts":
        return
    h, library = hidden_and_library(S, B)
    p = likelihood(h, library)
    kept = torch.sigmoid(-p.logits) if name.startswith("z") else torch.ones(G).double()
    assert torch.allclose((p.mean / kept).sum(-1), library.expand(S, B), rtol=1e-12)
    if name.startswith("z"):  # and with one π for all genes, to library · (1 − π)
        with torch.no_grad():
            likelihood.output.weight[G : 2 * G] = 0
            likelihood.output.bias[G : 2 * G] = torch.tensor(0.25).logit()
        p = likelihood(h, library)
        assert torch.allclose(p.mean.sum(-1), 0.75 * library.expand(S, B), rtol=1e-7)


@EACH
def test_the_gradient_reaches_every_parameter(name, dispersion):
    likelihood = make(name, dispersion)
    h, library = hidden_and_library(S, B)
    h.requires_grad_()
    (-likelihood(h, library).log_prob(data_for(likelihood)).sum()).backward()
    for of, parameter in [("h", h), *likelihood.named_parameters()]:
        assert parameter.grad.isfinite().all(), of
        assert (parameter.grad != 0).all(), of


@EACH
def test_extreme_hidden_layers_give_finite_losses_and_gradients(name, dispersion):
    likelihood = make(name, dispersion).float()
    x = data_for(likelihood).float()
    for size in (10.0, 30.0):
        h = torch.linspace(-size, size, B * N_IN).reshape(B, N_IN).requires_grad_()
        with torch.no_grad():  # so that the hidden layer's numbers are the logits
            likelihood.output.weight.copy_(torch.eye(len(likelihood.output.bias), N_IN))
            likelihood.output.bias.zero_()
        loss = -likelihood(h, 20 * torch.ones(B)).log_prob(x).sum()
        loss.backward()
        assert loss.isfinite()
        assert h.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in likelihood.parameters())


def test_dispersion_of_a_gene_is_shared_by_cells_and_that_of_a_gene_and_cell_is_not():
    h, library = hidden_and_library(B)
    for name in ("nb", "zinb"):
        shared = make(name)(h, library)
        own = make(name, "gene-cell")(h, library)
        θ, θ_own = ((p.base if name == "zinb" else p).inverse_dispersion for p in (shared, own))
        assert (θ == θ[0]).all()
        assert (θ_own != θ_own[0])[1:].all()
    assert "log_inverse_dispersion" in dict(make("nb").named_parameters())
    assert "log_inverse_dispersion" not in dict(make("nb", "gene-cell").named_parameters())


def test_a_scalar_dispersion_is_that_of_all_genes_and_cells():
    h, library = hidden_and_library(B)
    for name in ("nb", "zinb"):
        likelihood = make(name, "scalar")
        p = likelihood(h, library)
        θ = (p.base if name == "zinb" else p).inverse_dispersion
        assert likelihood.log_inverse_dispersion.shape == ()
        assert torch.equal(θ, likelihood.log_inverse_dispersion.exp().expand(B, G))


@pytest.mark.parametrize("dispersion", ["scalar", "gene", "gene-cell"])
@pytest.mark.parametrize(("kind", "shape"), [("scalar", ()), ("gene", (G,))])
@pytest.mark.parametrize("name", ["zip", "zinb"])
def test_dropout_may_be_a_parameter_and_not_an_output(name, kind, shape, dispersion):
    if name == "zip" and dispersion != "gene":
        return
    likelihood = make_likelihood(name, N_IN, G, dispersion, zero_inflation=kind).double()
    for parameter in likelihood.parameters():
        torch.nn.init.normal_(parameter)
    assert likelihood.dropout_logits.shape == shape
    h, library = hidden_and_library(B)
    p, x = likelihood(h, library), data_for(likelihood)
    weight, bias = (t.detach() for t in likelihood.output.parameters())
    pieces = (h @ weight.T + bias).split(G, dim=-1)  # f, then log θ
    assert len(pieces) == 1 + (dispersion == "gene-cell")
    base = Poisson(library[:, None] * pieces[0].softmax(-1))
    if name == "zinb":
        given = dispersion == "gene-cell"
        log_θ = pieces[1] if given else likelihood.log_inverse_dispersion
        base = NegativeBinomial(base.rate, log_θ.exp())
    expected = ZeroInflated(base, likelihood.dropout_logits.detach())
    assert torch.allclose(p.log_prob(x), expected.log_prob(x), rtol=1e-12)
    (-p.log_prob(x).sum()).backward()
    assert (likelihood.dropout_logits.grad != 0).all()


@pytest.mark.parametrize("name", COUNTS)
def test_without_a_library_the_decoder_gives_the_mean_itself(name):
    likelihood = make_likelihood(name, N_IN, G, library="none").double()
    h, library = hidden_and_library(S, B)
    p = likelihood(h, library)
    weight, bias = (t.detach() for t in likelihood.output.parameters())
    expected = torch.log1p((h @ weight.T + bias)[..., :G].exp())  # softplus
    mean = (p.base if name.startswith("z") else p).mean
    assert torch.allclose(mean, expected, rtol=1e-12)
    assert torch.equal(likelihood(h, 7 * library).mean, p.mean)
    with torch.no_grad():  # far below 0, where softplus underflows
        likelihood.float().output.bias.fill_(-200.0)
    log_p = likelihood(torch.zeros(1, N_IN), torch.ones(1)).log_prob(torch.ones(1, G))
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert all(p.grad.isfinite().all() for p in likelihood.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nb", {"zero_inflation": "scalar"}, r"zero_inflation is 'scalar'; .*\['gene-cell'\]"),
        ("zinb", {"zero_inflation": "cell"}, r"\['scalar', 'gene', 'gene-cell'\] for this"),
        ("nb", {"library": None}, r"library is None; choose from \['observed', 'none'\]"),
        ("normal", {"library": "none"}, r"library is 'none'; choose from \['observed'\]"),
        ("poisson", {"dispersion": "scalar"}, r"dispersion is 'scalar'; choose from \['gene'\]"),
    ],
)
def test_an_option_that_a_likelihood_does_not_have_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_likelihood(name, N_IN, G, **options)
    with pytest.raises(ValueError, match=message):
        vaelab.VAE(G, likelihood=name, **options)


def test_standard_deviation_and_inverse_dispersion_stay_in_a_sane_range():
    normal, nb = make("normal"), make("nb")
    h, library = hidden_and_library(B)
    for extreme, σ, θ in ((-100.0, np.exp(-5), np.exp(-12)), (4.0, np.exp(4), np.exp(4))):
        normal.log_std.data.fill_(extreme)
        nb.log_inverse_dispersion.data.fill_(extreme)
        assert torch.allclose(normal(h, library).stddev, torch.tensor(σ))
        assert torch.allclose(nb(h, library).inverse_dispersion, torch.tensor(θ))
    nb.log_inverse_dispersion.data.fill_(100.0)
    assert torch.allclose(nb(h, library).inverse_dispersion, torch.tensor(np.exp(12)))


def test_library_scales_counts_and_nothing_else():
    h, library = hidden_and_library(B)
    for name, dispersion in KINDS:
        likelihood = make(name, dispersion)
        once, twice = likelihood(h, library).mean, likelihood(h, 2 * library).mean
        factor = 2 if likelihood.domain == "counts" else 1
        assert torch.allclose(twice, factor * once, rtol=1e-12)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_of_a_gene_whose_share_underflows_gives_a_finite_loss_and_gradient(name):
    likelihood = make_likelihood(name, n_in=1, n_genes=3)
    with torch.no_grad():
        likelihood.output.weight.zero_()
        likelihood.output.bias.zero_()
        likelihood.output.bias[:3] = torch.tensor([120.0, 0.0, 95.0])
    log_p = likelihood(torch.ones(1, 1), torch.tensor([1000.0])).log_prob(torch.ones(1, 3))
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert all(p.grad.isfinite().all() for p in likelihood.parameters())


def test_the_dispersion_of_a_gene_in_each_batch_is_that_of_the_cells_own():
    torch.manual_seed(0)
    likelihood = make_likelihood("nb", N_IN, G, "gene-batch", n_batches=2)
    with torch.no_grad():
        likelihood.log_inverse_dispersion.copy_(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    p = likelihood(torch.zeros(S, B, N_IN), torch.ones(B), torch.tensor([0, 1, 1, 0]))
    expected = torch.tensor([[0.0, 1, 2], [3, 4, 5], [3, 4, 5], [0, 1, 2]]).exp()
    assert torch.allclose(p.inverse_dispersion.expand(S, B, G), expected.expand(S, B, G))
    with pytest.raises(ValueError, match="needs batches, but n_batches is 0"):
        make_likelihood("nb", N_IN, G, "gene-batch")


# ------------------------------------------------------------------------ limits of θ and σ


@pytest.mark.parametrize(("start", "target"), [(-20.0, 0.0), (20.0, 0.0), (0.0, 0.0)])
def test_a_parameter_outside_its_limits_comes_back(start, target):
    x = torch.full((3,), start, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (bounded(x, -12, 12) - target).square().sum()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.full((3,), target), atol=1e-3, rtol=0)


def test_a_gradient_that_leads_further_out_is_zero():
    x = torch.tensor([-13.0, -13.0, 13.0, 13.0, 5.0], requires_grad=True)
    bounded(x, -12, 12).backward(torch.tensor([1.0, -1.0, 1.0, -1.0, 7.0]))
    # Descent moves against the gradient: 1 at −13 leads further down, −1 at 13 further up.
    assert x.grad.tolist() == [0, -1, 1, 0, 7]
    assert bounded(x, -12, 12).tolist() == [-12, -12, 12, 12, 5]


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_the_normals_sigma_is_in_the_units_of_each_gene(unit):
    """A table in other units gives the same model, its bound moved by the log of the unit."""
    x = np.random.default_rng(0).normal(3, [0.5, 2, 1], size=(300, 3))
    x[:, 2] = 4.0  # a constant gene
    model = vaelab.VAE(3, n_latent=1, n_hidden=4, likelihood="normal")
    cells = vaelab.Cells.from_array(x * unit)
    vaelab.fit(model, cells, epochs=1, learning_rate=1e-9, progress=False)
    expected = x.std(0) * unit
    expected[2] = expected[0]
    assert model.likelihood.scale.numpy() == pytest.approx(expected, rel=1e-5)
    assert model.likelihood.std.detach().numpy() == pytest.approx(expected, rel=0.02)


def test_the_scale_is_kept_by_later_fits_and_in_the_file(tmp_path):
    rng = np.random.default_rng(0)
    model = vaelab.VAE(2, n_latent=1, n_hidden=4, likelihood="normal")
    for sd in (0.5, 5.0):
        cells = vaelab.Cells.from_array(rng.normal(0, sd, size=(50, 2)))
        vaelab.fit(model, cells, epochs=1, progress=False)
    assert model.likelihood.scale.max() < 1
    model.save(tmp_path / "mine")
    again = vaelab.VAE.load(tmp_path / "mine")
    assert torch.equal(again.likelihood.scale, model.likelihood.scale)
