# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · A VAE, and what its numbers do
#
# Two colleagues each train a variational autoencoder (VAE) on the same 700 blood cells, with the
# same loss and the same optimiser. A's networks have one hidden layer each, with batch
# normalisation. B wants a stronger model: three hidden layers each, and no batch normalisation. Both
# losses fall, and then they look at the latent spaces.
#
# **When does a VAE use its latent space, when does it throw it away, and how do we see which?**
#
# **Objectives.** After this lesson you can
#
# - write the two terms of a VAE's bound, and check them against another implementation;
# - embed cells the same way twice;
# - say which noise $\sigma$ a loss of the form "MSE + KL" stands for, and what that $\sigma$ does;
# - read the KL as a rate in nats per cell, and tell signal from noise in a spectrum;
# - see posterior collapse, tell its two kinds apart, and find its cause;
# - choose the latent dimension, the width and the decoder's distribution;
# - make new cells, and say what is wrong with them.
#
# **You need** PyTorch (tensors, modules, an optimiser); the bound
# ([lesson 02](02_elbo.ipynb)); $z = m + s\,\varepsilon$
# ([lesson 03](03_gaussian_reparametrization.ipynb)); for section 7, covariance matrices and their
# eigenvalues ([3Blue1Brown](https://www.3blue1brown.com/lessons/eigenvalues)).
# **Time:** about 140 minutes, in two sittings (60 and 80). **Data:** cells that we simulate, and 700
# blood cells that come with scanpy. Nothing is downloaded.

# %%
from copy import deepcopy

import matplotlib.pyplot as plt
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
from vaelab import metrics, plotting
from vaelab.plotting import BLUE, COLOURS, MARKERS, ORANGE, RED, SKY
from vaelab.teaching import evidence

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # so that the same numbers come out on your machine

# %% tags=["not-in-grading"]
blood = vaelab.datasets.pbmc_small()
blood_cells = vaelab.Cells.from_anndata(blood, label="cell_type")
blood_types = pd.Series(blood_cells.labels).map({
    "Dendritic": "dendritic", "CD14+ Monocyte": "monocyte", "CD19+ B": "B cell",
    "CD56+ NK": "NK cell", "CD34+": "progenitor",
}).fillna("T cell").to_numpy()  # fmt: skip

settings = {"A": {}, "B": {"n_layers": 3, "normalization": None}}
models, losses = {}, {}
for name, options in settings.items():
    models[name] = vaelab.VAE(blood_cells.n_genes, n_hidden=64, likelihood="nb", seed=0, **options)
    fitted = vaelab.fit(models[name], blood_cells, epochs=60, seed=0, progress=False)
    losses[name] = -fitted.frame["bound"]

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
for i, (name, each) in enumerate(models.items()):
    axes[0].plot(losses[name], color=COLOURS[i], label=name)
    means = each.embed(blood_cells)
    shown = metrics.latent_activity(means).argsort()[:-3:-1]  # the two most active dimensions
    names = "clouds" if name == "A" else "legend"
    ax = plotting.embedding(means[:, shown], blood_types, ax=axes[i + 1], names=names)
    ax.set(title=f"{name}: latent space", xlabel="most active dimension", ylabel="second")
axes[0].set(xlabel="epoch", ylabel="loss (nats per cell)", title="Both losses fall")
axes[0].legend(frameon=False)
plotting.show(
    alt="Left: the losses of A and B fall smoothly. Middle: in A's latent space blood cell types "
    "form groups in two dimensions. Right: in B's, all cells lie on one curve."
)

# %% [markdown]
# Both losses fall. But in B's latent space all cells lie on one curve. On five seeds B's model uses
# one or two of its ten dimensions, and A's uses five to eight. A's bound on cells that it has not
# seen is 24 nats better ([E04.puzzle](evidence/04_vae.py)). The shape of B's loss did not show it.
# What went wrong? Section 8 finds it. Until then we build the tools.
#
# ## 1 · Cells whose causes we know
#
# In real data nobody knows what made the cells differ. So we begin with made-up ones. Each of these
# 700 cells is of one of five types, and has four hidden **factors**: its type's centre, and a
# random part of its own. The factors set the share of each gene in the cell's RNA, and about a
# thousand molecules are counted. A good model should find the four factors again, from the counts
# alone.
#
# The counts are scaled to 10,000 per cell and logarithms are taken, as is usual, so that a normal
# distribution is not too wrong for them. (Lesson 05 does without.) The last 100 cells are **held
# out**. Each gene is standardised by its mean and standard deviation over the other 600.

# %%
adata = vaelab.simulate.dataset(
    n_cells=700, n_genes=310, n_types=5, n_factors=4, library=1000, seed=0
)
counts = adata.X.toarray().astype(float)
counts = counts[:, counts[:600].any(0)][:, :300]  # genes that a training cell expresses
log_counts = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
mean, std = log_counts[:600].mean(0), log_counts[:600].std(0)
cells = torch.as_tensor((log_counts - mean) / std)
factors, cell_type = adata.obsm["z"], adata.obs["cell_type"].to_numpy()

x, held_out = cells[:600], cells[600:]  # (600, 300) and (100, 300)
n_genes = x.shape[1]
print(f"{(counts == 0).mean():.0%} of the counts are zero")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
plotting.embedding(factors[:, :2], cell_type, ax=left, title="The truth: two of four factors")
plane = PCA(2).fit_transform(cells.numpy())
plotting.embedding(plane, cell_type, ax=right, title="The data: two of 300 principal components")
left.set(xlabel="factor 1", ylabel="factor 2")
right.set(xlabel="component 1", ylabel="component 2")
plotting.show(
    alt="Two scatter plots of 700 simulated cells of five types. The types overlap in the first two "
    "true factors, and form partly separate groups in the first two principal components."
)

# %% [markdown]
# ## 2 · The model
#
# In the field's letters, there are $N$ genes and $P$ latent dimensions.
#
# $$z \sim \mathcal N(0, I_P),\qquad x\,|\,z \sim \mathcal N\big(\mu_\theta(z), \operatorname{diag}\sigma^2\big),\qquad q_\varphi(z\,|\,x) = \mathcal N\big(m_\varphi(x), \operatorname{diag} s_\varphi(x)^2\big)$$
#
# $\theta$ are the parameters of the decoder, and $\sigma$, one for each gene. $\varphi$ are those
# of the encoder. The bound of a cell takes five lines:
#
# | step | result | shape |
# |---|---|---|
# | encode | $m$ and $s$ | (n_cells, n_latent) each |
# | draw | $z = m + s\,\varepsilon$ | (n_cells, n_latent) |
# | decode | $p(x_g \mid z)$, a normal for each gene | (n_cells, n_genes) |
# | first sum, over genes | $\log p(x \mid z) = \sum_g \log p(x_g \mid z)$ | (n_cells,) |
# | second sum, over latent dimensions | $\mathrm{KL} = \sum_d \tfrac12\big(m_d^2 + s_d^2 - 1 - \log s_d^2\big)$ | (n_cells,) |
#
# Genes are independent given $z$, so their log-probabilities **add up**. So do the KLs of
# independent latent dimensions. Only cells are averaged, because the loss is that of a typical
# cell. A mean in place of one of these sums changes the model: section 6 shows how.
#
# ### Exercise 04.1 · Write the two terms of the bound
# ★★☆ · 10 minutes · 3 points
#
# Write `terms(encode, decode, x, noise)`. `encode(x)` returns $m$ and $s$, two tensors. `decode(z)`
# returns the distribution $p(x \mid z)$; its `log_prob(x)` has one number per cell and gene.
# `noise` is $\varepsilon$, of shape (n_cells, n_latent). Return $\log p(x \mid z)$ and the KL, both
# of shape (n_cells,). Gradients must reach the encoder. The check calls your function with an
# encoder and a decoder that are linear maps.
#
# <details><summary>Hint</summary>One line for each row of the table. <code>.sum(-1)</code> sums
# over the last axis. The logarithm in the table is of a variance, and s is a standard
# deviation.</details>


