"""The autoencoder: its errors by hand, what its networks find, and that nobody calls it a bound."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.special import expit, log_softmax
from sklearn.decomposition import PCA

import vaelab
from vaelab import Autoencoder, Cells, fit, metrics, simulate
from vaelab.bounds import Bound, ReconstructionError

from .test_scvi import randomise

G = 12
OUTPUTS = ["linear", "sigmoid", "softmax"]
ALL_AT_ONCE = {"batch_size": 10_000, "epsilon": 1e-8, "validation_fraction": 0, "progress": False}


def some_x(output, n_cells=30, seed=0):
    rng = np.random.default_rng(seed)
    if output == "softmax":
        return rng.poisson(4.0, (n_cells, G)) + 0.0
    return rng.uniform(size=(n_cells, G)) if output == "sigmoid" else rng.normal(size=(n_cells, G))


def some_cells(output="linear", n_cells=30, **options):
    return Cells.from_array(some_x(output, n_cells), **options).to(dtype=torch.float64)


def make(output="linear", **options):
    """An autoencoder in float64 whose every parameter is random."""
    options = {"n_latent": 3, "n_hidden": (7, 5)} | options
    return randomise(Autoencoder(G, output=output, **options).double(), 3, 0.3)


def constant(output, a):
    """An autoencoder whose last layer gives ``a`` for any input."""
    model = Autoencoder(len(a), n_hidden=(), n_latent=1, output=output).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder[-1].bias += torch.tensor(a)
    return model


def layers_of(model):
    """The weights and biases of the encoder's and of the decoder's linear layers."""
    f = [(m.weight, m.bias) for m in model.encoder if isinstance(m, torch.nn.Linear)]
    if model.configuration["tied"]:
        biases = [m.bias for m in model.decoder if hasattr(m, "of")]
        g = [(weight.T, b) for (weight, _), b in zip(f[::-1], biases, strict=True)]
    else:
        g = [(m.weight, m.bias) for m in model.decoder if isinstance(m, torch.nn.Linear)]
    return [[(w.detach().numpy(), b.detach().numpy()) for w, b in pairs] for pairs in (f, g)]


ACTIVATIONS = {
    "relu": lambda h: np.maximum(h, 0),
    "leaky_relu": lambda h: np.where(h > 0, h, 0.01 * h),
    "elu": lambda h: np.where(h > 0, h, np.expm1(h)),
    "softplus": lambda h: np.log1p(np.exp(h)),
    "tanh": np.tanh,
    "sigmoid": expit,
    "linear": lambda h: h,
}


def forward(model, x):
    """z and the last layer a, in numpy."""
    activation, sides = ACTIVATIONS[model.configuration["activation"]], []
    for layers in layers_of(model):
        for i, (weight, bias) in enumerate(layers):
            x = x @ weight.T + bias
            x = activation(x) if i + 1 < len(layers) else x
        sides.append(x)
    return sides


# ------------------------------------------------------------------------------ errors by hand


@pytest.mark.parametrize(
    ("output", "a", "x", "by_hand"),
    [
        ("linear", [0.0, 0.0, 1.0], [1.0, -2.0, 0.5], (1 + 4 + 0.25) / 3),
        # x̂ = 1/2, 1/2, 3/4
        ("sigmoid", [0.0, 0.0, np.log(3)], [1.0, 0.5, 0.0], (np.log(2) * 2 + np.log(4)) / 3),
        # p̂ = 1/2, 1/4, 1/4 and p = 3/4, 1/4, 0
        ("softmax", [np.log(2), 0.0, 0.0], [3.0, 1.0, 0.0], 0.75 * np.log(2) + 0.25 * np.log(4)),
    ],
)
def test_an_error_computed_by_hand(output, a, x, by_hand):
    cells = Cells.from_array([x, [1.0, 1.0, 1.0]])[:1]  # no gene is 0 in all cells
    error = constant(output, a).objective(cells.to(dtype=torch.float64))
    assert isinstance(error, ReconstructionError) and not isinstance(error, Bound)
    assert error.per_cell().tolist() == pytest.approx([by_hand], rel=1e-12)
    assert error.loss().item() == pytest.approx(by_hand, rel=1e-12)
    (term,) = error.terms.values()
    assert (term.sign, term.warm_up) == (-1, False)
    assert term.name == {"linear": "squared_error", "sigmoid": "binary_cross_entropy",
                         "softmax": "cross_entropy"}[output]  # fmt: skip
    ledger = error.ledger()
    assert "nats" not in ledger and ledger.value.tolist() == pytest.approx([by_hand])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_networks_and_errors_are_those_of_the_docstring(output, activation, tied):
    model, cells = make(output, activation=activation, tied=tied), some_cells(output)
    x = cells.x.numpy()
    p = x / x.sum(1, keepdims=True)
    z, a = forward(model, np.log1p(1e4 * p) if output == "softmax" else x)
    if output == "linear":
        x_hat, error = a, np.square(x - a).mean(1)
    elif output == "sigmoid":
        x_hat = expit(a)
        error = -(x * np.log(x_hat) + (1 - x) * np.log1p(-x_hat)).mean(1)
    else:
        x_hat = np.exp(log_softmax(a, 1)) * x.sum(1, keepdims=True)
        error = -(p * log_softmax(a, 1)).sum(1)
    with torch.no_grad():
        np.testing.assert_allclose(model.encode(cells), z, rtol=1e-10)
        np.testing.assert_allclose(model.objective(cells).per_cell(), error, rtol=1e-10)
        np.testing.assert_allclose(model.decode(torch.tensor(z), cells), x_hat, rtol=1e-5)
        blank = model.decode(torch.tensor(z), model.blank_cells(len(z), cells.library))
        np.testing.assert_allclose(blank, x_hat, rtol=1e-5)
    with pytest.warns(UserWarning, match="never fitted"):
        np.testing.assert_allclose(model.embed(cells), z, rtol=1e-10)
    with pytest.warns(UserWarning, match="never fitted"):
        np.testing.assert_allclose(model.reconstruct(cells), x_hat, rtol=1e-5)
    np.testing.assert_allclose(model.objective_per_cell(cells), error, rtol=1e-10)


def test_counts_and_shares_are_the_same_to_a_softmax():
    model, counts = make("softmax"), some_x("softmax")
    of_counts, of_shares = (
        Cells.from_array(x).to(dtype=torch.float64)
        for x in (counts, counts / counts.sum(1, keepdims=True))
    )
    with torch.no_grad():
        assert torch.allclose(model.encode(of_counts), model.encode(of_shares))
        errors = [model.objective(cells).per_cell() for cells in (of_counts, of_shares)]
        assert torch.allclose(*errors)
        x_hat = model.decode(model.encode(of_counts), of_counts)
    np.testing.assert_allclose(x_hat.sum(1), counts.sum(1), rtol=1e-5)


@pytest.mark.parametrize("output", OUTPUTS)
def test_values_that_were_not_measured_are_neither_read_nor_scored(output):
    observed = np.arange(30 * (G + 1)).reshape(30, G + 1)[:, :G] % 3 > 0
    hidden = some_x(output)
    hidden[~observed] = 1.0
    model, cells = make(output), some_cells(output, observed=observed)
    others = Cells.from_array(hidden, observed=observed).to(dtype=torch.float64)
    with torch.no_grad():
        errors = [model.objective(c).per_cell().numpy() for c in (cells, others)]
        x, p = cells.x.numpy(), cells.x.numpy() / cells.x.numpy().sum(1, keepdims=True)
        a = forward(model, np.log1p(1e4 * p) if output == "softmax" else x)[1]
    np.testing.assert_array_equal(*errors)
    for i, seen in enumerate(observed):
        if output == "linear":
            by_hand = np.square(x[i] - a[i])[seen].mean()
        elif output == "sigmoid":
            of_each = x[i] * np.log(expit(a[i])) + (1 - x[i]) * np.log(expit(-a[i]))
            by_hand = -of_each[seen].mean()
        else:
            by_hand = -p[i][seen] @ log_softmax(a[i][seen])
        assert errors[0][i] == pytest.approx(by_hand, rel=1e-9)


# ------------------------------------------------------------------------------ the networks


def test_the_decoder_mirrors_the_encoder():
    model = Autoencoder(20, n_latent=2, n_hidden=(9, 6), dropout_rate=0.25)
    assert model.widths == (20, 9, 6, 2, 6, 9, 20)
    kinds = [type(m).__name__ for m in model.encoder]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(m).__name__ for m in model.decoder] == kinds
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert shapes == [(9, 20), (6, 9), (2, 6), (6, 2), (9, 6), (20, 9)]
    linear = Autoencoder(20, n_latent=2, n_hidden=())
    assert linear.widths == (20, 2, 20)
    assert [type(m).__name__ for m in (*linear.encoder, *linear.decoder)] == ["Linear"] * 2
    assert linear.n_parameters == 20 * 2 + 2 + 2 * 20 + 20
    assert Autoencoder(20, n_latent=2, n_hidden=(), tied=True).n_parameters == 20 * 2 + 2 + 20


def test_geneex_is_one_configuration():
    """Two hidden layers of 2,048 and 1,024 units and a code of 128, with ReLU and dropout."""
    model = Autoencoder(300, n_hidden=(2048, 1024), n_latent=128, dropout_rate=0.2)
    assert model.widths == (300, 2048, 1024, 128, 1024, 2048, 300)
    pairs = [(300, 2048), (2048, 1024), (1024, 128)]
    assert model.n_parameters == sum(2 * a * b + a + b for a, b in pairs)
    vaelab.log_normalize(adata := simulate.profiles(90, 300, seed=1))
    cells = Cells.from_anndata(adata, layer="log_normalized")
    history = fit(model, cells, epochs=2, batch_size=30, progress=False)
    assert history.frame["error"].iloc[-1] < history.frame["error"].iloc[0]


def test_dropout_acts_on_hidden_layers_in_training_only():
    model, cells = make(dropout_rate=0.5), some_cells()
    with torch.no_grad():
        still = [model.eval().objective(cells).per_cell() for _ in range(2)]
        drawn = [model.train().objective(cells).per_cell() for _ in range(2)]
    assert torch.equal(*still) and not torch.equal(*drawn)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_reach_all_weights(output, tied):
    model, cells = make(output, activation="tanh", tied=tied), some_cells(output)
    model.objective(cells).loss().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad != 0).any(), name
        step = 1e-6 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter += step
            above = model.objective(cells).loss()
            parameter -= 2 * step
            below = model.objective(cells).loss()
            parameter += step
        by_steps = (above - below).item() / 2
        assert (parameter.grad * step).sum().item() == pytest.approx(by_steps, rel=1e-3, abs=1e-12)


def test_one_seed_gives_one_model_and_another_seed_another():
    first, again, other = (Autoencoder(G, seed=seed).parameters() for seed in (5, 5, 6))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


# ------------------------------------------------------------------- principal components


def spread_cells(seed=0, n_cells=400, n_genes=30):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_cells, 4)) * [4, 3, 2, 0.5] @ rng.normal(size=(4, n_genes))
    return x + 0.3 * rng.normal(size=x.shape) + rng.normal(size=n_genes)


def test_a_tied_linear_autoencoder_finds_the_subspace_of_pca_and_not_its_axes():
    x = spread_cells()
    pca, cells = PCA(3).fit(x), Cells.from_array(x)
    axes, found = pca.components_.T, []
    best = np.square(x - pca.inverse_transform(pca.transform(x))).mean()
    for seed in range(2):
        model = Autoencoder(30, n_latent=3, n_hidden=(), tied=True, seed=seed)
        history = fit(model, cells, epochs=600, learning_rate=2e-2, **ALL_AT_ONCE)
        weights = model.encoder[0].weight.detach().numpy().T  # (30, 3)
        assert subspace_angles(weights, axes).max() < 1e-2
        assert history.frame["error"].iloc[-1] == pytest.approx(best, rel=1e-3)
        assert model.objective_per_cell(cells).mean() == pytest.approx(best, rel=1e-3)
        found.append(weights)
        cosines = np.abs(axes.T @ weights) / np.linalg.norm(weights, axis=0)
        assert cosines.max(0).min() < 0.9  # the columns are not the principal axes
        np.testing.assert_allclose(weights.T @ weights, np.eye(3), atol=1e-2)  # but orthonormal
    assert np.abs(found[0].T @ found[1]).max(0).min() < 0.97  # nor those of another seed


def test_a_rotated_code_has_the_same_error():
    model, cells = Autoencoder(30, n_latent=3, n_hidden=(), tied=True).double(), spread_cells()
    cells = Cells.from_array(cells).to(dtype=torch.float64)
    before = model.objective_per_cell(cells)
    rotation = torch.tensor([[0.6, 0.8, 0], [0, 0, 1], [0.8, -0.6, 0]], dtype=torch.float64)
    with torch.no_grad():
        model.encoder[0].weight.copy_(rotation @ model.encoder[0].weight)
        model.encoder[0].bias.copy_(rotation @ model.encoder[0].bias)
    np.testing.assert_allclose(model.objective_per_cell(cells), before, rtol=1e-9)
    with torch.no_grad():
        model.encoder[0].weight[0] *= 5  # and another change has not
    assert np.abs(model.objective_per_cell(cells) / before - 1).max() > 0.5


def test_on_pure_noise_a_linear_code_saves_its_share_of_the_variance_and_no_more():
    """Of 20 independent values, a code of 5 saves 5. A code on a curved surface can save a little
    more, because no dimension of the noise is preferred and there are many cells.
    """
    x = np.random.default_rng(0).normal(size=(12_000, 20))
    cells, new = Cells.from_array(x[:10_000]), Cells.from_array(x[10_000:])
    floor = 1 - 5 / 20
    for n_hidden, activation in [((16, 8), "linear"), ((16,), "relu")]:
        model = Autoencoder(20, n_latent=5, n_hidden=n_hidden, activation=activation)
        options = {"epochs": 15, "learning_rate": 5e-3, "epsilon": 1e-8, "progress": False}
        history = fit(model, cells, **options)
        error, held_out = model.objective_per_cell(new).mean(), history.frame["held_out_error"]
        if activation == "linear":
            assert floor - 0.01 < error < floor + 0.01
            assert floor - 0.01 < held_out.min() < floor + 0.01
        else:
            assert 0.9 * floor < error < floor


# ------------------------------------------------------------------------------- denoising


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_input_is_corrupted_and_the_target_is_clean(output):
    cells, noise = some_cells(output, n_cells=2000), 0.3
    model = make(output, noise=noise)
    seen = []
    model.encoder.register_forward_hook(lambda module, x, z: seen.append(x[0]))
    with torch.no_grad():
        error, clean = model.objective(cells).per_cell(), model.encoder_input(cells)
    change = (seen[0] - clean).numpy()
    if output == "linear":
        assert np.std(change) == pytest.approx(noise, rel=0.02)
        assert np.mean(change) == pytest.approx(0, abs=0.01)
    else:
        hidden = seen[0].numpy() == 0
        there = clean.numpy() > 0
        assert hidden[there].mean() == pytest.approx(noise, abs=0.01)
        np.testing.assert_array_equal(seen[0][~torch.tensor(hidden)], clean[~torch.tensor(hidden)])
    # an output that does not depend on the input has the error to the clean x, exactly
    with torch.no_grad():
        for weight in (model.decoder[-1].weight, model.decoder[-1].bias):
            weight.zero_()
        error, x = model.objective(cells).per_cell().numpy(), cells.x.numpy()
    by_hand = {"linear": np.square(x).mean(1), "sigmoid": np.log(2), "softmax": np.log(G)}[output]
    np.testing.assert_allclose(error, by_hand * np.ones(2000), rtol=1e-10)


@pytest.mark.parametrize("output", OUTPUTS)
def test_noise_is_part_of_the_objective_and_of_nothing_else(output):
    model, cells = make(output, noise=0.4), some_cells(output)
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            drawn = [model.objective(cells).per_cell() for _ in range(2)]
        assert not torch.isclose(*drawn).all()
    fit(model, cells, epochs=1, progress=False)
    for use in (model.embed, model.reconstruct):
        np.testing.assert_array_equal(use(cells), use(cells))
    scores = [model.objective_per_cell(cells, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()


def test_a_wide_code_copies_noise_and_denoising_removes_it():
    """More units than genes: without noise in training the noise comes back, with it much less."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-2, 2, size=(4000, 1))
    clean = np.concatenate([np.sin(k * t + k) for k in range(1, 11)], axis=1)
    noisy = clean + 0.5 * rng.normal(size=clean.shape)
    left = {}
    for noise in (0.0, 0.5):
        model = Autoencoder(10, n_latent=20, n_hidden=(64,), noise=noise)
        options = {"epochs": 15, "learning_rate": 5e-3, "epsilon": 1e-8, "progress": False}
        fit(model, Cells.from_array(clean[:3000]), **options)
        x_hat = model.reconstruct(Cells.from_array(noisy[3000:]))
        left[noise] = np.square(x_hat - clean[3000:]).mean()
    assert left[0.0] > 0.55 * 0.25  # of the variance of the noise
    assert left[0.5] < 0.4 * 0.25


