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
# # 11 · A list of genes, with a certificate
#
# Which genes differ between two groups of cells? It is the question that most users of scVI ask,
# and the answer is a list. On top of the list stands a promise, such as "at most 10 % of these
# genes are false". Below are two such lists, drawn as *volcano plots*: one dot per gene, its fold
# change from left to right, the model's certainty upwards, and the called genes in colour. Both are
# made by one model, one method and one promise, 10 %. One list compares alpha with beta cells. The
# other compares beta cells with beta cells: a coin decided which cell went to which side.
# **Which list is the coin's, and how could you find out?**
#
# **Objectives.** After this lesson you can
#
# - turn posterior samples of two cells into a probability and a Bayes factor, and say why $z$ is
#   drawn once for all genes;
# - go from two cells to two groups, and say which question "pairs" and "means" answer;
# - make a list with an expected false discovery rate, and **measure** that rate on groups that do
#   not differ;
# - measure power and false discoveries where the truth is known, next to Wilcoxon's test and the
#   t-test;
# - say what a cell is a replicate of, and test between mice when the question is about mice.
#
# **You need** lesson [10](10_scvi.ipynb) (scVI, normalised expression, batches). **Time:** about
# two and a half hours: 85 minutes to the marked stop, 65 after it. **Data:** 8 MB, two mouse
# pancreases (Baron et al. 2016) and sorted blood cells (Zheng et al. 2017). Statements about several
# seeds have a link to the code behind them; ± is the standard deviation over seeds.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats

import vaelab
from vaelab import plotting
from vaelab.plotting import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY
from vaelab.reparametrization import gaussian, seeded
from vaelab.teaching import evidence

torch.set_num_threads(1)
measured = evidence.read("11")  # what was measured over seeds, one table for each claim


def compare(cells, group, reference=None, model=None, **options):
    """The package's table, with fewer draws than its default: the lesson stays short."""
    options = {"n_samples": 25, "progress": False} | options
    return vaelab.differential_expression(model or mice, cells, group, reference, **options)


# %% [markdown]
# The model is the simplified scVI of lesson 10, trained on both mice
# (`vaelab train pancreas_scvi_both`). One thing is new: the 2,000 genes are those that vary in
# *both* mice. The selection of lesson 10 lacks *Gcg*, the hormone of alpha cells. No method can
# call a gene that it was not given, so look for your markers before you train.

# %%
raw = vaelab.datasets.pancreas("both")
adata = vaelab.select_genes(raw, n_genes=2000, batch="batch")
cells = vaelab.Cells.from_anndata(adata, layer="counts", batch="batch", label="cell_type")
mice = vaelab.SCVI.load("../saved_model_parameters/pancreas_scvi_both")
genes = np.array(cells.gene_names)
mouse = adata.obs["batch"].to_numpy().astype(str)
cell_type = adata.obs["cell_type"].to_numpy().astype(str)
beta = cell_type == "beta"
lost = {"Ins2", "Gcg", "Sst", "Krt19"} - {*vaelab.select_genes(raw, n_genes=2000).var_names}
print(f"{len(cells):,} cells, {len(genes):,} genes; the other selection lacks {', '.join(lost)}")


