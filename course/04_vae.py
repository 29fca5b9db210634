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
# An encoder, a decoder, a bound, and draws that gradients pass through: put together they are a
# variational autoencoder (VAE). It fits on a screen. But it can be trained, give a loss that falls
# nicely, and have learned nothing about the cells. **When does a VAE use its latent space, when
# does it throw it away, and how do we see which?**
#
# **Objectives.** After this lesson you can
#
# - write a VAE for any number of layers, latent dimensions and genes, and check it against another;
# - embed cells the same way twice, and recognise a published tool that does not;
# - say which noise σ a loss of the form "MSE + KL" stands for, and what that σ does;
# - read the KL as a rate, in nats for each cell;
# - see posterior collapse, tell its two kinds apart, and cure the one that has a cure;
# - choose the latent dimension, the width and the decoder's distribution;
# - make new cells, and say what is wrong with them.
#
# **You need** Python and PyTorch; the bound (lesson 02); z = m + s·ε (lesson 03).
# **Time:** about 60 minutes. **Data:** cells that we simulate, and 700 blood cells that come with
# scanpy. Nothing is downloaded.

# %%
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

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # so that the same numbers come out on your machine

# %% [markdown]
# ## 1 · Cells whose causes we know
#
# In real data nobody knows what made the cells differ. So we begin with made-up ones. Each of these
# 700 cells is of one of five types, and has four hidden **factors**: its type's centre, and a
# random part of its own. The factors set the share of each of 300 genes in the cell's RNA, and
# about a thousand molecules are counted. A good model should find the four factors again, from the
# counts alone.
#
# The counts are scaled to 10,000 in each cell and logarithms are taken, as is usual, so that a
# normal distribution is not too wrong for them. (Lesson 05 does without.) Then each gene is
# standardised to mean 0 and variance 1. The last 100 cells are **held out**: no model is fitted
# to them.

# %%
adata = vaelab.simulate.dataset(
    n_cells=700, n_genes=300, n_types=5, n_factors=4, library=1000, seed=0
)
counts = adata.X.toarray().astype(float)
log_counts = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
cells = torch.as_tensor((log_counts - log_counts.mean(0)) / log_counts.std(0))
factors, cell_type = adata.obsm["z"], adata.obs["cell_type"].to_numpy()

x, held_out = cells[:600], cells[600:]  # (600, 300) and (100, 300)
n_genes = x.shape[1]
print(f"{(counts == 0).mean():.0%} of the counts are zero")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
plotting.embedding(factors[:, :2], cell_type, ax=left, title="The truth: two of four factors")
plane = PCA(2).fit_transform(cells.numpy())
plotting.embedding(plane, cell_type, ax=right, title="The data: two of 300 principal components")
left.set(xlabel="factor 1", ylabel="factor 2")
_ = right.set(xlabel="component 1", ylabel="component 2")

# %% [markdown]
# ## 2 · The model, first as a sketch
#
# One pass through a VAE, with linear maps for networks. Read the shapes.

# %%
torch.manual_seed(0)
encoder, decoder = nn.Linear(n_genes, 2 * 3), nn.Linear(3, n_genes)  # three latent dimensions

m, s = encoder(x).chunk(2, dim=-1)  # two numbers a latent dimension: (600, 3) each
s = softplus(s)  # a standard deviation is positive
z = m + s * torch.randn_like(s)  # one draw from q(z | x), lesson 03: (600, 3)
log_px = Normal(decoder(z), 1.0).log_prob(x).sum(-1)  # sum over genes: (600,)
kl = 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s)).sum(-1)  # sum over latent dimensions: (600,)
bound = (log_px - kl).mean()  # mean over cells, and only over cells
print(f"bound {bound:.0f} nats a cell, before any training")

# %% [markdown]
# The last comment is the most important one of this lesson. Genes are independent given z, so their
# log-probabilities **add up**. So do the KLs of independent latent dimensions. Only cells are
# averaged, because the loss is of a typical cell. Half of what goes wrong in practice is a mean in
# place of one of these sums, and section 6 shows what it does.
#
# ### The full thing
#
# Now with hidden layers. In the field's letters: the encoder has $K^e$ hidden layers, the decoder
# $K^d$; there are N genes and P latent dimensions.
#
# $$z \sim \mathcal N(0, I_P),\qquad x\,|\,z \sim \mathcal N\big(\mu_\theta(z),
# \operatorname{diag}\sigma^2\big),\qquad
# q_\varphi(z\,|\,x) = \mathcal N\big(m_\varphi(x), \operatorname{diag} s_\varphi(x)^2\big)$$
#
# θ are the numbers of the decoder, and σ, one for each gene; φ those of the encoder.


# %%
def network(n_in, n_out, n_hidden, n_layers, dropout_rate, batch_norm):
    """Hidden layers of Linear → batch norm → ReLU → dropout, then a linear output."""
    layers = []
    for _ in range(n_layers):
        # The two constants are scVI's. The package has the same eps, and a momentum of 0.1.
        norm = nn.BatchNorm1d(n_hidden, eps=1e-3, momentum=0.01) if batch_norm else nn.Identity()
        layers += [nn.Linear(n_in, n_hidden), norm, nn.ReLU(), nn.Dropout(dropout_rate)]
        n_in = n_hidden
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


class VAE(nn.Module):
    """z ~ N(0, I), x | z ~ N(μ(z), diag σ²), q(z | x) = N(m(x), diag s(x)²)."""

    def __init__(self, n_genes, n_latent=10, n_hidden=64, encoder_layers=1, decoder_layers=1,
                 dropout_rate=0.1, batch_norm=True, sigma=None, seed=0):  # fmt: skip
        super().__init__()
        torch.manual_seed(seed)
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

    def log_likelihood(self, x, z):
        """log p(x | z) of each cell; shape (n_cells,)."""
        return Normal(self.decoder(z), self.log_sigma.exp()).log_prob(x).sum(-1)

    def terms(self, x):
        """E_q[log p(x|z)] by a draw, (n_cells,); each dimension's KL, (n_cells, n_latent)."""
        m, s = self.encode(x)
        z = m + s * torch.randn_like(s)
        kl = 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s))
        return self.log_likelihood(x, z), kl


