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
# ---

# %% [markdown]
# # 06 · Who is who in the pancreas
#
# A mouse pancreas was taken apart into single cells, and in each cell the messenger RNA of
# 14,878 genes was counted. Nobody wrote down which cell was which. **Can a model that has never
# seen a label tell a beta cell from a ductal cell, and how would we know that it did?**
#
# **Objectives.** After this lesson you can
#
# - load a real count matrix, look at it, and choose genes from it;
# - fit a variational autoencoder (VAE) under six likelihoods, and say which of their bounds may
#   be compared with which;
# - judge a latent space by silhouette width, by clusters, and by its active dimensions, and say
#   what each of these rewards;
# - set a VAE beside principal components, and be fair to both;
# - say what the model gets wrong.
#
# **You need** Python and some PyTorch. Lessons 04 (the VAE) and 05 (count likelihoods) explain
# what is used here; a reader in a hurry can start here and go back.
# **Time:** about 50 minutes. **Data:** 1.5 MB, Baron et al. (2016), mouse 1.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import seaborn as sns
import torch

import vaelab
from vaelab import metrics, plotting

torch.set_num_threads(1)  # a machine with many cores sums in another order: other last digits
LIVE = False  # True: train all seven models here (three minutes) in place of loading them

# %% [markdown]
# ## 1 · The data
#
# `X` holds counts: a row for each cell, a column for each gene. A count is a number of
# *unique molecular identifiers*: each captured RNA molecule got a random tag before it was
# copied, so that its copies are counted once.

# %%
adata = vaelab.datasets.pancreas(mouse=1)
print(f"{adata.n_obs:,} cells × {adata.n_vars:,} genes")
print(f"{1 - adata.X.nnz / np.prod(adata.shape):.1%} of the entries are zero")

# %% [markdown]
# Nine entries in ten are zero. Some zeros mean *this cell does not use this gene*. Many only mean
# that a few molecules were there and none was caught: of all the RNA in a cell, a droplet
# experiment catches something like a tenth.
#
# The authors of the data looked at marker genes, cluster by cluster, and gave each cell a type.
# We keep those labels out of the model's sight, and use them only to judge it.

# %%
counts_by_type = adata.obs["cell_type"].value_counts()
library = np.asarray(adata.X.sum(1)).ravel()

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(1.1, 1))
left.barh(counts_by_type.index.astype(str), counts_by_type, color=plotting.COLOURS[0])
left.bar_label(left.containers[0], padding=3, fontsize=9)
left.invert_yaxis()
left.set(xlabel="cells", xlim=(0, 400), title="Types, as the authors named them")
right.hist(library, bins=np.geomspace(library.min(), library.max(), 40), color="0.6")
right.set(xscale="log", xlabel="counts in a cell (its library size)", ylabel="cells")
right.set_title("How deeply each cell was read, all genes")
fig.tight_layout()

# %% [markdown]
# Two things to remember. The types are **uneven**: beta cells, which make insulin, are four in
# ten, and there are two B cells, three Schwann cells and four T cells in all. And the depth
# differs from cell to cell by more than a factor of ten, for technical reasons too: whatever we
# fit has to know each cell's library size ℓ, or it will spend its latent space on it.
#
# A third thing hides in the counts of *Ins2*, an insulin gene:

# %%
ins2 = adata[:, "Ins2"].X.toarray().ravel()
print(pd.Series(ins2).groupby(adata.obs["cell_type"].to_numpy()).mean().round(0).astype(int))

# %% [markdown]
# In a beta cell about a thousand molecules of it were counted. But *every* type has some,
# macrophages and endothelial cells too, which make no insulin. When cells burst, their RNA floats
# into the droplets of others: it is called **ambient RNA**. A count of 20 is not evidence of a beta
# cell here. The model has to learn this, and so must you.
#
# ## 2 · Choosing genes
#
# Most genes tell types apart badly: too rare to be seen, or the same everywhere. We keep genes
# seen in at least three cells, and of these the 2,000 that vary most for their mean.

# %%
adata = vaelab.select_genes(adata, n_genes=2000, min_cells=3)
cell_type = adata.obs["cell_type"].to_numpy().astype(str)
layers = ", ".join(filter(None, adata.layers))  # anndata 0.13 has X among them, under None
print(f"{adata.n_obs} cells × {adata.n_vars:,} genes; layers: {layers}")