def toss(groups, seed):
    """Heads or tails for each cell: half of the cells of each group get True."""
    rng, heads = np.random.default_rng(seed), np.zeros(len(groups), dtype=bool)
    for name in np.unique(groups):
        own = rng.permutation(np.flatnonzero(groups == name))
        heads[own[: len(own) // 2]] = True
    return heads


heads = np.zeros(len(cells), dtype=bool)
heads[beta] = toss(mouse[beta], seed=0)  # half of the beta cells of each mouse

# %%
promised = {"mode": "pairs", "fdr": 0.1, "delta": 0.25, "pseudocount": 1e-9}
first = compare(cells, heads, beta & ~heads, **promised)
second = compare(cells, "alpha", "beta", **promised)
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
for ax, table, name in zip(axes, [first, second], "AB", strict=True):
    plotting.volcano(table, names=0, ax=ax)
    ax.get_legend().remove()
    for line in [*ax.lines]:
        line.remove()
    ax.set(title=f"List {name}: most genes are called", xlabel="fold change", xticks=[], yticks=[])
    ax.set_ylabel("the model's certainty")
plotting.show("Two volcano plots without numbers on their axes. In both, most genes are called, in "
              "both directions.")  # fmt: skip
for name, table in {"A": first, "B": second}.items():
    print(f"list {name}: a share of {table['called'].mean():.1f} of the genes is called")

# %% [markdown]
# List A is the coin's. The promise was that at most one gene in ten is false. **All of them are
# false.** The code has no bug. It draws random pairs of cells, one of each group, compares their
# expression in the posterior of the model, and calls what differs. This lesson takes it apart,
# until we know what the promise was about, and have a way to check any list: a *certificate*, that
# is a rate of false genes that is measured, not promised.
#
# ## 1 · Two cells
#
# Take one beta cell and one alpha cell, of the same mouse. For each, the encoder gives
# $q(z \mid x)$, the decoder turns a draw of $z$ into shares $\rho$ of all genes (lesson 10). With
# $S$ draws we have $S$ samples of each gene's share in each cell.


# %%
def shares(cells, n_samples, seed=0):
    """Samples of ρ, averaged over both mice; shape (n_samples, n_cells, n_genes)."""
    with torch.no_grad(), seeded(seed):
        part, found = cells.unlabelled().to(), []
        q = mice.encode(part)
        for z in gaussian(q.mean, q.stddev, n_samples):  # one z for all genes of a cell
            in_each = [mice.decode(z, mice.blank_cells(len(part), 1.0, b)).mean for b in (0, 1)]
            found.append((in_each[0] + in_each[1]) / 2)
    return torch.stack(found).numpy()


of_2 = mouse == "mouse 2"
one = {name: np.flatnonzero(of_2 & (cell_type == name))[0] for name in ("beta", "alpha")}
ρ = {name: shares(cells[[i]], 1000, seed)[:, 0] for seed, (name, i) in enumerate(one.items())}
look = plotting.look([*one, "delta", "ductal"])

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
for ax, gene in zip(axes, ["Ins2", "Gcg", genes[0]], strict=True):
    samples = {name: 1e4 * s[:, genes == gene].ravel() for name, s in ρ.items()}
    low, high = min(map(np.min, samples.values())), max(map(np.max, samples.values()))
    for name, values in samples.items():
        ax.hist(values, np.linspace(low, high, 60), histtype="step", lw=2, label=name,
                color=look[name]["color"])  # fmt: skip
    ax.set(title=gene, yticks=[], xlabel="share, per 10,000")
axes[0].set_ylabel("samples")
axes[2].legend(frameon=False)
plotting.show("Samples of the share of three genes in a beta and an alpha cell: far apart for Ins2 and "
              "Gcg, overlapping for the third.")  # fmt: skip

# %% [markdown]
# The two hypotheses about a gene are
#
# $$H_a:\ \rho_a > \rho_b \qquad\text{and}\qquad H_b:\ \rho_a \le \rho_b$$
#
# Course notes on scVI ([MCB128, Harvard, 2026](http://rivaslab.org/teaching/MCB128_AIMB/b5/b5_lecture.html),
# "Uses: differential gene expression") call both of them $H_1$, and the two formulas that should
# follow are missing: "calculate normalized expressions", and "the ratio of the two hypotheses".
# Here they are. The normalised expression is $\rho^{(s)} = \mathrm{softmax}\, f(z^{(s)}, \gamma)$,
# averaged over batches $\gamma$ (lesson 10). The ratio is
#
# $$K = \frac{p(H_a \mid x_a, x_b)}{p(H_b \mid x_a, x_b)} \approx \frac{\frac1S\sum_s 1[\rho_a^{(s)} > \rho_b^{(s)}]}{\frac1S\sum_s 1[\rho_a^{(s)} \le \rho_b^{(s)}]}$$
#
# where $1[\cdot]$ is 1 if the statement in the brackets is true, and 0 if it is not.
#
# Strictly, $K$ is the *posterior odds*. A **Bayes factor** is the posterior odds over the prior
# odds. Before any data, cells $a$ and $b$ are exchangeable, so the prior odds are 1, and both are
# the same number.
#
# Two details make $K$ usable. If all $S$ samples favour $a$, the estimate is infinite, which $S$
# samples cannot show: we add **half a count** to each side. And if both shares are equal, which
# happens to tiny numbers on a computer, half of the sample goes to each side. Then exchanging $a$
# and $b$ turns the sign of $\log K$, exactly.
#
# ### Exercise 11.1 · The ratio that was left out
# ★★☆ · 8 minutes · 3 points
#
# Write `bayes_factor(rho_a, rho_b)` for samples of two cells, two arrays of shape (S, n_genes). It
# returns two numpy arrays of shape (n_genes,): the probability that $a$ is higher, with half a count
# on each side (so there are $S + 1$ counts in total) and half of each tie; and $\log K$ in nats (with
# the natural logarithm). A tie is exact equality.
#
# <details><summary>Hint</summary>Write down what one gene gives with S = 1 and ρ_a > ρ_b: 1½ counts
# for a, ½ for b, P = ¾, K = 3. Does your function say so?</details>


# %% nbgrader={"grade_id": "11-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def bayes_factor(rho_a, rho_b):
    """P(ρ_a > ρ_b) and log K of each gene; both of shape (n_genes,)."""
    ### BEGIN SOLUTION
    for_a = (rho_a > rho_b).sum(0) + 0.5 * (rho_a == rho_b).sum(0) + 0.5
    p = for_a / (len(rho_a) + 1)
    return p, np.log(p) - np.log1p(-p)
    ### END SOLUTION


# %% nbgrader={"grade_id": "11-1-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("11.1", bayes_factor)

# %% [markdown]
# scVI's authors read $|\log K| > 3$ as strong evidence: odds of 20 to 1.
#
# **Predict first.** Compare the beta cell with *another beta cell of the same mouse*. Of 2,000
# genes, how many will have $|\log K| > 3$: about 20, or hundreds?
# <details><summary>Answer</summary>Hundreds. The question is about these two cells, and no two
# cells are equal: one has more insulin, or is more stressed. The model is sure of it, because
# it reads it from 2,000 genes. Evidence about two cells is not evidence about two
# types.</details>

# %% tags=["not-in-grading"]
twin = np.flatnonzero(of_2 & beta)[1]
ρ["another beta"] = shares(cells[[twin]], 1000, seed=2)[:, 0]
for name in ("alpha", "another beta"):
    _, log_k = bayes_factor(ρ["beta"].copy(), ρ[name].copy())
    share = (np.abs(log_k) > 3).mean()
    print(f"beta cell against {name} cell: |log K| > 3 for {share:.1f} of the genes")

# %% [markdown]
# ## 2 · One z for all genes
#
# The notes write $q(z \mid x_a^g)$, with the gene's index on the counts. Read literally, each gene
# has a $z$ of its own, inferred from its own count. **It is $q(z \mid x_a)$**: the encoder reads
# all genes of the cell, $z$ is drawn once, and all shares of a sample come from that $z$. For one
# gene at a time this makes no difference to how samples are counted. For two genes it does.

# %%
difference = np.log2(ρ["beta"] / ρ["another beta"])
pair = [np.flatnonzero(genes == name)[0] for name in ("Ins1", "Ins2")]
together = difference[:, pair]
apart = np.stack([together[:, 0], np.random.default_rng(0).permutation(together[:, 1])], axis=1)
fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharex=True, sharey=True)
for ax, points, title in zip(
    axes, [together, apart], ["one z for both genes", "a z for each gene"], strict=True
):
    ax.plot(*points.T, "o", ms=3, mew=0, alpha=0.4, color=BLUE)
    ax.set(title=title, xlabel="log₂ fold change of Ins1")
axes[0].set_ylabel("log₂ fold change of Ins2")
plotting.show("Samples of the fold changes of Ins1 and Ins2 between two beta cells. With one z the two "
              "genes rise and fall together; with a z for each gene they do not.")  # fmt: skip

# %% [markdown]
# If a sample says that the cell has more *Ins1*, it also says more *Ins2*. So the errors in a list
# come together: in most samples a list is nearly right, in a few it is wrong in many places.
#
# ### Exercise 11.2 · One z for all genes
# ★☆☆ · 5 minutes · 2 points
#
# Write `list_is_right(rho_a, rho_b)` for the genes on a list, two arrays of shape (S, n_genes):
# the probability that **all** genes on the list are higher in $a$, as a share of the samples
# (without half counts).
#
# <details><summary>Hint</summary>Each sample says yes or no to the whole list. What would you get
# for two genes that always agree, each with probability 0.9?</details>


# %% nbgrader={"grade_id": "11-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def list_is_right(rho_a, rho_b):
    """The share of samples in which every gene is higher in a."""
    ### BEGIN SOLUTION
    return (rho_a > rho_b).all(axis=1).mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "11-2-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("11.2", list_is_right)

# %% [markdown]
# ## 3 · Two groups
#
# Nobody wants to know about two cells. There are two ways from cells to groups, and they answer
# **different questions**.
#
# - **Pairs**: draw a random cell of each group, and compare their shares. $P(\rho_a > \rho_b)$ is
#   now a probability over cells *and* posteriors. scVI's paper goes this way.
# - **Means**: compare the mean share of the groups, $\bar\rho_a = \frac1{n_a}\sum_{i \in a}\rho_i$.
#   This is what biologists mean by "the fold change".
#
# A gene can differ between almost all pairs of cells, and its means can be equal: it varies
# *within* the groups. A pair says that two cells differ. It does not say that the groups do.
#
# ### Exercise 11.3 · The fold change of two groups
# ★★☆ · 8 minutes · 3 points
#
# Write `fold_changes(rho_a, rho_b, epsilon)`. The samples now have the shapes (S, n_a, n_genes) and
# (S, n_b, n_genes). For each sample and gene, return the log2 ratio of the groups' mean shares,
# with `epsilon` added to both means; a numpy array of shape (S, n_genes).
#
# Why `epsilon`? A share of $10^{-9}$ against $10^{-7}$ is a fold change of 100, and no experiment
# can see either. A small $\varepsilon$, such as a tenth of a count in a typical cell, makes it
# nearly 0.
#
# <details><summary>Hint</summary>Over which axis do you take the mean, and before or after the
# logarithm? Which axis must still be there at the end?</details>


# %% nbgrader={"grade_id": "11-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def fold_changes(rho_a, rho_b, epsilon):
    """log2 of the ratio of mean shares, for each sample and gene; shape (S, n_genes)."""
    ### BEGIN SOLUTION
    a, b = rho_a.mean(axis=1), rho_b.mean(axis=1)
    return np.log2((a + epsilon) / (b + epsilon))
    ### END SOLUTION


# %% nbgrader={"grade_id": "11-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("11.3", fold_changes)

# %% [markdown]
# Now the coin again: random halves of the beta cells. For one gene, here are the samples of its
# fold change by pairs, and by means.

# %% tags=["not-in-grading"]
ρ_beta = shares(cells[beta], 25)  # (25, 894, 2000)
half = heads[beta]
ε = 0.1 / cells.library.median().item()
by_means = fold_changes(ρ_beta[:, half], ρ_beta[:, ~half], ε)
rng = np.random.default_rng(0)
a, b = (ρ_beta[np.arange(2000) % 25, rng.choice(np.flatnonzero(h), 2000)] for h in (half, ~half))
by_pairs = np.log2((a + ε) / (b + ε))
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
g, bins = np.flatnonzero(genes == "Iapp")[0], np.linspace(-2, 2, 81)
for values, colour, name in (
    (by_pairs, SKY, "pairs of cells"),
    (by_means, BLUE, "means of groups"),
):
    ax.hist(values[:, g], bins, density=True, color=colour, label=name, alpha=0.8)
for side in (-0.25, 0.25):
    ax.axvline(side, color="0.4", lw=1, ls="--")
ax.set(xlabel="log₂ fold change of Iapp, heads over tails", ylabel="density", yscale="log")
ax.legend(frameon=False)
plotting.show("Samples of the fold change of one gene between random halves: those of pairs are spread "
              "widely around zero, those of means are close to zero.")  # fmt: skip

# %% [markdown]
# With pairs, the fold change is beyond $\pm\delta = \pm 0.25$ (dashed) in more than half of the
# samples. This is true: for *Iapp*, most pairs of beta cells differ by nearly a fifth or more. It is
# true for heads against tails, and just as true within heads. **$P(|\mathrm{LFC}| > \delta)$ is high
# for a gene about which the groups say nothing.** For most genes it is near 0.9 if $\varepsilon$ is
# almost 0, as it was for list A: rare genes then have the largest fold changes, and about three
# quarters of the genes are called.
#
# ## 4 · From probabilities to a list
#
# For each gene we have samples of its fold change, and two numbers: $P(\mathrm{LFC} > 0)$, and
# $p_g = P(|\mathrm{LFC}| > \delta)$, where $\delta$ is the smallest change that you care about. The
# second is better for lists. With enough cells everything differs a little, and no gene has a
# change of exactly 0.
#
# Call $k$ genes. The model expects $\sum (1 - p_g)$ of them to be false, so the **expected false
# discovery rate** is the mean of $1 - p_g$ over the list. To call as many genes as possible, take
# them in the order of $p_g$.
#
# ### Exercise 11.4 · How long may the list be?
# ★★☆ · 8 minutes · 3 points
#
# Write `list_length(p_change, level)`: the largest number of genes that can be called with an
# expected false discovery rate of at most `level`, or 0 if none can. `p_change` has shape (n_genes,),
# in no order; no two are equal.
#
# <details><summary>Hint</summary>Three genes have p = 0.99, 0.97 and 0.91. Which lists have an
# expected rate of at most 0.05? Is a gene with p = 0.91 allowed on one of them?</details>


# %% nbgrader={"grade_id": "11-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def list_length(p_change, level):
    """The number of genes on the longest list with this expected false discovery rate."""
    ### BEGIN SOLUTION
    false = np.sort(1 - p_change)  # the surest first
    expected = np.cumsum(false) / np.arange(1, len(false) + 1)
    return int((expected <= level).sum())
    ### END SOLUTION


# %% nbgrader={"grade_id": "11-4-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("11.4", list_length)

# %% [markdown]
# The package does these steps in one call, and returns a table. Its default is means of groups
# (`mode="groups"`; the other is `mode="pairs"`), with additions that sections 6 and 7 explain.
# Positive means higher in the first group.
# (`mean_group` and `mean_reference` are per 10,000 counts.)

# %%
table = compare(cells, "alpha", "beta", delta=1.0)
columns = ["lfc", "lfc_low", "lfc_high", "p_higher", "p_change", "mean_group", "mean_reference"]
table.loc[["Gcg", "Ttr", "Ins2", "Ins1", "Sst", "Krt19"], columns].round(
    {"p_higher": 2, "p_change": 2, "mean_group": 0, "mean_reference": 0}
    | dict.fromkeys(columns[:3], 1)
)

# %%
fig, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
plotting.volcano(table, names=8, ax=ax)
ax.set_title("Alpha over beta cells, both mice")
plotting.show("Volcano plot of alpha over beta cells. Named genes: Gcg and other genes of alpha cells "
              "far on the right, the insulins on the left.")  # fmt: skip

# %% [markdown]
# What does $\delta$ do? Move it. (Each new $\delta$ takes a second or two.)

# %% tags=["nbval-ignore-output"]
from functools import cache

from ipywidgets import FloatSlider


@cache
def at_delta(delta):
    return compare(cells, "alpha", "beta", delta=delta)


def draw_delta(delta):
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    plotting.volcano(at_delta(delta), names=6, ax=ax)
    ax.set(xlim=(-6.5, 6.5), ylim=(-0.2, 4), title=f"δ = {delta:.2f}, expected rate 5 %")
    return fig


plotting.interactive(
    draw_delta,
    alt="Volcano plot of alpha over beta cells for one δ. With a larger δ, fewer genes are called.",
    delta=FloatSlider(0.25, min=0.25, max=3, step=0.25, description="δ"),
)

# %% [markdown]
# ### Known markers
#
# A list that misses what every textbook says is not of use. Each type against all other
# cells (half a minute on a slow machine):

# %%
markers = {"beta": "Ins2", "alpha": "Gcg", "delta": "Sst", "ductal": "Krt19"}
rows = []
for name, gene in markers.items():
    found = compare(cells, name, delta=1.0)
    rank = int(found["lfc"].rank(ascending=False)[gene])
    rows.append({"group": name, "marker": gene, "called": found.loc[gene, "called"],
                 "among the 25 highest": rank <= 25})  # fmt: skip
blood = vaelab.select_genes(vaelab.datasets.pbmc_sorted(), n_genes=2000)
sorted_cells = vaelab.SCANVI.load("../saved_model_parameters/pbmc_scanvi")
in_blood = vaelab.Cells.from_anndata(blood, layer="counts", label="cell_type")
rows += [
    {"group": f"{name} (blood)", "marker": gene,
     "called": (of := compare(in_blood, name, model=sorted_cells, delta=1.0)).loc[gene, "called"],
     "among the 25 highest": of["lfc"].rank(ascending=False)[gene] <= 25}
    for name, gene in {"B cell": "CD79A", "NK cell": "NKG7", "monocyte": "LYZ"}.items()
]  # fmt: skip
pd.DataFrame(rows)

# %% [markdown]
# All are called, and near the top; with five other trainings on the mice, too
# ([E11.markers](evidence/11_differential_expression.py)). But these groups make it easy, and one of
# the two data sets makes it *too* easy. The types of the pancreas are clusters that the authors
# made **from the same counts**. Genes that separate the clusters were used to draw the borders, and
# no test knows that ("double dipping"). The blood cells were sorted by antibodies before they were
# sequenced, so their groups are independent of the counts. (This model was given 20 labels of each
# type.) To name cells, markers are enough. To trust the *rate* on a list, more is needed.
#
# **Stop here** if you work in two sessions. You have two cells, two groups, a list, and a doubt.
# Next: what the promise on the list is worth.
#
# ## 5 · A certificate
#
# Groups that do not differ can always be made. **Split** one group at random, or **permute** the
# labels of both groups within each batch (each batch then has as many cells in each group as
# before). Make the same calls: every one is false. This is a *null*. It needs no theory.
#
# ### Exercise 11.5 · A certificate
# ★★☆ · 6 minutes · 2 points
#
# You get each gene's $p_g$ in the comparison of interest, `p_change` of shape (n_genes,), and in
# each null, `p_null` of shape (n_nulls, n_genes). A gene is called if its p is at least `cutoff`.
# Write `certificate(p_change, p_null, cutoff)`, which returns two numbers: the **measured false
# discovery rate**, that is the mean number of calls in a null over the number of calls on the list,
# at most 1; and the share of nulls in which any gene is called. An empty list has the rate 0 if no
# null has a call, and otherwise 1.
#
# <details><summary>Hint</summary>A list has 200 genes. Ten nulls have 300 calls in total. How many
# of the 200 do you expect to be false?</details>


# %% nbgrader={"grade_id": "11-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def certificate(p_change, p_null, cutoff):
    """The measured false discovery rate, and the share of nulls with a call."""
    ### BEGIN SOLUTION
    false_calls = (p_null >= cutoff).sum(axis=1)  # of each null
    calls, false = (p_change >= cutoff).sum(), false_calls.mean()
    rate = false / max(calls, false) if false else 0.0  # at most 1, also of an empty list
    return rate, (false_calls > 0).mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "11-5-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("11.5", certificate)

# %% [markdown]
# In the package, every call can bring its null, `null="split"` or `null="permutation"`: see
# `table.attrs["null"]`, and the column `fdr_null`.
#
# What do the methods give on random halves of the beta cells? Next to pairs and means stand
# **Wilcoxon's test** and the **t-test** of scanpy, with Benjamini and Hochberg's correction. All
# look for changes of the same size: a gene also needs a fold change beyond $\delta = 0.25$. For
# each of five trainings, we tossed the coin 20 times.
#
# **Predict first.** Which of pairs, means, Wilcoxon and t-test call genes here?
# <details><summary>Answer</summary>Almost only pairs, and how many depends on ε, the share
# that is added to both sides. Means, Wilcoxon and the t-test call hardly any gene.</details>

# %%
ways = {"plain": "means", "Wilcoxon": "Wilcoxon", "t-test": "t-test", "pairs": "pairs",
        "bare": "pairs,\nno ε"}  # fmt: skip
colours = dict(zip(ways.values(), [BLUE, ORANGE, GREEN, SKY, "0.5"], strict=True))
frame = measured["E11.coin"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained", sharey=True)
for ax, level in zip(axes, ["5 %", "10 %"], strict=True):
    columns = frame[[f"{way}, {level}" for way in ways]].set_axis(ways.values(), axis=1)
    plotting.seeds(ax, columns, ylabel="false calls, of about 1,000 genes", colours=colours)
    ax.set_yscale("symlog", linthresh=1)
    ax.set(title=f"claimed {level}", ylim=(-0.2, 3000))
axes[1].set_ylabel("")
plotting.show(
    "False calls between random halves. At a claimed 5 % there are few or none. At 10 %, pairs of "
    "cells without ε call all genes, pairs with ε a few, all others about none."
)

# %% [markdown]
# **Pairs without $\varepsilon$, at a claimed 10 %, call all of the 1,002 genes in almost every
# toss, all of them falsely**; at a claimed 5 % they call 107 ± 64
# ([E11.coin](evidence/11_differential_expression.py)). (These models have about half as many genes as
# the one behind list A, which called three quarters of its 2,000.) Most genes have similar values of $p_g$, so
# the list has a cliff: it is short, and a little later it is complete. With $\varepsilon$, 4 ± 1
# genes are left at 10 %. Means, and both tests, call fewer than one gene per toss.
#
# The cure is to ask about means. So means have a certificate. Is all well?
#
# A null says what a method does when *nothing* differs. And this null used a model in which heads
# and tails lie on top of each other. The decoder cannot treat them differently. Alpha and beta
# cells do *not* lie on top of each other.
#
# ## 6 · Where the truth is known
#
# So we simulate (`vaelab.simulate.two_groups`): two groups of 300 cells, and 500 genes, of which
# 100 change by ±0.5, ±1 or ±2 on the log2 scale. The rest change by exactly 0. A model is trained
# on these cells; it does not see the groups. Then each list has a **true** share of false genes.
#
# **Predict first.** Means passed the null. What will their true rate be, at a claimed 5 %: below
# 5 %, about 5 %, or more?
# <details><summary>Answer</summary>More: over a quarter of the genes on the list are
# false.</details>

# %%
frame = measured["E11.truth"]
ways = {"plain": "means", "Wilcoxon": "Wilcoxon", "t-test": "t-test",
        "default": "means, wider, prior", "pairs": "pairs", "flat": "means, wider"}  # fmt: skip
colours = dict(zip(ways.values(), [BLUE, ORANGE, GREEN, BLACK, SKY, RED], strict=True))


def rates(way, depth):
    """Claimed and true rates of a way, one row for each seed and level."""
    return pd.DataFrame(
        [
            (p / 100, rate / 100)
            for p in (1, 5, 10)
            for rate in frame[f"false, {way}, {p} %, {depth}"]
        ],
        columns=["claimed", "measured"],
    )


plotting.calibration_of_calls({words: rates(way, 2000) for way, words in ways.items()})
plotting.show(
    "Measured against claimed false discovery rates. Means are far above the diagonal. Wider means "
    "are above it; with a prior they are on it or below, as Wilcoxon's test and the t-test are."
)
pd.DataFrame({
    f"{depth:,} counts per cell": {
        words: frame[f"false, {way}, 5 %, {depth}"].mean() for way, words in ways.items()
    } for depth in (500, 2000, 8000)
}).round(0)  # fmt: skip

# %% [markdown]
# **At a claimed 5 %, 27 ± 3 % of the genes on the list of means are false** (2,000 counts per cell;
# [E11.truth](evidence/11_differential_expression.py)). Did the null warn us? In the same
# simulations, permuted labels give no call in any seed, where the list has 34 ± 7 false ones: a
# measured rate of 0, and a true one of 27 ± 3 %
# ([E11.blind](evidence/11_differential_expression.py)). **The null passed, and the list was
# wrong.** Why? The counts of a gene differ a little between two groups by chance. If the groups lie
# apart in the latent space, the decoder can fit this chance difference, because it is in the
# counts. We can test that. Make the same simulation without any changed gene, so that nothing
# separates the groups: then the model is sure ($p_g > 0.95$) of none of the unchanged genes. If 100
# other genes change, it is sure of 2.9 ± 0.5 % of them
# ([E11.apart](evidence/11_differential_expression.py)). A permutation after training mixes the
# groups, and does not see this. So a null with the trained model held fixed is necessary, and not
# sufficient.
#
# The package's default makes two changes to plain means. **Wider**: each sample of the fold change
# is widened to the sampling error of the counts themselves (`count_noise=True`; section 7). It
# brings the rate from 27 ± 3 % to 13 ± 2 %. That is still too much, for another reason: most genes
# do *not* change, and nothing has said so yet. A gene whose estimate is 0.5 ± 0.15 may be one of
# few with a real change, or one of the many with an unlucky one. **A prior**: the share of genes
# that do not change, and the spread of those that do, are estimated from all genes together
# (Stephens 2017), and each gene is judged with this prior. Now the rate
# is 2.3 ± 2.0 %, next to 2.2 ± 1.7 % for Wilcoxon's test and 2.9 ± 2.9 % for the t-test. With 500
# and 8,000 counts per cell, it is 0.6 ± 1.4 % and 2.2 ± 1.1 %; at a claimed 10 %, 7 ± 4 %. In these
# simulations the claim holds, with some room. They have the gamma and Poisson noise that the model
# assumes, which is the best case for it. Pairs show their cliff again: no call at 5 %, and 36 ± 3 %
# of false genes at 10 %.
#
# ### Power
#
# A list can be honest by being empty. So we also ask which share of the changed genes each method
# finds: at its own claim of 5 %, and at an **equal true rate** of 5 %, where each list is cut where
# the truth says so.

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), layout="constrained", sharey=True)
for ax, size in zip(axes, ["0.5", "1", "2"], strict=True):
    for (way, words), mark in zip(ways.items(), "so^Dvp", strict=True):
        power = frame[[f"power, {way}, {size}, {depth}" for depth in (500, 2000, 8000)]]
        ax.errorbar([500, 2000, 8000], power.mean(), power.std(), marker=mark, ms=5, lw=1.5,
                    color=colours[words], label=words)  # fmt: skip
    ax.set(xscale="log", title=f"changes of ±{size}", xlabel="counts per cell", ylim=(-5, 105))
    ax.set_xticks([500, 2000, 8000], ["500", "2,000", "8,000"])
    ax.minorticks_off()
