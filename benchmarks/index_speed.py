"""Speed, recall and size of the index, beside exact FAISS, the index of `datasets` and scikit-learn, in one run.

    python benchmarks/index_speed.py --vectors ../shared/tools/make_vectors.py [--json FILE] [--large 10000000]

VECTORS is a Python file with `make_vectors(n, n_queries, seed)` -> unit vectors (n, D) and queries. Rounds of all are
interleaved, each of at least a second in batches of 1,000 queries, none of them twice. `--large N` also builds an index
of N vectors from a table on disk, in a process of its own, whose peak memory is what the system counts for it, the
mapped file included; the table takes 4 N D bytes in the working folder.

Keys: recall_at_10, speedup_vs_exact, bytes_per_vector_ratio (of float32) of the default, the same with `compact_` of
the other preset, and peak_rss_gb_1e7 (of --large).
"""

import argparse
import importlib.util
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from croplem_hf.index import EmbeddingIndex
from croplem_hf.table import EmbeddingsTable

K, QUERIES, THREADS, BLOCK = 10, 1000, 2, 250_000
BATCHES, LEAST_SECONDS = 20, 1.0
SKLEARN_QUERIES = 100


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true nearest that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]))


def rate(search: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> float:
    """Queries a second, of as many batches as a second takes: no short burst, and no batch a second time."""
    start, done = time.perf_counter(), 0
    for batch in batches:
        search(batch)
        done += len(batch)
        if time.perf_counter() - start > LEAST_SECONDS:
            break
    return done / (time.perf_counter() - start)


def build(vectors: np.ndarray, preset: str, folder: Path) -> tuple[EmbeddingIndex, float, float]:
    """Index as it is loaded from disk, seconds of building, and bytes of vectors and lists for each vector."""
    ids = [str(k) for k in range(len(vectors))]
    table = EmbeddingsTable(ids, vectors, pa.table({"row": range(len(ids))}), {})
    start = time.perf_counter()
    index = EmbeddingIndex.build(table, preset=preset)
    seconds = time.perf_counter() - start
    index.save(folder)
    held = [folder / name for name in ("vectors.npy", "vectors.faiss", "lists.faiss")]
    size = sum(path.stat().st_size for path in held if path.exists())
    return EmbeddingIndex.load(folder), seconds, size / len(vectors)


def small(make_vectors: Callable, count: int, rounds: int, folder: Path) -> dict:
    """The comparison on `count` vectors."""
    from datasets import Dataset
    from sklearn.neighbors import NearestNeighbors

    vectors, queries = make_vectors(count, BATCHES * QUERIES)
    dim = vectors.shape[1]
    batches = np.split(queries / np.linalg.norm(queries, axis=1, keepdims=True), BATCHES)
    queries = batches[0]
    exact = faiss.IndexFlatIP(dim)
    exact.add(vectors)
    truth = exact.search(queries, K)[1]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
    corpus = Dataset(pa.table({"embedding": flat})).with_format("numpy")
    corpus.add_faiss_index("embedding")
    brute = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute", n_jobs=THREADS).fit(vectors)
    ours = {preset: build(vectors, preset, folder / preset) for preset in ("default", "compact")}
    searches = {
        "exact FAISS": lambda batch: exact.search(batch, K),
        "datasets add_faiss_index": lambda batch: corpus.get_nearest_examples_batch("embedding", batch, K),
        "scikit-learn": lambda batch: brute.kneighbors(batch),
        **{preset: (lambda batch, index=index: index.query(batch, k=K)) for preset, (index, *_) in ours.items()},
    }
    rates = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            few = [batches[0][:SKLEARN_QUERIES]] if name == "scikit-learn" else batches
            rates[name].append(rate(search, few))
    base = np.array(rates["exact FAISS"])
    out = {}
    print(f"{count} x {dim}, {THREADS} threads, median of {rounds} interleaved rounds; ratio to exact (10 to 90 %)")
    for name, values in rates.items():
        ratio = np.array(values) / base
        low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
        line = f"{name:26}{np.median(values):10.0f} queries/s  {middle:6.1f} ({low:.1f} to {high:.1f})"
        if name in ours:
            index, seconds, size = ours[name]
            found = recall(index.query(queries, k=K).rows, truth)
            line += f"  recall@10 {found:.4f}  {size:.0f} bytes a vector  built in {seconds:.0f} s  {index.settings}"
            prefix = "" if name == "default" else f"{name}_"
            out |= {
                f"{prefix}recall_at_10": found, f"{prefix}speedup_vs_exact": float(middle),
                f"{prefix}bytes_per_vector_ratio": size / (4 * dim), f"{prefix}build_s": seconds,
            }  # fmt: skip
        print(line, flush=True)
    return out


def write_table(make_vectors: Callable, count: int, path: Path) -> np.ndarray:
    """A table of `count` vectors, a block in memory at a time; gives queries near some of the first."""
    writer = queries = None
    for start in range(0, count, BLOCK):
        vectors, near = make_vectors(min(BLOCK, count - start), BATCHES * QUERIES, seed=start)
        queries = near if queries is None else queries
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table = pa.table({"id": [str(start + k) for k in range(len(vectors))], "embedding": flat})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table, row_group_size=8192)
    writer.close()
    return queries


def _large(path: Path, folder: Path, queries: np.ndarray, answer) -> None:
    faiss.omp_set_num_threads(THREADS)
    start = time.perf_counter()
    index = EmbeddingIndex.build_file(path, folder)
    seconds = time.perf_counter() - start
    speed = rate(lambda batch: index.query(batch, k=K), np.split(queries, BATCHES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    truth = index._scan(queries[:100].astype(np.float32), K)[1]
    found = recall(index.query(queries[:100], k=K).rows, truth)
    answer.put({"build_s": seconds, "queries_per_s": speed, "recall_at_10": found, "peak_rss_gb": peak})


def large(make_vectors: Callable, count: int, folder: Path) -> dict:
    """Build and search an index of `count` vectors in a process of its own."""
    queries = write_table(make_vectors, count, folder / "table.parquet")
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_large, args=(folder / "table.parquet", folder / "large", queries, answer))
    process.start()
    while process.is_alive() and answer.empty():
        time.sleep(1)
    if answer.empty():
        raise SystemExit("the process of the large index ended without an answer")
    found = answer.get()
    process.join()
    print(f"{count} vectors from a table on disk: {found}", flush=True)
    return {"peak_rss_gb_1e7": found["peak_rss_gb"], "large": found | {"vectors": count}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True, help="Python file with make_vectors")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, metavar="N", help="also N vectors on disk, such as 10000000")
    parser.add_argument("--work", type=Path, help="folder for tables and indexes (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("vectors", args.vectors)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    faiss.omp_set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        out = small(module.make_vectors, args.count, args.rounds, Path(folder))
        if args.large:
            out |= large(module.make_vectors, args.large, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