# %% [markdown]
# The result has three versions of the same numbers. Which one a model wants depends on its
# likelihood, that is, on what kind of number it takes an entry to be:
#
# | layer | values | for |
# |---|---|---|
# | `counts` | 0, 1, 2, … | Poisson, negative binomial, and their zero-inflated forms |
# | `log_normalized` | log(1 + counts per 10,000 in this cell) | normal |
# | `unit_interval` | the same, over each gene's largest value: in [0, 1] | continuous Bernoulli |
#
# The package refuses what does not fit, and says what it saw:

# %%
try:
    model = vaelab.VAE(n_genes=2000, likelihood="nb")
    model.embed(vaelab.Cells.from_anndata(adata, layer="log_normalized"))
except ValueError as error:
    print(error)

# %% [markdown]
# ## 3 · An honest baseline
#
# Before a network, the method that has served the field since its beginning: the first thirty
# principal components (PCA) of the log-normalised counts. Whatever we build must stand beside
# this.
#
# How do we score a space against known types? Three questions, three answers:
#
# **Are the types tight and far apart?** For a cell *i*, let *a* be its mean distance to the other
# cells of its own type, and *b* its mean distance to the cells of the nearest other type. Its
# silhouette is (b − a) / max(a, b): near 1 if its own kind is much closer, negative if it sits
# among strangers. The **average silhouette width** (ASW) is the mean over cells.
#
# ### Exercise 06.1 · Fix a silhouette
# ★★☆ · 10 minutes · 3 points
#
# Here it is as a tutorial has it. It runs, and it gives one number, near the right one. Three
# things are wrong with it.
#
# ```python
# def silhouette(points, labels):
#     distance = np.linalg.norm(points[:, None] - points[None], axis=2)
#     s = []
#     for i, label in enumerate(labels):
#         a = distance[i, labels == label].mean()
#         b = min(distance[i, labels == t].mean() for t in np.unique(labels) if t != label)
#         s.append((b - a) / max(a, b))
#     return np.mean(s)
# ```
#
# Write `silhouette(points, labels)` anew: `points` has a row for each cell, `labels` a type for
# each, and what comes back is s(i) for each cell.
#
# <details><summary>Hint</summary>Hold each line against the definition above, word by word, and
# think of the smallest types that there can be. (By convention, s is 0 where <i>a</i> has no
# meaning.)</details>


# %% nbgrader={"grade_id": "06-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def silhouette(points, labels):
    """s(i) = (b − a) / max(a, b) for each cell i; shape (n_cells,)."""
    ### BEGIN SOLUTION
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)  # (n_cells, n_cells)
    types = np.unique(labels)
    to_type = np.stack([distance[:, labels == t].sum(1) for t in types], axis=1)
    size = np.array([(labels == t).sum() for t in types])
    own = labels[:, None] == types  # (n_cells, n_types), one True a row
    n_own = size[own.argmax(1)]
    a = to_type[own] / np.maximum(n_own - 1, 1)  # a cell is not its own neighbour
    b = np.where(own, np.inf, to_type / size).min(1)
    return np.where(n_own > 1, (b - a) / np.maximum(a, b), 0)
    ### END SOLUTION


# %% nbgrader={"grade_id": "06-1-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("06.1", silhouette)

# %% [markdown]
# **If we cluster the space, do the clusters match the types?** We cluster in two ways: k-means
# with as many clusters as there are types, and Leiden, which looks for communities in the graph
# of nearest neighbours and finds their number by itself. The **adjusted Rand index** (ARI) asks of
# every pair of cells whether both groupings agree to put them together or apart; it is 0 on
# average for random clusters and 1 for the same grouping. The **normalised mutual information**
# (NMI) asks what share of one grouping is known once the other is.
#
# ### Exercise 06.2 · The adjusted Rand index, from pairs
# ★★★ · 12 minutes · 3 points
#
# Count pairs of cells. Let *both* be the pairs that are together in the truth and in the clusters,
# *t* those together in the truth, *f* those together in the clusters, and *all* the pairs there
# are. If clusters were dealt out at random, *both* would be t·f/all on average. The index is
# *both* minus this average, divided by the most that this difference could be. If the groupings
# were the same, *both* would be t, and f too; where t and f differ, their mean is taken for both.
# So the divisor is (t + f)/2 minus the average.
#
# Write `adjusted_rand(truth, found)` for two arrays of names or numbers, one for each cell.
#
# <details><summary>Hint</summary><code>truth[:, None] == truth</code> is True for each pair that is
# together, twice, and for each cell with itself. <code>np.triu(…, 1)</code> keeps each pair
# once.</details>