axes[0].set_ylabel("changed genes found (%)")
fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=6)
plotting.show(
    "Share of changed genes found against counts per cell, for three sizes of change. It rises with "
    "both for all methods but pairs, which find only the largest changes. Means find most, with most "
    "false ones."
)
pd.DataFrame({
    f"{depth:,} counts per cell": {
        words: frame[f"equal, {way}, {depth}"].mean() for way, words in ways.items()
    } for depth in (500, 2000, 8000)
}).round(0)  # fmt: skip

# %% [markdown]
# The figure has the power at each method's own claim of 5 %. The table has the power at an equal
# true rate of 5 %, where no method can gain by false genes. **At an equal true rate, the model is
# not better than the t-test.** With 2,000 counts per cell, the default finds 82 ± 5 % of
# the changed genes, Wilcoxon's test 82 ± 6 %, and the t-test 86 ± 5 %, a few more with the same
# cells ([E11.truth](evidence/11_differential_expression.py)). Pairs find 34 ± 5 %: the difference
# between two cells says little about that between two groups. Depth and effect size matter more
# than the choice among these three. At its own claim of 5 %, the default finds 19 ± 11 % of the
# changes of ±0.5 with 500 counts per cell, and 70 ± 4 % with 8,000; of those of ±2, 84 ± 8 % and all.
#
# ### Changes that the latent space does not hold
#
# In the simulations, the changed genes are a fifth of all, and they pull the groups apart in the
# latent space. Now take real cells. Split the beta cells of both mice at random, and *thin* the
# counts of a tenth of the genes, 78, in one of the halves: each molecule is kept with probability
# $2^{-0.5}$, $2^{-1}$ or $2^{-2}$. These changes are known, the rest is a real cell. (The hormones
# stay: they have most of the counts, so that thinning them changes the shares of all other genes.)
#
# **Predict first.** A change of ±2 is a factor of four. Does the model find these genes?
# <details><summary>Answer</summary>Hardly any. ρ is a function of z. Where the counts of a few
# genes say little about z, z has the same distribution in both halves, and so has ρ.</details>