# --------------------------------------------------------------------------------- training


def test_a_history_speaks_of_an_error_and_of_no_bound(capsys, monkeypatch):
    for name in ("COLUMNS", "LINES"):  # tqdm cuts the bar to a terminal of this size
        monkeypatch.setenv(name, "400")
    model = Autoencoder(G, n_hidden=(64,))
    options = {"epochs": 200, "patience": 5, "learning_rate": 1e-2, "epsilon": 1e-8}
    history = fit(model, some_cells(n_cells=60), validation_fraction=0.5, **options)
    assert list(history.frame.columns) == ["squared_error", "error", "held_out_error", "seconds"]
    np.testing.assert_allclose(history.frame["error"], history.frame["squared_error"])
    assert history.stopped == "no better held-out error for 5 epochs"
    ax = history.plot()
    texts = [ax.get_title(), ax.get_ylabel(), *(t.get_text() for t in ax.get_legend().get_texts())]
    bar = "".join(capsys.readouterr())
    assert "held_out_error=0." in bar
    for text in (*texts, bar, repr(history), str(history.chosen), str(history.frame)):
        assert not re.search("bound|ELBO|KL|nats", text, re.IGNORECASE), text


def test_the_model_that_comes_back_has_the_smallest_held_out_error():
    model, cells = Autoencoder(G, n_hidden=(64,)), some_cells(n_cells=60).to()
    options = {"epochs": 40, "patience": None, "learning_rate": 1e-2, "epsilon": 1e-8}
    history = fit(model, cells, validation_fraction=0.5, progress=False, **options)
    errors = history.frame["held_out_error"]
    assert history.best_epoch == errors.idxmin() < 40 and errors.iloc[-1] > errors.min()
    held_out = np.sort(np.random.default_rng(0).permutation(60)[:30])
    assert float(model.objective_per_cell(cells[held_out]).mean()) == errors.min()


