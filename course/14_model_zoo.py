# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: vaelab
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   vaelab:
#     data:
#     - pancreas
#     - pbmc_sorted
# ---

# %% [markdown]
# # 14 · One box changes at a time
#
# You read a new paper. It has a new name, a new figure with many boxes, and a table in which the new
# model wins. You know the parts by now: a prior, a likelihood, an encoder, a bound. Most models of the
# field are the VAE of lesson 04 with **one box changed**. This lesson takes eight of them, builds each
# on a page, and tries the claim of its paper. **Which box changes, what does it cost in the bound, and
# when is it worth it?**
#
# **Objectives.** After this lesson you can
#
# - name the box in which a new model differs from one that you know, and write its bound;
# - write a prior that is a mixture of posteriors, a decoder that follows gene sets, a bound for cells
#   with and without labels, and a likelihood with a background;
# - test the claim of a paper on your own data: one change, several seeds, a tuned baseline;
# - compose a model that no paper has, and check its bound by a number.
#
# **You need** [lesson 08](08_gmvae_pbmc.ipynb) (a mixture as prior), [lesson 09](09_missing_data.ipynb)
# (masks), [lesson 10](10_scvi.ipynb) (batches) and [lesson 13](13_scanvi.ipynb) (labels). **Time:** about
# 165 minutes in two parts: 75 up to the stop after section 5, and 90 after it. **Data:** 6 MB, ten
# populations of blood and two mice; one part uses simulated proteins, and says so.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ipywidgets import FloatSlider

import vaelab
from vaelab import distributions, plotting
from vaelab.models import zoo
from vaelab.plotting import BLACK, BLUE, ORANGE, SKY
from vaelab.reparametrization import gaussian, seeded
from vaelab.teaching import evidence

torch.set_num_threads(1)
measured = evidence.read("14")  # what was measured over seeds, one table for each claim

# %% [markdown]
# ## 1 · Eight graphs, one skeleton
#
# Here are nine graphs: that of the VAE of lesson 04, and those of the eight models of this lesson.
# Circles are variables, grey if observed, half grey if observed for some cells. A frame says for what
# they are repeated: once for each cell, each gene, and so on. Solid arrows are the model, dashed
# arrows the encoder.
#
# | symbol | meaning |
# |---|---|
# | $x_g$, $y_t$ | count of gene $g$, count of protein $t$ |
# | $z$; in FairVAE $z_1$, $z_2$ | latent space; its two layers (lesson 13) |
# | $\ell$, $\gamma$ | library size, batch |
# | $y$, $c$ | a cluster in ScVAE, a type in M2; the type in FairVAE |
# | $u_k$, $d_g$, $\beta_t$ | a pseudo-cell, a drop to zero, a background: see sections 2, 7 and 9 |

# %%
models = [
    vaelab.VAE,
    zoo.VampVAE,
    zoo.ScVAE,
    zoo.M2,
    zoo.FairVAE,
    zoo.VEGA,
    zoo.VASC,
    zoo.SISUALike,
    zoo.TotalVILike,
]
size = {"figsize": (9.5, 10.5), "height_ratios": [3, 4, 3]}
fig, axes = plt.subplots(3, 3, layout="constrained", **size)
for ax, model in zip(axes.flat, models, strict=True):
    plotting.graphical_model(model.graph, ax=ax)
    ax.set_title(model.__name__)
plotting.show(
    "Nine graphs, the first that of the VAE. In all of them a latent variable z points to the "
    "counts. VampVAE adds pseudo-cells, ScVAE and M2 a discrete y, FairVAE two layers and a batch, "
    "VEGA gene sets, VASC a drop, and the last two models proteins, one of them with a background."
)

# %% [markdown]
# They look different, and are made of the same boxes. In **bold** is what a model changes. The rest
# of its row follows from that, or comes from an earlier lesson:
#
# | model | prior | likelihood | what is observed | constraint or extra | source |
# |---|---|---|---|---|---|
# | VAE (04) | $\mathcal N(0, I)$ | NB | counts | | Kingma & Welling |
# | VampVAE | **mixture of posteriors** | NB | counts | | Tomczak & Welling; Dony et al. |
# | ScVAE | mixture of clusters (08) | NB | counts | **free nats** | Grønbech et al. |
# | M2 | **$p(y)\,\mathcal N(0, I)$** | NB, receives $y$ | counts, **some labels** | cross-entropy (13) | Kingma et al. |
# | FairVAE | two layers, as SCANVI | NB, receives the batch | counts, batch, some labels | **MMD between batches** | Louizos et al. |
# | VEGA | $\mathcal N(0, I)$ | NB, **linear, masked by gene sets** | counts | | Seninge et al. |
# | VASC | $\mathcal N(0, I)$ | **a drop that depends on the level** | values in [0, 1] | | Wang & Gu |
# | SISUALike | $\mathcal N(0, I)$ | NB, **and NB for proteins** | counts, **some proteins** | the encoder reads RNA only | Trong et al. |
# | TotalVILike | $\mathcal N(0, I)$, **background $\beta$** | NB, **and two NBs for proteins** | counts, proteins | | Gayoso et al. |
#
# "Like" means: the idea of the paper in our parts, not a copy of its code. Each class has at most 60
# lines in `vaelab/models/zoo/`; the rest is inherited. All are trained by `vaelab.fit`, saved, loaded
# and scored like the models that you know, and have a ledger.
#
# **The rule of this lesson.** A paper's claim is tried by changing *its* box and nothing else, over five
# seeds, against a baseline that was tuned as well. What a paper showed on its data may still be true
# there; we say what we saw here.

# %% [markdown]
# ## 2 · The prior: VampVAE
#
# A standard normal is a prior that nobody believes in. The bound pulls each $q(z \mid x)$ towards it,
# and the encoder gives up dimensions to pay less (lesson 04). Which prior would be best for the bound?
# Average the bound over the cells, and the prior appears only in
# $\mathbb E_{x}\,\mathbb E_{q(z \mid x)}[\log p(z)]$. That is minus a cross-entropy, which is smallest
# between equal distributions. So the best $p(z)$ is the average of all posteriors,
# $\frac1N \sum_n q(z \mid x_n)$: the **aggregated posterior**. But then the prior has a
# component for every cell, is slow, and learns the cells by heart. Tomczak & Welling (2018) keep the
# idea and take $K$ **pseudo-cells** $u_k$, which are parameters:
#
# $$p(z) = \frac1K \sum_{k=1}^K q(z \mid u_k)$$
#
# They call it VampPrior, for "variational mixture of posteriors". Dony et al. (2020) use it with an NB
# for single cells. A mixture has no KL in closed form, so that the bound keeps its two parts:
#
# $$\log p(x) \ge \mathbb E_q[\log p(x \mid z)] - \mathbb E_q[\log q(z \mid x)] + \mathbb E_q\Big[\log \frac1K \sum_k q(z \mid u_k)\Big]$$
#
# ### Exercise 14.1 · A prior made of posteriors
# ★★☆ · 8 minutes · 2 points
#
# Write `log_prior(z, mean, std)`: $\log p(z)$ for each row of `z`, shape `(n, D)`, if the $K$ posteriors of
# the pseudo-cells have the rows of `mean` and `std`, shape `(K, D)`. It returns a tensor of shape `(n,)`.
# Points may lie so far from all components that each density is 0 in floating point.
#
# <details><summary>Hint</summary>One component gives all dimensions of z. So sum over the dimensions
# first, then combine the components: <code>torch.logsumexp</code> adds numbers whose logs you
# have.</details>


# %% nbgrader={"grade_id": "14-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def log_prior(z, mean, std):
    ### BEGIN SOLUTION
    each = torch.distributions.Normal(mean, std).log_prob(z[:, None])  # (n, K, D)
    return each.sum(-1).logsumexp(1) - np.log(len(mean))
    ### END SOLUTION