# %% nbgrader={"grade_id": "06-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def adjusted_rand(truth, found):
    """1 for the same grouping, 0 on average for random ones (Hubert & Arabie 1985)."""
    ### BEGIN SOLUTION
    in_truth = np.triu(truth[:, None] == truth, 1)
    in_found = np.triu(found[:, None] == found, 1)
    both, t, f = (in_truth & in_found).sum(), in_truth.sum(), in_found.sum()
    by_chance = t * f / (len(truth) * (len(truth) - 1) / 2)
    return (both - by_chance) / ((t + f) / 2 - by_chance)
    ### END SOLUTION


# %% nbgrader={"grade_id": "06-2-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("06.2", adjusted_rand)

# %% [markdown]
# Types with fewer than five cells are left out of the scores, since no clustering can be blamed
# for two cells. Let us score the baseline, and check our silhouette against the package's.

# %% tags=["not-in-grading"]
pca = sc.pp.pca(adata.layers["log_normalized"], n_comps=30, random_state=0)
scores = {"PCA, 30 components": metrics.clustering_scores(pca, cell_type)}

frequent = np.isin(cell_type, counts_by_type.index[counts_by_type >= 5])
by_hand = silhouette(pca[frequent], cell_type[frequent]).mean()
assert np.isclose(by_hand, scores["PCA, 30 components"]["asw"], atol=1e-4)
for name in ["asw", "kmeans_ari", "kmeans_nmi"]:
    print(f"{name:12s}{scores['PCA, 30 components'][name]:.2f}")

# %% [markdown]
# ## 4 · One VAE, from the inside
#
# The model says how a cell comes about. It has a position z in a space of ten dimensions; a
# decoder, a network, turns z into the share ρ of each gene among the counts of our 2,000 genes; if
# their total, the library size, is ℓ, we expect ℓρ of each; and what we count scatters around this
# as a **negative binomial** (NB), wider than a Poisson because cells of one kind still differ:
#
# $$z \sim \mathcal N(0, I),\qquad \rho = \operatorname{softmax} f(z),\qquad
# x_g \sim \mathrm{NB}(\text{mean } \ell\rho_g,\ \text{inverse dispersion } \theta_g)$$
#
# The encoder goes the other way, and says where in latent space a cell may be: q(z|x). Both are
# trained to raise a lower bound on log p(x), the ELBO:
#
# $$\log p(x) \ \ge\ \underbrace{\mathbb E_{q(z|x)}[\log p(x\,|\,z)]}_{\text{reconstruction}} \ -\
# \underbrace{\mathrm{KL}\big(q(z|x)\,\|\,p(z)\big)}_{\text{what z says about x, in nats}}$$
#
# In code, this is all:

# %%
cells = vaelab.Cells.from_anndata(adata, layer="counts", label="cell_type")
model = vaelab.VAE(n_genes=cells.n_genes, n_latent=10, likelihood="nb", seed=0)
print(model.__class__.__name__, "with", f"{model.n_parameters:,} parameters")

# %% tags=["not-in-grading", "nbval-ignore-output"]
history = vaelab.fit(model, cells, seed=0)

# %%
_ = history.plot()

# %% [markdown]
# Left, the bound: on the cells we train on, and on a tenth of the cells that training never sees.
# After about 75 epochs the second is nearly flat while the first goes on rising: the model learns
# cells by heart. Training stops when 50 epochs have brought nothing better, and the parameters of
# the best epoch (dashed) are kept. Right, the KL: on average z can hold at most this many nats
# (units of information; one is 1.44 bits) about its cell. It is high in the first epochs, falls to
# about 11 nats, and then rises slowly. Its weight in the loss is 1 from the start. If you ask
# for a `kl_warmup`, the weight rises linearly to 1, so that the model can use z before it has to
# pay for it. The loss is minus the bound only where the weight is 1.
#
# Every loss in this package is a sum of named terms. Ask for the ledger, and it says which:

# %% tolerance=10
torch.manual_seed(0)
bound = model.elbo(cells.to())
bound.ledger().round({"nats": 0})

# %% [markdown]
# A few hundred nats for the counts of 2,000 genes, and about twelve for where the cell is: that
# is all that z holds, and everything below rests on it.
#
# ## 5 · What it found
#
# Ten dimensions do not fit on a page, so we draw a map with UMAP: a picture that keeps
# neighbours together, and nothing else. Distances between far groups and the sizes of groups on
# it mean little. The model never saw the names; they are written on afterwards.

# %% tags=["not-in-grading"]
latent = model.embed(cells)
adata.obsm["X_vae"] = latent
sc.pp.neighbors(adata, use_rep="X_vae", random_state=0)
sc.tl.umap(adata, random_state=0)
umap = adata.obsm["X_umap"]
_ = plotting.embedding(umap, cell_type, title="822 cells in the VAE's latent space")

