"""The GMVAE against enumeration of y and quadrature over z, on models with one latent dimension."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

import vaelab
from vaelab import Cells
from vaelab.models import gmvae

from .oracles import log_nb, network

G, N, S = 5, 4, 80  # genes, cells, nodes of the quadrature
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(S)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def tiny(K, seed=0, learn_weights=True, **options):
    """A GMVAE in float64 whose every parameter is random, also those that start at 0."""
    model = vaelab.GMVAE(
        G, n_clusters=K, n_latent=1, n_hidden=6, likelihood="nb", normalization=None,
        learn_weights=learn_weights, seed=seed, **options,
    ).double()  # fmt: skip
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.4 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def cells():
    x = np.random.default_rng(1).poisson(3, size=(N, G)).astype(float)
    return Cells.from_array(x).to(dtype=torch.float64)


# ------------------------------------------- an oracle in numpy, from the model's numbers alone


def linear(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def log_p_x_given(model, x, z, seen=slice(None)):
    """log p(x | z) of each cell at each z of its own, over genes seen; shape (n_cells, n_z)."""
    scores = linear(model.likelihood.output, network(model.decoder, z[..., None]))
    log_mean = np.log(x.sum(1))[:, None, None] + scores - logsumexp(scores, axis=-1, keepdims=True)
    log_theta = model.likelihood.log_inverse_dispersion.detach().numpy()
    return log_nb(x[:, None, :], log_mean, log_theta)[..., seen].sum(-1)


def parts(model, x):
    """q(y | x), and for each k: mean and standard deviation of q(z | x, k) and of p(z | k)."""
    K = model.n_clusters
    h = network(model.encoder, np.log1p(x))
    scores = linear(model.to_y, h)
    q_y = np.exp(scores - logsumexp(scores, axis=-1, keepdims=True))
    for_k = []
    for k in range(K):
        y = np.tile(np.eye(K)[k], (len(x), 1))
        m, s = network(model.to_z, np.hstack([h, y])).T
        of_p = model.means[k, 0].item(), np.exp(model.log_stds[k, 0].item())
        for_k.append((m, np.log1p(np.exp(s)) + 1e-4, *of_p))
    weights = model.log_weights.detach().numpy()
    return q_y, for_k, np.exp(weights - logsumexp(weights))


def enumerated(model, x, seen=slice(None)):
    """The bound and its three terms: y by enumeration, z by quadrature, the KLs too."""
    q_y, for_k, p_y = parts(model, x)
    terms = {"reconstruction": 0.0, "kl_z": 0.0, "kl_y": 0.0}
    for k, (m, s, mu, sigma) in enumerate(for_k):
        z = m[:, None] + s[:, None] * NODES  # (n_cells, S)
        log_q = norm.logpdf(z, m[:, None], s[:, None])
        terms["reconstruction"] += q_y[:, k] * (log_p_x_given(model, x, z, seen) @ WEIGHTS)
        terms["kl_z"] += q_y[:, k] * ((log_q - norm.logpdf(z, mu, sigma)) @ WEIGHTS)
        terms["kl_y"] += q_y[:, k] * np.log(q_y[:, k] / p_y[k])
    return terms


def total(terms):
    return terms["reconstruction"] - terms["kl_z"] - terms["kl_y"]


def evidence(model, x):
    """log p(x), y by enumeration and z on a grid."""
    _, for_k, p_y = parts(model, x)
    z = np.linspace(-15, 15, 20_001)
    log_prior = logsumexp(
        [np.log(p) + norm.logpdf(z, mu, sigma)
         for p, (_, _, mu, sigma) in zip(p_y, for_k, strict=True)], axis=0,
    )  # fmt: skip
    log_joint = log_p_x_given(model, x, np.tile(z, (len(x), 1))) + log_prior
    return logsumexp(log_joint, axis=1) + np.log(z[1] - z[0])


# ------------------------------------------------------------------------------- the exact bound


@pytest.fixture
def nodes(monkeypatch):
    """Draws of z are the nodes of a quadrature: their weighted mean is the expectation."""

    def at_nodes(mean, std, n_samples=None):
        shape = (S,) + (1,) * mean.ndim if n_samples else (S, *(1,) * (mean.ndim - 1))
        return mean + std * torch.tensor(NODES).reshape(shape)

    monkeypatch.setattr(gmvae, "gaussian", at_nodes)


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("learn_weights", [True, False])
def test_the_bound_is_that_of_enumeration(nodes, cells, K, seed, learn_weights):
    model = tiny(K, seed, learn_weights)
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=S)
    expected = enumerated(model, cells.x.numpy())
    for name, value in expected.items():
        ours = bound.terms[name].value.numpy()
        ours = WEIGHTS @ ours if ours.ndim == 2 else ours
        np.testing.assert_allclose(ours, value, atol=1e-8, rtol=1e-10, err_msg=name)
    if not learn_weights:  # π uniform: KL_y = log K − H(q)
        q = bound.posteriors["y"].numpy()
        np.testing.assert_allclose(expected["kl_y"], np.log(K) + (q * np.log(q)).sum(1))


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_is_never_above_the_evidence(cells, K, seed):
    model, x = tiny(K, seed), cells.x.numpy()
    gap = evidence(model, x) - total(enumerated(model, x))
    assert (gap > 0).all()


def test_with_the_posterior_there_is_no_gap(cells):
    """The decoder ignores z, so that the posterior is the prior, and q can be set to it."""
    model = tiny(3)
    with torch.no_grad():
        model.decoder[0].weight.zero_()
        model.to_y.weight.zero_()
        model.to_y.bias.copy_(model.log_weights)
        first, last = model.to_z[0], model.to_z[-1]
        first.weight.zero_(), first.bias.zero_(), last.weight.zero_(), last.bias.zero_()
        first.weight[:3, 6:] = torch.eye(3)  # the hidden layer is y
        last.weight[0, :3] = model.means[:, 0]
        last.weight[1, :3] = (model.log_stds[:, 0].exp() - 1e-4).expm1().log()
        bound = model.elbo(cells)
    np.testing.assert_allclose(bound.per_cell(), evidence(model, cells.x.numpy()), atol=1e-9)
    drawn = model.elbo(cells, n_samples=7, analytic_kl=False)  # and every draw gives it
    each = total({name: term.value.detach() for name, term in drawn.terms.items()})
    np.testing.assert_allclose(each, bound.per_cell().expand(7, -1), atol=1e-9)


def test_log_marginal_tends_to_the_evidence(cells):
    model, x = tiny(2), cells.x.numpy()
    log_p = model.log_marginal(cells, n_samples=20_000)
    np.testing.assert_allclose(log_p, evidence(model, x), atol=0.05)
    assert (log_p > total(enumerated(model, x))).all()


# -------------------------------------------------------------------------- drawing in place of it


def test_hard_draws_agree_with_the_sum_on_average(cells):
    model = tiny(3)
    exact = enumerated(model, cells.x.numpy())
    torch.manual_seed(0)
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=40_000, estimator="straight-through")
    for name in ("reconstruction", "kl_z"):
        value = bound.terms[name].value.numpy()
        error = value.std(0) / np.sqrt(len(value))
        assert (np.abs(value.mean(0) - exact[name]) < 5 * error).all(), name
    np.testing.assert_allclose(bound["kl_y"], exact["kl_y"], rtol=1e-9)


def test_relaxed_draws_tend_to_the_sum_as_the_temperature_falls(cells):
    exact = enumerated(tiny(3), cells.x.numpy())["kl_z"]
    bias = []
    for τ in (2.0, 0.5, 0.01):
        model = tiny(3, temperature=(τ, τ))
        torch.manual_seed(0)
        with torch.no_grad():
            value = model.elbo(cells, n_samples=40_000, estimator="gumbel").terms["kl_z"].value
        error = value.std(0).numpy() / np.sqrt(len(value))
        bias.append(np.abs(value.mean(0).numpy() - exact))
    assert (bias[0] > bias[1]).all()
    assert (bias[0] > 10 * error).all()
    assert (bias[2] < 5 * error + 1e-3).all()


def test_the_terms_of_a_draw_are_a_log_weight_whatever_the_estimator(cells):
    """A relaxed y has no probability: where the KLs are drawn, y is one-hot."""
    model = tiny(3, temperature=(2.0, 2.0))
    bounds = []
    for estimator in ("gumbel", "straight-through", "sum"):
        torch.manual_seed(0)
        bound = model.elbo(cells, n_samples=5, analytic_kl=False, estimator=estimator)
        bounds.append(bound.iwae().detach())
    np.testing.assert_array_equal(bounds[0], bounds[1])
    np.testing.assert_array_equal(bounds[0], bounds[2])


def test_the_gradient_of_straight_through_reaches_the_posterior_over_y(cells):
    model = tiny(3, estimator="straight-through").train()
    bound = model.elbo(cells)
    bound["reconstruction"].sum().backward()
    assert model.to_y.weight.grad.abs().max() > 0


@pytest.mark.parametrize("normalization", ["batch", "layer", None])
@pytest.mark.parametrize("estimator", ["sum", "straight-through"])
def test_in_training_the_networks_see_y(cells, estimator, normalization, monkeypatch):
    """Batch normalisation over the cells of one y alone would subtract what y adds to all."""
    options = {"n_hidden": 16, "normalization": normalization, "dropout_rate": 0.0}
    model = vaelab.GMVAE(G, n_clusters=3, n_latent=1, **options).double().train()
    shift, encode_z = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True), model.encode_z

    def shifted(h, y):
        q = encode_z(h, y)
        return torch.distributions.Normal(q.mean + y @ shift, q.stddev)

    monkeypatch.setattr(model, "encode_z", shifted)
    bound = model.elbo(cells, n_samples=64, estimator=estimator)
    bound["reconstruction"].sum().backward()
    of_y = model.to_z[0].weight.grad[:, -3:]
    assert of_y.abs().max() > 1e-4, "q(z | x, y) does not see y"
    assert shift.grad.abs().max() > 1e-4, "p(x | z) does not see which cluster z is from"


@pytest.mark.parametrize(
    ("first", "last", "steps"), [(1.0, 0.25, 4), (0.5, 0.5, 10), (1.0, 0.1, 0)]
)
def test_the_temperature_falls_by_one_factor_per_step_of_training(cells, first, last, steps):
    model = tiny(2, estimator="gumbel", temperature=(first, last), annealing_steps=steps)
    seen, elbo = [], model.elbo

    def watched(cells, **options):
        if model.training:
            seen.append(model.temperature)
        return elbo(cells, **options)

    model.elbo = watched
    four = {"batch_size": 2, "validation_fraction": 0.0, "progress": False}  # cells: two steps
    vaelab.fit(model, cells, epochs=3, **four)
    done = [min(1.0, i / steps) if steps else 1.0 for i in range(6)]
    np.testing.assert_allclose(seen, [first * (last / first) ** d for d in done], rtol=1e-6)


def test_looking_at_the_bound_does_not_cool_the_draws(cells):
    model = tiny(2, estimator="gumbel", annealing_steps=100).train()
    before = model.temperature
    for _ in range(500):
        model.elbo(cells)
    assert model.temperature == before
    vaelab.fit(model, cells, epochs=2, progress=False)
    assert model.temperature < before


def test_in_evaluation_y_is_summed_out_whatever_training_does(cells):
    summed, drawn = tiny(2), tiny(2, estimator="gumbel")
    bounds = [m.elbo_per_cell(cells, seed=3) for m in (summed, drawn)]
    np.testing.assert_array_equal(*bounds)


# ------------------------------------------------------------------------------------- clusters


def relabelled(model, order):
    other = tiny(model.n_clusters)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name in ("means", "log_stds", "log_weights"):
            getattr(other, name).copy_(getattr(model, name)[order])
        other.to_y.weight.copy_(model.to_y.weight[order])
        other.to_y.bias.copy_(model.to_y.bias[order])
        other.to_z[0].weight[:, 6:] = model.to_z[0].weight[:, 6:][:, order]
    return other


def test_relabelling_the_clusters_changes_nothing_but_their_order(cells):
    model, order = tiny(3), [2, 0, 1]
    other = relabelled(model, order)
    x = cells.x.numpy()
    for name, value in enumerated(model, x).items():
        np.testing.assert_allclose(enumerated(other, x)[name], value, atol=1e-12)
    np.testing.assert_allclose(other.cluster(cells), model.cluster(cells)[:, order], atol=1e-12)
    np.testing.assert_allclose(other.embed(cells), model.embed(cells), atol=1e-12)
    np.testing.assert_allclose(
        *(m.elbo(cells)["kl_y"].detach() for m in (model, other)), atol=1e-12
    )


def test_cluster_is_the_posterior_over_y(cells):
    model = tiny(3)
    np.testing.assert_allclose(model.cluster(cells), parts(model, cells.x.numpy())[0], atol=1e-12)


def test_embed_is_the_mean_over_clusters_of_the_posterior_means(cells):
    model = tiny(3)
    q_y, for_k, _ = parts(model, cells.x.numpy())
    expected = sum(q_y[:, k] * m for k, (m, *_) in enumerate(for_k))
    np.testing.assert_allclose(model.embed(cells)[:, 0], expected, atol=1e-12)


def test_cells_are_generated_from_one_cluster_or_from_all(cells):
    model = tiny(3)
    with torch.no_grad():
        model.log_stds.fill_(-9)
        model.means.copy_(torch.tensor([[-3.0], [0.0], [3.0]]))
    library = 1e5
    mean = [
        model.decode(model.means[k], model.blank_cells(1, library)).mean[0].detach()
        for k in range(3)
    ]
    for k in range(3):
        x = model.generate(400, library=library, y=k)
        assert x.shape == (400, G)
        np.testing.assert_allclose(x.mean(0), mean[k], rtol=0.5, atol=0.02 * library)
    x = model.generate(4000, library=library)
    weights = model.log_weights.softmax(0).detach()
    expected = sum(w * m for w, m in zip(weights, mean, strict=True))
    np.testing.assert_allclose(x.mean(0), expected, rtol=0.3, atol=0.02 * library)


@pytest.mark.parametrize("y", [3, -1, 1.5, True, "B cell"])
def test_a_cluster_that_there_is_not_is_refused(y):
    with pytest.raises(ValueError, match=r"y is .*must be a whole number from 0 to 2"):
        tiny(3).generate(5, y=y)


def test_a_first_guess_is_learned_by_q_of_y_alone(cells):
    x = np.vstack([np.tile([9, 0, 1, 1, 0], (40, 1)), np.tile([0, 1, 0, 0, 9], (40, 1))])
    two, guess = Cells.from_array(x.astype(float)), np.repeat([1, 0], 40)
    model = vaelab.GMVAE(G, n_clusters=2, n_latent=2, n_hidden=8)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.start_from(two, guess, epochs=100)
    assert (model.cluster(two).argmax(1) == guess).all()
    changed = {n.split(".")[0] for n, p in model.state_dict().items() if not p.equal(before[n])}
    assert changed == {"encoder", "to_y"}


@pytest.mark.parametrize(
    "guess", [[0, 1, 2, 0], [0, 1], [0, 1, -1, 0], [0.5, 1, 0, 0], ["a", "b", "a", "b"]]
)
def test_a_first_guess_that_does_not_fit_is_refused(cells, guess):
    with pytest.raises(ValueError, match=r"clusters .*from 0 to 1 for each of the 4 cells"):
        tiny(2).start_from(cells, guess)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("n_clusters", 0), ("estimator", "mean"), ("temperature", (0.0, 1.0)),
     ("temperature", 1.0), ("temperature", "ab"), ("temperature", (1.0,)),
     ("annealing_steps", -1), ("likelihood", "gamma")],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        vaelab.GMVAE(G, **{argument: value})


# -------------------------------------------------------------------------------------- training


def test_genes_that_were_not_observed_are_neither_seen_nor_scored(nodes, cells):
    model, seen = tiny(2), [0, 1, 3, 4]
    observed = torch.zeros(N, G, dtype=torch.bool)
    observed[:, seen] = True
    x = cells.x * observed
    library = x.sum(1)
    with torch.no_grad():
        value = model.elbo(
            replace(cells, x=x, observed=observed, library=library), n_samples=S
        ).terms["reconstruction"].value  # fmt: skip
    expected = enumerated(model, x.numpy(), seen)["reconstruction"]
    np.testing.assert_allclose(WEIGHTS @ value.numpy(), expected, atol=1e-8)


def test_the_prior_is_the_mixture():
    model = tiny(3)
    z = np.linspace(-3, 3, 7)
    weights = model.log_weights.softmax(0).tolist()
    means, stds = model.means[:, 0].tolist(), model.log_stds[:, 0].exp().tolist()
    density = sum(w * norm.pdf(z, m, s) for w, m, s in zip(weights, means, stds, strict=True))
    ours = model.prior().log_prob(torch.tensor(z)[:, None]).exp().detach()
    np.testing.assert_allclose(ours, density, rtol=1e-10)


@pytest.mark.parametrize("estimator", ["sum", "gumbel", "straight-through"])
def test_two_kinds_of_cells_are_told_apart(estimator):
    adata = vaelab.simulate.dataset(300, 60, n_types=2, separation=6.0, seed=0)
    cells = Cells.from_anndata(adata, label="cell_type")
    model = vaelab.GMVAE(60, n_clusters=2, n_latent=2, n_hidden=32, estimator=estimator)
    model.start_from(cells, vaelab.metrics.kmeans(np.log1p(adata.X.toarray()), 2))
    history = vaelab.fit(model, cells, epochs=15, learning_rate=1e-3, epsilon=1e-8, progress=False)
    found = model.cluster(cells).argmax(1)
    assert vaelab.metrics.adjusted_rand_index(cells.label, found) > 0.9
    assert history.frame["bound"].iloc[-1] > history.frame["bound"].iloc[0] + 10
    assert history.usage("y")["used"].iloc[-1] == 2


def test_training_says_how_many_clusters_are_used(capsys, monkeypatch):
    for name in ("COLUMNS", "LINES"):  # tqdm cuts the bar to a terminal of this size
        monkeypatch.setenv(name, "400")
    adata = vaelab.simulate.dataset(200, 30, n_types=2, seed=0)
    model = vaelab.GMVAE(30, n_clusters=4, n_latent=2, n_hidden=16)
    history = vaelab.fit(model, Cells.from_anndata(adata), epochs=3)
    shares = np.array(history.shares["y"])
    assert shares.shape == (3, 4)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    usage = history.usage("y")
    assert list(usage.index) == [1, 2, 3]
    np.testing.assert_allclose(usage["entropy"], -(shares * np.log(shares)).sum(1), rtol=1e-5)
    assert (
        f"y={usage['used'].iloc[-1]}/4 H {usage['entropy'].iloc[-1]:.2f}" in capsys.readouterr().out
    )
    with pytest.raises(KeyError, match="No discrete variable 'c'; this model has \\['y'\\]"):
        history.usage("c")


def test_a_mixture_that_collapses_does_not_do_so_unseen():
    adata = vaelab.simulate.dataset(200, 30, seed=0)
    model = vaelab.GMVAE(30, n_clusters=6, n_latent=2, n_hidden=16)
    with torch.no_grad():
        model.to_y.bias[2] = 30.0
    with pytest.warns(UserWarning, match="uses 1 of the 6 values of y"):
        vaelab.fit(model, Cells.from_anndata(adata), epochs=1, progress=False)


def test_a_rare_value_is_not_called_unused():
    rng = np.random.default_rng(0)
    label = np.where(np.arange(200) < 190, "common", "rare")
    cells = Cells.from_array(rng.poisson(3, (200, 20)), label=label)
    model = vaelab.SCANVI(20, n_labels=2, n_latent=2, n_hidden=16)
    history = vaelab.fit(model, cells, epochs=1, progress=False)  # a warning would be an error
    assert history.usage("c")["used"].tolist() == [2]
    assert history.usage("c")["entropy"].iloc[-1] < np.log(2) / 2


def test_a_training_interrupted_goes_on_at_its_temperature(tmp_path):
    cells = Cells.from_anndata(vaelab.simulate.dataset(150, 20, seed=0))
    options = {"n_clusters": 3, "n_latent": 2, "n_hidden": 8, "estimator": "gumbel"}
    options |= {"annealing_steps": 8}
    whole, halves = (vaelab.GMVAE(20, **options) for _ in range(2))
    settings = {"epochs": 4, "batch_size": 64, "progress": False}
    at_once = vaelab.fit(whole, cells, **settings)

    class Stop(Exception):
        pass

    epochs = []

    def stop(run):
        epochs.append(1)
        if len(epochs) == 3:
            raise Stop
        return epoch(run)

    from vaelab import training

    epoch = training._Run.epoch
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training._Run, "epoch", stop)
        vaelab.fit(halves, cells, checkpoint=tmp_path / "run", **settings)
    again = vaelab.GMVAE(20, **options)
    history = vaelab.fit(again, cells, checkpoint=tmp_path / "run", **settings)
    assert history.shares == at_once.shares
    for name, value in whole.state_dict().items():
        assert value.equal(again.state_dict()[name]), name


def test_it_is_saved_and_loaded(tmp_path, cells):
    model = tiny(3)
    model.save(tmp_path / "m")
    other = vaelab.GMVAE.load(tmp_path / "m")
    np.testing.assert_array_equal(other.cluster(cells), model.cluster(cells))
    np.testing.assert_array_equal(other.elbo_per_cell(cells), model.elbo_per_cell(cells))