# %% nbgrader={"grade_id": "14-1-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("14.1", log_prior)

# %% [markdown]
# Now train it. The data are every third cell of the ten populations of blood (lesson 08), 300 genes.

# %%
adata = vaelab.select_genes(vaelab.datasets.pbmc_sorted()[::3], n_genes=300)
blood = vaelab.Cells.from_anndata(adata, layer="counts")
tube = adata.obs["cell_type"].to_numpy(dtype=str)
short = {"epochs": 25, "seed": 0, "validation_fraction": 0, "progress": False}
vae = vaelab.VAE(blood.n_genes, likelihood="nb", n_latent=2, seed=0)
vamp = zoo.VampVAE(blood.n_genes, n_latent=2, n_pseudo=50, seed=0)
for model in (vae, vamp):
    vaelab.fit(model, blood, **short)
with torch.no_grad():
    some = blood[:5].to()
    z = vamp.encode(some).mean
    pseudo = vamp.prior().component_distribution.base_dist
    ours = log_prior(z, pseudo.mean, pseudo.stddev)
    print(
        "your log p(z) agrees with the model's:",
        torch.allclose(ours, vamp.prior().log_prob(z), atol=1e-4),
    )
vamp.elbo(some).ledger()[["sign", "symbol", "source"]]

# %% [markdown]
# **Predict first.** Below are the cells in both latent spaces, and the prior as lines of equal density.
# What will the prior of the VampVAE look like?
# <details><summary>Answer</summary>It follows the cells: the prior is high where cells are, and low
# in the gaps. N(0, I) is one round hill.</details>

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.4, 4.2), layout="constrained")
for ax, model, name in zip(
    axes, (vae, vamp), ("VAE: N(0, I)", "VampVAE: 50 pseudo-cells"), strict=True
):
    latent = model.embed(blood)
    plotting.embedding(latent, adata.obs["coarse_type"].to_numpy(dtype=str), ax=ax, names="clouds")
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    grid = np.stack(np.meshgrid(np.linspace(x0, x1, 120), np.linspace(y0, y1, 120)), -1)
    with torch.no_grad():
        density = model.prior().log_prob(torch.tensor(grid, dtype=torch.float32))
    density = density.sum(-1) if density.ndim == 3 else density
    ax.contour(
        *grid.transpose(2, 0, 1),
        density,
        levels=np.arange(-12, 1, 2),
        colors=BLACK,
        linewidths=0.7,
        linestyles="solid",
    )
    ax.set(title=name, xlabel="z, dimension 1", ylabel="z, dimension 2", aspect="equal")
plotting.show(
    "Cells in two latent spaces with lines of equal prior density. The VAE's lines are circles around "
    "0; those of the VampVAE follow the groups of cells."
)

# %% [markdown]
# **The claim.** A model with two layers of $z$ and this prior "learns significantly better models", and
# avoids useless latent dimensions (Tomczak & Welling 2018, abstract). We change the prior alone, so our
# model has one layer. We train with ten dimensions, and look at cells that were not trained on. For
# $\log p(x)$ we use the importance-weighted bound with 100 draws (lesson 09).
#
# Over five seeds ([E14.vamp](evidence/14_model_zoo.py)), $\log p(x)$ per cell is −63.4 ± 1.5 nats with
# $\mathcal N(0, I)$ and −62.5 ± 1.5 with the VampPrior. Most of this spread is between test cells: the
# VampPrior is better with every seed. All ten dimensions are in use, where the VAE uses 8.6 ± 1.5. So the
# claim holds here, and the gain of 0.9 nats is small. The ten clusters of lesson 08, as a prior, come
# within 0.2 nats of it. The clusters that k-means finds in $z$ do not get better: ARI 0.57 ± 0.04 for the
# VAE, 0.56 ± 0.08 for the VampVAE, and 0.64 ± 0.03 for the GMVAE.
#
# **Use it when** you draw new cells from the prior, or score cells by $\log p(x)$, and have enough cells
# for $K$ pseudo-cells. If you only embed cells, it changes little.

# %% [markdown]
# ## 3 · The loss: ScVAE
#
# scVAE (Grønbech et al. 2020) is the GMVAE of lesson 08, for counts. There we met its disease: trained
# with the sum over clusters, some clusters end up empty, because $\mathrm{KL}(q(y \mid x)\,\|\,p(y))$ is
# smallest for a $q$ that does not choose. scVAE has an option against it, **free nats**: the first nats
# of this KL cost nothing,
#
# $$\text{loss} = -\text{reconstruction} + \mathrm{KL}_z + \max\big(\mathrm{KL}_y,\ \lambda\big), \qquad \lambda = \text{share} \cdot \log K$$
#
# where $\mathrm{KL}_y$ is the mean over the minibatch. Below $\lambda$ its gradient is 0. The graph does
# not change, and neither does the bound: this box is the *loss*. In the ledger it is a term that is
# trained and not part of the bound:

# %%
scvae = zoo.ScVAE(blood.n_genes, n_clusters=10, free_nats=0.8, likelihood="nb", seed=0)
scvae.elbo(some).ledger()[["sign", "symbol", "weight", "source"]]

# %% [markdown]
# **Predict first.** A larger share pays for more decisive $q(y \mid x)$. Will more clusters be in use,
# and will they agree better with the tubes?
# <details><summary>Answer</summary>Fewer are in use, and they agree less.</details>

# %%
free = measured["E14.free_nats"]
fig, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for ax, (what, ylabel) in zip(
    axes,
    {"used": "clusters in use", "imbalance": "imbalance (nats)", "ARI": "ARI"}.items(),
    strict=True,
):
    columns = {"none free": free[f"{what}, none free"], "80 % free": free[f"{what}, 80 % free"]}
    plotting.seeds(ax, pd.DataFrame(columns), ylabel=ylabel)
plotting.show(
    "Five seeds without and with free nats. With them fewer clusters are in use, the clusters are more "
    "unequal, and they agree less with the tubes."
)

# %% [markdown]
# With 80 % of the nats free, 4.4 ± 0.9 clusters are in use instead of 7.2 ± 1.3, and the ARI is 0.41 ± 0.12
# instead of 0.56 ± 0.04 ([E14.free_nats](evidence/14_model_zoo.py)). Why? Lesson 08 took the mean of $\mathrm{KL}_y$ apart: it is
# *information* plus *imbalance*. Free nats make both free. The encoder may now choose, at no cost, and it
# may also give most cells to a few clusters: imbalance rises from 0.47 ± 0.12 to 0.95 ± 0.18 nats. We did not
# expect this when we wrote the class. The paper makes no claim for this option (its default is 0).
#
# **Use it when** you have seen that $q(y \mid x)$ does not choose. If clusters are empty, start from a first
# guess or draw $y$ (lesson 08).

# %% [markdown]
# ## 4 · What is observed: M2
#
# Some cells have a type, named by an expert. In M2 (Kingma et al. 2014) the decoder receives the type
# $y$ next to $z$. The box that changes is **what is observed**: $y$ is known for some cells, and is a
# latent variable for the others. So $z$ holds what the type does not say. If $y$ were known for all
# cells, this would be scVI with the type in place of the batch. Indeed our `zoo.M2` *is* an
# `SCVI` and a classifier $q(y \mid x)$, and nothing else.

# %%
plotting.graphical_model(zoo.M2.graph)
plotting.show("M2 as a graph: the type y, half shaded because some cells have it, z and the library "
              "size are parents of the genes. Dashed arrows: genes to y, genes and y to z.")  # fmt: skip

