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
    adata, n_latent=10, batch_size=128, epochs=3, seed=0, form="default", device="cpu"
) -> tuple:
    """A vaelab.VAE, its Cells, and the seconds of each epoch after the first.

    The form "plain" of the likelihood is its formula, differentiated by autograd alone. The form
    "none" is no likelihood, but something trivial in its place.

    Raises
    ------
    KeyboardInterrupt
        The user pressed Ctrl-C; ``vaelab.fit`` itself would return the model trained so far.
    """
    model, cells = make_ours(adata, n_latent, seed)
    if form != "default":
        {"plain": make_plain, "none": make_trivial}[form](model)
    ends = []
    fit_ours(
        model, cells, after_epoch=lambda run: ends.append(clock(device)),
        epochs=epochs, batch_size=batch_size, kl_warmup=warmup_steps(adata, epochs, batch_size),
        validation_fraction=0, patience=None, seed=seed, device=device,
    )  # fmt: skip
    return model, cells, np.diff(ends)


def warmup_steps(adata, epochs: int, batch_size: int) -> int:
    """A share of all steps, on both sides."""
    return round(KL_WARMUP * epochs * -(-adata.n_obs // batch_size))


def make_ours(adata, n_latent=10, seed=0) -> tuple:
    """A vaelab.VAE and its Cells, for one thread."""
    import vaelab

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes without a count: the same on both sides
        cells = vaelab.Cells.from_anndata(adata)
    return vaelab.VAE(
        cells.n_genes, n_latent=n_latent, likelihood="zinb", seed=seed, **SHAPE
    ), cells


def fit_ours(model, cells, after_epoch, **options) -> None:
    """Call ``vaelab.fit``, and ``after_epoch(run)`` at the end of each of its epochs.

    Raises
    ------
    KeyboardInterrupt
        The user pressed Ctrl-C.
    """
    from vaelab import training

    epoch = training._Run.epoch

    def marked(run) -> None:
        epoch(run)
        after_epoch(run)

    training._Run.epoch = marked
    try:
        history = training.fit(model, cells, progress=False, **options)
    finally:
        training._Run.epoch = epoch
    if history.reason is training.StopReason.INTERRUPTED:
        raise KeyboardInterrupt


def make_trivial(model) -> None:
    """Put a sum of both outputs of the decoder in place of a ZINB model's likelihood.

    What remains of a training step is its floor: no faster likelihood gets below it.
    """

    class Outputs(tuple):
        def log_prob(self, x):
            logits, dropout_logits = self
            return logits + dropout_logits

    class Trivial(type(model.likelihood)):
        def forward(self, h, library, batch=None):
            return Outputs(self.outputs(h))

    model.likelihood.__class__ = Trivial


def make_plain(model) -> None:
    """Make a ZINB model compute its likelihood by the generic formula."""
    from vaelab.distributions import CountDistribution, NegativeBinomial, ZeroInflated

    class Plain(ZeroInflated):
        log_prob = CountDistribution.log_prob

    class PlainLikelihood(type(model.likelihood)):
        def forward(self, h, library):
            logits, dropout_logits = self.outputs(h)
            θ = self.log_inverse_dispersion.clamp(-12, 12).exp()
            base = NegativeBinomial(self.count_mean(logits, library), θ, validate_args=False)
            return Plain(base, dropout_logits, validate_args=False)

    model.likelihood.__class__ = PlainLikelihood


def train_theirs(adata, n_latent=10, batch_size=128, epochs=3, seed=0, device="cpu") -> tuple:
    """A scvi.model.SCVI, None, and the seconds of each epoch after the first."""
    model, ends = make_theirs(adata, n_latent, seed), []
    n_steps = warmup_steps(adata, epochs, batch_size)
    fit_theirs(
        model, after_epoch=lambda: ends.append(clock(device)),
        max_epochs=epochs, accelerator="cpu" if device == "cpu" else "gpu", batch_size=batch_size,
        plan_kwargs={"n_epochs_kl_warmup": None, "n_steps_kl_warmup": n_steps},
    )  # fmt: skip
    return model, None, np.diff(ends)


def make_theirs(adata, n_latent=10, seed=0):
    """A scvi.model.SCVI of our shape, for one thread."""
    scvi, _ = quiet_scvi()
    scvi.settings.seed = seed
    torch.set_num_threads(1)
    scvi.model.SCVI.setup_anndata(adata)
    return scvi.model.SCVI(
        adata, n_latent=n_latent, gene_likelihood="zinb", dispersion="gene", **SHAPE
    )


def fit_theirs(model, after_epoch, before_training=lambda: None, **options) -> None:
    """Train on all cells of a model of scvi-tools, and call functions at these moments.

    Raises
    ------
    KeyboardInterrupt
        The user pressed Ctrl-C.
    """
    _, Callback = quiet_scvi()

    class Marks(Callback):
        def on_train_start(self, *_) -> None:
            before_training()

        def on_train_epoch_end(self, *_) -> None:
            after_epoch()

    options = {"accelerator": "cpu"} | options
    with ctrl_c_of_lightning():
        model.train(
            devices=1,
            train_size=1.0,
            enable_progress_bar=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[Marks()],
            **options,
        )


@contextmanager
def ctrl_c_of_lightning():
    """Raise KeyboardInterrupt after Ctrl-C, for which Lightning raises SystemExit.

    It also raises SystemExit after SIGTERM, which passes through.
    """
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores a second one
        raise KeyboardInterrupt from None


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


def score(model, cells, seed: int) -> float:
    """The bound of a model of either package, in nats per cell: a mean over ``cells``.

    A model of scvi-tools is converted first, so that the same lines score both.
    """
    from vaelab.interop import from_scvi
    from vaelab.models.base import Model

    ours = model if isinstance(model, Model) else from_scvi(model)
    return float(ours.elbo_per_cell(cells, seed=seed).mean())


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