# %% [markdown]
# That is all of it, in 34 lines, and 55 with the training loop below. *Batch
# normalisation* shifts and scales each hidden unit to mean 0 and variance 1 over the minibatch;
# *dropout* sets a random tenth of them to zero. Both behave differently in training and in use, and
# section 5 is about those who forgot.
#
# > **Spot the error.** Two slips from a tutorial on this model. The encoder gives
# > "$\sigma_m^2 \in (\mathbb R_*^+)^P$", and so $q = \mathcal N(\mu_m, \sigma_m^2 I_P)$. And the
# > outputs of the decoder are "$\hat x_m \in \mathbb N^N$", counts.
# >
# > <details><summary>Solution</summary>σ²I is for one number σ². With one for each of P dimensions
# > it is diag(σ²). And a decoder gives the <i>parameters</i> of p(x|z), here means, which are real
# > numbers. Counts, if it is counts that one models, are drawn from p(x|z) afterwards.</details>
#
# > **Spot the error.** Four from other texts. (1) A VAE learns p_θ(z|x). (2) The encoder has one
# > normal distribution for each gene. (3) Noise from N(0, 1) enters at the input layer. (4) The KL
# > is that of N(μ_θ(x), σ²(x)) from the prior.
# >
# > <details><summary>Solution</summary>(1) It learns q_φ(z|x), which is near p_θ(z|x) if all goes
# > well. (2) One normal for each <i>latent dimension</i> of each cell: 10 here, and not 300. (3) At
# > the latent layer: see the line with randn. x itself is never changed. (4) m and s come from the
# > encoder, whose numbers are φ. θ is the decoder's.</details>
#
# ## 3 · Training on minibatches
#
# The bound is an average over cells, so a few cells at random, a **minibatch**, estimate it without
# bias. `loss` is an argument, since we are going to change it: it gets both terms, and how far the
# training has come, from 0 to 1.


# %%
def negative_bound(reconstruction, kl, progress):
    return (kl.sum(-1) - reconstruction).mean()


def train(model, x, loss=negative_bound, epochs=60, batch_size=100, learning_rate=3e-3, seed=0):
    """Adam on minibatches; returns the bound in each epoch, nats a cell."""
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], learning_rate)
    history = []
    model.train()
    for epoch in range(epochs):
        bounds = []
        minibatches = torch.randperm(len(x)).split(batch_size)
        for i, rows in enumerate(minibatches, start=1):
            reconstruction, kl = model.terms(x[rows])
            value = loss(reconstruction, kl, (epoch + i / len(minibatches)) / epochs)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            bounds.append(-negative_bound(reconstruction, kl, progress=1).item())
        history.append(np.mean(bounds))
    model.eval()
    return np.array(history)


model = VAE(n_genes, seed=0)
history = train(model, x)

# %% [markdown]
# Two questions to ask of every model from here on. What is its **bound on cells that it has not
# seen**? And how much of the truth is **recovered**: if we draw z from q(z|x) and fit a linear
# regression from z to the true factors, how much of their variance does it explain, on the held-out
# cells? This R² is 1 if the factors can be read off, and about 0 if z knows nothing of them.


# %%
@torch.no_grad()
def held_out_bound(model, x=held_out):
    """Nats a cell, from 20 draws for each."""
    torch.manual_seed(0)
    return -negative_bound(*model.terms(x.repeat(20, 1)), progress=1).item()


@torch.no_grad()
def rates(model, x=held_out):
    """The KL of each latent dimension, averaged over cells; nats, the largest first."""
    return model.terms(x)[1].mean(0).sort(descending=True).values.numpy()


def r_squared(z):
    """Of a linear regression from z to the true factors, on the held-out cells."""
    return LinearRegression().fit(z[:600], factors[:600]).score(z[600:], factors[600:])


@torch.no_grad()
def recovered(model, x=cells, noise=1.0):
    """R² of the factors on a draw of z, or with noise=0 on its mean; 0 if a constant is better."""
    torch.manual_seed(0)
    m, s = model.encode(x)
    return max(r_squared((m + noise * s * torch.randn_like(s)).numpy()), 0.0)