# %% [markdown]
# $$\log p(x) \ge \underbrace{\sum_y \omega_y\, \mathbb E_{q(z \mid x, y)}[\log p(x \mid y, z)]}_{\texttt{reconstruction}} - \underbrace{\sum_y \omega_y\, \mathrm{KL}(q(z \mid x, y) \,\|\, p(z))}_{\texttt{kl}_\texttt{z}} - \underbrace{\mathrm{KL}(\omega \,\|\, p(y))}_{\texttt{kl}_\texttt{y}}, \qquad \omega_y = q(y \mid x)$$
#
# This is for a cell without a label (the paper's equation 7). For a cell with a label, $\omega$ is 1 at
# its type and 0 elsewhere, and the bound is on $\log p(x, y)$ (equation 6). Nothing in these bounds
# trains $q(y \mid x)$ with a label. So equation 9 adds a term that is part of no bound: the
# cross-entropy $-\log q(y \mid x)$ of each labelled cell, times $\alpha$. The paper takes
# $\alpha = 0.1\,N$ for $N$ cells.
#
# ### Exercise 14.2 · The two bounds of M2
# ★★☆ · 12 minutes · 3 points
#
# Write `m2(braces, log_q, log_p, label, alpha)`. It returns two things: the bound of each cell, and the
# loss of the minibatch.
#
# - `braces`, of shape (cells, types), is $\mathbb E_{q(z \mid x, y)}[\log p(x \mid y, z)] -
#   \mathrm{KL}(q(z \mid x, y) \,\|\, p(z))$ for each cell and type;
# - `log_q` is $\log q(y \mid x)$, of the same shape, and `log_p` is $\log p(y)$, one number per type;
# - `label` has the number of each cell's type, and −1 for a cell without a label.
#
# The loss is minus the mean of the bound over all cells, plus $\alpha$ times the mean cross-entropy over
# all cells. A cell without a label has a cross-entropy of 0. All are torch tensors, except the number
# `alpha`.
#
# <details><summary>Hint</summary>Begin with a cell that has no label. Its bound is the mean over
# q(y | x) of "log of everything in p" minus "log of everything in q". Part of it is in the braces. What
# does y add to each side? For a labelled cell, which of the two sides has no y any more?</details>


# %% nbgrader={"grade_id": "14-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def m2(braces, log_q, log_p, label, alpha):
    """The bound of each cell, shape (n_cells,), and the loss of all."""
    ### BEGIN SOLUTION
    known, index = label >= 0, label.clamp(min=0)[:, None]
    with_label = (braces + log_p).gather(1, index)[:, 0]
    without = (log_q.exp() * (braces + log_p - log_q)).sum(1)
    bound = torch.where(known, with_label, without)
    cross_entropy = torch.where(known, -log_q.gather(1, index)[:, 0], 0.0)
    return bound, -bound.mean() + alpha * cross_entropy.mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "14-2-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("14.2", m2)

# %% [markdown]
# Now 500 sorted blood cells of five kinds (Zheng et al. 2017). Five cells of each kind have a label.
#
# **Predict first.** We train M2 twice: with $\alpha = 1$, so that a label weighs as much as the bound of
# a cell, and with $\alpha = 0.1\,N = 50$. With $\alpha = 1$, does M2 name as many cells rightly as with
# 50, a few fewer, or far fewer?
# <details><summary>Answer</summary>Far fewer. There are 475 cells without a label, and in their bound y
# is just a latent variable with five values. It may name anything that helps to reconstruct the counts.
# With α = 1 the 25 labels are too weak to say that it should be the type.</details>

# %% tolerance=50
tubes, rng = vaelab.datasets.pbmc_sorted(), np.random.default_rng(10)
kinds = tubes.obs["coarse_type"].to_numpy(dtype=str)
rows = [rng.choice(np.flatnonzero(kinds == k), 100, replace=False) for k in np.unique(kinds)]
tubes = vaelab.select_genes(tubes[np.sort(np.concatenate(rows))].copy(), n_genes=300)
kinds = tubes.obs["coarse_type"].to_numpy(dtype=str)
kept = [rng.choice(np.flatnonzero(kinds == k), 5, replace=False) for k in np.unique(kinds)]
has_label = np.isin(np.arange(len(kinds)), kept)
few = vaelab.Cells.from_array(tubes.layers["counts"], label=np.where(has_label, kinds, "unknown"),
                              unlabelled="unknown")  # fmt: skip
m2s = {}
for α in (1.0, 50.0):
    m2s[α] = zoo.M2(few.n_genes, n_labels=5, likelihood="nb", classifier_weight=α)
    vaelab.fit(m2s[α], few, epochs=25, validation_fraction=0, progress=False)
m2s[50.0].elbo(few.to()).ledger()[["sign", "symbol", "weight", "nats"]].round(1)

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.6), layout="constrained", sharey=True)
order = np.array(m2s[50.0].label_names)
for ax, (α, model) in zip(axes, m2s.items(), strict=True):
    p = model.predict(few)[~has_label]
    share = np.array([p[kinds[~has_label] == k].mean(0) for k in order])
    ax.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for i, j in np.ndindex(share.shape):
        ax.text(j, i, f"{share[i, j]:.2f}", ha="center", va="center", fontsize=8,
                color="white" if share[i, j] > 0.5 else "black")  # fmt: skip
    accuracy = (order[p.argmax(1)] == kinds[~has_label]).mean()
    ax.set_xticks(range(5), order, rotation=30, ha="right")
    ax.set(title=f"α = {α:g}: {accuracy:.0%} right", xlabel="type y")
axes[0].set_yticks(range(5), order)
axes[0].set_ylabel("sorted as")
plotting.show("Mean q(y | x) of the cells of each sorted kind. With weight 1 several kinds share one "
              "type and a kind is split over types; with weight 50 nearly all mass is on the "
              "diagonal.")  # fmt: skip

# %% [markdown]
# Over five seeds ([E14.m2_few_labels](evidence/14_model_zoo.py)), M2 with $\alpha = 0.1\,N$ names
# 95.7 ± 1.0 % of the cells rightly. With $\alpha = 1$ it is 57 ± 14 %. Trained on the 25 labelled cells
# alone it is 92.3 ± 1.1 %, so the other 475 cells do help, as the paper says (its section 4.1, on
# images). A tuned regression on principal components, which also come from all cells, reaches
# 92.8 ± 3.1 %. SCANVI with the same labels, 95.8 ± 0.8 %, is as good as M2.
#
# **Use it when** you have types for a few cells, want a probability for each type *and* new cells of a
# type, and can afford one decoder pass per type. Give the labels a weight that grows with the number of
# cells, and compare with regression. For batches, or a space in which the types lie side by side, take
# SCANVI: it is M2 with one more latent variable.

# %% [markdown]
# ## 5 · A constraint: FairVAE
#
# The decoder of scVI receives the batch, so $z$ need not contain it. Nothing *forbids* it, though. The
# variational fair autoencoder (Louizos et al. 2016) is SCANVI's two-layer model, with the batch as
# input of encoder and decoder, and one more term that forbids it. The batch is $s$ in the paper and in
# the formulas below, and $\gamma$ in our graph. The box that changes is a
# **constraint**: the distribution of $z_1$ must be the same in all batches. ("Fair", because in the paper
# $s$ may be a person's sex, and $z_1$ feeds a decision.)

# %%
plotting.graphical_model(zoo.FairVAE.graph)
plotting.show("The fair VAE as a graph: that of SCANVI, with a dashed arrow from the batch to z1 and an "
              "observed library size.")  # fmt: skip

