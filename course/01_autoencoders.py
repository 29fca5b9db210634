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
# # 01 · A cell in two numbers
#
# A mouse pancreas was taken apart into 822 cells, and in each cell the messenger RNA of thousands of
# genes was counted. A network read 2,000 of these genes, squeezed every cell into **two numbers**,
# and wrote the 2,000 genes back from the two. Nobody told it what kinds of cells there are.
#
# Below is the plane of these two numbers, and what the network writes for three places in it. (Run the
# next three cells. Their code can wait: the lesson explains it step by step.) Two of the places are real
# cells. At the third there is no cell. **Which one is it?**

# %%
from itertools import pairwise

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import nn

import vaelab
from vaelab import plotting
from vaelab.plotting import BLACK, BLUE, ORANGE, RED, SKY
from vaelab.teaching import evidence

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # so that the same numbers come out on your machine

# %% tags=["not-in-grading"]
raw = vaelab.datasets.pancreas(mouse=1)  # Baron et al. (2016)
adata = vaelab.select_genes(raw, n_genes=2000)  # those that vary most
cells = vaelab.Cells.from_anndata(adata, layer="log_normalized", label="cell_type")
x = adata.layers["log_normalized"].toarray().astype(float)  # section 1 says what this is
cell_type = adata.obs["cell_type"].to_numpy().astype(str)

QUICK = {"epochs": 60, "batch_size": 64, "learning_rate": 1e-3, "epsilon": 1e-8, "progress": False}
model = vaelab.Autoencoder(2000, n_latent=2, n_hidden=(128,), seed=0)
vaelab.fit(model, cells, seed=0, **QUICK)
z = model.embed(cells)  # two numbers per cell


def decode(z):
    """The 2,000 genes that the network writes at places z, log(1 + counts per 10,000)."""
    with torch.no_grad():
        return model.decoder(torch.as_tensor(z)).numpy()


# %% tags=["not-in-grading"]
def centre(name):
    """The cell whose code is nearest to the middle of its type."""
    own = np.flatnonzero(cell_type == name)
    return z[own[np.linalg.norm(z[own] - np.median(z[own], axis=0), axis=1).argmin()]]


markers = {"Ins2": "beta", "Krt18": "ductal", "Kdr": "endothelial", "Cd74": "macrophage"}
places = {"A": centre("endothelial"), "C": centre("macrophage")}
places = {"A": places["A"], "B": (places["A"] + places["C"]) / 2, "C": places["C"]}
columns = [adata.var_names.get_loc(gene) for gene in markers]

fig = plt.figure(figsize=(9.5, 4), layout="constrained")
left, *others = fig.subplots(1, 4, width_ratios=(2.6, 1, 1, 1))
large = pd.Series(cell_type).value_counts().loc[lambda n: n >= 17].index
kept = np.isin(cell_type, large)
plotting.embedding(z[kept], cell_type[kept], ax=left, names="clouds", title="822 cells in a plane")
left.set(xlabel="first number of the code", ylabel="second number")
for ax, (name, place) in zip(others, places.items(), strict=True):
    ax.barh(
        [f"{gene} ({name})" for gene, name in markers.items()], decode(place)[columns], color="0.5"
    )
    ax.set(title=f"place {name}", xlim=(0, 6), xlabel="log(1 + counts\nper 10,000)")
    ax.invert_yaxis()
    if name != "A":
        ax.set_yticks([])
plotting.show(
    "Left: cells in the plane of two numbers, in groups by type. Right: four genes as the network "
    "writes them at places A, B and C. A has much Kdr and no Cd74, C the reverse, and B some of both."
)

# %% [markdown]
# The groups are real: cells of one type lie together, although the network never saw a type. The
# answer to the puzzle comes in section 9. By then you will also know why the network cannot give it.
#
# **What does a network learn that only copies its input, and what does it fail to learn?**
#
# **Objectives.** After this lesson you can
#
# - make counts of different cells comparable, and say why the 10,000 is there;
# - write an autoencoder, and choose its output and its loss by the kind of data;
# - say when it copies, when it compresses, and when it removes noise;
# - say in what sense a linear autoencoder is PCA, and test it with an angle;
# - predict how far the loss can fall if there is nothing to learn;
# - name the two questions that an autoencoder cannot answer, with which lesson 02 begins.
#
# **You need** Python with [numpy](https://numpy.org/doc/stable/user/absolute_beginners.html), PyTorch's
# [tensors and gradients](https://docs.pytorch.org/tutorials/beginner/basics/intro.html), means and
# logarithms; from section 5 on, products of matrices, and what a singular value is. No biology, and no
# probability.
# **Time:** about 145 minutes in two parts: 70 up to the stop after section 3, and 75 after it.
# **Data:** 1.5 MB, Baron et al. (2016), mouse 1.
#
# ## 1 · Counts that can be compared
#
# The data are a table with a row for each cell and a column for each gene. An entry is the number of
# molecules of this gene's RNA that were caught from this cell. Cells differ in size, and some were
# read more deeply than others:

# %% tags=["not-in-grading"]
totals = raw.X.toarray().sum(1)
print(f"molecules per cell: from {totals.min():,.0f} to {totals.max():,.0f}, "
      f"half of the cells below {np.median(totals):,.0f}")  # fmt: skip

# %% [markdown]
# So a cell with twice the counts need not be another kind of cell. The usual remedy has three steps:
# divide each cell by its total, multiply by 10,000, and take $\log(1 + \cdot)$, so that a gene with
# 3,000 molecules does not drown one with 3.
#
# ### Exercise 01.1 · Counts that can be compared
# ★☆☆ · 6 minutes · 2 points
#
# Write `log_normalised(counts)`: $\log(1 + 10^4\, x_g / \sum_h x_h)$ of each cell, with the natural
# logarithm. `counts` is an array of shape (n_cells, n_genes), and so is the result.
#
# <details><summary>Hint</summary>The sum runs over the genes of one cell. With
# <code>keepdims=True</code> it keeps the shape (n_cells, 1), which divides each row.</details>


# %% nbgrader={"grade_id": "01-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def log_normalised(counts):
    """log(1 + counts per 10,000 of each cell), shape (n_cells, n_genes)."""
    ### BEGIN SOLUTION
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    ### END SOLUTION