print(f"bound {history[-1]:.0f} in training, {held_out_bound(model):.0f} held out")
print(f"factors recovered: R² = {recovered(model):.2f} (by means: {recovered(model, noise=0):.2f})")
for n in (2, 4, 10):
    z_pca = PCA(n).fit(x.numpy()).transform(cells.numpy())
    print(f"    {n:2d} principal components: {r_squared(z_pca):.2f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.plot(np.arange(1, 61), history, color=plotting.COLOURS[0])
left.set(xlabel="epoch", ylabel="bound (nats a cell)", title="Training", ylim=(-450, None))
right.bar(np.arange(1, 11), rates(model), color=plotting.COLOURS[0])
right.set(xlabel="latent dimension, sorted", ylabel="KL (nats a cell)", xticks=range(1, 11))
_ = right.set_title("What each dimension costs")

# %% [markdown]
# The bound rises, and the factors are found. Principal components find them as well: in
# these data they act on log-shares in straight lines, which is what PCA is made for. Be suspicious
# of a comparison that leaves PCA out. (And compare like with like: components have no noise, so
# hold them against the *means* of z.)
#
# Look at the right-hand figure. We gave the model ten dimensions, and it pays for about five. A
# sixth has a little KL, and the other four have hardly any: there q(z|x) is all but the prior,
# whatever the cell. Nobody told it that there are four factors. (Why five? Softmax and logarithm have bent the four. A straight line in the true
# factors explains a quarter of the fifth principal component, and with their squares and products
# three quarters. So a fifth dimension helps to follow the bend.)
#
# ## 4 · The same as the package's
#
# `vaelab.VAE` has the same networks. Is it the same model? Copy the weights from ours to theirs,
# start the random numbers at the same place, and compare bounds, cell by cell.

# %%
package = vaelab.VAE(
    n_genes, n_latent=10, n_hidden=64, n_layers=1, likelihood="normal", normalization="batch"
)
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
    reconstruction, kl = model.terms(held_out)
    torch.manual_seed(3)
    bound = package.elbo(vaelab.Cells.from_array(held_out.numpy()).to(dtype=torch.float64))
difference = (reconstruction - kl.sum(-1) - bound.per_cell()).abs().max().item()
print("the same bound for each of 100 cells, to 1e-9:", difference < 1e-9)
bound.ledger().round({"nats": 1})

# %% [markdown]
# The ledger lists the package's terms. And `vaelab.fit(model, cells)` is `train` with other
# settings of Adam (its docstring says which and why), and with what one wants when training takes
# longer: held-out cells, the best epoch kept, a stop when it gets no better, a check that nothing
# is NaN.
#
# ## 5 · Ask it where a cell lies
#
# The **embedding** of a cell is the mean m of q(z|x). Here is how three published models for
# counts computed it, in effect:


# %%
def embed_as_published(encoder, x, batch_size):
    return torch.cat([encoder(part).chunk(2, dim=-1)[0] for part in x.split(batch_size)])


model.train()  # as a training loop may leave it
with torch.no_grad():
    torch.manual_seed(0)
    once = embed_as_published(model.encoder, cells, 100)
    twice = embed_as_published(model.encoder, cells, 100)
print(f"same cells, same model: they moved by {(once - twice).norm(dim=1).median():.1f} (median)")
print(f"distance of two cells:  {(once[:350] - once[350:]).norm(dim=1).median():.1f} (median)")

# %% [markdown]
# A cell's place changes from call to call. And it gets worse. Files are often sorted by type or
# donor, and then so are minibatches. Batch normalisation sets each minibatch to mean 0: it takes
# away what its cells have in common, and that is their type.
#
# ### Exercise 04.1 · Embed a cell the same way twice
# ★★☆ · 8 minutes · 2 points
#
# **A bug hunt.** Mend it. Write `embed(encoder, x, batch_size)`: `encoder` is a network that gives
# m and, next to it, what s is made from, as `model.encoder` does. A cell must get the same m
# whatever the draws, its neighbours and the minibatch. And `embed` leaves the encoder in the mode
# in which it was, training or not: it may be called in the middle of a training.
#
# <details><summary>Hint</summary>A PyTorch module has <code>.train(mode)</code>,
# <code>.eval()</code>, and an attribute <code>.training</code>. <code>torch.no_grad()</code> saves
# memory here, and is not the answer.</details>


# %% nbgrader={"grade_id": "04-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
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


# %% nbgrader={"grade_id": "04-1-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("04.1", embed)

# %%
by_type = np.argsort(cell_type, kind="stable")  # as in a sorted file
model.train()
with torch.no_grad():
    torch.manual_seed(0)
    wrong = embed_as_published(model.encoder, cells[by_type], 100).numpy()
right_means = embed(model.encoder, cells[by_type], 100).numpy()
model.eval()

shown = metrics.latent_activity(right_means).argsort()[-2:]  # the two most active dimensions
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, means, title in zip(axes, [wrong, right_means], ["as published", "mended"], strict=True):
    width = metrics.average_silhouette_width(means, cell_type[by_type])
    plotting.embedding(means[:, shown], cell_type[by_type], ax=ax)
    ax.set(title=f"{title}: silhouette {width:.2f}", xlabel="a latent dimension", ylabel="another")

# %% [markdown]
# The same weights, the same cells. The **silhouette** (lesson 06) is near 1 if types are tight and
# far apart, and 0 if they lie in each other. No error was raised, and the left-hand picture looks
# like the result of a poor model. `model.embed(cells)` in the package does what you did.
#
# ## 6 · The σ that nobody chose
#
# Most VAEs that you will meet have no σ in them. Their loss is "mean squared error plus KL". Where
# has σ gone? For a normal decoder with the same σ for all genes,
#
# $$-\log p(x\,|\,z) = \frac{\lVert x - \mu(z)\rVert^2}{2\sigma^2} +
# \underbrace{\tfrac N2 \log 2\pi\sigma^2}_{\text{constant, if σ is fixed}}$$
#
# Multiply the loss by 2σ²/N, which changes no minimum, and it reads
#
# $$\underbrace{\tfrac 1N\lVert x - \mu(z)\rVert^2}_{\text{MSE}} + \beta\;\mathrm{KL},
# \qquad \beta = \frac{2\sigma^2}{N}$$
#
# So every β beside a mean squared error is a σ. Who writes MSE + KL, with β = 1, says that
# σ² = N/2. For our 300 genes, of variance 1 each, that is σ² = 150.
#
# > **Spot the error.** A course with such a loss says that with log p(x|z) = −½‖x − μ‖² + constant,
# > maximising it "is equivalent to" minimising the MSE. A blog uses the MSE *because* p(x|z) is a
# > multivariate Gaussian.
# >
# > <details><summary>Solution</summary>−½‖x − μ‖² needs σ = 1. And the 1/N of a mean is not
# > innocent: alone, MSE and sum have the same minimum, but next to a KL the 1/N makes the KL N
# > times heavier. The blog's Gaussian must moreover have one fixed σ for all genes: with a σ for
# > each gene, or covariances, it is another loss.</details>
#
# ### Exercise 04.2 · Which σ did you just choose?
# ★★☆ · 6 minutes · 2 points
#
# **A bug hunt** in four losses of the form `error + weight * kl`. The squared errors of a cell are
# reduced over its genes by "sum" or by "mean"; the KLs of its latent dimensions too. All four are
# in use. Write `implied_sigma(n_genes, n_latent, error, kl, weight)`: `error` and `kl` are the
# words "sum" or "mean", and what comes back is the σ for which the loss is −ELBO, up to a factor
# and a constant.
#
# <details><summary>Hint</summary>In −ELBO one squared error weighs 1/(2σ²), and one nat of one
# dimension's KL weighs 1. What do they weigh in the loss, and what is the ratio?</details>


# %% nbgrader={"grade_id": "04-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def implied_sigma(n_genes, n_latent, error, kl, weight):
    """σ of the normal decoder that belongs to error + weight · kl; a number."""
    ### BEGIN SOLUTION
    weight_of_error = 1 / n_genes if error == "mean" else 1.0
    weight_of_nat = weight / n_latent if kl == "mean" else weight
    return (weight_of_nat / (2 * weight_of_error)) ** 0.5
    ### END SOLUTION


# %% nbgrader={"grade_id": "04-2-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("04.2", implied_sigma)

# %% [markdown]
# Same data, same networks, same weight of 1, four ways to reduce. Each model is trained with the σ
# that its loss stands for. A dimension is **active** if its posterior mean varies by more than
# 0.01 over cells (`metrics.latent_activity`).

# %% tags=["not-in-grading"]
at_sigma, rows = {}, []
for error, kl in [("mean", "sum"), ("mean", "mean"), ("sum", "sum"), ("sum", "mean")]:
    sigma = implied_sigma(n_genes, 10, error, kl, weight=1.0)
    at_sigma[sigma] = VAE(n_genes, sigma=sigma, dropout_rate=0.0, seed=0)
    train(at_sigma[sigma], x)
    means = embed(at_sigma[sigma].encoder, cells)
    rows.append({
        "loss": f"{error} of errors + {kl} of KLs",
        "σ²": f"{sigma**2:g}",
        "active": int((metrics.latent_activity(means.numpy()) > metrics.ACTIVE).sum()),
        "KL (nats)": f"{rates(at_sigma[sigma]).sum():.1f}",
        "bound held out": f"{held_out_bound(at_sigma[sigma]):.0f}",
        "R² of draws": f"{recovered(at_sigma[sigma]):.1f}",
        "R² of means": f"{recovered(at_sigma[sigma], noise=0):.1f}",
    })  # fmt: skip
pd.DataFrame(rows).set_index("loss")

# %% [markdown]
# Line by line.
#
# **Mean of errors + sum of KLs**, the first that comes to mind: *everything has collapsed*. With
# σ² = 150 the model takes every difference between cells for noise. q(z|x) is the prior for each of
# them, and the decoder gives them all the same mean. The loss falls to a fine value nevertheless.
# (A blog says that φ is learned by minimising the KL between q(z|x) and the prior. Here it is
# minimal.)
#
# **Mean + mean**: σ² = 15. One nat: a blurred picture. **Sum + sum**: σ² = ½, not far from the
# truth for these data; this one happens to be the best of the four, though it keeps all ten
# dimensions. **Sum + mean**: σ² = 0.05. Here the KL is so light that
# the model is all but a plain autoencoder. It spends twice as much for factors it knows no better,
# and is so sure of its means that new cells come as a shock: see the bound.
#
# Compare the last two columns in the second line. From the *means* a regression reads the factors
# nearly as well as ever. But the decoder gets *draws*, and in those most is drowned: the means vary
# little next to the noise s. A regression does not mind, since it multiplies by what is needed. So
# score draws, or look at the KL, which knows the scale.
#
# The cure is not a better β. It is to **let the data say σ**: make it a parameter, as in section 2.
# Then each gene's ½ log 2πσ² is a constant no more: it stops σ from growing too far, and the
# squared error over 2σ² stops it from shrinking too far.

# %%
sigmas = model.log_sigma.exp().detach()
print(f"learned σ²: from {sigmas.min() ** 2:.2f} to {sigmas.max() ** 2:.2f}, "
      f"median {(sigmas**2).median():.2f}; bound held out {held_out_bound(model):.0f}")  # fmt: skip

# %% [markdown]
# ## 7 · The KL is a rate
#
# Think of the encoder as a sender and of the decoder as a receiver (Shannon's channel, lesson 01).
# Both know the prior. The sender says where in it this cell lies. What that costs on average, in
# nats for each cell, is at most
#
# $$R = \mathbb E_{\text{cells}}\big[\mathrm{KL}\big(q(z\,|\,x)\,\|\,p(z)\big)\big]$$
#
# the **rate**. To name one of five equally common types takes log 5 = 1.6 nats (2.3 bits). Our
# model spends more, since it also says where inside its type a cell lies. What is the right amount?
# For a *linear* decoder, and data whose covariance has eigenvalues λ₁ ≥ λ₂ ≥ …, it can be computed:
# each latent dimension takes one principal axis, and there its rate has a formula.
#
# ### Exercise 04.3 · The rate of a linear VAE
# ★★★ · 10 minutes · 3 points
#
# Along one principal axis x has mean 0 and variance λ. The model: x = w·z + σ·ε. Fill in.
#
# $$\begin{aligned}
# &\text{The best model has the data's variance:}\quad w^2 + \sigma^2 = \lambda
# &&\text{if } \lambda > \sigma^2\text{, else } w = 0 && \text{(a)}\\
# &\text{Its posterior has}\quad s^2 = \frac{\sigma^2}{\lambda},\quad m = \frac w\lambda\,x
# &&\text{(lesson 02)} && \text{(b)}\\
# &\text{Averaged over cells,}\quad \mathbb E[m^2] = \;? && && \text{(c)}\\
# &\text{Put into the KL:}\quad R = \tfrac12\big(\mathbb E[m^2] + s^2 - 1 - \log s^2\big) = \;?
# && && \text{(d)}
# \end{aligned}$$
#
# Write `linear_rate(eigenvalues, sigma)`: for each entry of the tensor `eigenvalues`, the rate of
# its dimension in nats, as a tensor.
# The check searches for the best w by the evidence, and computes the KL there.
#
# <details><summary>Hint</summary>What is E[x²]? Line (c) has a w² in it: use line (a) to write it
# with s². What is left in line (d)? And what is the rate of a dimension with w = 0?</details>


# %% nbgrader={"grade_id": "04-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def linear_rate(eigenvalues, sigma):
    """E[KL] of each latent dimension of the best linear VAE, nats; the shape of eigenvalues."""
    ### BEGIN SOLUTION
    s_squared = (sigma**2 / eigenvalues).clamp(max=1)  # 1, the prior's, where w = 0
    return -0.5 * torch.log(s_squared)  # E[m²] + s² = 1
    ### END SOLUTION


# %% nbgrader={"grade_id": "04-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("04.3", linear_rate)

# %% [markdown]
# This is the **water level** of coding theory. σ² floods the spectrum. An axis under water is not
# worth a word: its dimension collapses, and rightly so. An axis above it gets half the logarithm of
# how far it stands out. Let us see whether our VAEs, which are not linear, know of it. Two more
# levels are trained to fill the picture.

# %% tags=["not-in-grading"]
eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
for sigma in (5**0.5, 2**0.5):
    at_sigma[sigma] = VAE(n_genes, sigma=sigma, dropout_rate=0.0, seed=0)
    train(at_sigma[sigma], x)
measured = {sigma: rates(model).sum() for sigma, model in at_sigma.items()}


def draw_level(sigma):
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    above = (eigenvalues[:20] > sigma**2).numpy()
    colours = np.where(above, plotting.COLOURS[0], "0.8")
    left.bar(np.arange(1, 21), eigenvalues[:20], color=colours, edgecolor="0.6", lw=0.5)
    left.axhspan(0.01, sigma**2, color=plotting.COLOURS[4], alpha=0.3, lw=0)
    left.axhline(sigma**2, color=plotting.COLOURS[4], label=f"σ² = {sigma**2:.3g}")
    left.set(yscale="log", ylim=(0.02, 300), xlabel="principal axis", ylabel="variance λ")
    left.set(title=f"{above[:10].sum()} of ten dimensions above water", xticks=range(1, 21, 3))
    left.legend(frameon=False)
    level = torch.logspace(-0.7, 1.3, 100)
    curve = [linear_rate(eigenvalues[:10], each).sum().item() for each in level]
    right.plot(level**2, curve, color="0.5", label="best linear VAE, formula")
    right.plot(np.square(list(measured)), list(measured.values()), "o", color=plotting.COLOURS[5],
               label="VAEs with a hidden layer, trained")  # fmt: skip
    now = linear_rate(eigenvalues[:10], sigma).sum().item()
    right.plot(sigma**2, now, "D", color=plotting.COLOURS[4], ms=9)
    right.set(xscale="log", xlabel="σ²", ylabel="rate of ten dimensions (nats a cell)")
    right.set_title(f"At σ² = {sigma**2:.3g}: {now:.1f} nats")
    right.legend(frameon=False)
    return fig


_ = draw_level(5**0.5)

# %% [markdown]
# They do: the dots lie near the curve over more than three orders of magnitude. At σ² = 5 four axes
# stand out of the water, and there are four factors. Below σ² = 2 or so, further axes come up in
# large numbers: they are the noise. With a kernel running, move the level:

# %% tags=["not-in-grading", "nbval-ignore-output"]
from ipywidgets import FloatLogSlider

plotting.interactive(
    draw_level,
    alt=(
        "Left, the variance of each latent dimension of the model with the noise level σ; "
        "right, how many nats the dimensions carry for each σ²."
    ),
    sigma=FloatLogSlider(
        5**0.5, min=-0.9, max=1.2, step=0.02, description="σ", continuous_update=False
    ),
)

# %% [markdown]
# ## 8 · Collapse by accident
#
# So far a dimension collapsed because that was best, given σ. There is another kind. At the start
# of training the decoder can't read z yet. So for the encoder z brings nothing and costs KL,
# and the quickest gain is to make q the prior. Then the decoder never hears anything, and has no
# reason to learn to listen. The deeper the decoder, the longer it is deaf. Here it has three hidden
# layers, and no batch normalisation.

# %% tags=["not-in-grading"]
deep = {"encoder_layers": 3, "decoder_layers": 3, "batch_norm": False, "seed": 0}
collapsed = VAE(n_genes, **deep)
history = {"the bound as loss": train(collapsed, x, epochs=80)}
activity = metrics.latent_activity(embed(collapsed.encoder, cells).numpy())
ax = plotting.activity(activity)
print(f"bound held out {held_out_bound(collapsed):.0f}; R² {recovered(collapsed):.1f}")

# %% [markdown]
# Two dimensions are left, where there are four factors, and σ is learned: no σ that nobody chose is
# to blame. The shallow model above, with fewer parameters, recovered far more. The bound is not at
# fault either: the same network can have a better one, as we shall see. Training did not get there,
# and it never will: after four times as many epochs it still has two.
#
# **First cure: warm-up.** Let the KL weigh little at first and then more, up to 1: the decoder
# learns to listen while talk is cheap. While the weight is below 1, the loss is not a bound; at the
# end it is. (`vaelab.fit` does this with `kl_warmup`, the number of optimiser steps that it takes;
# there is no warm-up unless you say so.)


# %% tags=["not-in-grading"]
def warm_up(reconstruction, kl, progress):
    weight = min(1.0, progress / 0.5)  # over the first half of the training
    return (weight * kl.sum(-1) - reconstruction).mean()


warmed = VAE(n_genes, **deep)
history["warm-up"] = train(warmed, x, loss=warm_up, epochs=80)

# %% [markdown]
# ### Exercise 04.4 · Free bits
# ★★☆ · 7 minutes · 2 points
#
# **Second cure: free bits** (Kingma et al. 2016). Each latent dimension may spend a few nats for
# nothing, so there is no gain in going below:
#
# $$\text{loss} = -\,\overline{\log p(x\,|\,z)} + \sum_{d=1}^{P}
# \max\!\big(\lambda,\ \overline{\mathrm{KL}_d}\big)$$
#
# The bars are means over the cells of the minibatch. Write `free_bits(free, reconstruction, kl)`,
# with λ = `free` in nats, `reconstruction` (n_cells,) and `kl` (n_cells, n_latent). The check looks
# at the loss and at its gradient.
#
# <details><summary>Hint</summary>Which comes first, the mean or the maximum? And what is the sum
# over?</details>


# %% nbgrader={"grade_id": "04-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def free_bits(free, reconstruction, kl):
    """The loss with ``free`` nats for each latent dimension; one number."""
    ### BEGIN SOLUTION
    return kl.mean(0).clamp(min=free).sum() - reconstruction.mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "04-4-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("04.4", free_bits)


# %% tags=["not-in-grading"]
def a_quarter_free(reconstruction, kl, progress):
    return free_bits(0.25, reconstruction, kl)


freed = VAE(n_genes, **deep)
history["free bits"] = train(freed, x, loss=a_quarter_free, epochs=80)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
trained = {"the bound as loss": collapsed, "warm-up": warmed, "free bits": freed}
for i, (name, each) in enumerate(trained.items()):
    style = {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i]}
    left.plot(np.arange(1, 81), history[name], color=plotting.COLOURS[i], label=name)
    right.plot(np.arange(1, 11), rates(each), label=name, **style)
    print(f"{name:18s} bound held out {held_out_bound(each):.1f}, rate {rates(each).sum():.1f}, "
          f"R² {recovered(each):.2f}")  # fmt: skip
