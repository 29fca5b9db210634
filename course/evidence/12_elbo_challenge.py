"""Evidence for lesson 12: what each claim rests on. Run with ``vaelab evidence 12``.

``own_guess``, ``terms``, ``loss`` and ``train`` are the lesson's own; a test compares them.
"""

from dataclasses import replace
from functools import cache

import anndata
import numpy as np
import torch
from scipy.special import softmax
from torch.distributions import kl_divergence
from torch.nn.functional import cross_entropy, one_hot

import vaelab
from vaelab.reparametrization import gaussian, seeded
from vaelab.teaching.evidence import claim, every, more

SEEDS = range(10)
SMALL = range(1, 6)  # the small world's settings were chosen with seed 0


def own_guess(tables, steps=300):
    """U with normals q(z1) and q(log ℓ) of this cell's own, and these two as log-tables."""
    log_q_c, log_q_z2 = tables["log_q_c"][0, :, :, 0], tables["log_q_z2"][0]
    of_z2 = (log_q_z2.exp() * (tables["log_p_z1"] + tables["log_p_z2"] - log_q_z2)[0]).sum(-1)
    of_c = (log_q_c.exp() * (of_z2 + tables["log_p_c"][0, :, :, 0] - log_q_c)).sum(-1)  # (n_z1,)
    of_x = (tables["log_p_x"] + tables["log_p_library"])[:, :, 0, 0]  # (n_l, n_z1)
    starts = [tables["log_q_library"][:, 0, 0, 0], tables["log_q_z1"][0, :, 0, 0]]
    index = [torch.arange(len(s)).double() for s in starts]
    m = [(s.exp() @ i).requires_grad_() for s, i in zip(starts, index, strict=True)]
    log_s = [(s.exp() @ (i - at.detach()) ** 2).sqrt().log().requires_grad_()
             for s, i, at in zip(starts, index, m, strict=True)]  # fmt: skip
    optimizer = torch.optim.Adam([{"params": m, "lr": 0.2}, {"params": log_s, "lr": 0.05}])
    best = -np.inf, None
    for _ in range(steps):
        q_l, q_1 = (
            (-(((i - at) / s.exp()) ** 2) / 2).log_softmax(0)
            for i, at, s in zip(index, m, log_s, strict=True)
        )
        u = q_1.exp() @ (of_c - q_1) + q_l.exp() @ (of_x @ q_1.exp() - q_l)
        if u.item() > best[0]:
            best = u.item(), (q_l.detach(), q_1.detach())
        optimizer.zero_grad()
        (-u).backward()
        optimizer.step()
    return best


@cache
def small_world(seed, free_first=True):
    """The lesson's small world, simulated again: model, cells, types, and who is at work."""
    rng = np.random.default_rng(seed)
    kind, at_work = rng.integers(3, size=300), rng.random(300) < 0.5
    place = 4.0 * (kind - 1.0) + np.where(at_work, 1.5, -1.5) + 0.25 * rng.standard_normal(300)
    logits = rng.standard_normal(12) + 0.5 * place[:, None] * rng.standard_normal(12)
    mean = 300 * np.exp(0.3 * rng.standard_normal((300, 1))) * softmax(logits, axis=1)
    counts = rng.poisson(mean * rng.gamma(50.0, 1 / 50, size=mean.shape))
    adata = anndata.AnnData(
        counts.astype(np.float32), obs={"type": [f"type {k + 1}" for k in kind]}
    )
    adata.obs["seen"] = adata.obs["type"].where(np.arange(300) % 3 == 0, "unknown")
    cells = vaelab.Cells.from_anndata(adata, label="seen", unlabelled="unknown").to()
    model = vaelab.SCANVI(
        n_genes=12, n_labels=3, n_latent=1, n_hidden=16, library="latent", likelihood="nb",
        normalization=None, dropout_rate=0.0, prior_c=[0.3, 0.3, 0.4], classifier_weight=5.0,
        seed=seed,
    )  # fmt: skip
    model.prepare(cells)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    with seeded(seed):
        for step in range(400):
            bound = model.elbo(cells)
            free = (1 - min(1, step / 200)) * free_first
            optimizer.zero_grad()
            (bound.loss() - free * bound["kl_z2"].mean()).backward()
            optimizer.step()
    return model.double().eval(), cells, kind, at_work