# %% [markdown]
# $$\text{SCANVI's bound} \; - \; \lambda \underbrace{\left\| \mathbb E_{x \mid s=0}\, \mathbb E_{q(z_1 \mid x, s)}[\psi(z_1)] - \mathbb E_{x \mid s=1}\, \mathbb E_{q(z_1 \mid x, s)}[\psi(z_1)] \right\|^2}_{\texttt{mmd}}$$
#
# The second term is the **maximum mean discrepancy** (MMD; section 2.3 of the paper). The features
# $\psi(z)$ are 500 cosines of random directions of $z$; with infinitely many, two distributions have
# the same means only if they are equal. It is trained, but is part of no bound: in the ledger it is
# marked by its weight $\lambda$ (`mmd_weight`). The paper draws $z_1$ to estimate it. Since $q$ is
# Gaussian, our package uses the mean of a cosine in closed form.
#
# The paper's claim: with the penalty a classifier finds $s$ in $z_1$ less well, and the labels can
# still be predicted (sections 2.3 and 4). Our $s$ is the mouse: two mice of Baron et al. (2016), 279
# to 300 cells each, and only the cells of mouse 1 have names. Can the mouse still be seen in $z_1$? We take the
# beta cells alone. A logistic regression, tuned by cross-validation, and a random forest learn the mouse
# from $z_1$ of four fifths of these cells, and guess it for the last fifth, five times. An AUROC of 0.5 is
# chance. We compare $\lambda = 0$ with $\lambda = 30$.
#
# **Predict first.** Once the mice have equal numbers of each type. Once mouse 1 has 9 delta and 90
# ductal cells, and mouse 2 has 111 and 9. What does "the same distribution in both mice" ask for in the
# second case?
# <details><summary>Answer</summary>Something wrong. A space that shows the types must differ between
# these mice, because the mice differ. The penalty can be lowered only by placing some cells where
# those of another type are.</details>

# %%
told = {"equal": measured["E14.fair_equal"], "unequal": measured["E14.fair_skewed"]}
ylabels = {"beta": "AUROC of the mouse\nfrom z1 of beta cells",
           "delta": "share of delta cells\nof mouse 2 named rightly"}  # fmt: skip
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for ax, (score, ylabel) in zip(axes, ylabels.items(), strict=True):
    columns = {f"{mixture} {word}": frame[f"{score}_{word}"]
               for mixture, frame in told.items() for word in ("without", "with")}  # fmt: skip
    colours = dict(zip(columns, (SKY, BLUE, SKY, BLUE), strict=True))
    plotting.seeds(ax, pd.DataFrame(columns), ylabel=ylabel, colours=colours)
    ax.set_xticks(range(4), [name.replace(" ", ",\n") + " MMD" for name in columns])
axes[0].axhline(0.5, color="0.5", lw=1, ls=":")
plotting.show(
    "Five seeds each. With an equal mixture the penalty lowers the AUROC of the mouse; with an "
    "unequal mixture it does not, and fewer delta cells are named rightly."
)

# %% [markdown]
# With an equal mixture the claim holds ([E14.fair_equal](evidence/14_model_zoo.py)): the penalty lowers
# the AUROC of the regression from 0.84 ± 0.05 to 0.72 ± 0.08, and that of the random forest from
# 0.82 ± 0.03 to 0.71 ± 0.07. Both are still far from 0.5. Names do not suffer: 94 ± 3 % are right without
# the penalty, and 95 ± 2 % with it. With an unequal mixture it costs names
# ([E14.fair_skewed](evidence/14_model_zoo.py)): of the delta cells of mouse 2, 95.7 ± 0.4 % are named
# rightly without it, and 86.7 ± 4.8 % with it. The AUROC does not clearly change (0.91 ± 0.03, then
# 0.94 ± 0.09).
#
# **Use it when** batches are replicates with the same mixture of cells, and what you compute from $z_1$
# must not depend on the batch. Measure what is left with a classifier, within a type. Do not use it
# where a condition changes which cells there are: there the difference is biology.

# %% [markdown]
# **Stop here** if you work in two sessions. You have changed the prior, the loss, what is observed, and a
# constraint. What comes next changes the decoder and the likelihood, and ends with a model of your own.

# %% [markdown]
# ## 6 · The decoder: VEGA
#
# In a VAE, nobody knows what a latent dimension means. VEGA
# (Seninge et al. 2021) gives each dimension a name before training. The decoder is one linear layer
# without hidden units, and a mask $M$ of zeros and ones says which genes a dimension may move:
# $M_{gk} = 1$ if gene $g$ is in gene set $k$. Weights below zero are set to zero, so that a high $z_k$
# always means "this set is high". A few **free** dimensions, with a mask of ones, explain the rest.
#
# $$a = (W \circ M)\, z + b, \qquad \log p(x) \ge \underbrace{\mathbb E_q[\log p(x \mid a)]}_{\texttt{reconstruction}} - \underbrace{\mathrm{KL}(q(z \mid x)\,\|\,p(z))}_{\texttt{kl}_\texttt{z}}$$
#
# Here $\circ$ multiplies entry by entry. As in lesson 10, the softmax of $a$ gives each gene's share
# $\rho_g$ of the cell's molecules. The graph and the bound are those of the VAE. Only the arrow from
# $z_k$ to $x_g$ is missing where $M_{gk} = 0$.

# %%
plotting.graphical_model(zoo.VEGA.graph)
plotting.show("Graph of VEGA: one z for each cell and gene set, and the observed library size, point to "
              "the counts of the genes; a dashed arrow points back from the counts to z.")  # fmt: skip

# %% [markdown]
# Blood cells sorted by surface proteins have a known truth. We write down textbook markers of the five
# coarse types, and for each set a **decoy**: as many genes chosen at random. Nothing else tells the
# model what a B cell is.

# %%
MARKERS = {
    "B cell": ["CD19", "MS4A1", "CD79A", "CD79B"],
    "CD14+": ["CD14", "LYZ", "S100A8", "S100A9", "FCN1"],
    "NK cell": ["GNLY", "NKG7", "KLRD1", "KLRF1", "PRF1"],
    "CD34+": ["CD34", "SPINK2", "KIT", "GATA2"],
    "T cell": ["CD3D", "CD3E", "CD3G", "IL7R"],
}
tubes = vaelab.datasets.pbmc_sorted()
variable = vaelab.select_genes(tubes, n_genes=400).var_names
known = [gene for genes in MARKERS.values() for gene in genes]
tubes = tubes[:, [*dict.fromkeys([*variable, *known])]].copy()
cells, tube = vaelab.Cells.from_anndata(tubes), tubes.obs["coarse_type"].to_numpy(dtype=str)
rng = np.random.default_rng(0)
others = [gene for gene in cells.gene_names if gene not in known]
decoys = {f"decoy {k}": [*rng.choice(others, len(v), False)] for k, v in MARKERS.items()}

# %% [markdown]
# **Predict first.** We fit the model twice: with one free dimension, and with five. Nothing else
# changes. With five, is the bound on held-out cells better or worse? Do the marker sets find their
# tubes better or worse?
# <details><summary>Answer</summary>The bound is better, and the sets are worse. A free dimension can do
# all that a set can do, and more. The KL charges for each dimension in use, so the model moves the
# work to the free ones and switches the sets off.</details>

# %% tolerance=5
activities = {}
for n_free in (1, 5):
    model = zoo.VEGA.from_names(cells, MARKERS | decoys, n_free=n_free)
    vaelab.fit(model, cells, epochs=15, progress=False)
    activities[n_free] = model.activity(cells)

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", sharey=True)
for ax, (n_free, activity) in zip(axes, activities.items(), strict=True):
    mean = activity.groupby(tube).mean().loc[[*MARKERS], [*MARKERS, *decoys]]
    image = ax.imshow(mean.T, cmap="PuOr_r", vmin=-2, vmax=2, aspect="auto")
    ax.set(xticks=range(5), yticks=range(10), title=f"{n_free} free", xlabel="tube")
    ax.set_xticklabels(mean.index, rotation=30, ha="right")
    ax.set_yticklabels(mean.columns)