# %% nbgrader={"grade_id": "04-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def terms(encode, decode, x, noise):
    """log p(x | z) at a draw of z, and KL(q(z | x) ‖ p(z)), of each cell: torch tensors."""
    ### BEGIN SOLUTION
    m, s = encode(x)
    z = m + s * noise
    log_px = decode(z).log_prob(x).sum(-1)
    kl = 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s)).sum(-1)
    return log_px, kl
    ### END SOLUTION


# %%
def terms_of_linear_maps(weights, x, noise):
    def encode(x):
        calls.append(1)
        return x @ weights[0], torch.exp(x @ weights[1])

    def decode(z):
        return torch.distributions.Normal(z @ weights[2].T, torch.exp(weights[3].mean(1)))

    calls = []
    log_px, kl = terms(encode, decode, x, noise)
    if log_px.shape != kl.shape:
        shapes = f"log p(x|z) has shape {tuple(log_px.shape)}, and the KL {tuple(kl.shape)}"
        raise ValueError(f"{shapes}; both should have {(len(x),)}")
    once = 1.0 if len(calls) == 1 else torch.nan  # with dropout, each call gives another q(z|x)
    return torch.stack([log_px, kl]) * once


# %% nbgrader={"grade_id": "04-1-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("04.1", terms_of_linear_maps)

# %% [markdown]
# Now with networks.


# %%
def network(n_in, n_out, n_hidden, n_layers, dropout_rate, batch_norm):
    """Hidden layers of Linear → batch norm → ReLU → dropout, then a linear output."""
    layers = []
    for _ in range(n_layers):
        norm = nn.BatchNorm1d(n_hidden, eps=1e-3) if batch_norm else nn.Identity()
        layers += [nn.Linear(n_in, n_hidden), norm, nn.ReLU(), nn.Dropout(dropout_rate)]
        n_in = n_hidden
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


class VAE(nn.Module):
    """z ~ N(0, I), x | z ~ N(μ(z), diag σ²), q(z | x) = N(m(x), diag s(x)²)."""

    def __init__(self, n_genes, n_latent=10, n_hidden=64, encoder_layers=1, decoder_layers=1,
                 dropout_rate=0.1, batch_norm=True, sigma=None, seed=0):  # fmt: skip
        super().__init__()
        torch.manual_seed(seed)
        self.n_latent = n_latent
        self.encoder = network(
            n_genes, 2 * n_latent, n_hidden, encoder_layers, dropout_rate, batch_norm
        )
        self.decoder = network(n_latent, n_genes, n_hidden, decoder_layers, 0.0, batch_norm)
        start = torch.full((n_genes,), 1.0 if sigma is None else sigma).log()
        self.log_sigma = nn.Parameter(start, requires_grad=sigma is None)  # learned, or fixed

    def encode(self, x):
        """m and s of q(z | x), each of shape (n_cells, n_latent)."""
        m, s = self.encoder(x).chunk(2, dim=-1)
        return m, softplus(s) + 1e-4

    def decode(self, z):
        """p(x | z), one normal per cell and gene."""
        return Normal(self.decoder(z), self.log_sigma.exp())

    def terms(self, x):
        """log p(x | z) of one draw of z, and the KL; both (n_cells,)."""
        return terms(self.encode, self.decode, x, torch.randn(len(x), self.n_latent))


# %% [markdown]
# *Batch normalisation* shifts and scales each hidden unit to mean 0 and variance 1 over the
# minibatch; *dropout* sets a random tenth of them to zero. Both behave differently in training and
# in use, and section 5 is about forgetting that.
#
# > **Spot the error.** Three statements from other texts on this model. (1) A VAE learns
# > $p_\theta(z \mid x)$. (2) The encoder has one normal distribution for each gene. (3) The
# > decoder's outputs are counts, $\hat x \in \mathbb N^N$.
# >
# > <details><summary>Solution</summary>(1) It learns q_φ(z|x), which is near p_θ(z|x) if all goes
# > well. (2) One normal for each <i>latent dimension</i> of each cell: 10 here, and not 300. (3) A
# > decoder gives the <i>parameters</i> of p(x|z), here means, which are real numbers. Counts are
# > drawn from p(x|z) afterwards. (Sources: MCB128 2026; H. Gangloff 2023.)</details>
#
# ## 3 · Training on minibatches
#
# The bound is an average over cells, so a few cells at random, a **minibatch**, estimate it without
# bias. `loss` is an argument, since we are going to change it: it gets both terms, and how far the
# training has come, from 0 to 1.


# %%
def negative_bound(log_px, kl, progress):
    return (kl - log_px).mean()


def train(model, x, loss=negative_bound, epochs=60, batch_size=100, learning_rate=3e-3, seed=0):
    """Adam on minibatches; returns the bound in each epoch, nats per cell."""
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], learning_rate)
    history = []
    model.train()
    for epoch in range(epochs):
        bounds = []
        minibatches = torch.randperm(len(x)).split(batch_size)
        for i, rows in enumerate(minibatches, start=1):
            log_px, kl = model.terms(x[rows])
            value = loss(log_px, kl, (epoch + i / len(minibatches)) / epochs)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            bounds.append((log_px - kl).mean().item())
        history.append(np.mean(bounds))
    model.eval()
    return np.array(history)


model, history = VAE(n_genes, seed=0), []
history = train(model, x)

# %% [markdown]
# Ask every model two questions from here on. What is its **bound on cells that it has not seen**?
# And how much of the truth is **recovered**: if we draw $z$ from $q(z \mid x)$ and fit a linear
# regression from $z$ to the true factors, how much of their variance does it explain, on the
# held-out cells? This $R^2$ is 1 if the factors can be read off, and about 0 if $z$ says nothing
# about them.


# %%
@torch.no_grad()
def held_out_bounds(model, x=held_out):
    """Nats of each cell, from 20 draws."""
    torch.manual_seed(0)
    log_px, kl = model.terms(x.repeat(20, 1))
    return (log_px - kl).reshape(20, -1).mean(0).numpy()


@torch.no_grad()
def rates(model, x=held_out):
    """The KL of each latent dimension, averaged over cells; nats, the largest first."""
    kl = kl_divergence(Normal(*model.encode(x)), Normal(0.0, 1.0))
    return kl.mean(0).sort(descending=True).values.numpy()


def r_squared(z):
    """Of a linear regression from z to the true factors, on the held-out cells."""
    return LinearRegression().fit(z[:600], factors[:600]).score(z[600:], factors[600:])


@torch.no_grad()
def recovered(model, x=cells, noise=1.0):
    """R² of the factors on a draw of z, or with noise=0 on its mean; 0 if a constant is better."""
    torch.manual_seed(0)
    m, s = model.encode(x)
    return max(r_squared((m + noise * s * torch.randn(m.shape)).numpy()), 0.0)


