"""Evidence for lesson 04: what each claim rests on. Run with ``vaelab evidence 04``.

A seed draws everything: the data set (unless the cells are real), the weights, the minibatches.
Unless a claim says otherwise, the settings are the lesson's: 600 of 700 simulated cells, 300 genes,
10 latent dimensions, width 64, batch normalisation, dropout of 0.1 in the encoder, a learned σ for
each gene, 60 epochs of Adam with learning rate 3e-3 and epsilon 1e-8. Bounds are in nats per
held-out cell. A dimension is *used* if its KL is above 0.5 nats.
"""

from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

import vaelab
from vaelab import metrics
from vaelab.networks import MLP
from vaelab.teaching.evidence import claim, every, more, near


@contextmanager
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------ the lesson's data, VAE and training


@cache
def simulated(seed):
    """Counts, the standardised cells (600 to train on and 100 held out), factors, types."""
    adata = vaelab.simulate.dataset(
        n_cells=700, n_genes=310, n_types=5, n_factors=4, library=1000, seed=seed
    )
    counts = adata.X.toarray().astype(float)
    counts = counts[:, counts[:600].any(0)][:, :300]  # genes that a training cell expresses
    log_counts = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    mean, std = log_counts[:600].mean(0), log_counts[:600].std(0)
    cells = torch.as_tensor((log_counts - mean) / std)
    return counts, cells, adata.obsm["z"], adata.obs["cell_type"].to_numpy()


class VAE(nn.Module):
    def __init__(self, n_genes, seed, n_latent=10, n_hidden=64, layers=(1, 1), dropout_rate=0.1,
                 normalization="batch", sigma=None, he=False):  # fmt: skip
        super().__init__()
        torch.manual_seed(seed)
        hidden = {"n_hidden": n_hidden, "normalization": normalization}
        self.encoder = MLP(
            n_genes, 2 * n_latent, n_layers=layers[0], dropout_rate=dropout_rate, **hidden
        )
        self.decoder = MLP(n_latent, n_genes, n_layers=layers[1], dropout_rate=0.0, **hidden)
        start = torch.full((n_genes,), 1.0 if sigma is None else sigma).log()
        self.log_sigma = nn.Parameter(start, requires_grad=sigma is None)
        for network in (self.encoder, self.decoder) if he else ():
            for layer in [m for m in network if isinstance(m, nn.Linear)][:-1]:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def encode(self, x):
        m, s = self.encoder(x).chunk(2, dim=-1)
        return m, softplus(s) + 1e-4

    def terms(self, x):
        m, s = self.encode(x)
        z = m + s * torch.randn(m.shape)
        log_px = Normal(self.decoder(z), self.log_sigma.exp()).log_prob(x).sum(-1)
        return log_px, 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s))


def the_bound(log_px, kl, progress):
    return (kl.sum(-1) - log_px).mean()


def warm_up(log_px, kl, progress):
    return (min(1.0, progress / 0.5) * kl.sum(-1) - log_px).mean()


def free_bits(log_px, kl, progress):
    return kl.mean(0).clamp(min=0.25).sum() - log_px.mean()


def train(model, x, loss=the_bound, epochs=60, learning_rate=3e-3, epsilon=1e-8, seed=0):
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, learning_rate, eps=epsilon)
    model.train()
    for epoch in range(epochs):
        minibatches = torch.randperm(len(x)).split(100)
        for i, rows in enumerate(minibatches, start=1):
            value = loss(*model.terms(x[rows]), (epoch + i / len(minibatches)) / epochs)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
    model.eval()
    return model


@cache
def trained(seed, loss=the_bound, epochs=60, learning_rate=3e-3, epsilon=1e-8, **settings):
    with doubles(), torch.enable_grad():
        model = VAE(300, seed, **settings)
        x = simulated(seed)[1][:600]
        return train(model, x, loss, epochs, learning_rate, epsilon, seed)


