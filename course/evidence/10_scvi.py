"""Evidence for lesson 10: what each claim rests on. Run with ``vaelab evidence 10``.

The bounds and zeros are those of the 500 most variable genes of the mice, which makes a training
four times shorter. Mixing is that of 2,000 genes, because most genes that differ between the mice
are not among the first 500.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import scanpy as sc
import torch
from scipy import stats
from sklearn.metrics import homogeneity_score
from sklearn.neighbors import NearestNeighbors
from torch.distributions import kl_divergence

import vaelab
from vaelab import distributions, metrics
from vaelab.networks import evaluating
from vaelab.reparametrization import seeded
from vaelab.teaching.evidence import claim, every, more

WAYS = {  # trainings of an SCVI on the mice
    "blind": {"likelihood": "nb"},
    "simplified": {"likelihood": "nb"},
    "dropout": {"likelihood": "zinb"},
    "latent": {"likelihood": "nb", "library": "latent"},
    "full": {"likelihood": "zinb", "library": "latent"},
}
STUCK = {"likelihood_learning_rate": 1e-3}  # the default is 0.1
MIXTURE = ("mixing", "iLISI", "own type")
CLUSTERS = ("ARI", "ARI without beta", "beta pairs together", "purity")


# ---------------------------------------------------------------------------- scores of a space


def mixing(z, batch, cell_type, k=15):
    """Neighbours from another batch over what chance would give, within types of over k cells."""
    found, by_chance = [], []
    for name in np.unique(cell_type):
        own = cell_type == name
        if own.sum() > k:
            near = neighbours(z[own], k)[0]
            other = batch[own][:, None] != batch[own]
            found.append(np.take_along_axis(other, near, axis=1).mean(1))
            by_chance.append(other.sum(1) / (own.sum() - 1))
    return np.concatenate(found).mean() / np.concatenate(by_chance).mean()


def neighbours(z, k):
    """The k nearest other cells of each cell, and their distances."""
    distance, near = NearestNeighbors(n_neighbors=k).fit(z).kneighbors()
    return near, distance


def ilisi(z, batch, perplexity=30):
    """Mean number of batches in a neighbourhood, as LISI counts them: 1 to the number of batches.

    A neighbour's weight is exp(−β d) with the β that gives the weights this perplexity, as in
    Korsunsky et al. (2019). The inverse Simpson index of the weighted batches is the number.
    """
    near, distance = neighbours(z, 3 * perplexity)
    distance = distance - distance[:, :1]
    low, high = np.full(len(z), -20.0), np.full(len(z), 20.0)  # of log β
    for _ in range(60):
        middle = (low + high) / 2
        weight = np.exp(-np.exp(middle)[:, None] * distance)
        weight /= weight.sum(1, keepdims=True)
        wide = stats.entropy(weight, axis=1) > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    shares = [(weight * (batch[near] == b)).sum(1) for b in np.unique(batch)]
    return (1 / np.square(shares).sum(0)).mean()


def strangers(z, batch, cell_type, k=15):
    """Percent of neighbours of another type: in the cell's own batch, and in another."""
    near = neighbours(z, k)[0]
    wrong, other = cell_type[near] != cell_type[:, None], batch[near] != batch[:, None]
    return 100 * (wrong & ~other).mean(), 100 * (wrong & other).mean()


# ------------------------------------------------------------------------------- other methods


def components(values, n=30):
    return sc.pp.pca(np.asarray(values), n_comps=n, random_state=0)


def centred(z, batch):
    """Each batch's mean taken off."""
    z = z.copy()
    for b in np.unique(batch):
        z[batch == b] -= z[batch == b].mean(0)
    return z


def combat(adata, batch):
    """ComBat on log-normalised values, then principal components."""
    values = adata.layers["log_normalized"].toarray().astype(float)
    one = sc.AnnData(values, obs={"batch": batch})
    with np.errstate(divide="ignore"):  # a gene may be absent from one batch
        return components(sc.pp.combat(one, key="batch", inplace=False))