# %% nbgrader={"grade_id": "01-1-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("01.1", log_normalised)

# %% [markdown]
# **Predict first.** Some texts leave the 10,000 out: $\log(1 + x_g / \sum_h x_h)$. Does it matter?
# <details><summary>Answer</summary>Very much. A typical share that is not 0 is a few ten-thousandths,
# and log(1 + s) of a small s is s. Without the 10,000 the logarithm does nothing.</details>

# %% tags=["not-in-grading"]
counts = raw.X.toarray().astype(float)
shares = counts / counts.sum(1, keepdims=True)
forms = {"shares": shares, "log(1 + share)": np.log1p(shares),
         "log(1 + counts per 10,000)": log_normalised(counts.copy())}  # fmt: skip
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for (name, values), colour, style in zip(
    forms.items(), (BLACK, ORANGE, BLUE), (":", "--", "-"), strict=True
):
    variance = np.sort(values.var(0))[::-1]
    right.plot(np.arange(1, 301), variance[:300].cumsum() / variance.sum(), ls=style, color=colour,
               lw=2, label=name)  # fmt: skip
    print(
        f"{name:26s} the 3 largest genes have {variance[:3].sum() / variance.sum():.0%} of the variance"
    )
share = np.geomspace(1e-5, 0.5)
left.loglog(share, np.log1p(share), color=ORANGE, ls="--", lw=2, label="log(1 + share)")
left.loglog(share, np.log1p(1e4 * share), color=BLUE, lw=2, label="log(1 + counts per 10,000)")
left.axvspan(*np.quantile(shares[shares > 0], (0.05, 0.95)), color="0.9", zorder=0)
left.set(xlabel="share of a gene in its cell (grey: most that are not 0)", ylabel="value")
left.legend(frameon=False)
right.set(xscale="log", ylim=(0, 1.02), xlabel="number of genes, the largest first",
          ylabel="their part of the total variance")  # fmt: skip
right.legend(frameon=False, loc="center right", fontsize=9)
del forms, shares, values  # 300 MB
plotting.show(
    "Left: log(1 + share) is a straight line; log(1 + counts per 10,000) bends where most shares "
    "are. Right: without the 10,000, three genes hold nearly all the variance of the table."
)

# %% [markdown]
# Without the 10,000 the table is that of the raw shares, and three genes hold more than four fifths of
# its variance ([E01.ten_thousand](evidence/01_autoencoders.py)). A network that is trained on squared
# errors then looks at these genes and at little else. Why 10,000, and not a million? A typical cell
# here has about 3,000 molecules. One molecule is then 3 per 10,000, and $\log(1 + 3) \approx 1.4$: the
# step from no molecule to one is as large as two doublings. Per million it would be
# $\log 334 \approx 5.8$, more than eight doublings, and most of what we see would be whether a gene was
# caught at all. The number should be near the totals of the cells, and otherwise it is a habit.
#
# ## 2 · Down and up again
#
# An **autoencoder** is two networks in a row. The *encoder* $f$ turns the $D$ genes of a cell into
# $d$ numbers, the **code** $z$. The *decoder* $g$ turns the code into $D$ genes again:
#
# $$x \in \mathbb R^D \ \xrightarrow{\ f\ }\ z \in \mathbb R^d \ \xrightarrow{\ g\ }\ \hat x \in \mathbb R^D, \qquad \text{trained so that } \hat x \approx x.$$
#
# The code is also called *bottleneck* or *latent variables*. Nothing is asked of it except that the
# decoder can do something with it. So no labels are needed: the input is the target.
#
# A layer is $W v + b$, with a matrix $W$ and a vector $b$ that are learned. After a **hidden** layer
# stands a nonlinear function, here ReLU, $\max(v, 0)$. The code is not hidden, and neither is the
# output: both are linear layers.
#
# ### Exercise 01.2 · Through the bottleneck and back
# ★★☆ · 10 minutes · 3 points
#
# Write `autoencode(x, W1, b1, W2, b2, W3, b3, W4, b4)`. The encoder has a hidden layer (`W1`, `b1`)
# with ReLU, then the code (`W2`, `b2`). The decoder has a hidden layer (`W3`, `b3`) with ReLU, then
# the output (`W4`, `b4`). `x` has shape (n_cells, n_genes), and a `W` has shape (n_out, n_in). Return
# the code, (n_cells, n_latent), and the reconstruction, (n_cells, n_genes), as tensors.
#
# <details><summary>Hint</summary>For all cells at once a layer is <code>v @ W.T + b</code>, and
# <code>torch.relu</code> is the ReLU. Which two of the four layers are hidden?</details>


# %% nbgrader={"grade_id": "01-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def autoencode(x, W1, b1, W2, b2, W3, b3, W4, b4):
    """The code and the reconstruction of each cell."""
    ### BEGIN SOLUTION
    code = torch.relu(x @ W1.T + b1) @ W2.T + b2
    return code, torch.relu(code @ W3.T + b3) @ W4.T + b4
    ### END SOLUTION


# %% nbgrader={"grade_id": "01-2-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("01.2", autoencode)

# %% [markdown]
# Now train what you wrote. The loss is the **mean squared error** over genes,
# $\mathrm{MSE}(x, \hat x) = \frac1D \sum_g (x_g - \hat x_g)^2$. Each step takes 64 cells, a
# **minibatch**, and PyTorch follows the gradient of the loss back to all weights. *Adam* is gradient
# descent that sets the step of each weight by the size of its recent gradients. An **epoch** is one
# pass through all training cells; we take 60. A seventh of the cells is **held out**: the network never
# trains on them.

# %% tags=["not-in-grading"]
torch.manual_seed(0)
sizes = (2000, 128, 2, 128, 2000)
weights = []
for n_in, n_out in pairwise(sizes):
    layer = nn.Linear(n_in, n_out)  # for its usual random start
    weights += [layer.weight, layer.bias]