print(f"bound {held_out_bounds(model).mean():.0f} held out, {history[-1]:.0f} in training")
print(f"factors recovered: R² = {recovered(model):.2f} (by means: {recovered(model, noise=0):.2f})")
for n in (2, 4, 10):
    z_pca = PCA(n).fit(x.numpy()).transform(cells.numpy())
    print(f"    {n:2d} principal components: {r_squared(z_pca):.2f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
left.plot(np.arange(len(history)) + 1, history, color=BLUE)
left.set(xlabel="epoch", ylabel="bound (nats per cell)", title="Training", ylim=(-450, None))
right.bar(np.arange(1, 11), rates(model), color=BLUE)
right.axhline(0.5, color="0.6", lw=1, ls="--")
right.set(xlabel="latent dimension, sorted", ylabel="KL (nats per cell)", xticks=range(1, 11))
right.set_title("What each dimension costs; dashed: 0.5 nats")
plotting.show(
    alt="Left: the bound rises quickly and levels off. Right: bars of the KL of ten latent "
    "dimensions, sorted. About half are above 0.5 nats, and the last ones are near 0."
)

# %% [markdown]
# The bound rises, and the factors are found. Principal components find them as well: in these data
# they act on log-shares in straight lines, which is what PCA is made for. Be suspicious of a
# comparison that leaves PCA out. (And compare like with like: components have no noise, so compare
# them with the *means* of $z$.)
#
# Look at the right-hand figure. We call a dimension **used** if its KL is above 0.5 nats. Of the
# ten that we gave, the model uses five to seven (five seeds, [E04.used](evidence/04_vae.py)). In
# the others $q(z \mid x)$ is almost the prior, whatever the cell. The model was not told that there
# are four factors. In section 7 we count the principal axes that stand above the noise.
#
# ## 4 · The same as the package's
#
# `vaelab.VAE` has the same networks. Is it the same model? Copy the weights from ours to the
# package's, start the random numbers at the same place, and compare bounds, cell by cell.

# %%
package = vaelab.VAE(n_genes, n_latent=10, n_hidden=64, likelihood="normal")
ours, weights = model.state_dict(), package.state_dict()
for name in weights:
    of_ours = name.replace("likelihood.output", "decoder.4")
    of_ours = of_ours.replace("likelihood.log_std", "log_sigma")
    if name not in ("typical_library", "likelihood.scale"):  # for counts; units of genes, 1 here
        weights[name] = ours[of_ours]
package.load_state_dict(weights)
package.eval()

with torch.no_grad():
    torch.manual_seed(3)
    log_px, kl = model.terms(held_out)
    torch.manual_seed(3)
    bound = package.elbo(vaelab.Cells.from_array(held_out.numpy()).to(dtype=torch.float64))
difference = (log_px - kl - bound.per_cell()).abs().max().item()
print("the same bound for each of 100 cells, to 1e-9:", difference < 1e-9)
bound.ledger().round({"nats": 1})

# %% [markdown]
# Your five lines agree with the package. `bound.per_cell()` is the bound of each cell, and
# `bound.ledger()` lists its terms, averaged over cells. All are in **nats**, the unit of natural
# logarithms: 1 nat is 1.44 bits. `vaelab.fit(model, cells)` is
# `train` with other settings of Adam (its docstring says which and why), and with what a longer
# training needs: held-out cells, the best epoch kept, a stop when the bound gets no better, a check
# that nothing is NaN.
#
# ## 5 · Ask it where a cell lies
#
# The **embedding** of a cell is the mean $m$ of $q(z \mid x)$. Here is how three published models
# for counts computed it, in effect:


# %%
def embed_as_published(encoder, x, batch_size):
    return torch.cat([encoder(part).chunk(2, dim=-1)[0] for part in x.split(batch_size)])


in_training = deepcopy(model).train()  # as a training loop may leave it
with torch.no_grad():
    torch.manual_seed(0)
    once = embed_as_published(in_training.encoder, cells, 100)
    twice = embed_as_published(in_training.encoder, cells, 100)
print(f"same cells, same model: they moved by {(once - twice).norm(dim=1).median():.1f} (median)")
print(f"distance of two cells:  {(once[:350] - once[350:]).norm(dim=1).median():.1f} (median)")

# %% [markdown]
# A cell's place changes from call to call. (The model changes too: in training mode each call moves
# the running means of batch normalisation. Hence the copy.) And it gets worse. Files are often sorted by type or
# donor, and then so are minibatches.
#
# <details><summary>Predict first: the cells are sorted by type, and each minibatch is embedded in
# training mode. What happens to the distances between types?</summary>Batch normalisation sets each
# minibatch to mean 0. It removes what its cells have in common, and that is their type. The types
# move on top of each other.</details>
#
# ### Exercise 04.2 · Embed a cell the same way twice
# ★★☆ · 8 minutes · 2 points
#
# **A bug hunt.** Fix it. Write `embed(encoder, x, batch_size)`: `encoder` is a network that gives
# $m$ and, next to it, what $s$ is made from, as `model.encoder` does. A cell must get the same $m$
# whatever the draws, its neighbours and the minibatch. Leave the encoder in the mode in which it
# was, training or not, and change nothing else: `embed` may be called in the middle of a training.
#
# <details><summary>Hint</summary>A PyTorch module has <code>.train(mode)</code> and
# <code>.eval()</code>, which also set the mode of its parts. Its attribute <code>.training</code>
# says in which mode it is; read it, but do not set it. <code>torch.no_grad()</code> saves
# memory, but it does not change the mode.</details>


# %% nbgrader={"grade_id": "04-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def embed(encoder, x, batch_size=100):
    """The mean of q(z | x) of each cell; shape (n_cells, n_latent)."""
    ### BEGIN SOLUTION
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        means = [encoder(part).chunk(2, dim=-1)[0] for part in x.split(batch_size)]
    encoder.train(training)
    return torch.cat(means)
    ### END SOLUTION


# %%
def embed_and_look(encoder, x, batch_size):
    def state():
        modules = list(encoder.modules())
        return {
            "the mode of some parts of the encoder (.training)": [m.training for m in modules],
            "the dropout rate": [getattr(m, "p", None) for m in modules],
            "requires_grad of the parameters": [p.requires_grad for p in encoder.parameters()],
            "torch.is_grad_enabled()": torch.is_grad_enabled(),
        }

    mode, before = encoder.training, state()
    means, after = embed(encoder, x, batch_size), state()
    torch.set_grad_enabled(before["torch.is_grad_enabled()"])
    changed = [name for name in before if before[name] != after[name]]
    if changed and encoder.training == mode:
        raise ValueError(f"embed has changed, and not set back: {', '.join(changed)}")
    return means


# %% nbgrader={"grade_id": "04-2-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("04.2", embed_and_look)

# %%
by_type = np.argsort(cell_type, kind="stable")  # as in a sorted file
with torch.no_grad():
    torch.manual_seed(0)
    wrong = embed_as_published(deepcopy(model.encoder).train(), cells[by_type], 100).numpy()
    right_means = np.asarray(embed(model.encoder, cells[by_type], 100))

shown = metrics.latent_activity(right_means).argsort()[-2:]  # the two most active dimensions
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for ax, means, title in zip(axes, [wrong, right_means], ["as published", "fixed"], strict=True):
    width = metrics.average_silhouette_width(means, cell_type[by_type])
    plotting.embedding(means[:, shown], cell_type[by_type], ax=ax)
    ax.set(title=f"{title}: silhouette {width:.2f}", xlabel="second most active dimension")
    ax.set_ylabel("most active dimension")
plotting.show(
    alt="Two scatter plots of the same cells and the same model. Left, embedded as published: the "
    "five types lie on top of each other. Right, after the fix: they form groups."
)

# %% [markdown]
# The same weights, the same cells. The **silhouette** (lesson 06) is near 1 if types are tight and
# far apart, and about 0 if they overlap. No error was raised, and the left-hand picture looks like
# the result of a poor model. The right-hand number is far from 1 too, since
# the types overlap in these data: the four true factors themselves have 0.45. This is not an accident of one seed
# ([E04.mode](evidence/04_vae.py)). `model.embed(cells)` in the package does what you did.
#
# **Stop here** if you work in two sittings. So far you have a VAE that is right. The second half is
# about what its numbers mean. When you come back, run all cells above again: it needs their models.
#
# ## 6 · The σ that nobody chose
#
# Most VAEs that you will meet have no $\sigma$ in them. Their loss is "mean squared error plus KL".
# Where has $\sigma$ gone? For a normal decoder with the same $\sigma$ for all genes,
#
# $$-\log p(x\,|\,z) = \frac{\lVert x - \mu(z)\rVert^2}{2\sigma^2} + \underbrace{\tfrac N2 \log 2\pi\sigma^2}_{\text{constant, if }\sigma\text{ is fixed}}$$
#
# Multiply the loss by $2\sigma^2/N$, which changes no minimum, and it reads
#
# $$\underbrace{\tfrac 1N\lVert x - \mu(z)\rVert^2}_{\text{MSE}} + \beta\;\mathrm{KL}, \qquad \beta = \frac{2\sigma^2}{N}$$
#
# So every $\beta$ next to a mean squared error is a $\sigma$. If you write MSE + KL, with
# $\beta = 1$, you assume that $\sigma^2 = N/2$. For our 300 genes, of variance 1 each, that is
# $\sigma^2 = 150$.
#
# > **Spot the error.** A course with such a loss (MCB128 2026) says that with
# > $\log p(x \mid z) = -\tfrac12\lVert x - \mu\rVert^2$ + constant, maximising it "is equivalent
# > to" minimising the MSE.
# >
# > <details><summary>Solution</summary>−½‖x − μ‖² needs σ = 1. And the 1/N of a mean matters:
# > alone, MSE and sum have the same minimum, but next to a KL the 1/N makes the KL N times
# > heavier.</details>
#
# ### Exercise 04.3 · Which σ did you just choose?
# ★★☆ · 6 minutes · 2 points
#
# **A bug hunt** in four losses of the form `error + weight * kl`. The squared errors of a cell are
# reduced over its genes by "sum" or by "mean"; the KLs of its latent dimensions too. All four are
# in use. Write `implied_sigma(n_genes, n_latent, error, kl, weight)`: `error` and `kl` are the
# words "sum" or "mean". Return the $\sigma$ for which the loss is −ELBO, up to a factor and a
# constant.
#
# <details><summary>Hint</summary>In −ELBO one squared error weighs 1/(2σ²), and one nat of one
# dimension's KL weighs 1. What do they weigh in the loss, and what is the ratio?</details>


# %% nbgrader={"grade_id": "04-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def implied_sigma(n_genes, n_latent, error, kl, weight):
    """σ of the normal decoder that belongs to error + weight · kl; a number."""
    ### BEGIN SOLUTION
    weight_of_error = 1 / n_genes if error == "mean" else 1.0
    weight_of_nat = weight / n_latent if kl == "mean" else weight
    return (weight_of_nat / (2 * weight_of_error)) ** 0.5
    ### END SOLUTION


# %% nbgrader={"grade_id": "04-3-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("04.3", implied_sigma)

# %% [markdown]
# Same data, same networks, same dropout, same weight of 1, four ways to reduce. Each model is
# trained with the $\sigma$ that its loss stands for. The fifth row is our model of section 3, which
# learns a $\sigma$ for each gene. A dimension is **active** if its posterior mean varies by more
# than 0.01 over cells (`metrics.latent_activity`). (It is *used*, as in section 3, if its
# KL is above 0.5 nats.)
#
# <details><summary>Predict first: which of the four losses uses no latent dimension at
# all?</summary>Mean of errors + sum of KLs: its σ² is 150, and the data have variance 1 per
# gene.</details>

# %% tags=["not-in-grading"]
at_sigma, rows = {}, []
for error, kl in [("mean", "sum"), ("mean", "mean"), ("sum", "sum"), ("sum", "mean"), (None, None)]:
    if error is None:
        each, name = model, "σ learned for each gene"
    else:
        sigma = float(implied_sigma(n_genes, 10, error, kl, weight=1.0))
        each = at_sigma[sigma] = VAE(n_genes, sigma=sigma, seed=0)
        train(each, x)
        name = f"{error} of errors + {kl} of KLs"
    level = (2 * each.log_sigma).exp().median().item()
    with torch.no_grad():
        activity = metrics.latent_activity(np.asarray(embed(each.encoder, cells)))
    rows.append({
        "loss": name,
        "σ²": f"{level:.2g}" if level < 1 else f"{level:.0f}",
        "active": int((activity > metrics.ACTIVE).sum()),
        "used": int((rates(each) > 0.5).sum()),
        "KL (nats)": f"{rates(each).sum():.1f}",
        "bound held out": f"{held_out_bounds(each).mean():.0f}",
        "R² of draws": f"{recovered(each):.1f}",
        "R² of means": f"{recovered(each, noise=0):.1f}",
    })  # fmt: skip
pd.DataFrame(rows).set_index("loss")

# %% [markdown]
# Line by line.
#
# **Mean of errors + sum of KLs**, the first that comes to mind: *everything has collapsed*. With
# $\sigma^2 = 150$ the model takes every difference between cells for noise. $q(z \mid x)$ is the
# prior for each of them, and the decoder gives them all the same mean. The loss falls to a low
# value nevertheless.
#
# **Mean + mean**: $\sigma^2 = 15$. Less than one nat: a blurred picture. **Sum + sum**:
# $\sigma^2 = 0.5$, not far from the 0.7 that the model learns (last row), and the best of the four.
# **Sum + mean**:
# $\sigma^2 = 0.05$. Here the KL is so light that the model is almost a plain autoencoder. It spends
# more than twice the nats for factors that it does not know better. And it is so sure of its means that
# new cells are a shock: see the bound.
#
# **σ learned**: on every seed its bound is better than that of each fixed $\sigma$
# ([E04.sigma](evidence/04_vae.py)). By the count of *active* dimensions it looks no different from
# "sum + sum". Look at *used* and at the nats.
#
# Compare the last two columns in the second line. From the *means* a regression reads the factors
# nearly as well as ever. But the decoder gets *draws*, and in those most is lost: the means vary
# little compared with the noise $s$. A regression on the means sees no noise, and it can multiply
# small means by large coefficients. It even finds something in the means of the collapsed model in
# the first line. So score draws, or look at the KL, which knows the scale
# ([E04.drowned](evidence/04_vae.py)).
#
# The cure is not a better $\beta$. It is to **let the data say σ**: make it a parameter, as in
# section 2. Then each gene's $\tfrac12 \log 2\pi\sigma^2$ is no longer a constant: it stops
# $\sigma$ from growing too far, and the squared error over $2\sigma^2$ stops it from shrinking too
# far.
#
# ## 7 · The KL is a rate
#
# Think of the encoder as a sender and of the decoder as a receiver. Both know the prior. The sender
# says where in it this cell lies. If many cells are sent together, this costs on average, in nats
# per cell, no more than the **rate**
#
# $$R = \mathbb E_{\text{cells}}\big[\mathrm{KL}\big(q(z\,|\,x)\,\|\,p(z)\big)\big]$$
#
# To name one of five equally common types takes $\log 5 = 1.6$ nats. Our model spends
# more, since it also says where inside its type a cell lies. What is the right amount? For a
# *linear* decoder, and data whose covariance has eigenvalues $\lambda_1 \ge \lambda_2 \ge \dots$,
# it can be computed: each latent dimension takes one principal axis, and there its rate has a
# formula.
#
# ### Exercise 04.4 · The rate of a linear VAE
# ★★★ · 10 minutes · 3 points
#
# Along one principal axis $x$ has mean 0 and variance $\lambda$. The model:
# $x = w z + \sigma\varepsilon$. Fill in.
#
# - (a) The best model has the data's variance: $w^2 + \sigma^2 = \lambda$ if $\lambda > \sigma^2$,
#   else $w = 0$.
# - (b) Its posterior has $s^2 = \sigma^2/\lambda$ and $m = (w/\lambda)\,x$ (lesson 02).
# - (c) Averaged over cells, $\mathbb E[m^2] = \;?$
# - (d) Put into the KL: $R = \tfrac12\big(\mathbb E[m^2] + s^2 - 1 - \log s^2\big) = \;?$
#
# Write `linear_rate(eigenvalues, sigma)`: for each entry of the tensor `eigenvalues`, the rate of
# its dimension in nats, in the same order. `sigma` is a float, not a tensor. The check does not use
# your formula: for each axis it searches for the $w$ with the largest $\log p(x)$, and computes the
# KL there.
#
# <details><summary>Hint</summary>What is E[x²]? Line (c) has a w² in it: use line (a) to write it
# with s². What is left in line (d)? And what is the rate of a dimension with w = 0?</details>


# %% nbgrader={"grade_id": "04-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def linear_rate(eigenvalues, sigma):
    """E[KL] of each latent dimension of the best linear VAE, nats; the shape of eigenvalues."""
    ### BEGIN SOLUTION
    s_squared = (sigma**2 / eigenvalues).clamp(max=1)  # 1, the prior's, where w = 0
    return -0.5 * torch.log(s_squared)  # E[m²] + s² = 1
    ### END SOLUTION


# %% nbgrader={"grade_id": "04-4-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("04.4", linear_rate)

# %% [markdown]
# This is **reverse water-filling**, from the theory of coding. $\sigma^2$ floods the spectrum. An
# axis under water is not worth coding: its dimension collapses, and rightly so. An axis above it
# gets half the logarithm of how far it stands out. Do our VAEs follow it, which are not linear? Two
# more levels are trained to fill the picture. (The dashed line is explained below it.)

# %% tags=["not-in-grading"]
eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)