def log_step(grid):
    return (grid[1] - grid[0]).log()


@torch.no_grad()
def tables_of(model, cell):
    """What ``own_guess`` needs, and log p(x), as in the lesson."""
    z1, z2 = torch.linspace(-12, 12, 241).double(), torch.linspace(-8, 8, 65).double()
    types, n_1, n_2 = torch.eye(3).double(), len(z1), len(z2)
    q_l = model.encode_log_library(cell)
    around = torch.cat([q_l.mean, cell.x.sum(-1).log()])
    log_l = torch.linspace(around.min().item() - 1.2, around.max().item() + 1.2, 51).double()
    p_z1 = model.decode_z1(z2[:, None, None].expand(-1, 3, 1), types.expand(n_2, 3, 3))
    q_z2 = model.encode_z2(z1[:, None, None].expand(-1, 3, 1), types.expand(n_1, 3, 3), cell)
    at_each_l = replace(cell, library=log_l.exp()[:, None].expand(-1, n_1))
    p_x = model.decode(z1[:, None].expand(len(log_l), -1, 1), at_each_l)
    p_l = model.prior_log_library(cell.batch)
    return {
        "log_p_x": p_x.log_prob(cell.x).sum(-1)[:, :, None, None],
        "log_p_library": (p_l.log_prob(log_l) + log_step(log_l))[:, None, None, None],
        "log_p_z1": p_z1.log_prob(z1[:, None, None, None])[..., 0].mT[None] + log_step(z1),
        "log_p_c": model.log_prior_c.double()[None, None, :, None],
        "log_p_z2": (model.prior().log_prob(z2) + log_step(z2))[None, None, None],
        "log_q_z1": (model.encode(cell).log_prob(z1)[0] + log_step(z1))[None, :, None, None],
        "log_q_library": (q_l.log_prob(log_l) + log_step(log_l))[:, None, None, None],
        "log_q_c": model.classify(z1[:, None])[None, :, :, None],
        "log_q_z2": (q_z2.log_prob(z2) + log_step(z2))[None],
    }


@claim(
    "E12.amortisation",
    "In the small world, more than half of the gap of U is the encoder's guess: it goes if q(z1) "
    "and q(ℓ) are fitted to each cell.",
    holds=more("half of the gap", "gap, a guess of its own"),
    seeds=SMALL,
)
def amortisation(seed: int) -> dict[str, float]:
    model, cells, *_ = small_world(seed)
    gaps = []
    for number in range(20):
        cell = replace(cells[number].to(dtype=torch.float64), label=torch.tensor([-1]))
        tables = tables_of(model, cell)
        log_p = sum(v for k, v in tables.items() if k.startswith("log_p"))
        log_q = sum(v for k, v in tables.items() if k.startswith("log_q"))
        evidence = float(log_p.logsumexp((0, 1, 2, 3)))
        u = float((log_q.exp() * (log_p - log_q)).sum())
        gaps.append((evidence - u, evidence - own_guess(tables)[0]))
    gap, own = np.mean(gaps, axis=0)
    return {
        "gap, the encoder's guess": float(gap),
        "gap, a guess of its own": float(own),
        "half of the gap": float(gap / 2),
    }


@claim(
    "E12.z2",
    "In the small world z2 collapses if its KL is charged from the start, and not if it is free "
    "at first.",
    holds=more("KL of z2, free at first", "KL of z2, charged", by=0.5),
    seeds=SMALL,
)
def z2(seed: int) -> dict[str, float]:
    found = {}
    for name, free_first in (("free at first", True), ("charged", False)):
        model, cells, kind, at_work = small_world(seed, free_first)
        with torch.no_grad(), seeded(0):
            bound = model.elbo(cells.unlabelled().to(dtype=torch.float64), n_samples=10)
        found[f"KL of z2, {name}"] = float(bound["kl_z2"].mean())
        found[f"U, {name}"] = float(bound.per_cell().mean())
    model, cells, kind, at_work = small_world(seed)
    means = model.embed(cells, of="z2")[:, 0]
    order = [
        (means[(kind == k) & at_work][:, None] > means[(kind == k) & ~at_work]).mean()
        for k in range(3)
    ]
    found["AUROC of the state, from z2"] = float(np.mean([max(a, 1 - a) for a in order]))
    return found