axes[0].set_ylabel("gene set")
fig.colorbar(image, ax=axes, label="mean activity E[z | x]")
plotting.show("Mean activity of ten gene sets in five tubes. With one free dimension the marker sets of "
              "B cells, monocytes, NK and T cells are high in their own tubes and the decoys are near "
              "zero. With five free dimensions only the sets of NK cells and, weakly, of monocytes "
              "are left.")  # fmt: skip

# %% [markdown]
# `model.differential_activity(cells, group)` asks the paper's question: for a random cell of the group
# and a random other cell, how probable is a higher $z_k$? The authors draw pairs of cells. Two normals
# have a normal difference, so that here the mean over all pairs is exact.
#
# The paper reports that its dimensions recover the response of cells to treatments, and cell types and
# states at the same time (abstract). On these cells, over five seeds ([E14.vega](evidence/14_model_zoo.py)):
#
# | | AUROC of the right set | marker sets on | decoys on | held-out bound |
# |---|---|---|---|---|
# | `scanpy.tl.score_genes` | 0.97 | | | |
# | VEGA, 1 free | 0.969 ± 0.017 | 4 ± 0 of 5 | 0.8 ± 0.8 of 5 | −101 ± 2 nats |
# | VEGA, 5 free | 0.81 ± 0.03 | 2.2 ± 0.8 of 5 | 0 ± 0 of 5 | −91 ± 2 nats |
#
# The AUROC says how well the activity of a set ranks the cells of its own tube above all others; it is a
# mean over the five sets. A set is *on* if the variance of its activity over cells is above 0.01 (lesson
# 04).
#
# So the named dimensions are as good as a score, and the decoys stay off, **only while the free
# dimensions are few**. A better bound does not mean a better reading of $z$.
#
# **Use it when** you want a generative model with named dimensions, and check that they are in use
# (`activity(cells).var()`). For a score of one gene set, `scanpy.tl.score_genes` takes a second.

# %% [markdown]
# ### Exercise 14.3 · What a pathway can move
# ★★☆ · 12 minutes · 3 points
#
# Write `log_shares(z, weight, mask, bias)`: $\log \rho$ of each gene in each cell, where $\rho$ is the
# softmax of $(W \circ M)\,z + b$ over genes. `z` is cells × sets, `weight` and `mask` (booleans) are genes
# × sets, and `bias` has one value per gene. Take the weights as they are: only the training sets those
# below zero to zero. The check also compares gradients: where the mask is False, none may reach the
# weight.
#
# <details><summary>Hint</summary>A gene in no set still has its base level. And a gene in set 1 must not
# notice set 2. So what has to be zero is neither a dimension nor a gene.</details>


# %% nbgrader={"grade_id": "14-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def log_shares(z, weight, mask, bias):
    """log ρ of each cell and gene."""
    ### BEGIN SOLUTION
    scores = z @ (weight * mask).T + bias
    return torch.log_softmax(scores, dim=-1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "14-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("14.3", log_shares)

# %% [markdown]
# ## 7 · The likelihood: VASC
#
# VASC (Wang & Gu 2018) reads values in $[0, 1]$: logarithms of counts, divided by the largest of the
# cell. Most of them are zero. So after the decoder's output $\hat y$, which is in $[0, 1]$ too, there
# is a **zero-inflation layer**, which drops it with probability $e^{-\hat y^2}$: small outputs are
# dropped more often. The paper draws this dropout, relaxed by the Gumbel trick (lesson 07).
#
# A dropout $d$ is one coin for each value, and it can be summed out as in the ZINB of lesson 05. We give
# the values that are not dropped a continuous Bernoulli density (CB, lesson 05). Under a density, a value
# of exactly zero has probability 0. So every zero is a dropout, and
#
# $$\log p(x \mid z) = \sum_{g:\,x_g = 0} -\hat y_g^2 + \sum_{g:\,x_g > 0} \Big[\log\big(1 - e^{-\hat y_g^2}\big) + \log \mathrm{CB}(x_g;\, \operatorname{logit} \hat y_g)\Big]$$
#
# $$\log p(x) \ge \underbrace{\mathbb E_q[\log p(x \mid z)]}_{\texttt{reconstruction}} - \underbrace{\mathrm{KL}(q(z \mid x)\,\|\,p(z))}_{\texttt{kl}_\texttt{z}}$$
#
# **Predict first.** $\hat y$ is at most 1. In what share of the cells, at most, can this model expect to
# see a gene?
# <details><summary>Answer</summary>$1 - e^{-1} = 63\,\%$. A gene that is seen in every cell does not fit
# into this layer, whatever the decoder does. A ZINB learns its dropout and has no such limit.</details>

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
plotting.graphical_model(zoo.VASC.graph, ax=left)
y = np.linspace(0, 1, 101)
right.plot(y, 1 - np.exp(-(y**2)), color=BLUE)
right.axhline(1 - np.exp(-1), color=BLACK, ls="--", lw=1)
right.set(xlabel="output ŷ of the decoder", ylabel="probability that x > 0", ylim=(0, 1))
plotting.show("Left: graph of VASC. z points to the dropout d and to x, and d points to x. Right: the "
              "probability of a value above zero rises with the output and ends at 0.63.")  # fmt: skip

# %% [markdown]
# The paper reports better results than four other methods on most of over 20 data sets, and says that
# VASC models the dropouts explicitly and finds nonlinear features (abstract). These are two reasons.
# To test the first, we change the layer alone: summed out, drawn as in the paper, or no layer. All
# else is equal: the weights at the start, the noise on the encoder's input, and the number of epochs.

# %% tolerance=5
islets = vaelab.select_genes(vaelab.datasets.pancreas(mouse=1), n_genes=400)
x = np.log1p(islets.X.toarray())
scaled = vaelab.Cells.from_array(x / x.max(1, keepdims=True), gene_names=islets.var_names)
cell_type = islets.obs["cell_type"].to_numpy(dtype=str)
maps = {}
for name, zero_layer in {"summed": "sum", "drawn": "gumbel", "no layer": None}.items():
    model = zoo.VASC(scaled.n_genes, zero_layer=zero_layer)
    vaelab.fit(model, scaled, epochs=12, validation_fraction=0.0, progress=False)
    maps[name] = model.embed(scaled)

look = plotting.look(["beta", "delta", "ductal", "endothelial", "quiescent_stellate"])  # largest
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.6), layout="constrained")
for ax, (name, z) in zip(axes, maps.items(), strict=True):
    for type_, style in look.items():
        ax.scatter(*z[cell_type == type_].T, s=9, lw=0, label=plotting.readable(type_), **style)
    ax.set(title=name, xlabel="z, dimension 1", ylabel="z, dimension 2")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False,
           markerscale=2)  # fmt: skip
plotting.show("Two latent dimensions of VASC three times, coloured by cell type: dropout summed out, "
              "drawn, and no zero layer.")  # fmt: skip

# %% [markdown]
# Over five seeds, with 40 epochs ([E14.vasc](evidence/14_model_zoo.py)):
#
# | k-means in two dimensions | ARI with the types |
# |---|---|
# | VASC, no layer | 0.63 ± 0.03 |
# | VASC, dropout summed out | 0.53 ± 0.06 |
# | VASC, dropout drawn, as in the paper | 0.47 ± 0.04 |
# | PCA of the same values | 0.42 ± 0.01 |
# | PCA of log-normalised counts | 0.55 ± 0.08 |
#
# On these cells the zero layer is not what helps. They have UMI counts, in which extra zeros hardly
# improve the bound of an NB (lesson 06). And the drawn layer has a second cost: the relaxed objective is
# not a bound. With its layer VASC is better than PCA of the same values, but not than PCA of counts that
# were normalised by the library size: a cell divided by its largest value is not normalised well.
#
# Do not compare the *bounds* with and without the layer. One gives each zero a probability, the other a
# density.
#
# **Use it when** you must work with values in $[0, 1]$ and have to state where the zeros come from. For
# counts, use a count likelihood.