left.set(xlabel="epoch", ylabel="bound (nats a cell)", ylim=(-430, -360), title="Training")
right.axhline(0.25, color="0.6", lw=1, ls="--", label="free: 0.25 nats")
right.set(xlabel="latent dimension, sorted", ylabel="KL (nats a cell)", xticks=range(1, 11))
right.set_title("The rate of each dimension")
_ = right.legend(frameon=False)

# %% [markdown]
# With warm-up the same network uses three dimensions and recovers more of the
# factors, and its bound is better: so the collapse was an accident. With free bits all ten are
# alive, and the factors are recovered as well. But look where most of them are: at the quarter of a
# nat that costs nothing. Free bits do not know how many factors there are. They keep open what
# might be needed, and in the bound, where nothing is free, one pays for it.
#
# Neither found the fourth factor. A third cure does, and it was in the shallow model all along:
# batch normalisation. It scales the differences between cells up to size 1 in every layer, so that
# they are not lost on the way through ("Try it yourself" 2).
#
# So read an activity with care. A dimension at the floor is active by the threshold, and useless.
# And do not fear every collapse: **the surplus dimensions of a good model should collapse.**
# Collapse is a fault if the bound could have been better without it.
#
# In the package a warm-up is an argument. The same story with `vaelab.fit`, and Adam as in `train`:

# %% tags=["not-in-grading"]
package_cells = vaelab.Cells.from_array(x.numpy())
for kl_warmup in (0, 150):  # of 300 steps: 60 epochs with 5 minibatches each
    package = vaelab.VAE(
        n_genes, n_hidden=64, n_layers=3, likelihood="normal", normalization=None, seed=0
    )
    vaelab.fit(package, package_cells, epochs=60, learning_rate=3e-3, epsilon=1e-8,
               kl_warmup=kl_warmup, progress=False)  # fmt: skip
    with torch.no_grad():
        q = package.encode(package_cells.to(dtype=torch.float64))
        kl = kl_divergence(q, package.prior()).mean(0).sort(descending=True).values
    print(f"kl_warmup = {kl_warmup:3d}:", " ".join(f"{v:.1f}" for v in kl), "nats")

# %% [markdown]
# ## 9 · How many dimensions, how wide?
#
# Neither is known beforehand. The held-out bound says, and for once we can look at the truth.

# %% tags=["not-in-grading"]
shapes = [(n, 64) for n in (1, 2, 4, 8, 16)] + [(8, width) for width in (4, 16, 256)]
found = {}
for n_latent, n_hidden in shapes:
    each = VAE(n_genes, n_latent=n_latent, n_hidden=n_hidden, seed=0)
    train(each, x, epochs=50)
    found[n_latent, n_hidden] = held_out_bound(each), recovered(each), rates(each).sum()