# %%
frame = measured["E11.planted"]
ways = {"plain": "means", "default": "means, wider, prior", "Wilcoxon": "Wilcoxon",
        "t-test": "t-test"}  # fmt: skip
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained", sharey=True)
for ax, name, title in zip(
    axes, ["found", "found ±2"], ["all changes", "changes of ±2"], strict=True
):
    columns = frame[[f"{name}, {way}" for way in ways]].set_axis(ways.values(), axis=1)
    plotting.seeds(ax, columns, ylabel="changed genes found at\na claimed 5 % (%)",
                   colours={words: colours[words] for words in ways.values()})  # fmt: skip
    ax.set_title(title)
axes[1].set_ylabel("")
plotting.show("Share of planted changes that are found, in five seeds. The t-test finds about half of "
              "all and most of the largest; the default of the model finds hardly any.")  # fmt: skip

# %% [markdown]
# **The t-test finds 51 ± 5 % of the planted changes, and the model 6 ± 5 %**; of those of ±2,
# 91 ± 4 % and 13 ± 12 % ([E11.planted](evidence/11_differential_expression.py)). The model has no
# false call, the t-test 0.8 ± 0.8. Plain means find 33 ± 21 %, with 5 ± 4 false calls: each
# training is another lottery. So an empty list of the model does not say that nothing differs. It
# may say that the latent space has no room for it.
#
# What does the model give, then? Fold changes with batches averaged over, intervals, joint samples.
# For two groups and a list of genes, use a t-test with a threshold on the fold change as well: it
# takes a second.
#
# ## 7 · When the model's uncertainty is too small
#
# An interval of 95 % should hold the true fold change for 95 % of the genes. In the same
# simulations, with 2,000 counts per cell, we count how often it does, adding one source of
# uncertainty at a time:
#
# - **z alone**: draws from $q(z \mid x)$ of each cell, and means, as in exercise 11.3. Over 300
#   cells, the uncertainty of the single cells averages out to almost nothing.
# - **z and cells**: we have these 300 cells, and could have had others. The *Bayesian bootstrap*
#   (Rubin 1981) gives each cell a random weight, drawn from an exponential distribution, in each
#   sample.
# - **z, cells and counts**: the decoder was fitted to these very counts. The samples are widened to
#   the sampling error of the counts.
#
# **Predict first.** How many of the 95 % intervals from z alone hold the true value?
# <details><summary>Answer</summary>About one in six.</details>