def test_epsilon_does_not_grow_with_the_number_of_genes():
    for n_genes in (G, 3 * G):
        x = np.random.default_rng(0).normal(size=(20, n_genes))
        autoencoder = Autoencoder(n_genes, n_hidden=())
        history = fit(autoencoder, Cells.from_array(x), epochs=1, progress=False)
        assert history.settings["epsilon"] == 1 / 2000
        vae = vaelab.VAE(n_genes, likelihood="normal", n_hidden=4)
        history = fit(vae, Cells.from_array(x), epochs=1, progress=False)
        assert history.settings["epsilon"] == n_genes / 2000


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    def trained(epochs, checkpoint):
        model = Autoencoder(G, noise=0.1, dropout_rate=0.1, tied=True)
        options = {"epochs": epochs, "patience": None, "progress": False}
        return model, fit(model, some_cells().to(), checkpoint=checkpoint, **options)

    trained(3, tmp_path / "run")
    model, history = trained(6, tmp_path / "run")
    again, whole = trained(6, None)
    assert history.frame.drop(columns="seconds").equals(whole.frame.drop(columns="seconds"))
    assert history.best_epoch == whole.best_epoch
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("n_latent", [2, 32])
def test_three_profiles_are_three_groups(n_latent):
    vaelab.log_normalize(adata := simulate.profiles(600, 120, fold=6.0, seed=1))
    cells = Cells.from_anndata(adata, layer="log_normalized", label="cell_type")
    model = Autoencoder(120, n_latent=n_latent, n_hidden=(32,))
    fit(model, cells, epochs=40, learning_rate=3e-3, epsilon=1e-8, progress=False)
    z = model.embed(cells)
    assert z.shape == (600, n_latent)
    z = PCA(2, random_state=0).fit_transform(z) if n_latent > 2 else z
    assert metrics.average_silhouette_width(z, cells.labels) > 0.5
    assert metrics.adjusted_rand_index(cells.labels, metrics.kmeans(z, 3)) == 1.0