def draw_level(sigma):
    now = np.asarray(linear_rate(eigenvalues[:10].clone(), sigma)).sum()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    above = (eigenvalues[:20] > sigma**2).numpy()
    colours = np.where(above, BLUE, "0.8")
    left.bar(np.arange(1, 21), eigenvalues[:20], color=colours, edgecolor="0.6", lw=0.5)
    left.axhspan(0.01, sigma**2, color=SKY, alpha=0.3, lw=0)
    left.axhline(sigma**2, color=SKY, label=f"water level σ² = {sigma**2:.3g}")
    left.axhline(edge, color=RED, ls="--", label=f"edge of noise: {edge:.2f}")
    left.set(yscale="log", ylim=(0.02, 300), xlabel="principal axis", ylabel="variance λ")
    left.set(title=f"{above[:10].sum()} of ten dimensions above water", xticks=range(1, 21, 3))
    left.legend(frameon=False)
    right.plot(levels, curve, color="0.5", label="best linear VAE, formula")
    right.plot(sigma**2, now, "D", color=SKY, ms=10)
    right.plot(np.square(list(found)), list(found.values()), "o", color=BLUE, ms=5,
               label="VAEs with a hidden layer, trained")  # fmt: skip
    right.set(xscale="log", xlabel="σ²", ylabel="rate of ten dimensions (nats per cell)")
    right.set_title(f"At σ² = {sigma**2:.3g}: {now:.1f} nats")
    right.legend(frameon=False)
    return fig


