"""Damaged files through the public readers: each is read or refused by name, and none kills, stalls or fills a process.

Cases are numbered; a number is always the same damage. They run in processes of their own, so that what kills one is
told by its number. By hand: `python tests/data/test_damaged.py TEMPLATES FIRST LAST`, in a folder for scratch files.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

if __name__ != "__main__":
    # A process of cases limits its memory before it takes in the library.
    from croplem_hf.data import SEN12MSFolder, ShardFolder, build_shards, open_source
    from croplem_hf.data.geotiff import read_geotiff
    from croplem_hf.errors import DataError

SECONDS = 20
"""A case that takes longer is killed; a whole one takes some milliseconds."""
MEGABYTES = 200
"""What a case may add to the memory of its process; the files have some kilobytes."""
ADDRESS_SPACE = 12 * 2**30
ODD_NUMBERS = (0, 1, 2, 3, 7, 255, 256, 4096, 30000, 65535, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1)
ODD_TEXTS = (
    "", " ", "nan", "inf", "-1", "1e999", "0x10", "None", "null", "..", ".", "/", "../../etc/passwd", "a\x00b",
    "é" * 40, "x" * 300, "y" * 200_000, '"', "'", ",", ";", "\t", "2021-13-45", "0000-00-00", "9999-12-31T23:59:60",
    "s3", "S2", "-", "B99", "2021-06-15T05:40+25:00", "\ud7ff", "9" * 400, "true", "1000",
    "/vsicurl/x", "/vsizip/x.zip", "con",
)  # fmt: skip
GRID = {"crs": "EPSG:32737", "transform": (10, 0, 375410, 0, -10, 8116740)}
WAYS = (
    {}, {}, {}, {"compress": "deflate"}, {"compress": "lzw", "predictor": 2}, {"compress": "zstd"},
    {"compress": "packbits"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"BIGTIFF": "YES"},
    {"ENDIANNESS": "BIG"}, {"interleave": "band"}, {"nodata": 0},
)  # fmt: skip
"""How rasters are written before they are damaged; most of those that exist are plain."""


class Broken(AssertionError):
    """A reader did what none may do."""


@dataclasses.dataclass
class Case:
    """What is damaged, the names of which an error must give one, and the ids that nothing was done to."""

    path: Path
    damage: str
    names: tuple[str, ...]
    good: tuple[str, ...] = ()
    same: dict[str, str] | None = None
    must_fail: bool = False
    labels: bool = False


# Templates: whole files, each small, so that damage hits what matters.


def make_templates(root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from croplem_hf.data import ShardFolder, build_shards

    rng = np.random.default_rng(0)
    for number, options in enumerate(WAYS):
        for patch in (30, 31):
            for kind, values in arrays(rng).items():
                path = root / f"patch{number}" / f"ROIs1158_spring_{kind}_1_p{patch}.tif"
                put(path, values, **({} if kind == "s1" and "predictor" in options else options))
        folder = root / f"images{number}"
        for name in ("f1", "f2"):
            values = arrays(rng)
            put(folder / f"{name}_s1.tif", values["s1"], **({} if "predictor" in options else options))
            put(folder / f"{name}_s2.tif", values["s2"], **options)
            put(folder / f"{name}_m.tif", (values["lc"][:1] > 12).astype(np.uint8), **options)
        lines = [f"{f}_{s}.tif,{s},2021-06-15,L1C,{f},Njoro" for f in ("f1", "f2") for s in ("s1", "s2")]
        lines = [line + (f",{line[:2]}_m.tif,0" if ",s2," in line else ",,") for line in lines]
        (folder / "metadata.csv").write_text("\n".join(["path,sensor,date,level,id,region,mask,offset", *lines]) + "\n")
    places = root / "places"
    shutil.copytree(root / "images0", places)
    header = "id,s1,s2,date,region,crop_type,area,s2_level,s2_offset"
    line = "{0},{0}_s1.tif,{0}_s2.tif,2021-06-15,Njoro,maize,1.5,L1C,0"
    (places / "metadata.csv").write_text("\n".join([header, line.format("f1"), line.format("f2")]) + "\n")
    columns = root / "columns"
    shutil.copytree(root / "images0", columns)
    table = pa.csv.read_csv(columns / "metadata.csv")
    (columns / "metadata.csv").unlink()
    pq.write_table(table, columns / "metadata.parquet")
    for number, codec in enumerate(("none", "snappy", "zstd")):
        pq.write_table(series(rng), root / f"series{number}.parquet", compression=codec, row_group_size=3)
    ids, names = [f"f{k}" for k in range(20)], ["maize", "wheat", "", "7"] * 5
    (root / "labels.csv").write_text("\n".join(["id,label", *map(",".join, zip(ids, names, strict=True))]) + "\n")
    pq.write_table(pa.table({"id": ids, "label": names}), root / "labels.parquet")
    build_shards(root / "patch0", root / "shards", workers=1, progress=False)
    shutil.rmtree(root / "shards" / ".build", ignore_errors=True)
    shards = ShardFolder(root / "shards")
    same = {id: digest(shards[i]) for i, id in enumerate(shards.ids)}
    (root / "same.json").write_text(json.dumps(same))
    return root


def arrays(rng) -> dict[str, np.ndarray]:
    s2 = rng.integers(300, 4000, (13, 8, 8)).astype(np.uint16)
    s2[10] = 15
    lc = rng.integers(1, 17, (4, 8, 8)).astype(np.uint8)
    return {"s1": rng.normal(-14, 3, (2, 8, 8)).astype(np.float32), "s2": s2, "lc": lc}


def put(path: Path, array: np.ndarray, **options) -> Path:
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(array), "height": array.shape[1], "width": array.shape[2]}
    profile |= {"dtype": array.dtype.name, "interleave": "pixel", "crs": GRID["crs"]}
    with rasterio.open(path, "w", **profile | {"transform": rasterio.Affine(*GRID["transform"])} | options) as raster:
        raster.write(array)
    return path


def series(rng):
    import pyarrow as pa

    rows = []
    for k in range(8):
        s2 = rng.integers(100, 6000, (4, 13)).astype(np.float32)
        s2[:, 10] = 12
        dates = [f"2019-{month:02d}-15" for month in (1, 3, 5, 7)]
        row = {"id": f"r{k}", "dates": dates, "s1": rng.normal(-14, 3, 8).astype(np.float32), "s2": s2.ravel()}
        rows.append(row | {"region": "Iran", "cropland": k % 2, "lon": 48.5, "s2_level": "L1C"})
    lists = {"dates": pa.list_(pa.string()), "s1": pa.list_(pa.float32()), "s2": pa.list_(pa.float32())}
    return pa.table({name: pa.array([row[name] for row in rows], lists.get(name)) for name in rows[0]})


def digest(sample) -> str:
    found = hashlib.sha256()
    for key in ("s1", "s1_valid", "s2", "s2_valid", "lc"):
        found.update(b"-" if sample[key] is None else sample[key].tobytes())
    return found.hexdigest()


# Damage to bytes.


def cut(rng, data: bytes) -> tuple[bytes, str]:
    places = [0, 1, 2, 4, 7, 8, 9, 16, len(data) - 1, len(data) - 4, len(data) - 8, int(rng.integers(len(data)))]
    places += tag_places(data)
    at = min(max(int(rng.choice(places)), 0), len(data) - 1)
    return data[:at], f"cut to {at} of {len(data)} bytes"


def flip(rng, data: bytes) -> tuple[bytes, str]:
    new = np.frombuffer(data, np.uint8).copy()
    # The beginning and the end hold what the rest is read by.
    zone = [(0, len(new)), (0, min(600, len(new))), (max(len(new) - 600, 0), len(new))][rng.integers(3)]
    places = rng.integers(*zone, rng.integers(1, 9))
    new[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
    return new.tobytes(), f"bytes {sorted(places.tolist())} flipped"


def blank(rng, data: bytes) -> tuple[bytes, str]:
    start, size = int(rng.integers(len(data))), int(rng.choice([4, 16, 64, 512, 4096]))
    fill = bytes([int(rng.choice([0, 255]))]) * len(data[start : start + size])
    return data[:start] + fill + data[start + size :], f"{len(fill)} bytes from {start} are {fill[0]}"


def shift(rng, data: bytes) -> tuple[bytes, str]:
    a, b, n = rng.integers(0, len(data), 3).tolist()
    if rng.random() < 0.5:
        return data[:a] + data[a + n % 64 :], f"{n % 64} bytes lost at {a}"
    return data[:a] + data[b : b + n] + data[a:], f"{n} bytes of {b} put in at {a}"


def other(rng, data: bytes) -> tuple[bytes, str]:
    texts = (
        b"", b"\n", b"<html><body>404 Not Found</body></html>", b"II*\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0",
        b"PAR1", b"PAR1PAR1", b"II*\0\x08\0\0\0\xff\xff", b"\x1f\x8b\x08" + data, b"version https://git-lfs.github.com/spec/v1\n",
        data + data, data[::-1], bytes(4096), b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "id,label\nä".encode("utf-16"),
        b"<VRTDataset rasterXSize='8' rasterYSize='8'><VRTRasterBand dataType='Byte' band='1'><SimpleSource>"
        b"<SourceFilename>/dev/zero</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>",
    )  # fmt: skip
    number = int(rng.integers(len(texts)))
    return texts[number], f"other content, number {number}"


def tag_places(data: bytes) -> list[int]:
    """Where the entries of the first directory of a TIFF start; its end comes last."""
    order = {b"II": "little", b"MM": "big"}.get(data[:2])
    if order is None or len(data) < 16:
        return []
    big = int.from_bytes(data[2:4], order) == 43
    start = int.from_bytes(data[8:16] if big else data[4:8], order)
    size, head = (20, 8) if big else (12, 2)
    count = int.from_bytes(data[start : start + head], order)
    return [start + head + k * size for k in range(min(count, 100) + 1)]


def patch_tag(rng, data: bytes) -> tuple[bytes, str]:
    """Another number in the directory of a TIFF: a tag, its type, its count or its value (or where that lies)."""
    places = tag_places(data)
    if len(places) < 2:
        return flip(rng, data)
    order, wide = ("little" if data[:2] == b"II" else "big"), 8 if places[1] - places[0] == 20 else 4
    new = bytearray(data)
    done = []
    for _ in range(rng.integers(1, 4)):
        entry = int(rng.choice(places[:-1]))
        at, size = [(0, 2), (2, 2), (4, wide), (4 + wide, wide), (4 + wide, wide), (4 + wide, 2)][rng.integers(6)]
        number = int(rng.choice([*ODD_NUMBERS, int(rng.integers(2**16)), len(data)])) % 256**size
        tag = int.from_bytes(data[entry : entry + 2], order)
        new[entry + at : entry + at + size] = number.to_bytes(size, order)
        done.append(f"tag {tag} +{at} = {number}")
    return bytes(new), ", ".join(done)


def patch_far(rng, data: bytes) -> tuple[bytes, str]:
    """Another number where the value of a tag lies outside the directory: strips, numbers of bits, keys of the grid."""
    places = tag_places(data)
    if len(places) < 2 or places[1] - places[0] == 20:
        return patch_tag(rng, data)
    order = "little" if data[:2] == b"II" else "big"
    entry = int(rng.choice(places[:-1]))
    tag, kind = (int.from_bytes(data[entry + k : entry + k + 2], order) for k in (0, 2))
    count, start = (int.from_bytes(data[entry + k : entry + k + 4], order) for k in (4, 8))
    size = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 11: 4, 12: 8}.get(kind, 1)
    if count * size <= 4 or start + count * size > len(data):
        return patch_tag(rng, data)
    at = start + size * int(rng.integers(count))
    odd = [0.0, np.nan, np.inf, -1.0, 1e300, 1e-300]
    raw = np.float64(rng.choice(odd)).tobytes() if kind == 12 else int(rng.choice(ODD_NUMBERS)).to_bytes(8, "little")
    return data[:at] + raw[:size] + data[at + size :], f"value of tag {tag} at {at} = {raw[:size].hex()}"


def patch_footer(rng, data: bytes) -> tuple[bytes, str]:
    """Another length of the footer of a Parquet file, or damage inside the footer."""
    size = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != b"PAR1" or rng.random() < 0.2:
        number = int(rng.choice([*ODD_NUMBERS, len(data), len(data) - 8, size + 1])) % 2**32
        return data[:-8] + number.to_bytes(4, "little") + data[-4:], f"length of the footer {number}"
    new = np.frombuffer(data, np.uint8).copy()
    places = len(new) - 8 - 1 - rng.integers(0, size, rng.integers(1, 5))
    new[places] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))], len(places))
    return new.tobytes(), f"bytes {sorted(places.tolist())} of the footer are {new[sorted(places)].tolist()}"


ANY = (cut, flip, flip, blank, shift, other)
TIFF = (*ANY, patch_tag, patch_tag, patch_tag, patch_tag, patch_far, patch_far)
PARQUET = (*ANY, patch_footer, patch_footer, patch_footer)


def damage(rng, path: Path, ways) -> str:
    way = ways[rng.integers(len(ways))]
    data, text = way(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {text}"


def spoil_cells(rng, path: Path) -> str:
    """Other texts in cells of a CSV table, or other lines."""
    rows = list(csv.reader(io.StringIO(path.read_text())))
    done = []
    for _ in range(rng.integers(1, 4)):
        k = int(rng.integers(len(rows)))
        c = int(rng.integers(len(rows[k]))) if rows[k] else 0
        what = rng.integers(6)
        if what < 4 and rows[k]:
            rows[k][c] = ODD_TEXTS[rng.integers(len(ODD_TEXTS))]
            done.append(f"line {k + 1} cell {c + 1} = {rows[k][c][:20]!r}")
        elif what == 4:
            rows.insert(k, list(rows[rng.integers(len(rows))]))
            done.append(f"another line {k + 1}")
        elif len(rows[k]) > 1:
            del rows[k][c]
            done.append(f"line {k + 1} lacks cell {c + 1}")
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    return f"{path.name}: {', '.join(done) or 'nothing'}"


def spoil_column(rng, path: Path) -> str:
    """A column of a Parquet table in another type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path, partitioning=None)
    n, c = len(table), int(rng.integers(table.num_columns))
    choices = (
        pa.nulls(n), pa.array([b"\xff\x00"] * n), pa.array([[1]] * n), pa.array([[[1.5]]] * n),
        pa.array([{"a": 1}] * n), pa.array([float("nan")] * n), pa.array([2**63 - 1] * n), pa.array([True] * n),
        pa.array([""] * n), pa.array([None, *["x"] * (n - 1)]), pa.array(["x"] * n).dictionary_encode(),
        pa.array([0] * n, pa.date32()),
        pa.array([2**62] * n, pa.timestamp("us")), pa.array([[]] * n, pa.list_(pa.float32())), pa.array([["x"]] * n),
        pa.array([[None, float("inf")]] * n, pa.list_(pa.float64())), pa.array([[b"\x80"]] * n), pa.array([-1e308] * n),
        pa.array([["2019-01-01"] * 4] * n), pa.array([[10**30]] * n, pa.list_(pa.decimal128(38, 0))),
    )  # fmt: skip
    number = int(rng.integers(len(choices)))
    name = table.column_names[c]
    if rng.random() < 0.2:
        table = table.append_column(str(rng.choice([*table.column_names, "extra"])), choices[number])
    else:
        table = table.set_column(c, name, choices[number])
    pq.write_table(table, path)
    return f"{path.name}: column {name} as {choices[number].type} ({number})"