def harmony(z, batch, seed=0, sigma=0.1, theta=2.0, ridge=1.0):
    """Harmony (Korsunsky et al. 2019): soft clusters in which the batches mix, moved together.

    The defaults are those of its authors' package. On the mice, the scores of harmonypy 2.1.0 and
    of this function differ by less than 0.05 in mixing and 0.01 in iLISI.
    """
    rng = np.random.default_rng(seed)
    design = (batch[:, None] == np.unique(batch)).astype(float)  # (n_cells, n_batches)
    share, n = design.mean(0), len(z)
    n_clusters = int(min(round(n / 30), 100))
    moved = z
    for round_ in range(10):
        before = moved
        unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        if round_ == 0:
            of = metrics.kmeans(unit, n_clusters, seed)
            centres = np.array([unit[of == c].mean(0) for c in range(n_clusters)])
            centres /= np.linalg.norm(centres, axis=1, keepdims=True)
            r = np.exp(-2 * (1 - unit @ centres.T) / sigma)
            r /= r.sum(1, keepdims=True)
        for _ in range(20):
            centres = r.T @ unit
            centres /= np.linalg.norm(centres, axis=1, keepdims=True)
            near = np.exp(-2 * (1 - unit @ centres.T) / sigma)
            expected, observed, last = np.outer(r.sum(0), share), r.T @ design, r.copy()
            for block in np.array_split(rng.permutation(n), 20):
                expected -= np.outer(r[block].sum(0), share)
                observed -= r[block].T @ design[block]
                rare = ((expected + 1) / (observed + 1)) ** theta  # few cells of the batch so far
                r[block] = near[block] * (design[block] @ rare.T)
                r[block] /= r[block].sum(1, keepdims=True)
                expected += np.outer(r[block].sum(0), share)
                observed += r[block].T @ design[block]
            if np.abs(r - last).mean() < 1e-4:
                break
        moved, x = z.copy(), np.column_stack([np.ones(n), design])
        for c in range(n_clusters):  # a ridge regression on the batch in each cluster
            weighted = x * r[:, [c]]
            penalty = ridge * np.diag([0.0] + [1.0] * design.shape[1])
            shift = np.linalg.solve(weighted.T @ x + penalty, weighted.T @ z)
            shift[0] = 0
            moved -= weighted @ shift
        if np.linalg.norm(moved - before) < 1e-3 * np.linalg.norm(z):
            break
    return moved


# ------------------------------------------------------------------------------------ the mice


@cache
def mice(n_genes):
    adata = vaelab.select_genes(vaelab.datasets.pancreas("both"), n_genes=n_genes)
    return adata, *(adata.obs[c].to_numpy().astype(str) for c in ("batch", "cell_type"))


def fitted(adata, seed, batch="batch", fit=(), **options):
    cells = vaelab.Cells.from_anndata(adata, batch=batch)
    n_batches = len(cells.batch_names)
    model = vaelab.SCVI(cells.n_genes, n_batches=n_batches, seed=seed, **options)
    history = vaelab.fit(model, cells, seed=seed, progress=False, **dict(fit))
    return model, cells, max(record["held_out_bound"] for record in history.records)


@cache
def trained(way, seed, stuck=False, n_genes=500):
    batch = None if way == "blind" else "batch"
    return fitted(mice(n_genes)[0], seed, batch, STUCK if stuck else {}, **WAYS[way])


@claim(
    "E10.mixed",
    "A model that receives the mouse mixes the mice more than one that does not.",
    holds=every(
        more("mixing, told", "mixing, not told"),
        more("mixing, not told", "mixing, PCA"),
    ),
)
def mixed(seed: int) -> dict[str, float]:
    return {k: v for k, v in spaces_of_mice(seed).items() if k.split(", ")[0] in MIXTURE}