@torch.no_grad()
def result(seed, **settings):
    """The bound on held-out cells, its rate and dimensions, and R² of draws and of means."""
    with doubles():
        model = trained(seed, **settings)
        _, cells, factors, _ = simulated(seed)
        torch.manual_seed(0)
        log_px, kl = model.terms(cells[600:].repeat(20, 1))
        rates = kl[:100].mean(0)
        torch.manual_seed(0)
        m, s = model.encode(cells)
        draws = m + s * torch.randn(m.shape)
        return {
            "bound": (log_px - kl.sum(-1)).mean().item(),
            "rate": rates.sum().item(),
            "used": int((rates > 0.5).sum()),
            "active": int((metrics.latent_activity(m.numpy()) > metrics.ACTIVE).sum()),
            "draws": explained(draws.numpy(), factors),
            "means": explained(m.numpy(), factors),
        }


def explained(z, factors):
    fit = LinearRegression().fit(z[:600], factors[:600])
    return max(fit.score(z[600:], factors[600:]), 0.0)


# ------------------------------------------------------------------------------ real cells: PBMC


@cache
def pbmc():
    adata = vaelab.datasets.pbmc_small()
    return adata.X.toarray(), vaelab.Cells.from_anndata(adata, label="cell_type")


@cache
def pbmc_model(seed, **settings):
    _, cells = pbmc()
    with doubles():
        model = vaelab.VAE(cells.n_genes, n_hidden=64, likelihood="nb", seed=seed, **settings)
        history = vaelab.fit(model, cells, epochs=60, seed=seed, progress=False)
        with torch.no_grad():
            q = model.encode(cells.to(dtype=torch.float64))
            rates = kl_divergence(q, model.prior()).mean(0)
    return model, history.frame["held_out_bound"].max(), int((rates > 0.5).sum())


@claim(
    "E04.puzzle",
    "On 700 blood cells, three hidden layers without normalisation in place of one with it leave "
    "one or two latent dimensions in use, and the bound is more than 10 nats lower.",
    holds=every(
        more("bound of A", "bound of B", by=10),
        more("used by A", "used by B", by=2),
        near("used by B", 1.5, 0.5),
    ),
    tolerance={"bound of A": 5, "bound of B": 8, "used by A": 2, "used by B": 1},
)
def puzzle(seed):
    _, shallow, used = pbmc_model(seed)
    _, deep, left = pbmc_model(seed, n_layers=3, normalization=None)
    return {"bound of A": shallow, "bound of B": deep, "used by A": used, "used by B": left}


@claim(
    "E04.blood",
    "Each of B's two changes alone costs less than both. Three layers with batch normalisation "
    "have a bound within 5 nats of A's; one layer without it is in between.",
    holds=every(
        more("3 layers with norm", "3 layers without", by=10),
        more("1 layer without", "3 layers without", by=5),
        more("1 layer with norm", "1 layer without"),
        near("3 − 1 layers, with norm", 0, 5),
    ),
    tolerance=8,
)
def blood(seed):
    found = {
        "1 layer with norm": pbmc_model(seed)[1],
        "3 layers with norm": pbmc_model(seed, n_layers=3)[1],
        "1 layer without": pbmc_model(seed, normalization=None)[1],
        "3 layers without": pbmc_model(seed, n_layers=3, normalization=None)[1],
    }
    difference = found["3 layers with norm"] - found["1 layer with norm"]
    return found | {"3 − 1 layers, with norm": difference}


# ------------------------------------------------------------------------- section 3: what is used


@claim(
    "E04.used",
    "With ten dimensions and four true factors, the model uses five to seven, and its means "
    "recover the factors almost as well as ten principal components.",
    holds=every(near("used", 6, 1), near("VAE − PCA", 0, 0.05)),
    tolerance={"used": 1, "R² of means": 0.02, "VAE − PCA": 0.02},
)
def used(seed):
    found = result(seed)
    _, cells, factors, _ = simulated(seed)
    pca = explained(PCA(10).fit(cells[:600].numpy()).transform(cells.numpy()), factors)
    return {
        "used": found["used"],
        "rate": found["rate"],
        "R² of means": found["means"],
        "VAE − PCA": found["means"] - pca,
    }


