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
#     - pancreas_species
#     - pbmc_sorted
# ---

# %% [markdown]
# # 13 · Names for cells that nobody named
#
# An expert has named the cells of a human pancreas: alpha, beta, delta and so on. Now there are
# cells of a mouse, without names. The genes correspond one to one. The simplest idea is to give each
# mouse cell the name of the human cells that are most like it. The next picture shows why this
# fails. **How can such cells be named, how sure may we be of each name, and when does it take a
# network?**
#
# **Objectives.** After this lesson you can
#
# - annotate an experiment without labels from one that has them, and compare the result with tuned
#   baselines;
# - choose a score that notices rare types;
# - say for which tasks SCANVI is worth its cost, and for which logistic regression is enough;
# - test whether a model is right as often as it says, and report a set of names where one name is
#   not sure;
# - detect cells of a type that the reference lacks, and work with labels of which some are wrong;
# - say what one label weighs in the loss, in three conventions.
#
# **You need** [lesson 10](10_scvi.ipynb) (scVI) and [lesson 12](12_elbo_challenge.ipynb) (the bounds
# L and U of SCANVI). If you take the model as given, you can start here.
# **Time:** about two hours and three quarters, in three parts: 50 minutes to the first marked stop, 50
# to the second, 65 after it. **Data:** 0.6 MB, human and mouse cells, and 1.5 and 2.3 MB, two mice, all
# of Baron et al. (2016); 3.7 MB, sorted blood cells of Zheng et al. (2017).

# %%
import math
import warnings

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid, NearestNeighbors

import vaelab
from vaelab import plotting
from vaelab.networks import MLP
from vaelab.plotting import BLACK, BLUE, GREEN, RED, SKY
from vaelab.teaching import evidence
from vaelab.teaching.recipes import RECIPES, label_scores

torch.set_num_threads(1)  # with more threads sums have another order, and other last digits
LIVE = False  # True: train both saved models here (a minute or two each)
measured = evidence.read("13")

# %% [markdown]
# ## 1 · Two experiments, one of them named
#
# Alpha, beta and delta cells make three different hormones, so they are easy to tell apart. Here are
# their first two principal components (PCA), of both species together.

# %%
species = vaelab.select_genes(vaelab.datasets.pancreas_species())
species_truth = species.obs["cell_type"].to_numpy(dtype=str)
is_mouse = (species.obs["batch"] == "mouse").to_numpy()
islet = np.isin(species_truth, ["alpha", "beta", "delta"])
at = sc.pp.pca(species.layers["log_normalized"][islet], n_comps=2, random_state=0)
look = plotting.look(species_truth[islet])
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for name, style in look.items():
    for of_species, marker in ((~is_mouse[islet], "o"), (is_mouse[islet], "^")):
        chosen = of_species & (species_truth[islet] == name)
        ax.scatter(*at[chosen].T, s=26, marker=marker, color=style["color"], lw=0)
    ax.plot([], [], "s", color=style["color"], label=name)
for marker, name in (("o", "human"), ("^", "mouse")):
    ax.plot([], [], marker, color="0.4", label=name)
ax.set(xlabel="principal component 1", ylabel="principal component 2")
ax.set_title("Alpha, beta and delta cells of two species")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plotting.show(
    "Two principal components of alpha, beta and delta cells. The first separates human from mouse. "
    "Mouse beta cells lie at the height of human alpha cells."
)
species_pca = sc.pp.pca(species.layers["log_normalized"], n_comps=30, random_state=0)
nearest = KNeighborsClassifier(15).fit(species_pca[~is_mouse], species_truth[~is_mouse])
share = (nearest.predict(species_pca[is_mouse]) == species_truth[is_mouse]).mean()
print(f"mouse cells with the right name by their 15 nearest human cells: {share:.2f}")

# %% [markdown]
# The first component is the species, not the type. Such a difference between experiments is a **batch
# effect**. One mouse cell in five gets a wrong name, though we have all five types with labels (there
# are macrophages and stellate cells, too) and 30 components.
#
# The second task looks the same and is easier: two mice, one technology, one laboratory. Mouse 1
# has names. Those of mouse 2 we hide: in `known` they are "unknown", and we use them only to judge.

# %%
mice = [vaelab.datasets.pancreas(mouse=number) for number in (1, 2)]
both = anndata.concat(mice, label="mouse", keys=["mouse 1", "mouse 2"], index_unique="-")
both = vaelab.select_genes(both, n_genes=2000)
truth = both.obs["cell_type"].to_numpy().astype(str)
is_new = (both.obs["mouse"] == "mouse 2").to_numpy()
both.obs["known"] = np.where(is_new, "unknown", truth)
cells = vaelab.Cells.from_anndata(
    both, layer="counts", label="known", batch="mouse", unlabelled="unknown"
)
print(cells)

# %%
count = pd.crosstab(truth, both.obs["mouse"].to_numpy())
count = count.sort_values("mouse 1", kind="stable")
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for mouse, what in (("mouse 1", "named"), ("mouse 2", "to be named")):
    style = plotting.look(["mouse 1", "mouse 2"])[mouse]
    ax.scatter(count[mouse], range(len(count)), s=50, **style, label=f"{mouse}: {what}")
ax.set_yticks(range(len(count)), [plotting.readable(name) for name in count.index])
ax.set(xscale="log", xlabel="number of cells", xlim=(1, 800))
ax.grid(axis="y", lw=0.5)
ax.legend(frameon=False, loc="lower right")
plotting.show(
    "Number of cells of 13 types in two mice. Alpha cells are rare in mouse 1 and common in mouse 2; "
    "five types have four cells or fewer in mouse 1."
)

# %% [markdown]
# Look at the alpha cells: nine in mouse 1, 182 in mouse 2. A method that learns "alpha is rare"
# learns something false. And five types have four examples or fewer.
#
# ## 2 · What is a good annotation?
#
# **Accuracy** is the share of cells that got the right name. Half of mouse 2 are beta cells. If you
# call every cell beta, you are right for half of the cells, and useless. Two scores count *types*
# instead of cells:
#
# - **Balanced accuracy.** Which share of a type's cells was found (the *recall*)? Then the mean over
#   types.
# - **Macro-F1.** Also ask the reverse: which share of the cells that got this name deserved it (the
#   *precision*)? $F_1 = 2 \cdot \text{precision} \cdot \text{recall} / (\text{precision} +
#   \text{recall})$, or 0 if no cell got the name rightly. Then the mean over types.
#
# ### Exercise 13.1 · Two scores that count types
# ★★☆ · 8 minutes · 3 points
#
# Write `by_type(truth, predicted)` for two arrays of names. It returns balanced accuracy and
# macro-F1, both over the types that occur in `truth`.
#
# <details><summary>Hint</summary>
#
# Take the types one by one. Three counts of cells are enough: those of the type, those with the
# name, and those with both. What does your code do for a type whose name no cell got?
#
# </details>


