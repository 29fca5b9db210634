"""Our SCVI and SCANVI are those of scvi-tools, number by number.

Weights trained there are copied into ours and back. In evaluation mode, and with the same draws,
every term of the ledger, every parameter of p(x | z) and every class probability agrees to 1e-5
relative in float32. (Counts are in the hundreds at most: at a count of 4,000 the log Γ of either
formula is rounded by more than that. In float64 the formulas differ by 1e-8, the ε in theirs.)

Run where scvi-tools is installed: ``pip install -e ".[parity]"``.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

import vaelab
from vaelab import Cells
from vaelab.models import scanvi, scvi

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tools = pytest.importorskip("scvi")

from vaelab.interop import from_scvi, to_scvi

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
N = 300


@pytest.fixture(scope="module")
def adata():
    adata = vaelab.simulate.dataset(
        N, 60, n_types=3, n_batches=2, library=300, inverse_dispersion=4, seed=0
    )
    adata.obs["known"] = np.where(np.arange(N) % 3 == 0, "unknown", adata.obs["cell_type"])
    return adata


def cells_of(adata):
    return Cells.from_anndata(adata, batch="batch", label="known", unlabelled="unknown").to()


def train(model):
    tools.settings.seed = 0
    model.train(
        max_epochs=5, accelerator="cpu", enable_progress_bar=False, logger=False,
        plan_kwargs={"n_epochs_kl_warmup": 2},
    )  # fmt: skip
    model.module.eval()
    return model


SCVI = {
    "as released": {},
    "latent library": {"use_observed_lib_size": False},
    "batch encoded": {"encode_covariates": True, "use_observed_lib_size": False},
    "nb, gene-batch": {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    "zinb, gene-cell": {"dispersion": "gene-cell"},
    "poisson": {"gene_likelihood": "poisson"},
    "two layers": {"n_layers": 2, "n_latent": 4, "n_hidden": 32},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "both", "n_layers": 2},
    "no norm": {"use_batch_norm": "none"},
    "poisson, gene-batch": {"gene_likelihood": "poisson", "dispersion": "gene-batch"},
}
SCANVI = {
    "as released": {},
    "latent library": {"use_observed_lib_size": False},
    "nb, linear classifier": {"gene_likelihood": "nb", "linear_classifier": True},
    "two layers": {"n_layers": 2, "n_latent": 4, "n_hidden": 32},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "both"},
}


@pytest.fixture(scope="module", params=SCVI)
def their_scvi(request, adata):
    tools.model.SCVI.setup_anndata(adata, batch_key="batch")
    return train(tools.model.SCVI(adata, **SCVI[request.param]))


@pytest.fixture(scope="module", params=SCANVI)
def their_scanvi(request, adata):
    tools.model.SCANVI.setup_anndata(
        adata, batch_key="batch", labels_key="known", unlabeled_category="unknown"
    )
    return train(tools.model.SCANVI(adata, **SCANVI[request.param]))


def tensors_of(theirs):
    """All cells, as the module there reads them."""
    loader = theirs._make_data_loader(adata=theirs.adata, batch_size=N, shuffle=False)
    return next(iter(loader))


def same(ours, theirs):
    ours, theirs = (np.asarray(torch.as_tensor(v).detach()) for v in (ours, theirs))
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), **TOLERANCE)


def same_px(ours, theirs):
    """Every parameter of p(x | z)."""
    base = getattr(ours, "base", ours)
    if isinstance(theirs, tools.distributions.Poisson):
        same(base.mean.squeeze(0), theirs.rate)
        return
    same(base.mean.squeeze(0), theirs.mu)
    same(base.inverse_dispersion.expand(base.mean.shape).squeeze(0), theirs.theta.expand(N, -1))
    if hasattr(theirs, "zi_logits"):
        same(ours.logits.squeeze(0), theirs.zi_logits)


@pytest.fixture
def their_draws(monkeypatch):
    """Ours take the draws that were made there, in their order."""

    def use(*draws):
        waiting = [torch.as_tensor(draw) for draw in draws]

        def next_draw(mean, std, n_samples=None):
            return waiting.pop(0).reshape(mean.shape if n_samples is None else (1, *mean.shape))

        for module in (scvi, scanvi):
            monkeypatch.setattr(module, "gaussian", next_draw)

    return use


@torch.no_grad()
def test_scvi_agrees_term_by_term(their_scvi, adata, their_draws):
    ours, cells, module = from_scvi(their_scvi), cells_of(adata), their_scvi.module
    tensors = tensors_of(their_scvi)
    inference, generative, loss = module(tensors, loss_kwargs={"kl_weight": 1.0})
    same(ours.encode(cells).mean, inference["qz"].loc)
    same(ours.encode(cells).stddev, inference["qz"].scale)
    draws = [inference["z"]]
    decoded = cells
    if inference["ql"] is not None:
        draws.append(inference["library"])
        decoded = replace(cells, library=inference["library"].exp().squeeze(-1))
        same(ours.encode_log_library(cells).stddev, inference["ql"].scale)
    same_px(ours.decode(inference["z"], decoded), generative["px"])
    their_draws(*draws)
    bound = ours.elbo(cells)
    same(bound["reconstruction"], -loss.reconstruction_loss["reconstruction_loss"])
    same(bound["kl_z"], loss.kl_local["kl_divergence_z"])
    if inference["ql"] is not None:
        same(bound["kl_library"], loss.kl_local["kl_divergence_l"])
    same(bound.loss(), loss.loss)


@torch.no_grad()
def test_scanvi_agrees_term_by_term(their_scanvi, adata, their_draws, monkeypatch):
    ours, cells, module = from_scvi(their_scanvi), cells_of(adata), their_scanvi.module
    drawn = []
    encoder = type(module.encoder_z2_z1).forward

    def remember(self, *inputs):
        q, z = encoder(self, *inputs)
        drawn.append((q, z))
        return q, z

    monkeypatch.setattr(type(module.encoder_z2_z1), "forward", remember)
    tensors = tensors_of(their_scanvi)
    known = {name: value[tensors["labels"].ravel() < 3] for name, value in tensors.items()}
    options = {"kl_weight": 1.0, "labelled_tensors": known, "classification_ratio": 50}
    inference, generative, loss = module(tensors, loss_kwargs=options)
    (q_z2, z2), z1 = drawn[-2] if len(drawn[-1][1]) < 3 * N else drawn[-1], inference["z"]
    library = [inference["library"]] if inference["ql"] is not None else []
    their_draws(z1, *library, z2)
    bound = ours.elbo(cells)

    # Their terms one by one, from what their networks gave.
    q_c = module.classifier(z1).softmax(-1)
    one_hot = torch.eye(3).repeat_interleave(N, 0)
    mean, variance = module.decoder_z1_z2(z2, one_hot)
    log_p_z1 = Normal(mean, variance.sqrt()).log_prob(z1.repeat(3, 1)).sum(-1).view(3, N).T
    kl_z2 = kl_divergence(q_z2, Normal(0.0, 1.0)).sum(-1).view(3, N).T
    p_c = Categorical(probs=module.y_prior.expand(N, -1))
    same(bound["reconstruction"], generative["px"].log_prob(tensors["X"]).sum(-1))
    same(bound["log_q_z1"], inference["qz"].log_prob(z1).sum(-1))
    same(bound["log_p_z1"], (q_c * log_p_z1).sum(-1))
    same(bound["kl_z2"], (q_c * kl_z2).sum(-1))
    same(bound["kl_c"], kl_divergence(Categorical(probs=q_c), p_c))
    # And all of them together, as their loss has them.
    kl = sum(bound[name] for name in ("kl_z2", "kl_c", "kl_library") if name in bound.terms)
    same(kl, loss.kl_local["kl_local"])
    same(bound.per_cell() + kl, -loss.reconstruction_loss["reconstruction_loss"])
    same(-bound.per_cell().mean(), loss.loss - 50 * loss.classification_loss)
    decoded = replace(cells, library=inference["library"].exp().squeeze(-1))
    same_px(ours.decode(z1, decoded), generative["px"])


@torch.no_grad()
def test_scanvi_gives_the_same_probability_to_every_class(their_scanvi, adata):
    ours = from_scvi(their_scanvi)
    theirs = their_scanvi.predict(soft=True)
    assert list(theirs.columns) == list(ours.label_names)
    same(ours.predict(cells_of(adata)), theirs.to_numpy())


def test_embeddings_agree(their_scvi, adata):
    ours = from_scvi(their_scvi)
    theirs = their_scvi.get_latent_representation()
    np.testing.assert_allclose(ours.embed(cells_of(adata)), theirs, **TOLERANCE)


def there_and_back(theirs, adata, **labels):
    ours = from_scvi(theirs)
    back = to_scvi(ours, adata.copy(), batch="batch", **labels)
    again = from_scvi(back)
    for name, value in ours.state_dict().items():
        np.testing.assert_allclose(again.state_dict()[name], value, rtol=1e-6, err_msg=name)
    same(back.get_latent_representation(), theirs.get_latent_representation())
    tools.settings.seed = 1
    one = theirs.posterior_predictive_sample(theirs.adata[:5])
    tools.settings.seed = 1
    same(back.posterior_predictive_sample(back.adata[:5]).todense(), one.todense())


def test_there_and_back_nothing_changes_in_scvi(their_scvi, adata):
    there_and_back(their_scvi, adata)


def test_there_and_back_nothing_changes_in_scanvi(their_scanvi, adata):
    there_and_back(their_scanvi, adata, label="known")


def test_ours_goes_on_training_there(adata):
    cells = Cells.from_anndata(adata, batch="batch", label="known", unlabelled="unknown")
    ours = vaelab.SCANVI(60, n_labels=3, n_batches=2, n_hidden=16)
    vaelab.fit(ours, cells, epochs=2, progress=False)
    theirs = to_scvi(ours, adata.copy(), batch="batch", label="known")
    same(ours.predict(cells), theirs.predict(soft=True).to_numpy())
    train(theirs)


def test_the_typical_library_is_the_median_and_survives_the_round_trip(adata):
    ours = vaelab.SCVI(60, n_batches=2, n_hidden=16)
    vaelab.fit(ours, Cells.from_anndata(adata, batch="batch"), epochs=1, progress=False)
    back = from_scvi(to_scvi(ours, adata.copy(), batch="batch"))
    totals = np.sort(np.asarray(adata.X.sum(1)).ravel())
    assert back.typical_library.item() == ours.typical_library.item() == totals[(N - 1) // 2]
    np.testing.assert_array_equal(back.generate(20), ours.generate(20))


REFUSED = {
    "latent_distribution": ({"latent_distribution": "ln"}, {}),
    "log_variational": ({"log_variational": False}, {}),
    "batch_representation": ({"batch_representation": "embedding"}, {}),
    "use_batch_norm is 'both' and use_layer_norm is 'both';": ({"use_layer_norm": "both"}, {}),
    "use_batch_norm is .both. and use_layer_norm is .encoder.;": (
        {"use_layer_norm": "encoder"},
        {},
    ),
    "use_batch_norm": ({"use_batch_norm": "encoder"}, {}),
    "use_batch_norm is 'decoder'": ({"use_batch_norm": "decoder"}, {}),
    "extra_encoder_kwargs": ({"extra_encoder_kwargs": {"activation_fn": torch.nn.GELU}}, {}),
    "extra_decoder_kwargs": ({"extra_decoder_kwargs": {"activation_fn": torch.nn.GELU}}, {}),
    "var_activation": ({"var_activation": torch.nn.functional.softplus}, {}),
    "deeply_inject_covariates": ({"deeply_inject_covariates": False, "n_layers": 2}, {}),
    "dispersion": ({"dispersion": "gene-label"}, {}),
    "gene_likelihood": ({"gene_likelihood": "normal"}, {}),
    "categorical_covariate_keys": ({}, {"categorical_covariate_keys": ["donor"]}),
    "continuous_covariate_keys": ({}, {"continuous_covariate_keys": ["mito"]}),
    "use_size_factor_key": ({}, {"size_factor_key": "size"}),
    "classifier_parameters": ({"classifier_parameters": {"activation_fn": torch.nn.Tanh}}, {}),
}


def untrained(adata, options, setup=None):
    """A model there, as it starts."""
    adata = adata.copy()
    adata.obs["donor"] = np.arange(N) % 3
    adata.obs["mito"] = np.linspace(0, 1, N)
    adata.obs["size"] = np.asarray(adata.X.sum(1)).ravel() / 300
    kind = tools.model.SCVI
    labels = {"labels_key": "known"}
    if "classifier_parameters" in options:
        kind, labels = tools.model.SCANVI, labels | {"unlabeled_category": "unknown"}
    kind.setup_anndata(adata, batch_key="batch", **labels, **setup or {})
    return kind(adata, n_hidden=16, **options)


@pytest.mark.parametrize("says", REFUSED)
def test_an_option_without_counterpart_is_refused_by_name(says, adata):
    with pytest.raises(ValueError, match=f"^{says} "):
        from_scvi(untrained(adata, *REFUSED[says]))


def test_options_that_change_nothing_are_converted(adata):
    for options in (
        {"deeply_inject_covariates": False},
        {"var_activation": torch.exp, "extra_encoder_kwargs": {}, "extra_decoder_kwargs": None},
        {"extra_payload_autotune": True, "use_layer_norm": "none"},
    ):
        from_scvi(untrained(adata, options))


def test_what_no_option_tells_is_noticed_by_the_numbers(adata):
    for change, says in (
        (lambda m: setattr(m.z_encoder, "var_eps", 0.1), "standard deviation of q"),
        (lambda m: setattr(m.z_encoder.encoder.fc_layers[0], "3", torch.nn.SiLU()), "mean of q"),
        (lambda m: m.decoder.px_scale_decoder.append(torch.nn.Softmax(-1)), "shares of the genes"),
    ):
        theirs = untrained(adata, {})
        change(theirs.module)
        with pytest.raises(ValueError, match=f"gives other numbers: the {says}"):
            from_scvi(theirs)
    theirs = untrained(adata, {"classifier_parameters": {}})
    theirs.module.classifier.classifier.insert(0, torch.nn.Tanh())
    with pytest.raises(ValueError):
        from_scvi(theirs)


def test_a_minified_model_has_its_typical_library(adata):
    tools.model.SCVI.setup_anndata(adata, batch_key="batch")
    theirs = train(tools.model.SCVI(adata, n_hidden=16))
    z = theirs.get_latent_representation(return_dist=True)
    theirs.adata.obsm["X_latent_qzm"], theirs.adata.obsm["X_latent_qzv"] = z
    theirs.minify_adata()
    ours = from_scvi(theirs)
    assert ours.typical_library == torch.tensor(np.asarray(adata.X.sum(1))).median()
    np.testing.assert_allclose(ours.embed(cells_of(adata)), z[0], **TOLERANCE)


def test_there_is_a_sentence_for_what_to_scvi_cannot_do(adata):
    cells = Cells.from_anndata(adata, batch="batch", label="known", unlabelled="unknown")
    small = {"n_hidden": 16, "n_batches": 2}
    scanvi = vaelab.SCANVI(60, n_labels=3, classifier_layers=2, balance_labels=True, **small)
    for model in (zip_ := vaelab.SCVI(60, likelihood="zip", **small), scanvi):
        vaelab.fit(model, cells, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"^likelihood is 'zip'"):
        to_scvi(zip_, adata.copy(), batch="batch")
    scalar = vaelab.SCVI(60, n_batches=2, dispersion="scalar")
    with pytest.raises(ValueError, match=r"^dispersion is 'scalar'; scvi-tools has one θ per gene"):
        to_scvi(scalar, adata.copy(), batch="batch")
    with pytest.raises(ValueError, match=r"^batch is None"):
        to_scvi(scanvi, adata.copy(), label="known")
    with pytest.raises(ValueError, match=r"^label is None"):
        to_scvi(scanvi, adata.copy(), batch="batch")
    three = adata.copy()
    three.obs["batch"] = np.where(np.arange(N) < 9, "another", adata.obs["batch"])
    with pytest.raises(ValueError, match=r"numbers the batch another, .* names and order"):
        to_scvi(scanvi, three, batch="batch", label="known")
    # Two layers in one network, and numbers of labels, which only our training needs.
    theirs = to_scvi(scanvi, adata.copy(), batch="batch", label="known")
    same(scanvi.predict(cells), theirs.predict(soft=True).to_numpy())


QUERY = {"encode_covariates": True, "dispersion": "gene-batch", "n_layers": 2}


@pytest.mark.parametrize("semi", [False, True], ids=["SCVI", "SCANVI"])
def test_a_query_is_embedded_as_by_load_query_data(semi, adata):
    """The reference and a new batch: same weights, same embedding."""
    kind = tools.model.SCANVI if semi else tools.model.SCVI
    labels = {"labels_key": "known", "unlabeled_category": "unknown"} if semi else {}
    kind.setup_anndata(adata, batch_key="batch", **labels)
    reference = train(kind(adata, n_hidden=16, **QUERY))
    new = adata[:100].copy()
    new.obs["batch"] = "new"
    theirs = kind.load_query_data(new, reference, freeze_batchnorm_decoder=True, accelerator="cpu")
    theirs.train(
        max_epochs=3, accelerator="cpu", enable_progress_bar=False, logger=False,
        plan_kwargs={"weight_decay": 0.0},
    )  # fmt: skip
    converted, ours = from_scvi(theirs), from_scvi(reference).extend(batches=["new"])
    assert converted.batch_names == ours.batch_names
    cells = cells_of(new).aligned_to(ours)
    state, there = ours.state_dict(), converted.state_dict()
    for name, mask in ours.new_weights(cells).items():
        state[name][mask] = there[name][mask]  # their new weights in our extended model
    expected = theirs.get_latent_representation()
    for model in (ours, converted):
        np.testing.assert_allclose(model.embed(cells), expected, **TOLERANCE)
    old = cells_of(adata).aligned_to(ours)
    np.testing.assert_allclose(ours.embed(old), reference.get_latent_representation(), **TOLERANCE)


def test_what_has_no_counterpart_is_refused(adata):
    with pytest.raises(TypeError, match="This is a VAE"):
        from_scvi(vaelab.VAE(60))
    with pytest.raises(TypeError, match="This is a VAE"):
        to_scvi(vaelab.VAE(60), adata)
    ours = vaelab.SCVI(60, n_batches=2, normalization="layer")
    vaelab.fit(ours, Cells.from_anndata(adata, batch="batch"), epochs=1, progress=False)
    with pytest.raises(ValueError, match="has learnt its scales and shifts"):
        to_scvi(ours, adata, batch="batch")
    other = vaelab.SCVI(60, n_batches=2)
    vaelab.fit(other, Cells.from_anndata(adata, batch="batch"), epochs=1, progress=False)
    with pytest.raises(ValueError, match="other genes"):
        to_scvi(other, adata[:, ::-1].copy(), batch="batch")


@pytest.mark.parametrize("batch", [None, "batch"])
def test_labels_of_other_names_are_refused_with_and_without_batches(adata, batch):
    cells = Cells.from_anndata(adata, batch=batch, label="known", unlabelled="unknown")
    n_batches = len(cells.batch_names)
    ours = vaelab.SCANVI(60, n_labels=3, n_batches=n_batches, n_hidden=16)
    vaelab.fit(ours, cells, epochs=1, progress=False)
    other = adata.copy()
    other.obs["known"] = [
        name if name == "unknown" else f"other {name}" for name in adata.obs["known"]
    ]
    with pytest.raises(ValueError, match=r"numbers the labels other .*, the model"):
        to_scvi(ours, other, batch=batch, label="known")
    to_scvi(ours, adata.copy(), batch=batch, label="known")