shuffled = torch.as_tensor(x)[torch.randperm(822)]
training, held_out = shuffled[:700], shuffled[700:]
optimiser = torch.optim.Adam(weights, lr=1e-3)
losses = []
for _ in range(60):
    for batch in training[torch.randperm(700)].split(64):
        loss = ((batch - autoencode(batch, *weights)[1]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        both = [((v - autoencode(v, *weights)[1]) ** 2).mean() for v in (training, held_out)]
    losses.append(both)

plane = PCA(2).fit(training)
by_pca = np.mean((held_out.numpy() - plane.inverse_transform(plane.transform(held_out))) ** 2)
fig, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
ax.plot(np.array(losses), label=["training cells", "held-out cells"])
ax.lines[0].set_color(BLUE), ax.lines[1].set_color(ORANGE)
ax.axhline(by_pca, color="0.4", ls="--", label="two principal components, held-out cells")
ax.set(xlabel="epoch", ylabel="mean squared error", title="The loss falls")
ax.legend(frameon=False)
plotting.show(
    "The mean squared error of training and held-out cells falls over 60 epochs, and ends below "
    "the dashed line of two principal components."
)

# %% [markdown]
# With two numbers per cell, the autoencoder loses less than two principal components do, on cells that
# it has not seen: it bends its plane, and they cannot. With **ten** numbers it is the other way
# round, on these 700 cells ([E01.two_and_ten](evidence/01_autoencoders.py)). A network has more
# freedom, and needs more data to use it. If you claim that a network is better, show PCA next to
# it.
#
# From here on we use the package, which does the same for any layers: `vaelab.Autoencoder`, with
# `fit`, `embed` for the code and `reconstruct` for $\hat x$.
#
# ## 3 · The output and the loss belong to the data
#
# MSE and a linear output fit numbers of any size and sign. Not all data are like that. If an entry is
# **yes or no** (is the gene seen in this cell?), the output should be between 0 and 1, by a *sigmoid*.
# If the entries of a cell are **shares** that sum to 1, so should the output's, by a *softmax*:
# $\hat x_g = e^{a_g} / \sum_h e^{a_h}$ of the last layer's *scores* $a$. Both have a loss of their own,
# the **cross-entropy**:
#
# | data $x$ | output | loss of a cell |
# |---|---|---|
# | any real numbers | linear | $\frac1D \sum_g (x_g - \hat x_g)^2$ |
# | yes or no, 1 or 0 | sigmoid | $-\sum_g \big[x_g \log \hat x_g + (1 - x_g) \log(1 - \hat x_g)\big]$ |
# | shares that sum to 1 | softmax | $-\sum_g x_g \log \hat x_g$ |
#
# By hand, for a cell with shares $x = (\frac12, \frac14, \frac14)$ and the output
# $\hat x = (\frac14, \frac14, \frac12)$. The squared error is
# $\frac13\big(\frac1{16} + 0 + \frac1{16}\big) = \frac1{24} \approx 0.042$. The cross-entropy is
# $\frac12 \log 4 + \frac14 \log 4 + \frac14 \log 2 = \frac74 \log 2 \approx 1.213$. (Some texts
# divide it by $D$ as well, and get 0.404.) It is smallest if $\hat x = x$, and not 0 even then:
# $\frac12 \log 2 + \frac12 \log 4 = 1.040$.
#
# ### Exercise 01.3 · Two losses
# ★★☆ · 9 minutes · 3 points
#
# Write `two_losses(x, scores)`: the mean squared error and the cross-entropy of each cell, both of
# shape (n_cells,), where $\hat x = \mathrm{softmax}(a)$ and `scores` is $a$. Both inputs have shape
# (n_cells, n_genes). Some scores of the check are 900 apart.
#
# <details><summary>Hint</summary>The logarithm of a softmax share is a_g − log Σ e^a, and torch
# computes it without overflow: <code>log_softmax</code>. One loss is a mean over genes, the other a
# sum.</details>


# %% nbgrader={"grade_id": "01-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def two_losses(x, scores):
    """MSE and cross-entropy of each cell between x and softmax(scores)."""
    ### BEGIN SOLUTION
    log_shares = scores.log_softmax(-1)
    return ((x - log_shares.exp()) ** 2).mean(-1), -(x * log_shares).sum(-1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "01-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("01.3", two_losses)

# %% [markdown]
# Why not the squared error for shares? It hardly sees rare genes. If a gene has a share of 0.001 and
# the output says 0.000001, a thousand times too little, the squared error is a millionth. The
# cross-entropy pays $0.001 \log 1000 \approx 0.007$ for this one gene, and there are thousands.
#
# Now the wrong outputs. The same network with three kinds of data and three kinds of output:

# %% tags=["not-in-grading"]
OUTPUTS = {"linear": lambda a: a, "sigmoid": torch.sigmoid, "softmax": lambda a: a.softmax(-1)}


def squared(x, out):
    return ((x - out) ** 2).mean()


def yes_or_no(x, out):
    return nn.functional.binary_cross_entropy(out.clamp(1e-9, 1 - 1e-9), x)


def of_shares(x, out):
    return -(x * out.clamp(min=1e-12).log()).sum(-1).mean()


def outputs_of(data, output, loss):
    """What the network gives for 122 held-out cells after training on 700."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(300, 64), nn.ReLU(), nn.Linear(64, 2),
                            nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 300))  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    scale = data[:700].mean()
    for _ in range(60):
        for rows in torch.randperm(700).split(64):
            value = loss(data[rows], OUTPUTS[output](network(data[rows] / scale)))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
    with torch.no_grad():
        return OUTPUTS[output](network(data[700:] / scale))


order = np.random.default_rng(0).permutation(822)
some = np.argsort(-x.var(0))[:300]  # the 300 genes that vary most
seen = adata.X.toarray()[order][:, some].astype(float)
expression = torch.as_tensor(x[order][:, some])
detected, part = (
    torch.as_tensor((seen > 0) * 1.0),
    torch.as_tensor(seen / seen.sum(1, keepdims=True)),
)

right = {"expression": (expression, "linear", squared), "yes or no": (detected, "sigmoid", yes_or_no),
         "shares": (part, "softmax", of_shares)}  # fmt: skip
wrong = {"expression": (expression, "sigmoid", squared), "yes or no": (detected, "linear", squared),
         "shares": (part, "linear", squared)}  # fmt: skip
found = {(name, kind): outputs_of(*task) for name, tasks in (("right", right), ("wrong", wrong))
         for kind, task in tasks.items()}  # fmt: skip

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), layout="constrained")
for ax, (kind, (data, output, _)) in zip(axes, right.items(), strict=True):
    truth = data[700:].numpy().ravel()
    for which, colour, size in (("wrong", RED, 5), ("right", BLUE, 5)):
        name = output if which == "right" else wrong[kind][1]
        aside = 0.1 * np.random.default_rng(1).uniform(-1, 1, truth.size) * (kind == "yes or no")
        ax.scatter((truth + aside)[::9], found[which, kind].numpy().ravel()[::9], s=size, lw=0,
                   alpha=0.5, color=colour, label=name)  # fmt: skip
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set(title=kind, xlabel="data" + " (spread sideways)" * (kind == "yes or no"))
    ax.legend(
        markerscale=3, fontsize=8, loc="upper center" if kind == "yes or no" else "upper left"
    )
axes[0].set_ylabel("output, held-out cells")
axes[1].set_xticks([0, 1], ["0 (no)", "1 (yes)"])
axes[2].set(xlim=(-0.002, 0.05), ylim=(-0.02, 0.05))
plotting.show(
    "Output against data for three kinds of data. A sigmoid cannot go above 1 and misses high "
    "expression; a linear output goes below 0 and above 1 for yes or no, and below 0 for shares."
)

# %% tags=["not-in-grading"]
above = squared(expression[700:], expression[700:].clamp(max=1))
linear_error = squared(expression[700:], found["right", "expression"])
print(f"expression: no sigmoid can have an error below {above:.2f}; the linear output is below that: "
      f"{linear_error < above}")  # fmt: skip
outside = ((found["wrong", "yes or no"] < 0) | (found["wrong", "yes or no"] > 1)).double().mean()
print(f"yes or no: more than a tenth of the linear outputs is below 0 or above 1: {outside > 0.1}")
negative = (found["wrong", "shares"] < 0).any(1).double().mean()
print(
    f"shares: most cells have a negative linear output, whose logarithm does not exist: {negative > 0.5}"
)

# %% [markdown]
# Each wrong output fails in its own way. A **sigmoid on expression** cannot write numbers above 1: the
# line above is the error of a sigmoid that is right wherever it can be. A **linear output on yes-or-no data** says
# "−0.1 of a yes". A **linear output on shares** gives some genes less than nothing, and the
# cross-entropy, which needs $\log \hat x$, does not exist. A fourth mistake, a **softmax on yes-or-no
# data**, makes genes compete: dozens of genes are on in a cell, and together they may have only 1
# ([E01.outputs](evidence/01_autoencoders.py)). The package refuses data that do not fit an output:

# %% tags=["not-in-grading"]
try:
    vaelab.fit(vaelab.Autoencoder(2000, output="sigmoid"), cells, progress=False)
except ValueError as error:
    print(error)

# %% [markdown]
# > **Spot the error.** "If the input data represent a categorical distribution of Bernoulli parameters,
# > then a softmax activation is appropriate." (MCB128, 2026.)
# >
# > <details><summary>Solution</summary>Two kinds of data are mixed. Bernoulli parameters are one
# > number between 0 and 1 per gene, independent of each other: a sigmoid. A categorical distribution
# > is one set of shares that sum to 1: a softmax.</details>
#
# **Stop here** if you like: the second part needs nothing but what is above. You have written an
# autoencoder and its losses. What comes next says what it learns, what it does not, and what it cannot
# say.
#
# ## 4 · How narrow?
#
# Up to here the code was narrower than the input, $d < D$: the autoencoder is **undercomplete**. What
# if it is wider, **overcomplete**?
#
# **Predict first.** Cells of 50 genes are a clean signal plus noise, and the code has 150 numbers. To
# what does the loss fall, and is the noise removed?
# <details><summary>Answer</summary>To almost 0: the network can pass every number through. This is
# the <i>identity problem</i>. The noise passes through too.</details>
#
# To see it we need data whose clean signal is known. Two hidden numbers per cell set 50 genes, in
# curves, and to each value we add noise with a variance of 0.25.


# %% tags=["not-in-grading"]
def curved(n_cells, seed):
    """Cells of 50 genes on a curved surface with two hidden coordinates, and their noisy versions."""
    shape, rng = np.random.default_rng(1), np.random.default_rng(seed)
    directions = shape.standard_normal((2, 2, 50))
    hidden = rng.uniform(-1, 1, (n_cells, 2))
    clean = np.sin(2 * hidden @ directions[0]) + 0.5 * np.cos(3 * hidden @ directions[1])
    clean = (clean - clean.mean(0)) / clean.std(0)
    return clean, clean + 0.5 * rng.standard_normal(clean.shape)


clean, noisy = curved(2000, seed=0)
given, new = (vaelab.Cells.from_array(v) for v in (noisy[:1500], noisy[1500:]))
ways = {"code of 150": {"n_latent": 150}, "code of 4": {"n_latent": 4},
        "code of 150, noise added": {"n_latent": 150, "noise": 1.0}}  # fmt: skip
results = {}
for name, options in ways.items():
    one = vaelab.Autoencoder(50, n_hidden=(200,), seed=0, **options)
    vaelab.fit(one, given, seed=0, **QUICK)
    out = one.reconstruct(new)
    results[name] = {"to its noisy input": np.mean((out - noisy[1500:]) ** 2),
                     "to the clean signal": np.mean((out - clean[1500:]) ** 2)}  # fmt: skip
table = pd.DataFrame(results).T
ax = table.plot.barh(
    figsize=(7.5, 2.6), color=[SKY, BLUE], xlabel="mean squared error on new cells"
)
ax.axvline(0.25, color="0.4", ls="--", lw=1, label="the noise")
ax.invert_yaxis()
ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3)
plotting.show(
    "The wide code copies: its output is near the noisy input and as far from the clean signal as the "
    "noise. The code of 4 and the wide code trained with added noise are much nearer to the clean signal."
)

# %% [markdown]
# The wide code has by far the smallest loss, and has learned nothing: its output is as far from the
# clean signal as the noise itself. **A small loss is not the aim.** A narrow code cannot hold the noise
# of 50 genes, and drops most of it.
#
# The third bar is the other cure, the **denoising autoencoder** (Vincent et al. 2008). It adds noise to
# the *input* and asks for what was there *before*. Copying does not help any more, so the network has
# to learn how genes go together. Here we added noise to cells that were noisy already, since in
# practice nobody has clean cells; over five seeds it removed four fifths of the noise. Trained with
# clean targets, it removes nine tenths ([E01.denoising](evidence/01_autoencoders.py)).
#
# ### Exercise 01.4 · Teach it to remove noise
# ★☆☆ · 6 minutes · 2 points
#
# Write `denoising_loss(reconstruct, x, noise)`: the mean squared error, over cells and genes, of a
# denoising autoencoder. `reconstruct(v)` is the network, and `noise` has the shape of `x`. Return one
# number, through which gradients flow back to the network.
#
# <details><summary>Hint</summary>Two questions: what goes in, and with what is the output
# compared?</details>


# %% nbgrader={"grade_id": "01-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def denoising_loss(reconstruct, x, noise):
    """The mean squared error between x and what the network makes of x + noise."""
    ### BEGIN SOLUTION
    return ((reconstruct(x + noise) - x) ** 2).mean()
    ### END SOLUTION


# %%
def loss_of_a_layer(w, x, noise):
    return denoising_loss(lambda v: torch.relu(v @ w), x, noise)


# %% nbgrader={"grade_id": "01-4-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("01.4", loss_of_a_layer)

# %% [markdown]
# ## 5 · Without bends it is PCA, almost
#
# Take the ReLUs away and **tie** the weights: one matrix $W$, of shape $(d, D)$, and
# $\hat x = W^\top W x$. Take each gene's mean off first, as PCA does. The squared error is then smallest if the
# rows of $W$ span the plane of the first $d$ **principal components**, PCA for short (Bourlard and Kamp
# 1988; Baldi and Hornik 1989).
#
# **Predict first.** Are the rows of $W$ the principal components themselves?
# <details><summary>Answer</summary>No. Turn both axes within the plane, W → RW with a rotation R. Then
# (RW)ᵀRW = WᵀRᵀRW = WᵀW: every reconstruction is the same, and so is the loss. Nothing tells the
# network which axes to take.</details>
#
# How do we compare two planes in a space of 2,000 genes? By **principal angles**. Take an *orthonormal*
# basis of each plane, $Q_A$ and $Q_B$: its columns have length 1 and are at right angles. The singular
# values of $Q_A^\top Q_B$ are the cosines of $d$ angles, from the smallest to the largest. The largest
# is 0 only if the planes are the same.
#
# ### Exercise 01.5 · The angle between two subspaces
# ★★☆ · 9 minutes · 3 points
#
# Write `largest_angle(A, B)` in numpy: the largest principal angle, in radians, between the spaces that
# the columns of `A` and of `B` span. Both have shape (n_genes, n_latent). The columns need not be
# orthogonal, nor of length 1.
#
# <details><summary>Hint</summary><code>np.linalg.qr(A)</code> gives an orthonormal basis, and
# <code>np.linalg.svd(…, compute_uv=False)</code> the singular values, the largest first. Rounding can
# put a cosine just above 1, where <code>arccos</code> is NaN: <code>np.clip</code>.</details>


# %% nbgrader={"grade_id": "01-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def largest_angle(A, B):
    """The largest principal angle between the spaces of the columns, in radians."""
    ### BEGIN SOLUTION
    (A, _), (B, _) = np.linalg.qr(A), np.linalg.qr(B)
    cosines = np.linalg.svd(A.T @ B, compute_uv=False)
    return np.arccos(np.clip(cosines.min(), 0, 1))
    ### END SOLUTION


# %% nbgrader={"grade_id": "01-5-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("01.5", largest_angle)

# %% tags=["not-in-grading"]
FLAT = {"n_hidden": (), "activation": "linear", "tied": True}
ALL = {"epochs": 200, "batch_size": 822, "validation_fraction": 0, "learning_rate": 1e-2,
       "epsilon": 1e-8, "progress": False}  # fmt: skip
components = PCA(2).fit(x).components_  # (2, 2000)
centred = vaelab.Cells.from_array(x - x.mean(0))
rows = {}
for seed in (0, 1):
    flat = vaelab.Autoencoder(2000, n_latent=2, seed=seed, **FLAT)
    vaelab.fit(flat, centred, seed=seed, **ALL)
    rows[seed] = flat.encoder[0].weight.detach().numpy()  # (2, 2000)
    angle = largest_angle(rows[seed].T, components.T)
    print(f"seed {seed}: the planes are at an angle below 0.01: {angle < 0.01}")

fig, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
ax.scatter(*(PCA(2).fit_transform(x)).T, s=6, lw=0, color="0.75")
for (seed, W), colour, style in zip(rows.items(), (BLUE, ORANGE), ("-", "--"), strict=True):
    for axis in 12 * (W / np.linalg.norm(W, axis=1, keepdims=True)) @ components.T:
        ax.plot([0, axis[0]], [0, axis[1]], color=colour, ls=style, lw=2.5)
    ax.plot([], [], color=colour, ls=style, lw=2.5, label=f"axes of seed {seed}")
ax.set(xlabel="principal component 1", ylabel="principal component 2", aspect="equal",
       title="One plane, other axes")  # fmt: skip
ax.legend(frameon=False)
plotting.show(
    "Cells on two principal components, with the two axes that the tied linear autoencoder found with "
    "each of two seeds. Each pair is at right angles, turned against the components and the other pair."
)

# %% [markdown]
# The plane is that of PCA, on ten seeds to less than 0.01 radians, and the axes are turned by another
# angle each time ([E01.subspace](evidence/01_autoencoders.py)). So "an autoencoder is a non-linear PCA"
# is right about the plane, and wrong about the axes. PCA's first component is the direction of largest
# variance. **A code's first number means nothing by itself**, and its sign and scale mean nothing
# either. This holds for nearly all models of this course: read planes and distances, not single axes.
#
# ## 6 · Nothing to learn
#
# A network with layers of 2000 → 512 → 256 → 32 and back gets pure noise: 2,000 independent numbers of
# variance 1, new ones in each step.
#
# **Predict first.** Where does the mean squared error end?
# <details><summary>Answer</summary>A code of 32 numbers can carry 32 of 2,000 directions, and noise
# has the same variance in every direction. 1,968 of 2,000 are lost: 1 − 32/2000 = 0.984.</details>
#
# Here is a smaller one that trains in seconds, 200 → 128 → 64 → 32, whose line is at
# $1 - 32/200 = 0.84$. Next to it the same network gets the *same* 500 cells of noise again and again.

# %% tags=["not-in-grading"]
tests, curves = torch.randn(2000, 200, generator=torch.manual_seed(1)), {}
fixed = torch.randn(500, 200)
for name in ("new noise in each step", "the same 500 cells"):
    deep = vaelab.Autoencoder(200, n_latent=32, n_hidden=(128, 64), seed=0)
    optimiser = torch.optim.Adam(deep.parameters(), lr=2e-3)
    torch.manual_seed(0)
    curve = []
    for step in range(900):
        noise = torch.randn(128, 200) if "new" in name else fixed[torch.randint(500, (128,))]
        loss = ((deep.decoder(deep.encoder(noise)) - noise) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 19:
            with torch.no_grad():
                error = ((deep.decoder(deep.encoder(tests)) - tests) ** 2).mean()
            curve.append((step + 1, loss.item(), (error / (tests**2).mean()).item()))
    curves[name] = np.array(curve).T

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained", sharey=True)
for ax, (name, (steps, own, others)) in zip(axes, curves.items(), strict=True):
    ax.plot(steps, own, color=BLUE, label="the cells of the step")
    ax.plot(steps, others, color=ORANGE, label="cells never trained on")
    ax.axhline(1 - 32 / 200, color="0.4", ls="--", label="1 − 32/200")
    ax.set(title=name, xlabel="step", ylim=(0.3, 1.35))
axes[0].set_ylabel("mean squared error")
axes[0].legend(frameon=False, loc="lower left")
plotting.show(
    "Left: with new noise in each step both errors come near the dashed line at 0.84. Right: with "
    "the same cells, the training error falls far below the line and the error on new cells rises above 1."
)

# %% [markdown]
# With new noise, the error on cells never trained on comes near the line, and does not go below it. On
# the right, the training loss falls far below the line, and **all of it is learned by heart**: on new
# cells the network is worse than if it said 0 everywhere. A training loss alone never tells you that
# something was found. Here is the large network, on five seeds, in the same two situations:

# %% tags=["not-in-grading"]
measured = evidence.read("01")  # what several seeds gave; the last section says how
floor = measured["E01.noise_floor"].drop(columns=["1 − 32/2000", "one"])
ax = plotting.seeds(None, floor, ylabel="mean squared error", colours={
    "new noise in each step": ORANGE, "the same 1,000 cells": BLUE,
    "after the same 1,000 cells, new ones": RED})  # fmt: skip
ax.axhline(1 - 32 / 2000, color="0.4", ls="--", zorder=0)
plotting.show(
    "Errors of the large network on five seeds. With new noise the dots lie on the dashed line at 0.984. "
    "With the same 1,000 cells they are far below it, and on new cells above 1."
)

# %% [markdown]
# On new noise it ends within 0.003 of 0.984, and never below
# ([E01.noise_floor](evidence/01_autoencoders.py)).
#
# Is 0.984 a law? For *linear* maps it is. A real number has endlessly many digits, and a sufficiently
# wild function could hide 2,000 numbers in the digits of 32. Networks that are trained by gradients do
# not find such functions. Section 8 takes the digits away.
#
# ## 7 · Three groups in 6,000 cells
#
# GENEEX, an autoencoder of the US National Cancer Institute for profiles of tumours, has layers of 2048,
# 1024 and 128, and back. MCB128's course tries it on made-up cells: 6,000 cells with 1,000 genes, in
# three groups; in each group another third of the genes is up. Here is that data set, with a code of 2
# that we can look at, and with one of 128, of which we look at two principal components.

# %% tags=["not-in-grading"]
three = vaelab.simulate.profiles(n_cells=6000, n_genes=1000, n_types=3, seed=0)
groups = vaelab.Cells.from_array(log_normalised(three.X.toarray()), label=three.obs["cell_type"])
codes = {}
for n_latent in (2, 128):
    one = vaelab.Autoencoder(1000, n_latent=n_latent, n_hidden=(128,), dropout_rate=0.1, seed=0)
    vaelab.fit(one, groups, seed=0, **QUICK | {"epochs": 3, "batch_size": 128})
    code = one.embed(groups)
    codes[n_latent] = code if n_latent == 2 else PCA(2, random_state=0).fit_transform(code)
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
for ax, (n_latent, at) in zip(axes, codes.items(), strict=True):
    title = f"code of {n_latent}" + ", two principal components" * (n_latent > 2)
    plotting.embedding(at, groups.labels, ax=ax, title=title)
plotting.show(
    "6,000 simulated cells in a code of 2 and in two principal components of a code of 128. In both "
    "the three groups are far apart."
)
geneex = vaelab.Autoencoder(1000, n_latent=128, n_hidden=(2048, 1024), dropout_rate=0.1)
print(f"GENEEX's layers on 1,000 genes have {geneex.n_parameters / 1e6:.1f} million weights")

# %% [markdown]
# Both find the groups. So does the full GENEEX, on five seeds: k-means finds the three groups without
# a single mistake (an adjusted Rand index, ARI, of 1), and the average silhouette width (ASW: 1 for
# tight groups far apart, 0 for none) is far above 0.5, with 128 and with 2 numbers
# ([E01.three_groups](evidence/01_autoencoders.py)). Lesson 06 explains these scores. This is an easy
# test: PCA passes it as well. Real types lie closer to each other, as the first figure shows.
#
# ## 8 · A channel
#
# In 1948 Claude Shannon drew communication as a source, a transmitter, a channel and a receiver, and
# asked how narrow the channel may be. An autoencoder is this drawing: the encoder transmits, the code
# is the channel, the decoder receives. (MacKay 2003, chapter 40, draws learning itself in this way.)
# **How much goes through the channel?**
#
# Two real numbers have endlessly many digits, so the question has no answer until we limit them. Let us
# round: each of the two numbers of our first model may only take $m$ values. Then there are $m^2$
# possible messages. The amount is the logarithm of their number, $\log m^2 = 2 \log m$, in **nats**,
# because the logarithm is natural. (With base 2 it is in bits; one nat is 1.44 bits.)

# %% tags=["not-in-grading"]
low, high = np.quantile(z, 0.005, axis=0), np.quantile(z, 0.995, axis=0)
levels = [1, 2, 3, 4, 6, 8, 12, 16, 32]
nats, errors = [2 * np.log(m) for m in levels], []
for m in levels:
    place = ((z - low) / (high - low)).clip(0, 1 - 1e-9)  # from 0 to 1
    rounded = low + (np.floor(place * m) + 0.5) / m * (high - low)
    errors.append(((decode(rounded) - x) ** 2).mean())
fig, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
ax.plot(nats, errors, "o-", color=BLUE)
for m, r, error in zip(levels, nats, errors, strict=True):
    if m in (1, 2, 4, 8, 16):
        ax.annotate(f"{m}²", (r, error), (4, 6), textcoords="offset points", fontsize=9)
ax.axhline(((decode(z) - x) ** 2).mean(), color="0.4", ls="--", label="not rounded")
ax.axvline(np.log(822), color=ORANGE, ls=":", lw=2, label="log 822: a name for every cell")
ax.set(xlabel="rate (nats per cell): log of the number of messages", ylabel="mean squared error")
ax.legend(frameon=False)
plotting.show(
    "The error falls with the rate, steeply from 0 to about 4 nats, and is flat from 6 nats on, at the "
    "error without rounding. A line marks log 822, about 6.7 nats."
)

# %% [markdown]
# This curve of **rate against distortion** is what an autoencoder can be asked for. With 16 × 16 places,
# 5.5 nats per cell, almost all is there that two numbers hold
# ([E01.rate](evidence/01_autoencoders.py)). To name each of 822 cells takes 6.7 nats. In a variational
# autoencoder nobody rounds. The code gets noise instead, which makes its last digits useless, and the
# rate becomes a term of the loss: the Kullback–Leibler divergence (KL) of lesson 04, which measures in
# nats how far one distribution is from another.
#
# ## 9 · Two questions that it cannot answer
#
# Pull a point through the plane, and see which cell the network writes there.

# %% tags=["nbval-ignore-output", "not-in-grading"]
kept_genes = {"Ins2": "beta", "Sst": "delta", "Krt18": "ductal", "Kdr": "endothelial",
              "Cd74": "macrophage", "Igfbp5": "quiescent stellate"}  # fmt: skip
where = [adata.var_names.get_loc(gene) for gene in kept_genes]
box = [(z[:, i].min() - 1, z[:, i].max() + 1) for i in (0, 1)]


def draw(first, second):
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 4), width_ratios=(1.4, 1), layout="constrained"
    )
    plotting.embedding(z[kept], cell_type[kept], ax=left, names="clouds")
    left.plot(first, second, "+", color="black", ms=20, mew=3)
    left.set(xlim=box[0], ylim=box[1], xlabel="first number", ylabel="second number")
    right.barh([f"{gene} ({name})" for gene, name in kept_genes.items()],
               decode(np.array([first, second]))[where], color="0.5")  # fmt: skip
    right.set(xlim=(-1, 10), xlabel="log(1 + counts per 10,000)", title="The decoded cell")
    right.invert_yaxis()
    return fig


B = places["B"].round(1)
plotting.interactive(
    draw,
    alt="Left: a cross at place B of the plane of codes, between endothelial cells and macrophages. "
    "Right: six genes of the cell that the network writes there.",
    first=ipywidgets.FloatSlider(
        B[0], min=box[0][0], max=box[0][1], step=0.1, description="first number"
    ),
    second=ipywidgets.FloatSlider(
        B[1], min=box[1][0], max=box[1][1], step=0.1, description="second number"
    ),
)

# %% [markdown]
# **The answer to the puzzle is B**, halfway between the endothelial cells, which line vessels, and the
# macrophages, which eat debris. It has some of the *Kdr* of the first and some of the *Cd74* of the
# second. Hardly any cell of this mouse lies near it, and the network was never asked what does. It
# answers all the same, by blending its neighbours, and it answers anywhere: pull the cross to an empty
# corner.
# **The decoder has an answer for every place, and no idea which places are cells.**
#
# ### First question: make me a new cell
#
# To make a cell we need a code, and then the decoder. *Which* code? The autoencoder does not say. A
# variational autoencoder (VAE) does: its codes are pressed towards one known cloud, the normal
# distribution with mean 0 and variance 1 in each dimension. So one can draw from this cloud and decode.
# Let us give both the same 822 draws.

# %% tags=["not-in-grading"]
vae = vaelab.VAE(2000, n_latent=2, n_hidden=128, likelihood="normal", seed=0)
vaelab.fit(vae, cells, seed=0, **QUICK)
draws = np.random.default_rng(0).standard_normal((822, 2))
with torch.no_grad():
    by_vae = vae.decode(torch.as_tensor(draws), vae.blank_cells(822)).mean.numpy()
sides = {"autoencoder": (z, decode(draws)), "VAE": (vae.embed(cells), by_vae)}

plane = PCA(2, random_state=0).fit(x)
fig, axes = plt.subplots(2, 2, figsize=(9.5, 7.6), layout="constrained")
for (above, below), (name, (code, made)) in zip(axes.T, sides.items(), strict=True):
    above.scatter(*draws.T, s=8, color="0.85", lw=0, marker="s", zorder=0)
    plotting.embedding(
        code[kept], cell_type[kept], ax=above, names="clouds", title=f"{name}: codes"
    )
    above.set(xlabel="first number (grey squares: 822 draws)", ylabel="second number")
    plotting.embedding(plane.transform(x)[kept], cell_type[kept], ax=below, names="legend")
    below.scatter(*plane.transform(made).T, s=14, color="black", marker="x", lw=0.8)
    below.set(title=f"{name}: the decoded draws (black)", xlabel="principal component 1 of the cells",
              ylabel="principal component 2")  # fmt: skip
axes[1, 0].get_legend().remove()
plotting.show(
    "Above: codes by type, and the draws, which lie in the middle of both planes. Below: decoded draws on "
    "two principal components. The autoencoder's fill the gap between all types; the VAE's reach from beta "
    "to ductal cells."
)

# %% [markdown]
# The autoencoder's codes lie wherever the training left them, mostly *around* the draws. So it makes
# cells from the empty middle. On five seeds, 38 ± 14 % of them would have to be of another type to have
# each type as often as in the mouse; with the VAE it is 17 ± 5 %
# ([E01.new_cells](evidence/01_autoencoders.py)). Could we fit a cloud to the autoencoder's codes
# afterwards? Yes, and in this score it is then as good. But it is an afterthought: nothing in the
# training made the codes fit the cloud, and the decoder was never asked about places between them. The
# VAE learns codes, cloud and decoder together. It is not perfect either: many black crosses lie between
# types, and rare types are missing. Lesson 04 returns to these holes.
#
# ### Second question: how sure are you?
#
# Take three cells and throw away 95 of 100 molecules at random, forty times over. They are then cells
# that were read badly. Where does the encoder put them?

# %% tags=["not-in-grading"]
rng = np.random.default_rng(0)
looks = plotting.look(["beta", "ductal", "endothelial"])
genes = raw.var_names.get_indexer(adata.var_names)
fig, ax = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
ax.scatter(*z.T, s=8, color="0.8", lw=0)
for name, style in looks.items():
    own = np.flatnonzero(cell_type == name)
    cell = own[np.linalg.norm(z[own] - np.median(z[own], axis=0), axis=1).argmin()]
    thinned = rng.binomial(counts[cell].astype(int), 0.05, size=(40, counts.shape[1])) * 1.0
    with torch.no_grad():
        codes_of_it = model.encoder(torch.as_tensor(log_normalised(thinned)[:, genes])).numpy()
    ax.scatter(*codes_of_it.T, s=18, lw=0, label=f"{name} cell, 40 times", **style)
    ax.scatter(*z[cell], s=220, marker="*", color=style["color"], ec="black")
ax.set(xlabel="first number", ylabel="second number", title="5 % of the molecules (star: all)")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plotting.show(
    "Codes of three cells, each read forty times with a twentieth of its molecules. Each lies in a small "
    "group far from the star of the full cell, towards the middle of the plane."
)

# %% [markdown]
# All three have moved towards the middle, to places where few or other cells are. Over 50 cells of four
# types, on each of five seeds, the mean move is more than three times the width of the type: the median
# distance of its cells from their centre. And the forty codes of each cell lie close together, so that
# nothing looks wrong. The encoder returns two numbers, with all their digits, whether it has read
# thousands of molecules or a hundred.
#
# A VAE's encoder gives each cell a centre *and a width*. Is that the answer? Not by itself. A VAE of
# counts has a decoder that knows what few molecules are worth. From it one can compute how wide the code
# of such a cell should be: about three times as wide as that of the full cell. But the encoder has never
# seen such a cell, and makes the width *smaller*, 0.04 in place of 0.07
# ([E01.how_sure](evidence/01_autoencoders.py)). An encoder guesses, and a guess has to be checked.
#
# Both questions need the same thing: a model that says **how probable** a code is, and how probable a
# cell is given its code. Then the right width can be computed, and a guess can be compared with it. This
# is where lesson 02 begins.
#
# ## 10 · Who thought of it
#
# | year | who | what |
# |---|---|---|
# | 1985 | Ackley, Hinton, Sejnowski | the *encoder problem*: 8 patterns through a narrow layer |
# | 1986 | Rumelhart, Hinton, Williams | solve it with back-propagation |
# | 1987 | Ballard; Cottrell, Munro, Zipser | autoencoders stacked in modules; images compressed |
# | 1988 | Bourlard, Kamp | the linear case is a singular value decomposition |
# | 1989 | Baldi, Hornik | and has no bad local minima |
# | 1991 | Kramer | "nonlinear principal component analysis" with hidden layers |
# | 2006 | Hinton, Salakhutdinov | *deep* autoencoders, made trainable by pre-training each layer |
# | 2008 | Vincent and others | denoising autoencoders |
# | 2014 | Kingma, Welling; Rezende, Mohamed, Wierstra | variational autoencoders |
#
# > **Spot the error.** "This is the foundational paper that introduced autoencoders […] by Hinton and
# > Salakhutdinov, 2006." (MCB128, 2026.)
# >
# > <details><summary>Solution</summary>Twenty years too late. The paper of 2006 made deep ones work. One
# > of its two authors was at the encoder problem in 1985.</details>
#
# ## What to take along
#
# - Counts per 10,000, then the logarithm. Without the 10,000 the logarithm does nothing.
# - An autoencoder copies its input through a code. Choose the output by the data: linear for real
#   numbers, sigmoid for yes or no, softmax for shares. The loss follows.
# - A small loss is not the aim. A wide code copies; a narrow one, or added noise, makes it learn. On pure
#   noise, $d$ of $D$ directions are all there is, and a training loss below that is learned by heart.
# - Linear and tied, it finds PCA's plane and not its axes. Compare with PCA always.
# - It has an answer for every code, and does not know which codes are cells, nor how sure it is.
#
# ## The evidence
#
# Each claim of this lesson, measured on five or ten seeds. A seed draws data or a split of the cells, weights
# and minibatches.

# %% tags=["not-in-grading"]
evidence.table("01")

# %% [markdown]
# **Read on.** D. Ackley, G. Hinton and T. Sejnowski, *A learning algorithm for Boltzmann machines*
# (1985). D. Rumelhart, G. Hinton and R. Williams, *Learning internal representations by error
# propagation* (1986). D. Ballard, *Modular learning in neural networks* (1987). G. Cottrell, P. Munro
# and D. Zipser, on image compression (1987). H. Bourlard and Y. Kamp, *Auto-association by multilayer
# perceptrons and singular value decomposition* (1988). P. Baldi and K. Hornik, *Neural networks and
# principal component analysis* (1989). M. Kramer (1991). G. Hinton and R. Salakhutdinov, *Reducing the
# dimensionality of data with neural networks* (2006). P. Vincent and others, *Extracting and composing
# robust features with denoising autoencoders* (2008). D. MacKay, *Information theory, inference, and
# learning algorithms* (2003). C. Shannon, *A mathematical theory of communication* (1948). The data:
# M. Baron and others (2016). The lesson follows the autoencoder part of Harvard's MCB128 (2026).
#
# **Next:** [lesson 02](02_elbo.ipynb), a bound on what can't be computed.