fig, axes = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained", sharex=True)
labels = ["bound, held-out cells (nats)", "factors recovered (R²)", "rate (nats a cell)"]
by_latent = {n: found[n, 64] for n in (1, 2, 4, 8, 16)}
for i, (ax, label) in enumerate(zip(axes, labels, strict=True)):
    ax.plot(list(by_latent), [v[i] for v in by_latent.values()], "o-", color=plotting.COLOURS[0])
    ax.axvline(4, color="0.6", lw=1, ls="--")
    ax.set(xscale="log", xlabel="latent dimensions", ylabel=label)
    ax.set_xticks([1, 2, 4, 8, 16], [1, 2, 4, 8, 16])
    ax.minorticks_off()
axes[1].set_title("Latent dimensions given; dashed: the four true factors")
for width in (4, 16, 64, 256):
    bound, r2, rate = found[8, width]
    print(f"8 dimensions, width {width:3d}: bound {bound:.0f}, R² {r2:.1f}, rate {rate:.0f}")

# %% [markdown]
# **Too few dimensions** hurt at once: factors have to share, and the bound falls, by about six nats
# with two dimensions and by more than twenty with one. **Too many** hurt little: from four on the
# bound is nearly flat, and the rate grows slowly, because the KL turns off what is not needed.
# So take rather too
# many, 10 or 20, and look at how many are used. With an autoencoder you could not.
#
# **Width** has a price on both sides. A network of width 4 can't carry four factors and their bend.
# One of width 256 has 160,000 parameters, and 600 cells to learn them from: it spends half as much
# again, on noise, and its held-out bound falls by about ten nats. More data, more dropout or an
# earlier stop would help it.
#
# ## 10 · A decoder for molecules
#
# Look again at the counts. A cell's molecules were caught one by one, and each is of some gene.
# Let the decoder say with which probability the next one is of gene g: a **softmax** makes shares ρ
# that sum to 1. Which gene a molecule has is then a **categorical** variable. A cell of ℓ
# molecules, independent given z, has counts from a *multinomial* distribution:
#
# $$\log p(x\,|\,z, \ell) = \sum_g x_g \log \rho_g(z) + \log\frac{\ell!}{\prod_g x_g!}$$
#
# ### Exercise 04.5 · Spot the error: which distribution goes with softmax?
# ★★☆ · 7 minutes · 2 points
#
# A course says that if data are "Bernoulli parameters", the last layer should be a softmax. Then it
# divides x by its sum, and gives as loss −(1/D) Σ x log x′. There are three errors in this. Write
# the log-probability that is right for counts: `log_multinomial(x, logits)`, both of shape
# (n_cells, n_genes), where ρ is the softmax of the logits. What comes back has shape (n_cells,).
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
vaelab.check("04.5", log_multinomial)

