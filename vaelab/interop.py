"""Converts models to scvi-tools and back, with the same parameters.

It is written for scvi-tools 1.4 and 1.5. A network of scvi-tools ends in separate layers for mean,
variance, dropout and so on. Ours ends in one layer that holds the rows of these layers one after
another. In the code, ``theirs`` is a model of scvi-tools and ``ours`` is a model of vaelab.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .models import SCANVI, SCVI
from .networks import MLP, evaluating
from .reparametrization import seeded

__all__ = ["from_scvi", "to_scvi"]

# scvi-tools creates these parameters even if the model does not use them.
UNUSED = ("l_encoder.", "decoder.px_r_decoder.", "decoder.px_dropout_decoder.", "px_r")
OURS_ALONE = ("typical_library", "n_of_type")  # buffers that no prediction depends on
MODULE = {  # options of scvi-tools that our models fix
    "latent_distribution": "normal",
    "log_variational": True,
    "batch_representation": "one-hot",
    "use_size_factor_key": False,
}
TAKEN = {  # options of scvi-tools that are converted, or that do not change what a model computes
    "n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood",
    "use_observed_lib_size", "encode_covariates", "linear_classifier", "use_batch_norm",
    "use_layer_norm", "y_prior", "extra_payload_autotune", "datamodule",
}  # fmt: skip
LIKELIHOODS = ("zinb", "nb", "poisson")  # with the same parameters here and there
NORMALIZATIONS = {  # ours: use_batch_norm and use_layer_norm there
    "batch": ("both", "none"), "layer": ("none", "both"), None: ("none", "none"),
}  # fmt: skip


def from_scvi(theirs) -> SCVI | SCANVI:
    """Convert a model of scvi-tools.

    Parameters
    ----------
    theirs
        A ``scvi.model.SCVI`` or ``scvi.model.SCANVI``, trained or not.

    Returns
    -------
    A SCVI or SCANVI in evaluation mode, with the same names of genes, batches and labels.

    Raises
    ------
    TypeError
        The model is of another class.
    ValueError
        The model has an option that ours do not have; the message names it. What no name tells is
        noticed too: a few cells are embedded and decoded by both models, and must agree.
    """
    import scvi

    kinds = {scvi.model.SCVI: SCVI, scvi.model.SCANVI: SCANVI}
    if type(theirs) not in kinds:
        raise TypeError(
            f"This is a {type(theirs).__name__}; only SCVI and SCANVI of scvi-tools can be "
            "converted."
        )
    module, given = theirs.module, _options(theirs)
    normalization = _require_convertible(theirs, given)
    registry = theirs.adata_manager.get_state_registry
    options = {
        "n_genes": module.n_input,
        "n_batches": module.n_batch,
        "n_latent": module.n_latent,
        "n_hidden": module.n_hidden,
        "n_layers": module.n_layers,
        "dropout_rate": theirs.init_params_["non_kwargs"]["dropout_rate"],
        "likelihood": module.gene_likelihood,
        "dispersion": "gene" if module.gene_likelihood == "poisson" else module.dispersion,
        "normalization": normalization,
        "library": "observed" if module.use_observed_lib_size else "latent",
        "encode_batch": module.encode_covariates,
    }
    label_names = None
    if isinstance(theirs, scvi.model.SCANVI):
        label_names = tuple(registry("labels")["categorical_mapping"][: module.n_labels])
        linear = theirs.init_params_["non_kwargs"]["linear_classifier"]
        options |= {"classifier_layers": 0 if linear else module.n_layers}
        options |= {"n_labels": module.n_labels, "label_bound": False}
    ours = kinds[type(theirs)](**options)
    state, found = module.state_dict(), {}
    for name, value in ours.state_dict().items():
        if name == "typical_library":
            found[name] = torch.tensor(_totals(theirs), dtype=torch.float32).median()
            continue
        if _is_affine(ours, name):
            found[name] = value
            continue
        names = _theirs(ours, name)
        missing = [n for n in names if n not in state]
        if missing:
            raise ValueError(
                f"The model lacks the parameter {missing[0]}: it has an option that vaelab does "
                "not have."
            )
        found[name] = _to_ours(name, [state.pop(n) for n in names]).reshape(value.shape)
    if left := [n for n in state if not n.startswith(UNUSED)]:
        raise ValueError(
            f"The model has the parameter {left[0]}: it has an option that vaelab does not have."
        )
    ours.load_state_dict(found)
    ours.gene_names = tuple(theirs.adata.var_names)
    ours.batch_names = tuple(map(str, registry("batch")["categorical_mapping"]))
    ours.label_names = label_names and tuple(map(str, label_names))
    _require_same_numbers(theirs, ours)
    return ours.eval()


def to_scvi(
    ours: SCVI | SCANVI,
    adata,
    layer: str | None = None,
    batch: str | None = None,
    label: str | None = None,
    unlabelled: str = "unknown",
):
    """Convert a model to scvi-tools.

    Parameters
    ----------
    ours
        A fitted model, so that it knows genes, batches and labels by name.
    adata
        AnnData for which the model of scvi-tools is set up, with the model's genes and batches.
        scvi-tools writes columns of its own into it.
    layer, batch, label, unlabelled
        Same as in ``Cells.from_anndata``. Only a SCANVI uses ``label`` and ``unlabelled``.

    Returns
    -------
    A ``scvi.model.SCVI`` or ``scvi.model.SCANVI`` that scvi-tools treats as trained.

    Raises
    ------
    TypeError
        The model is of another class.
    ValueError
        The genes, batches or labels of ``adata`` are not those of the model, or the model has an
        option that scvi-tools does not have.
    """
    import scvi

    if not isinstance(ours, SCVI):
        raise TypeError(f"This is a {type(ours).__name__}; only SCVI and SCANVI can be converted.")
    options, semi = dict(ours.configuration), isinstance(ours, SCANVI)
    if options.get("encode_batch_z2"):
        raise ValueError("encode_batch_z2 is True; in scvi-tools, q(z2 | z1, c) has no batch.")
    if options["likelihood"] not in LIKELIHOODS:
        raise ValueError(
            f"likelihood is {options['likelihood']!r}; of those of scvi-tools, only "
            f"{', '.join(LIKELIHOODS)} have the same parameters."
        )
    if options["dispersion"] == "scalar":
        raise ValueError("dispersion is 'scalar'; scvi-tools has one θ per gene or more.")
    if options["normalization"] == "layer" and any(
        (value != (1 if name.endswith("weight") else 0)).any()
        for name, value in ours.state_dict().items()
        if _is_affine(ours, name)
    ):
        raise ValueError(
            "normalization is 'layer', and the model has learnt its scales and shifts; the layer "
            "normalisation of scvi-tools has none."
        )
    for name, column, n_names in (
        ("batch", batch, options["n_batches"]),
        ("label", label, options.get("n_labels", 1) + semi),
    ):
        if column is None and n_names > 1:
            raise ValueError(
                f"{name} is None; the model has more than one {name}, so name the column of "
                f"adata.obs that holds them: to_scvi(…, {name}=…)."
            )
    if ours.gene_names is not None and tuple(adata.var_names) != ours.gene_names:
        raise ValueError(
            "adata has other genes than the model: select adata[:, list(model.gene_names)].copy()."
        )
    kind = scvi.model.SCANVI if semi else scvi.model.SCVI
    setup = {"labels_key": label, "unlabeled_category": unlabelled} if semi else {}
    kind.setup_anndata(adata, layer=layer, batch_key=batch, **setup)
    kept = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion")
    classifier = {}
    if semi:
        layers = options["classifier_layers"]
        classifier = {"linear_classifier": layers == 0}
        if layers not in (0, options["n_layers"]):
            classifier["classifier_parameters"] = {"n_layers": layers}
    batch_norm, layer_norm = NORMALIZATIONS[options["normalization"]]
    theirs = kind(
        adata,
        use_batch_norm=batch_norm,
        use_layer_norm=layer_norm,
        **{name: options[name] for name in kept},
        **classifier,
        gene_likelihood=options["likelihood"],
        use_observed_lib_size=options["library"] == "observed",
        encode_covariates=options["encode_batch"],
    )
    registry = theirs.adata_manager.get_state_registry
    known = {"labels": (ours.label_names, options["n_labels"])} if semi else {}
    if batch is not None:
        known["batch"] = ours.batch_names, options["n_batches"]
    for field, (names, n_names) in known.items():
        seen = tuple(map(str, registry(field)["categorical_mapping"]))
        seen = seen[: theirs.module.n_labels] if field == "labels" else seen
        if len(seen) != n_names or (names is not None and seen != names):
            raise ValueError(
                f"scvi-tools numbers the {field} {', '.join(seen)}, the model "
                f"{', '.join(names or ())} ({n_names} in all): names and order must be the same."
            )
    state = theirs.module.state_dict()
    for name, value in ours.state_dict().items():
        if name in OURS_ALONE or _is_affine(ours, name):
            continue
        names = _theirs(ours, name)
        if missing := [n for n in names if n not in state]:
            raise ValueError(
                f"scvi-tools has no parameter {missing[0]} for {name}: it lacks an option of this "
                "model."
            )
        sizes = [len(state[n]) if state[n].ndim else 1 for n in names]
        pieces = value.split(sizes) if len(names) > 1 else [value]
        for n, piece in zip(names, pieces, strict=True):
            state[n] = _to_theirs(name, piece).reshape(state[n].shape)
    theirs.module.load_state_dict(state)
    theirs.module.eval()
    theirs.is_trained_ = True
    _require_same_numbers(theirs, ours)
    return theirs


def _options(theirs) -> dict:
    """The options with which a model was made there."""
    given = dict(theirs.init_params_["non_kwargs"])
    for others in theirs.init_params_["kwargs"].values():
        given |= others
    return given


def _require_convertible(theirs, given: dict) -> str | None:
    """Refuse options that ours do not have, by name; returns our normalisation."""
    import scvi

    def refuse(name: str, value, instead: str) -> None:
        raise ValueError(f"{name} is {value!r}; in vaelab it is always {instead}.")

    module = theirs.module
    if module is None or theirs.adata is None:
        raise ValueError("adata is None; only a model that has its AnnData can be converted.")
    if type(module) not in (scvi.module.VAE, scvi.module.SCANVAE):
        refuse("module", type(module).__name__, "as in SCVI and SCANVI")
    for name, value in MODULE.items():
        seen = getattr(module, name) or False
        if seen != value:
            refuse(name, seen, repr(value))
    for kind in ("categorical", "continuous"):
        if n := theirs.summary_stats.get(f"n_extra_{kind}_covs", 0):
            refuse(f"{kind}_covariate_keys", f"{n} columns", "empty")
    if module.gene_likelihood not in LIKELIHOODS:
        refuse("gene_likelihood", module.gene_likelihood, f"one of {', '.join(LIKELIHOODS)}")
    defaults = {
        name: parameter.default
        for kind in (scvi.module.VAE, scvi.module.SCANVAE)
        for name, parameter in inspect.signature(kind).parameters.items()
    }
    for name, value in given.items():
        same = name == "var_activation" and value is torch.exp
        same |= name == "deeply_inject_covariates" and module.n_layers == 1
        if name in TAKEN or name in MODULE or same:
            continue
        if (value or None) != (defaults[name] or None):
            refuse(name, value, repr(defaults[name]))
    norms = tuple(given.get(name, defaults[name]) for name in ("use_batch_norm", "use_layer_norm"))
    for ours, pair in NORMALIZATIONS.items():
        if pair == norms:
            return ours
    raise ValueError(
        f"use_batch_norm is {norms[0]!r} and use_layer_norm is {norms[1]!r}; in vaelab, all "
        "networks have one of the two, or none."
    )


def _totals(theirs) -> np.ndarray:
    """The total counts of the cells there. Minified data do not have the counts, but the totals."""
    import scvi

    key = scvi.REGISTRY_KEYS.OBSERVED_LIB_SIZE
    if key in theirs.adata_manager.data_registry:
        return np.asarray(theirs.adata_manager.get_from_registry(key)).ravel()
    return np.asarray(theirs.adata_manager.get_from_registry("X").sum(1)).ravel()


def _is_affine(ours: SCVI, name: str) -> bool:
    """True for scales and shifts of a layer normalisation, which has none in scvi-tools."""
    layer = name.split(".")[1:2]
    at = int(layer[0]) if layer and layer[0].isdigit() else 0
    return ours.configuration["normalization"] == "layer" and at % MLP.layers_per_block == 1


@torch.no_grad()
def _require_same_numbers(theirs, ours: SCVI) -> None:
    """Refuse a conversion after which a few made-up cells differ, whatever the reason."""
    options, module = ours.configuration, theirs.module
    n_genes, n_batches = options["n_genes"], options["n_batches"]
    n_cells = max(8, n_batches)
    i, g = torch.arange(n_cells)[:, None], torch.arange(n_genes)
    x = ((i + 1) * (g * g + 3 * i + 1) % 7).float()  # any counts
    x[:, 0] += 1
    cells = replace(
        ours.blank_cells(n_cells, x.sum(1), i[:, 0] % n_batches), x=x.to(ours.device, ours.dtype)
    )
    x, batch = x.to(module.device), (i % n_batches).to(module.device)
    with seeded(0), evaluating(ours), evaluating(module):
        there = module._regular_inference(x=x, batch_index=batch)  # also of minified data
        q = ours.encode(cells)
        z = q.mean.to(x)
        p = ours.decode(q.mean, cells)
        base = getattr(p, "base", p)
        library = x.sum(1, keepdim=True).log()
        px = module.generative(z=z, library=library, batch_index=batch)["px"]
        pairs = {
            "the mean of q(z | x)": (q.mean, there["qz"].loc),
            "the standard deviation of q(z | x)": (q.stddev, there["qz"].scale),
            "the shares of the genes": (base.mean / cells.library[:, None], px.scale),
        }
        if hasattr(px, "theta"):
            log_theta = px.theta.log().clamp(-12, 12)
            pairs["the inverse dispersion"] = base.inverse_dispersion.log(), log_theta
        if hasattr(px, "zi_logits"):
            pairs["the dropout logits"] = p.logits, px.zi_logits
        if options["library"] == "latent":
            q_library = ours.encode_log_library(cells)
            pairs["the mean of q(ℓ | x)"] = q_library.mean, there["ql"].loc[:, 0]
            pairs["the standard deviation of q(ℓ | x)"] = q_library.stddev, there["ql"].scale[:, 0]
        if isinstance(ours, SCANVI):
            c = torch.nn.functional.one_hot(i[:, 0] % options["n_labels"], options["n_labels"])
            pairs["q(c | z1)"] = ours.classify(q.mean).exp(), module.classifier(z).softmax(-1)
            of_ours, c = c.to(q.mean), c.to(z)
            q_z2 = ours.encode_z2(q.mean, of_ours, cells)
            p_z1 = ours.decode_z1(q.mean, of_ours)
            pairs["the mean of q(z2 | z1, c)"] = q_z2.mean, module.encoder_z2_z1(z, c)[0].loc
            pairs["the mean of p(z1 | z2, c)"] = p_z1.mean, module.decoder_z1_z2(z, c)[0]
    for what, (here, there) in pairs.items():
        difference = (here.cpu() - there.cpu()).abs().max()
        if not difference <= 1e-3 * max(1.0, there.abs().max()):
            raise ValueError(
                f"The converted model gives other numbers: {what} differs by up to "
                f"{difference:.2g}. One of the two has an option that the other does not have."
            )


def _theirs(model: SCVI, name: str) -> list[str]:
    """The names in scvi-tools of one of our parameters; their rows joined give ours."""
    network, *rest = name.split(".")
    single = {
        "library_log_mean": "library_log_means",
        "library_log_std": "library_log_vars",
        "logits_c": "y_prior",
        "likelihood.log_inverse_dispersion": "px_r",
    }
    if name in single:
        return [single[name]]
    if network == "likelihood":  # its output layer
        heads = ["decoder.px_scale_decoder.0"]
        if model.configuration["likelihood"] == "zinb":
            heads.append("decoder.px_dropout_decoder")
        if model.configuration["dispersion"] == "gene-cell":
            heads.append("decoder.px_r_decoder")
        return [f"{head}.{rest[-1]}" for head in heads]
    hidden, heads = NETWORKS[network]
    block, layer = divmod(int(rest[0]), MLP.layers_per_block)
    if block < getattr(model, network).n_hidden_layers:
        return [f"{hidden}.fc_layers.Layer {block}.{layer}.{rest[1]}"]
    if network == "classifier" and block == 0:
        heads = ["classifier.classifier.0"]
    return [f"{head}.{rest[1]}" for head in heads]


NETWORKS = {  # our network: the hidden layers in scvi-tools, and the last layers
    "encoder": ("z_encoder.encoder", ["z_encoder.mean_encoder", "z_encoder.var_encoder"]),
    "library_encoder": ("l_encoder.encoder", ["l_encoder.mean_encoder", "l_encoder.var_encoder"]),
    "decoder": ("decoder.px_decoder", []),
    "classifier": ("classifier.classifier.0", ["classifier.classifier.1"]),
    "encoder_z2": (
        "encoder_z2_z1.encoder", ["encoder_z2_z1.mean_encoder", "encoder_z2_z1.var_encoder"],
    ),
    "decoder_z1": (
        "decoder_z1_z2.decoder", ["decoder_z1_z2.mean_decoder", "decoder_z1_z2.var_decoder"],
    ),
}  # fmt: skip


def _to_ours(name: str, values: list[Tensor]) -> Tensor:
    value = torch.cat(values) if len(values) > 1 else values[0]
    if name == "library_log_std":
        return value.sqrt()
    if name == "logits_c":
        return value.log()
    return value.T if name.endswith("log_inverse_dispersion") and value.ndim == 2 else value


def _to_theirs(name: str, value: Tensor) -> Tensor:
    if name == "library_log_std":
        return value**2
    if name == "logits_c":
        return value.softmax(-1)
    return value.T if name.endswith("log_inverse_dispersion") and value.ndim == 2 else value