# %% [markdown]
# ## 8 · A second measurement: SISUALike
#
# CITE-seq counts surface proteins in the same cells as RNA. Often only some experiments have them.
# In SISUA (Trong et al. 2020) one latent space explains both, and the encoder reads RNA only: so cells
# without proteins need no other encoder. The box that changes is the **likelihood**, of which there are
# now two. For the package, a second measurement is more columns of `x`. `observed` hides the proteins
# of cells that have none, and `impute` fills them.
#
# Our data are half real: the RNA of blood cells that Zheng et al. (2017) sorted by surface markers. We
# **simulate** the proteins from what each tube was sorted by. So we know which counts are more than
# background.

# %%
PANEL = pd.DataFrame.from_dict(
    {"progenitor": "CD34", "B cell": "CD19", "NK cell": "CD56", "monocyte": "CD14",
     "helper T": "CD3 CD4", "regulatory T": "CD3 CD4 CD25", "naive T": "CD3 CD4 CD45RA",
     "memory T": "CD3 CD4 CD45RO", "cytotoxic T": "CD3 CD8", "naive cytotoxic T": "CD3 CD8 CD45RA"},
    orient="index",
)[0].str.get_dummies(" ").astype(bool)  # fmt: skip
P, rng = PANEL.shape[1], np.random.default_rng(0)
rna = vaelab.datasets.pbmc_sorted()
rna = vaelab.select_genes(rna[rng.permutation(rna.n_obs)[:800]].copy(), n_genes=300)
cite = vaelab.simulate.cite_seq(rna, panel=PANEL)
without = rng.random(cite.n_obs) < 0.5  # these cells have RNA only
cite.layers["observed"] = np.ones(cite.shape, dtype=bool)
cite.layers["observed"][np.ix_(without, np.arange(cite.n_vars)[-P:])] = False
half = vaelab.Cells.from_anndata(cite, library="rna_total", observed="observed")
print(half, "of which", P, "are proteins")

# %%
plotting.graphical_model(zoo.SISUALike.graph)
plotting.show("SISUALike as a graph: one z per cell is the parent of the genes, which also depend on "
              "the library size, and of the proteins, which are observed in some of the cells. The "
              "dashed arrow to z comes from the genes alone.")  # fmt: skip

# %% [markdown]
# $$\log p(x, y) \ge \underbrace{\mathbb E_q[\log p(x \mid z, \ell)]}_{\texttt{reconstruction}} + \underbrace{\mathbb E_q[\log p(y \mid z)]}_{\texttt{proteins}} - \underbrace{\mathrm{KL}(q(z \mid x) \,\|\, p(z))}_{\texttt{kl}_\texttt{z}}$$
#
# A cell without proteins lacks the second term. The library size is the RNA total
# (`library="rna_total"`); the model refuses one that counts the proteins too.

# %% tolerance=30
sisua = zoo.SISUALike(half.n_genes, n_proteins=P, n_hidden=64, likelihood="nb")
vaelab.fit(sisua, half, epochs=40, progress=False)
sisua.elbo(half.to()).ledger()[["sign", "symbol", "nats"]].round(0)

# %% tags=["nbval-ignore-output"]
y, guess = cite.X[:, -P:].toarray(), sisua.impute(half)[:, -P:]
fig, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for ax, marker in zip(axes, ["CD19", "CD4", "CD45RA"], strict=True):
    t = [*PANEL.columns].index(marker)
    for v, colour, name in ((0, SKY, "background only"), (1, ORANGE, "foreground")):
        shown = without & (cite.obsm["foreground"][:, t] == v)
        ax.loglog(1 + y[shown, t], 1 + guess[shown, t], "o", ms=2, color=colour, label=name)
    ax.set(title=marker, xlabel="measured count + 1", xlim=(1, 2000), ylim=(10, 400))
    ax.set_yticks([10, 30, 100, 300], ["10", "30", "100", "300"])
    ax.yaxis.set_minor_formatter("")
axes[0].set_ylabel("predicted mean + 1")
axes[0].legend(frameon=False, markerscale=3, fontsize=8)
plotting.show("Three proteins of cells with RNA only, predicted against measured counts: the predictions "
              "of CD19 and CD4 form two groups, mostly background and foreground; those of CD45RA "
              "overlap.")  # fmt: skip

# %% [markdown]
# The paper predicts proteins from RNA, and says that proteins constrain the latent space (Trong et al.
# 2020, abstract). We tried both with five seeds.
#
# **Predict first.** Ridge regression and $k$ nearest neighbours learn from the half of the cells that
# has proteins. SISUALike also learns from the RNA of the other half. Which predicts best?
# <details><summary>Answer</summary>The nearest neighbours, by a little: all three lie within a few
# hundredths.</details>
#
# The score is the correlation of each protein with its prediction, in cells with RNA only
# ([E14.proteins_predicted](evidence/14_model_zoo.py)): SISUALike 0.34 ± 0.03, ridge regression
# 0.36 ± 0.02, nearest neighbours 0.37 ± 0.02. The two simple methods, tuned by cross-validation, are a
# little better. Much is noise: if somebody told us the true tube, we would reach 0.52 ± 0.02. And the
# proteins do not measurably improve the latent space of the other cells: k-means on it has an ARI of
# 0.38 ± 0.02 if half of the cells had proteins in training, and of 0.37 ± 0.04 if none had
# ([E14.proteins_shape_the_latent](evidence/14_model_zoo.py)).
#
# **Use it when** some of your cells have proteins, or any other second measurement, and you want one
# latent space for all of them, from the RNA.

# %% [markdown]
# ## 9 · Counts over a background: TotalVILike
#
# An antibody is also found in droplets of cells that lack its protein: it floats free, or binds to
# anything. So a protein count is rarely zero, and a threshold per protein has to be guessed. TotalVI
# (Gayoso et al. 2021) writes the background into the **likelihood**: $v_t = 1$ if a cell has background
# only, with probability $\pi_t(z)$.
#
# $$\log \beta_t \sim \mathcal N(c_t, d_t^2), \qquad y_t \mid v_t = 1 \sim \mathrm{NB}(\beta_t, \varphi_t), \qquad y_t \mid v_t = 0 \sim \mathrm{NB}(\alpha_t(z)\, \beta_t, \varphi_t), \qquad \alpha_t > 1$$
#
# The foreground is $\alpha_t$ times as high as the background $\beta_t$. $\varphi_t$ is an inverse
# dispersion, the $\theta$ of lesson 05; $c_t$, $d_t$ and $\varphi_t$ are parameters. $v$ is summed out, and
# $\beta$, one number per cell and protein, is a second **latent variable**. The encoder reads RNA and
# proteins.

# %%
plotting.graphical_model(zoo.TotalVILike.graph)
plotting.show("TotalVILike as a graph: as SISUALike, and each protein count has one more parent, its "
              "own background beta, which is inferred from z. Dashed arrows to z come from genes and "
              "proteins.")  # fmt: skip

# %% [markdown]
# $$\log p(x, y) \ge \underbrace{\mathbb E_q[\log p(x \mid z, \ell)]}_{\texttt{reconstruction}} + \underbrace{\mathbb E_q[\log p(y \mid z, \beta)]}_{\texttt{proteins}} - \underbrace{\mathrm{KL}(q(z \mid x, y) \,\|\, p(z))}_{\texttt{kl}_\texttt{z}} - \underbrace{\mathbb E_q[\mathrm{KL}(q(\beta \mid z) \,\|\, p(\beta))]}_{\texttt{kl}_\texttt{background}}$$

# %% tolerance=30
cells = vaelab.Cells.from_anndata(cite, library="rna_total")
total = zoo.TotalVILike(cells.n_genes, n_proteins=P, n_hidden=64)
vaelab.fit(total, cells, epochs=40, progress=False)
total.elbo(cells.to()).ledger()[["sign", "symbol", "nats"]].round(0)