# %% tags=["not-in-grading"]
for sigma in (5**0.5, 2**0.5):
    at_sigma[sigma] = VAE(n_genes, sigma=sigma, seed=0)
    train(at_sigma[sigma], x)
found = {sigma: rates(each).sum() for sigma, each in at_sigma.items()}
noise = (2 * model.log_sigma.detach()).exp().median().item()  # the learned σ²
edge = noise * (1 + (n_genes / len(x)) ** 0.5) ** 2
levels = np.logspace(-1.4, 2.3, 100)
curve = [np.asarray(linear_rate(eigenvalues[:10].clone(), v**0.5)).sum() for v in levels]

draw_level(5**0.5)
plotting.show(
    alt="Left: bars of 20 eigenvalues on a log scale. Four stand above a water level at 5; the fifth "
    "stands just below it, and all others are near a dashed line at 2, the edge of noise. Right: "
    "the rate falls from 26 nats to 0 as σ² grows; dots of trained VAEs lie near the formula's "
    "curve."
)

# %% [markdown]
# They do: over more than three orders of magnitude of $\sigma^2$ the dots are within 2 nats of the
# curve ([E04.water_level](evidence/04_vae.py)). With a kernel running, move the level:

# %% tags=["not-in-grading", "nbval-ignore-output"]
from ipywidgets import FloatLogSlider

plotting.interactive(
    draw_level,
    alt="Left: 20 eigenvalues, with a water level at σ² and the edge of noise. Right: the rate of "
    "the best linear VAE for each σ², with dots of trained VAEs.",
    sigma=FloatLogSlider(5**0.5, min=-0.7, max=1.1, step=0.02, description="σ"),
)

# %% [markdown]
# ### Where does noise end?
#
# <details><summary>Predict first: the learned σ² has median 0.7, and all of the first 20
# eigenvalues are above it. Are there 20 factors?</summary>No. Read on: noise has eigenvalues above
# its own variance.</details>
#
# Take pure noise of variance $\sigma^2$, in $N$ genes and $n$ cells. The *true* eigenvalues are all
# $\sigma^2$. Those of the *sample* spread out, because $n$ cells determine $N$ axes badly. They
# reach up to the **Marchenko–Pastur edge**
#
# $$\lambda_+ = \sigma^2\big(1 + \sqrt{N/n}\big)^2$$
#
# For 600 cells and 300 genes that is $2.9\,\sigma^2$: the dashed line. Five eigenvalues stand
# clearly above it, the fifth at twice the edge. The sixth is within 15 % of it, on each of five
# seeds ([E04.edge](evidence/04_vae.py)). So the rule $\lambda > \sigma^2$ is about *these*
# cells, and the edge says which axes *other* cells are likely to share. To see the edge of your own
# data: standardise, count cells and genes, and draw the line.
#
# A linear VAE that is trained to the end would take the noise axes too, since they are above the
# water. Why does our model use only five to seven dimensions? Because its training ends early. With
# 300 epochs in place of 60 it uses seven to ten, and its held-out bound falls by seven nats. Dropout
# protects too: without it the bound falls by two nats
# ([E04.noise_learned](evidence/04_vae.py)). This is overfitting, seen in the spectrum.
#
# ## 8 · Collapse by accident
#
# So far a dimension collapsed because that was best, given $\sigma$. There is another kind, and it
# is B's. We make it again where the truth is known: three hidden layers in each network, and no
# batch normalisation.


# %% tags=["not-in-grading"]
def without_norm(encoder_layers, decoder_layers, loss=negative_bound):
    """A VAE without batch normalisation, trained for 80 epochs, and its bounds."""
    layers = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    each = VAE(n_genes, batch_norm=False, seed=0, **layers)
    return each, train(each, x, loss=loss, epochs=80)


collapsed, collapsing = without_norm(3, 3)
with torch.no_grad():
    plotting.activity(metrics.latent_activity(np.asarray(embed(collapsed.encoder, cells))))
plotting.show(
    alt="Bars of the activity of ten latent dimensions on a log scale. Two are far above the "
    "threshold of 0.01, and eight are below it."
)
print(f"used: {(rates(collapsed) > 0.5).sum()} dimensions; R² {recovered(collapsed):.1f}")

# %% [markdown]
# Two dimensions are used, where there are four factors, and $\sigma$ is learned: no $\sigma$ that
# nobody chose is to blame. And patience does not help. After four times as many epochs there are
# still two, and the held-out bound is lower ([E04.longer](evidence/04_vae.py)).
#
# The usual story: at the start the decoder can't read $z$ yet. So for the encoder $z$ brings
# nothing and costs KL, and the quickest gain is to make $q$ the prior. Then the decoder hears
# nothing, and has no reason to learn to listen. Usually a deep decoder is blamed. A story is not
# evidence, so we change one thing at a time.
#
# <details><summary>Predict first: you may make one network shallow again, the encoder or the
# decoder. Which one helps?</summary>Either. See the table.</details>

# %% tags=["not-in-grading"]
measured = evidence.read("04")  # each seed draws data, weights and minibatches
depth, names = measured["E04.depth"], ["1 + 1", "1 + 3", "3 + 1", "3 + 3"]
gain = depth[names].sub(depth["3 + 3"], axis=0)  # in pairs with the same seed
used = depth[[f"used, {name}" for name in names]]
pd.DataFrame({
    "bound held out": depth[names].mean().round(1),
    "gain over 3 + 3": gain.mean().round(1),
    "its standard error": (gain.std() / len(gain) ** 0.5).round(1),
    "dimensions used, fewest": used.min().astype(int).to_numpy(),
    "most": used.max().astype(int).to_numpy(),
}).rename_axis("layers in encoder + decoder")  # fmt: skip

