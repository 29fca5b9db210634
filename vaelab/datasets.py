"""Named data sets of single-cell counts, as AnnData.

A file is looked for in the cache (``$VAELAB_DATA``; else ``data/`` in a checkout of the
repository; else a cache of the user's own), then in a mirror (``$VAELAB_MIRROR``: a folder or an
http address with the files under their plain names), then at its public source. Nothing enters
the cache before its content has been checked, and then it enters whole, in one step. Where the
data come from, and on what terms, is told in ``data/README.md``.
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

TIMEOUT = (5, 30)  # seconds to connect, and to wait for the next bytes
TRIES = 3
AT_MOST = 2**30  # bytes in an unzipped 10x archive; the real ones stay far below
N_GENES_10X = 32_738
_MEMBERS = ("barcodes.tsv", "genes.tsv", "matrix.mtx")


class DataUnavailable(OSError):
    """A data set that could not be had; the message names each place tried and what to do."""


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    `size` (bytes) and `sha256` are those of the content: of the decompressed text for a .csv.gz,
    since a compressed file's hash depends on the compressor. They are not published for the 10x
    archives, which are held against `n_cells`; their hash is recorded at the first download.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    n_cells: int | None = None


# cell_type: (its name in Zheng et al., the 10x archive's name, cells in that archive)
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
_ARCHIVES = {
    cell_type: DataFile(
        name=f"{sample}_filtered_gene_bc_matrices.tar.gz",
        url=f"{_10X}/{sample}/{sample}_filtered_gene_bc_matrices.tar.gz",
        n_cells=n_cells,
    )
    for cell_type, (_, sample, n_cells) in _SORTED.items()
}
DATASETS: dict[str, tuple[DataFile, ...]] = {  # each name is also that of its loader
    "pancreas": (_MOUSE_1, _MOUSE_2),
    "pbmc_sorted": (_FACS,),
    "pbmc_sorted_full": tuple(_ARCHIVES.values()),
    "pbmc_small": (),  # ships inside scanpy
}


def pancreas(mouse: int | str = 1) -> AnnData:
    """Pancreas of one mouse (1: 822 cells, 2: 1,064) or of "both"; 14,878 genes.

    `X` holds UMI counts, cells × genes, as CSR float32. `obs` has `cell_type` (the authors' 13
    clusters, under their names; some are tiny), `batch` ("mouse 1" or "mouse 2") and `barcode`.
    Raises `DataUnavailable` where the counts cannot be had.

    Source: Baron et al. 2016, Cell Systems 3:346, doi:10.1016/j.cels.2016.08.011.
    """
    import anndata
    import numpy as np
    import pandas as pd
    from scipy.sparse import csr_matrix

    if mouse not in (1, 2, "both"):
        raise ValueError(f'mouse must be 1, 2 or "both", not {mouse!r}')
    parts = []
    for number, file in ((1, _MOUSE_1), (2, _MOUSE_2)):
        if mouse in (number, "both"):
            header, *lines = _content(file, _obtain("pancreas", file)).decode().splitlines()
            index, barcode, cell_type, rows = zip(*(s.split(",", 3) for s in lines), strict=True)
            counts = np.loadtxt(rows, delimiter=",", dtype=np.float32)
            obs = pd.DataFrame({"cell_type": cell_type, "batch": f"mouse {number}"}, index)
            obs = obs.astype("category").assign(barcode=barcode)
            var = pd.DataFrame(index=header.split(",")[3:])
            parts.append(anndata.AnnData(csr_matrix(counts), obs, var))
    return anndata.concat(parts)


def pbmc_sorted(test: bool = False) -> AnnData:
    """Blood cells sorted by surface markers: 3,774 cells × 16,791 genes, ten populations.

    With `test`, the 100 further cells that fastTopics sets aside. `X` holds UMI counts, cells ×
    genes, as CSR float32; `var` has `gene_id` (Ensembl), and the few gene symbols that repeat are
    numbered. `obs` has `barcode`; `coarse_type`, one of CD34+, CD14+, B cell, NK cell and T cell;
    and `cell_type`, the population: "progenitor" (CD34+), "B cell" (CD19+), "NK cell" (CD56+),
    "monocyte" (CD14+), "helper T" (CD4+), "regulatory T" (CD4+/CD25+), "naive T"
    (CD4+/CD45RA+/CD25−), "memory T" (CD4+/CD45RO+), "cytotoxic T" (CD8+) and "naive cytotoxic T"
    (CD8+/CD45RA+). Raises `DataUnavailable` where the counts cannot be had.

    Source: Zheng et al. 2017, Nat. Commun. 8:14049, doi:10.1038/ncomms14049; the selection of
    cells and genes is that of the R package fastTopics.
    """
    import pandas as pd
    import rdata
    from scipy.sparse import csc_matrix

    path = _obtain("pbmc_sorted", _FACS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about R classes of which only plain fields are read
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

    `populations` picks some of them, by the names that `pbmc_sorted` gives under `cell_type`;
    each is a download of its own. `X`, `var`, `obs["cell_type"]` and `obs["barcode"]` are as
    there. Raises `DataUnavailable` where an archive cannot be had, ValueError for a population
    that is not among the ten.

    Source: Zheng et al. 2017, Nat. Commun. 8:14049, doi:10.1038/ncomms14049.
    """
    import pandas as pd
    from scipy.io import mmread
    from scipy.sparse import csr_matrix, vstack

    asked = [populations] if isinstance(populations, str) else list(populations or _SORTED)
    if unknown := [name for name in asked if name not in _SORTED]:
        raise ValueError(f"no population is called {unknown[0]!r}; there are {', '.join(_SORTED)}")
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
    """700 blood cells × 765 variable genes, ten labels; read from scanpy, without a download.

    `X` holds UMI counts as CSR float32, had back from scanpy's log1p(10,000 · counts / n_counts)
    by inverting and rounding. `obs["n_counts"]` is a cell's total over all genes. These 765
    hold about a fifth of it: so it is no library size for a model of these genes alone, whose
    shares sum to 1 over them. `obs["cell_type"]` is scanpy's `bulk_labels`: the sorted
    population, under its name in the paper, that the cell is most like.

    Source: Zheng et al. 2017, Nat. Commun. 8:14049, doi:10.1038/ncomms14049.
    """
    import anndata
    import numpy as np
    import scanpy

    kept = scanpy.datasets.pbmc68k_reduced()
    counts = kept.raw.X.expm1().multiply(kept.obs["n_counts"].to_numpy()[:, None] / 1e4).tocsr()
    whole = counts.rint().astype("float32")
    if np.abs((counts - whole).data).max() > 0.1:
        raise ValueError("scanpy's pbmc68k_reduced no longer gives back whole counts")
    obs = kept.obs[["bulk_labels", "n_counts"]].rename(columns={"bulk_labels": "cell_type"})
    return anndata.AnnData(whole, obs.rename_axis(None), kept.raw.var[[]])