def terms(model, cells, label):
    """The terms of L (label ≥ 0) and U (label −1) without their signs, and log q(c|z1)."""
    n, C = len(cells), model.configuration["n_labels"]
    q_z1 = model.encode(cells)
    z1 = gaussian(q_z1.mean, q_z1.stddev)  # (n, n_latent)
    log_q_c = model.classify(z1)  # (n, C)
    is_seen = (label >= 0)[:, None]
    omega = torch.where(is_seen, one_hot(label.clamp(min=0), C).to(z1), log_q_c.exp())
    log_omega = torch.where(is_seen, 0.0, log_q_c)  # a gradient would not survive log 0

    c, each_z1 = torch.eye(C)[:, None].expand(-1, n, -1), z1.expand(C, -1, -1)
    q_z2 = model.encode_z2(each_z1, c, cells)
    z2 = gaussian(q_z2.mean, q_z2.stddev)  # (C, n, n_latent)
    log_p_z1 = model.decode_z1(z2, c).log_prob(each_z1).sum(-1)  # (C, n)
    kl_z2 = kl_divergence(q_z2, model.prior()).sum(-1)  # (C, n)
    return {
        "reconstruction": model.decode(z1, cells).log_prob(cells.x).sum(-1),
        "log_q_z1": q_z1.log_prob(z1).sum(-1),
        "log_p_z1": (omega * log_p_z1.T).sum(-1),
        "kl_z2": (omega * kl_z2.T).sum(-1),
        "kl_c": (omega * (log_omega - model.log_prior_c)).sum(-1),
    }, log_q_c


SIGN = {"reconstruction": +1, "log_q_z1": -1, "log_p_z1": +1, "kl_z2": -1, "kl_c": -1}


def loss(
    model, cells, truth, kl_weight=1.0, weight=50.0, *,
    train_L=True, leak=False, softmax_twice=False, z1_warms_up=True, mean_over_labelled=True,
):  # fmt: skip
    """−bound + weight · cross-entropy, a mean over cells; ``truth`` is for the leak."""
    label = truth if leak else cells.label if train_L else torch.full_like(cells.label, -1)
    by_name, log_q_c = terms(model, cells, label)
    always = {"reconstruction"} if z1_warms_up else {"reconstruction", "log_q_z1", "log_p_z1"}
    weights = {name: 1 if name in always else kl_weight for name in by_name}
    bound = sum(SIGN[name] * weights[name] * value for name, value in by_name.items())
    is_seen = cells.label >= 0
    scores = log_q_c.exp() if softmax_twice else log_q_c  # cross_entropy takes a log-softmax
    of_seen = cross_entropy(scores[is_seen], cells.label[is_seen], reduction="sum")
    per = is_seen.sum() if mean_over_labelled else len(cells)
    return -bound.mean() + weight * of_seen / per


def train(model, cells, truth, steps=150, warm_up=0.3, watch=None, seed=0, **switches):
    """Adam on all cells at once; the KL weight rises over a share of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with seeded(seed):
        for step in range(steps):
            kl_weight = min(1.0, step / (warm_up * steps)) if warm_up else 0.0
            value = loss(model, cells, truth, kl_weight, **switches)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if watch is not None and step % 5 == 0:
                with torch.no_grad():
                    by_name, _ = terms(model, cells, cells.label)
                watch.append({"step": step} | {k: float(v.mean()) for k, v in by_name.items()})
    return model.eval()


@cache
def world(seed):
    """The lesson's kind of cells, simulated again for each seed: cells, true types, labelled."""
    adata = vaelab.simulate.dataset(
        n_cells=300, n_genes=30, n_types=5, n_batches=2, n_factors=4, library=150, seed=100 + seed
    )
    is_seen = np.random.default_rng(seed).random(adata.n_obs) < 1 / 8
    adata.obs["seen"] = adata.obs["cell_type"].astype(str).where(is_seen, "unknown")
    cells = vaelab.Cells.from_anndata(adata, label="seen", batch="batch", unlabelled="unknown")
    names = {name: i for i, name in enumerate(cells.label_names)}
    truth = torch.tensor([names[name] for name in adata.obs["cell_type"]])
    return cells.to(), truth, is_seen