# %% [markdown]
# ### Exercise 14.4 · Foreground or background
# ★★☆ · 12 minutes · 2 points
#
# Write `foreground(y, background, fold, phi, logits)`: $P(v = 0 \mid y)$ of each count. The inputs are
# torch tensors of one shape. $\pi$ is `sigmoid(logits)`, the background has mean `background`, the
# foreground `fold * background`, and both have the inverse dispersion `phi`. The largest counts are in the
# ten thousands, and a logit may be 900: stay in logarithms. You may use
# `distributions.NegativeBinomial(mean, inverse_dispersion)` and its `log_prob`.
#
# <details><summary>Hint</summary>Bayes' rule for two possibilities is a sigmoid of a difference of
# logarithms. What do both densities share?</details>


# %% nbgrader={"grade_id": "14-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def foreground(y, background, fold, phi, logits):
    """P(v = 0 | y) of each count."""
    ### BEGIN SOLUTION
    log_low = distributions.NegativeBinomial(background, phi).log_prob(y)
    log_high = distributions.NegativeBinomial(fold * background, phi).log_prob(y)
    return torch.sigmoid(log_high - log_low - logits)  # log (1 − π)/π = −logits
    ### END SOLUTION


# %% nbgrader={"grade_id": "14-4-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("14.4", foreground)

# %% [markdown]
# **Predict first.** A protein has a background of mean 30, and a foreground of 5 times as much. The RNA of
# one cell says that it hardly has this protein: $\pi = 0.9$. The RNA of another cell says that it has:
# $\pi = 0.1$. Both cells have the count 60. Does your function say the same of them?
# <details><summary>Answer</summary>No. The first count is foreground with probability 0.10, the second
# with 0.90. Move π: the curves cross at another count, and there P is one half.</details>


# %% tags=["nbval-ignore-output"]
def draw_two_components(π, α):
    y, one = torch.arange(401.0), torch.ones(401)
    low, high = (
        distributions.NegativeBinomial(mean * one, 2.4 * one).log_prob(y).exp()
        for mean in (30, 30 * α)
    )
    p = foreground(y, 30 * one, α * one, 2.4 * one, torch.logit(π * one))
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7, 4.4), layout="constrained", sharex=True)
    top.semilogy(y, π * low, color=SKY, lw=2, label="background only, times π")
    top.semilogy(y, (1 - π) * high, color=ORANGE, lw=2, label="foreground, times 1 − π")
    top.set(ylabel="probability of y", ylim=(1e-6, 0.1), title=f"π = {π:.1f}, α = {α:.0f}")
    top.legend(frameon=False, loc="upper right")
    bottom.plot(y, p, color=BLACK)
    bottom.axhline(0.5, color="0.6", lw=1, ls="--")
    bottom.plot(60, p[60], "o", color=BLUE, label=f"y = 60: {p[60]:.2f}")
    bottom.set(xlabel="count y", ylabel="P(foreground | y)", ylim=(-0.03, 1.03), xlim=(0, 400))
    bottom.legend(frameon=False, loc="lower right")
    return fig


plotting.interactive(
    draw_two_components,
    alt="Above, two negative binomials weighted by π and 1 − π; they cross where, below, the "
    "probability of the foreground is one half. With a larger π it rises at larger counts.",
    π=FloatSlider(0.9, min=0.1, max=0.9, step=0.1, description="π"),
    α=FloatSlider(5, min=2, max=8, step=1, description="α"),
)

# %% [markdown]
# Each cell has its own $\pi_t(z)$, and so its own curve. `total.foreground(cells)` is this number for each
# cell and protein. Below, each cell is one point: its count of CD45RA, and the probability that the count
# is more than background.

# %% tags=["nbval-ignore-output"]
t, truth = [*PANEL.columns].index("CD45RA"), cite.obsm["foreground"]
probability = total.foreground(cells)
fig, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for v, colour, name in ((False, SKY, "background only"), (True, ORANGE, "foreground")):
    shown = truth[:, t] == v
    ax.semilogx(1 + y[shown, t], probability[shown, t], "o", ms=3, color=colour, label=name)
ax.set(xlabel="count of CD45RA + 1", ylabel="P(foreground | y)")
ax.legend(frameon=False, title="simulated as", loc="center left")
plotting.show("Probability of the foreground against the count of CD45RA: it rises with the count, "
              "along a band. Cells that were simulated with foreground lie at the upper edge of "
              "the band.")  # fmt: skip

# %% [markdown]
# The same count means different things in different cells, because $z$ also knows the RNA and the other
# proteins: the band is wide. A threshold on the count cannot do that, and a Gaussian mixture per protein is
# almost a threshold. The paper compares its model with such a mixture by the area under the ROC curve,
# for CD19, CD20 and CD28 of B and T cells (Gayoso et al. 2021, Extended Data Fig. 3h).
#
# Over five seeds ([E14.foreground](evidence/14_model_zoo.py)) TotalVILike has an AUROC of 0.964 ± 0.011. A
# Gaussian mixture per protein has 0.937 ± 0.016 on log counts, and 0.947 ± 0.018 on centred log-ratios
# (CLR), the usual transformation. The same model with one NB per protein has 0.939 ± 0.016, so it is the
# mixture of two components that helps. A threshold of one half is right for 94.0 ± 1.0 % of the counts;
# the Gaussian mixtures reach 83 ± 5 % and 87 ± 5 %.
#
# One part does nothing here ([E14.background_hardly_differs](evidence/14_model_zoo.py)):
# $q(\beta \mid z)$ is almost the same in all cells. Its KL is 0.16 ± 0.04 nats, and it does not follow the
# background that we simulated. The dispersion takes up that spread: $\varphi$ is 2.4 ± 0.1, where the
# simulation has 5.
#
# Two limits. The proteins are simulated by the model's own assumptions (an NB over a log-normal
# background), so real antibodies will be less kind. And `get_protein_foreground_probability` of
# scvi-tools 1.4.2 returns $1 - \pi_t(z)$, averaged over draws of $z$; ours uses the count once more.
#
# **Use it when** you have CITE-seq and want to know which proteins a cell really has.

# %% [markdown]
# ## 10 · One that no paper has
#
# Each box was changed alone. You can also change two of them. Take the prior of
# VampVAE and the second measurement of SISUALike: *pseudo-cells, RNA for every cell, proteins for some*.
# No paper that we know has it. First write its bound, then its code.
#
# ### Exercise 14.5 · The bound of a model that no paper has
# ★★★ · 12 minutes · 3 points
#
# Write `bound(log_px, log_py, log_q, log_p_k, seen)`: the ELBO of each cell, shape `(n,)`, from $S$ draws of
# $z$. You get logs of densities at the draws:
#
# - `log_px`, shape `(S, n, G)`: of each gene's count given $z$;
# - `log_py`, shape `(S, n, P)`: of each protein's count given $z$; `seen`, shape `(n,)`, is True for the cells
#   whose proteins were measured;
# - `log_q`, shape `(S, n, D)`: $\log q(z_d \mid x)$ of each dimension;
# - `log_p_k`, shape `(S, n, K)`: $\log q(z \mid u_k)$ of each pseudo-cell, summed over dimensions. A draw
#   may lie so far from all of them that each density is 0 in floating point.
#
# <details><summary>Hint</summary>Write log p(x, y, z) − log q(z|x) for one draw of one cell. Which of
# its parts are sums? The ELBO is a mean over draws of these differences; the prior of a draw is a mean
# over k of densities.</details>


# %% nbgrader={"grade_id": "14-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def bound(log_px, log_py, log_q, log_p_k, seen):
    ### BEGIN SOLUTION
    log_pz = log_p_k.logsumexp(-1) - np.log(log_p_k.shape[-1])
    log_py = log_py.sum(-1) * seen
    return (log_px.sum(-1) + log_py + log_pz - log_q.sum(-1)).mean(0)
    ### END SOLUTION


