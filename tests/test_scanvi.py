"""SCANVI's L and U against enumeration of c and quadrature over z1 and z2."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

import vaelab
from vaelab import Cells
from vaelab.models import scanvi

from .oracles import log_p_x, network, q_of
from .test_scvi import randomise

G, N, S = 4, 6, 40
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(S)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
LABEL = np.array([0, -1, 1, -1, 0, -1])
BATCH = np.array([0, 0, 1, 1, 0, 1])


def tiny(C=2, seed=0, **options):
    options = {"likelihood": "nb"} | options
    model = vaelab.SCANVI(
        G, n_labels=C, n_batches=2, n_latent=1, n_hidden=6, normalization=None, seed=seed, **options
    )
    randomise(model.double(), seed, 0.2)
    with torch.no_grad():  # deviations that differ by less than e³, for quadrature to converge
        for mlp in (model.encoder_z2, model.decoder_z1):
            mlp[-1].weight.mul_(0.5)
    return model


@pytest.fixture(scope="module")
def cells():
    x = np.random.default_rng(1).poisson(3, size=(N, G)).astype(float)
    label = [f"type {c}" if c >= 0 else None for c in LABEL]
    made = Cells.from_array(x, label=label, batch=[f"b{b}" for b in BATCH])
    return made.to(dtype=torch.float64)


# ------------------------------------------- an oracle in numpy, from the model's numbers alone


def log_softmax(scores):
    return scores - logsumexp(scores, axis=-1, keepdims=True)


def log_p_c(model):
    return log_softmax(model.logits_c.detach().numpy())


def z1_given(model, z2, k):
    """Mean and standard deviation of p(z1 | z2, c = k), z2 of any shape."""
    out = network(model.decoder_z1, z2[..., None], np.eye(len(log_p_c(model)))[k])
    return out[..., 0], np.exp(out[..., 1] / 2)


def z2_given(model, z1, k, batch):
    """Mean and standard deviation of q(z2 | z1, c = k), z1 of shape (n_cells, …)."""
    conditions = np.eye(len(log_p_c(model)))[k]
    if model.configuration["encode_batch_z2"]:
        γ = np.eye(2)[batch].reshape(len(batch), *(1,) * (z1.ndim - 1), 2)
        conditions = np.concatenate(
            [np.broadcast_to(conditions, (*γ.shape[:-1], len(conditions))), γ], axis=-1
        )
    out = network(model.encoder_z2, z1[..., None], conditions)
    return out[..., 0], np.sqrt(np.exp(out[..., 1]) + 1e-4)


def by_quadrature(model, x, label=LABEL, batch=BATCH):
    """Each term of the bound; c by enumeration, z1 and z2 by quadrature, KLs too."""
    γ = np.eye(2)[batch] if model.configuration["encode_batch"] else None
    m, s = q_of(model.encoder, x, γ)
    z1 = m[:, None] + s[:, None] * NODES  # (n_cells, S)
    log_library = np.broadcast_to(np.log(x.sum(1))[:, None], z1.shape)
    log_q_c = log_softmax(network(model.classifier, z1[..., None]))  # (n_cells, S, C)
    terms = {
        "reconstruction": log_p_x(model, x, z1, log_library, batch) @ WEIGHTS,
        "log_q_z1": norm.logpdf(z1, m[:, None], s[:, None]) @ WEIGHTS,
    }
    terms |= dict.fromkeys(("log_p_z1", "kl_z2", "kl_c"), 0.0)
    for k, log_p in enumerate(log_p_c(model)):
        known = (label >= 0) & model.configuration["label_bound"]
        ω = np.where(known[:, None], (label == k)[:, None], np.exp(log_q_c[..., k]))
        log_ω = np.where(known[:, None], 0, log_q_c[..., k])
        mean, std = z2_given(model, z1, k, batch)
        z2 = mean[..., None] + std[..., None] * NODES  # (n_cells, S, S)
        log_p_z1 = norm.logpdf(z1[..., None], *z1_given(model, z2, k)) @ WEIGHTS
        kl = (norm.logpdf(z2, mean[..., None], std[..., None]) - norm.logpdf(z2)) @ WEIGHTS
        terms["log_p_z1"] += (ω * log_p_z1) @ WEIGHTS
        terms["kl_z2"] += (ω * kl) @ WEIGHTS
        terms["kl_c"] += (ω * (log_ω - log_p)) @ WEIGHTS
    return terms


def total(terms):
    log_q, log_p = terms["log_q_z1"], terms["log_p_z1"]
    return terms["reconstruction"] - log_q + log_p - terms["kl_z2"] - terms["kl_c"]


def evidence(model, x, label=LABEL, batch=BATCH):
    """log p(x, c | γ) of the labelled, log p(x | γ) of the others, on a grid of z1 and z2."""
    z = np.linspace(-12, 12, 1201)
    step = z[1] - z[0]
    each = np.broadcast_to(z, (len(x), len(z)))
    log_library = np.broadcast_to(np.log(x.sum(1))[:, None], each.shape)
    log_p = log_p_x(model, x, each, log_library, batch)  # (n_cells, z1)
    of_types = []
    for k, log_p_k in enumerate(log_p_c(model)):
        mean, std = z1_given(model, z, k)
        log_joint = norm.logpdf(z[:, None], mean, std) + norm.logpdf(z)  # (z1, z2)
        log_p_z1 = logsumexp(log_joint, axis=1) + np.log(step)
        of_types.append(logsumexp(log_p + log_p_z1, axis=1) + np.log(step) + log_p_k)
    of_types = np.array(of_types)  # (C, n_cells)
    with_label = of_types[np.maximum(label, 0), np.arange(len(x))]
    return np.where(label >= 0, with_label, logsumexp(of_types, axis=0))


# ------------------------------------------------------------------------------ the exact bounds

KINDS = [
    {}, {"C": 3}, {"prior_c": [0.9, 0.1]}, {"prior_c": "learned"}, {"encode_batch": True},
    {"encode_batch_z2": True}, {"label_bound": False}, {"likelihood": "zinb"},
    {"classifier_layers": 0},
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_the_bounds_are_those_of_quadrature(monkeypatch, cells, options, seed):
    model = tiny(seed=seed, **options)
    cells = three_types(cells) if options.get("C") == 3 else cells

    def at_nodes(mean, std, n_samples=None):
        of_z1 = n_samples is not None
        at = np.repeat(NODES, S) if of_z1 else np.tile(NODES, S)
        at = at[:, None, None] if of_z1 else at[None, :, None, None]
        return mean + std * torch.tensor(at)

    monkeypatch.setattr(scanvi, "gaussian", at_nodes)
    averages = {}  # terms that are averages over draws come out of a Bound as means: weigh them
    weights = torch.tensor(np.outer(WEIGHTS, WEIGHTS).ravel())
    monkeypatch.setattr(torch.Tensor, "mean", weigh(weights, torch.Tensor.mean))
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=S * S)
    monkeypatch.undo()
    for name, expected in by_quadrature(model, cells.x.numpy()).items():
        value = bound.terms[name].value.numpy()
        averages[name] = weights.numpy() @ value if value.ndim == 2 else value
        np.testing.assert_allclose(averages[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)


def weigh(weights, mean):
    """``mean(0)`` over the nodes of the quadrature, with their weights."""

    def weighted(self, *dims, **options):
        if dims == (0,) and len(self) == len(weights):
            return torch.einsum("s,s...->...", weights, self)
        return mean(self, *dims, **options)

    return weighted


def three_types(cells):
    return replace(cells, label_names=("type 0", "type 1", "type 2"))


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_l_and_u_are_never_above_the_evidence(cells, options, seed):
    model, x = tiny(seed=seed, **options), cells.x.numpy()
    label = LABEL if model.configuration["label_bound"] else np.full(N, -1)
    bound = total(by_quadrature(model, x))
    assert (bound < evidence(model, x, label)).all()


@pytest.mark.parametrize("options", [{}, {"C": 3, "prior_c": "learned"}], ids=str)
def test_log_marginal_tends_to_the_evidence(cells, options):
    model = tiny(seed=2, **options)
    cells = three_types(cells) if options.get("C") == 3 else cells
    log_p = model.log_marginal(cells, n_samples=30_000)
    with_labels, without = (evidence(model, cells.x.numpy(), n) for n in (LABEL, np.full(N, -1)))
    np.testing.assert_allclose(log_p, with_labels, atol=0.06)
    log_p = model.log_marginal(cells.unlabelled(), n_samples=30_000)
    np.testing.assert_allclose(log_p, without, atol=0.06)
    assert (without - with_labels)[LABEL >= 0].min() > 0.15  # another quantity, not another guess


def test_u_is_the_mean_of_l_over_types_and_the_entropy(cells):
    """U = E_q(z1) Σ_c q(c | z1) l(z1, c) + E H(q(c | z1)) (Kingma et al. 2014), draw by draw."""
    model, unknown = tiny(3, seed=1), three_types(cells).unlabelled()

    def of(label):
        torch.manual_seed(0)
        known = replace(unknown, label=torch.full((N,), label))
        with torch.no_grad():
            return model.elbo(known).per_cell().numpy()

    torch.manual_seed(0)
    with torch.no_grad():
        q = model.encode(unknown)
        z1 = q.mean + q.stddev * torch.randn(1, N, 1, dtype=torch.float64)[0]
        log_q = model.classify(z1).numpy()
    mixed = sum(np.exp(log_q[:, k]) * of(k) for k in range(3))
    np.testing.assert_allclose(of(-1), mixed - (np.exp(log_q) * log_q).sum(1), rtol=1e-10)


def test_the_order_of_cells_and_labels_means_nothing(cells):
    model, other, order = tiny(3, 1), tiny(3, 1), [2, 0, 1]
    with torch.no_grad():
        other.logits_c.copy_(model.logits_c[order])
        for parameter in (other.classifier[-1].weight, other.classifier[-1].bias):
            parameter.copy_(parameter[order])
        for mlp in (other.encoder_z2, other.decoder_z1):
            mlp[0].weight[:, 1:4] = mlp[0].weight[:, 1:4][:, order]
    x, new = cells.x.numpy(), np.array([order.index(c) if c >= 0 else -1 for c in LABEL])
    expected = by_quadrature(model, x)
    for name, value in by_quadrature(other, x, new).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, err_msg=name)
    p = model.predict(three_types(cells))
    np.testing.assert_allclose(other.predict(three_types(cells)), p[:, order], rtol=1e-10)
    rows = np.array([3, 0, 5, 1, 4, 2])
    for name, value in by_quadrature(model, x[rows], LABEL[rows], BATCH[rows]).items():
        np.testing.assert_allclose(value, expected[name][rows], rtol=1e-10)
    np.testing.assert_allclose(model.predict(three_types(cells)[rows]), p[rows], rtol=1e-10)


# ------------------------------------------------------------------- what is trained besides it


def test_the_classifiers_term_is_in_the_loss_and_in_no_bound(cells):
    for weight in (0.0, 3.0):
        model = tiny(classifier_weight=weight)
        torch.manual_seed(0)
        bound = model.elbo(cells)
        ledger = bound.ledger()
        assert ledger.weight["cross_entropy"] == weight
        in_bound = total({name: bound[name] for name in bound.terms})
        np.testing.assert_allclose(bound.per_cell().detach(), in_bound.detach(), rtol=1e-12)
        expected = -in_bound.mean() + weight * bound["cross_entropy"].mean()
        assert bound.loss().item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("mean", [True, False])
def test_the_cross_entropy_is_a_mean_over_the_labelled_or_a_sum(monkeypatch, cells, mean):
    model = tiny(classifier_mean=mean)
    monkeypatch.setattr(scanvi, "gaussian", lambda m, s, n=None: m if n is None else m[None])
    with torch.no_grad():
        term = model.elbo(cells)["cross_entropy"].mean().item()
        log_q = model.classify(model.encode(cells).mean).numpy()
    cross_entropy = -log_q[LABEL >= 0, LABEL[LABEL >= 0]]
    expected = cross_entropy.mean() if mean else cross_entropy.sum() / N
    assert term == pytest.approx(expected, rel=1e-10)


def test_without_any_label_there_is_no_cross_entropy(cells):
    bound = tiny().elbo(cells.unlabelled())
    assert (bound["cross_entropy"] == 0).all()
    assert bound.loss().isfinite()


def cross_entropies(monkeypatch, cells, *, n_of_type=None, **options):
    """The cross-entropy of each cell at the mean of q(z1 | x), log q(c | z1), and the model."""
    model = tiny(len(cells.label_names), **options)
    model.prepare(cells)
    if n_of_type is not None:
        model.n_of_type.copy_(torch.tensor(n_of_type))
    monkeypatch.setattr(scanvi, "gaussian", lambda m, s, n=None: m if n is None else m[None])
    with torch.no_grad():
        term = model.elbo(cells)["cross_entropy"].numpy()
        return term, model.classify(model.encode(cells).mean).numpy(), model


@pytest.mark.parametrize("mean", [True, False])
def test_the_balanced_cross_entropy_is_bayes_rule(monkeypatch, cells, mean):
    p_c = np.array([0.5, 0.2, 0.3])
    term, log_q, model = cross_entropies(
        monkeypatch, three_types(cells), prior_c=[*p_c], balance_labels=True, classifier_mean=mean
    )
    # Type 0 has two labels and type 1 has one; type 2 has none, and counts as if it had one.
    np.testing.assert_array_equal(model.n_of_type, [2, 1, 1])
    q = np.exp(log_q) * [2, 1, 1] / p_c
    q /= q.sum(1, keepdims=True)
    expected = np.where(LABEL >= 0, -np.log(q[np.arange(N), LABEL]), 0) * (N / 3 if mean else 1)
    np.testing.assert_allclose(term, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("prior_c", "n_of_type"),
    [(None, [7, 7]), ([0.75, 0.25], [9, 3])],
    ids=["equal", "as p(c)"],
)
def test_labels_in_proportion_to_the_prior_are_balanced(monkeypatch, cells, prior_c, n_of_type):
    plain, *_ = cross_entropies(monkeypatch, cells, prior_c=prior_c)
    options = {"prior_c": prior_c, "balance_labels": True}
    balanced, *_ = cross_entropies(monkeypatch, cells, n_of_type=n_of_type, **options)
    unequal, *_ = cross_entropies(monkeypatch, cells, n_of_type=[9, 1], **options)
    np.testing.assert_allclose(balanced, plain, rtol=1e-6)
    assert np.abs(unequal - plain)[LABEL >= 0].min() > 0.01


def test_balanced_labels_change_no_bound_and_teach_the_prior_nothing(cells):
    models = [tiny(prior_c="learned", balance_labels=on) for on in (False, True)]
    bounds, gradients = [], []
    for model in models:
        model.prepare(cells)
        torch.manual_seed(0)
        bound = model.elbo(cells)
        bound.loss().backward()
        bounds.append(bound.per_cell().detach())
        gradients.append(model.logits_c.grad)
    np.testing.assert_array_equal(*bounds)
    np.testing.assert_allclose(*gradients, rtol=1e-10)


def test_the_numbers_of_labels_are_those_of_the_fit_and_are_saved(tmp_path, fitted):
    _, _, cells, _, plain = fitted
    few = replace(cells, label=torch.where(cells.label == 1, -1, cells.label))  # "type 2"
    few.label[np.flatnonzero(cells.label == 1)[:2]] = 1
    model = vaelab.SCANVI(60, n_labels=3, n_batches=2, n_latent=3, n_hidden=32, balance_labels=True)
    vaelab.fit(model, few, epochs=1, progress=False)
    expected = [int((few.label == k).sum()) for k in range(3)]
    assert expected[1] == 2 and sum(expected) < 100
    model.save(tmp_path / "m", half=True)
    loaded = vaelab.SCANVI.load(tmp_path / "m")
    for one in (model, loaded, loaded.extend(batches="batch 3")):
        np.testing.assert_array_equal(one.n_of_type, expected)
    assert "n_of_type" not in plain.state_dict()  # files of models without the option stay valid


def test_a_type_with_few_labels_is_found_when_labels_are_balanced(fitted):
    _, truth, cells, _, _ = fitted
    label = cells.label.clone()
    label[np.flatnonzero(label == 0)[3:]] = -1
    few = replace(cells, label=label)
    recall, shared = {}, {"batch_size": 32, "learning_rate": 5e-3, "progress": False}
    hidden = (label < 0).numpy() & (truth == few.label_names[0])
    for on in (False, True):
        model = vaelab.SCANVI(
            60, n_labels=3, n_batches=2, n_latent=3, n_hidden=32, balance_labels=on
        )
        vaelab.fit(model, few, epochs=15, **shared)
        recall[on] = model.predict(few)[hidden, 0].mean()
    assert recall[True] > recall[False] + 0.1


def test_released_code_gives_labelled_cells_the_bound_of_the_others(cells):
    model = tiny(label_bound=False)
    bounds = [model.elbo_per_cell(c) for c in (cells, cells.unlabelled())]
    np.testing.assert_array_equal(*bounds)


def test_a_given_prior_is_kept_and_a_learned_one_learned(cells):
    for prior_c, learned in ((None, False), ([0.7, 0.3], False), ("learned", True)):
        model = vaelab.SCANVI(G, n_labels=2, n_batches=2, n_latent=2, n_hidden=8, prior_c=prior_c)
        before = model.log_prior_c.exp().detach().clone()
        expected = [0.7, 0.3] if isinstance(prior_c, list) else [0.5, 0.5]
        np.testing.assert_allclose(before, expected, rtol=1e-6)
        vaelab.fit(model, cells, epochs=2, progress=False)
        assert (not torch.equal(model.log_prior_c.exp(), before)) is learned


def test_with_labels_log_marginal_is_of_x_and_c_and_without_of_x(fitted):
    adata, _, cells, _, model = fitted
    never = Cells.from_anndata(adata, batch="batch")  # a data set without labels
    hidden = (cells.label < 0).numpy()
    for ask in (
        lambda c: model.log_marginal(c, n_samples=20),
        lambda c: model.elbo_per_cell(c, seed=1),
    ):
        with_labels, without = ask(cells), ask(cells.unlabelled())
        np.testing.assert_array_equal(without, ask(never))
        np.testing.assert_array_equal(with_labels[hidden], without[hidden])
        assert (with_labels[~hidden] != without[~hidden]).all()


def test_held_out_cells_are_judged_without_their_labels():
    adata = vaelab.simulate.dataset(120, 30, n_types=3, seed=0)
    cells, asked = Cells.from_anndata(adata, label="cell_type"), []
    model = vaelab.SCANVI(30, n_labels=3, n_latent=2, n_hidden=8)
    objective_per_cell = model.objective_per_cell

    def watched(cells, **options):
        asked.append(cells)
        return objective_per_cell(cells, **options)

    model.objective_per_cell = watched
    history = vaelab.fit(model, cells, epochs=4, kl_warmup=0, validation_fraction=0.25,
                         seed=3, progress=False)  # fmt: skip
    assert [len(c) for c in asked] == [30] * 4
    assert all((c.label == -1).all() for c in asked)
    assert (cells.label >= 0).all()  # the cells themselves keep theirs
    kept = history.records[history.best_epoch - 1]["held_out_bound"]
    libraries = asked[0].library
    held_out = cells[np.flatnonzero(np.isin(cells.library, libraries))]
    if len(held_out) == 30:  # no other cell has the library of one that is held out
        assert kept == pytest.approx(
            objective_per_cell(held_out.unlabelled(), seed=3).mean(), rel=1e-6
        )
        assert kept != pytest.approx(objective_per_cell(held_out, seed=3).mean(), rel=1e-4)
    assert kept == pytest.approx(objective_per_cell(asked[0], seed=3).mean(), rel=1e-6)


# ------------------------------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def fitted():
    adata = vaelab.simulate.dataset(400, 60, n_types=3, n_batches=2, separation=4.0, seed=0)
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obs["known"] = np.where(np.arange(400) % 4 == 0, truth, "unknown")
    cells = Cells.from_anndata(adata, label="known", batch="batch", unlabelled="unknown")
    scvi = vaelab.SCVI(60, n_batches=2, n_latent=3, n_hidden=32)
    options = {"batch_size": 32, "learning_rate": 5e-3, "progress": False}
    vaelab.fit(scvi, cells, epochs=15, **options)
    model = vaelab.SCANVI.from_scvi(scvi, cells)
    vaelab.fit(model, cells, epochs=15, **options)
    return adata, truth, cells, scvi, model


def test_labels_that_were_hidden_are_found(fitted):
    _, truth, cells, _, model = fitted
    hidden = (cells.label < 0).numpy()
    assert hidden.sum() == 300
    p = model.predict(cells)
    assert p.shape == (400, 3)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    found = np.array(model.label_names)[p.argmax(1)]
    assert (found == truth)[hidden].mean() > 0.9


def test_prediction_does_not_look_at_labels(fitted):
    _, _, cells, _, model = fitted
    for n_samples in (None, 5):
        wrong = replace(cells, label=(cells.label + 1) % 3)
        p = [model.predict(c, n_samples=n_samples) for c in (cells, wrong)]
        np.testing.assert_array_equal(*p)


def test_the_posterior_over_labels_is_averaged_over_draws(fitted):
    _, _, cells, _, model = fitted
    many = model.predict(cells, n_samples=400)
    torch.manual_seed(1)
    with torch.no_grad():
        q = model.encode(cells.to())
        z1 = q.mean + q.stddev * torch.randn(400, *q.mean.shape)
        expected = model.classify(z1).exp().mean(0).numpy()
    np.testing.assert_allclose(many, expected, atol=0.08)
    assert np.abs(many - model.predict(cells)).max() > 1e-3


def test_it_starts_from_what_scvi_learned(fitted):
    _, _, cells, scvi, _ = fitted
    start = vaelab.SCANVI.from_scvi(scvi, cells, classifier_weight=7.0)
    np.testing.assert_allclose(start.embed(cells), scvi.embed(cells), rtol=1e-6)
    assert start.label_names == cells.label_names
    assert start.batch_names == scvi.batch_names
    assert start.configuration["classifier_weight"] == 7.0


def test_what_it_can_not_start_from_is_refused(fitted):
    adata, _, cells, scvi, _ = fitted
    with pytest.raises(TypeError, match="starts from an SCVI, not from a VAE"):
        vaelab.SCANVI.from_scvi(vaelab.VAE(60), cells)
    with pytest.raises(ValueError, match="None of these cells has a label"):
        vaelab.SCANVI.from_scvi(scvi, Cells.from_anndata(adata, batch="batch"))


def test_there_are_two_embeddings(fitted):
    _, truth, cells, _, model = fitted
    z1, z2 = model.embed(cells), model.embed(cells, of="z2")
    assert z1.shape == z2.shape == (400, 3)
    by_type = [vaelab.metrics.average_silhouette_width(z, truth) for z in (z1, z2)]
    assert by_type[0] > by_type[1] + 0.1  # z2 holds what varies within a type
    with pytest.raises(ValueError, match=r"of is 'z3'; choose from \['z1', 'z2'\]"):
        model.embed(cells, of="z3")


@pytest.mark.filterwarnings("ignore:. of 60 genes are zero in every cell")  # by chance
def test_new_cells_are_of_the_type_that_was_asked_for(fitted):
    _, _, cells, _, model = fitted
    for k, name in enumerate(model.label_names):
        x = model.generate(300, label=name, batch="batch 1")
        made = Cells.from_array(x[x.sum(1) > 0], batch=["batch 1"] * int((x.sum(1) > 0).sum()),
                                gene_names=cells.gene_names)  # fmt: skip
        p = model.predict(made.named(model.batch_names))
        assert (p.argmax(1) == k).mean() > 0.6  # chance: 0.33
    with pytest.raises(
        ValueError, match="label is 'type 9'; choose from those of the model: type 1"
    ):
        model.generate(3, label="type 9")
    with pytest.raises(ValueError, match="label is 'type 1', but the model has no label names"):
        vaelab.SCANVI(60, n_labels=3).generate(3, label="type 1")


# ---------------------------------------------------------------------- cells that do not fit it


def test_labels_that_it_does_not_know_are_refused(fitted):
    adata, _, cells, _, model = fitted
    other = adata.copy()
    other.obs["known"] = "type 7"
    seen = Cells.from_anndata(other, label="known", batch="batch")
    with pytest.raises(ValueError, match="type 1, type 2, type 3; it does not know 'type 7'"):
        model.elbo_per_cell(seen)
    unlabelled = Cells.from_anndata(other, batch="batch")
    assert model.predict(unlabelled).shape == (400, 3)
    with pytest.raises(ValueError, match="made for 4 label names, these cells have 3"):
        vaelab.fit(vaelab.SCANVI(60, n_labels=4, n_batches=2), cells, epochs=1, progress=False)
    with pytest.raises(ValueError, match="There are cells of label 'type 7', which is not one of"):
        seen.named(model.batch_names, model.label_names)


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("n_labels", 0, "n_labels is 0"),
        ("classifier_weight", -1.0, "classifier_weight is -1.0"),
        ("prior_c", [0.5, 0.6], "prior_c is .* sum to 1"),
        ("prior_c", [0.5, 0.5, 0.0], "2 probabilities"),
        ("prior_c", "uniform", "prior_c is 'uniform'"),
        ("prior_c", np.ones(3) / 3, "2 probabilities"),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value, says):
    with pytest.raises(ValueError, match=says):
        vaelab.SCANVI(**{"n_genes": G, "n_labels": 2, argument: value})


def test_it_is_saved_with_batches_and_labels(tmp_path, fitted):
    _, _, cells, _, model = fitted
    model.save(tmp_path / "m")
    loaded = vaelab.SCANVI.load(tmp_path / "m")
    assert loaded.label_names == model.label_names
    np.testing.assert_array_equal(loaded.predict(cells), model.predict(cells))
    np.testing.assert_array_equal(loaded.elbo_per_cell(cells), model.elbo_per_cell(cells))


@pytest.mark.parametrize("network", ["encoder", "encoder_z2", "decoder_z1"])
@pytest.mark.parametrize("out", [300.0, -300.0])
def test_a_variance_that_ran_away_is_finite_and_comes_back(cells, network, out):
    """One odd cell once sent a log-variance to 183 in a single step, and z2 to 440,000."""
    model = vaelab.SCANVI(G, n_labels=2, n_batches=2, n_latent=2, n_hidden=4, seed=0)
    model.prepare(cells.to(dtype=torch.float32))
    last = getattr(model, network)[-1]
    with torch.no_grad():
        last.bias[2:] = out  # the log-variances
    last.bias.grad = None
    bound = model.elbo(cells.to(dtype=torch.float32))
    assert all(torch.isfinite(bound[name]).all() for name in bound.terms)
    bound.loss().backward()
    slope = last.bias.grad[2:]
    assert torch.isfinite(slope).all()
    if out > 0:  # a smaller variance is better, and descent makes it smaller
        assert (slope > 0).all()