def new_model(seed, **options):
    return vaelab.SCANVI(
        n_genes=30, n_labels=5, n_batches=2, n_latent=3, n_hidden=32, likelihood="nb",
        normalization=None, dropout_rate=0.0, seed=seed, **options,
    )  # fmt: skip


WAYS = {
    "derived": {},
    "U for all": {"train_L": False},
    "hidden labels": {"leak": True},
    "softmax twice": {"softmax_twice": True},
    "weight 1": {"weight": 1.0, "mean_over_labelled": False},
    "batch in q": {},
}


@cache
def fitted(way, seed):
    """U, accuracy and certainty on the unlabelled cells; and what averaging over z1 changes."""
    cells, truth, is_seen = world(seed)
    model = new_model(seed, encode_batch=way == "batch in q")
    train(model, cells, truth, seed=seed, **WAYS[way])
    at_mean = model.predict(cells)[~is_seen]
    averaged = model.predict(cells, n_samples=100)[~is_seen]
    with torch.no_grad(), seeded(0):
        u = model.elbo(cells.unlabelled(), n_samples=10).per_cell().mean().item()
    is_right = at_mean.argmax(1) == truth.numpy()[~is_seen]
    return {
        "U": u,
        "accuracy": is_right.mean(),
        "certainty": at_mean.max(1).mean(),
        "certainty averaged": averaged.max(1).mean(),
        "same name": (at_mean.argmax(1) == averaged.argmax(1)).mean(),
    }


def of_all(quantity, seed):
    return {way: float(fitted(way, seed)[quantity]) for way in WAYS}


@claim(
    "E12.accuracy",
    "U for every cell, hidden labels in L, and two softmaxes change the accuracy by less than "
    "0.05; the weight of a label changes it by more.",
    holds=every(
        *(
            more(a, b, by=-0.05)
            for way in ("U for all", "hidden labels", "softmax twice")
            for a, b in ((way, "derived"), ("derived", way))
        ),
        more("weight 1", "derived", by=0.05),
    ),
    seeds=SEEDS,
)
def accuracy(seed: int) -> dict[str, float]:
    return of_all("accuracy", seed)


@claim(
    "E12.bound",
    "A weight of 1 per label in place of 50 N over N_l raises U.",
    holds=more("weight 1", "derived", by=1.0),
    seeds=SEEDS,
)
def bound(seed: int) -> dict[str, float]:
    return of_all("U", seed)


@claim(
    "E12.certainty",
    "With the released weight a model is more certain than right; with a weight of 1, less so.",
    holds=more("excess, weight 50", "excess, weight 1", by=0.1),
    seeds=SEEDS,
)
def certainty(seed: int) -> dict[str, float]:
    found = {}
    for name, way in (("weight 50", "derived"), ("weight 1", "weight 1")):
        of_way = fitted(way, seed)
        found[f"certainty, {name}"] = of_way["certainty"]
        found[f"excess, {name}"] = of_way["certainty"] - of_way["accuracy"]
    return {name: float(value) for name, value in found.items()}


@claim(
    "E12.averaging",
    "At the mean of q(z1|x) the classifier is more certain than on average over q(z1|x).",
    holds=more("at the mean", "averaged"),
    seeds=SEEDS,
)
def averaging(seed: int) -> dict[str, float]:
    of_way = fitted("weight 1", seed)
    return {
        "at the mean": float(of_way["certainty"]),
        "averaged": float(of_way["certainty averaged"]),
        "same name": float(of_way["same name"]),
    }


@claim(
    "E12.warm_up",
    "With the weight of the KLs at 0, the z1 term is a gain, and the reported reconstruction loss "
    "is below minus log p(x|z1).",
    holds=more("minus log p(x|z1)", "reported"),
)
def warm_up(seed: int) -> dict[str, float]:
    cells, truth, _ = world(seed)
    watch = []
    train(new_model(seed), cells, truth, warm_up=0, watch=watch, seed=seed, z1_warms_up=False)
    last = {k: np.mean([frame[k] for frame in watch[-6:]]) for k in watch[0]}
    z1_term = last["log_p_z1"] - last["log_q_z1"]
    return {
        "minus log p(x|z1)": float(-last["reconstruction"]),
        "reported": float(-last["reconstruction"] - z1_term),
        "z1 term": float(z1_term),
        "KL of z2": float(last["kl_z2"]),
    }
