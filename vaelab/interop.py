"""Converts models to scvi-tools and back, with the same parameters.

It is written for scvi-tools 1.4 and 1.5. A network of scvi-tools ends in separate layers for mean,
variance, dropout and so on. Ours ends in one layer that holds the rows of these layers one after
another. In the code, ``theirs`` is a model of scvi-tools and ``ours`` is a model of vaelab.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .models import SCANVI, SCVI
from .networks import MLP

__all__ = ["from_scvi", "to_scvi"]

# scvi-tools creates these parameters even if the model does not use them.
UNUSED = ("l_encoder.", "decoder.px_r_decoder.", "decoder.px_dropout_decoder.", "px_r")
MODULE = {  # options of scvi-tools that our models fix
    "latent_distribution": "normal",
    "log_variational": True,
    "batch_representation": "one-hot",
    "use_size_factor_key": False,
}


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
        The model has an option that ours do not have.
    """
    import scvi

    kinds = {scvi.model.SCVI: SCVI, scvi.model.SCANVI: SCANVI}
    if type(theirs) not in kinds:
        raise TypeError(
            f"This is a {type(theirs).__name__}; only SCVI and SCANVI of scvi-tools can be "
            "converted."
        )
    module, registry = theirs.module, theirs.adata_manager.get_state_registry
    for name, value in MODULE.items():
        seen = getattr(module, name) or False
        if seen != value:
            raise ValueError(f"{name} is {seen!r}; in vaelab it is always {value!r}.")
    options = {
        "n_genes": module.n_input,
        "n_batches": module.n_batch,
        "n_latent": module.n_latent,
        "n_hidden": module.n_hidden,
        "n_layers": module.n_layers,
        "dropout_rate": theirs.init_params_["non_kwargs"]["dropout_rate"],
        "likelihood": module.gene_likelihood,
        "dispersion": module.dispersion,
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
            totals = np.asarray(theirs.adata_manager.get_from_registry("X").sum(1)).ravel()
            found[name] = torch.tensor(totals, dtype=torch.float32).median()
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
    if options["normalization"] != "batch" or options.get("encode_batch_z2"):
        raise ValueError(
            f"normalization is {options['normalization']!r} and encode_batch_z2 is "
            f"{options.get('encode_batch_z2', False)}; scvi-tools always has batch normalisation, "
            "and no batch in q(z2 | z1, c)."
        )
    if ours.gene_names is not None and tuple(adata.var_names) != ours.gene_names:
        raise ValueError(
            "adata has other genes than the model: select adata[:, list(model.gene_names)].copy()."
        )
    kind = scvi.model.SCANVI if semi else scvi.model.SCVI
    setup = {"labels_key": label, "unlabeled_category": unlabelled} if semi else {}
    kind.setup_anndata(adata, layer=layer, batch_key=batch, **setup)
    kept = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion")
    classifier = {"linear_classifier": options["classifier_layers"] == 0} if semi else {}
    theirs = kind(
        adata,
        **{name: options[name] for name in kept},
        **classifier,
        gene_likelihood=options["likelihood"],
        use_observed_lib_size=options["library"] == "observed",
        encode_covariates=options["encode_batch"],
    )
    registry = theirs.adata_manager.get_state_registry
    known = {"labels": ours.label_names if semi else None}
    if batch is not None or options["n_batches"] > 1:
        known["batch"] = ours.batch_names
    for field, names in known.items():
        seen = tuple(map(str, registry(field)["categorical_mapping"]))
        if names is not None and seen[: len(names)] != names:
            raise ValueError(
                f"scvi-tools numbers the {field} {', '.join(seen)}, the model {', '.join(names)}: "
                "the order must be the same."
            )
    state = theirs.module.state_dict()
    for name, value in ours.state_dict().items():
        if name == "typical_library":
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
    return theirs


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
