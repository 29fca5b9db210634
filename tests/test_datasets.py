"""Data sets: how files are fetched when servers and disks misbehave, and what the files hold.

Nothing here asks the public internet: the public addresses are replaced by a closed port.
"""

import errno
import gzip
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vaelab import datasets
from vaelab.datasets import DataFile, DataUnavailable

TEXT = b"".join(b"cell %d,%d\n" % (i, i**3) for i in range(20_000))
ZIPPED = gzip.compress(TEXT)
OTHER = gzip.compress(TEXT.replace(b"7", b"8"))  # a sound file of the right size


@pytest.fixture(scope="module")
def closed():
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(autouse=True, scope="module")
def no_public_source(closed):
    def moved(file):
        return replace(file, url=f"{closed}/{file.name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        for name in ("_MOUSE_1", "_MOUSE_2", "_SPECIES", "_FACS"):
            patch.setattr(datasets, name, moved(getattr(datasets, name)))
        archives = {name: moved(file) for name, file in datasets._ARCHIVES.items()}
        patch.setattr(datasets, "_ARCHIVES", archives)
        for name, files in datasets.DATASETS.items():
            patch.setitem(datasets.DATASETS, name, tuple(moved(file) for file in files))
        yield


# ------------------------------------------------------------------- a server that misbehaves


class Server(ThreadingHTTPServer):
    """Answers by path from `replies`: bytes, an HTTP status, or a function of the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.replies, self.asked, self.over = {}, [], threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        reply = self.server.replies.get(self.path, 404)
        if callable(reply):
            reply(self)
        elif isinstance(reply, int):
            self.send_error(reply)
        else:
            start(self, len(reply))
            self.wfile.write(reply)

    def log_message(self, *_):
        pass


def start(handler, length=None):
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", length)
    handler.end_headers()


def cut_off(handler):
    start(handler, len(ZIPPED))
    handler.wfile.write(ZIPPED[: len(ZIPPED) // 2])


def cut_off_without_a_length(handler):
    start(handler)
    handler.wfile.write(ZIPPED[: len(ZIPPED) // 2])


def cut_off_uncompressed(handler):
    start(handler)
    handler.wfile.write(TEXT[: len(TEXT) // 2])


def hang(handler):
    start(handler, len(ZIPPED))
    handler.server.over.wait(20)


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def interrupt(handler):
    """Ctrl-C in the middle of the download."""
    start(handler, len(ZIPPED))
    handler.wfile.write(ZIPPED[: len(ZIPPED) // 2])
    handler.wfile.flush()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    handler.server.over.wait(20)


MISBEHAVIOURS = {
    "cut off": (cut_off, "cut off"),
    "cut off, no length told": (cut_off_without_a_length, "cut off"),
    "cut off, uncompressed": (cut_off_uncompressed, "cut off after"),
    "hangs up": (hang_up, "cut off"),
    "hangs": (hang, "timed out"),
    "another file": (OTHER, "wrong content hash"),
    "too long": (gzip.compress(TEXT + b"and more"), "wrong content hash"),
    "broken bytes": (ZIPPED[:5000] + b"\0" * 50 + ZIPPED[5050:], "wrong content"),
    "log-in page": (b"<!doctype html><title>Welcome</title>", "wrong content: a web page"),
    "not found": (404, "HTTP 404"),
    "forbidden": (403, "HTTP 403"),
    "server error": (500, "HTTP 500"),
}


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("VAELAB_DATA", str(folder))
    monkeypatch.delenv("VAELAB_MIRROR", raising=False)
    monkeypatch.setattr(datasets, "TIMEOUT", 0.5)
    monkeypatch.setattr(datasets, "TRIES", 1)
    return folder


@pytest.fixture
def toy(server, cache, monkeypatch):
    """A data set of one small file, whose public source is on the server under /source."""
    url = f"{server.address}/source/toy.csv.gz"
    file = DataFile("toy.csv.gz", url, len(TEXT), hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setitem(datasets.DATASETS, "toy", (file,))
    return file


def fetch_toy():
    (path,) = datasets.fetch("toy", progress=False)
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def failure_of(call, *args):
    with pytest.raises(DataUnavailable) as caught:
        call(*args)
    return str(caught.value)


# ------------------------------------------------------------------------------------- fetching


def test_a_download_arrives_whole_and_only_once(server, cache, toy):
    server.replies["/source/toy.csv.gz"] = ZIPPED
    assert datasets.locate("toy") == {"toy.csv.gz": "source"}
    assert datasets.verify("toy") == {"toy.csv.gz": "missing"}
    assert fetch_toy() == cache / "toy.csv.gz"
    assert (cache / "toy.csv.gz").read_bytes() == ZIPPED
    assert names_in(cache) == ["toy.csv.gz"]
    assert datasets.locate("toy") == {"toy.csv.gz": "cache"}
    assert datasets.verify("toy") == {"toy.csv.gz": "ok"}
    fetch_toy()
    assert server.asked == ["/source/toy.csv.gz"]


def test_another_compressor_or_none_is_as_good(server, cache, toy):
    for sent in (gzip.compress(TEXT, 1), TEXT):
        server.replies["/source/toy.csv.gz"] = sent
        assert fetch_toy().read_bytes() == sent
        (cache / "toy.csv.gz").unlink()


def test_a_progress_bar_is_shown_on_request(server, cache, toy, capsys):
    server.replies["/source/toy.csv.gz"] = ZIPPED
    datasets.fetch("toy", progress=True)
    assert "100%" in capsys.readouterr().err


def test_the_order_is_cache_mirror_source(server, cache, toy, tmp_path, monkeypatch):
    server.replies["/source/toy.csv.gz"] = server.replies["/mirror/toy.csv.gz"] = ZIPPED
    monkeypatch.setenv("VAELAB_MIRROR", f"{server.address}/mirror/")
    assert datasets.locate("toy") == {"toy.csv.gz": "mirror"}
    fetch_toy()
    assert server.asked == ["/mirror/toy.csv.gz"]
    fetch_toy()
    assert server.asked == ["/mirror/toy.csv.gz"]
    (cache / "toy.csv.gz").unlink()
    del server.replies["/mirror/toy.csv.gz"]
    fetch_toy()
    assert server.asked[1:] == ["/mirror/toy.csv.gz", "/source/toy.csv.gz"]


def test_a_folder_is_a_mirror(server, cache, toy, tmp_path, monkeypatch):
    stick = tmp_path / "stick"
    stick.mkdir()
    monkeypatch.setenv("VAELAB_MIRROR", str(stick))
    assert datasets.locate("toy") == {"toy.csv.gz": "source"}
    assert f"mirror {stick}/toy.csv.gz: No such file" in failure_of(fetch_toy)
    (stick / "toy.csv.gz").write_bytes(ZIPPED)
    assert datasets.locate("toy") == {"toy.csv.gz": "mirror"}
    assert fetch_toy() == cache / "toy.csv.gz"
    assert server.asked == ["/source/toy.csv.gz"]


@pytest.mark.parametrize("what", MISBEHAVIOURS)
def test_a_misbehaving_source_is_named_and_leaves_nothing(what, server, cache, toy):
    server.replies["/source/toy.csv.gz"], seen = MISBEHAVIOURS[what]
    message = failure_of(fetch_toy)
    assert f"source {toy.url}: {seen}" in message
    assert f"cache {cache}/toy.csv.gz: missing" in message
    assert names_in(cache) == []


@pytest.mark.parametrize("what", MISBEHAVIOURS)
def test_a_misbehaving_mirror_is_passed_over(what, server, cache, toy, monkeypatch):
    server.replies["/mirror/toy.csv.gz"], _ = MISBEHAVIOURS[what]
    server.replies["/source/toy.csv.gz"] = ZIPPED
    monkeypatch.setenv("VAELAB_MIRROR", f"{server.address}/mirror")
    assert fetch_toy().read_bytes() == ZIPPED
    assert names_in(cache) == ["toy.csv.gz"]


def test_the_message_names_each_place_and_three_ways(server, cache, toy, closed, monkeypatch):
    monkeypatch.setenv("VAELAB_MIRROR", closed)
    server.replies["/source/toy.csv.gz"] = 503
    message = failure_of(fetch_toy)
    assert f"cache {cache}/toy.csv.gz: missing" in message
    assert f"mirror {closed}/toy.csv.gz: connection refused" in message
    assert f"source {toy.url}: HTTP 503" in message
    assert "1. with a network, run: vaelab data fetch toy" in message
    assert f"2. by hand: put {toy.url} into {cache}" in message
    assert "3. set VAELAB_MIRROR to a folder or an http address that has toy.csv.gz" in message


def test_a_host_without_a_name_is_told_from_a_refusal(cache, toy, monkeypatch):
    def no_network(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert "host not found" in failure_of(fetch_toy)


def test_a_passing_trouble_is_tried_again_but_a_lasting_one_is_not(server, cache, toy, monkeypatch):
    monkeypatch.setattr(datasets, "TRIES", 3)
    monkeypatch.setattr(datasets.time, "sleep", lambda seconds: None)
    path = "/source/toy.csv.gz"
    replies = iter(
        [cut_off, hang_up, lambda handler: (start(handler), handler.wfile.write(ZIPPED))]
    )
    server.replies[path] = lambda handler: next(replies)(handler)
    assert fetch_toy().read_bytes() == ZIPPED
    assert server.asked == [path] * 3
    (cache / "toy.csv.gz").unlink()
    server.asked.clear()
    server.replies[path] = 404
    failure_of(fetch_toy)
    assert server.asked == [path]


def test_a_broken_file_in_the_cache_is_replaced_with_a_warning(server, cache, toy):
    server.replies["/source/toy.csv.gz"] = ZIPPED
    cache.mkdir()
    for broken, said in ((ZIPPED[:1000], "cut off"), (OTHER, "wrong content hash"), (b"", "cut")):
        (cache / "toy.csv.gz").write_bytes(broken)
        assert said in datasets.verify("toy")["toy.csv.gz"]
        with pytest.warns(UserWarning, match=f"{said}.*replaced from {toy.url}"):
            fetch_toy()
        assert (cache / "toy.csv.gz").read_bytes() == ZIPPED


def test_a_broken_file_in_the_cache_is_left_alone_if_there_is_no_better(cache, toy):
    cache.mkdir()
    (cache / "toy.csv.gz").write_bytes(OTHER)
    message = failure_of(fetch_toy)
    assert "wrong content hash" in message
    assert "left as it is" in message
    assert (cache / "toy.csv.gz").read_bytes() == OTHER
    assert names_in(cache) == ["toy.csv.gz"]


def test_a_file_that_unpacks_to_far_too_much_is_not_read_to_its_end(server, cache, toy):
    server.replies["/source/toy.csv.gz"] = gzip.compress(bytes(200_000_000), 1)
    tracemalloc.start()
    message = failure_of(fetch_toy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "wrong content" in message
    assert peak < 20_000_000


def test_an_interrupted_download_leaves_nothing(server, cache, toy, monkeypatch):
    monkeypatch.setattr(datasets, "TIMEOUT", 10)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        server.replies["/source/toy.csv.gz"] = interrupt
        with pytest.raises(KeyboardInterrupt):
            fetch_toy()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert names_in(cache) == []
    server.replies["/source/toy.csv.gz"] = ZIPPED
    assert fetch_toy().read_bytes() == ZIPPED


def test_while_it_arrives_a_file_does_not_bear_its_name(server, cache, toy):
    seen = []

    def look(handler):
        start(handler)
        handler.wfile.write(ZIPPED[:5000])
        handler.wfile.flush()
        seen.extend(names_in(cache))
        handler.wfile.write(ZIPPED[5000:])

    server.replies["/source/toy.csv.gz"] = look
    fetch_toy()
    assert len(seen) == 1
    assert seen[0].startswith(".part-")


def test_what_a_killed_download_left_is_swept_but_not_one_at_work(server, cache, toy):
    server.replies["/source/toy.csv.gz"] = ZIPPED
    for name in (".part-old", ".part-young"):
        (cache / name).mkdir(parents=True)
        (cache / name / "toy.csv.gz").write_bytes(b"half")
    os.utime(cache / ".part-old", (0, 0))
    fetch_toy()
    assert names_in(cache) == [".part-young", "toy.csv.gz"]


class FullDisk(io.BytesIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_no_further_place_is_asked(
    server, cache, toy, tmp_path, monkeypatch
):
    server.replies["/source/toy.csv.gz"] = server.replies["/mirror/toy.csv.gz"] = ZIPPED
    monkeypatch.setenv("VAELAB_MIRROR", f"{server.address}/mirror")
    monkeypatch.setattr("pooch.downloaders.open", lambda *_: FullDisk(), raising=False)
    message = failure_of(fetch_toy)
    assert message.startswith(f"disk full: toy.csv.gz could not be put into {cache}")
    assert "Set VAELAB_DATA" in message
    assert server.asked == ["/mirror/toy.csv.gz"]
    assert names_in(cache) == []

    (tmp_path / "toy.csv.gz").write_bytes(ZIPPED)
    monkeypatch.setenv("VAELAB_MIRROR", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", FullDisk.write)
    assert failure_of(fetch_toy).startswith("disk full")
    assert server.asked == ["/mirror/toy.csv.gz"]


def test_a_cache_that_cannot_be_written_is_named(server, cache, toy):
    server.replies["/source/toy.csv.gz"] = ZIPPED
    cache.write_text("a file where the folder should be")
    message = failure_of(fetch_toy)
    assert message.startswith("cache not writable")
    assert f"could not be put into {cache}" in message
    assert "Set VAELAB_DATA" in message
    assert server.asked == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="permissions bind neither root nor Windows; run the tests as a plain user",
)
def test_a_read_only_cache_serves_what_it_has_and_refuses_what_it_lacks(server, cache, toy):
    server.replies["/source/toy.csv.gz"] = ZIPPED
    cache.mkdir()
    cache.chmod(0o555)
    assert failure_of(fetch_toy).startswith("cache not writable (Permission denied)")
    cache.chmod(0o755)
    fetch_toy()
    cache.chmod(0o555)
    fetch_toy()
    cache.chmod(0o755)


def test_the_cache_is_the_one_named_else_the_checkouts_else_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    assert datasets.cache_folder() == tmp_path
    monkeypatch.setenv("VAELAB_DATA", "~/data")
    assert datasets.cache_folder() == Path.home() / "data"
    monkeypatch.delenv("VAELAB_DATA")
    package = tmp_path / "checkout" / "vaelab"
    monkeypatch.setattr(datasets, "__file__", str(package / "datasets.py"))
    assert datasets.cache_folder().name == "vaelab"
    (tmp_path / "checkout" / "data").mkdir(parents=True)
    (tmp_path / "checkout" / "pyproject.toml").touch()
    assert datasets.cache_folder() == tmp_path / "checkout" / "data"


def test_wrong_names_are_refused_in_a_sentence():
    for ask in (datasets.fetch, datasets.verify, datasets.locate):
        with pytest.raises(
            ValueError, match="no data set is called 'pbmc'; choose from pancreas, "
        ):
            ask("pbmc")
    with pytest.raises(ValueError, match='mouse must be 1, 2 or "both", not 3'):
        datasets.pancreas(mouse=3)
    with pytest.raises(ValueError, match="no population is called 'b_cells'; choose from progen"):
        datasets.pbmc_sorted_full("b_cells")


def test_every_data_set_has_a_loader_of_its_name():
    assert all(callable(getattr(datasets, name)) for name in datasets.DATASETS)


def test_heavy_packages_wait_until_they_are_needed():
    code = "import datasets, sys; print(*sys.modules)"
    folder = Path(datasets.__file__).parent
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"anndata", "numpy", "pandas", "pooch", "rdata", "requests", "scanpy", "scipy"}
    assert not heavy & set(loaded)


# ---------------------------------------------------- the ten archives, small ones of their form

GENES = ("ENSG1\tCD3E\nENSG2\tLYZ\nENSG3\tLYZ\n", ["CD3E", "LYZ", "LYZ-1"])


def archive_of(counts, extra=(), leave_out=""):
    """A 10x archive of genes × cells, with `extra` members (name, content) before and after."""
    at = np.argwhere(counts.T)[:, ::-1]
    lines = [f"{gene + 1} {cell + 1} {counts[gene, cell]}\n" for gene, cell in at]
    head = "%%MatrixMarket matrix coordinate integer general\n%\n"
    members = {
        "matrix.mtx": f"{head}{counts.shape[0]} {counts.shape[1]} {len(lines)}\n{''.join(lines)}",
        "genes.tsv": GENES[0],
        "barcodes.tsv": "".join(f"{'ACGT'[i % 4]}{i}-1\n" for i in range(counts.shape[1])),
    }
    held = [(f"filtered_matrices_mex/hg19/{k}", v) for k, v in members.items() if k != leave_out]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in [*extra, *held, *extra]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    return packed.getvalue()


@pytest.fixture
def ten(server, cache, monkeypatch):
    """The ten archives with 3 genes and 4 to 13 cells, on the server; their counts by name."""
    draw = np.random.default_rng(0)
    files, counts = {}, {}
    for n_cells, (cell_type, file) in enumerate(datasets._ARCHIVES.items(), start=4):
        counts[cell_type] = draw.poisson(1.0, (3, n_cells))
        server.replies[f"/{file.name}"] = archive_of(counts[cell_type])
        url = f"{server.address}/{file.name}"
        files[cell_type] = replace(file, url=url, n_cells=n_cells)
    monkeypatch.setattr(datasets, "_ARCHIVES", files)
    monkeypatch.setitem(datasets.DATASETS, "pbmc_sorted_full", tuple(files.values()))
    monkeypatch.setattr(datasets, "N_GENES_10X", 3)
    return counts


def test_all_ten_archives_become_one_matrix(ten):
    adata = datasets.pbmc_sorted_full()
    assert (adata.X.toarray() == np.hstack(list(ten.values())).T).all()
    assert adata.X.dtype == np.float32
    assert adata.X.format == "csr"
    assert list(adata.var_names) == GENES[1]
    assert list(adata.var["gene_id"]) == ["ENSG1", "ENSG2", "ENSG3"]
    assert adata.obs["cell_type"].value_counts().to_dict() == {
        name: counts.shape[1] for name, counts in ten.items()
    }
    assert adata.obs_names.is_unique
    assert not adata.obs["barcode"].is_unique


def test_populations_can_be_picked_and_only_those_are_fetched(ten, server):
    adata = datasets.pbmc_sorted_full(["monocyte", "B cell"])
    assert list(adata.obs["cell_type"].unique()) == ["monocyte", "B cell"]
    assert (adata.X.toarray() == np.hstack([ten["monocyte"], ten["B cell"]]).T).all()
    assert len(server.asked) == 2
    assert datasets.pbmc_sorted_full("NK cell").n_obs == ten["NK cell"].shape[1]


def test_an_archives_hash_is_kept_at_the_first_download_and_holds_ever_after(ten, server, cache):
    datasets.pbmc_sorted_full("monocyte")
    name = "cd14_monocytes_filtered_gene_bc_matrices.tar.gz"
    record = cache / f"{name}.sha256"
    first = server.replies[f"/{name}"]
    assert record.read_text() == f"{hashlib.sha256(first).hexdigest()}  {name}\n"
    assert datasets.verify("pbmc_sorted_full")[name] == "ok"

    other = archive_of(ten["monocyte"] + 1)  # sound, of the right shape, but not the same
    (cache / name).write_bytes(other)
    assert "wrong content hash" in datasets.verify("pbmc_sorted_full")[name]
    with pytest.warns(UserWarning, match="replaced"):
        datasets.pbmc_sorted_full("monocyte")
    assert (cache / name).read_bytes() == first

    (cache / name).unlink()
    server.replies[f"/{name}"] = other
    assert f"as kept in {record.name}" in failure_of(datasets.pbmc_sorted_full, "monocyte")
    assert names_in(cache) == [record.name]


def test_an_archive_of_another_structure_is_refused(ten, server, cache):
    name = datasets._ARCHIVES["monocyte"].name
    counts = ten["monocyte"]
    sound = archive_of(counts)
    for content, said in (
        (archive_of(counts[:, 1:]), "wrong content: genes × cells"),
        (archive_of(counts[1:]), "wrong content: genes × cells"),
        (archive_of(counts, leave_out="genes.tsv"), "the archive has no filtered_matrices_mex"),
        (sound[: len(sound) // 2], "cut off"),
        (sound[:-4], "cut off"),
        (sound[:-8] + bytes(8), "wrong content: CRC"),
        (b"not an archive", "wrong content"),
    ):
        server.replies[f"/{name}"] = content
        assert said in failure_of(datasets.pbmc_sorted_full, "monocyte")
        assert names_in(cache) == []


def test_an_archive_cannot_write_outside_itself(ten, server, cache, tmp_path):
    name = datasets._ARCHIVES["monocyte"].name
    traps = [("../evil", "x"), (f"{tmp_path}/evil", "x"), ("matrix.mtx", "not this one")]
    server.replies[f"/{name}"] = archive_of(ten["monocyte"], extra=traps)
    adata = datasets.pbmc_sorted_full("monocyte")
    assert (adata.X.toarray() == ten["monocyte"].T).all()
    assert names_in(cache) == [name, f"{name}.sha256"]
    assert not list(tmp_path.rglob("evil"))


def test_an_archive_that_unpacks_to_far_too_much_is_refused(ten, cache, monkeypatch):
    monkeypatch.setattr(datasets, "AT_MOST", 2000)
    assert "wrong content" in failure_of(datasets.pbmc_sorted_full, "monocyte")
    assert names_in(cache) == []


def test_an_archive_put_there_by_hand_needs_no_network(ten, server, cache):
    cache.mkdir()
    file = datasets._ARCHIVES["monocyte"]
    (cache / file.name).write_bytes(server.replies[f"/{file.name}"])
    assert datasets.pbmc_sorted_full("monocyte").n_obs == file.n_cells
    assert server.asked == []


# --------------------------------------------------------------- what the real files should hold


def needs(name):
    if "source" in datasets.locate(name).values():
        pytest.skip(
            f"{name} is neither in the cache nor in a mirror; run: vaelab data fetch {name}"
        )


@pytest.fixture(scope="module")
def mouse_1():
    needs("pancreas")
    return datasets.pancreas(mouse=1)


@pytest.fixture(scope="module")
def facs():
    needs("pbmc_sorted")
    return datasets.pbmc_sorted()


def assert_counts(adata):
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert (adata.X.data > 0).all()
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.obs["cell_type"].dtype == "category"
    assert adata.obs["cell_type"].notna().all()


def mean_count(adata, gene, cell_type):
    return adata[adata.obs["cell_type"] == cell_type, gene].X.mean()


def test_mouse_1_holds_what_the_paper_counted(mouse_1):
    assert_counts(mouse_1)
    assert mouse_1.shape == (822, 14_878)
    assert 1 - mouse_1.X.nnz / (822 * 14_878) == pytest.approx(0.905, abs=5e-4)
    sizes = mouse_1.obs["cell_type"].value_counts()
    assert len(sizes) == 13
    assert (sizes["B_cell"], sizes["schwann"], sizes["T_cell"]) == (2, 3, 4)
    assert mouse_1.obs_names[0] == "mouse1_lib1.final_cell_0001"
    assert mouse_1.obs["barcode"].iloc[0] == "AAGTGAAAG-CGACTCCT"
    assert set(mouse_1.obs["batch"]) == {"mouse 1"}
    assert mean_count(mouse_1, "Ins2", "beta") == pytest.approx(956, abs=1)
    assert mean_count(mouse_1, "Gcg", "alpha") == pytest.approx(883, abs=1)


def test_human_and_mouse_have_the_same_genes_and_no_cell_twice():
    needs("pancreas_species")
    adata = datasets.pancreas_species()
    assert_counts(adata)
    assert adata.shape == (328, 12_474)
    assert len(np.unique(adata.X.toarray(), axis=0)) == 328
    assert adata.obs["batch"].value_counts().to_dict() == {"human": 175, "mouse": 153}
    assert len(adata.obs["cell_type"].cat.categories) == 5
    for name in ("human", "mouse"):  # the genes stand in the same order in both
        of_species = adata[adata.obs["batch"] == name]
        for gene, cell_type in (("GCG", "alpha"), ("SST", "delta")):
            others = of_species[of_species.obs["cell_type"] != cell_type, gene].X.mean()
            assert mean_count(of_species, gene, cell_type) > 5 * others
    assert mean_count(adata, "GCG", "alpha") > 100


def test_both_mice_are_the_two_one_after_the_other(mouse_1):
    mouse_2 = datasets.pancreas(mouse=2)
    both = datasets.pancreas(mouse="both")
    assert_counts(mouse_2)
    assert_counts(both)
    assert mouse_2.shape == (1_064, 14_878)
    assert both.shape == (822 + 1_064, 14_878)
    assert list(both.var_names) == list(mouse_1.var_names) == list(mouse_2.var_names)
    assert (both[:822].X != mouse_1.X).nnz == (both[822:].X != mouse_2.X).nnz == 0
    assert both.obs["batch"].value_counts().to_dict() == {"mouse 1": 822, "mouse 2": 1_064}
    assert both.obs["batch"].dtype == "category"
    assert both.obs["cell_type"].nunique() == 13


FACS_SIZES = {  # cells in the main part, cells set aside
    "progenitor": (687, 14),
    "B cell": (767, 28),
    "NK cell": (673, 13),
    "monocyte": (163, 5),
    "helper T": (252, 4),
    "regulatory T": (205, 9),
    "naive T": (191, 7),
    "memory T": (234, 4),
    "cytotoxic T": (370, 10),
    "naive cytotoxic T": (232, 6),
}


@pytest.mark.parametrize("test", [False, True])
def test_sorted_blood_cells_hold_ten_populations(test, facs):
    adata = datasets.pbmc_sorted(test=True) if test else facs
    assert_counts(adata)
    assert adata.shape == (100 if test else 3_774, 16_791)
    sizes = adata.obs["cell_type"].value_counts().to_dict()
    assert sizes == {name: size[test] for name, size in FACS_SIZES.items()}
    assert set(adata.obs["coarse_type"]) == {"CD34+", "CD14+", "B cell", "NK cell", "T cell"}
    assert adata.var["gene_id"].is_unique
    assert adata.var.loc["CD19", "gene_id"] == "ENSG00000177455"
    # The file names each count's cell beside the label: the two must be of the same cell.
    for cell, barcode, cell_type in zip(
        adata.obs_names, adata.obs["barcode"], adata.obs["cell_type"], strict=True
    ):
        sample = datasets._SORTED[cell_type][1]
        assert cell.removesuffix("_filtered") == f"{barcode}-{sample}"


def test_marker_genes_stand_out_in_their_population(facs):
    for gene, cell_type in (("CD79A", "B cell"), ("LYZ", "monocyte"), ("GNLY", "NK cell")):
        means = {name: mean_count(facs, gene, name) for name in FACS_SIZES}
        assert max(means, key=means.get) == cell_type


def test_small_blood_set_gives_back_whole_counts():
    adata = datasets.pbmc_small()
    assert_counts(adata)
    assert adata.shape == (700, 765)
    assert adata.obs["cell_type"].nunique() == 10
    assert (adata.obs["cell_type"] == "Dendritic").sum() == 240
    assert adata.X.max() == 259
    assert (np.asarray(adata.X.sum(axis=1)).ravel() <= adata.obs["n_counts"]).all()


def test_without_data_the_loader_says_how_to_get_it(cache, closed):
    message = failure_of(datasets.pancreas)
    assert f"source {closed}/GSM2230761_mouse1_umifm_counts.csv.gz: connection refused" in message
    assert "vaelab data fetch pancreas" in message


def test_a_changed_scanpy_file_is_noticed(monkeypatch):
    import scanpy

    kept = scanpy.datasets.pbmc68k_reduced()
    kept.obs["n_counts"] *= 1.3
    monkeypatch.setattr(scanpy.datasets, "pbmc68k_reduced", lambda: kept)
    with pytest.raises(ValueError, match="no longer whole numbers; install"):
        datasets.pbmc_small()