# %% [markdown]
# The three: Bernoulli goes with a *sigmoid*, one for each gene; softmax goes with a categorical.
# Dividing by the total says that each cell is a single molecule, so that the KL weighs ℓ times too
# much. And 1/D once more makes it D times too heavy. With a thousand molecules and 300 genes, that
# is a β of 300,000.
#
# In our class this is one method. The encoder reads log(1 + x):


# %% tags=["not-in-grading"]
class CategoricalVAE(VAE):
    """z ~ N(0, I), x | z, ℓ ~ Multinomial(ℓ, softmax f(z))."""

    def encode(self, x):
        return super().encode(torch.log1p(x))

    def log_likelihood(self, x, z):
        return log_multinomial(x, self.decoder(z))


x_counts = torch.as_tensor(counts)
categorical = CategoricalVAE(n_genes, sigma=1.0, seed=0)  # its σ is not used
train(categorical, x_counts[:600])
print(f"rate {rates(categorical, x_counts[600:]).sum():.0f} nats, "
      f"R² {recovered(categorical, x_counts):.1f}")  # fmt: skip

# %% [markdown]
# It finds the factors from raw counts, and no scaling of cells was needed: that ℓ is given takes
# care of it. There is no "categorical" among the package's likelihoods. But there is a Poisson with
# mean ℓρ, and if independent Poisson counts are known to sum to ℓ, they are multinomial. So
#
# $$\underbrace{\sum_g \log \mathrm{Poisson}(x_g;\ \ell\rho_g)}_{\texttt{likelihood="poisson"}} =
# \underbrace{\log \mathrm{Multinomial}(x;\ \ell, \rho)}_{\text{ours}} +
# \underbrace{\log \mathrm{Poisson}(\ell;\ \ell)}_{\text{no parameter in it}}$$
#
# The last term has no gradient: it is the same model. We copy the weights once more.

# %% tags=["not-in-grading"]
package = vaelab.VAE(n_genes, n_latent=10, n_hidden=64, likelihood="poisson")
ours, weights = categorical.state_dict(), package.state_dict()
for name in weights:
    if name != "typical_library":
        weights[name] = ours[name.replace("likelihood.output", "decoder.4")]
package.load_state_dict(weights)
package.eval()

with torch.no_grad():
    torch.manual_seed(3)
    reconstruction, kl = categorical.terms(x_counts)
    torch.manual_seed(3)
    bound = package.elbo(vaelab.Cells.from_array(counts).to(dtype=torch.float64)).per_cell()
total = x_counts.sum(1)
log_p_total = torch.distributions.Poisson(total).log_prob(total)
difference = (reconstruction - kl.sum(-1) + log_p_total - bound).abs().max().item()
print(f"log Poisson(ℓ; ℓ) is {log_p_total.mean():.1f} nats on average")
print("the same bound for each of 700 cells, to 1e-8:", difference < 1e-8)

# %% [markdown]
# Which likelihood is better, normal or categorical? Their bounds can't be compared:
# one is a density of scaled numbers, the other a probability of counts. But look at the rate: twice
# that of the normal model, for the same factors. Given z, the categorical leaves no room but the
# luck of the draw. Real genes, and these, scatter more, and what the likelihood can't explain, z
# has to. Lesson 05 has likelihoods that can.
#
# ## 11 · New cells, and what is wrong with them
#
# A generative model makes cells: z from the prior, x from p(x|z). Now with real ones. These are 700
# blood cells (Zheng et al. 2017) and 765 genes, with the package's VAE and a likelihood for counts,
# the negative binomial of lesson 05.

# %% tags=["not-in-grading"]
blood = vaelab.datasets.pbmc_small()
blood_cells = vaelab.Cells.from_anndata(blood, label="cell_type")
generator = vaelab.VAE(blood_cells.n_genes, n_hidden=64, likelihood="nb", seed=0)
vaelab.fit(generator, blood_cells, seed=0, progress=False)

observed = blood.X.toarray()
library = blood_cells.library.numpy()  # each new cell gets the depth of a real one
generated = generator.generate(700, library=library, seed=0)
torch.manual_seed(0)
with torch.no_grad():
    dense = blood_cells.to(dtype=torch.float64)
    z_prior = generator.prior().sample((700,))
    means = generator.decode(z_prior, dense).mean.numpy()
    z_cells = generator.encode(dense).sample()
    resampled = generator.decode(z_cells, dense).sample().numpy()
for name, values in {"real cells": observed, "drawn": generated, "means only": means}.items():
    print(f"{name:11s} {(values == 0).mean():.2f} of the counts are zero")

# %% [markdown]
# **First fault: a mean is not a cell.** It is common to show the mean of p(x|z) as "the generated
# cell". It has no zeros, since no molecule was ever caught or missed. The last step, x ~ p(x|z), is
# part of the model. Drawn counts have about as many zeros as real ones.
#
# **Second fault: holes.** Training puts real cells somewhere in latent space. Taken together, the
# q(z|x) of all cells are a distribution too, the *aggregated posterior*. The KL wants it to be like
# the prior, but there are types, and between types nobody lives. The prior does not know this.

# %% tags=["not-in-grading"]
labels = blood_cells.labels
kinds = pd.Series(labels).map({
    "Dendritic": "dendritic", "CD14+ Monocyte": "monocyte", "CD19+ B": "B cell",
    "CD56+ NK": "NK cell", "CD34+": "progenitor",
}).fillna("T cell").to_numpy()  # fmt: skip


def log_normalised(counts):
    return np.log1p(1e4 * counts / counts.sum(1, keepdims=True))


pca = PCA(20, random_state=0).fit(log_normalised(observed))
real = pca.transform(log_normalised(observed))
groups = {
    "real cells": real,
    "z of real cells": pca.transform(log_normalised(resampled)),
    "z of the prior": pca.transform(log_normalised(generated)),
}
fig, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", sharex=True, sharey=True)
for ax, (name, points) in zip(axes, groups.items(), strict=True):
    if name == "real cells":
        plotting.embedding(points[:, :2], kinds, ax=ax)
    else:
        ax.scatter(*real[:, :2].T, s=12, color="0.85", lw=0)
        ax.scatter(*points[:, :2].T, s=9, color=plotting.COLOURS[5], lw=0)
    ax.set(title=name, xlabel="component 1 of real cells", xticks=[], yticks=[])