@cache
def spaces_of_mice(seed):
    adata, batch, cell_type = mice(2000)
    pca = components(adata.layers["log_normalized"].toarray())
    spaces = {"PCA": pca, "centred": centred(pca, batch), "ComBat": combat(adata, batch)}
    spaces["Harmony"] = harmony(pca, batch, seed)
    for name, way in {"not told": "blind", "told": "simplified"}.items():
        model, cells, _ = trained(way, seed, n_genes=2000)
        spaces[name] = model.embed(cells)
    types, n = np.unique(cell_type, return_counts=True)
    scored = np.isin(cell_type, types[n >= 5])
    found, beta = {}, cell_type[scored] == "beta"
    for name, z in spaces.items():
        clusters = metrics.kmeans(z[scored], (n >= 5).sum(), seed)
        of_beta = np.bincount(clusters[beta]) / beta.sum()
        found |= {
            f"mixing, {name}": mixing(z, batch, cell_type),
            f"iLISI, {name}": ilisi(z, batch),
            f"own type, {name}": 100 - sum(strangers(z, batch, cell_type)),
            f"ARI, {name}": metrics.adjusted_rand_index(cell_type[scored], clusters),
            f"ARI without beta, {name}": metrics.adjusted_rand_index(
                cell_type[scored][~beta], clusters[~beta]
            ),
            f"beta pairs together, {name}": (of_beta**2).sum(),
            f"purity, {name}": homogeneity_score(cell_type[scored], clusters),
        }
    shuffled, rng = batch.copy(), np.random.default_rng(seed)
    for name in types:  # a space in which the mice differ in nothing but their types
        shuffled[cell_type == name] = rng.permutation(batch[cell_type == name])
    return found | {"iLISI, mice shuffled within types": ilisi(spaces["told"], shuffled)}


@claim(
    "E10.split",
    "k-means finds the types less well in the latent space than in 30 principal components, and "
    "puts fewer pairs of beta cells into one cluster.",
    holds=every(
        more("ARI, PCA", "ARI, told"),
        more("beta pairs together, PCA", "beta pairs together, told"),
    ),
)
def split(seed: int) -> dict[str, float]:
    return {k: v for k, v in spaces_of_mice(seed).items() if k.split(", ")[0] in CLUSTERS}


def unconditional(model, part, prior, seed):
    """The bound on log p(x | γ) of any of the models: ℓ integrated out on a grid of 101 values.

    For each draw of z, ∫ p(x | z, ℓ, γ) p(ℓ | γ) dℓ is a sum over log ℓ, from e^−2.5 to e^2.5 times
    the total. So no q(ℓ | x) and no announced total is needed, and all models answer one question.
    """
    around = torch.linspace(-2.5, 2.5, 101)[:, None]
    log_ℓ = part.library.log() + around  # (101, n_cells)
    log_weight = prior.log_prob(log_ℓ) + (around[1] - around[0]).log()
    at = replace(part, library=log_ℓ.exp())
    with evaluating(model), seeded(seed):
        q, inside = model.encode(part), []
        for _ in range(3):
            z = q.sample().expand(len(around), -1, -1)
            log_px = model.decode(z, at).log_prob(part.x).sum(-1)  # (101, n_cells)
            inside.append((log_px + log_weight).logsumexp(0))
        kl_z = kl_divergence(q, model.prior()).sum(-1)
    return float((torch.stack(inside).mean(0) - kl_z).mean())


@claim(
    "E10.parts",
    "With ℓ integrated out of all models, dropout raises the bound, and more than a latent ℓ does. "
    "Announcing the total costs over two nats too much.",
    holds=every(
        more("dropout, integrated", "simplified, integrated"),
        more("dropout, integrated", "latent, integrated"),
        more("simplified, integrated", "simplified, announced", by=2),
    ),
)
def parts(seed: int) -> dict[str, float]:
    ways = ("simplified", "dropout", "latent")
    found = {way: trained(way, seed)[2] for way in ways}
    model, cells, _ = trained("latent", seed)
    shuffled = np.random.default_rng(seed).permutation(len(cells))  # as fit splits them
    held_out = cells[np.sort(shuffled[: round(0.1 * len(cells))])]
    part = held_out.to(model.device, model.dtype)
    prior = model.prior_log_library(part.batch)
    total = part.library.log()
    found["price"] = float(-(prior.log_prob(total) - total).mean())
    for way in ways:
        found[f"{way}, integrated"] = unconditional(trained(way, seed)[0], part, prior, seed)
    return found | {"simplified, announced": found["simplified"] - found["price"]}