# %% nbgrader={"grade_id": "13-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def by_type(truth, predicted):
    """Balanced accuracy and macro-F1, from two arrays of names of shape (n_cells,)."""
    ### BEGIN SOLUTION
    recall, f1 = [], []
    for name in np.unique(truth):
        t, n = (truth == name).sum(), (predicted == name).sum()
        b = ((truth == name) & (predicted == name)).sum()
        recall.append(b / t)
        f1.append(2 * b / (t + n))
    return np.mean(recall), np.mean(f1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "13-1-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("13.1", by_type)

# %% [markdown]
# Before any network we need **baselines**, three methods that take seconds. All read 30 principal
# components of the log-normalised counts of *all* cells, so they use the unlabelled cells too.
#
# - **Logistic regression** draws flat boundaries between the types.
# - **Nearest neighbours** takes the name that most of a cell's nearest named cells have.
# - **Nearest mean** takes the type whose named cells have the nearest mean.
#
# A baseline must be tuned as carefully as our own method. Otherwise we only show that we did not
# try. Five-fold cross-validation on the labelled cells chooses the penalty of the regression and
# the number of neighbours.


# %%
def log_score(model, x, names):
    """Minus the log loss; a fold may lack one of the rare types."""
    return -log_loss(names, model.predict_proba(x), labels=model.classes_)


def tuned(model, grid, scoring, x, names):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return GridSearchCV(model, grid, scoring=scoring, cv=5).fit(x, names)


def regression(x, names):
    grid = {"C": np.logspace(-4, 1, 11)}
    return tuned(LogisticRegression(max_iter=2000), grid, log_score, x, names)


def found_by_baselines(x, names, known):
    """The names of the other cells, by each baseline."""
    grid = {"n_neighbors": [1, 3, 5, 10, 15]}
    methods = {
        "logistic regression": regression(x[known], names[known]),
        "nearest neighbours": tuned(
            KNeighborsClassifier(), grid, "accuracy", x[known], names[known]
        ),
        "nearest mean": NearestCentroid().fit(x[known], names[known]),
    }
    return {name: method.predict(x[~known]) for name, method in methods.items()}


def judge(named, truth):
    """Accuracy, balanced accuracy and macro-F1, one line per method."""
    print(f"{'':22s}accuracy   balanced   macro-F1")
    for method, predicted in named.items():
        scores = ((predicted == truth).mean(), *by_type(truth, predicted))
        print(f"{method:22s}" + "   ".join(f"{score:8.2f}" for score in scores))


pca = sc.pp.pca(both.layers["log_normalized"], n_comps=30, random_state=0)
named = found_by_baselines(pca, truth, ~is_new)
species_named = found_by_baselines(species_pca, species_truth, ~is_mouse)
print("mouse 1 → mouse 2")
judge(named, truth[is_new])
print("human → mouse")
judge(species_named, species_truth[is_mouse])

# %% [markdown]
# Within one technology, logistic regression is right in 96 % of the cells, and the two scores that
# count types agree. Across species it is right in nine of ten, and the neighbours in two of three.
# Cross-validation sees human cells only, and the number of neighbours that it chose does not carry
# over: 15 gave 0.80 above. Remember these rows.
#
# ## 3 · The model
#
# SCANVI (lesson 12) says how a cell with a type comes about. The type $c$ and the variation within
# it, $z_2$, give a state $z_1$. The state, the library size $\ell$ and the batch $\gamma$ (here the
# mouse or the species) give the counts:
#
# $$z_2 \sim \mathcal N(0, I),\quad c \sim \mathrm{Cat}(p(c)),\quad z_1 \mid z_2, c \sim \mathcal N\big(f(z_2, c), \operatorname{diag} g(z_2, c)\big),\quad x \mid z_1, \ell, \gamma \ \text{as in scVI}$$
#
# **Four factors** guess what cannot be seen: $q(z_1 \mid x)$ the state, $q(\ell \mid x)$ the library
# size, $q(c \mid z_1)$ the type and $q(z_2 \mid z_1, c)$ the variation within it. (In the assignment
# of lesson 12 the first, second and fourth also read $\gamma$. In our models here the library size is observed,
# so the second is not needed.) A cell with a label is trained on the bound **L** of
# $\log p(x, c)$. A cell without is trained on the bound **U** of $\log p(x)$, in which $q(c \mid
# z_1)$ sums out the type. A **third term** belongs to neither bound: the classifier's cross-entropy
# (`cross_entropy` in the ledger). Without it, no label would teach $q(c \mid z_1)$ directly.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 5), layout="constrained")
for ax, show, title in zip(
    axes, "pq", ["p: how a cell comes about", "q: how it is guessed"], strict=True
):
    plotting.graphical_model(vaelab.SCANVI.graph, show=show, ax=ax)
    ax.set_title(title)
plotting.show(
    "Two graphs. In p, z2 and c point to z1, and z1, the library size and the batch point to the "
    "counts. In q, the counts point to z1 and the library size, z1 to c, and z1 and c to z2."
)

# %% [markdown]
# The model for the mice is saved; `vaelab train pancreas_scanvi` made it, with 20 latent dimensions
# and a KL warm-up of 200 steps. We ask it for $q(c \mid x)$, one row of probabilities per cell, and
# take the largest. The model for the two species takes five seconds, so we train it here. We hold no
# cells out, because 328 are few.
#
# > **Predict first.** The mice need no help: regression gets 96 %. Will SCANVI beat it there? And
# > across species, where regression gets 91 %?


# %%
def load(name):
    """A saved model, or the same trained here."""
    if LIVE:
        return RECIPES[name].train(seed=0, progress=False)[0]
    return vaelab.SCANVI.load(f"../saved_model_parameters/{name}")


def by_scanvi(model, cells):
    return np.array(model.label_names)[model.predict(cells).argmax(1)]


model = load("pancreas_scanvi")
types = np.array(model.label_names)
named["SCANVI"] = by_scanvi(model, cells)[is_new]

species.obs["known"] = np.where(is_mouse, "unknown", species_truth)
species_cells = vaelab.Cells.from_anndata(
    species, layer="counts", label="known", batch="batch", unlabelled="unknown"
)


def train_on_species(seed):
    model = vaelab.SCANVI(
        species_cells.n_genes, n_labels=5, n_batches=2, likelihood="nb", n_latent=20, seed=seed
    )
    vaelab.fit(model, species_cells, validation_fraction=0, seed=seed, progress=False)
    return model


species_model = train_on_species(0)
species_named["SCANVI"] = by_scanvi(species_model, species_cells)[is_mouse]
print("mouse 1 → mouse 2")
judge(named, truth[is_new])
print("human → mouse")
judge(species_named, species_truth[is_mouse])
of_package = label_scores(truth[is_new], named["SCANVI"])
assert np.allclose(by_type(truth[is_new], named["SCANVI"]), list(of_package.values())[1:])

# %% [markdown]
# On the mice SCANVI names fewer cells rightly than the regression does (section 4 looks at its errors).
# Across species it names more. But one training proves little. Here are five seeds of the species, both ways, with one more baseline:
# regression after every gene was set to mean 0 and variance 1 *within each species*, before the PCA.
# The baselines have no randomness.

# %%
looks = {"scanvi": ("SCANVI", RED), "standardised": ("regression, stand.", SKY),
         "regression": ("regression", "0.5"), "neighbours": ("neighbours", BLACK),
         "nearest_mean": ("nearest mean", GREEN)}  # fmt: skip
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", sharey=True)
for ax, claim, title in zip(axes, ("to_mouse", "to_human"), ("human → mouse", "mouse → human"),
                            strict=True):  # fmt: skip
    columns = {
        name: measured[f"E13.{claim}"][f"{key}_accuracy"] for key, (name, _) in looks.items()
    }
    ylabel = "accuracy" if ax is axes[0] else ""
    plotting.seeds(ax, pd.DataFrame(columns), ylabel=ylabel, colours=dict(looks.values()))
    ax.set_title(title)
    ax.tick_params(axis="x", labelsize=8)
plotting.show(
    "Accuracy of five methods in five seeds, human to mouse and mouse to human. SCANVI is near 1 in "
    "both, except for one training each; the baselines are lower."
)

# %% [markdown]
# **In four trainings of five SCANVI is right for 98 % of the cells or more**, in both directions. The
# regression gets 91 % and 95 %; standardised, 93 % and 87 %. **One of the five fails**: 55 % of the mouse
# cells, and 85 % of the human ones ([E13.to_mouse](evidence/13_scanvi.py),
# [E13.to_human](evidence/13_scanvi.py)). A likely reason, which we have not tested: U lays the clouds
# of the two species over each other, and no label of the new species says which cloud belongs where.
#
# The failed trainings do not look like failures: their mean confidence is 0.98 and 0.96, nearly that
# of the others. A remedy is a **vote**: average the probabilities of several trainings.

# %%
votes = [species_model, *map(train_on_species, range(1, 3))]
species_q = np.array([model.predict(species_cells)[is_mouse] for model in votes])
species_types = np.array(species_model.label_names)
each = (species_types[species_q.argmax(-1)] == species_truth[is_mouse]).mean(-1)
voted = species_types[species_q.mean(0).argmax(-1)]
print("three trainings:", *[f"{share:.2f}" for share in each])
print(f"their vote:      {(voted == species_truth[is_mouse]).mean():.2f}")

# %% [markdown]
# Here all three agree, so the vote has little to repair. But take five votes of three among the
# trainings of the last figure, both ways. In each direction three of the votes contain the training
# that failed, and all are right for 98 % of the cells or more ([E13.vote](evidence/13_scanvi.py)). A vote
# needs no label of the new cells. It costs three times as much, and it is not a guarantee: if most
# trainings fail, so does the vote.

# %% [markdown]
# ## 4 · Look at the errors
#
# Where are SCANVI's errors on mouse 2?

# %%
plotting.confusion_matrix(truth[is_new], named["SCANVI"], found_name="named by SCANVI")
plotting.show(
    "Share of each type of mouse 2 by the name that SCANVI gives. Nearly all lies on the diagonal; "
    "the largest confusion is between alpha and gamma cells."
)
wrong = named["SCANVI"] != truth[is_new]
pair = np.isin(truth[is_new], ["alpha", "gamma"]) & np.isin(named["SCANVI"], ["alpha", "gamma"])
print(f"{wrong.sum()} errors; alpha called gamma or gamma called alpha: {(wrong & pair).sum()}")

# %% [markdown]
# Many errors lie between **alpha and gamma** cells. An expert tells these apart at a glance: alpha
# cells make glucagon, from the gene *Gcg*, and gamma cells make pancreatic polypeptide, from *Ppy*,
# with a thousand molecules per cell and more. How can a model that sees these genes confuse them?
# Does it see them?

# %%
hormones = ["Ins1", "Ins2", "Sst", "Gcg", "Ppy", "Pyy", "Iapp"]
print("among the 2,000 genes:", *[gene for gene in hormones if gene in both.var_names])
print("not among them:       ", *[gene for gene in hormones if gene not in both.var_names])

# %% [markdown]
# It does not. The choice of genes threw out glucagon itself. It compares how much a gene varies
# with genes *of similar mean*, in twenty bins of the mean. The hormones' means are so high that some
# have a bin nearly to themselves. *Gcg* was compared with one other gene, and the standardised
# difference of two numbers is always ±0.71. No score told us, and no bound. A biologist would have
# asked.
#
# **The cure** is one line: put the four genes back. Logistic regression has no randomness, so it
# shows at once what they are worth.

# %% tags=["not-in-grading"]
all_genes = anndata.concat(mice, index_unique="-", keys=["mouse 1", "mouse 2"])
vaelab.log_normalize(all_genes)  # adds the layer; X keeps the counts
with_hormones = all_genes[:, [*both.var_names, "Gcg", "Ppy", "Pyy", "Iapp"]]
hormone_pca = sc.pp.pca(with_hormones.layers["log_normalized"], n_comps=30, random_state=0)
by_hormones = regression(hormone_pca[~is_new], truth[~is_new]).predict(hormone_pca[is_new])
print("share found by logistic regression   2,000 genes   and 4 hormones")
for name in ("alpha", "beta", "delta", "gamma"):
    of_type = truth[is_new] == name
    shares = [(f[of_type] == name).mean() for f in (named["logistic regression"], by_hormones)]
    print(f"{name:34s}{shares[0]:14.2f}{shares[1]:17.2f}")

# %% [markdown]
# Regression finds more of the gamma cells with the four genes. Without them it had found nearly all
# alpha cells, from hints in other genes; SCANVI calls a quarter of them gamma. **Before you improve a model, look at what it was given.** We go on with the 2,000 genes
# as they were chosen, because the next sections are about models that do not know everything.
#
# ## 5 · What else the model gives
#
# The model tells how counts arise, and this answers more questions than names.
#
# **Two spaces.** $z_1$ holds the state of a cell, with its type. $z_2$ holds what is left when the
# type is known. If the model does what its equations say, a cell's neighbours in $z_1$ share its
# type, and its neighbours in $z_2$ do not.

# %% tags=["not-in-grading"]
z1, z2 = model.embed(cells), model.embed(cells, of="z2")  # each (n_cells, n_latent)
both.obsm["z1"] = z1
sc.pp.neighbors(both, use_rep="z1", random_state=0)
sc.tl.umap(both, random_state=0)
umap = both.obsm["X_umap"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained")
common = np.isin(truth, ["beta", "alpha", "delta", "ductal", "endothelial"])
plotting.embedding(umap, both.obs["mouse"].to_numpy().astype(str), ax=axes[1],
                   title="z1 (UMAP): mice", names="legend")  # fmt: skip
plotting.embedding(umap, np.where(common, truth, "other"), ax=axes[0], title="z1 (UMAP): types",
                   names="clouds")  # fmt: skip
plotting.show(
    "UMAP of z1 for the cells of two mice. Types are islands; both mice are on nearly every island, "
    "often on different sides of it."
)
print(f"the largest type, beta, has {(truth == 'beta').mean():.0%} of the cells")
for name, z in (("z1", z1), ("z2", z2)):
    around = NearestNeighbors(n_neighbors=16).fit(z).kneighbors(z)[1][:, 1:]
    found = [pd.Series(row).mode()[0] for row in truth[around]]
    print(f"15 nearest neighbours in {name} find the type of {(found == truth).mean():.0%}")

# %% [markdown]
# So it is: neighbours in $z_1$ find the type nearly always. In $z_2$ they find it for 64 % of the cells;
# always saying "beta" would find 47 %. Most of what tells the types apart is gone from $z_2$, though
# not all. In $z_1$ the mice share nearly every island, and within the large ones they keep to their
# own sides. The decoder receives the mouse as input, so $z_1$ need not hold what is the same for all
# cells of a mouse. More mixing would not be better if the difference is biology. With one mouse of
# each, nobody can know.
#
# **Cells on demand.** Ask for alpha cells of mouse 2: $z_2$ from its prior, $z_1$ from $p(z_1 \mid
# z_2, \text{alpha})$, counts from the decoder. Nine alpha cells had a label, all in mouse 1. Below,
# each dot is a gene: its mean in the 182 alpha cells of mouse 2, whose names were hidden, and in as
# many that the model made.

# %%
alpha = is_new & (truth == "alpha")
real = both.layers["counts"][alpha].toarray()
made = model.generate(alpha.sum(), library=real.sum(1), label="alpha", batch="mouse 2", seed=0)
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
for ax, of, name in ((left, lambda x: x.mean(0), "mean count"),
                     (right, lambda x: (x == 0).mean(0), "share of zeros")):  # fmt: skip
    ax.plot(of(real), of(made), ".", ms=4, color="0.7")
    for gene in ("Ttr", "Gc", "Irx2", "Ins2", "Sst"):
        x, y = (8, 6) if gene == "Ttr" else (8, -5) if gene == "Ins2" and ax is right else (-8, 6)
        beside = {"textcoords": "offset points", "ha": "left" if x > 0 else "right", "va": "center"}
        g = both.var_names.get_loc(gene)
        ax.plot(of(real)[g], of(made)[g], "o", color=RED)
        ax.annotate(gene, (of(real)[g], of(made)[g]), (x, y), **beside)
    ax.axline((0, 0), (1, 1), color="0.5", lw=1)
    ax.set(xlabel=f"{name}, real alpha cells", ylabel=f"{name}, made", title=f"A gene's {name}")
left.set(xscale="symlog", yscale="symlog", xlim=(0, 3000), ylim=(0, 3000))
left.set_xticks([0, 1, 10, 100, 1000])
left.set_yticks([0, 1, 10, 100, 1000])
plotting.show(
    "Mean count and share of zeros of each gene, in real alpha cells of mouse 2 and in cells that the "
    "model made. Most genes lie near the diagonal, and so do most of five marked genes."
)
nine = both.layers["counts"][~is_new & (truth == "alpha")].toarray()
shares = {name: np.log10(1 + 1e4 * x.sum(0) / x.sum())
          for name, x in (("real", real), ("made", made), ("nine", nine))}  # fmt: skip
for name, what in (("made", "cells that the model made"), ("nine", "nine alpha cells of mouse 1")):
    error = np.sqrt(((shares[name] - shares["real"]) ** 2).mean())
    print(f"error of log10(1 + counts per 10,000), {what}: {error:.3f}")

# %% [markdown]
# The marker genes of alpha cells (*Ttr*, *Gc*, *Irx2*) are high, and most genes lie near the line. So do
# insulin (*Ins2*) and somatostatin (*Sst*), which alpha cells do not make: this is RNA that leaked
# from broken cells of other types. *Gc* and *Irx2* have the right mean with too many zeros. The last
# two lines compare the model with the only labelled alpha cells there are. The cells that it made are
# much closer to the alpha cells of mouse 2: it adds what it learned from all cells of mouse 2, without
# their names. No regression makes cells.
#
# **Missing labels** need no code of their own: a cell without a label has the bound U. **Soft
# labels** come in section 7.
#
# **Stop here** for the first time. You have seen when a network is needed for names, and what else it
# gives. The second part asks how sure the names are, where labels are few or missing.
#
# ## 6 · Twenty labels per type
#
# The third task: one experiment, in which few cells have a label. Zheng et al. (2017) sorted blood
# cells by proteins on their surface, into ten tubes, before any RNA was read. So these labels owe
# nothing to the counts, which is rare. Twenty cells of each type keep their label, drawn by a seed.

# %%
tubes = vaelab.datasets.pbmc_sorted()
blood = vaelab.select_genes(tubes, n_genes=2000)
blood_truth = blood.obs["cell_type"].to_numpy().astype(str)
rng = np.random.default_rng(0)
kept = [rng.choice(np.flatnonzero(blood_truth == name), 20, replace=False)
        for name in np.unique(blood_truth)]  # fmt: skip
is_hidden = ~np.isin(np.arange(blood.n_obs), kept)
blood.obs["known"] = np.where(is_hidden, "unknown", blood_truth)
blood_cells = vaelab.Cells.from_anndata(blood, layer="counts", label="known", unlabelled="unknown")
print(f"{(~is_hidden).sum()} cells with a label, {is_hidden.sum():,} without")

# %%
blood_model = load("pbmc_scanvi")
blood_types = np.array(blood_model.label_names)
blood_q = blood_model.predict(blood_cells)[is_hidden]
blood_pca = sc.pp.pca(blood.layers["log_normalized"], n_comps=30, random_state=0)
blood_named = found_by_baselines(blood_pca, blood_truth, ~is_hidden)
blood_named["SCANVI"] = blood_types[blood_q.argmax(1)]
judge(blood_named, blood_truth[is_hidden])

# %% [markdown]
# Over five draws of the labels (and seeds of the training), accuracy and balanced accuracy are 0.809 ±
# 0.009 and 0.726 ± 0.013 for SCANVI, 0.805 ± 0.006 and 0.723 ± 0.012 for the nearest mean, 0.801 ± 0.006
# and 0.707 ± 0.007 for the regression, and 0.780 ± 0.006 and 0.673 ± 0.014 for the neighbours
# ([E13.blood_names](evidence/13_scanvi.py)). With few labels SCANVI and the plainest method of all have
# a higher balanced accuracy than tuned regression. Between these two there is no clear difference.
#
# Where are the errors?

# %%
plotting.confusion_matrix(
    blood_truth[is_hidden], blood_named["SCANVI"], found_name="named by SCANVI"
)
plotting.show(
    "Share of each blood type by the name that SCANVI gives. B cells, monocytes, NK cells and "
    "progenitors lie on the diagonal; the six kinds of T cells are confused with each other."
)

# %% [markdown]
# B cells, NK cells and monocytes are found almost without error, and progenitors mostly. The six kinds
# of T cells are not. They were sorted by proteins (CD4, CD8, CD25, CD45RA, CD45RO), some of which are
# hardly visible in the RNA. No method does well here, and a good one should *say* so.
#
# ## 7 · Is it as sure as it should be?
#
# A model that gives a name the probability 0.8 should be right in four such cases of five. If this
# holds for every probability, the model is **calibrated**. To test it, put cells into bins by the
# probability of the name they got (their *confidence*). In each bin, compare the mean confidence
# with the share that is right. The picture is a **reliability curve**. A number that sums it up is
# the **expected calibration error**:
#
# $$\mathrm{ECE} \;=\; \sum_{\text{bins}} \frac{n_{\text{bin}}}{n}\; \big|\,\text{mean confidence in the bin} - \text{share right in the bin}\,\big|$$
#
# ### Exercise 13.2 · The expected calibration error
# ★★☆ · 8 minutes · 3 points
#
# Write `calibration_error(confidence, right, n_bins)`: `confidence` holds numbers from 0 to 1,
# `right` says of each cell whether its name is right, and `n_bins` bins of equal width divide the
# interval from 0 to 1. A cell with a confidence of exactly 1 belongs to the last bin. Bins without
# cells count nothing.
#
# <details><summary>Hint</summary>
#
# First find the number of each cell's bin. Can a bin number come out that does not exist? What
# weight does a bin get?
#
# </details>


# %% nbgrader={"grade_id": "13-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def calibration_error(confidence, right, n_bins):
    """The ECE, a number from 0 to 1; confidence and right have shape (n_cells,)."""
    ### BEGIN SOLUTION
    of_bin = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    error = 0.0
    for number in np.unique(of_bin):
        inside = of_bin == number
        error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return error
    ### END SOLUTION


# %% nbgrader={"grade_id": "13-2-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("13.2", calibration_error)

# %% [markdown]
# There are two ways to ask SCANVI. The released code gives the classifier *one* point, the mean of
# $q(z_1 \mid x)$. But by its own equations $z_1$ is not known exactly, and $q(c \mid x)$ is the
# average of $q(c \mid z_1)$ over $q(z_1 \mid x)$. `predict(cells, n_samples=100)` takes that average.

# %%
claims = {
    "SCANVI, mean of z1": blood_q,
    "SCANVI, 100 draws of z1": blood_model.predict(blood_cells, n_samples=100)[is_hidden],
    "logistic regression": regression(blood_pca[~is_hidden], blood_truth[~is_hidden])
    .predict_proba(blood_pca[is_hidden]),
}  # fmt: skip
is_right = {name: blood_types[p.argmax(1)] == blood_truth[is_hidden] for name, p in claims.items()}


def reliability(ax, confidence, right, **style):
    """Share of right names against confidence, in bins of ten cells or more."""
    of_bin = np.minimum((10 * confidence).astype(int), 9)
    bins = [b for b in (of_bin == number for number in range(10)) if b.sum() >= 10]
    at = np.array([(confidence[b].mean(), right[b].mean(), b.mean()) for b in bins]).T
    ax.plot(at[0], at[1], "-", lw=1.2, color=style["color"])
    ax.scatter(at[0], at[1], s=15 + 350 * at[2], alpha=0.7, **style)


# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained")
looks = {"color": (RED, BLUE, "0.5"), "marker": ("o", "^", "s")}
for (name, p), colour, marker in zip(claims.items(), *looks.values(), strict=True):
    reliability(left, p.max(1), is_right[name], color=colour, marker=marker)
    left.plot([], [], color=colour, marker=marker, label=name)  # for the legend
    right.hist(p.max(1), np.linspace(0, 1, 21), histtype="step", lw=2, color=colour)
left.axline((0, 0), (1, 1), color="0.6", lw=1, ls="--")
left.set(xlabel="confidence", ylabel="share of right names", xlim=(0.1, 1.05), ylim=(0, 1.05))
left.set_title("Below the dashed line: too sure. Large: many cells", fontsize=10)
left.legend(frameon=False, loc="upper left", fontsize=9)
right.set(xlabel="confidence", ylabel="cells", title="Confidence of the names", yscale="log")
plotting.show(
    "Left, share of right names against confidence. SCANVI at the mean of z1 lies below the "
    "diagonal, 100 draws lie nearer to it, logistic regression on it. Right, histograms of confidence."
)
for name, p in claims.items():
    error = calibration_error(p.max(1), is_right[name], n_bins=10)
    print(f"{name:24s} right {is_right[name].mean():.2f}, mean confidence "
          f"{p.max(1).mean():.2f}, ECE {error:.2f}")  # fmt: skip

# %% [markdown]
# **SCANVI is too sure.** The released way claims 0.957 ± 0.004 on average and is right in 0.809 ± 0.009.
# Its calibration error is 0.149 ± 0.009. Averaging over $z_1$ changes hardly any name and takes a third
# of the error away, to 0.100 ± 0.009: a cell whose state is uncertain no longer gets the verdict of a
# single point. Averaging cannot repair the classifier itself, which was trained on two hundred cells
# until it was sure of each. A penalty can: tuned regression has an error of 0.028 ± 0.008
# ([E13.calibration](evidence/13_scanvi.py)). Cross-validation on two hundred labels was enough to find
# that penalty. Section 10 shows SCANVI's counterpart.
#
# **A set of names.** If one name is not sure enough, report several: the smallest set whose
# probabilities sum to 90 %. If the probabilities are right, the set holds the true name in 90 % of
# the cells or more (more, because the last name usually goes beyond 90 %). The share that holds it
# is the **coverage**.


# %%
def sets_of_names(p, mass=0.9):
    """True for the names in each cell's smallest set with this probability; (n_cells, C)."""
    order = np.argsort(-p, axis=1)
    before = np.cumsum(np.take_along_axis(p, order, 1), 1) - np.take_along_axis(p, order, 1)
    inside = np.empty_like(p, dtype=bool)
    np.put_along_axis(inside, order, before < mass, axis=1)
    return inside


is_true = blood_truth[is_hidden][:, None] == blood_types
for name, p in claims.items():
    inside = sets_of_names(p)
    print(f"{name:24s} the set holds the true name for {(inside & is_true).any(1).mean():.0%}, "
          f"and has {inside.sum(1).mean():.2f} names")  # fmt: skip
one = np.flatnonzero(sets_of_names(claims["logistic regression"]).sum(1) == 3)[0]
inside = sets_of_names(claims["logistic regression"])[one]
print("one cell:", ", ".join(blood_types[inside]), "· true:", blood_truth[is_hidden][one])

# %% [markdown]
# Over five seeds the sets hold the true name for 86 ± 1 % of the cells, with 1.2 names per set, if the
# mean of $z_1$ is classified; for 90 ± 1 %, with 1.4 names, if 100 draws are averaged; and for 97 ± 1 %,
# with 2.2 names, in the regression ([E13.sets_of_names](evidence/13_scanvi.py)). So the first sets
# promise more than they hold. The averaged ones hold their promise. Those of the regression hold more
# than they promise, and are larger than they need be. Note the contrast with the calibration error:
# it looks at the first name only.
#
# **Soft labels.** A probability can be combined with what somebody else knows. Suppose that each T
# cell was also stained for CD8, and that the stain is right in nine cells of ten. That is a *soft*
# label $r(c)$: 0.9 for the types that it favours, 0.1 for the others. If its errors are independent
# of the counts, Bayes' rule says $p(c \mid x, r) \propto q(c \mid x)\, r(c)$.

# %%
stained = np.random.default_rng(0)
is_cd8 = np.char.endswith(blood_types, "cytotoxic T")
is_t = np.char.endswith(blood_types, " T")
of_cell = np.searchsorted(blood_types, blood_truth[is_hidden])
says_cd8 = is_cd8[of_cell] ^ (stained.random(is_hidden.sum()) < 0.1)
r = np.where(is_cd8 == says_cd8[:, None], 0.9, 0.1)
r[~is_t[of_cell]] = 1.0  # only T cells were stained
for name in ("SCANVI, 100 draws of z1", "logistic regression"):
    found = blood_types[(claims[name] * r).argmax(1)]
    print(f"{name:24s} right {is_right[name].mean():.3f}, with the stain "
          f"{(found == blood_truth[is_hidden]).mean():.3f}")  # fmt: skip

# %% [markdown]
# Over five seeds the stain makes 1.2 % more names right for both ([E13.soft](evidence/13_scanvi.py)). In
# training, a soft label takes the place of the one-hot $\omega$ in L, and of the one-hot
# label in the cross-entropy: the equations do not ask that it be sharp.
#
# **To leave cells to a person.** One may give a name only where the model is sure enough. Move the
# threshold, and see which share of mouse 2 gets a name, and how many of these names are right.

# %% tags=["not-in-grading"]
averaged = model.predict(cells, n_samples=100)[is_new]
confidence, right_name = averaged.max(1), types[averaged.argmax(1)] == truth[is_new]
order = np.argsort(-confidence)
share = np.arange(1, len(order) + 1) / len(order)
accuracy_so_far = np.cumsum(right_name[order]) / np.arange(1, len(order) + 1)


def draw_threshold(threshold):
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    sure, at = confidence >= threshold, umap[is_new]
    left.scatter(*at[sure & right_name].T, s=8, color=SKY, label="named, right")
    left.scatter(*at[sure & ~right_name].T, s=22, color=RED, marker="^", label="named, wrong")
    left.scatter(*at[~sure].T, s=22, color=BLACK, marker="x", label="left to a person")
    left.set(xticks=[], yticks=[], title=f"Mouse 2 in z1: named if q(c|x) ≥ {threshold:.2f}")
    left.legend(frameon=False, fontsize=9)
    right.plot(share, accuracy_so_far, color=RED)
    if sure.any():
        right.plot(sure.mean(), right_name[sure].mean(), "o", ms=9, color=BLACK)
    right.set(xlabel="share of the cells that get a name", ylabel="share of these names right")
    right.set(xlim=(0.3, 1.01), ylim=(0.9, 1.005), title="The more names, the less right")
    return fig


sure = confidence >= 0.9
left_over = np.isin(truth[is_new][~sure], ["alpha", "gamma"]).mean()
print(f"at 0.9: {sure.mean():.2f} get a name, {right_name[sure].mean():.2f} of these are right; "
      f"of the others {left_over:.2f} are alpha or gamma cells")  # fmt: skip

# %% [markdown]
# Most cells left over are alpha or gamma cells, which a model without *Gcg* should doubt. With a
# kernel running, move the threshold:

# %% tags=["nbval-ignore-output", "not-in-grading"]
from ipywidgets import FloatSlider

plotting.interactive(
    draw_threshold,
    alt=(
        "Left, the cells of mouse 2 in the latent space: named right, named wrong, or left "
        "to a person. Right, the share of right names falls as more cells get a name; a dot "
        "marks the threshold."
    ),
    threshold=FloatSlider(0.9, min=0.3, max=1.0, step=0.01),
)

# %% [markdown]
# ## 8 · A type that the reference lacks
#
# What if the new experiment holds a type that the old one does not have? The classifier must give
# its probabilities to *something*. A common recipe is to look at the **entropy** of $q(c \mid x)$,
# $-\sum_c q_c \log q_c$. It is 0 for a cell that is sure of its name, and $\log C$ for one whose
# types are all equally probable. New types should be unsure, and stand out.
#
# One number says if they do. Take a random cell of the new type and a random other
# one. In what share of such pairs does the new one have the higher entropy? This is the **area
# under the ROC curve** (AUROC): 1 for a perfect warning, ½ for a coin.
#
# ### Exercise 13.3 · A warning, and how good it is
# ★★☆ · 8 minutes · 3 points
#
# Write `auroc_of_entropy(q, is_new)` for probabilities `q` of shape (n_cells, C) and a boolean for
# each cell: the share of pairs (a new cell, another) in which the new one has the higher entropy. A
# pair with equal entropies counts ½. Some cells have probabilities of exactly 0.
#
# <details><summary>Hint</summary>
#
# $0 \cdot \log 0$ is NaN in numpy, and 0 in the definition: for each *term*, not for each cell. To
# compare all pairs, let one axis be the new cells and the other axis the others.
#
# </details>


# %% nbgrader={"grade_id": "13-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def auroc_of_entropy(q, is_new):
    """A number from 0 to 1; q has shape (n_cells, C), is_new (n_cells,)."""
    ### BEGIN SOLUTION
    log_q = np.log(q, out=np.zeros_like(q), where=q > 0)
    h = -(q * log_q).sum(1)
    new, other = h[is_new][:, None], h[~is_new]
    return ((new > other) + (new == other) / 2).mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "13-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("13.3", auroc_of_entropy)

# %% [markdown]
# We try it on fewer cells: a hundred of each blood type, 500 genes, and 40 labels per type. Then all
# labels of the monocytes are taken away. Their cells stay, among the unlabelled ones.
#
# > **Predict first.** With labels, monocytes are the easiest type of all. Without, will their
# > entropy be high?

# %%
rng = np.random.default_rng(0)
rows = [rng.choice(np.flatnonzero(blood_truth == name), 100, replace=False)
        for name in np.unique(blood_truth)]  # fmt: skip
small = vaelab.select_genes(tubes[np.sort(np.concatenate(rows))].copy(), n_genes=500)
small_truth = small.obs["cell_type"].to_numpy().astype(str)
kept = [rng.choice(np.flatnonzero(small_truth == name), 40, replace=False)
        for name in np.unique(small_truth)]  # fmt: skip
has_label = np.isin(np.arange(small.n_obs), kept)
small_pca = sc.pp.pca(small.layers["log_normalized"], n_comps=30, random_state=0)


def train(labels, epochs=100, **options):
    """A SCANVI fitted to the small table with these labels; and its cells."""
    cells = vaelab.Cells.from_array(
        small.layers["counts"], label=labels, unlabelled="unknown", gene_names=small.var_names
    )
    model = vaelab.SCANVI(
        cells.n_genes, n_labels=len(cells.label_names), likelihood="nb", **options
    )
    vaelab.fit(model, cells, epochs=epochs, validation_fraction=0, progress=False)
    return model, cells


def entropy(q):
    return -(q * np.log(np.maximum(q, 1e-30))).sum(1)  # where q is 0, so is the product


def distance(points, seen):
    """Mean distance of each cell to its five nearest cells with a label."""
    return NearestNeighbors(n_neighbors=5).fit(points[seen]).kneighbors(points)[0].mean(1)


seen = has_label & (small_truth != "monocyte")
without, its_cells = train(np.where(seen, small_truth, "unknown"), epochs=60)
p, asked = without.predict(its_cells), ~has_label
warnings_of = {
    "log₁₀ entropy of q(c|x)": np.log10(entropy(p) + 1e-9),
    "distance in z1": distance(without.embed(its_cells), seen),
    "distance in PCA": distance(small_pca[:, :10], seen),
}
is_monocyte = small_truth == "monocyte"
called = pd.Series(by_scanvi(without, its_cells)[is_monocyte]).value_counts()
print(f"monocytes are called {called.index[0]} in {called.iloc[0]} of {called.sum()} cells")

# %% tags=["not-in-grading"]
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
for ax, (what, value) in zip(axes, warnings_of.items(), strict=True):
    bins = np.linspace(value[asked].min(), np.quantile(value[asked], 0.995), 31)
    known, new = value[asked & ~is_monocyte], value[asked & is_monocyte]
    ax.hist(known, bins, density=True, color="0.75", label="types with labels")
    ax.hist(new, bins, density=True, histtype="step", lw=2, color=RED, label="monocytes")
    ax.set(xlabel=what, yticks=[])
    auroc = roc_auc_score(is_monocyte[asked], value[asked])
    ax.set_title(f"AUROC {auroc:.2f}", fontsize=10)
axes[0].set(ylabel="density of cells")
axes[0].legend(frameon=False, fontsize=8)
plotting.show(
    "Histograms for monocytes without labels and for the other types. The entropy of monocytes is "
    "lower; their distance to named cells, in z1 and in PCA, is larger."
)
theirs = roc_auc_score(is_monocyte[asked], entropy(p[asked]))
assert np.isclose(auroc_of_entropy(p[asked], is_monocyte[asked]), theirs, atol=0.01)

# %% [markdown]
# The warning does not come. Monocytes get another name, **and the model is sure of it**: their
# entropy is *lower* than that of the types it knows. This is not a bug. $q(c \mid z_1)$ was asked
# "which of these nine?", and never "is it one of these?". A softmax divides a space into regions.
# Far from all boundaries it is sure, even where no named cell has ever been. High entropy says
# *between two known types*, where most T cells are by nature. That is not a sign of novelty.
#
# **The cure is another question**: is there a named cell nearby? The distance to the nearest named
# cells finds the monocytes. It does so in $z_1$, and just as well in ten principal components: the
# distance is the cure, not the network.
#
# > **Predict first.** Monocytes are one type of ten. Is the entropy a better warning for the others?

# %%
penalty = regression(small_pca[has_label], small_truth[has_label]).best_params_
names, auroc = np.unique(small_truth), {"entropy, regression": [], "distance in PCA": []}
for name in names:
    seen = has_label & (small_truth != name)
    rival = LogisticRegression(max_iter=2000, **penalty).fit(small_pca[seen], small_truth[seen])
    values = entropy(rival.predict_proba(small_pca)), distance(small_pca[:, :10], seen)
    for of_warning, value in zip(auroc.values(), values, strict=True):
        of_warning.append(roc_auc_score(small_truth[asked] == name, value[asked]))
fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
order = np.argsort(auroc["distance in PCA"])
for (what, shares), colour, marker in zip(auroc.items(), ("0.5", SKY), ("s", "^"), strict=True):
    ax.scatter(np.array(shares)[order], range(10), s=50, color=colour, marker=marker, label=what)
ax.axvline(0.5, color="0.6", lw=1, ls=":")
ax.set_yticks(range(10), names[order])
ax.set(xlim=(0, 1.03), xlabel="AUROC (½: a coin)", title="The type without any label")
ax.grid(axis="y", lw=0.5)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plotting.show(
    "For each of ten blood types without labels, the AUROC of two warnings. The distance in PCA is near 1 "
    "for four types that lie apart; for T cells the entropy of regression is the better one."
)

# %% [markdown]
# The two warnings complement each other (in this one draw of cells; neither method has randomness).
# The distance finds the four types that lie apart: monocytes, B cells, NK cells and progenitors. For
# the six kinds of T cells it is near a coin or below, because a T cell without labels lies among
# other T cells. There the entropy does some work: a new type *between* known ones gets divided
# probabilities. Look at both warnings, and then at marker genes.
#
# **Stop here** for the second time. The last part is about labels: some are wrong, and each has a
# weight.
#
# ## 9 · Labels of which some are wrong
#
# In the pancreas, labels come from clusters and experts, and some are wrong. We replace four labels
# in ten by another type's, at random, train on them, and look at the cells without a label. This
# small table also gives each label a weight of 1 or of 100 against the bound of one cell (section
# 10).
#
# > **Predict first.** With a weight of 100, SCANVI hears a label a hundred times as loudly as a cell's
# > own counts. Which weight suffers more from wrong labels?

# %%
frame = measured["E13.noise"]  # "weight 1" and "weight 100" are SCANVI
looks = {"1": "weight 1", "100": "weight 100", "regression": "regression",
         "neighbours": "neighbours"}  # fmt: skip
colours = dict(zip(looks.values(), (BLUE, RED, "0.5", BLACK), strict=True))
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), layout="constrained", sharey=True)
for ax, key, title in zip(axes, ("accuracy", "lost", "true_type"), (
    "right, cells without a label", "accuracy lost", "wrong labels called by true type",
), strict=True):  # fmt: skip
    columns = {name: frame[f"{key}_{method}"] for method, name in looks.items()}
    ylabel = "share of cells" if ax is axes[0] else ""
    plotting.seeds(ax, pd.DataFrame(columns), ylabel=ylabel, colours=colours)
    ax.set_title(title, fontsize=10)
    ax.tick_params(axis="x", labelsize=7)