# %% [markdown]
# Each network adds its part ([E04.depth](evidence/04_vae.py)). With a deep decoder alone, 1 + 3,
# the model uses three dimensions. With a deep encoder alone, 3 + 1, it uses about four, the true
# number, and its bound is the best of all. With both deep it uses two. So the decoder matters more,
# but it is not alone: what counts is the whole path from $x$ to $z$ and back. With 1 + 5 and 5 + 1 layers
# it gets worse again ([E04.path](evidence/04_vae.py)). The shallowest pair, 1 + 1, uses more
# dimensions than there are factors, and its bound is lower than that of 3 + 1.
#
# Two other suspects. *Signals that shrink on their way through the layers*: with He's
# initialisation, which keeps their size, the bound of 3 + 3 is lower still
# ([E04.initialisation](evidence/04_vae.py)). *The optimiser*: ours is Adam with learning rate 0.003
# and $\epsilon = 10^{-8}$. With the one of `vaelab.fit`, 3 + 3 loses every dimension. A shallow
# encoder, a shallow decoder or batch normalisation prevents that
# ([E04.optimiser](evidence/04_vae.py)). So the optimiser decides how bad it gets.
#
# ### Architecture against tricks
#
# There are well-known tricks against collapse. **KL warm-up** (Bowman et al. 2016): let the KL
# weigh little at first and then more, up to 1, so that the decoder learns to listen while talk is
# cheap. While the weight is below 1, the loss is not a bound; at the end it is. **Free bits**
# (Kingma et al. 2016): each latent dimension may spend $\lambda$ nats for nothing, so there is no
# gain in going below:
#
# $$\text{loss} = -\,\overline{\log p(x\,|\,z)} + \sum_{d=1}^{P} \max\!\big(\lambda,\ \overline{\mathrm{KL}_d}\big)$$
#
# The bars are means over the cells of the minibatch. Third, **batch normalisation** in all layers.


# %% tags=["not-in-grading"]
def warm_up(log_px, kl, progress):
    weight = min(1.0, progress / 0.5)  # over the first half of the training
    return (weight * kl - log_px).mean()


runs = {
    "3 + 1": without_norm(3, 1),
    "3 + 3, warm-up": without_norm(3, 3, loss=warm_up),
    "3 + 3": (collapsed, collapsing),
}
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for i, (name, (each, bounds)) in enumerate(runs.items()):
    style = {"color": COLOURS[i], "marker": MARKERS[i], "label": name}
    left.plot(np.arange(1, 81), bounds, **style, markevery=(10, 10))
    right.plot(np.arange(1, 11), rates(each), **style)
    of_cells = held_out_bounds(each) - held_out_bounds(collapsed)  # in pairs: the same cells
    print(f"{name:15s} bound held out {held_out_bounds(each).mean():.1f}, gain {of_cells.mean():.1f}"
          f" ± {of_cells.std() / len(of_cells) ** 0.5:.1f}, R² {recovered(each):.2f}")  # fmt: skip
left.set(xlabel="epoch", ylabel="bound (nats per cell)", ylim=(-430, -360), title="Training")
right.set(xlabel="latent dimension, sorted", ylabel="KL (nats per cell)", xticks=range(1, 11))
right.set_title("The rate of each dimension")
right.legend(frameon=False)
plotting.show(
    alt="Left: three training curves that rise smoothly and look alike. Right: the rates of ten "
    "dimensions, sorted. With 3 + 3 layers fewer dimensions are above zero than with 3 + 1."
)

# %% [markdown]
# The training curves look the same. The gain of one pair of models has a standard error, here over the
# 100 held-out cells. It does not include luck with seeds. So for a claim, train pairs of models
# on several seeds:

# %% tags=["not-in-grading"]
tricks = measured["E04.tricks"]
gain = tricks.drop(columns="no trick").sub(tricks["no trick"], axis=0)
colours = dict.fromkeys(gain.columns[:3], ORANGE)
colours |= dict.fromkeys(gain.columns[3:], BLUE)
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
plotting.seeds(ax, gain, ylabel="gain over 3 + 3 (nats per cell)", colours=colours)
ax.axhline(0, color="0.6", lw=1)
ax.set_title("Tricks (orange) and architecture (blue)")
plotting.show(
    alt="Gain in held-out bound over the collapsed model, ten dots per remedy. Means: batch "
    "normalisation 2.6 nats, free bits 1.2, warm-up 2.0, an encoder of one layer 2.4, a decoder of "
    "one layer 4.3."
)
gain.agg(["mean", "sem"]).round(1)

# %% [markdown]
# Each trick helps this network, and a decoder of one layer helps more than each trick
# ([E04.tricks](evidence/04_vae.py)). An encoder of one layer and batch normalisation help about as
# much as the tricks. So try a shallower decoder first.
#
# Free bits also show how to misread an activity. All ten dimensions are active, but only two or
# three are used. The others are at the floor that costs nothing ([E04.floor](evidence/04_vae.py)).
#
# What went wrong for B? B changed two things. On the blood cells, three layers *with* batch
# normalisation have as good a bound as A's one layer, within 5 nats. One layer without it loses
# about 8 nats, and both changes together 24 ([E04.blood](evidence/04_vae.py)). So B's model needs
# batch normalisation because it is deep.
#
# And do not fear every collapse: **the surplus dimensions of a good model should collapse.**
# Collapse is a fault if the bound could have been better without it. In the package, a warm-up is
# the argument `kl_warmup` of `fit`, in optimiser steps; a VAE has none unless you ask for it.
#
# ## 9 · How many dimensions, how wide?
#
# Neither is known beforehand. The held-out bound says. (The figure uses `measured`, which a cell of
# section 8 reads.)
#
# <details><summary>Predict first: there are four factors. Which costs more, two dimensions or
# sixteen?</summary>Two. Sixteen cost almost nothing.</details>

# %% tags=["not-in-grading"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained", sharey=True)
for ax, claim, base, what in (
    (left, "E04.latent_size", "4", "latent dimensions"),
    (right, "E04.width", "64", "width of the hidden layers"),
):
    bounds = measured[claim][[name for name in measured[claim] if name.isdigit()]]
    colours = dict.fromkeys(bounds.columns, BLUE)
    plotting.seeds(ax, bounds.sub(bounds[base], axis=0), colours=colours, ylabel="")
    ax.axhline(0, color="0.6", lw=1)
    ax.set_title(f"By {what}, compared with {base}")
left.set_ylabel("gain in held-out bound (nats)")
plotting.show(
    alt="Gains in held-out bound, five dots each. Left: 1 and 2 latent dimensions lose 16 and 5 nats "
    "against 4; 8 and 16 lose less than 1. Right: widths of 4 and 256 lose 17 and 7 nats against "
    "64; 16 loses 2."
)

# %% [markdown]
# **Too few dimensions** hurt at once: factors have to share. **Too many** hurt little, because the
# KL turns off what is not needed ([E04.latent_size](evidence/04_vae.py)). When in doubt take too
# many, 10 or 20, and look at how many are used. With an autoencoder you could not.
#
# **Width** has a price on both sides ([E04.width](evidence/04_vae.py)). A network of width 4 can't
# carry four factors. One of width 256 has 160,000 parameters, and 600 cells to learn
# them from. It spends a third more nats, on noise. More data, more dropout or an earlier stop would
# help it.
#
# ## 10 · A decoder for molecules
#
# Look again at the counts. A cell's molecules were caught one by one, and each is of some gene. Let
# the decoder say with which probability the next one is of gene $g$: a **softmax** makes shares
# $\rho$ that sum to 1. Which gene a molecule has is then a **categorical** variable. A cell of
# $\ell$ molecules, independent given $z$, has counts from a *multinomial* distribution:
#
# $$\log p(x\,|\,z, \ell) = \sum_g x_g \log \rho_g(z) + \log\frac{\ell!}{\prod_g x_g!}$$
#
# ### Exercise 04.5 · Spot the error: which distribution goes with softmax?
# ★★☆ · 7 minutes · 2 points
#
# A course (MCB128 2026) says that if data are "Bernoulli parameters", the last layer should be a
# softmax. Then it divides $x$ by its sum, and gives as loss $-(1/D) \sum x \log x'$. There are
# three errors in this. Write the log-probability that is right for counts:
# `log_multinomial(x, logits)`, both of shape (n_cells, n_genes), where $\rho$ is the softmax of the
# logits. What comes back has shape (n_cells,), and gradients reach the logits. Shares may be as
# small as $e^{-900}$, which a float can't hold: stay in logarithms.
#
# <details><summary>Hint</summary>Bernoulli variables do not compete: which function gives one
# probability for each? Dividing by the sum, how many molecules does a cell seem to have? And do
# log-probabilities add up, or average? For n!, torch has
# <code>torch.lgamma(n + 1)</code>.</details>


