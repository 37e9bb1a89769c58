"""How fast the nearest neighbours are found, here and elsewhere.

    python benchmarks/search.py --size 10000 --size 100000 --work DIR
    python benchmarks/search.py --size 1000000 --work DIR    # 25 GB of disk, 12 of memory
    python benchmarks/search.py --real --work DIR            # the real photos' embeddings

Prints Markdown. Each engine builds, searches and starts cold in processes of its own, so
that memory and time are its own. Queries come one at a time and are not among the vectors;
engines use as many threads as they like. Where an engine can trade speed for recall it
gets the cheapest of its `settings` that reaches a recall@10 of .99, else the last. An
engine that takes seconds is asked for two minutes, not all queries. Warm searches begin
with the file in the system's cache, as far as that has room; files are dropped from it
before a cold start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import common
import numpy as np
import vectors as drawn

K = 10
QUERIES = 200
WANTED = 0.99  # recall@10
PATIENCE = 120  # seconds, then no more queries are asked


# Engines


class Engine:
    """Something that finds neighbours in one file.

    Rows go by their position: 0 to n - 1. What takes memory or time is imported where it
    is used, in the engine's own process.
    """

    name: str
    packages: tuple[str, ...] = ()
    settings: tuple[int, ...] = (0,)  # what to try, cheapest first
    setting_name = ""
    largest: int = 100_000  # vectors; more would take hours or prove nothing

    def __init__(self, file: Path) -> None:
        self.file = file

    def build(self, vectors: np.ndarray) -> None:
        """Make the file from float32 vectors of length 1, of shape (n, d)."""
        raise NotImplementedError

    def load(self) -> None:
        """Open the file, in a new process."""
        raise NotImplementedError

    def tune(self, setting: int) -> None:
        """Trade speed for recall."""

    def search(self, query: np.ndarray) -> list[int]:
        """The nearest K rows to a vector of shape (d,), nearest first."""
        raise NotImplementedError


class NumPy(Engine):
    name = "NumPy, exact"
    packages = ("numpy",)

    def build(self, vectors: np.ndarray) -> None:
        np.save(self.file.open("wb"), vectors)

    def load(self) -> None:
        self.vectors = np.load(self.file)

    def search(self, query: np.ndarray) -> list[int]:
        scores = self.vectors @ query
        best = np.argpartition(-scores, K)[:K]
        return best[np.argsort(-scores[best])].tolist()


class Ours(Engine):
    """The plugin's own database, without an index."""

    name = "ours, exact"
    largest = 1_000_000
    exact = True

    def build(self, vectors: np.ndarray) -> None:
        common.make_collection(self.file, vectors)

    def load(self) -> None:
        from datasette_image_similarity import database as db
        from datasette_image_similarity.index import IndexCache

        self.conn = db.connect(self.file)
        self.collection = db.find_collection(self.conn, common.TABLE)
        self.cache = IndexCache()

    def search(self, query: np.ndarray, category: str | None = None) -> list[int]:
        from datasette_image_similarity.query import Filter, Query, search

        asked = Query(
            query.tobytes(),
            K,
            filter=Filter("category = :category", {"category": category})
            if category
            else None,
            exact=self.exact,
        )
        answer = search(self.conn, self.collection, asked, self.cache)
        return [int(hit.pk) - 1 for hit in answer.hits]


class OursIndexed(Ours):
    """With the compressed index. `build` adds it to the database that is there."""

    name = "ours, indexed"
    exact = False

    def build(self, vectors: np.ndarray) -> None:
        from datasette_image_similarity.index import build_index

        self.load()
        build_index(self.conn, self.collection, recall=WANTED)
        self.conn.close()


