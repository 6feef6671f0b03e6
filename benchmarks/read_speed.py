"""How fast SEN12MS patches are read: Parquet shards, loose GeoTIFF, and loose GeoTIFF through torchgeo.

    pip install -c constraints.txt -e '.[bench]'         # torchgeo brings much along: an environment of its own is wise
    python benchmarks/read_speed.py --json read_speed.json

Patches are the complete pairs on land of --data, copied under other numbers into a tree as the archives unpack, so the
files are what the real ones are: uncompressed, pixel-interleaved, in strips of one to four rows. Land cover comes from
the one real raster there is, since torchgeo's `SEN12MS` reads it always; so do the other two here. All readers deliver
every band of S1 and S2 at full size, and what they deliver is compared before anything is timed. Rounds are
interleaved, one thread each; a rate is patches per second of CPU time, with the files in the page cache. Peak memory is
that of a process of its own that reads every patch once.

Keys of the JSON: `shards_vs_torchgeo`, `geotiff_vs_torchgeo` (ratios of medians), `shard_bytes_ratio` (S1 and S2 in the
shards, metadata included, over the GeoTIFF files they came from), `peak_rss_mb`, and the table they come from.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numcodecs
import numpy as np
import pyarrow.parquet as pq

from croplem_hf.data import SEN12MSFolder
from croplem_hf.data.build import build_shards
from croplem_hf.data.geotiff import read_geotiff, write_geotiff
from croplem_hf.data.shards import ShardFolder

SEASONS = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "real" / "sen12ms"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="a SEN12MS folder with S1 + S2 pairs and land cover")
    parser.add_argument("--pairs", nargs="*", default=["ROIs1970_fall_139_p839", "ROIs2017_winter_112_p797"])
    parser.add_argument("--patches", type=int, default=48, help="patches in the tree (default 48)")
    parser.add_argument("--rounds", type=int, default=9, help="timed passes over them (default 9)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peak", choices=("shards", "geotiff"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak:
        source = ShardFolder(args.data) if args.peak == "shards" else SEN12MSFolder(args.data)
        for i in range(len(source)):
            source[i]
        # Not getrusage: its peak includes the parent's at the fork.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(make_tree(args.data, args.pairs, args.patches, Path(folder, "tree")), args.rounds)
    figures["codecs"] = codecs(args.data, args.pairs)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))


def make_tree(data: Path, pairs: list[str], patches: int, root: Path) -> Path:
    """A tree of `patches` copies of the pairs, with the lists of patches that torchgeo wants."""
    source = SEN12MSFolder(data, labels=False)
    cover = next(read_geotiff(path)[0] for path in sorted(data.rglob("*_lc_*_p*.tif")))
    names = []
    for season in SEASONS:
        Path(root, season).mkdir(parents=True)
    for k in range(patches):
        id = pairs[k % len(pairs)]
        paths = source.paths(source.ids.index(id))
        info = read_geotiff(paths["s1"])[1]
        season, scene = id.rpartition("_p")[0].rsplit("_", 1)
        for kind in ("s1", "s2", "lc"):
            path = root / season / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p{k}.tif"
            if kind == "lc":
                write_geotiff(path, cover, crs=info.crs, transform=info.transform)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(paths[kind].read_bytes())
        names.append(f"{season}_s2_{scene}_p{k}.tif")
    for split in ("train", "test"):
        Path(root, f"{split}_list.txt").write_text("\n".join(names) + "\n")
    return root


def measure(root: Path, rounds: int) -> dict:
    """Figures of the three readers over one tree."""
    torchgeo = import_torchgeo()
    shards = root.parent / "shards"
    build_shards(root, shards, workers=1, progress=False)
    geotiff, packed, theirs = SEN12MSFolder(root), ShardFolder(shards), torchgeo.datasets.SEN12MS(str(root), "train")
    order = [geotiff.ids.index(name.replace("_s2_", "_")[:-4]) for name in theirs.ids]
    place = {id: i for i, id in enumerate(packed.ids)}
    for k, i in enumerate(order):
        image, ours, stored = theirs[k]["image"].numpy(), geotiff[i], packed[place[geotiff.ids[i]]]
        for sample in (ours, stored):
            if not np.array_equal(image, np.concatenate([sample["s1"][0], sample["s2"][0].astype(np.float32)])):
                raise SystemExit(f"{geotiff.ids[i]}: the readers do not agree")

    def walk(source, count: int) -> Callable[[], None]:
        def run() -> None:
            for i in range(count):
                source[i]

        return run

    readers = {name: walk(source, len(order)) for name, source in
               (("torchgeo", theirs), ("geotiff", geotiff), ("shards", packed))}  # fmt: skip
    seconds = {name: [] for name in readers}
    for _ in range(rounds):
        for name, run in readers.items():
            start = time.process_time()
            run()
            seconds[name].append((time.process_time() - start) / len(order))
    rate = {name: 1 / float(np.median(values)) for name, values in seconds.items()}
    spread = {
        name: [round(float(np.quantile(np.divide(seconds["torchgeo"], values), q)), 2) for q in (0.1, 0.9)]
        for name, values in seconds.items()
        if name != "torchgeo"
    }
    return {
        "shards_vs_torchgeo": round(rate["shards"] / rate["torchgeo"], 2),
        "geotiff_vs_torchgeo": round(rate["geotiff"] / rate["torchgeo"], 2),
        "ratios_10_to_90_percent_of_rounds": spread,
        "shard_bytes_ratio": round(shard_bytes(shards) / tree_bytes(root), 4),
        "peak_rss_mb": {name: peak(name, path) for name, path in (("shards", shards), ("geotiff", root))},
        "patches_per_cpu_second": {name: round(value, 1) for name, value in rate.items()},
        "patches": len(order), "rounds": rounds, "torchgeo": torchgeo.__version__, "numpy": np.__version__,
    }  # fmt: skip


def import_torchgeo():
    """The package, with one thread for torch."""
    import torch

    torch.set_num_threads(1)
    # PyPI's torchvision is built for CUDA and finds its operators nowhere beside a CPU build of torch. Its import asks
    # for two of them; reading patches needs none, so their declaration will do.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchgeo.datasets
    except ImportError as error:
        raise SystemExit(f"torchgeo cannot be imported ({error}); install the extra [bench]") from error
    torchgeo.operators = operators  # they go with the object
    return torchgeo


def shard_bytes(shards: Path) -> int:
    """Bytes of all columns but land cover, and of the files around them."""
    total = 0
    for path in Path(shards, "data").glob("*.parquet"):
        metadata = pq.read_metadata(path)
        total += path.stat().st_size
        for g in range(metadata.num_row_groups):
            for c in range(metadata.num_columns):
                column = metadata.row_group(g).column(c)
                total -= column.total_compressed_size if column.path_in_schema.split(".")[0] == "lc" else 0
    return total


def tree_bytes(root: Path) -> int:
    return sum(path.stat().st_size for kind in ("s1", "s2") for path in root.rglob(f"*_{kind}_*.tif"))


def peak(name: str, path: Path) -> float:
    """Megabytes that a process needs to read everything, its libraries included."""
    command = [sys.executable, __file__, "--peak", name, "--data", str(path)]
    return round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)


def codecs(data: Path, pairs: list[str]) -> dict:
    """Share of the raw bytes and decoded patches a CPU-second of several codecs, by sensor."""
    source = SEN12MSFolder(data, labels=False)
    out = {}
    for kind in ("s2", "s1"):
        arrays = [read_geotiff(source.paths(source.ids.index(id))[kind])[0] for id in pairs]
        raw = sum(array.nbytes for array in arrays)
        blosc = {
            f"blosc {name} {level} {'bit' if shuffle == 2 else 'byte'}-shuffled": numcodecs.Blosc(name, level, shuffle)
            for name, levels in (("lz4", (5, 9)), ("lz4hc", (5, 9)), ("zstd", (1, 3, 5)))
            for level in levels
            for shuffle in (1, 2)
        }
        zstd, gzip = numcodecs.Zstd(3), numcodecs.Zlib(6)
        for name, codec in (blosc | {"zstd 3": zstd, "deflate 6": gzip, "raw": None}).items():
            packed = [codec.encode(array) if codec else array.tobytes() for array in arrays]
            into = [np.empty_like(array) for array in arrays]
            for array, data_, target in zip(arrays, packed, into, strict=True):
                _decode(codec, data_, target)
                assert target.tobytes() == array.tobytes()
            times = []
            for _ in range(15):
                start = time.process_time()
                for data_, target in zip(packed, into, strict=True):
                    _decode(codec, data_, target)
                times.append((time.process_time() - start) / len(arrays))
            share, rate = sum(map(len, packed)) / raw, 1 / float(np.median(times))
            out[f"{kind} {name}"] = {"share": round(share, 3), "patches_per_cpu_second": round(rate)}
    return out


def _decode(codec, data: bytes, into: np.ndarray) -> None:
    if codec is None:
        into[...] = np.frombuffer(data, into.dtype).reshape(into.shape)
    else:
        codec.decode(data, into)


if __name__ == "__main__":
    numcodecs.blosc.use_threads = False
    main()