# ------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_loaded_autoencoder_answers_bit_for_bit_as_the_saved_one(tmp_path, output, tied):
    cells = some_cells(output).to()
    model = Autoencoder(G, n_hidden=[7, 5], output=output, tied=tied, noise=0.2, activation="elu")
    fit(model, cells, epochs=2, progress=False)
    loaded = Autoencoder.load(model.save(tmp_path / "model", note="mine"))
    assert loaded.configuration == model.configuration and loaded.card["note"] == "mine"
    assert loaded.gene_names == cells.gene_names
    for name in ("embed", "reconstruct", "objective_per_cell"):
        np.testing.assert_array_equal(getattr(loaded, name)(cells), getattr(model, name)(cells))
    with pytest.raises(vaelab.models.ParameterFileError, match="holds Autoencoder parameters"):
        vaelab.VAE.load(tmp_path / "model")


def test_the_configuration_is_every_argument_by_name():
    model = Autoencoder(G, n_latent=4, tied=True)
    assert model.configuration == {
        "n_genes": G, "n_latent": 4, "n_hidden": (128,), "activation": "relu", "output": "linear",
        "noise": 0.0, "dropout_rate": 0.0, "tied": True, "seed": 0,
    }  # fmt: skip
    assert Autoencoder(**model.configuration).configuration == model.configuration


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_tied_weights_stay_tied_in_a_copy_and_are_its_own(duplicate):
    model, cells = make(tied=True), some_cells()
    same = duplicate(model).to(torch.float32).to(torch.float64)
    assert [*same.state_dict()] == [*model.state_dict()]
    assert len([n for n in same.state_dict() if n.endswith("weight")]) == 3  # not six
    before = model.objective_per_cell(cells)
    np.testing.assert_allclose(same.objective_per_cell(cells), before, rtol=1e-5)
    with torch.no_grad():
        same.encoder[0].weight.zero_()
        z = same.encode(cells)
        x_hat = same.decode(z, cells)
    assert (x_hat == same.decoder[-1].bias).all()  # the decoder's last weights are the same zeros
    np.testing.assert_array_equal(model.objective_per_cell(cells), before)