plotting.show(
    "With four labels in ten wrong: accuracy, accuracy lost, and share of wrongly labelled cells that "
    "are called by their true type, for four methods in five seeds. SCANVI with weight 100 is worst."
)

# %% [markdown]
# With weight 1, SCANVI is right for 0.68 ± 0.05 of the cells and has lost 0.05 ± 0.02 to the wrong labels.
# With weight 100 it is right for 0.56 ± 0.03 and has lost 0.13 ± 0.01. Tuned regression (0.66 ± 0.04)
# and neighbours (0.63 ± 0.03) have lost 0.03 and 0.04 ([E13.noise](evidence/13_scanvi.py)). Of the cells
# whose own label is wrong, weight 1 calls 67 ± 6 % by their true type, since the state $z_1$ has to
# explain the counts, and cells of a similar state say otherwise. Weight 100 calls *none* of them by
# their true type: it learned every wrong label by heart.
#
# Now sort the labelled cells by how little the model with weight 1 believes their labels. Of the fifth
# that it believes least, 98 ± 1 % are wrong, where chance would give 41 %. That is a list to go through
# with an expert.
#
# If labels are wrong in the reference, they are wrong in the test cells too. The accuracy measured
# on such labels is not the accuracy. How much can be said about it?
#
# ### Exercise 13.4 · Better than its test
# ★★☆ · 8 minutes · 2 points
#
# Each label of the test cells was replaced with probability `flipped` by one of the *other* types,
# all equally likely, without a look at the cell. `measured` is the share of the cells for which name
# and label agree. Write `true_accuracy(measured, flipped, n_types)`: the share of the cells with
# the right name, on average.
#
# <details><summary>Hint</summary>
#
# In how many ways can a name and a label agree? Give the true accuracy a letter, write down the
# probability of each way, and add them.
#
# </details>