# %% nbgrader={"grade_id": "14-5-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("14.5", bound)

# %% [markdown]
# And the code? The prior is one class, the proteins are another. A class made from both has both,
# because each box is a method of its own. Python looks for a method in the first class, then in the
# second, then in `VAE`:
#
# | box | method | found in |
# |---|---|---|
# | the prior and its terms | `prior`, `prior_terms` | `VampVAE` |
# | the likelihoods, and what the encoder reads | `decode`, `encoder_input` | `SISUALike` |
# | the bound: two likelihoods, then `prior_terms` | `elbo` | `SISUALike` |
# | the encoder | `encode`, `posterior` | `VAE` |
#
# The order matters: `VampVAE` takes `n_pseudo` for itself and hands all other options on to the next
# class. `SISUALike` does not, so it comes last. The second half of the cell below compares your bound with
# that of the class, for the same draws.


# %%
class Mine(zoo.VampVAE, zoo.SISUALike):
    """Pseudo-cells as prior, RNA for every cell, proteins for some."""


mine = Mine(half.n_genes, n_proteins=P, n_hidden=64, n_pseudo=30, likelihood="nb", seed=0)
vaelab.fit(mine, half, epochs=20, progress=False)
some = half[:50].to()
with torch.no_grad(), seeded(0):
    theirs = mine.elbo(some, n_samples=4, analytic_kl=False).per_cell()
with torch.no_grad(), seeded(0):
    q = mine.encode(some)
    z = gaussian(q.mean, q.stddev, 4)  # (S, n, D)
    log_p = mine.decode(z, some).log_prob(some.x)  # (S, n, G + P)
    log_p_k = mine.prior().component_distribution.log_prob(z.unsqueeze(-2))  # (S, n, K)
    yours = bound(log_p[..., :-P], log_p[..., -P:], q.log_prob(z), log_p_k, some.observed[:, -1])
agree = torch.allclose(torch.as_tensor(yours).to(theirs), theirs, rtol=1e-4)
print("your bound and the model's agree for all 50 cells:", agree)
mine.elbo(some).ledger()[["sign", "symbol", "source"]]

# %% [markdown]
# The bound that you derived is the number that the composed model trains on. That is what "the same
# parts" buys: a new model is an equation, a class of two lines, and a check that they agree.
#
# ## When is it worth it?
#
# | model | its claim, on our cells and seeds | use it when |
# |---|---|---|
# | VampVAE | a better $\log p(x)$: yes, by 0.9 of 63 nats | you draw from the prior or score cells |
# | ScVAE | (no claim) free nats empty clusters | $q(y \mid x)$ does not choose |
# | M2 | cells without labels help: yes, if labels weigh enough | you have few labels and want $p(x \mid y)$ |
# | FairVAE | $z$ hides the batch: in part, if the mixtures are equal | batches are true replicates |
# | VEGA | named dimensions: yes, with few free ones | you want a generative model of pathways |
# | VASC | the zero layer helps: no | values in [0, 1] with zeros that need a reason |
# | SISUALike | predicts proteins: not better than ridge regression; shapes $z$: no | one space for cells with and without proteins |
# | TotalVILike | separates foreground: yes, on simulated proteins | CITE-seq |
#
# **Spot the error.** *(5 minutes)* A paper writes: "On 3,000 islet cells our gene-set model has an ARI of
# 0.71, and PCA has 0.58. So a decoder of gene sets finds the cell types better." Its methods say: the
# model reads 2,000 variable genes, PCA all 20,000. The number of epochs was chosen by the ARI on these
# cells. The ARI is that of the best of ten seeds. Clusters come from k-means for the model, and from
# Leiden for PCA. Find four errors, and name the experiment that would support "so a decoder of gene
# sets".
# <details><summary>Answer</summary>The genes and the clustering differ as well, so the boxes are not
# compared alone. The epochs were tuned on the labels of the test cells, and nothing of PCA was tuned.
# The best of ten seeds is above the mean; the spread is missing. And PCA differs from the model in
# everything, not only in the decoder. The experiment: the same model with an ordinary decoder and with
# the masked one, the same cells, genes, epochs and clustering, settings chosen on other seeds, then five
# or more new seeds with mean and spread, and PCA tuned in the same way as a baseline.</details>
#
# ## Try it yourself
#
# 1. *(5 minutes)* Make a third panel of the figure in section 2: a VampVAE with one pseudo-cell. What
#    does its prior look like, and which model is it?
#    <details><summary>Solution</summary>One hill, whose place and width are learned: a VAE with a
#    learned Gaussian prior. The decoder can absorb both, so that nothing is gained.</details>
# 2. *(15 minutes)* Compose the VampPrior with VEGA: <code>class Mine(zoo.VampVAE, zoo.VEGA)</code>. Do the
#    pathways still mean what they meant?
#    <details><summary>Hint</summary>The mask says which genes a dimension moves, and weights above zero
#    fix its sign. N(0, I) fixes what an activity of 0 or 1 means, and switches off what is not needed.
#    What does that now?</details>
#    <details><summary>Solution</summary>In part. Each set is still highest in its own tube. But a shift of
#    z can be undone by b and a scale by W, so that the learned prior leaves both free: in our run (one
#    seed) the mean activity of the B cell set was −4 in place of 0, and its variance 15 in place of 0.2.
#    And most decoys were on, because a set that is not needed costs little under a prior that follows
#    it.</details>
# 3. *(20 minutes)* Take a model of your field. Write its row of the table in section 1.
#
# ## What to take along
#
# - A new model is a row in a table of boxes: prior, likelihood, what is observed, constraint. Find the box
#   that changes, and you can write the bound.
# - A prior without a closed KL costs one drawn term. A second measurement is one more term of the
#   likelihood. A label is a sum over its values. A mask on a weight is a constraint that no data can break.
# - A penalty such as the MMD, or a cross-entropy, is trained but is not part of the bound. Keep it apart.
# - Try a claim by its own box: the same cells, seeds and training, and one switch. Several claims of
#   this lesson were smaller here than in their papers, and a simple baseline was often as good.
#
# What each claim over seeds rests on:

# %%
evidence.table("14")

# %% [markdown]
# **Read on.** J. Tomczak and M. Welling, *VAE with a VampPrior*, AISTATS (2018). L. Dony et al.,
# *Variational autoencoders with flexible priors enable robust distribution learning on single-cell RNA
# sequencing data*, ICML Workshop on Computational Biology (2020). C. Grønbech et al., *scVAE*, Bioinformatics
# 36 (2020) 4415–4422. D. Kingma et al., *Improved variational inference with inverse autoregressive flow*
# (2016), for free bits. D. Kingma et al., *Semi-supervised learning with deep generative models* (2014).
# C. Louizos et al., *The variational fair autoencoder*, ICLR (2016). L. Seninge et al., *VEGA is an
# interpretable generative model for inferring biological network activity in single-cell
# transcriptomics*, Nature Communications 12 (2021) 5684. D. Wang and J. Gu, *VASC*, Genomics, Proteomics &
# Bioinformatics 16 (2018) 320–331. T. N. Trong et al., *Semisupervised generative autoencoder for
# single-cell data* (SISUA), Journal of Computational Biology 27 (2020) 1190–1203. A. Gayoso et al., *Joint
# probabilistic modeling of single-cell multi-omic data with totalVI*, Nature Methods 18 (2021) 272–282. The
# blood cells: G. Zheng et al., Nature Communications 8 (2017) 14049. The mice: M. Baron et al., Cell
# Systems 3 (2016) 346–360.
#
# **Next:** your own data. You started with a cell in two numbers. You can now read a model, write its
# bound, test its claim, and change a box.