@claim(
    "E04.mode",
    "Cells sorted by type and embedded in training mode lose their types; in evaluation mode they "
    "keep them.",
    holds=more("evaluation mode", "training mode", by=0.05),
)
def mode(seed):
    _, cells, _, types = simulated(seed)
    order, found = np.argsort(types, kind="stable"), {}
    for name in ("training mode", "evaluation mode"):
        model = deepcopy(trained(seed)).train(name == "training mode")
        torch.manual_seed(0)
        with torch.no_grad():
            means = [model.encode(part)[0] for part in cells[order].split(100)]
        found[name] = metrics.average_silhouette_width(torch.cat(means).numpy(), types[order])
    return found


# --------------------------------------------------------------------------- sections 6 and 7: σ

LOSSES = {"mean + sum": 150.0, "mean + mean": 15.0, "sum + sum": 0.5, "sum + mean": 0.05}
LEVELS = (150.0, 15.0, 5.0, 2.0, 0.5, 0.05)


@claim(
    "E04.sigma",
    "At equal dropout, a learned σ gives a better held-out bound than each of the four σ that a "
    "squared error plus KL implies; with the mean of errors and the sum of KLs all dimensions "
    "collapse.",
    holds=every(
        *(more("learned", name, by=10) for name in LOSSES),
        near("rate of mean + sum", 0, 0.1),
    ),
    tolerance={"rate of mean + sum": 0.03},
)
def sigma(seed):
    found = {name: result(seed, sigma=value**0.5) for name, value in LOSSES.items()}
    bounds = {name: each["bound"] for name, each in found.items()}
    rate = found["mean + sum"]["rate"]
    return {"learned": result(seed)["bound"], **bounds, "rate of mean + sum": rate}


@claim(
    "E04.drowned",
    "At σ² = 15 a regression reads the factors from the means of z, but not from draws of z.",
    holds=every(more("means", "draws", by=0.3)),
    tolerance=0.2,
)
def drowned(seed):
    found = result(seed, sigma=15.0**0.5)
    return {"means": found["means"], "draws": found["draws"]}


@claim(
    "E04.water_level",
    "The rates of VAEs with a hidden layer follow the formula of the linear VAE: from σ² = 0.05 to "
    "150 they differ from it by less than 2 nats, while the rate goes from 26 to 0.",
    holds=every(*(near(f"σ² = {s:g}", 0, 2) for s in LEVELS)),
    tolerance=0.5,
)
def water_level(seed):
    x = simulated(seed)[1][:600]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)[:10].numpy()
    return {
        f"σ² = {s:g}": result(seed, sigma=s**0.5)["rate"]
        - 0.5 * np.log(np.maximum(eigenvalues / s, 1)).sum()
        for s in LEVELS
    }


@claim(
    "E04.edge",
    "The fifth eigenvalue of the data is about twice the Marchenko–Pastur edge of the learned noise "
    "or more; the sixth is within 15 % of the edge.",
    holds=every(more("fifth / edge", "sixth / edge", by=0.8), near("sixth / edge", 1, 0.15)),
    tolerance=0.05,
)
def edge(seed):
    x = simulated(seed)[1][:600]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = (2 * trained(seed).log_sigma.detach()).exp().median()
    level = noise * (1 + (x.shape[1] / len(x)) ** 0.5) ** 2
    fifth, sixth = (eigenvalues[4:6] / level).tolist()
    return {"fifth / edge": fifth, "sixth / edge": sixth}