# %% [markdown]
# Beta cells have two islands (§9 asks why) and ductal cells one. Alpha, delta and gamma cells make
# the other hormones: the alpha and gamma cells share a small island next to the delta cells. To
# convince yourself as a biologist would, look at genes that are known to mark a type, without the
# labels:

# %%
markers = {"Ins2": "beta", "Gcg": "alpha", "Sst": "delta", "Ppy": "gamma",
           "Krt19": "ductal", "Pecam1": "endothelial"}  # fmt: skip
fig, axes = plt.subplots(2, 3, figsize=(11, 7))
for ax, (gene, name) in zip(axes.flat, markers.items(), strict=True):
    level = adata[:, gene].layers["log_normalized"].toarray().ravel()
    plotting.embedding(umap, level, ax=ax, title=f"{gene} ({name})", name="log(1 + per 10,000)")
fig.tight_layout()

# %% [markdown]
# ## 6 · Six likelihoods
#
# Was the negative binomial the right choice? Here are six models that differ in nothing but the
# likelihood and the layer it asks for, each trained by `vaelab train pancreas_…` until its bound on
# held-out cells did not rise for 50 epochs, and a seventh, `nb_wide`, to which we come. Training
# them takes three minutes, so they come from `saved_model_parameters/`; set `LIVE = True` at the
# top to train them here.

# %%
from vaelab.teaching.recipes import RECIPES

names = ["normal", "continuous_bernoulli", "poisson", "zip", "nb", "zinb", "nb_wide"]
models, bounds, latents = {}, {}, {}
for name in names:
    recipe = RECIPES[f"pancreas_{name}"]
    if LIVE:
        models[name], _, card = recipe.train(seed=0)
    else:
        models[name] = vaelab.VAE.load(f"../saved_model_parameters/{recipe.name}")
        card = models[name].card
    bounds[name] = card["scores"].get("held_out_bound")
    latents[name] = models[name].embed(vaelab.Cells.from_anndata(adata, layer=recipe.layer))
    scores[name] = metrics.clustering_scores(latents[name], cell_type)

# %% [markdown]
# ### Bounds: what may be compared
#
# A bound is a statement about log p(*data*), so two bounds can be compared if they are about the
# **same data**. Four of our models are: each gives a probability to the same table of counts.

# %%
counted = ["poisson", "zip", "nb", "zinb"]
fig, ax = plt.subplots(figsize=(6.5, 2.6))
ax.barh(counted, [bounds[name] for name in counted], color=plotting.COLOURS[0])
ax.bar_label(ax.containers[0], fmt="%.0f", padding=-30, color="white")
ax.invert_yaxis()
ax.set(xlabel="bound on held-out cells (nats per cell; right is better)")
ax.set_title("The same counts, four likelihoods")
fig.tight_layout()

# %% [markdown]
# The Poisson is far behind. A gene with mean 5 must then vary by √5, and real genes vary more.
# Extra zeros alone bring 27 nats (ZIP), a free dispersion alone about 150 (NB). Once the dispersion
# is free, extra zeros bring nothing more in this run: the bound of the ZINB is one or two nats
# below that of the NB.
#
# The other two bounds are about **other data**. The normal gives a *density* to log-normalised
# values, and the continuous Bernoulli one to values in [0, 1]. A density is a probability *per unit
# of x*. Measure x in other units and it moves, though nothing was learned:

# %%
x = torch.as_tensor(adata.layers["log_normalized"].toarray())
fitted = torch.distributions.Normal(x.mean(0), x.std(0))
in_other_units = torch.distributions.Normal(1000 * x.mean(0), 1000 * x.std(0))
moved = (in_other_units.log_prob(1000 * x) - fitted.log_prob(x)).sum(1).mean()
print(f"x in thousandths: {moved:,.0f} nats a cell; {adata.n_vars:,} · log 1000 would be "
      f"{adata.n_vars * np.log(1000):,.0f}")  # fmt: skip

# %% [markdown]
# ### Exercise 06.3 · A density in other units
# ★☆☆ · 5 minutes · 2 points
#
# A model gives a cell the log-density `log_density`, summed over `n_genes` genes. Every value is
# now multiplied by `factor`, and the model is stretched along with them. Write
# `in_other_units(log_density, n_genes, factor)`: the log-density it gives the same cell then.
#
# <details><summary>Hint</summary>Draw a box with sides of length dx around x. What is its
# probability? How long are its sides afterwards, and how probable is it?</details>