_ = axes[0].set_ylabel("component 2")

# %% [markdown]
# Middle: new counts at the places of real cells. Right: at places from the prior. They fill the
# bridges between groups. To count them we ask for each cell's ten nearest *real* cells: it lies
# between types if no type has seven of these ten.


# %% tags=["not-in-grading"]
def between_types(points, is_real=False):
    """The share of cells without a type that has seven of their ten nearest real cells."""
    _, nearest = NearestNeighbors(n_neighbors=11).fit(real).kneighbors(points)
    nearest = nearest[:, 1:] if is_real else nearest[:, :10]  # not the cell itself
    most = [np.unique(row, return_counts=True)[1].max() for row in kinds[nearest]]
    return np.mean(np.array(most) < 7)


for name, points in groups.items():
    share = between_types(points, is_real=name == "real cells")
    print(f"{name:16s} {share:.2f} lie between types")

# %% [markdown]
# Between which types would such a cell be? Between none: the prior draws mixtures that no body
# makes. Two cures, and a warning. Draw z from the q of real cells, as in the middle: then you get
# variations on cells you have, and no new ones. Or give the model a prior that knows of groups: the
# Gaussian mixture of lesson 08, the VampPrior of lesson 14. And beware of using generated cells as
# if they were more data: they hold what the model has understood, faults included.
#
# **Third fault: impossible values.** A normal decoder knows nothing of zero. Our first model, of
# section 2, makes log-counts below those of a gene that was not seen at all:

# %%
lowest = cells.min(0).values  # the value of a zero count, in each gene
torch.manual_seed(0)
with torch.no_grad():
    made = Normal(model.decoder(torch.randn(700, 10)), model.log_sigma.exp()).sample()
print(f"{(made < lowest).double().mean():.0%} of the values are less than nothing")

# %% [markdown]
# ## What was not used, and why
#
# *Many draws of z* for each cell in training: one is enough, since each minibatch averages over a
# hundred cells (lesson 03). *A chosen β* as a knob for "disentangled" axes (β-VAE): with a normal
# decoder it is another σ, and with counts it gives up the bound. *Skip connections* from z to every
# layer of the decoder, *cyclic warm-ups*, *more steps for the encoder than for the decoder*:
# further cures of the same accident. *A GPU*: networks this small are not faster there.
#
# ## Try it yourself
#
# 1. *(5 minutes)* Leave the genes as `log_counts`, not standardised. Would "mean of errors + sum of
#    KLs" work now? No training is needed to say.
#    <details><summary>Hint</summary>Where is the water level, and where is the largest
#    eigenvalue of <code>np.cov(log_counts[:600].T)</code>?</details>
#    <details><summary>Solution</summary>No: it is about 104, and σ² = N/2 = 150 as
#    before.</details>
# 2. *(5 minutes)* Give the collapsed model of section 8 batch normalisation, and no warm-up.
#    <details><summary>Hint</summary><code>VAE(n_genes, **{**deep, "batch_norm": True})</code>. Then
#    look at <code>rates</code>.</details>
#    <details><summary>Solution</summary>Four dimensions, the true number; the other six have
#    collapsed, rightly.</details>
# 3. *(10 minutes)* Train the collapsed model for another 240 epochs with the bound as loss. Does it
#    come back? And train the warmed one for another 80: does it lose a dimension?
#    <details><summary>Solution</summary>No, and no. Two dimensions remain two; the rate grows a
#    little and the held-out bound falls, for it overfits. Three remain three. Whether a dimension
#    is used is decided early.</details>
#
# ## What to take along
#
# - Sum over genes, sum over latent dimensions, mean over cells. Every other mean is a σ, or a β, in
#   disguise: MSE + β·KL is σ² = β·N/2.
# - A dimension is used if the data vary along it by more than the noise: λ > σ². Learn σ.
# - The KL is a rate. Look at it dimension by dimension; activity alone can be at a floor.
# - Collapse can be the best for the given σ (surplus dimensions, or a σ that is too large), or an
#   accident (a deaf decoder). Against the accident try warm-up, free bits, batch normalisation. The
#   bound on held-out cells says which it was.
# - `eval()` before you embed. Draw from p(x|z), not only its mean. Mind the holes of the prior.
#
# **Read on.** The VAE: D. Kingma and M. Welling, *Auto-Encoding Variational Bayes* (2014), §2.3 and
# §3, appendix C for the normal decoder; D. Rezende, S. Mohamed and D. Wierstra (2014), §3–4. σ, and
# which dimensions collapse in a linear VAE: J. Lucas, G. Tucker, R. Grosse and M. Norouzi, *Don't
# Blame the ELBO!* (2019), §4; the solution for w is M. Tipping and C. Bishop (1999), equation 7. σ
# learned from the data: O. Rybkin, K. Daniilidis and S. Levine, *Simple and Effective VAE Training
# with Calibrated Decoders* (2021), §3. KL as a rate: A. Alemi et al., *Fixing a Broken ELBO*
# (2018), §2; the water level: T. Cover and J. Thomas, *Elements of Information Theory* (2006),
# §10.3.3. Warm-up: S. Bowman et al. (2016), §3.1; C. Sønderby et al. (2016), §2. Free bits: D.
# Kingma et al., *Improved Variational Inference with Inverse Autoregressive Flow* (2016), appendix
# C ("free bits"). Active dimensions: Y. Burda et al. (2016), §5.2. β-VAE: I. Higgins et al. (2017).
# Aggregated posterior and holes: M. Hoffman and M. Johnson, *ELBO surgery* (2016). The lesson
# follows the VAE parts of H. Gangloff's tutorial (2023), of a blog post, *Variational Autoencoders
# for Modeling Single-Cell Data* (2022), and of Harvard's MCB128 (2026). The bug of exercise 04.1 is
# from the code behind A. Sarkar's notes (2019).