class SqliteVec(Engine):
    """A plain vec0 table with its defaults."""

    name = "sqlite-vec, float"
    packages = ("sqlite-vec",)
    largest = 1_000_000
    column = "float[{}] distance_metric=cosine"
    value = "?"

    def encoded(self, vectors: np.ndarray) -> np.ndarray:
        return vectors

    def connect(self) -> None:
        from datasette.utils.sqlite import sqlite3

        from datasette_image_similarity.database import load_vec

        self.conn = sqlite3.connect(str(self.file), isolation_level=None)
        load_vec(self.conn)

    def build(self, vectors: np.ndarray) -> None:
        self.connect()
        column = self.column.format(vectors.shape[1])
        self.conn.execute("pragma synchronous = off")
        self.conn.execute(f"create virtual table v using vec0(embedding {column})")
        sql = f"insert into v (rowid, embedding) values (?, {self.value})"
        for start in range(0, len(vectors), 10_000):
            self.conn.execute("begin")
            block = self.encoded(vectors[start : start + 10_000])
            rows = ((i, row.tobytes()) for i, row in enumerate(block, start))
            self.conn.executemany(sql, rows)
            self.conn.execute("commit")
        self.conn.close()

    def load(self) -> None:
        self.connect()

    def search(self, query: np.ndarray) -> list[int]:
        sql = f"select rowid from v where embedding match {self.value} and k = {K}"
        data = self.encoded(query).tobytes()
        return [row[0] for row in self.conn.execute(sql, (data,))]


class SqliteVecInt8(SqliteVec):
    """A byte a number, scaled so that .25 is 127: hardly any number is larger."""

    name = "sqlite-vec, int8"
    largest = 100_000
    column = "int8[{}] distance_metric=cosine"
    value = "vec_int8(?)"

    def encoded(self, vectors: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(vectors * (127 / 0.25)), -127, 127).astype(np.int8)


class SqliteVecBit(SqliteVec):
    """A bit a number, as vec_quantize_binary() makes it, nothing compared again."""

    name = "sqlite-vec, bit"
    largest = 100_000
    column = "bit[{}]"
    value = "vec_quantize_binary(?)"


class Faiss(Engine):
    packages = ("faiss-cpu",)

    def load(self) -> None:
        import faiss

        self.index = faiss.read_index(str(self.file))

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.search(query[None], K)[1][0].tolist()


class FaissFlat(Faiss):
    name = "FAISS Flat"
    largest = 1_000_000

    def build(self, vectors: np.ndarray) -> None:
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        for start in range(0, len(vectors), 50_000):
            index.add(np.array(vectors[start : start + 50_000]))
        faiss.write_index(index, str(self.file))


class FaissIVF(Faiss):
    """4 √n lists, trained on 50 vectors a list."""

    name = "FAISS IVF"
    settings = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    setting_name = "nprobe"
    largest = 1_000_000

    def build(self, vectors: np.ndarray) -> None:
        import faiss

        n, dimensions = vectors.shape
        lists = int(4 * n**0.5)
        quantizer = faiss.IndexFlatIP(dimensions)
        index = faiss.IndexIVFFlat(quantizer, dimensions, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(np.array(vectors[: 50 * lists]))  # they are in no order
        for start in range(0, n, 50_000):
            index.add(np.array(vectors[start : start + 50_000]))
        faiss.write_index(index, str(self.file))

    def tune(self, setting: int) -> None:
        self.index.nprobe = setting


class FaissHNSW(Faiss):
    name = "FAISS HNSW, M=32"
    settings = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768)
    setting_name = "efSearch"

    def build(self, vectors: np.ndarray) -> None:
        import faiss

        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        index.add(np.array(vectors))
        faiss.write_index(index, str(self.file))

    def tune(self, setting: int) -> None:
        self.index.hnsw.efSearch = setting


class Hnswlib(Engine):
    name = "hnswlib, M=32"
    packages = ("hnswlib",)
    settings = FaissHNSW.settings
    setting_name = "ef"
    dimensions = drawn.DIMENSIONS

    def build(self, vectors: np.ndarray) -> None:
        import hnswlib

        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), ef_construction=200, M=32)
        index.add_items(vectors)
        index.save_index(str(self.file))

    def load(self) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", self.dimensions)
        self.index.load_index(str(self.file))

    def tune(self, setting: int) -> None:
        self.index.set_ef(setting)

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.knn_query(query, K)[0][0].tolist()


class Usearch(Engine):
    name = "usearch, M=32"
    packages = ("usearch",)
    settings = FaissHNSW.settings
    setting_name = "expansion"

    def build(self, vectors: np.ndarray) -> None:
        from usearch.index import Index

        index = Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=32,
            expansion_add=200,
        )
        index.add(np.arange(len(vectors)), np.array(vectors))
        index.save(str(self.file))

    def load(self) -> None:
        from usearch.index import Index

        self.index = Index.restore(str(self.file))

    def tune(self, setting: int) -> None:
        self.index.expansion_search = setting

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.search(query, K).keys.tolist()


