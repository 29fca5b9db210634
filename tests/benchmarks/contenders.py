"""The two contenders: the same VAE trained by vaelab and by scvi-tools, with timed epochs.

Each package is imported only when it is needed, so that a process holds no more than its own:

    python tests/benchmarks/contenders.py ours|theirs counts.npz

trains one epoch in this process, and prints the peak of its memory as JSON.
"""

import json
import logging
import re
import resource
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

SHAPE = {"n_hidden": 128, "n_layers": 1, "dropout_rate": 0.1}
KL_WARMUP = 0.25  # share of all steps


def clock(device: str) -> float:
    """CPU seconds of this process; on a GPU wall-clock seconds, after its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def train_ours(
    adata, n_latent=10, batch_size=128, epochs=3, seed=0, plain=False, device="cpu"
) -> tuple:
    """A vaelab.VAE, its Cells, and the seconds of each epoch after the first.

    With ``plain`` the likelihood is its formula, differentiated by autograd alone.

    Raises
    ------
    KeyboardInterrupt
        The user pressed Ctrl-C; ``vaelab.fit`` itself would return the model trained so far.
    """
    import vaelab

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes without a count: the same on both sides
        cells = vaelab.Cells.from_anndata(adata)
    model = vaelab.VAE(cells.n_genes, n_latent=n_latent, likelihood="zinb", seed=seed, **SHAPE)
    if plain:
        make_plain(model)
    with epoch_ends(device) as ends:
        history = vaelab.fit(
            model, cells, epochs=epochs, batch_size=batch_size, kl_warmup=KL_WARMUP,
            validation_fraction=0, patience=None, seed=seed, device=device, progress=False,
        )  # fmt: skip
    if history.reason is vaelab.training.StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    return model, cells, np.diff(ends)


@contextmanager
def epoch_ends(device: str):
    """Collect the times at which epochs of vaelab end, while the block runs."""
    from vaelab import training

    ends, epoch = [], training._Run.epoch

    def timed(run) -> None:
        epoch(run)
        ends.append(clock(device))

    training._Run.epoch = timed
    try:
        yield ends
    finally:
        training._Run.epoch = epoch


def make_plain(model) -> None:
    """Make a ZINB model compute its likelihood by the generic formula."""
    from vaelab.distributions import CountDistribution, NegativeBinomial, ZeroInflated
    from vaelab.likelihoods import count_mean

    class Plain(ZeroInflated):
        log_prob = CountDistribution.log_prob

    class PlainLikelihood(type(model.likelihood)):
        def forward(self, h, library):
            logits, dropout_logits = self.outputs(h)
            θ = self.log_inverse_dispersion.clamp(-12, 12).exp()
            base = NegativeBinomial(count_mean(logits, library), θ, validate_args=False)
            return Plain(base, dropout_logits, validate_args=False)

    model.likelihood.__class__ = PlainLikelihood


def train_theirs(adata, n_latent=10, batch_size=128, epochs=3, seed=0, device="cpu") -> tuple:
    """A scvi.model.SCVI, None, and the seconds of each epoch after the first."""
    scvi, Callback = quiet_scvi()

    class Marks(Callback):
        def on_train_epoch_end(self, *_) -> None:
            ends.append(clock(device))

    ends = []
    scvi.settings.seed = seed
    torch.set_num_threads(1)
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(
        adata, n_latent=n_latent, gene_likelihood="zinb", dispersion="gene", **SHAPE
    )
    warmup_steps = round(KL_WARMUP * epochs * -(-adata.n_obs // batch_size))
    try:
        model.train(
            epochs,
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=1,
            train_size=1.0,
            batch_size=batch_size,
            plan_kwargs={"n_epochs_kl_warmup": None, "n_steps_kl_warmup": warmup_steps},
            enable_progress_bar=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[Marks()],
        )
    except SystemExit:  # Lightning's answer to Ctrl-C; it ignores a second one
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None
    return model, None, np.diff(ends)


def quiet_scvi():
    """scvi and Lightning's Callback, without their warnings and logs."""
    warnings.simplefilter("ignore")
    import scvi
    from lightning.pytorch.callbacks import Callback

    scvi.settings.verbosity = logging.ERROR
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return scvi, Callback


def embed_ours(model, cells):
    return model.embed(cells)


def embed_theirs(model, _):
    return model.get_latent_representation(batch_size=1024)  # the size of our minibatches


def bound_ours(model, adata, draws: int) -> float:
    """The held-out bound in nats per cell, a mean over cells and draws of z."""
    import vaelab

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = vaelab.Cells.from_anndata(adata)
    return float(np.mean([model.elbo_per_cell(cells, seed=draw) for draw in range(draws)]))


def bound_theirs(model, adata, draws: int) -> float:
    return float(np.mean([float(model.get_elbo(adata)) for _ in range(draws)]))


def peak_memory() -> float:
    """The peak memory of this process so far, in MiB."""
    try:  # getrusage would include the memory of the parent process
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:  # not on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main(side: str, path: str) -> None:
    import anndata
    from scipy import sparse

    if side == "ours":
        import vaelab  # noqa: F401

        train, embed = train_ours, embed_ours
    else:
        quiet_scvi()
        train, embed = train_theirs, embed_theirs
    imported = peak_memory()
    model, cells, _ = train(anndata.AnnData(sparse.load_npz(path)), epochs=1)
    embed(model, cells)
    peak = peak_memory()
    print(json.dumps({"peak": peak, "above_imports": peak - imported}))


if __name__ == "__main__":
    main(*sys.argv[1:])