# %% nbgrader={"grade_id": "04-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def log_multinomial(x, logits):
    """log p(x | ℓ, ρ = softmax(logits)) of each cell, with ℓ its total; shape (n_cells,)."""
    ### BEGIN SOLUTION
    orders = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    return orders + (x * torch.log_softmax(logits, dim=-1)).sum(-1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "04-5-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("04.5", lambda logits, x: log_multinomial(x, logits))

# %% [markdown]
# The three: Bernoulli goes with a *sigmoid*, one for each gene; softmax goes with a categorical.
# Dividing by the total says that each cell is a single molecule, so that the KL weighs $\ell$ times
# too much. And $1/D$ makes it $D$ times too heavy once more. With a thousand molecules and 300
# genes, that is a $\beta$ of 300,000.
#
# There is no "categorical" among the package's likelihoods. But there is a Poisson with mean
# $\ell\rho$, and if independent Poisson counts are known to sum to $\ell$, they are multinomial:
#
# $$\underbrace{\sum_g \log \mathrm{Poisson}(x_g;\ \ell\rho_g)}_{\texttt{likelihood="poisson"}} = \underbrace{\log \mathrm{Multinomial}(x;\ \ell, \rho)}_{\text{yours}} + \underbrace{\log \mathrm{Poisson}(\ell;\ \ell)}_{\text{no parameter in it}}$$
#
# The last term has no gradient: it is the same model, and trains in the same way.

# %% tags=["not-in-grading"]
Poisson = torch.distributions.Poisson
torch.manual_seed(0)
x_counts = torch.as_tensor(counts)
total, logits = x_counts.sum(1), torch.randn(x_counts.shape)
of_poisson = Poisson(total[:, None] * logits.softmax(-1)).log_prob(x_counts).sum(1)
yours = torch.as_tensor(log_multinomial(x_counts, logits))
difference = (of_poisson - yours - Poisson(total).log_prob(total)).abs().max().item()
print("both sides are equal for each of 700 cells, to 1e-8:", difference < 1e-8)

all_counts = vaelab.Cells.from_array(counts)
for likelihood in ("poisson", "nb"):
    package = vaelab.VAE(n_genes, n_hidden=64, likelihood=likelihood, seed=0)
    vaelab.fit(package, all_counts[np.arange(600)], epochs=60, seed=0, progress=False)
    with torch.no_grad():
        q = package.encode(all_counts.to(dtype=torch.float64))
    rate = kl_divergence(q, package.prior())[600:].sum(-1).mean()
    print(f"{likelihood:8s} rate {rate:4.1f} nats, R² by means {r_squared(q.mean.numpy()):.2f}")

# %% [markdown]
# The Poisson model finds the factors from raw counts, and no scaling of cells was needed: that
# $\ell$ is given takes care of it. But look at the rates. Same counts, same networks, and the
# Poisson spends more than twice the nats of "nb", the negative binomial of lesson 05
# ([E04.poisson_rate](evidence/04_vae.py)). Given $z$, a Poisson leaves no room except the luck of
# the draw. Real genes, and these, scatter more, and what the likelihood can't explain, $z$ has to.
#
# ## 11 · New cells, and what is wrong with them
#
# A generative model makes cells. We return to A's model of the blood cells (Zheng et al. 2017; 765
# genes), with the likelihood of lesson 05.
#
# ### Exercise 04.6 · Make new cells
# ★☆☆ · 5 minutes · 2 points
#
# Write `new_cells(decode, n_cells, n_latent)`: new cells from the model $z \sim \mathcal N(0, I)$,
# $x \sim p(x \mid z)$. `decode(z)` takes a tensor of shape (n_cells, n_latent) and returns the
# distribution $p(x \mid z)$ of all these cells; it may be any distribution of counts. Call it once,
# with a tensor of torch's default type, as the lesson's networks need. Return the counts, of shape
# (n_cells, n_genes).
#
# <details><summary>Hint</summary>Two draws. A torch distribution has <code>.mean</code> and
# <code>.sample()</code>: which of them gives cells?</details>


# %% nbgrader={"grade_id": "04-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def new_cells(decode, n_cells, n_latent):
    """Counts of new cells, drawn from the model; shape (n_cells, n_genes)."""
    ### BEGIN SOLUTION
    z = torch.randn(n_cells, n_latent)
    return decode(z).sample()
    ### END SOLUTION


# %%
def summary_of_new_cells(w, b, theta, n_cells):
    seen = []

    def decode(z):
        if tuple(z.shape) != (n_cells, len(w)):
            raise ValueError(f"z should have shape {(n_cells, len(w))}; it has {tuple(z.shape)}")
        if z.dtype != torch.get_default_dtype():  # the lesson's networks need it
            raise TypeError(f"z should be a tensor of {torch.get_default_dtype()}, not {z.dtype}")
        seen.append(z)
        logits = z.to(w) @ w + b - theta.log()
        return torch.distributions.NegativeBinomial(theta, logits=logits)

    x = new_cells(decode, n_cells, len(w))
    if isinstance(x, torch.distributions.Distribution):
        return x
    x, z = torch.as_tensor(np.asarray(x), dtype=torch.float64), seen[-1]
    return (
        x.mean(0), x.var(0, correction=0), (x == 0).double().mean(0),
        (x[:, :1] * x).mean(0), (x != x.round()).double().mean(),
        z.mean(0).abs() * n_cells**0.5, (z.var(0) - 1).abs() * (n_cells / 2) ** 0.5,
        abs(len(x) - n_cells),
    )  # fmt: skip


# %% nbgrader={"grade_id": "04-6-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("04.6", summary_of_new_cells)

# %% tags=["not-in-grading"]
generator, dense = models["A"], blood_cells.to(dtype=torch.float64)


def decode(z):
    return generator.decode(z, dense)  # each new cell gets the library size of a real one


observed = blood.X.toarray()
torch.manual_seed(0)
with torch.no_grad():
    resampled = decode(generator.encode(dense).sample()).sample().numpy()
    means = decode(torch.randn(700, 10)).mean.numpy()
    generated = np.asarray(new_cells(decode, 700, 10))

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained", sharey=True)
often = observed.mean(0).argsort()[::-1][50:130]  # 80 genes that are neither rare nor everywhere
for ax, (name, values) in zip(
    axes, {"real cells": observed, "drawn": generated, "means only": means}.items(), strict=True
):
    picture = ax.imshow(np.log1p(values[:60, often]), cmap="Blues", vmin=0, vmax=3)
    ax.set(title=f"{name}: {(values == 0).mean():.0%} zeros", xlabel="80 genes", xticks=[])
axes[0].set(ylabel="60 cells", yticks=[])
fig.colorbar(picture, ax=axes, label="log(1 + count)", shrink=0.8)
plotting.show(
    alt="Three heat maps of 60 cells and 80 genes. Real and drawn cells are speckled with many white "
    "zeros. The means are smooth stripes without a zero."
)

# %% [markdown]
# **First fault: a mean is not a cell.** It is common to show the mean of $p(x \mid z)$ as "the
# generated cell". It has no zeros, since no molecule was ever caught or missed. The last step,
# $x \sim p(x \mid z)$, is part of the model. Drawn cells have nearly as many zeros as real ones:
# 63 % against 67 % ([E04.zeros](evidence/04_vae.py)).
#
# **Second fault: holes.** Training puts real cells somewhere in latent space. Taken together, the
# $q(z \mid x)$ of all cells are a distribution too, the *aggregated posterior*. The KL wants it to
# be like the prior. But there are types, with few cells between them, and the prior does not know
# this. To see it, we ask for each cell's ten nearest *real* cells: it lies between types if no type
# has seven of these ten.


# %% tags=["not-in-grading"]
def log_normalised(counts):
    return np.log1p(1e4 * counts / counts.sum(1, keepdims=True))


def between_types(points, is_real=False):
    """The share of cells without a type that has seven of their ten nearest real cells."""
    _, nearest = NearestNeighbors(n_neighbors=11).fit(real).kneighbors(points)
    nearest = nearest[:, 1:] if is_real else nearest[:, :10]  # not the cell itself
    most = [np.unique(row, return_counts=True)[1].max() for row in blood_types[nearest]]
    return np.mean(np.array(most) < 7)


pca = PCA(20, random_state=0).fit(log_normalised(observed))
real = pca.transform(log_normalised(observed))
torch.manual_seed(0)
groups = {
    "real cells": real,
    "z of real cells": pca.transform(log_normalised(resampled)),
    "z of the prior": pca.transform(log_normalised(np.asarray(new_cells(decode, 700, 10)))),
}
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), layout="constrained", sharex=True, sharey=True)
for ax, (name, points) in zip(axes, groups.items(), strict=True):
    if name == "real cells":
        plotting.embedding(points[:, :2], blood_types, ax=ax)
    else:
        ax.scatter(*real[:, :2].T, s=12, color="0.85", lw=0)
        ax.scatter(*points[:, :2].T, s=7, color="black", lw=0)
    share = between_types(points, is_real=name == "real cells")
    ax.set(title=f"{name}:\n{share:.0%} between types", xlabel="component 1", xticks=[], yticks=[])