def _with_genes(matrix, obs, gene_ids, symbols) -> AnnData:
    import anndata
    import pandas as pd

    names = anndata.utils.make_index_unique(pd.Index(symbols, dtype=str))
    var = pd.DataFrame({"gene_id": list(gene_ids)}, names)
    return anndata.AnnData(matrix.astype("float32", copy=False).tocsr(), obs, var)


# ------------------------------------------------------------------ files: what a user may ask


def cache_folder() -> Path:
    """The folder that holds the downloaded files; it need not exist yet."""
    if chosen := os.environ.get("VAELAB_DATA"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    import pooch

    return Path(pooch.os_cache("vaelab"))


def fetch(name: str, progress: bool = True) -> list[Path]:
    """Bring every file of a data set into the cache, checked, and say where each one lies.

    Raises `DataUnavailable` where a file cannot be had, ValueError for an unknown data set.
    """
    return [_obtain(name, file, progress) for file in _files(name)]


def verify(name: str) -> dict[str, str]:
    """For each file of a data set: "ok", "missing", or what is wrong with the one in the cache."""
    return {file.name: _state(file, cache_folder() / file.name) for file in _files(name)}


def locate(name: str) -> dict[str, str]:
    """For each file of a data set, where it is: "cache", "mirror", or only at its "source".

    An http mirror is taken at its word: nothing is asked of the network.
    """
    found = {}
    for file in _files(name):
        places = {"cache": cache_folder() / file.name} | _elsewhere(file)
        there = (place for place, at in places.items() if isinstance(at, str) or at.is_file())
        found[file.name] = next(there)
    return found


def _files(name: str) -> tuple[DataFile, ...]:
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


# ------------------------------------------------------------------ files: what they should hold


def _state(file: DataFile, path: Path) -> str:
    """What is wrong with the file at `path`, or "ok", or "missing"."""
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
    """What is hashed and parsed; of a known size, no more than one byte too many is read."""
    with path.open("rb") as stream:
        if file.name.endswith(".csv.gz"):
            stream = _unzipped(stream)
        return stream.read(-1 if file.size is None else file.size + 1)


def _unzipped(stream: BinaryIO) -> BinaryIO:
    """The stream decompressed, unless a server or a browser has already done so."""
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return gzip.open(stream) if zipped else stream


def _members(content: bytes) -> dict[str, bytes]:
    """The members of a 10x archive, by exact name; nothing is extracted to the disk."""
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
    """Where the hash of a 10x archive is kept from its first download on (sha256sum's form)."""
    return cache_folder() / f"{file.name}.sha256"


# ---------------------------------------------------------------------- files: bringing one here


def _elsewhere(file: DataFile) -> dict[str, str | Path]:
    mirror = os.environ.get("VAELAB_MIRROR")
    if not mirror:
        return {"source": file.url}
    if mirror.startswith(("http://", "https://")):
        return {"mirror": f"{mirror.rstrip('/')}/{file.name}", "source": file.url}
    return {"mirror": Path(mirror).expanduser() / file.name, "source": file.url}


def _obtain(name: str, file: DataFile, progress: bool = True) -> Path:
    """The path of a file in the cache, its content checked; brought there where need be."""
    folder = cache_folder()
    cached = folder / file.name
    state = _state(file, cached)
    if state == "ok":
        return cached
    seen = [f"cache {cached}: {state}" + ("" if state == "missing" else "; left as it is")]
    try:
        with _scratch(folder) as scratch:
            for place, at in _elsewhere(file).items():
                said = _bring(at, scratch / file.name, progress)
                said = said or _state(file, scratch / file.name)
                if said == "ok":
                    _move_in(file, scratch, cached)
                    if state != "missing":
                        warnings.warn(f"{cached}: {state}; replaced from {at}", stacklevel=3)
                    return cached
                seen.append(f"{place} {at}: {said}")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        trouble = "disk full" if full else f"cache not writable ({error.strerror})"
        seen.insert(0, f"{trouble}: {file.name} could not be put into {folder}")
        seen.append("Set VAELAB_DATA to a folder with room that you may write to.")
        raise DataUnavailable("\n  ".join(seen)) from error
    raise DataUnavailable(
        "\n  ".join([f"{file.name} (data set {name}) could not be had:", *seen])
        + f"\nThree ways to get it:"
        f"\n  1. with a network, run: vaelab data fetch {name}"
        f"\n  2. by hand: put {file.url} into {folder}"
        f"\n  3. set VAELAB_MIRROR to a folder or an http address that has {file.name}"
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder inside the cache that goes whatever happens; so do those of killed downloads."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".part-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 86_400:  # a younger one may be in use
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
        yield Path(scratch)


def _move_in(file: DataFile, scratch: Path, cached: Path) -> None:
    if file.sha256 is None:
        digest = hashlib.sha256((scratch / file.name).read_bytes()).hexdigest()
        (scratch / "record").write_text(f"{digest}  {file.name}\n")
        os.replace(scratch / "record", _record(file))
    os.replace(scratch / file.name, cached)


def _bring(at: str | Path, new: Path, progress: bool) -> str | None:
    """Copy or download to `new`; None, or what went wrong there. Our own disk's troubles raise."""
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
            said = _plainly(error)
            if 400 <= _status(error) < 500:  # asking again would change nothing
                break
    return said


def _status(error: Exception) -> int:
    """The HTTP status of an answer; 0 if there was none."""
    response = getattr(error, "response", None)
    return 0 if response is None else response.status_code


def _plainly(error: Exception) -> str:
    if _status(error):
        return f"HTTP {_status(error)}"
    clues = {
        "timed out": "timed out",
        "refused": "connection refused",
        "IncompleteRead": "cut off",
        "RemoteDisconnected": "cut off",
        "reset": "cut off",
        "resolve": "host not found; is there a network?",
    }
    said = (plain for clue, plain in clues.items() if clue in str(error))
    return next(said, f"{type(error).__name__}: {error}")