# ---------------------------------------------------------------------------------- refusals


def test_what_an_autoencoder_cannot_do_is_said_in_a_sentence():
    model, cells = make(), some_cells()
    asked = [
        model.prior,
        lambda: model.generate(5, seed=1),
        lambda: model.log_marginal(cells, n_samples=3),
        lambda: model.elbo(cells),
        lambda: model.elbo_per_cell(cells, seed=2),
        lambda: model.replicate(cells),
    ]
    for ask in asked:
        with pytest.raises(NotImplementedError, match=r"no prior p\(z\) and no likelihood .*VAE"):
            ask()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_genes": 0}, "n_genes is 0; it must be a whole number, at least 1"),
        ({"n_latent": 0}, "n_latent is 0; it must be a whole number, at least 1"),
        ({"n_hidden": 128}, "n_hidden is 128; it must be a list of widths"),
        ({"n_hidden": (8, 0)}, "n_hidden is 0; it must be a whole number, at least 1"),
        ({"n_hidden": (8, 2.5)}, "n_hidden is 2.5; it must be a whole number"),
        ({"activation": "Relu"}, "activation is 'Relu'; choose from ['relu',"),
        ({"output": "normal"}, "output is 'normal'; choose from ['linear', 'sigmoid', 'softmax']"),
        ({"noise": -0.1}, "noise is -0.1; it must be a number, 0 or more"),
        ({"noise": np.nan}, "noise is nan; it must be a number, 0 or more"),
        ({"noise": 1.0, "output": "sigmoid"}, "noise is 1.0; it must be a probability"),
        ({"noise": -0.1, "output": "softmax"}, "noise is -0.1; it must be a probability"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; it must be from 0 to below 1"),
        ({"tied": "yes"}, "tied is 'yes'; it must be True or False"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Autoencoder(**{"n_genes": G} | options)


@pytest.mark.parametrize(
    ("output", "x", "message"),
    [
        ("sigmoid", np.full((5, G), 3), r"needs values between 0 and 1, but x holds 3 .*log_norm"),
        ("sigmoid", np.full((5, G), -0.5), r"needs values between 0 and 1, but x holds -0.5"),
        ("softmax", np.linspace(3, -1, 5 * G).reshape(5, G), r"counts or shares, 0 or more, but"),
        ("linear", np.ones((5, G + 1)), "The model has 12 genes, these cells have 13"),
    ],
)
def test_cells_that_an_autoencoder_cannot_read_are_refused(output, x, message):
    model, cells = Autoencoder(G, output=output), Cells.from_array(x)
    for ask in (model.embed, model.reconstruct, lambda c: fit(model, c, progress=False)):
        with pytest.raises(ValueError, match=message):
            ask(cells)


def test_other_cells_and_settings_are_refused():
    model, cells = make(), some_cells()
    with pytest.raises(TypeError, match="reads Cells, not ndarray"):
        model.embed(np.ones((3, G)))
    with pytest.raises(TypeError, match=r"torch\.float64.*cells\.to\(model\.device, model\.dtype"):
        model.objective(cells.to(dtype=torch.float32))
    with pytest.raises(ValueError, match="needs float32 or float64"):
        copy.deepcopy(model).half().embed(cells)
    with pytest.raises(ValueError, match="kl_warmup is 10, but Autoencoder has no KL"):
        fit(model, cells, kl_warmup=10)
    with pytest.raises(ValueError, match="Autoencoder has no batches"):
        fit(model, cells, train="new batch")
    fit(model, cells, epochs=1, progress=False)
    with pytest.raises(ValueError, match="fitted to other genes"):
        model.embed(Cells.from_array(some_x("linear"), gene_names=[f"g{i}" for i in range(G)]))


def test_values_that_overflow_end_the_training_in_a_sentence():
    x = some_x("linear")
    x[3, 2] = 1e30
    model, before = Autoencoder(G), [p.detach().clone() for p in Autoencoder(G).parameters()]
    message = (
        r"'squared_error'.*values that overflow \(the largest here is 1e\+30\); scale them down\."
    )
    with pytest.raises(vaelab.training.TrainingError, match=message):
        fit(model, Cells.from_array(x), validation_fraction=0, progress=False)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_genes_that_new_cells_lack_are_masked():
    cells = some_cells("softmax").to()
    model = Autoencoder(G, output="softmax")
    fit(model, cells, epochs=2, progress=False)
    query = Cells.from_array(cells.x[:, 2:].numpy(), gene_names=cells.gene_names[2:])
    with pytest.warns(UserWarning, match="2 of the model's 12 genes are not among these"):
        aligned = query.aligned_to(model)
    assert np.isfinite(model.embed(aligned)).all()
    assert np.isfinite(model.objective_per_cell(aligned)).all()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_trains_it(device):
    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if not there:
        pytest.skip(f"no {device} here")
    for output in OUTPUTS:
        model, cells = Autoencoder(G, output=output, tied=True, noise=0.1), some_cells(output)
        fit(model, cells, epochs=2, device=device, progress=False)
        assert model.device.type == device
        assert np.isfinite(model.reconstruct(cells)).all()