class Annoy(Engine):
    name = "Annoy, 50 trees"
    packages = ("annoy",)
    settings = (500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
    setting_name = "search_k"
    dimensions = drawn.DIMENSIONS

    def build(self, vectors: np.ndarray) -> None:
        from annoy import AnnoyIndex

        index = AnnoyIndex(vectors.shape[1], "angular")
        index.set_seed(1)
        for i, vector in enumerate(vectors):
            index.add_item(i, vector)
        index.build(50)
        index.save(str(self.file))

    def load(self) -> None:
        from annoy import AnnoyIndex

        self.index = AnnoyIndex(self.dimensions, "angular")
        self.index.load(str(self.file))

    def tune(self, setting: int) -> None:
        self.setting = setting

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.get_nns_by_vector(query, K, search_k=self.setting)


ENGINES: tuple[type[Engine], ...] = (
    Ours,
    OursIndexed,
    NumPy,
    SqliteVec,
    SqliteVecInt8,
    SqliteVecBit,
    FaissFlat,
    FaissIVF,
    FaissHNSW,
    Hnswlib,
    Usearch,
    Annoy,
)


# What happens in a process of its own


@dataclass(frozen=True)
class Files:
    """What the engines share: vectors (n, d), queries (q, d), true neighbours (q, K)."""

    vectors: Path
    queries: Path
    truth: Path


@dataclass(frozen=True)
class Built:
    seconds: float
    peak: float  # MB
    added: float  # MB of file


@dataclass(frozen=True)
class Warm:
    load: float  # seconds, file in the system's cache
    setting: int
    recall: float
    median: float  # milliseconds
    p90: float
    peak: float  # MB


@dataclass(frozen=True)
class Filtered:
    """A filter that keeps one row of 100."""

    sql: float  # milliseconds, median: the filter alone
    median: float  # milliseconds with the search
    p90: float
    recall: float
    lost: int  # results fewer than there should be, over all queries


def build(engine: Engine, files: Files) -> Built:
    before = engine.file.stat().st_size if engine.file.exists() else 0
    vectors = np.load(files.vectors, mmap_mode="r")
    started = time.perf_counter()
    engine.build(vectors)
    seconds = time.perf_counter() - started
    added = engine.file.stat().st_size - before
    return Built(seconds, _peak_memory(), added / 1e6)


def warm(engine: Engine, files: Files) -> Warm:
    queries, truth = np.load(files.queries), np.load(files.truth)
    common.remember(engine.file)
    started = time.perf_counter()
    engine.load()
    load = time.perf_counter() - started
    engine.tune(engine.settings[0])
    for _ in range(2):  # caches are warm, the index is kept
        engine.search(queries[-1])
    for setting in engine.settings:
        engine.tune(setting)
        found, times = _ask(engine.search, queries)
        recall = _recall(found, truth)
        if recall >= WANTED:
            break
    return Warm(load, setting, recall, *_middle_and_high(times), _peak_memory())


def cold(engine: Engine, files: Files, setting: int) -> float:
    """Seconds from opening the file, which is not in memory, to the first answer."""
    query = np.load(files.queries)[0]
    common.forget(engine.file)
    started = time.perf_counter()
    engine.load()
    engine.tune(setting)
    engine.search(query)
    return time.perf_counter() - started


def filtered(engine: Ours, files: Files) -> Filtered:
    queries = np.load(files.queries)
    vectors = np.load(files.vectors, mmap_mode="r")
    engine.load()
    categories = [i % 5 for i in range(len(queries))]  # rows i with i % 100 equal to it
    truth = np.empty((len(queries), K), int)
    for category in set(categories):
        rows = np.arange(category, len(vectors), common.CATEGORIES)
        own = [i for i, one in enumerate(categories) if one == category]
        truth[own] = rows[_nearest(queries[own], vectors[rows])]
    names = [f"c{category:02}" for category in categories]
    sql = f"select id from {common.TABLE} where category = ?"

    common.remember(engine.file)

    def resolve(name: str) -> None:
        engine.conn.execute(sql, (name,)).fetchall()

    engine.search(queries[-1], names[-1])
    found, times = _ask(engine.search, queries, names)
    half, high = _middle_and_high(times)
    return Filtered(
        sql=median(_milliseconds(resolve, name) for name in names),
        median=half,
        p90=high,
        recall=_recall(found, truth),
        lost=sum(K - len(ids) for ids in found),
    )


def _ask(search: Callable, *arguments: Iterable) -> tuple[list[list[int]], list[float]]:
    """Search with each of the arguments, within reason: what was found, milliseconds."""
    found: list[list[int]] = []
    times: list[float] = []
    for one in zip(*arguments, strict=True):
        started = time.perf_counter()
        found.append(search(*one))
        times.append((time.perf_counter() - started) * 1000)
        if sum(times) > PATIENCE * 1000:
            break
    return found, times


def _middle_and_high(times: list[float]) -> tuple[float, float]:
    """Median and 90th percentile."""
    return median(times), float(np.quantile(times, 0.9))


def _milliseconds(call: Callable, *arguments: object) -> float:
    started = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - started) * 1000