# %% nbgrader={"grade_id": "06-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def in_other_units(log_density, n_genes, factor):
    """The log-density, in nats, of a cell whose values were all multiplied by `factor`."""
    ### BEGIN SOLUTION
    return log_density - n_genes * np.log(factor)
    ### END SOLUTION


# %% nbgrader={"grade_id": "06-3-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("06.3", in_other_units)

# %% [markdown]
# So we can't rank the normal against the NB by their bounds, and anyone who prints them in one
# column is comparing metres with seconds. We have to ask the *latent spaces* instead.
#
# ### Latent spaces: scores

# %%
table = pd.DataFrame(scores).T.rename(
    columns={"asw": "ASW", "kmeans_ari": "k-means\nARI", "kmeans_nmi": "k-means\nNMI",
             "leiden_ari": "Leiden\nARI", "leiden_nmi": "Leiden\nNMI"}
)  # fmt: skip
fig, ax = plt.subplots(figsize=(7, 4.2))
shade = (table - table.min()) / (table.max() - table.min())  # each column has its own scale
sns.heatmap(shade, annot=table, fmt=".2f", cmap="Blues", cbar=False, linewidths=1, ax=ax)
ax.tick_params(left=False, bottom=False, top=False, labeltop=True, labelbottom=False)
ax.set_title("Darker is better within a column", pad=12)
fig.tight_layout()

# %% [markdown]
# Read the rows first.
#
# - **The continuous Bernoulli has the lowest ASW and the lowest Leiden scores.** Squeezed into
#   [0, 1], every difference in a gene counts for the same, whether it stands for one molecule or a
#   thousand.
# - **The normal has the highest ASW and the highest k-means scores.**
# - **A better bound does not mean better scores.** Of the four models of counts, the NB has the
#   best bound in this run, and the lowest Leiden ARI.
# - **PCA is hard to beat.** Thirty straight lines through log-normalised counts have the best
#   Leiden scores of the table, and are level with the NB on k-means, in less than a second. This
#   row belongs in every table of this kind.
#
# Now read the columns, because they do not agree, and ask **what each rewards**.
#
# *ASW* rewards a space that knows the types and nothing else. Whatever else it holds, how deeply a
# cell was read, what a beta cell is doing just now, makes its own kind less tight and costs
# silhouette, be it noise or biology. The thirty directions in which the data vary most are mostly
# those between types, which helps PCA. A VAE that trains on learns more of the inside of
# the types. We measured it on the NB, fitted to all cells: an ASW of 0.36 after 100 epochs, 0.24
# after 200, 0.22 after 300. And tight is not the same as right: the ZINB has a higher ASW than PCA
# (0.39 and 0.32) and a lower Leiden ARI (0.41 and 0.53).
#
# *Leiden* at its usual resolution likes to cut a large group in two if there is any structure in
# it. So it rewards a space in which big types have none. (§9 shows how it cuts them for the NB.)
# Look at the last row: `nb_wide` is the NB with twice the width, fitted to all cells for 100
# epochs. Its ASW is lower than that of the NB, and its Leiden ARI is higher. Did it learn more
# biology? We can't know its held-out bound: nothing was held out.
#
# Last, chance. Over ten seeds (`python tests/benchmarks/pancreas.py --seeds 10`) the Leiden ARI of
# `nb_wide` had a mean of 0.43 and a standard deviation of 0.05, its k-means ARI 0.68 and 0.004. One
# run can't rank methods whose Leiden ARI differs by 0.05, as `nb` and `nb_wide` do in the table.
#
# ### Latent spaces: active dimensions
#
# We gave each model ten dimensions. Did it use them? If the encoder ignores dimension *d*, the
# posterior mean is the prior's, zero, whatever the cell. So we look at how the posterior mean
# varies: the **activity** of a dimension is the variance of E[z_d | x], and it counts as active
# above 0.01 (Burda et al. 2016).
#
# ### Exercise 06.4 · Activity
# ★☆☆ · 5 minutes · 1 point
#
# A tutorial speaks of the activity "of a cell". Is that right? Write `activity(latent)` for
# posterior means of shape (n_cells, n_latent).
#
# <details><summary>Hint</summary>A dimension that the encoder ignores has the same mean for every
# cell. So over what must the variance be taken?</details>


# %% nbgrader={"grade_id": "06-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def activity(latent):
    """The variance of the posterior mean (its sum of squares over n − 1); shape (n_latent,)."""
    ### BEGIN SOLUTION
    return ((latent - latent.mean(0)) ** 2).sum(0) / (len(latent) - 1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "06-4-check", "solution": false, "grade": true, "locked": true, "points": 1, "task": false, "schema_version": 3}