# Families of cases.


def patch_case(rng, templates: Path, work: Path) -> Case:
    number = int(rng.integers(len(WAYS)))
    shutil.copytree(templates / f"patch{number}", work / "tree")
    kind = str(rng.choice(["s1", "s2", "lc"]))
    path = work / "tree" / f"ROIs1158_spring_{kind}_1_p30.tif"
    text = damage(rng, path, TIFF)
    plain = not WAYS[number] and ": cut to" in text
    return Case(work / "tree", f"{WAYS[number]} {text}", (path.name,), ("ROIs1158_spring_1_p31",), must_fail=plain)


def images_case(rng, templates: Path, work: Path) -> Case:
    number = int(rng.integers(len(WAYS)))
    shutil.copytree(templates / f"images{number}", work / "tree")
    path = work / "tree" / str(rng.choice(["f1_s1.tif", "f1_s2.tif", "f1_m.tif"]))
    text = damage(rng, path, TIFF)
    return Case(work / "tree", f"{WAYS[number]} {text}", (path.name, "f1"), ("f2",))


def table_case(rng, templates: Path, work: Path) -> Case:
    name = str(rng.choice(["images0", "places"]))
    shutil.copytree(templates / name, work / "tree")
    path = work / "tree" / "metadata.csv"
    text = spoil_cells(rng, path) if rng.random() < 0.7 else damage(rng, path, ANY)
    return Case(work / "tree", f"{name} {text}", (path.name, "tree"))