def _recall(found: list[list[int]], truth: np.ndarray) -> float:
    """Mean share of the true neighbours that were found."""
    asked = truth[: len(found)]
    shared = [len(set(a) & set(b)) for a, b in zip(found, asked.tolist(), strict=True)]
    return sum(shared) / asked.size


def _peak_memory() -> float:
    """The most memory that this process has had, in MB."""
    import resource

    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000
    except OSError:  # not Linux; bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """True neighbours, nearest first: int of shape (q, K)."""
    ids = np.empty((len(queries), 0), int)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), 20_000):
        block = vectors[start : start + 20_000]
        rows = np.broadcast_to(
            np.arange(start, start + len(block)), (len(queries), len(block))
        )
        scores = np.hstack([scores, queries @ block.T])
        ids = np.hstack([ids, rows])
        best = np.argsort(-scores, axis=1)[:, :K]
        scores, ids = (np.take_along_axis(a, best, 1) for a in (scores, ids))
    return ids


# Files


def drawn_files(work: Path, n: int) -> Files:
    """n drawn vectors with queries and answers, made unless they are there."""
    files = _files(work, str(n))
    if not files.vectors.exists():
        _say(f"Drawing {n:,} vectors …")
        drawn.write(drawn.real_model(), files.vectors, n, seed=2)
    if not files.queries.exists():
        drawn.write(drawn.real_model(), files.queries, QUERIES, seed=1)
    _write_truth(files)
    return files


def real_files(work: Path) -> Files:
    """Embeddings of the real photos; some are held out as queries."""
    features, _ = drawn.real_features()
    features = np.random.default_rng(0).permutation(features)
    files = _files(work, "real")
    np.save(files.queries, features[:QUERIES])
    np.save(files.vectors, features[QUERIES:])
    _write_truth(files)
    return files


def _files(work: Path, name: str) -> Files:
    parts = ("vectors", "queries", "truth")
    return Files(*(work / f"{part}-{name}.npy" for part in parts))


def _write_truth(files: Files) -> None:
    if (
        not files.truth.exists()
        or files.truth.stat().st_mtime < files.vectors.stat().st_mtime
    ):
        vectors = np.load(files.vectors, mmap_mode="r")
        np.save(files.truth, _nearest(np.load(files.queries), vectors))


# The programme


@dataclass(frozen=True)
class Result:
    """One engine over one set of vectors."""

    engine: str
    n: int
    built: Built
    warm: Warm
    cold: float  # seconds
    filtered: Filtered | None