axes[0].set_ylabel("component 2")
plotting.show(
    alt="Blood cells on two principal components. Left: real cells in groups by type. Middle: new "
    "cells at the z of real cells lie on the groups, slightly nearer the centre. Right: new cells "
    "from the prior also fill the gaps between the groups."
)

# %% [markdown]
# Middle: new counts at the places of real cells. They lie slightly nearer the centre, because the
# components were fitted to the real cells and their noise. Real cells that were left out of the fit
# do the same ([E04.inwards](evidence/04_vae.py)). Right: at places from the prior. They fill the
# bridges between groups.
#
# Of the cells from the prior, a quarter lie between types, against 6 % of the real ones
# ([E04.holes](evidence/04_vae.py)). In a tissue whose cells are differentiating, some real cells do
# lie there. In blood, a mixture of a B cell and a monocyte does not exist. Two cures, and a
# warning. Draw $z$ from the $q$ of real cells, as in the middle: then you get variations on cells
# you have, and no new ones. Or give the model a prior with groups: the Gaussian mixture of lesson
# 08. And beware of using generated cells as if they were more data: they hold what the model has
# understood, faults included.
#
# **Third fault: impossible values.** A normal decoder does not know that counts stop at zero. Our
# first model, of section 3, makes log-counts below those of a gene that was not seen at all:

# %%
lowest = cells.min(0).values  # the value of a zero count, in each gene
torch.manual_seed(0)
with torch.no_grad():
    made = model.decode(torch.randn(700, 10)).sample()
print(f"{(made < lowest).double().mean():.0%} of the values are below that of a zero count")

# %% [markdown]
# ## A card for your own model
#
# | you see | it may be | do |
# |---|---|---|
# | the KL is 0 in all dimensions | a $\sigma$ (or a mean) that nobody chose; deep networks without normalisation | compute the implied $\sigma$ and learn it; then one hidden layer with batch normalisation |
# | fewer used dimensions than PCA axes above the noise edge | collapse by accident | a shallower decoder or encoder, batch normalisation; then warm-up; compare held-out bounds on several seeds |
# | many active dimensions, few above 0.5 nats | a floor, or surplus | nothing, if the held-out bound is good |
# | $R^2$ or clusters fine on means, bad on draws | a $\sigma$ that is too large | learn $\sigma$ |
# | training bound rises, held-out bound falls | noise axes are being learned | stop earlier, dropout, narrower networks |
# | an embedding that changes from call to call | training mode | `eval()`, or the package's `embed` |
#
# ## Try it yourself
#
# 1. *(5 minutes)* Leave the genes as `log_counts`, not standardised. Would "mean of errors + sum of
#    KLs" work now? No training is needed to say.
#    <details><summary>Hint</summary>Where is the water level, and where is the largest
#    eigenvalue of <code>np.cov(log_counts[:600].T)</code>?</details>
#    <details><summary>Solution</summary>No: it is about 111, and σ² = N/2 = 150 as
#    before.</details>
# 2. *(10 minutes)* Write free bits, for the 3 + 3 model of section 8. You need the KL of each
#    dimension, so write a loop like `train` of your own. How many dimensions stay at the floor?
#    <details><summary>Hint</summary>In the loop: <code>q = Normal(*model.encode(x[rows]))</code>,
#    <code>z = q.rsample()</code>, and <code>kl = kl_divergence(q, Normal(0.0, 1.0))</code>, of shape
#    (n_cells, n_latent). The loss has <code>kl.mean(0).clamp(min=free).sum()</code>. Leave
#    <code>terms</code> as it is: <code>held_out_bounds</code> needs it.</details>
#    <details><summary>Solution</summary>Seven or eight of ten: all are active, and two or three
#    are used.</details>
# 3. *(5 minutes)* What is the Marchenko–Pastur edge for pure noise of variance 1 in 2,000 genes,
#    with 500 cells and with 50,000?
#    <details><summary>Solution</summary>(1 + √4)² = 9, and (1 + √0.04)² = 1.44. With few cells a
#    real factor must be strong to be seen.</details>
#
# ## What to take along
#
# - Sum over genes, sum over latent dimensions, mean over cells. Every other mean is a $\sigma$, or a
#   $\beta$, in disguise: MSE + $\beta$·KL is $\sigma^2 = \beta N/2$. Learn $\sigma$.
# - The KL is a rate. In a linear VAE, an axis is coded if $\lambda > \sigma^2$ (reverse
#   water-filling). Whether other cells share it, the Marchenko–Pastur edge says.
# - Collapse can be the best for the given $\sigma$ (surplus dimensions, or a $\sigma$ that is too
#   large), or an accident of a path that is too deep. The bound on held-out cells, on several seeds
#   and with its standard error, says which it was. Try a shallower decoder first, then the tricks.
# - `eval()` before you embed. Draw from $p(x \mid z)$, not only its mean. Mind the holes of the
#   prior.
#
# ## The evidence
#
# Each claim of this lesson, measured on five or ten seeds. A seed draws data, weights and
# minibatches.

# %% tags=["not-in-grading"]
evidence.table("04")

# %% [markdown]
# **Read on.** The VAE: D. Kingma and M. Welling, *Auto-Encoding Variational Bayes* (2014), §2.3 and
# §3, appendix C for the normal decoder; D. Rezende, S. Mohamed and D. Wierstra (2014), §3–4. $\sigma$, and
# which dimensions collapse in a linear VAE: J. Lucas, G. Tucker, R. Grosse and M. Norouzi, *Don't
# Blame the ELBO!* (2019), §4; the solution for w is M. Tipping and C. Bishop (1999), equation 7.
# $\sigma$ learned from the data: O. Rybkin, K. Daniilidis and S. Levine, *Simple and Effective VAE
# Training with Calibrated Decoders* (2021), §3. KL as a rate: A. Alemi et al., *Fixing a Broken
# ELBO* (2018), §2; reverse water-filling: T. Cover and J. Thomas, *Elements of Information Theory*
# (2006), §10.3.3. The edge: V. Marchenko and L. Pastur (1967); for signals above it, J. Baik, G. Ben
# Arous and S. Péché (2005). Warm-up: S. Bowman et al. (2016), §3.1; C. Sønderby et al. (2016), §2.
# Free bits: D. Kingma et al., *Improved Variational Inference with Inverse Autoregressive Flow*
# (2016). Initialisation: K. He et al. (2015). Active dimensions: Y. Burda et al. (2016), §5.2.
# β-VAE: I. Higgins et al. (2017). Aggregated posterior and holes: M. Hoffman and M. Johnson, *ELBO
# surgery* (2016). The lesson follows the VAE parts of H. Gangloff's tutorial (2023), of a blog
# post, *Variational Autoencoders for Modeling Single-Cell Data* (2022), and of Harvard's MCB128
# (2026). The bug of exercise 04.2 is from the code behind A. Sarkar's notes (2019).
#
# **Next:** [lesson 05](05_count_likelihoods.ipynb), likelihoods for counts.