vaelab.check("06.4", activity)

# %% [markdown]
# It is the diagonal of the covariance of the posterior means over cells. Off the diagonal, that
# matrix says which dimensions hold the same thing:

# %%
latent = latents["continuous_bernoulli"]
centred = latent - latent.mean(0)
covariance = centred.T @ centred / (len(latent) - 1)  # (n_latent, n_latent)
assert np.allclose(np.diag(covariance), metrics.latent_activity(latent), rtol=1e-4)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1.2, 1))
plotting.activity(np.diag(covariance), ax=left)
plotting.latent_covariance(latent, ax=right)
fig.tight_layout()

n_active = {
    name: (metrics.latent_activity(z) > metrics.ACTIVE).sum() for name, z in latents.items()
}
print("active dimensions:", ", ".join(f"{name} {n}" for name, n in n_active.items()))

# %% [markdown]
# By this count every model uses all ten. But look at the picture, which shows the continuous
# Bernoulli: dimension 4 has an activity of 0.011, just above the threshold. It has almost
# **collapsed**. There q(z|x) is nearly the prior for every cell, so that the KL costs next to
# nothing and the dimension says almost nothing. A count depends on where the threshold is. The
# other nine have variances above 1, more than the prior allows: it asks that this variance and the
# mean posterior variance add up to 1, and that there be nothing off the diagonal. A fit is a
# compromise between that and the data. In lesson 04 we provoke a collapse, and cure it.
#
# > **Spot the error.** A "mouse pancreas data set" with "822 cells" is quoted from a study of two
# > mice. How many cells have both mice? Try `vaelab.datasets.pancreas("both")`.
# >
# > <details><summary>Solution</summary>1,886: mouse 1 has 822 and mouse 2 has 1,064. In lesson 10
# > both are put together, and the mice turn out to differ.</details>
#
# ## 7 · Does it make cells like the real ones?
#
# A generative model can be asked for replicates. For each beta cell the mean of q(z|x) is decoded
# at the cell's own library size, counts are drawn twenty times over, and their histogram is held
# against the data's. This looks at the one thing that scores of a latent space never see: whether
# the *counts* are right.

# %% tags=["not-in-grading"]
torch.manual_seed(0)
beta = cells[cell_type == "beta"].to()
fig, axes = plt.subplots(1, 3, figsize=(13, 3.6))
for ax, gene in zip(axes, ["Gsdma", "Spp1", "Sst"], strict=True):
    g = adata.var_names.get_loc(gene)
    draws = {}
    for name in ["poisson", "nb", "zinb"]:
        with torch.no_grad():
            z = torch.as_tensor(latents[name][cell_type == "beta"])
            draws[name] = models[name].decode(z, beta).sample((20,))[..., g].numpy()
    plotting.count_histogram(beta.x[:, g].numpy(), draws, gene=gene, ax=ax)
axes[1].set_title("343 beta cells, and draws from three models")
fig.tight_layout()

# %% [markdown]
# Three genes, three answers.
#
# - ***Gsdma*: the Poisson is too narrow.** It has too few zeros and too few high counts. Cells of
#   one kind differ by more than the luck of the draw, and only a free dispersion can say so.
# - ***Spp1*: zero inflation helps a little.** Three cells in four have none, a few have many. The
#   Poisson has half of these zeros. The NB comes close with its free dispersion alone, and the ZINB
#   a little closer. None gets the tail: cells with 15 and more.
# - ***Sst*: the NB is too *wide*.** In beta cells *Sst* is ambient RNA, which does scatter like a
#   Poisson. But our models have **one θ for each gene**, shared by all types, and delta cells,
#   which make *Sst* in bulk, need a wide one. The better bound of the NB does not make it right
#   everywhere. (`dispersion="gene-cell"` lets θ depend on z. Try it.)
#
# ## 8 · A walk through latent space
#
# What does one latent dimension mean? Nothing by itself: the prior is the same in all directions,
# so the model may turn its axes as it likes, and another seed will. But we can ask the decoder.
# Start from the middle of all cells, move along one dimension, and watch which genes change.
# We take the dimension that best parts beta from ductal cells.

# %%
walker, latent = models["nb"], latents["nb"]
middle = torch.as_tensor(np.median(latent, axis=0))
low, high = np.quantile(latent, [0.01, 0.99], axis=0)
apart = latent[cell_type == "beta"].mean(0) - latent[cell_type == "ductal"].mean(0)
best = int(np.abs(apart / latent.std(0)).argmax())