def moved(p, log_θ):
    """The distribution with another θ for each gene."""
    nb = getattr(p, "base", p)
    θ = log_θ.clamp(-12, 12).exp().expand_as(nb.mean)
    new = distributions.NegativeBinomial(nb.mean, θ, validate_args=False)
    return new if nb is p else distributions.ZeroInflated(new, p.logits, validate_args=False)


def checked(model, cells, seed):
    """What moving θ alone would gain, θ of a typical gene, and zeros too many."""
    part = cells.to(model.device, model.dtype)
    with evaluating(model), seeded(seed):
        p = model.decode(model.encode(part).sample(), model.infer_library(part, draw=True))
    log_θ = getattr(p, "base", p).inverse_dispersion[0].log().clone().requires_grad_()
    start = log_θ.detach().clone()
    optimizer = torch.optim.Adam([log_θ], lr=0.3)
    for _ in range(30):
        optimizer.zero_grad()
        (-moved(p, log_θ).log_prob(part.x).sum() / len(cells)).backward()
        optimizer.step()
    log_θ = log_θ.detach()
    x, mean = part.x.numpy(), part.x.numpy().mean(0)
    best = moved(p, log_θ)
    with seeded(seed):
        tables = {"": p.sample().numpy(), " at best θ": best.sample().numpy()}
    many = (mean >= 1) & (mean < 30)
    found = {"gain": float((best.log_prob(part.x) - p.log_prob(part.x)).sum(-1).mean())}
    found["farthest log θ"] = float(np.quantile(start.abs(), 0.95))
    for name, table in tables.items():
        excess = 100 * ((table == 0).mean(0) - (x == 0).mean(0))
        found[f"zeros{name}"] = np.median(excess[many])
    return found


@claim(
    "E10.stuck",
    "If θ learns a hundred times more slowly, moving it alone gains more in both models.",
    holds=every(
        more("gain, full, slow", "gain, full"),
        more("gain, simplified, slow", "gain, simplified"),
    ),
)
def stuck(seed: int) -> dict[str, float]:
    found = {}
    for way in ("simplified", "full"):
        for words, slow in (("", False), (", slow", True)):
            model, cells, bound = trained(way, seed, True) if slow else trained(way, seed)
            numbers = checked(model, cells, seed) | {"bound": bound}
            found |= {f"{name}, {way}{words}": n for name, n in numbers.items()}
    return found


# ------------------------------------------------------------------------------ simulated cells


@cache
def simulated(seed):
    sim = vaelab.simulate.dataset(
        800, 200, n_batches=2, batch_effect=0.5, separation=1.5, seed=seed
    )
    return sim, *(sim.obs[c].to_numpy().astype(str) for c in ("batch", "cell_type"))


def designs(batch, cell_type):
    first = batch == "batch 1"
    return {
        "all shared": np.ones(len(batch), dtype=bool),
        "one shared": np.where(first, cell_type <= "type 3", cell_type >= "type 3"),
        "none shared": np.where(first, cell_type <= "type 2", cell_type >= "type 3"),
    }


@cache
def fit_simulated(seed, design, told="batch"):
    sim, batch, cell_type = simulated(seed)
    some = sim[designs(batch, cell_type)[design]].copy()
    some.obs["coin"] = np.random.default_rng(seed).choice(["heads", "tails"], len(some))
    small = {"n_latent": 5, "n_hidden": 64, "likelihood": "nb"}
    model, cells, _ = fitted(some, seed, told, **small)
    return model, cells, some


