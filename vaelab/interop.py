"""To scvi-tools and back: the same model there, with the same parameters.

Written against scvi-tools 1.4 and 1.5. A network there ends in separate layers for mean, variance,
dropout and so on; ours ends in one layer that holds their rows one after another.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .models import SCANVI, SCVI
from .networks import MLP

__all__ = ["from_scvi", "to_scvi"]

# There whether the model uses them or not.
UNUSED = ("l_encoder.", "decoder.px_r_decoder.", "decoder.px_dropout_decoder.", "px_r")
MODULE = {  # what our models are, of the options of theirs
    "latent_distribution": "normal",
    "log_variational": True,
    "batch_representation": "one-hot",
    "use_size_factor_key": False,
}


def from_scvi(theirs) -> SCVI | SCANVI:
    """Our model of a model of scvi-tools.

    Parameters
    ----------
    theirs
        A ``scvi.model.SCVI`` or ``scvi.model.SCANVI``, trained or not.

    Returns
    -------
    In evaluation mode, with the genes, batches and labels of theirs by name.

    Raises
    ------
    TypeError
        Another kind of model.
    ValueError
        It has an option that ours do not have.
    """
    import scvi

    kinds = {scvi.model.SCVI: SCVI, scvi.model.SCANVI: SCANVI}
    if type(theirs) not in kinds:
        raise TypeError(f"This is a {type(theirs).__name__}; SCVI and SCANVI can be taken over.")
    module, registry = theirs.module, theirs.adata_manager.get_state_registry
    for name, value in MODULE.items():
        seen = getattr(module, name) or False
        if seen != value:
            raise ValueError(f"{name} is {seen!r}; ours is {value!r} always.")
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
            raise ValueError(f"The model lacks {missing[0]}: an option that ours do not have.")
        found[name] = _to_ours(name, [state.pop(n) for n in names]).reshape(value.shape)
    if left := [n for n in state if not n.startswith(UNUSED)]:
        raise ValueError(f"The model has {left[0]}: an option that ours do not have.")
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
    """The model of scvi-tools with our parameters.

    Parameters
    ----------
    ours
        Fitted: it knows genes, batches and labels by name.
    adata
        What the model there is set up on, with the genes and batches of ours. scvi-tools writes
        columns of its own into it.
    layer, batch, label, unlabelled
        As of ``Cells.from_anndata``; ``label`` and ``unlabelled`` for a SCANVI.

    Returns
    -------
    A ``scvi.model.SCVI`` or ``scvi.model.SCANVI`` that counts as trained.

    Raises
    ------
    TypeError
        Another kind of model.
    ValueError
        Genes, batches or labels of ``adata`` are not those of the model, or the model has an
        option that scvi-tools does not have.
    """
    import scvi

    if not isinstance(ours, SCVI):
        raise TypeError(f"This is a {type(ours).__name__}; SCVI and SCANVI can be handed over.")
    options, semi = dict(ours.configuration), isinstance(ours, SCANVI)
    if options["normalization"] != "batch" or options.get("encode_batch_z2"):
        raise ValueError("scvi-tools has batch normalisation, and no batch in q(z2 | z1, c).")
    if ours.gene_names is not None and tuple(adata.var_names) != ours.gene_names:
        raise ValueError("adata has other genes: select adata[:, list(model.gene_names)].copy().")
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
                f"scvi-tools numbers the {field} {', '.join(seen)}, the model {', '.join(names)}."
            )
    state = theirs.module.state_dict()
    for name, value in ours.state_dict().items():
        if name == "typical_library":
            continue
        names = _theirs(ours, name)
        if missing := [n for n in names if n not in state]:
            raise ValueError(f"scvi-tools has no {missing[0]}, of our {name}.")
        sizes = [len(state[n]) if state[n].ndim else 1 for n in names]
        pieces = value.split(sizes) if len(names) > 1 else [value]
        for n, piece in zip(names, pieces, strict=True):
            state[n] = _to_theirs(name, piece).reshape(state[n].shape)
    theirs.module.load_state_dict(state)
    theirs.module.eval()
    theirs.is_trained_ = True
    return theirs


def _theirs(model: SCVI, name: str) -> list[str]:
    """The names there of one of our parameters, whose rows they hold one after another."""
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
    i, part = divmod(int(rest[0]), MLP.layers_per_block)
    if i < getattr(model, network).n_hidden_layers:
        return [f"{hidden}.fc_layers.Layer {i}.{part}.{rest[1]}"]
    if network == "classifier" and i == 0:
        heads = ["classifier.classifier.0"]
    return [f"{head}.{rest[1]}" for head in heads]


NETWORKS = {  # ours: the hidden layers there, and the last ones
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