def columns_case(rng, templates: Path, work: Path) -> Case:
    shutil.copytree(templates / "columns", work / "tree")
    path = work / "tree" / "metadata.parquet"
    text = spoil_column(rng, path) if rng.random() < 0.4 else damage(rng, path, PARQUET)
    return Case(work / "tree", text, (path.name,))


def series_case(rng, templates: Path, work: Path) -> Case:
    path = work / "series.parquet"
    shutil.copy(templates / f"series{rng.integers(3)}.parquet", path)
    return Case(path, spoil_column(rng, path) if rng.random() < 0.3 else damage(rng, path, PARQUET), (path.name,))


def labels_case(rng, templates: Path, work: Path) -> Case:
    name = str(rng.choice(["labels.csv", "labels.parquet"]))
    path = work / name
    shutil.copy(templates / name, path)
    text = name.endswith(".csv")
    if rng.random() < 0.5:
        found = (spoil_cells if text else spoil_column)(rng, path)
    else:
        found = damage(rng, path, ANY if text else PARQUET)
    return Case(path, found, (name,), labels=True)


def shards_case(rng, templates: Path, work: Path) -> Case:
    shutil.copytree(templates / "shards", work / "shards")
    shards = sorted((work / "shards" / "data").iterdir())
    files = [work / "shards" / "index.parquet", work / "shards" / "manifest.json", *shards, *shards]
    path = files[rng.integers(len(files))]
    text = damage(rng, path, ANY if path.suffix == ".json" else PARQUET)
    same = json.loads((templates / "same.json").read_text()) if path in shards else None
    return Case(work / "shards", text, (path.name, str(work / "shards")), same=same)