def alone(function: Callable, *arguments: object) -> object:
    """Call it in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(kind: type[Engine], files: Files, n: int, file: Path) -> Result:
    engine = kind(file)
    if kind is not OursIndexed:
        file.unlink(missing_ok=True)
    built = alone(build, engine, files)
    searched = alone(warm, engine, files)
    first = alone(cold, engine, files, searched.setting)
    by_filter = alone(filtered, engine, files) if isinstance(engine, Ours) else None
    return Result(kind.name, n, built, searched, first, by_filter)


def from_the_shell(file: Path, pairs: int = 5) -> tuple[float, float]:
    """Seconds, medians: `datasette --version`; `similar` with the file not in memory."""
    command = [sys.executable, "-m", "datasette"]
    similar = ["image-similarity", "similar", str(file), common.TABLE, "7", "--json"]
    version_times, similar_times = [], []
    for _ in range(pairs):
        version_times.append(_milliseconds(_run, [*command, "--version"]) / 1000)
        common.forget(file)
        similar_times.append(_milliseconds(_run, [*command, *similar]) / 1000)
    return median(version_times), median(similar_times)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def compare(
    title: str, files: Files, work: Path, engines: list[type[Engine]], keep: bool
) -> Iterator[Result]:
    """Measure every engine over these vectors, printing a table as it goes."""
    n = len(np.load(files.vectors, mmap_mode="r"))
    print(f"\n### {title}\n")
    print(common.table(HEADER, []), flush=True)
    database = work / "ours.db"
    shell = None
    for kind in engines:
        if n > kind.largest:
            continue
        _say(f"{kind.name}, {n:,} …")
        file = database if issubclass(kind, Ours) else work / "engine"
        try:
            result = measure(kind, files, n, file)
        except (ImportError, RuntimeError) as error:
            print(f"| {kind.name} | {error} |", flush=True)
            continue
        print(_line(kind, result), flush=True)
        yield result
        if kind is OursIndexed or (kind is Ours and OursIndexed not in engines):
            shell = from_the_shell(file)
        if file != database and not keep:
            file.unlink()
    if shell:
        print(
            f"\nFrom the shell, file not in memory: `similar … --json` {shell[1]:.2f} s, "
            f"`datasette --version` {shell[0]:.2f} s"
        )
    if not keep:
        database.unlink(missing_ok=True)


HEADER = (
    "engine",
    "setting",
    "recall@10",
    "median ms",
    "p90 ms",
    "load s",
    "cold s",
    "build s",
    "build peak MB",
    "search peak MB",
    "file MB",
)


def _line(kind: type[Engine], result: Result) -> str:
    built, searched = result.built, result.warm
    setting = f"{kind.setting_name} {searched.setting}" if kind.setting_name else ""
    numbers = (
        f"{searched.recall:.3f}",
        f"{searched.median:.2f}",
        f"{searched.p90:.2f}",
        f"{searched.load:.2f}",
        f"{result.cold:.2f}",
        f"{built.seconds:.1f}",
        f"{built.peak:,.0f}",
        f"{searched.peak:,.0f}",
        f"{'+' if kind is OursIndexed else ''}{built.added:,.0f}",
    )
    return f"| {kind.name} | {setting} | {' | '.join(numbers)} |"


def _filters(results: list[Result]) -> str:
    header = (
        "engine",
        "vectors",
        "filter's SQL ms",
        "median ms",
        "p90 ms",
        "recall",
        "lost",
    )
    rows = [
        (
            result.engine,
            f"{result.n:,}",
            f"{one.sql:.2f}",
            f"{one.median:.2f}",
            f"{one.p90:.2f}",
            f"{one.recall:.3f}",
            one.lost,
        )
        for result in results
        if (one := result.filtered)
    ]
    return common.table(header, rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, action="append", default=[], metavar="N")
    parser.add_argument("--real", action="store_true", help="search in the real embeddings")
    parser.add_argument("--work", type=Path, required=True, help="folder for large files")
    parser.add_argument("--engine", action="append", help="only those whose name has this")
    parser.add_argument("--keep", action="store_true", help="keep what was built")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    wanted = [name.lower() for name in given.engine or [""]]
    engines = [e for e in ENGINES if any(name in e.name.lower() for name in wanted)]
    packages = [package for engine in engines for package in engine.packages]
    print(common.machine(*dict.fromkeys(packages)))
    results: list[Result] = []
    sets = [(f"{n:,} drawn vectors", n) for n in given.size]
    if given.real:
        sets.insert(0, ("Real photos", 0))
    for title, n in sets:
        files = drawn_files(given.work, n) if n else real_files(given.work)
        results += compare(title, files, given.work, engines, given.keep)
        if not given.keep:
            for file in asdict(files).values():
                file.unlink()
    if any(result.filtered for result in results):
        print(f"\n### A filter that keeps 1 % of the rows\n\n{_filters(results)}")
    out = given.work / "results.json"
    out.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