# %% nbgrader={"grade_id": "13-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def true_accuracy(measured, flipped, n_types):
    """The accuracy behind one that was measured on noisy labels; three numbers in, one out."""
    ### BEGIN SOLUTION
    by_chance = flipped / (n_types - 1)  # that a wrong label is the wrong name
    return (measured - by_chance) / (1 - flipped - by_chance)
    ### END SOLUTION


# %% nbgrader={"grade_id": "13-4-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("13.4", true_accuracy)


# %% tags=["not-in-grading", "nbval-ignore-output"]
def flip(label, share, seed=1):
    """Labels of which a share is replaced by another type, at random."""
    rng, wrong = np.random.default_rng(seed), label.copy()
    for i in np.flatnonzero(rng.random(len(label)) < share):
        wrong[i] = rng.choice(np.setdiff1d(label, label[i]))
    return wrong


label = flip(small_truth, 0.2)
given = np.where(has_label, label, "unknown")
of_noisy, its_cells = train(given, classifier_weight=1.0, classifier_mean=False)
found = by_scanvi(of_noisy, its_cells)
on_test = (found == label)[~has_label].mean()
print(f"agreement with labels of which 20 % are wrong: {on_test:.2f}")
print(
    f"agreement with the right labels:               {(found == small_truth)[~has_label].mean():.2f}"
)
print(f"computed from the first:                       {true_accuracy(on_test, 0.2, 10):.2f}")