@claim(
    "E04.noise_learned",
    "More epochs bring noise axes into use and lower the held-out bound; so does leaving out "
    "dropout, by less.",
    holds=every(
        more("used, 300 epochs", "used"),
        more("bound", "bound, 300 epochs", by=2),
        more("bound", "bound, no dropout"),
        more("bound, no dropout", "bound, 300 epochs"),
    ),
    tolerance={"used": 1, "used, 300 epochs": 2},
)
def noise_learned(seed):
    now, long = result(seed), result(seed, epochs=300)
    return {
        "used": now["used"],
        "used, 300 epochs": long["used"],
        "bound": now["bound"],
        "bound, 300 epochs": long["bound"],
        "bound, no dropout": result(seed, dropout_rate=0.0)["bound"],
    }


# --------------------------------------------------------------------------- section 8: collapse


def deep(seed, encoder, decoder, **settings):
    """Networks of any depth without batch normalisation, 80 epochs."""
    settings = {"normalization": None, "epochs": 80} | settings
    return result(seed, layers=(encoder, decoder), **settings)


@claim(
    "E04.depth",
    "Without batch normalisation, three hidden layers in both networks leave about two dimensions "
    "in use. One layer in the encoder, or in the decoder, gives more of them and a better bound; in "
    "the decoder it gives more.",
    holds=every(
        more("1 + 3", "3 + 3"),
        more("3 + 1", "3 + 3"),
        more("3 + 1", "1 + 3"),
        more("3 + 1", "1 + 1"),
        more("used, 1 + 3", "used, 3 + 3"),
        more("used, 3 + 1", "used, 1 + 3"),
        more("used, 1 + 1", "used, 3 + 1"),
    ),
    seeds=range(10),
    tolerance={f"used, {e} + {d}": 1 for e in (1, 3) for d in (1, 3)},
)
def depth(seed):
    found = {f"{e} + {d}": deep(seed, e, d) for e in (1, 3) for d in (1, 3)}
    bounds = {name: each["bound"] for name, each in found.items()}
    return bounds | {f"used, {name}": each["used"] for name, each in found.items()}


@claim(
    "E04.path",
    "With five layers in the decoder, or in the encoder, and one in the other network, fewer "
    "dimensions are used than with three, and the bound is lower.",
    holds=every(
        more("used, 1 + 3", "used, 1 + 5"),
        more("used, 3 + 1", "used, 5 + 1"),
        more("1 + 3", "1 + 5"),
        more("3 + 1", "5 + 1"),
    ),
    tolerance={f"used, {name}": 1 for name in ("1 + 3", "1 + 5", "3 + 1", "5 + 1")},
)
def path(seed):
    found = {f"{e} + {d}": deep(seed, e, d) for e, d in ((1, 3), (1, 5), (3, 1), (5, 1))}
    bounds = {name: each["bound"] for name, each in found.items()}
    return bounds | {f"used, {name}": each["used"] for name, each in found.items()}


@claim(
    "E04.tricks",
    "For the networks of three layers each, batch normalisation, warm-up and free bits improve the "
    "bound. A decoder of one layer improves it more than each of them; an encoder of one layer "
    "improves it too.",
    holds=every(
        more("batch norm", "no trick"),
        more("warm-up", "no trick"),
        more("free bits", "no trick"),
        more("encoder of 1", "no trick"),
        more("decoder of 1", "batch norm"),
        more("decoder of 1", "warm-up"),
        more("decoder of 1", "free bits"),
    ),
    seeds=range(10),
)
def tricks(seed):
    return {
        "no trick": deep(seed, 3, 3)["bound"],
        "batch norm": deep(seed, 3, 3, normalization="batch")["bound"],
        "free bits": deep(seed, 3, 3, loss=free_bits)["bound"],
        "warm-up": deep(seed, 3, 3, loss=warm_up)["bound"],
        "encoder of 1": deep(seed, 1, 3)["bound"],
        "decoder of 1": deep(seed, 3, 1)["bound"],
    }


@claim(
    "E04.floor",
    "With free bits all ten dimensions are active, and two or three are above 0.5 nats.",
    holds=every(near("active", 10, 0), near("used", 2.5, 0.5)),
    tolerance=1,
)
def floor(seed):
    found = deep(seed, 3, 3, loss=free_bits)
    return {"active": found["active"], "used": found["used"]}