@claim(
    "E10.overcorrected",
    "With no type in both batches, a model that receives the batch puts more cells next to "
    "another type of the other batch than one that receives a coin, or nothing.",
    holds=every(
        more("other batch, told", "other batch, not told", by=2),
        more("other batch, told", "other batch, told a coin", by=2),
    ),
    seeds=range(10, 15),
)
def overcorrected(seed: int) -> dict[str, float]:
    found = {}
    for words, told in (("told", "batch"), ("not told", None), ("told a coin", "coin")):
        model, cells, some = fit_simulated(seed, "none shared", told)
        batch, kind = (some.obs[c].to_numpy().astype(str) for c in ("batch", "cell_type"))
        z = model.embed(cells)
        own, other = strangers(z, batch, kind)
        found |= {f"own batch, {words}": own, f"other batch, {words}": other}
        found[f"ARI, {words}"] = metrics.adjusted_rand_index(kind, metrics.kmeans(z, 5, seed))
    found["own batch, truth"], found["other batch, truth"] = strangers(some.obsm["z"], batch, kind)
    return found


@claim(
    "E10.switched",
    "The decoder recovers the change of the batch if all types are shared; if none is, it adds "
    "the difference between the types.",
    holds=every(
        more("error, none shared", "error, all shared"),
        more("error, none shared", "error, one shared"),
        more("by types, none shared", "by types, one shared"),
    ),
    seeds=range(10, 15),
)
def switched(seed: int) -> dict[str, float]:
    sim, batch, cell_type = simulated(seed)
    log_ρ = np.log(sim.layers["mean"] / sim.obs["library"].to_numpy()[:, None])
    from_z = sim.obsm["z"] @ sim.varm["W"].T / np.sqrt(5)
    rest = log_ρ - from_z
    rest -= rest.mean(1, keepdims=True)
    first = batch == "batch 1"
    true = rest[~first].mean(0) - rest[first].mean(0)
    found = {}
    for name, keep in designs(batch, cell_type).items():
        model, cells, _ = fit_simulated(seed, name)
        log_share = [
            np.log(model.normalized_expression(cells, batch=b, n_samples=5))
            for b in ("batch 1", "batch 2")
        ]
        change = (log_share[1] - log_share[0]).mean(0)
        change -= change.mean()
        found[f"error, {name}"] = np.sqrt(np.mean((change - true) ** 2))
        if name != "all shared":  # there, the mixture of types is the same in both batches
            types = from_z[keep & ~first].mean(0) - from_z[keep & first].mean(0)
            causes = np.stack([true, types], axis=1)
            weights = np.linalg.lstsq(causes - causes.mean(0), change, rcond=None)[0]
            found[f"by batch, {name}"], found[f"by types, {name}"] = weights
    return found


# ---------------------------------------------------------------------------- human and mouse


@cache
def species():
    adata = vaelab.datasets.pancreas_species()
    return adata, *(adata.obs[c].to_numpy().astype(str) for c in ("batch", "cell_type"))


@claim(
    "E10.apart",
    "If human and mouse share no type, what corrects for the species puts cells next to another "
    "type of the other species.",
    holds=every(
        more("other species, told", "other species, not told"),
        more("other species, Harmony", "other species, PCA"),
    ),
)
def apart(seed: int) -> dict[str, float]:
    adata, batch, cell_type = species()
    keep_apart = np.where(
        batch == "human",
        np.isin(cell_type, ["beta", "macrophage"]),
        np.isin(cell_type, ["alpha", "delta", "activated_stellate"]),
    )
    found = {}
    for design, keep in (("shared", np.ones(len(adata), dtype=bool)), ("", keep_apart)):
        some = vaelab.select_genes(adata[keep].copy(), n_genes=500)
        b, t = batch[keep], cell_type[keep]
        pca = components(some.layers["log_normalized"].toarray(), 20)
        spaces = {"PCA": pca, "centred": centred(pca, b), "Harmony": harmony(pca, b, seed)}
        for name, told in (("not told", None), ("told", "batch")):
            model, cells, _ = fitted(some, seed, told, likelihood="nb")
            spaces[name] = model.embed(cells)
        for name, z in spaces.items():
            if design == "shared":
                found[f"mixing, {name}"] = mixing(z, b, t)
                found[f"own type, {name}"] = 100 - sum(strangers(z, b, t))
            else:
                found[f"own species, {name}"], found[f"other species, {name}"] = strangers(z, b, t)
    return found