FAMILIES = (
    patch_case, patch_case, patch_case, images_case, images_case, table_case, columns_case, series_case, labels_case,
    shards_case,
)  # fmt: skip


def read_case(case: Case) -> str:
    """ "read" or "refused".

    Raises:
        Broken: neither; another exception is a reader's own.
    """
    from croplem_hf.data import check_sample, open_source
    from croplem_hf.errors import CropLEMError
    from croplem_hf.labels import read_labels

    refused = []

    def attempt(get, *names):
        try:
            return get()
        except CropLEMError as error:
            if not any(name in str(error) for name in (*case.names, *names)):
                raise Broken(f"an error that names neither of {case.names + names}: {error}") from error
            refused.append(error)

    if case.labels:
        attempt(lambda: read_labels(case.path))
        return "refused" if refused else "read"
    source = attempt(lambda: open_source(case.path))
    if source is None:
        if case.good:
            raise Broken(f"the good items are lost: {refused[0]}")
        return "refused"
    attempt(source.layout)
    attempt(source.columns)
    for i, id in enumerate(source.ids):
        sample = attempt(lambda i=i: source[i], id)
        if sample is None:
            if id in case.good:
                raise Broken(f"{id} is whole, but refused: {refused[-1]}")
            continue
        try:
            check_sample(sample)
        except CropLEMError as error:
            raise Broken(f"a sample that is none: {error}") from error
        if case.same is not None and digest(sample) != case.same.get(id):
            raise Broken(f"{id}: other pixels than were stored")
    if missing := set(case.good).difference(source.ids):
        raise Broken(f"good items are missing: {missing}")
    if case.must_fail and not refused:
        raise Broken("a file that was cut short is read")
    return "refused" if refused else "read"