@claim(
    "E04.longer",
    "Four times as many epochs do not bring the collapsed dimensions back: at most three are used, "
    "and the held-out bound is no better.",
    holds=every(near("used, 320 epochs", 2.5, 0.5), more("bound", "bound, 320 epochs")),
    tolerance={"used": 1, "used, 320 epochs": 1},
)
def longer(seed):
    now, long = deep(seed, 3, 3), deep(seed, 3, 3, epochs=320)
    return {
        "used": now["used"],
        "used, 320 epochs": long["used"],
        "bound": now["bound"],
        "bound, 320 epochs": long["bound"],
    }


@claim(
    "E04.optimiser",
    "With the optimiser of vaelab.fit (learning rate 2e-2, epsilon 0.15), 3 + 3 without batch "
    "normalisation collapses almost completely; a shallow encoder, a shallow decoder or batch "
    "normalisation prevents it.",
    holds=every(
        more("1 + 3", "3 + 3", by=5),
        more("3 + 1", "3 + 3", by=5),
        more("3 + 3, batch norm", "3 + 3", by=5),
        near("used, 3 + 3", 0.5, 0.5),
    ),
    tolerance={"1 + 3": 3, "3 + 1": 3, "3 + 3, batch norm": 3, "3 + 3": 10, "used, 3 + 3": 1},
)
def optimiser(seed):
    settings = {"learning_rate": 2e-2, "epsilon": 0.15}
    both = deep(seed, 3, 3, **settings)
    return {
        "1 + 3": deep(seed, 1, 3, **settings)["bound"],
        "3 + 1": deep(seed, 3, 1, **settings)["bound"],
        "3 + 3, batch norm": deep(seed, 3, 3, normalization="batch", **settings)["bound"],
        "3 + 3": both["bound"],
        "used, 3 + 3": both["used"],
    }


@claim(
    "E04.initialisation",
    "He's initialisation, which keeps the size of signals from layer to layer, does not prevent the "
    "collapse: the bound of 3 + 3 is lower with it.",
    holds=more("PyTorch's", "He's"),
    seeds=range(10),
    tolerance={"PyTorch's": 2, "He's": 10},
)
def initialisation(seed):
    return {"PyTorch's": deep(seed, 3, 3)["bound"], "He's": deep(seed, 3, 3, he=True)["bound"]}


# ------------------------------------------------------------------- sections 9 to 11: the choices


@claim(
    "E04.latent_size",
    "One or two latent dimensions cost many nats of the held-out bound; 16 in place of 4 cost "
    "little.",
    holds=every(more("4", "2", by=2), more("2", "1", by=2), near("16 − 4", 0, 3)),
)
def latent_size(seed):
    bounds = {str(n): result(seed, n_latent=n, epochs=50)["bound"] for n in (1, 2, 4, 8, 16)}
    return bounds | {"16 − 4": bounds["16"] - bounds["4"]}


@claim(
    "E04.width",
    "With 600 cells, a width of 256 spends more nats than a width of 64, and its held-out bound is "
    "lower. So is that of a width of 4.",
    holds=every(
        more("64", "256", by=3), more("64", "4", by=3), more("rate of 256", "rate of 64", by=1)
    ),
)
def width(seed):
    found = {w: result(seed, n_latent=8, n_hidden=w, epochs=50) for w in (4, 16, 64, 256)}
    bounds = {str(w): each["bound"] for w, each in found.items()}
    return bounds | {f"rate of {w}": found[w]["rate"] for w in (64, 256)}


