"""Named data sets of single-cell counts, as AnnData.

A file is searched for in three places. The first is the cache: ``$VAELAB_DATA``; if that is not
set, ``data/`` in a checkout of the repository; otherwise the user's cache folder. The second is a
mirror, ``$VAELAB_MIRROR``: a folder or an http address that has the files under their own names.
The third is the public source. A file enters the cache in one step, after its content has been
checked. ``data/README.md`` says where the data come from and on which terms.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "DATASETS",
    "DataFile",
    "DataUnavailable",
    "cache_folder",
    "fetch",
    "locate",
    "pancreas",
    "pbmc_small",
    "pbmc_sorted",
    "pbmc_sorted_full",
    "verify",
]

TIMEOUT = (5, 30)  # seconds to connect, and to wait for the next bytes
TRIES = 3
AT_MOST = 2**30  # bytes in an unzipped 10x archive; the real ones are much smaller
N_GENES_10X = 32_738
_MEMBERS = ("barcodes.tsv", "genes.tsv", "matrix.mtx")


class DataUnavailable(OSError):
    """A data set is not available; the message names each place tried, and what to do."""


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Parameters
    ----------
    name
        Name of the file in the cache and in a mirror.
    url
        Address of the public source.
    size, sha256
        Size in bytes and hash of the content. For a .csv.gz the content is the decompressed text,
        because the hash of a compressed file depends on the compressor. They are None for the 10x
        archives, for which they are not published; the first download records the hash.
    n_cells
        Number of cells that a 10x archive must contain.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    n_cells: int | None = None


# cell_type: (name in Zheng et al., name of the 10x archive, number of cells in that archive)
_SORTED = {
    "progenitor": ("CD34+", "cd34", 9_232),
    "B cell": ("CD19+ B", "b_cells", 10_085),
    "NK cell": ("CD56+ NK", "cd56_nk", 8_385),
    "monocyte": ("CD14+ Monocyte", "cd14_monocytes", 2_612),
    "helper T": ("CD4+ T Helper2", "cd4_t_helper", 11_213),
    "regulatory T": ("CD4+/CD25 T Reg", "regulatory_t", 10_263),
    "naive T": ("CD4+/CD45RA+/CD25- Naive T", "naive_t", 10_479),
    "memory T": ("CD4+/CD45RO+ Memory", "memory_t", 10_224),
    "cytotoxic T": ("CD8+ Cytotoxic T", "cytotoxic_t", 10_209),
    "naive cytotoxic T": ("CD8+/CD45RA+ Naive Cytotoxic", "naive_cytotoxic", 11_953),
}
_GEO = "https://ftp.ncbi.nlm.nih.gov/geo/samples/GSM2230nnn"
_GITHUB = "https://raw.githubusercontent.com/stephenslab/fastTopics"
_10X = "https://cf.10xgenomics.com/samples/cell-exp/1.1.0"
_MOUSE_1 = DataFile(
    name="GSM2230761_mouse1_umifm_counts.csv.gz",
    url=f"{_GEO}/GSM2230761/suppl/GSM2230761_mouse1_umifm_counts.csv.gz",
    size=24_631_252,
    sha256="b55beb242e56a320d4947f37f4bf307437afac0fe9daccca7d0117a2d7b3f0ac",
)
_MOUSE_2 = DataFile(
    name="GSM2230762_mouse2_umifm_counts.csv.gz",
    url=f"{_GEO}/GSM2230762/suppl/GSM2230762_mouse2_umifm_counts.csv.gz",
    size=31_868_022,
    sha256="681cd8e3081f403d624ffedc88f08a0532004d9c00caf0dd6838e7886dd46f39",
)
_FACS = DataFile(
    name="pbmc_facs.RData",
    url=f"{_GITHUB}/8406f5f4de379e7ff8b43ecfee93cca42a8e7a57/data/pbmc_facs.RData",
    size=3_726_660,
    sha256="90ae0879b8c7ba4d456f9a0d1be964213b0dda6788a7b05b48d867b9f76f2946",
)
_CIDER = "https://raw.githubusercontent.com/zhiyhu/CIDER"
_SPECIES = DataFile(
    name="cider_pancreas.RData",
    url=f"{_CIDER}/0b6e1678c5e05aabe717acb9ad4db801422abac1/data/pancreas.RData",
    size=618_384,
    sha256="16acccdc7597c655714a6f58c3ddc876bd0675cc456c029662424bb32811e41a",
)
_ARCHIVES = {
    cell_type: DataFile(
        name=f"{sample}_filtered_gene_bc_matrices.tar.gz",
        url=f"{_10X}/{sample}/{sample}_filtered_gene_bc_matrices.tar.gz",
        n_cells=n_cells,
    )
    for cell_type, (_, sample, n_cells) in _SORTED.items()
}
DATASETS: dict[str, tuple[DataFile, ...]] = {  # the loaders have the same names
    "pancreas": (_MOUSE_1, _MOUSE_2),
    "pancreas_species": (_SPECIES,),
    "pbmc_sorted": (_FACS,),
    "pbmc_sorted_full": tuple(_ARCHIVES.values()),
    "pbmc_small": (),  # ships inside scanpy
}


def pancreas(mouse: int | str = 1) -> AnnData:
    """Cells of the pancreas of one mouse or of two; 14,878 genes.

    Source: Baron et al. 2016, Cell Systems 3:346, doi:10.1016/j.cels.2016.08.011.

    Parameters
    ----------
    mouse
        1 (822 cells), 2 (1,064 cells) or "both".

    Returns
    -------
    An AnnData. ``X`` holds UMI counts, cells × genes, as CSR float32. ``obs`` has ``cell_type``
    (the authors' 13 clusters, under their names; some are tiny), ``batch`` ("mouse 1" or "mouse 2")
    and ``barcode``.

    Raises
    ------
    DataUnavailable
        The counts are not available.
    ValueError
        ``mouse`` is something else.
    """
    import anndata
    import numpy as np
    import pandas as pd
    from scipy.sparse import csr_matrix

    if mouse not in (1, 2, "both"):
        raise ValueError(f'mouse must be 1, 2 or "both", not {mouse!r}')
    mice = []
    for number, file in ((1, _MOUSE_1), (2, _MOUSE_2)):
        if mouse in (number, "both"):
            header, *lines = _content(file, _obtain("pancreas", file)).decode().splitlines()
            index, barcode, cell_type, rows = zip(*(s.split(",", 3) for s in lines), strict=True)
            counts = np.loadtxt(rows, delimiter=",", dtype=np.float32)
            obs = pd.DataFrame({"cell_type": cell_type, "batch": f"mouse {number}"}, index)
            obs = obs.astype("category").assign(barcode=barcode)
            var = pd.DataFrame(index=header.split(",")[3:])
            mice.append(anndata.AnnData(csr_matrix(counts), obs, var))
    return anndata.concat(mice)


def pancreas_species() -> AnnData:
    """Cells of the pancreas of human and mouse: 328 cells of five types × 12,474 orthologues.

    Source: Baron et al. 2016, Cell Systems 3:346, doi:10.1016/j.cels.2016.08.011. The R package
    CIDER selected the cells and joined the genes of the two species one to one. It has 350 cells;
    the 22 cells that are there twice are left out here.

    Returns
    -------
    An AnnData. ``X`` holds UMI counts, cells × genes, as CSR float32, and the genes have their
    human symbols. ``obs`` has ``cell_type`` (alpha, beta, delta, macrophage, activated_stellate),
    ``batch`` ("human", 175 cells, or "mouse", 153 cells) and ``donor``.

    Raises
    ------
    DataUnavailable
        The counts are not available.
    """
    import anndata
    import numpy as np
    import pandas as pd
    import rdata
    from scipy.sparse import csc_matrix

    path = _obtain("pancreas_species", _SPECIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about R classes; only their plain fields are read
        seurat = rdata.read_rda(path)["pancreas"]
    counts, cells = seurat.assays["RNA"].counts, getattr(seurat, "meta.data")
    matrix = csc_matrix((counts.x, counts.i, counts.p), shape=tuple(counts.Dim)).T.tocsr()
    genes, names = (pd.Index(map(str, dimnames)) for dimnames in counts.Dimnames)
    columns = {"cell_type": "Group", "batch": "Batch", "donor": "Sample"}
    obs = pd.DataFrame({new: list(map(str, cells[old])) for new, old in columns.items()}, names)
    once = ~pd.Series([row.tobytes() for row in matrix.toarray()]).duplicated().to_numpy()
    obs, var = obs[once].astype("category"), pd.DataFrame(index=genes)
    return anndata.AnnData(matrix[np.flatnonzero(once)].astype("float32"), obs, var)


def pbmc_sorted(test: bool = False) -> AnnData:
    """Blood cells sorted by surface markers: 3,774 cells × 16,791 genes, ten populations.

    Source: Zheng et al. 2017, Nat. Commun. 8:14049, doi:10.1038/ncomms14049. The R package
    fastTopics selected the cells and genes.

    Parameters
    ----------
    test
        True for the 100 other cells that fastTopics keeps for testing.

    Returns
    -------
    An AnnData. ``X`` holds UMI counts, cells × genes, as CSR float32. ``var`` has ``gene_id``
    (Ensembl); the few repeated gene symbols are numbered. ``obs`` has ``barcode``; ``coarse_type``,
    one of CD34+, CD14+, B cell, NK cell and T cell; and ``cell_type``, the population: "progenitor"
    (CD34+), "B cell" (CD19+), "NK cell" (CD56+), "monocyte" (CD14+), "helper T" (CD4+), "regulatory
    T" (CD4+/CD25+), "naive T" (CD4+/CD45RA+/CD25−), "memory T" (CD4+/CD45RO+), "cytotoxic T" (CD8+)
    and "naive cytotoxic T" (CD8+/CD45RA+).

    Raises
    ------
    DataUnavailable
        The counts are not available.
    """
    import pandas as pd
    import rdata
    from scipy.sparse import csc_matrix

    path = _obtain("pbmc_sorted", _FACS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about R classes; only their plain fields are read
        facs = rdata.read_rda(path)["pbmc_facs"]
    samples, counts = (facs[key + "_test" * test] for key in ("samples", "counts"))
    labels = {label: cell_type for cell_type, (label, _, _) in _SORTED.items()}
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(samples["celltype"].map(labels), list(_SORTED)),
            "coarse_type": pd.Categorical(samples["subpop"]),
            "barcode": list(samples["barcode"]),
        },
        index=counts.Dimnames[0],
    )
    matrix = csc_matrix((counts.x, counts.i, counts.p), shape=tuple(counts.Dim))
    return _with_genes(matrix, obs, facs["genes"]["ensembl"], facs["genes"]["symbol"])


def pbmc_sorted_full(populations: str | Iterable[str] | None = None) -> AnnData:
    """The ten sorted populations with all their 94,655 cells and 32,738 genes.

    Source: Zheng et al. 2017, Nat. Commun. 8:14049, doi:10.1038/ncomms14049.

    Parameters
    ----------
    populations
        One or more populations, by their names in ``cell_type`` of :func:`pbmc_sorted`; None for
        all ten. Each is a separate download.

    Returns
    -------
    An AnnData. ``X``, ``var``, ``obs["cell_type"]`` and ``obs["barcode"]`` are the same as in
    :func:`pbmc_sorted`.

    Raises
    ------
    DataUnavailable
        An archive is not available.
    ValueError
        A population is not one of the ten.
    """
    import pandas as pd
    from scipy.io import mmread
    from scipy.sparse import csr_matrix, vstack

    asked = [populations] if isinstance(populations, str) else list(populations or _SORTED)
    if unknown := [name for name in asked if name not in _SORTED]:
        raise ValueError(
            f"no population is called {unknown[0]!r}; choose from {', '.join(_SORTED)}"
        )
    matrices, cells = [], []
    for cell_type in dict.fromkeys(asked):
        file = _ARCHIVES[cell_type]
        members = _members(_content(file, _obtain("pbmc_sorted_full", file)))
        counts = mmread(io.BytesIO(members["matrix.mtx"]), spmatrix=False)
        matrices.append(csr_matrix(counts.T, dtype="float32"))
        barcode = members["barcodes.tsv"].decode().split()
        index = [f"{code}-{_SORTED[cell_type][1]}" for code in barcode]
        cells.append(pd.DataFrame({"cell_type": cell_type, "barcode": barcode}, index))
    obs = pd.concat(cells).astype({"cell_type": "category"})
    genes = (line.split("\t")[:2] for line in members["genes.tsv"].decode().splitlines())
    return _with_genes(vstack(matrices), obs, *zip(*genes, strict=True))


def pbmc_small() -> AnnData:
    """700 blood cells × 765 variable genes, ten labels; part of scanpy, without a download.

    Source: Zheng et al. 2017, Nat. Commun. 8:14049, doi:10.1038/ncomms14049.

    Returns
    -------
    An AnnData. ``X`` holds UMI counts as CSR float32, recovered from scanpy's
    log1p(10,000 · counts / n_counts) by inverting and rounding. ``obs["n_counts"]`` is each cell's
    total over all genes. It is not a library size for a model of these 765 genes, which have about
    a fifth of the counts: the shares of a model sum to 1 over its own genes. ``obs["cell_type"]``
    is scanpy's ``bulk_labels``: the sorted population, under its name in the paper, to which the
    cell is most similar.

    Raises
    ------
    ValueError
        The counts cannot be recovered from the values in this release of scanpy.
    """
    import anndata
    import numpy as np
    import scanpy

    kept = scanpy.datasets.pbmc68k_reduced()
    counts = kept.raw.X.expm1().multiply(kept.obs["n_counts"].to_numpy()[:, None] / 1e4).tocsr()
    whole = counts.rint().astype("float32")
    if np.abs((counts - whole).data).max() > 0.1:
        raise ValueError(
            "the counts recovered from scanpy's pbmc68k_reduced are no longer whole numbers; "
            "install an older release of scanpy"
        )
    obs = kept.obs[["bulk_labels", "n_counts"]].rename(columns={"bulk_labels": "cell_type"})
    return anndata.AnnData(whole, obs.rename_axis(None), kept.raw.var[[]])


def _with_genes(matrix, obs, gene_ids, symbols) -> AnnData:
    import anndata
    import pandas as pd

    names = anndata.utils.make_index_unique(pd.Index(symbols, dtype=str))
    var = pd.DataFrame({"gene_id": list(gene_ids)}, names)
    return anndata.AnnData(matrix.astype("float32", copy=False).tocsr(), obs, var)


# ------------------------------------------------------------------ files: what a user can ask


def cache_folder() -> Path:
    """The folder for downloaded files; it may not exist yet."""
    if chosen := os.environ.get("VAELAB_DATA"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    import pooch

    return Path(pooch.os_cache("vaelab"))


def fetch(name: str, progress: bool = True) -> list[Path]:
    """Bring all files of a data set into the cache, and check them.

    Parameters
    ----------
    name
        Name of the data set, a key of ``DATASETS``.
    progress
        True to show a bar for each download.

    Returns
    -------
    The paths of the files in the cache.

    Raises
    ------
    DataUnavailable
        A file is not available.
    ValueError
        The data set is unknown.
    """
    return [_obtain(name, file, progress) for file in _files(name)]


def verify(name: str) -> dict[str, str]:
    """The state of each file in the cache: "ok", "missing", or what is wrong with it."""
    return {file.name: _state(file, cache_folder() / file.name) for file in _files(name)}


def locate(name: str) -> dict[str, str]:
    """Where each file of a data set is: "cache", "mirror", or only at its "source".

    This does not use the network: an http mirror is assumed to have the file.
    """
    found = {}
    for file in _files(name):
        places = {"cache": cache_folder() / file.name} | _elsewhere(file)
        there = (place for place, at in places.items() if isinstance(at, str) or at.is_file())
        found[file.name] = next(there)
    return found


def _files(name: str) -> tuple[DataFile, ...]:
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


# ------------------------------------------------------------------ files: what they must contain


def _state(file: DataFile, path: Path) -> str:
    """What is wrong with the file at ``path``, or "ok", or "missing"."""
    try:
        content = _content(file, path)
        if content[:100].lstrip().startswith(b"<"):
            return "wrong content: a web page, perhaps the log-in page of a Wi-Fi"
        if len(content) < (file.size or 0):
            return f"cut off after {len(content):,} of {file.size:,} bytes"
        seen, expected, record = hashlib.sha256(content).hexdigest(), file.sha256, _record(file)
        if expected is None and not record.is_file():
            return _structure(file, content)
        should_be = expected or f"{record.read_text()[:64]}, as kept in {record.name}"
        if should_be.startswith(seen):
            return "ok"
        return f"wrong content hash: sha256 is {seen}, should be {should_be}"
    except FileNotFoundError:
        return "missing"
    except EOFError:
        return "cut off"
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError, ValueError) as error:
        return f"wrong content: {error}"
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _content(file: DataFile, path: Path) -> bytes:
    """The content that is hashed and parsed; if the size is known, at most one byte more."""
    with path.open("rb") as stream:
        if file.name.endswith(".csv.gz"):
            stream = _unzipped(stream)
        return stream.read(-1 if file.size is None else file.size + 1)


def _unzipped(stream: BinaryIO) -> BinaryIO:
    """The stream, decompressed unless a server or a browser has already done that."""
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return gzip.open(stream) if zipped else stream


def _members(content: bytes) -> dict[str, bytes]:
    """The members of a 10x archive, by exact name, read in memory."""
    plain = _unzipped(io.BytesIO(content)).read(AT_MOST)
    wanted = {name: f"filtered_matrices_mex/hg19/{name}" for name in _MEMBERS}
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        held = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
        if missing := [path for path in wanted.values() if path not in held]:
            raise tarfile.ReadError(f"the archive has no {missing[0]}")
        return {name: archive.extractfile(held[path]).read() for name, path in wanted.items()}


def _structure(file: DataFile, content: bytes) -> str:
    from scipy.io import mminfo

    members = _members(content)
    listed = tuple(len(members[name].splitlines()) for name in ("genes.tsv", "barcodes.tsv"))
    shape = mminfo(io.BytesIO(members["matrix.mtx"]))[:2]
    expected = (N_GENES_10X, file.n_cells)
    if listed == shape == expected:
        return "ok"
    return f"wrong content: genes × cells are {expected}; listed {listed}, matrix {shape}"


def _record(file: DataFile) -> Path:
    """The file with the hash of a 10x archive at its first download, in sha256sum's format."""
    return cache_folder() / f"{file.name}.sha256"


# ---------------------------------------------------------------------- files: downloading one


def _elsewhere(file: DataFile) -> dict[str, str | Path]:
    mirror = os.environ.get("VAELAB_MIRROR")
    if not mirror:
        return {"source": file.url}
    if mirror.startswith(("http://", "https://")):
        return {"mirror": f"{mirror.rstrip('/')}/{file.name}", "source": file.url}
    return {"mirror": Path(mirror).expanduser() / file.name, "source": file.url}


def _obtain(name: str, file: DataFile, progress: bool = True) -> Path:
    """The path of a file in the cache; it is checked, and brought there if necessary."""
    folder = cache_folder()
    cached = folder / file.name
    state = _state(file, cached)
    if state == "ok":
        return cached
    seen = [f"cache {cached}: {state}" + ("" if state == "missing" else "; left as it is")]
    try:
        with _temporary_folder(folder) as temporary:
            for place, at in _elsewhere(file).items():
                problem = _bring(at, temporary / file.name, progress)
                found = problem or _state(file, temporary / file.name)
                if found == "ok":
                    _move_in(file, temporary, cached)
                    if state != "missing":
                        warnings.warn(f"{cached}: {state}; replaced from {at}", stacklevel=3)
                    return cached
                seen.append(f"{place} {at}: {found}")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        trouble = "disk full" if full else f"cache not writable ({error.strerror})"
        seen.insert(0, f"{trouble}: {file.name} could not be put into {folder}")
        seen.append("Set VAELAB_DATA to a folder with room that you may write to.")
        raise DataUnavailable("\n  ".join(seen)) from error
    raise DataUnavailable(
        "\n  ".join([f"{file.name} (data set {name}) is not available:", *seen])
        + f"\nThree ways to get it:"
        f"\n  1. with a network, run: vaelab data fetch {name}"
        f"\n  2. by hand: put {file.url} into {folder}"
        f"\n  3. set VAELAB_MIRROR to a folder or an http address that has {file.name}"
    )


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder in the cache; it is always removed, and so are those left by kills."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".part-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 86_400:  # a newer one may be in use
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as temporary:
        yield Path(temporary)


def _move_in(file: DataFile, temporary: Path, cached: Path) -> None:
    if file.sha256 is None:
        digest = hashlib.sha256((temporary / file.name).read_bytes()).hexdigest()
        (temporary / "record").write_text(f"{digest}  {file.name}\n")
        os.replace(temporary / "record", _record(file))
    os.replace(temporary / file.name, cached)


def _bring(at: str | Path, new: Path, progress: bool) -> str | None:
    """Copy or download to ``new``; None, or the problem at ``at``. Errors of our own disk raise."""
    if isinstance(at, Path):
        try:
            content = at.read_bytes()
        except OSError as error:
            return error.strerror
        new.write_bytes(content)
        return None
    import pooch
    import requests

    if progress:
        pooch.get_logger().info(f"Downloading {at}")
    get = pooch.HTTPDownloader(progress, 2**16, timeout=TIMEOUT)
    for trial in range(TRIES):
        time.sleep(trial)
        try:
            return get(at, new, None)
        except requests.RequestException as error:
            problem = _plainly(error)
            if 400 <= _http_status(error) < 500:  # another try cannot help
                break
    return problem


def _http_status(error: Exception) -> int:
    """The HTTP status of the response; 0 if there was none."""
    response = getattr(error, "response", None)
    return 0 if response is None else response.status_code


def _plainly(error: Exception) -> str:
    if _http_status(error):
        return f"HTTP {_http_status(error)}"
    clues = {
        "timed out": "timed out",
        "refused": "connection refused",
        "IncompleteRead": "cut off",
        "RemoteDisconnected": "cut off",
        "reset": "cut off",
        "resolve": "host not found; is there a network?",
    }
    reasons = (reason for clue, reason in clues.items() if clue in str(error))
    return next(reasons, f"{type(error).__name__}: {error}")