# %%
frame = measured["E11.width"]
plotting.seeds(None, frame, ylabel="95 % intervals that hold\nthe true change (%)",
               colours=dict(zip(frame, ["0.5", BLUE, RED], strict=True)))  # fmt: skip
plotting.show(
    "Share of 95 % intervals that hold the true fold change, in five seeds: lowest from z alone, "
    "higher with a bootstrap of the cells, highest with the noise of the counts."
)

# %% [markdown]
# **16 ± 1 %, 53 ± 3 % and 90 ± 1 %** ([E11.width](evidence/11_differential_expression.py)). A
# posterior over $z$ is the uncertainty about *where a cell is*. It does not contain the uncertainty
# of the decoder's weights, which are one fixed number each. This is what "the model's uncertainty
# is too small" means.
#
# The weights depend on the seed of the training, too. Of the genes of alpha against beta cells that
# one model or the other calls, two draws from one model share 96 ± 1 %; **two trainings share only
# 67 ± 6 %** ([E11.stable](evidence/11_differential_expression.py)). The interval does not contain
# this either. Give the package several models, `differential_expression([model_1, model_2, …], …)`:
# their samples are pooled, and the column `stable` marks the genes on which all agree.
#
# ## 8 · What is a cell a replicate of?
#
# In the simulations above, each cell was drawn independently. Real cells come from mice. Suppose
# that four mice get a drug and four do not. Genes differ between mice for many reasons, also
# without a drug. Four hundred cells of one mouse are 400 looks at *this* mouse; they say hardly
# more about the next mouse than 50 do. If the question is about the drug, **the replicate is the
# mouse**. To count cells as replicates is called *pseudoreplication*.
#
# ### Exercise 11.6 · Mice, not cells
# ★★★ · 12 minutes · 3 points
#
# Write `t_between_mice(counts, mouse, group)` for `counts` of shape (n_cells, n_genes), the number
# of each cell's mouse, and each cell's group (1 or 0; all cells of a mouse have the same). Sum the
# counts of each mouse. Its value for a gene is $\log_2\big((n_g + \tfrac12) / \sum_h n_h\big)$.
# Return **Welch's t** of each gene between the mice of group 1 and those of group 0, positive if
# higher in group 1; `stats.ttest_ind(a, b, equal_var=False).statistic` computes it. The field calls
# this **pseudobulk**.
#
# <details><summary>Hint</summary>With 4 mice in each group, which shape does each of the two tables
# have that you give to the t-test? It does not depend on the number of cells.</details>


