"""Evidence for lesson 05: what each claim rests on. Run with ``vaelab evidence 05``."""

from functools import cache

import torch

import vaelab
from vaelab.distributions import NegativeBinomial, Poisson, ZeroInflated
from vaelab.teaching.evidence import claim, every, more, near

PRICE = 2.92  # ½ log 343 nats, what BIC asks for one parameter


@cache
def beta_cells():
    """Counts (343, n_genes) in float64, and the names of the genes."""
    adata = vaelab.datasets.pancreas(mouse=1)
    beta = adata[adata.obs["cell_type"] == "beta"]
    return torch.as_tensor(beta.X.toarray(), dtype=torch.float64), list(beta.var_names)


def depth_of(counts):
    return counts.sum(1) / counts.sum(1).mean()


def some_cells(seed: int, n_cells: int):
    """Indices of beta cells drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(beta_cells()[0]), generator=generator)[:n_cells]


def distribution(name, depth, log_mean, log_theta, logits):
    mean = depth[:, None] * log_mean.exp()
    base = NegativeBinomial(mean, log_theta.exp()) if "nb" in name else Poisson(mean)
    return ZeroInflated(base, logits) if name.startswith("z") else base


def fit(name, x, depth, steps=120):
    """Maximum likelihood of each gene, as in the lesson: log-likelihoods and parameters."""
    log_mean = (x.sum(0) / depth.sum()).log()
    parameters = [log_mean, torch.zeros_like(log_mean), torch.full_like(log_mean, -4.0)]
    parameters = [p.requires_grad_() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        log_likelihood = distribution(name, depth, *parameters).log_prob(x).sum(0)
        (-log_likelihood.sum()).backward()
        optimizer.step()
        schedule.step()
    return log_likelihood.detach(), [p.detach() for p in parameters]


def gain_of_dropout(x, depth):
    return (fit("zinb", x, depth)[0] - fit("nb", x, depth)[0]).clamp(min=0)


def frequent():
    """Counts of the 351 genes with a mean of 1 or more, and the depth of the cells."""
    counts, _ = beta_cells()
    return counts[:, counts.mean(0) >= 1], depth_of(counts)


@claim(
    "E05.zeros_of_the_table",
    "Of the zeros of all genes in beta cells, Poissons expect all but two in a hundred, and NBs "
    "with one θ as many as there are, give or take half a point.",
    holds=every(near("nb_minus_observed", 0, 0.005), more("observed", "poisson", by=0.01)),
)
def zeros_of_the_table(seed: int) -> dict[str, float]:
    """Half of the cells, drawn at random; θ is chosen by the likelihood of the other half."""
    counts, _ = beta_cells()
    order = some_cells(seed, len(counts))
    other, here = counts[order[: len(order) // 2]], counts[order[len(order) // 2 :]]

    def means(x):
        return depth_of(x)[:, None] * x.mean(0)

    seen, thetas = other.sum(0) > 0, torch.logspace(-1, 1, 21, dtype=torch.float64)
    fits = [
        NegativeBinomial(means(other)[:, seen], theta).log_prob(other[:, seen]).sum()
        for theta in thetas
    ]
    nb = NegativeBinomial(means(here), thetas[torch.stack(fits).argmax()])
    observed = (here == 0).double().mean().item()
    return {
        "observed": observed,
        "poisson": Poisson(means(here)).log_prob_zero().exp().mean().item(),
        "nb_minus_observed": nb.log_prob_zero().exp().mean().item() - observed,
    }


@claim(
    "E05.zeros_of_frequent_genes",
    "For genes with a mean of 1 or more, fitted one by one, a Poisson misses about a third of the "
    "zeros and an NB about one in thirty.",
    holds=every(near("poisson_misses", 0.34, 0.06), near("nb_misses", 0.03, 0.03)),
)
def zeros_of_frequent_genes(seed: int) -> dict[str, float]:
    """Half of the cells, drawn at random."""
    x, depth = frequent()
    cells = some_cells(seed, len(x) // 2)
    x, depth = x[cells], depth[cells]
    observed = (x == 0).double().mean()
    missed = {}
    for name in ["poisson", "nb"]:
        zeros = distribution(name, depth, *fit(name, x, depth)[1]).log_prob_zero().exp().mean()
        missed[f"{name}_misses"] = (1 - zeros / observed).item()
    return missed


@claim(
    "E05.genes_that_pay",
    "Of 351 genes, 28 gain more from a dropout than a parameter costs; among counts drawn from their "
    "fitted NBs, about four do.",
    holds=every(more("real", "by_chance", by=20), near("by_chance", 4, 5)),
)
def genes_that_pay(seed: int) -> dict[str, float]:
    x, depth = frequent()
    drawn_from = distribution("nb", depth, *fit("nb", x, depth)[1])
    torch.manual_seed(seed)
    drawn = drawn_from.sample()
    return {
        "real": float((gain_of_dropout(x, depth) > PRICE).sum()),
        "by_chance": float((gain_of_dropout(drawn, depth) > PRICE).sum()),
    }


@claim(
    "E05.groups_not_dropout",
    "For Xist a dropout gains far less among the 265 beta cells with nuclear RNA (Meg3 or Neat1) "
    "than among 265 beta cells drawn at random.",
    holds=more("among_random_cells", "among_cells_with_nuclear_rna", by=20),
)
def groups_not_dropout(seed: int) -> dict[str, float]:
    counts, names = beta_cells()
    gene = {name: counts[:, names.index(name)] for name in ["Xist", "Meg3", "Neat1"]}
    with_nuclear = 1e4 * (gene["Meg3"] + gene["Neat1"]) / counts.sum(1) > 5
    xist, depth = gene["Xist"][:, None], depth_of(counts)
    drawn = some_cells(seed, int(with_nuclear.sum()))
    return {
        "among_random_cells": gain_of_dropout(xist[drawn], depth[drawn]).item(),
        "among_cells_with_nuclear_rna": gain_of_dropout(
            xist[with_nuclear], depth[with_nuclear]
        ).item(),
    }


@claim(
    "E05.denoising",
    "As a prediction of a second count, the posterior mean E[λ|x] beats the mean μ, and μ beats the "
    "published E[u|x].",
    holds=every(more("posterior_mean", "mean"), more("mean", "as_published")),
)
def denoising(seed: int) -> dict[str, float]:
    """NB with μ = 8 and θ = 0.5; nats per count."""
    mean, theta = torch.tensor(8.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    torch.manual_seed(seed)
    rate = mean * torch.distributions.Gamma(theta, theta).sample((100_000,))
    first, second = torch.poisson(rate), torch.poisson(rate)
    shrunk = (first + theta) / (mean + theta)
    guesses = {"posterior_mean": mean * shrunk, "mean": mean, "as_published": shrunk}
    return {
        name: Poisson(guess.expand(len(second))).log_prob(second).mean().item()
        for name, guess in guesses.items()
    }