# The process of the cases, and the one that watches it.


def dies(rng, templates: Path, work: Path) -> Case:
    os.abort()


def stalls(rng, templates: Path, work: Path) -> Case:
    time.sleep(10 * SECONDS)


def fills(rng, templates: Path, work: Path) -> Case:
    np.ones(MEGABYTES * 5 // 4 * 2**17)
    raise Broken("after filling")


def raises(rng, templates: Path, work: Path) -> Case:
    raise OSError("bare")


WRONG = (dies, stalls, fills, raises)


def peak_memory(anew: bool = False) -> float:
    """MiB that this process has held at the most since it was last asked `anew`."""
    try:
        if anew:
            Path("/proc/self/clear_refs").write_text("5")
        # The peak of `getrusage` is that of the parent too.
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work_on(templates: Path, first: int, last: int, families, seconds: int) -> None:
    """Run cases and write two lines of JSON on stdout for each: before and after."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))
    # The default action ends the process even where Python's own handler would never get its turn.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("error")
    if families is FAMILIES:
        import croplem_hf.data.folder
        import croplem_hf.data.sen12ms
        import croplem_hf.data.series
        import croplem_hf.data.shards
        import croplem_hf.labels  # noqa: F401

        read_case(Case(templates / "patch3", "", ()))
    for number in range(first, last):
        shutil.rmtree("work", ignore_errors=True)
        os.mkdir("work")
        family = families[number % len(families)]
        begun = {"case": number, "family": family.__name__}
        print(json.dumps(begun), flush=True)
        memory, start = peak_memory(), time.perf_counter()
        signal.alarm(seconds)
        damage = ""
        try:
            case = family(np.random.default_rng([1, number]), templates, Path("work").absolute())
            damage = case.damage
            outcome, detail = read_case(case), ""
        except Broken as error:
            outcome, detail = "broken", str(error)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "croplem_hf" in f.filename]
            outcome, detail = "broken", f"{type(error).__name__}: {str(error)[:300]} at {' '.join(where[-3:])}"
        signal.alarm(0)
        grown = peak_memory() - memory
        if grown > MEGABYTES:
            outcome, detail = "broken", f"took {grown:.0f} MiB of memory. {detail}"
        about = {"damage": damage, "outcome": outcome, "detail": detail, "seconds": time.perf_counter() - start}
        print(json.dumps(begun | about | {"mebibytes": grown}), flush=True)


def run_cases(templates: Path, scratch: Path, count: int, *, wrong: bool = False, seconds: int = SECONDS) -> list[dict]:
    """What became of cases 0 to `count`, by two processes that are started anew where one dies."""
    halves = [(0, count // 2), (count // 2, count)]
    runs, found = [], []
    for k, (first, last) in enumerate(halves):
        folder = scratch / f"process{k}"
        folder.mkdir()
        runs.append((folder, first, last, _start(folder, templates, first, last, wrong, seconds)))
    while runs:
        folder, first, last, process = runs.pop(0)
        process.wait()
        lines = [json.loads(line) for line in (folder / f"{first}.out").read_text().splitlines()]
        errors = (folder / f"{first}.err").read_text()
        done = [line for line in lines if "outcome" in line]
        found += done
        reached = first + len(done)
        if len(lines) > 2 * len(done):
            signals = {-signal.SIGALRM: f"took more than {seconds} s"}
            text = signals.get(process.returncode, f"killed the process ({process.returncode}): {errors[-500:]}")
            found.append(lines[-1] | {"outcome": "broken", "damage": "", "detail": text, "seconds": 0, "mebibytes": 0})
            if reached + 1 < last:
                again = _start(folder, templates, reached + 1, last, wrong, seconds)
                runs.append((folder, reached + 1, last, again))
        elif errors or process.returncode:
            found.append({"case": reached, "family": "", "damage": "", "outcome": "broken", "detail": errors[-2000:]})
    return found


def _start(folder: Path, templates: Path, first: int, last: int, wrong: bool, seconds: int) -> subprocess.Popen:
    with open(folder / f"{first}.out", "wb") as out, open(folder / f"{first}.err", "wb") as err:
        arguments = [templates, first, last, seconds, *(["wrong"] if wrong else [])]
        package = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, __file__, *map(str, arguments)], cwd=folder, stdout=out, stderr=err,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def report(found: list[dict]) -> str:
    broken = [line for line in found if line["outcome"] == "broken"]
    lines = [f"{x['case']} {x['family']}: {x['damage']}\n    {x['detail']}" for x in broken[:20]]
    return f"{len(broken)} of {len(found)} cases\n" + "\n".join(lines)


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> Path:
    return make_templates(tmp_path_factory.mktemp("templates"))


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused_by_name(templates, tmp_path, count):
    found = run_cases(templates, tmp_path, count)
    assert not any(line["outcome"] == "broken" for line in found), report(found)
    assert sorted(line["case"] for line in found) == list(range(count))
    # Damage that no reader minds, or that none survives, would test little.
    counts = collections.Counter((line["family"], line["outcome"]) for line in found)
    for family in {line["family"] for line in found}:
        assert counts[family, "refused"] > counts[family, "read"] / 10 > 0, counts


def test_whole_files_are_read(templates):
    whole = [Case(path, "", ()) for path in sorted(templates.iterdir()) if path.name != "same.json"]
    assert len(whole) == 2 * len(WAYS) + 8
    for case in whole:
        case.labels = case.path.name.startswith("labels")
        assert read_case(case) == "read", case.path


@pytest.mark.parametrize("way", [0, 3, 8, 9])
def test_a_file_cut_anywhere_is_refused(templates, way):
    """At each byte of the header and near it, and here and there in the pixels."""
    for path in sorted((templates / f"patch{way}").glob("*_p30.tif")):
        data = path.read_bytes()
        for size in {*range(min(len(data), 560)), *range(560, len(data), 41), len(data) - 1}:
            with pytest.raises(DataError, match=path.name):
                read_geotiff(path, data=data[:size])


@pytest.mark.parametrize("tag", [256, 257, 277])
@pytest.mark.parametrize("number", [9, 10_000, 60_000, 2**31 - 1, 2**32 - 1])
def test_sizes_that_a_header_claims_are_not_allocated(templates, tag, number):
    """Width, height and bands; the file itself has some kilobytes."""
    for way in range(len(WAYS)):
        path = templates / f"patch{way}" / "ROIs1158_spring_s2_1_p30.tif"
        before = peak_memory(anew=True)
        tracemalloc.start()
        try:
            read_geotiff(path, data=claiming(path.read_bytes(), tag, number))
            # A tile holds more rows and columns than the image.
            assert "tiled" in WAYS[way] and number == 9 and tag != 277, path
        except DataError as error:
            assert str(path) in str(error)
        finally:
            used = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        grown = peak_memory() - before
        assert used < 20 * 2**20 and grown < 100, (path, used, grown)


def claiming(data: bytes, tag: int, number: int) -> bytes:
    """The same file with another number in a tag."""
    order, places, new = ("little" if data[:2] == b"II" else "big"), tag_places(data), bytearray(data)
    entry = next(at for at in places if int.from_bytes(data[at : at + 2], order) == tag)
    wide = 8 if places[1] - places[0] == 20 else 4
    new[entry + 2 : entry + 4] = (4).to_bytes(2, order)
    new[entry + 4 + wide : entry + 8 + wide] = number.to_bytes(4, order)
    return bytes(new)


def test_only_geotiff_is_read(templates, tmp_path):
    """Other formats may lead to other files and addresses."""
    good = templates / "patch0" / "ROIs1158_spring_lc_1_p30.tif"
    path = tmp_path / "ROIs1158_spring_lc_1_p30.tif"
    bands = "".join(
        f"<VRTRasterBand dataType='Byte' band='{n}'><SimpleSource><SourceFilename>{good}</SourceFilename>"
        f"<SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"
        for n in range(1, 5)
    )
    path.write_text(f"<VRTDataset rasterXSize='8' rasterYSize='8'>{bands}</VRTDataset>")
    with pytest.raises(DataError, match=f"{path}: not a readable raster"):
        read_geotiff(path)


def make_link(path: Path, target) -> None:
    path.unlink(missing_ok=True)
    os.symlink(target, path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


S1 = "ROIs1158_spring_s1_1_p30.tif"
STRANGE = {
    "a link to itself": ("loop", lambda path: make_link(path, path.name)),
    "a link to nowhere": ("nowhere", lambda path: make_link(path, "gone")),
    "a patch that links to itself": (S1, lambda path: make_link(path, path.name)),
    "a patch that links to nowhere": (S1, lambda path: make_link(path, "gone.tif")),
    "a folder with the name of a patch": (S1, make_folder),
    "a pipe with the name of a patch": (S1, make_pipe),
    "a device with the name of a patch": (S1, lambda path: make_link(path, "/dev/zero")),
}


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("what", STRANGE)
def test_what_is_no_file_is_left_out_and_named(templates, tmp_path, caplog, what, direct):
    name, make = STRANGE[what]
    root = Path(shutil.copytree(templates / "patch0", tmp_path / "tree"))
    make(root / name)
    source = SEN12MSFolder(root) if direct else open_source(root)
    assert source.ids == ["ROIs1158_spring_1_p30", "ROIs1158_spring_1_p31"]
    assert [sample["s1"] is None for sample in source] == [name == S1, False]
    assert f"{root / name}: left out" in caplog.text


def test_links_are_followed_once(templates, tmp_path, caplog):
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    shutil.copytree(templates / "patch0", tmp_path / "elsewhere")
    make_link(root / "data", tmp_path / "elsewhere")
    make_link(root / "again", "data")
    make_link(root / "sub" / "up", "..")
    make_link(tmp_path / "elsewhere" / "back", root)
    source = open_source(root)
    assert source.ids == ["ROIs1158_spring_1_p30", "ROIs1158_spring_1_p31"] and not caplog.text
    assert digest(source[0]) == digest(SEN12MSFolder(templates / "patch0")[0])


def test_a_folder_that_cannot_be_read_is_named(templates, tmp_path, caplog, monkeypatch):
    shut = tmp_path / "lost+found"
    shutil.copytree(templates / "patch0", tmp_path / "tree")
    shut.mkdir()
    whole = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: whole(path) if str(path) != str(shut) else refuse(path))
    assert len(SEN12MSFolder(tmp_path)) == 2 and f"{shut}: left out, the folder cannot be read" in caplog.text
    with pytest.raises(DataError, match=r"lost\+found: the folder cannot be read \(Permission denied\)"):
        SEN12MSFolder(shut)


def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_a_file_that_cannot_be_read_is_named(templates, monkeypatch):
    path = templates / "patch0" / S1
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=f"{path}: cannot be read"):
        read_geotiff(path)
    with pytest.raises(DataError, match="cannot be read|no such file"):
        read_geotiff("x" * 300)


def test_shards_are_built_of_what_is_whole(templates, tmp_path):
    rng, root = np.random.default_rng(3), Path(shutil.copytree(templates / "patch0", tmp_path / "tree"))
    for number, way in enumerate((cut, blank, other, patch_tag)):
        for path in sorted((templates / "patch0").glob("*_p30.tif")):
            shutil.copy(path, root / path.name.replace("_1_p30", f"_1_p4{number}"))
        bad = root / f"ROIs1158_spring_s2_1_p4{number}.tif"
        data = b""
        while data in (b"", bad.read_bytes()) or survives(bad, data):
            data, _ = way(rng, bad.read_bytes())
        bad.write_bytes(data)
    build_shards(root, tmp_path / "shards", workers=1, progress=False)
    shards = ShardFolder(tmp_path / "shards")
    assert sorted(shards.ids) == ["ROIs1158_spring_1_p30", "ROIs1158_spring_1_p31"]
    assert digest(shards[shards.ids.index("ROIs1158_spring_1_p30")]) == digest(SEN12MSFolder(templates / "patch0")[0])
    with open(tmp_path / "shards" / "skipped.csv", newline="") as handle:
        skipped = {row["id"]: row["reason"] for row in csv.DictReader(handle)}
    assert sorted(skipped) == [f"ROIs1158_spring_1_p4{number}" for number in range(4)]
    assert all(f"ROIs1158_spring_s2_1_p{id[-2:]}.tif" in reason for id, reason in skipped.items())


def survives(path: Path, data: bytes) -> bool:
    try:
        return len(read_geotiff(path, data=data)[0]) == 13
    except DataError:
        return False


def test_what_kills_stalls_or_fills_a_process_is_noticed(tmp_path):
    found = sorted(run_cases(tmp_path, tmp_path, 4, wrong=True, seconds=3), key=lambda line: line["case"])
    assert [line["outcome"] for line in found] == ["broken"] * 4
    expected = ("killed the process", "more than 3 s", "MiB of memory", "OSError: bare")
    for line, text in zip(found, expected, strict=True):
        assert text in line["detail"], found


if __name__ == "__main__":
    base, first, last, *rest = sys.argv[1:]
    families = WRONG if "wrong" in rest else FAMILIES
    work_on(Path(base), int(first), int(last), families, int(rest[0]) if rest else SECONDS)
    sys.stdout.flush()
    # Threads of libraries may still be at work; what becomes of them at the end of a process is not asked here.
    os._exit(0)