# %% nbgrader={"grade_id": "11-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def t_between_mice(counts, mouse, group):
    """Welch's t of each gene, with mice as replicates; shape (n_genes,)."""
    ### BEGIN SOLUTION
    values, of = [], []
    for name in np.unique(mouse):
        total = counts[mouse == name].sum(axis=0)
        values.append(np.log2((total + 0.5) / total.sum()))
        of.append(group[mouse == name][0])
    values, of = np.array(values), np.array(of)
    return stats.ttest_ind(values[of == 1], values[of == 0], equal_var=False).statistic
    ### END SOLUTION


# %% nbgrader={"grade_id": "11-6-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("11.6", t_between_mice)

# %%
frame = measured["E11.replicates"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
for ax, n in zip(axes, (50, 400), strict=True):
    columns = frame[[f"{way}, {n}" for way in ("model", "Wilcoxon", "pseudobulk")]]
    columns = columns.set_axis(["means, wider, prior", "Wilcoxon", "pseudobulk"], axis=1)
    plotting.seeds(ax, columns, ylabel="false calls, of 300 genes",
                   colours=dict(zip(columns, [BLACK, ORANGE, PINK], strict=True)))  # fmt: skip
    ax.set_title(f"4 + 4 mice with {n} cells each")
axes[1].set_ylabel("")
plotting.show(
    "False calls among 300 genes when mice differ and the drug does nothing. The model and "
    "Wilcoxon's test call many genes, and more with more cells per mouse; pseudobulk about none."
)

# %% [markdown]
# The drug does nothing here: no gene has an effect of the group, and each mouse shifts each gene by
# about 0.3 nats. **With 400 cells per mouse, the model calls 47 ± 6 of 300 genes, Wilcoxon's test
# 133 ± 5, and pseudobulk none**; with 50 cells per mouse, 0 ± 1, 38 ± 8 and none
# ([E11.replicates](evidence/11_differential_expression.py)). More cells make it *worse*: they make
# a test of cells surer of the differences between eight mice. And the permutation of cells of
# section 5 cannot warn you, because it mixes the mice. Permute *mice* instead. (How many real
# effects pseudobulk finds with four mice, we did not measure; see the last task below.)
#
# With one mouse in each group, no method can help: a difference between the mice and an effect of
# the drug are the same thing.
#
# ## 9 · Mouse 1 against mouse 2: a null that is not one
#
# That is our data. Beta cells of mouse 1 against beta cells of mouse 2: both are beta cells, so one
# may take this for a null, and every call for a false one. Or one may take it for a result. It is
# neither: there is one mouse of each strain.
#
# **Predict first.** The model receives the mouse as input. We ask for $\rho$ with each cell in its
# own mouse (`batch=None`), or averaged over both mice for all cells (`batch="all"`, the default).
# Which list is longer?
# <details><summary>Answer</summary>With its own mouse. Averaged over both, what the decoder
# ascribes to the mouse is taken off.</details>

# %%
frame = measured["E11.strain"][["own", "averaged", "halves", "Wilcoxon"]].set_axis(
    ["each in its own mouse", "averaged over both mice", "random halves", "Wilcoxon"], axis=1
)
plotting.seeds(None, frame, ylabel="calls at a claimed 5 %,\nof about 1,000 genes",
               colours=dict(zip(frame, [BLACK, BLACK, BLACK, ORANGE], strict=True)))  # fmt: skip
plotting.show(
    "Calls between beta cells of mouse 1 and mouse 2, in five trainings: many with each cell in its "
    "own mouse, none averaged over both mice, fewer by Wilcoxon's test, none between random halves."
)

# %% [markdown]
# Own mouse: 75 ± 13 calls of about 1,000 genes. Averaged over both mice: **none, in any training**.
# Wilcoxon's test, which has no model of the batch: 27. Random halves: none
# ([E11.strain](evidence/11_differential_expression.py)). So averaging over batches removes the
# difference of the mice, as lesson 10 said: strain, handling and all. Whether that is a cure or a
# loss depends on your question, and one mouse of each strain cannot answer either. Within this
# design, compare types *within* mice, and say in the methods section which `batch` you used.
#
# ## Try it yourself
#
# 1. *(5 minutes)* Turn the comparison around, `compare(cells, "beta", "alpha")`. Which columns
#    change their sign, and which stay? <details><summary>Solution</summary>lfc and log_bayes_factor
#    change their sign, lfc_low and lfc_high also change places, p_higher becomes 1 − p_higher.
#    p_change and the list stay.</details>
# 2. *(10 minutes)* Ask for the certificate of alpha against beta cells, `null="split"`. A split
#    makes random parts of the larger group. Is the measured rate below the claimed one, and what does section 6 say about that?
#    <details><summary>Hint</summary>Look at <code>table.attrs["null"]</code>.</details>
# 3. *(15 minutes)* Simulate four and four mice with <code>two_groups(3200, 300, n_replicates=4,
#    replicate_effect=0.3)</code>: a fifth of the genes now changes. How many does
#    <code>pseudobulk</code> find (<code>from vaelab.differential_expression import
#    pseudobulk</code>), at <code>q_value</code> ≤ 0.05?
#    And with eight mice in each group? <details><summary>Hint</summary>The true changes are in
#    <code>adata.var["log2_fold_change"]</code>. A power of 0 makes no false calls either.</details>
#
# ## What to take along
#
# - The ratio is posterior odds, $\log K = \log P - \log(1 - P)$, with half a count on each side.
#   One $z$ makes all genes of a sample.
# - Pairs ask whether two random cells differ; means ask whether the groups do. A probability is
#   about the question that was asked, and so is the rate on the list.
# - An expected false discovery rate is the model's opinion of itself. A null measures it. A null
#   that is passed is necessary, and not sufficient: it does not see what the model learned from
#   groups that *do* differ.
# - Say what your replicate is. More cells of the same mice make a test of mice more certain, not
#   more right.
# - A model finds only what its latent space holds. Run a t-test, too.
# - A list holds for its model, its seed, its $\delta$ and its batches: report them.
#
# What each claim over seeds rests on:

# %%
evidence.table("11")

# %% [markdown]
# **Read on.** Bayes factors of scVI: R. Lopez et al., Nature Methods 15 (2018) 1053–1058, and its
# supplement. Expected false discovery rates and a change beyond $\delta$: P. Boyeau et al., *An
# empirical Bayes method for differential expression analysis of single cells with deep generative
# models*, PNAS 120 (2023) e2209124120. The Bayesian bootstrap: D. Rubin, Annals of Statistics 9
# (1981) 130–134. False discovery rates: Y. Benjamini and Y. Hochberg, JRSS B 57 (1995) 289–300. A
# prior that all genes share: M. Stephens, *False discovery rates: a new deal*, Biostatistics 18
# (2017) 275–294. Mice and cells: J. W. Squair et al., *Confronting false discoveries in single-cell
# differential expression*, Nature Communications 12 (2021) 5692. Two cells: the course MCB128
# (Harvard, 2026). The data: M. Baron et al., Cell Systems 3 (2016) 346–360; G. Zheng et al., Nature
# Communications 8 (2017) 14049.
#
# **Next:** [lesson 12](12_elbo_challenge.ipynb) takes the bound of scANVI apart, term by term, and
# [lesson 13](13_scanvi.ipynb) names the cells of an experiment that nobody has labelled.
