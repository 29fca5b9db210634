"""The page "Term and line": each term of each bound, its line here and in scvi-tools, its value."""

import inspect
import re

import vaelab

TAG = "1.4.2"  # of scvi-tools; tests/parity holds these lines against the installed release
SCVI_TOOLS = {  # by model and term: file below src/scvi/module, line, what stands there
    "SCVI": {
        "reconstruction": ("_vae.py", 573, "reconst_loss = -generative_outputs"),
        "kl_z": ("_vae.py", 563, "kl_divergence_z = kl_divergence("),
        "kl_library": ("_vae.py", 567, "kl_divergence_l = kl_divergence("),
    },
    "SCANVI": {
        "reconstruction": ("_scanvae.py", 223, "reconst_loss = -px.log_prob(x)"),
        "log_q_z1": ("_scanvae.py", 231, "loss_z1_weight = qz1.log_prob(z1)"),
        "log_p_z1": ("_scanvae.py", 230, "loss_z1_unweight = -Normal(pz1_m"),
        "kl_z2": ("_scanvae.py", 229, "kl_divergence_z2 = kl(qz2, Normal(mean, scale))"),
        "kl_c": ("_scanvae.py", 249, "kl_divergence += kl("),
        "kl_library": ("_scanvae.py", 265, "kl_divergence_l = kl("),
        "cross_entropy": ("base/_base_module.py", 866, "ce_loss = F.cross_entropy("),
    },
}
INTRODUCTION = """# Term and line

Each bound of this package is a sum of named terms. Here is each term, the line that makes it, its
value for one cell, and the line of scvi-tools {tag} that computes the same quantity.

The cell is the first of a simulated data set (300 cells, 50 genes), and each model was trained on
all of them for 20 epochs. A value is in nats, averaged over 1,000 draws of the latent variables. The
cell's label is known to SCANVI.
"""


def page() -> str:
    adata = vaelab.simulate.dataset(n_cells=300, n_genes=50, n_types=3, n_batches=2, seed=0)
    cells = vaelab.Cells.from_anndata(adata, label="cell_type", batch="batch")
    models = [
        vaelab.VAE(50, n_latent=5),
        vaelab.GMVAE(50, n_latent=5, n_clusters=3, estimator="gumbel"),  # sum: one may be left
        vaelab.SCVI(50, n_batches=2, n_latent=5, library="latent"),
        vaelab.SCANVI(50, n_labels=3, n_batches=2, n_latent=5, library="latent"),
    ]
    return INTRODUCTION.format(tag=TAG) + "".join(_section(model, cells) for model in models)


def _section(model, cells) -> str:
    import torch

    vaelab.fit(model, cells, epochs=20, seed=0, progress=False)
    model.eval()
    with torch.no_grad():
        bound = model.elbo(cells[:1].to(model.device, model.dtype), n_samples=1000)
    name = type(model).__name__
    lines = [
        f"\n## {name}\n\n| | term | quantity | nats | here | scvi-tools |\n|---|---|---|---|---|---|\n"
    ]
    for term in bound.terms.values():
        sign = ("+" if term.sign > 0 else "−") if term.in_bound else "loss only"
        symbol = term.symbol.replace("|", "\\|")
        lines.append(
            f"| {sign} | `{term.name}` | {symbol} | {bound[term.name].item():.2f} "
            f"| {_here(model, term.name)} | {_there(name, term.name)} |\n"
        )
    total = bound.per_cell().item()
    return "".join([*lines, f"\nThe bound of this cell is {total:.2f} nats.\n"])


def _here(model, term: str) -> str:
    """Where a term is made: the method that holds the words ``Term("name"``."""
    for cls in type(model).__mro__:
        for function in vars(cls).values():
            if not inspect.isfunction(function):
                continue
            source, first = inspect.getsourcelines(function)
            for n, line in enumerate(source):
                if re.search(rf'\bTerm\("{term}"', line):
                    module = cls.__module__.replace(".", "/")
                    file = module.removeprefix("vaelab/")
                    public = not function.__name__.startswith("_")
                    anchor = f"{cls.__name__}.{function.__name__}" if public else cls.__name__
                    link = f"_modules/{module}.html#{anchor}"
                    return f'<a href="{link}">{file}.py, line {first + n}</a>'
    raise LookupError(f"No line makes the term {term!r} of {type(model).__name__}.")


def _there(model: str, term: str) -> str:
    if model not in SCVI_TOOLS:
        return ""
    file, line, _ = SCVI_TOOLS[model][term]
    url = f"https://github.com/scverse/scvi-tools/blob/{TAG}/src/scvi/module/{file}#L{line}"
    return f"[{file}, line {line}]({url})"