def walk(dimension, steps=25, n_changing=8):
    """Expected counts of the genes that change most along one latent dimension."""
    z = middle.repeat(steps, 1)  # (steps, n_latent)
    z[:, dimension] = torch.linspace(low[dimension], high[dimension], steps)
    with torch.no_grad():
        mean = walker.decode(z, walker.blank_cells(steps)).mean.numpy()
    change = np.log2((mean + 0.5) / (mean[:1] + 0.5))  # half a count keeps rare genes quiet
    changing = np.argsort(-np.abs(change).max(0))[:n_changing]
    return z[:, dimension].numpy(), mean[:, changing], adata.var_names[changing]


def draw_walk(dimension):
    position, mean, genes = walk(dimension)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=(1.4, 1))
    for i, gene in enumerate(genes):
        dashes = "-" if i < len(plotting.COLOURS) else "--"
        left.plot(position, mean[:, i], color=plotting.COLOURS[i % 7], ls=dashes, label=gene)
    left.set(yscale="log", xlabel=f"z of dimension {dimension + 1}")
    left.set(ylabel="expected counts", title="What the decoder changes")
    left.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    for name, colour in [("ductal", 1), ("endothelial", 3), ("delta", 2), ("beta", 0)]:
        right.hist(latent[cell_type == name, dimension], bins=30, density=True, label=name,
                   histtype="step", lw=1.8, color=plotting.COLOURS[colour])  # fmt: skip
    right.set(xlabel=f"z of dimension {dimension + 1}", ylabel="density of cells")
    right.set_title("Where the cells are")
    right.legend(frameon=False, fontsize=9)
    fig.tight_layout()
    return fig


_ = draw_walk(best)

# %% [markdown]
# To the right *Iapp* rises from about 1 to about 60: it makes amylin, which beta cells release
# together with insulin. At the same time genes of the cell's skeleton and its outer edge (*Flna*,
# *Tmsb4x*, *Tm4sf1*) fall more than a hundredfold: cells that form the walls of ducts and vessels
# have them. The right panel shows the cells themselves: ductal and endothelial on the left, delta
# in the middle, beta on the right.
#
# *Ins2* rises too, from about 20 to more than 500. On the left it is far from zero, although these
# cells make no insulin: every cell has ambient insulin RNA, and it hides a part of the change.
#
# With a kernel running, move along the other dimensions yourself:

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider

plotting.interactive(
    lambda dimension: draw_walk(dimension - 1),
    alt=(
        "Left, the decoded share of eight genes along one latent dimension; right, where the "
        "cells of each type lie on this dimension."
    ),
    dimension=IntSlider(best + 1, 1, latent.shape[1], continuous_update=False),
)

# %% [markdown]
# ## 9 · What it gets wrong
#
# We cluster the NB model's latent space with Leiden and lay the
# clusters beside the authors' types.

# %%
clusters = metrics.leiden(latents["nb"], seed=0)
names_of_clusters = np.array([f"{c + 1:02d}" for c in clusters])
_ = plotting.confusion_matrix(cell_type, names_of_clusters, truth_name="type (cells)")

# %% [markdown]
# **Large types are cut.** Beta and ductal cells fall into four clusters each, delta cells into two.
# Is it biology? Ask what differs between the clusters of beta cells:

# %% tags=["nbval-ignore-output"]
raw = vaelab.datasets.pancreas(mouse=1)
total = np.asarray(raw.X.sum(1)).ravel()
about = pd.DataFrame(
    {
        "counts of all genes": total,
        "genes seen": np.asarray((raw.X > 0).sum(1)).ravel(),
        "hormone share": np.asarray(raw[:, ["Ins1", "Ins2", "Iapp"]].X.sum(1)).ravel() / total,
    }
)[cell_type == "beta"]
by_cluster = about.groupby(clusters[cell_type == "beta"])
medians = by_cluster.median().assign(cells=by_cluster.size())
print(medians[medians["cells"] >= 20].round({"hormone share": 2}).to_string(index=False))

# %% [markdown]
# One cluster stands out. Its cells have 1.8 to 2.8 times the counts of the others, and over half of
# these are hormone RNA, against about a third or less. Depth and hormone content go together in it,
# and these counts alone can't separate a cell's state from its capture or its health. (A second
# cell in the droplet would bring more genes with it. But the largest cluster has about half the
# counts and more genes seen, so doublets are an unlikely answer.)
#
# **Small types are merged.** Eight of nine alpha cells and 13 of 14 gamma cells share a cluster;
# stellate and Schwann cells another; macrophages, T cells, B cells and the other immune cells a
# third. A higher resolution helps little. At `resolution=5` there are 34 clusters, and the
# macrophages have one to themselves. But T cells, B cells and the other immune cells still share
# one, and so do stellate and Schwann cells. The graph joins each cell to fifteen neighbours, and
# there are ten lymphoid and other immune cells in all.
#
# With two or three cells there is nothing to cluster. We can only ask who their neighbours are:

# %%
rare = ["B_cell", "schwann", "T_cell"]
distance = np.linalg.norm(latents["nb"][:, None] - latents["nb"][None], axis=2)
nearest = distance.argsort(1)[:, 1:6]  # the cell itself comes first
for name in rare:
    found = pd.Series(cell_type[nearest[cell_type == name]].ravel()).value_counts()
    print(f"{name:8s} ({(cell_type == name).sum()} cells): their five nearest neighbours are",
          ", ".join(f"{n} {other}" for other, n in found.items()))  # fmt: skip

# %% [markdown]
# The two B cells and the four T cells have only one another as neighbours: both are lymphocytes.
# The three Schwann cells, which wrap nerves, lie next to one another too, and then come activated
# stellate and ductal cells. So the latent space has a place for them, and no cluster shows it. If
# you look for rare types, look for them with marker genes, and do not wait for a cluster.
#
# ## What was not used, and why
#
# *Batch correction*: there is one mouse here; lesson 10 has two. *A learned library size*: the
# total is observed, and modelling it is the subject of lesson 10. *The labels*:
# using a few of them helps a great deal, and is lesson 13. *Cells' UMAP coordinates* as anything
# but a picture: no number in this lesson was computed from them.
#
# ## Try it yourself
#
# 1. *(5 minutes)* Fit the NB model with two latent dimensions and plot them directly, with no
#    UMAP. Which types merge?
#    <details><summary>Hint</summary>
#    <code>vaelab.VAE(n_genes=2000, n_latent=2, likelihood="nb")</code>, then
#    <code>plotting.embedding(model.embed(cells), cell_type)</code>.</details>
# 2. *(10 minutes)* Multiply every latent coordinate by 10. Which of ASW, ARI and NMI change? Then
#    multiply only one coordinate by 10. Why is activity not a score of quality?
#    <details><summary>Hint</summary>Which of them change when all distances are multiplied by the
#    same number?</details>
#    <details><summary>Solution</summary>Scaling all coordinates changes none of the scores: the
#    silhouette is a ratio, and the clusterings use distances to compare. Scaling one changes all of
#    them. Activity grows a hundredfold wherever you scaled: it says whether a dimension is used,
#    relative to the prior's variance of 1, and not for what.</details>
# 3. *(10 minutes)* Double all counts and fit the Poisson and the NB again. Which suffers more, and
#    why?
#    <details><summary>Hint</summary>What is the variance of 2x, if x is Poisson?</details>
#    <details><summary>Solution</summary>2x has mean 2μ and variance 4μ: twice what a Poisson of
#    that mean allows. The NB takes up a part of it in θ (its excess grows as the mean squared, and
#    here it grows as the mean); the Poisson can't. Doubled counts are still whole numbers, so a
#    check for whole numbers lets them pass: counts must be <i>raw</i>.</details>
#
# ## What to take along
#
# - The label of a cell is never in the model. It comes afterwards, from marker genes and from you.
# - Two bounds may be compared if they are about the same data. A density of log-normalised values
#   and a probability of counts are not.
# - Every score of a latent space rewards something. Ask what, before you believe a ranking; and put
#   principal components in the table.
# - A clustering can't report a type of two cells. Look for those with marker genes.
#
# **Read on.** The data: M. Baron et al., *A single-cell transcriptomic map of the human and mouse
# pancreas*, Cell Systems 3 (2016) 346–360. The lesson follows a tutorial of H. Gangloff (INRAE,
# 2023), which compares five likelihoods on these cells. VAEs: D. Kingma and M. Welling (2014),
# equation 3. Count likelihoods in VAEs: C. Grønbech et al., *scVAE*, Bioinformatics 36 (2020)
# 4415–4422; R. Lopez et al., *scVI*, Nature Methods 15 (2018) 1053–1058. Continuous Bernoulli:
# G. Loaiza-Ganem and J. Cunningham (2019). Silhouettes: P. Rousseeuw (1987). Active units: Y.
# Burda, R. Grosse and R. Salakhutdinov (2016), §5.2; L. Dony et al. (2020) use both on single
# cells.