# %% [markdown]
# The formula needs nothing about how the *names* are wrong. But the labels must be wrong without a
# look at the cell. Real ones are not: an expert confuses **alpha with gamma** cells, not with T
# cells, and so does the model. We try both kinds on the alpha and gamma cells of mouse 2. Three
# labels in ten are exchanged, once at random, and once for the cells that look most like the other
# type.

# %%
frame = measured["E13.lookalike"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
for ax, kind, title in zip(
    axes,
    ("random", "alike"),
    ("wrong at random", "wrong where the cell looks like it"),
    strict=True,
):
    columns = {"measured": frame[f"{kind}_exam"], "true": frame[f"{kind}_true"]}
    colours = {"measured": "0.5", "true": BLUE}
    ylabel = "accuracy" if ax is axes[0] else ""
    plotting.seeds(ax, pd.DataFrame(columns), ylabel=ylabel, colours=colours)
    ax.set_title(title, fontsize=10)
    ax.tick_params(axis="x", labelsize=7)
plotting.show(
    "Measured and true accuracy of SCANVI on alpha and gamma cells, five seeds. With labels wrong at "
    "random the measured value is much lower than the true one; with look-alike errors, a little lower."
)

# %% [markdown]
# With errors at random, the test says 0.62 ± 0.03, and the truth is 0.88 ± 0.06. With look-alike errors,
# the test says 0.77 ± 0.02, and the truth is 0.84 ± 0.06 ([E13.lookalike](evidence/13_scanvi.py)). The
# second test looks much better, and the model is not. For two types the formula is $(\text{measured} -
# 0.3) / 0.4$. It corrects the first to 0.81, and the second to 1.18: more cells than there are. Model and
# expert err on the same cells, and the test counts this as success.
#
# ## 10 · The weight of the classifier
#
# How much should a label weigh against a bound? The equations cannot say: the cross-entropy is not
# part of any bound. Three conventions are in use.
#
# | | the bound is | the cross-entropy is | times |
# |---|---|---|---|
# | Kingma et al. (2014), `classifier_mean=False` | a sum over cells | a sum over labelled cells | $\alpha = 0.1 N$ |
# | ours, `classifier_mean=True` | a mean over a minibatch | a mean over its labelled cells | 50 |
# | released (scvi-tools 1.4.2) | a mean over a minibatch | a mean over *another* minibatch, of labelled cells only | 50 |
#
# To compare them, ask what **one label** weighs where one cell's bound weighs 1. In the first row it
# is $\alpha$. In the second, a minibatch of $B$ cells, of which $n$ have a label, has the loss
#
# $$-\frac1B \sum_{i} \text{bound}_i \;-\; 50 \cdot \frac1n \sum_{i \text{ labelled}} \log q(c_i \mid z_{1,i})$$
#
# Times $B$, this is a sum over cells in which a label weighs $50 \cdot B/n$. So its weight depends on
# the other cells of the minibatch, and a minibatch without a label adds no cross-entropy at all.
#
# In the third row a step always has labels: the loader has one list of all cells and one of the
# labelled cells, and starts the shorter list again whenever it ends (`ConcatDataLoader.__iter__`).
# Each step then adds 50 in all. In an epoch of $N/B$ steps, $N_l$ labels share a weight of $50 N$ in
# the units of one cell's bound: each has $50 \cdot N/N_l$.
#
# ### Exercise 13.5 · The weight of one label
# ★★★ · 12 minutes · 3 points
#
# Take the second row. In each epoch, $N$ cells are put at random into minibatches of $B$, and $N_l$
# of them have a label. Write `weight_of_a_label(ratio, n_cells, n_labelled, batch_size)`: what a
# labelled cell weighs *on average*, where a bound weighs 1, and `ratio` stands for the 50.
#
# <details><summary>Hint</summary>
#
# Do not look at one label; look at one minibatch. What do all its labels weigh together, if there
# are any? How often are there none? No cell is drawn twice: `math.comb` counts ways to choose.
#
# </details>


# %% nbgrader={"grade_id": "13-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def weight_of_a_label(ratio, n_cells, n_labelled, batch_size):
    """The mean weight of one label in a sum over cells; four numbers in, one out."""
    ### BEGIN SOLUTION
    ways_without = math.comb(n_cells - n_labelled, batch_size)
    has_any = 1 - ways_without / math.comb(n_cells, batch_size)
    return ratio * n_cells / n_labelled * has_any
    ### END SOLUTION


# %% nbgrader={"grade_id": "13-5-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("13.5", weight_of_a_label)

# %%
scenes = {"mouse 1 → mouse 2": (1886, 822), "human → mouse": (328, 175),
          "blood, 20 per type": (3774, 200), "blood, 1 per type": (3774, 10)}  # fmt: skip
print(f"{'':20s}{'released':>10s}{'ours':>10s}{'α = 0.1·N':>12s}")
for name, (n, n_labelled) in scenes.items():
    ours = weight_of_a_label(50, n, n_labelled, batch_size=128)
    print(f"{name:20s}{50 * n / n_labelled:10,.0f}{ours:10,.0f}{0.1 * n:12.0f}")

# %% [markdown]
# With many labels the conventions agree to a factor of two or three. With few, the released one gives
# each label a very large weight, and ours a large one. Is that good? Here are 1,000 blood cells of
# which 400 have a label, with a weight of 1 and of $\alpha = 0.1 N = 100$.

# %%
frame = measured["E13.weight"]
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
for ax, key, ylabel in zip(axes, ("accuracy", "excess", "bound"), (
    "right, cells without a label", "mean confidence − accuracy", "U, nats per cell",
), strict=True):  # fmt: skip
    columns = {f"weight {w}": frame[f"{key}_{w}"] for w in (1, 100)}
    if key == "accuracy":
        columns["regression"] = frame["regression"]
    colours = dict(zip(columns, (BLUE, RED, "0.5"), strict=False))
    plotting.seeds(ax, pd.DataFrame(columns), ylabel=ylabel, colours=colours)
    ax.tick_params(axis="x", labelsize=7)
axes[1].axhline(0, color="0.6", lw=1, ls=":")
plotting.show(
    "Accuracy, confidence beyond accuracy, and the bound U for label weights 1 and 100, five seeds "
    "each. With the larger weight accuracy and bound are lower, and confidence exceeds accuracy more."
)

# %% [markdown]
# A label of weight 1 is better in all three: 0.73 ± 0.03 of the names are right, against 0.69 ± 0.03 with
# weight 100 and 0.69 ± 0.03 for the tuned regression. Confidence exceeds accuracy by 0.02 ± 0.02,
# against 0.26 ± 0.03. And the bound is higher by 1.7 nats per cell, since $z_1$ need not serve the
# classifier first and the counts second ([E13.weight](evidence/13_scanvi.py)). In section 7, where the
# model was too sure, one label weighed 943.
#
# So the weight is the first setting to tune, as $C$ is for the regression. If labels are doubtful, if
# probabilities are to be believed, or if the latent space matters, 1 is a fair start. The published
# defaults are large. (Across species, where all labels are right, we kept the default of 50.)
#
# ### Exercise 13.6 · Bug hunt: a loss that will not fall
# ★★★ · 12 minutes · 3 points
#
# A colleague writes the classifier's term again, for types 0, 1, 2, … and −1 for a cell without a
# label. It runs on every minibatch:
#
# ```python
# def classifier_loss(logits, label):
#     q = logits.softmax(-1)  # q(c|z1)
#     return torch.nn.functional.cross_entropy(q, label.clamp(min=0))
# ```
#
# To try it, a linear classifier on the principal components of the mice is trained with it, where
# only mouse 1 has labels.

# %%
classifier = torch.nn.Linear(30, 13)
torch.manual_seed(0)
torch.nn.init.normal_(classifier.weight, std=0.01)
torch.nn.init.zeros_(classifier.bias)
features = torch.tensor(np.ascontiguousarray(pca)).float()
features = (features - features.mean(0)) / features.std(0)
adam, curve, first_type = torch.optim.Adam(classifier.parameters(), lr=0.05), [], []
for _ in range(300):
    logits = classifier(features)
    loss = torch.nn.functional.cross_entropy(logits.softmax(-1), cells.label.clamp(min=0))
    adam.zero_grad()
    loss.backward()
    adam.step()
    curve.append(loss.item())
    first_type.append((logits[is_new].argmax(-1) == 0).float().mean().item())
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
left.plot(curve, color=BLACK)
left.set(xlabel="step", ylabel="loss, nats", ylim=(0, 2.8), title="The loss")
right.plot(first_type, color=BLACK)
right.set(xlabel="step", ylabel="share of mouse 2", ylim=(0, 1), title=f"Cells called {types[0]}")
plotting.show(
    "Left, the loss falls from 2.6 and levels off near 1.7. Right, the share of mouse 2 called B cell "
    "rises to most of the cells."
)

# %% [markdown]
# Two things in these pictures are impossible for a right loss. Find the cause of each. (What would
# the loss of a *perfect* prediction be? You can compute it by hand.) And there is a third case that
# this run never met: a minibatch in which nobody has a label.
#
# Write `classifier_loss(logits, label)`: the mean of $-\log q(c \mid z_1)$ over the cells that have a
# label, and 0 if there are none. It must stay finite for logits in the hundreds. Section 11 trains a
# model with it, so a gradient has to flow back to `logits`.
#
# <details><summary>Hint</summary>
#
# For the left picture, read in the documentation of `cross_entropy` what its first argument should
# be. For the right picture, follow one cell of mouse 2 through the second line.
#
# </details>


# %% nbgrader={"grade_id": "13-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def classifier_loss(logits, label):
    """A number; logits have shape (n_cells, C), label (n_cells,) holds −1 where there is none."""
    ### BEGIN SOLUTION
    seen = label >= 0
    log_q = logits.log_softmax(-1)[seen, label[seen]]
    return -log_q.sum() / seen.sum().clamp(min=1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "13-6-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("13.6", classifier_loss)

# %%
perfect = 1000 * torch.eye(13)
twice = torch.nn.functional.cross_entropy(perfect.softmax(-1), torch.arange(13))
print(f"a perfect prediction, softmax twice: {twice:.3f} = log(e + 12) − 1")
print(f"once:                                {abs(classifier_loss(perfect, torch.arange(13))):.3f}")

# %% [markdown]
# So 1.7 was nearly the best that this loss can be: the softmax was taken twice. (This mistake stood
# in released code for years; lesson 12 has it.) And `clamp` turned every −1 into type 0, so that each
# unlabelled cell was taught to be a B cell. A loss has to be known at a point where it can be
# computed by hand. A perfect prediction is such a point.
#
# ## 11 · The same without z1
#
# Where does this model come from? Take $z_1$ away. The counts come from $z_2$ and the type directly,
# and the type is guessed from the counts. What is left is **M2** of Kingma et al. (2014). For a
# cell without a label its bound is
#
# $$\mathcal U_{\text{M2}} \;=\; \sum_c q(c \mid x)\,\Big\{ \mathbb E_{q(z_2 \mid x,c)} \big[\log p(x \mid z_2,c)\big] - \mathrm{KL}\big(q(z_2 \mid x,c)\,\|\,p(z_2)\big) \Big\} \;-\; \mathrm{KL}\big(q(c \mid x)\,\|\,p(c)\big)$$
#
# It is U with $z_1 = x$. All that needs $p(z_1 \mid z_2, c)$ and $q(z_1 \mid x)$ is gone, and every
# term is a KL or a reconstruction. In code, ten lines:

# %%
torch.manual_seed(0)
C, G, D = 10, small.n_vars, 10
m2 = torch.nn.ModuleDict({
    "classifier": MLP(G, C), "encoder": MLP(G, 2 * D, n_conditions=C),
    "decoder": MLP(D, n_conditions=C, dropout_rate=0.0),
    "likelihood": vaelab.likelihoods.make_likelihood("nb", 128, G, "gene", 1),
})  # fmt: skip


def bounds_of_m2(x, library):
    """log q(c|x), and the braces of the formula for each type: both (n_cells, C)."""
    seen = x.log1p()
    log_q = m2["classifier"](seen).log_softmax(-1)
    c = torch.eye(C)[:, None].expand(C, len(x), C)  # every type for every cell
    mean, log_sd = m2["encoder"](seen.expand(C, *x.shape), c).chunk(2, -1)
    q_z2 = torch.distributions.Normal(mean, log_sd.exp())  # (C, n_cells, D)
    p_x = m2["likelihood"](m2["decoder"](q_z2.rsample(), c), library)
    kl = torch.distributions.kl_divergence(q_z2, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    return log_q, (p_x.log_prob(x).sum(-1) - kl).T


def u_of_m2(log_q, braces):
    return (log_q.exp() * (braces - log_q - math.log(C))).sum(-1)


# %%
x = torch.tensor(small.layers["counts"].toarray()).float()
library, given = x.sum(1), torch.tensor(np.searchsorted(blood_types, small_truth))
given[torch.tensor(~has_label)] = -1
theta = m2["likelihood"].log_inverse_dispersion  # the settings of vaelab.fit
networks = [p for p in m2.parameters() if p is not theta]
adam = torch.optim.Adam([{"params": [theta], "lr": 0.1, "eps": 1e-8}, {"params": networks}],
                        lr=2e-2, eps=G / 2000)  # fmt: skip
for _ in range(500):
    at = torch.randperm(len(x))[:128]
    log_q, braces = bounds_of_m2(x[at], library[at])
    one = given[at].clamp(min=0)[:, None]  # L of the cells with a label, U of the others
    bound_l = braces.gather(1, one)[:, 0] - math.log(C)
    bound = torch.where(given[at] >= 0, bound_l, u_of_m2(log_q, braces))
    seen = (given[at] >= 0).float().mean()
    loss = -bound.mean() + 10 * seen * classifier_loss(log_q, given[at])  # α = 10 per label
    adam.zero_grad()
    loss.backward()
    adam.step()
m2.eval()
with torch.no_grad():
    log_q, braces = bounds_of_m2(x, library)
    u_m2 = u_of_m2(log_q, braces).mean().item()
right = (blood_types[log_q.argmax(1)] == small_truth)[~has_label].mean()
rival, its_cells = train(
    np.where(has_label, small_truth, "unknown"), classifier_weight=10.0, classifier_mean=False
)
u_scanvi = rival.elbo_per_cell(its_cells.unlabelled()).mean()
of_rival = (by_scanvi(rival, its_cells) == small_truth)[~has_label].mean()
print(f"M2:     U = {u_m2:.1f} nats per cell, right {right:.2f}")
print(f"SCANVI: U = {u_scanvi:.1f} nats per cell, right {of_rival:.2f}")

# %% [markdown]
# In this run the two differ by less than a nat per cell, and little in accuracy. One training each is not
# a ranking. What differs for certain is the cost: M2's decoder of all genes runs once for *each*
# type. In SCANVI it runs once, and only the small networks around $z_1$ and $z_2$ run $C$ times. And
# M2 has no space in which all types lie side by side, to be clustered or drawn. Kingma et al. found
# that M2 did better on top of another VAE's latent space (their M1 + M2, trained one after the
# other). SCANVI is that, trained at once.
#
# ## When to use which

# %%
methods = {"scanvi": "SCANVI", "regression": "regression", "neighbours": "neighbours",
           "nearest_mean": "nearest mean"}  # fmt: skip
data = {"to_mouse": "human → mouse", "to_human": "mouse → human", "blood_names": "blood, 20 labels"}
rows = {}
for claim, name in data.items():
    frame = measured[f"E13.{claim}"]
    for score in ("accuracy", "balanced_accuracy", "macro_f1"):
        of_score = {m: frame[f"{key}_{score}"] for key, m in methods.items()}
        rows[name, score] = {m: f"{v.mean():.3f} ± {v.std():.3f}" for m, v in of_score.items()}
print("mean ± sd of five seeds")
print(pd.DataFrame(rows).T.to_string())

# %% [markdown]
# The mice take 40 seconds a training. `tests/benchmarks/scanvi.py --data mice` gave for them, over
# five seeds with the settings of the saved model: accuracy 0.951 ± 0.010, balanced accuracy 0.931 ± 0.029 and
# macro-F1 0.890 ± 0.025 for SCANVI, and 0.965, 0.943 and 0.934 for the regression.
#
# - **One technology, enough labels** (the mice): logistic regression. It takes seconds, and nothing
#   here names more cells.
# - **Few labels, types that overlap** (blood): begin with the nearest mean. SCANVI with its default
#   weight does no better; a smaller weight per label is worth a trial (section 10).
# - **A batch effect between the named and the other cells** (the species): SCANVI, trained several
#   times. One training of five failed in each direction: hence the large standard deviations in the
#   table, and a mean that is not better than the regression's.
# - **Probabilities**: tuned regression; or SCANVI with small weights, or averaged over $z_1$.
# - **Anything about counts**, such as new cells or expression without the batch: a model of counts.
#
# ## What was not used, and why
#
# *Fine-tuning on the query alone* (scArches): here both experiments are trained together, which
# needs the old counts. *A prior of types* $p(c)$ other than uniform: where frequencies differ as
# between our mice, a learned one is a risk; try `prior_c="learned"`. *Temperature scaling*, which
# repairs calibration with held-out labels: cross-validation could give it labels even here. *A type
# "none of these"*: if you expect new types you may add one, but you have no examples of it.
#
# ## Try it yourself
#
# 1. *(5 minutes)* Which alpha cells of mouse 2 are called gamma, and is the model unsure of them? Draw
#    *Gcg* against *Ppy* for them.
#    <details><summary>Hint</summary><code>with_hormones[mask, "Gcg"].layers["log_normalized"]</code>
#    has the gene that the model did not have; the confidence is that of section 7.</details>
# 2. *(10 minutes)* Take 1 and 15 nearest neighbours on the mice, without cross-validation. Which
#    score changes most, and why?
#    <details><summary>Hint</summary>Five types have four examples or fewer. How many votes can they
#    get among 15 neighbours?</details>
# 3. *(15 minutes)* Exchange the mice: name mouse 1 by mouse 2, with the default settings. How does
#    SCANVI compare with logistic regression?
#
# ## What to take along
#
# - Report a score that counts types, and put *tuned* baselines into the table.
# - Names within one technology need no network. A batch effect between the named and the other
#   cells may need one, and then more than one training.
# - Look at the errors as a biologist would, before you change the model: the gene may not be there.
# - A probability is a claim that can be tested. Averaging over $z_1$ makes it more modest, not right.
#   Where one name is not sure, report a set, and its coverage.
# - High entropy means *between known types*. For a new type that lies apart, ask how far away it is.
# - Random errors in labels make a test look too hard. For errors that look at the cell, correct
#   nothing: the formula no longer holds.
# - The weight of the classifier is part of no bound. Say which convention, and what one label
#   weighs.
#
# ## What the claims rest on

# %%
evidence.table("13")

# %% [markdown]
# **Next:** [lesson 14](14_model_zoo.ipynb) builds eight models of the literature from the same parts,
# and tries their claims. If you skipped it, [lesson 12](12_elbo_challenge.ipynb) compares the bounds L
# and U with the code that was released.
#
# **Read on.** The model: R. Lopez, *ELBO Challenge: Single-Cell ANnotation using Variational
# Inference* (2018), and C. Xu et al., *Probabilistic harmonization and annotation of single-cell
# transcriptomics data with deep generative models*, Molecular Systems Biology 17 (2021) e9620. The
# same model as one generative program: *scANVI* in the tutorials of Pyro. M1, M2 and α: D. Kingma, S.
# Mohamed, D. Rezende and M. Welling, *Semi-supervised learning with deep generative models*,
# NeurIPS (2014). Calibration: C. Guo, G. Pleiss, Y. Sun and K. Weinberger, *On calibration of modern
# neural networks*, ICML (2017). The pancreas cells: M. Baron et al., Cell Systems 3 (2016) 346–360.
# The blood cells: G. Zheng et al., Nature Communications 8 (2017) 14049.