@claim(
    "E04.poisson_rate",
    "With the same counts and networks, a Poisson likelihood spends more than twice the nats of a "
    "negative binomial.",
    holds=more("Poisson", "2 × negative binomial"),
)
def poisson_rate(seed):
    counts, *_ = simulated(seed)
    cells = vaelab.Cells.from_array(counts)
    seen, unseen = cells[np.arange(600)], cells[np.arange(600, 700)]
    found = {}
    for name in ("poisson", "nb"):
        with doubles(), torch.no_grad():
            model = vaelab.VAE(300, n_hidden=64, likelihood=name, seed=seed)
            vaelab.fit(model, seen, epochs=60, seed=seed, progress=False)
            q = model.encode(unseen.to(dtype=torch.float64))
            found[name] = kl_divergence(q, model.prior()).mean(0).sum().item()
    nb = found["nb"]
    return {"Poisson": found["poisson"], "negative binomial": nb, "2 × negative binomial": 2 * nb}


@cache
def generated(seed):
    """Zeros, and cells between types, of draws from the prior, of their means, and of q."""
    observed, cells = pbmc()
    with doubles(), torch.no_grad():
        model, dense = pbmc_model(seed)[0], cells.to(dtype=torch.float64)
        torch.manual_seed(seed)
        p = model.decode(model.prior().sample((700,)), dense)
        sets = {"prior": p.sample().numpy(), "means": p.mean.numpy()}
        sets["cells"] = model.decode(model.encode(dense).sample(), dense).sample().numpy()
    kinds = pd.Series(cells.labels).replace(r"CD[48]\+.*", "T cell", regex=True).to_numpy()
    log = {k: np.log1p(1e4 * v / v.sum(1, keepdims=True)) for k, v in sets.items()}
    real = np.log1p(1e4 * observed / observed.sum(1, keepdims=True))
    pca = PCA(20, random_state=0).fit(real)
    search, between = NearestNeighbors(n_neighbors=11).fit(pca.transform(real)), {}
    for name, points in {**log, "real": real}.items():
        _, nearest = search.kneighbors(pca.transform(points))
        nearest = nearest[:, 1:] if name == "real" else nearest[:, :10]
        most = [np.unique(row, return_counts=True)[1].max() for row in kinds[nearest]]
        between[name] = float(np.mean(np.array(most) < 7))
    zeros = {name: float((v == 0).mean()) for name, v in {**sets, "real": observed}.items()}
    spread = pca.transform(log["cells"])[:, 1].std() / pca.transform(real)[:, 1].std()
    return zeros, between, float(spread)


@claim(
    "E04.zeros",
    "Cells drawn from p(x|z) have nearly as many zeros as real cells; means have none.",
    holds=every(near("drawn − real", 0, 0.06), near("means", 0, 0.001)),
    tolerance=0.01,
)
def zeros(seed):
    found = generated(seed)[0]
    drawn, real = found["prior"], found["real"]
    return {"real": real, "drawn": drawn, "drawn − real": drawn - real, "means": found["means"]}


@claim(
    "E04.holes",
    "A quarter of the cells made from the prior lie between types: three times as many as of cells "
    "made from the q of real cells, which do so about as often as real cells.",
    holds=every(
        more("prior", "q of real cells", by=0.1),
        near("q of real cells", 0.075, 0.025),
        near("real cells", 0.06, 0.005),
    ),
    tolerance=0.03,
)
def holes(seed):
    found = generated(seed)[1]
    return {
        "prior": found["prior"],
        "q of real cells": found["cells"],
        "real cells": found["real"],
    }


@claim(
    "E04.inwards",
    "Along the second principal component, new cells at the places of real cells spread less than "
    "real cells. So do real cells that the components were not fitted to.",
    holds=every(near("new cells", 0.93, 0.06), near("unseen real cells", 0.92, 0.06)),
    tolerance=0.03,
)
def inwards(seed):
    real = pbmc()[0]
    real = np.log1p(1e4 * real / real.sum(1, keepdims=True))
    order = np.random.default_rng(seed).permutation(len(real))
    seen, unseen = real[order[:350]], real[order[350:]]
    pca = PCA(20, random_state=0).fit(seen)
    spread = [pca.transform(part)[:, 1].std() for part in (unseen, seen)]
    return {"new cells": generated(seed)[2], "unseen real cells": float(spread[0] / spread[1])}
