"""`croplem demo`: the whole chain on an invented sample, from imagery to a map and a report."""

import csv
import json
import logging
import os
import time
from pathlib import Path

import numpy as np

from .active import CoverageBandit, RandomSampling, StratifiedRandomSampling, replay
from .active.suggest import suggest
from .data import generate_scene, generate_sen12ms, open_scene, open_source
from .data.geotiff import read_geotiff
from .data.synthetic import PLACES
from .demo_report import write_demo_report
from .embedding import Embedder
from .errors import DataError
from .heads import fit_head
from .index import EmbeddingIndex
from .labels import encode_labels, match_labels, read_labels
from .mapping import map_scene
from .pictures import draw_similar
from .resolver import packaged_path
from .table import EmbeddingsTable, read_table
from .training import SourceConfig, TrainingConfig, train

logger = logging.getLogger(__name__)

SIZE, PATCHES = 64, 64
HELD_OUT = "kenya"
"""Place whose patches are in no training: not of the encoder, not of the head. It is the first of `PLACES`."""
SCENE_SIZE, STRIDE = 512, 8
STEPS, BATCH = 80, 32
BUDGET, ROUND, LOCAL = 100, 20, 20
"""Labels bought in the other places, labels a round, and labels bought in the held-out place at the end."""
BUDGETS, SEEDS = (10, 20, 40, 60, 80, 100, 150, 200), range(10)
QUERIES, NEIGHBOURS = 4, 5


def run_demo(out: str | os.PathLike, *, seed: int = 0) -> dict:
    """Run the chain: sample, pretraining, embeddings, index, label choice, head, map, report.

    What is finished is not made again: the same call goes on where an earlier one was cut off.

    Args:
        out: folder for all that is made.
        seed: of the invented sample and all that is random.

    Returns:
        What was made and where, see the return statement; `in_words` says it.

    Raises:
        DataError: `out` holds a demo of another seed.
    """
    out, began = Path(out), time.monotonic()
    _claim(out, seed)
    images, scene = out / "sen12ms", out / "scene"
    with _step("1/7 sample"):
        if not (out / "sample.done").exists():
            generate_sen12ms(
                images, seed=seed, scenes=len(PLACES), patches_per_scene=PATCHES, size=SIZE, clouds=0.2, defects=True
            )
            # Another seed: other ground of the held-out place than its patches.
            generate_scene(scene, HELD_OUT, size=SCENE_SIZE, seed=seed + 1, clouds=0.05)
            (out / "sample.done").touch()
    held_out = PLACES[HELD_OUT].scene
    with _step("2/7 pretraining"):
        _pretrain(images, out / "pretraining", held_out, seed)
    embedder = Embedder.from_pretrained(out / "pretraining" / "model")
    source = open_source(images)
    with _step("3/7 embeddings"):
        file = out / "embeddings.parquet"
        table = read_table(file) if file.exists() else embedder.embed_source(source, file, progress=False)
    with _step("4/7 index and similar patches"):
        index = EmbeddingIndex.build(table)
        index.save(out / "index")
        queries = [str(table.ids[row]) for row in np.linspace(5, len(table) - 40, QUERIES).astype(int)]
        draw_similar(source, queries, index.query(ids=queries, k=NEIGHBOURS), out / "similar.png")
    truth = match_labels(table, read_labels(images / "labels.csv"))
    regions = np.array(table.metadata["region"].to_pylist())
    pool, test = np.flatnonzero(regions != held_out), np.flatnonzero(regions == held_out)
    with _step("5/7 label choice, replayed"):
        records = _replay(table, truth, regions, pool, test)
    with _step("6/7 heads on chosen labels, and their maps"):
        y = _buy(table, np.full(len(table), None, object), truth, pool, BUDGET, out, seed)
        heads = {"no local label": fit_head(table, y)}
        y = _buy(table, y, truth, test, LOCAL, out, seed)
        heads[f"{LOCAL} local labels"] = head = fit_head(table, y)
        _write_labels(table, y, out / "labels.csv")
        head.save(out / "cropland.head")
        maps = {}
        for name, one in heads.items():
            path = map_scene(open_scene(scene), embedder, one, out / "map.tif", stride=STRIDE, progress=False)
            maps[name] = read_geotiff(path)[0][0]
    with _step("7/7 report"):
        right = write_demo_report(
            out, table=table, truth=truth, regions=regions, held_out=held_out, labelled=y, heads=heads, maps=maps,
            records=records, scene=open_scene(scene).read(),
            cropland=read_geotiff(scene / "cropland.tif")[0][0].astype(bool),
        )  # fmt: skip
    return {
        "out": out, "images": images, "patches": len(source), "skipped": table.info.get("skipped", 0),
        "model": out / "pretraining" / "model", "embeddings": file, "rows": len(table),
        "dim": table.vectors.shape[1], "index": out / "index", "head": out / "cropland.head", "map": out / "map.tif",
        "right": right, "report": out / "report.html", "minutes": round((time.monotonic() - began) / 60, 1),
    }  # fmt: skip


def in_words(made: dict) -> str:
    """What `run_demo` gives, as text."""
    return "\n".join(
        [
            f"Made in {made['minutes']:.1f} minutes from an invented sample: no real place, no conclusion about any.",
            f"  images       {made['images']}  {made['patches']} patches of {len(PLACES)} places; {made['skipped']} "
            "broken and skipped",
            f"  model        {made['model']}  {STEPS} steps on from the packaged checkpoint",
            f"  embeddings   {made['embeddings']}  {made['rows']} x {made['dim']}",
            f"  index        {made['index']}",
            f"  head         {made['head']}  on {BUDGET + LOCAL} chosen labels, {LOCAL} of the mapped place",
            f"  map          {made['map']}  {made['right']:.0%} of its pixels are right",
            f"  report       {made['report']}  open it in a browser",
        ]
    )


def _claim(out: Path, seed: int) -> None:
    """Mark a folder as this demo's, or refuse one of another seed."""
    about = out / "demo.json"
    if about.exists():
        try:
            found = json.loads(about.read_text())["seed"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{about}: is damaged; remove the folder, or give another") from error
        if found != seed:
            raise DataError(f"{out}: holds a demo of seed {found}, not {seed}; give another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is no demo; give the name of a new folder")
    out.mkdir(parents=True, exist_ok=True)
    partial = about.with_name(about.name + ".tmp")
    partial.write_text(json.dumps({"seed": seed}))
    os.replace(partial, about)


class _step:
    """Log what is being done, and afterwards how long it took."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        logger.info("%s ...", self.name)
        self.began = time.monotonic()

    def __exit__(self, kind, error, trace):
        if kind is None:
            logger.info("    done in %.0f s", time.monotonic() - self.began)


def _pretrain(images: Path, out: Path, held_out: str, seed: int) -> None:
    """Go on from the packaged checkpoint for some steps, on all places but the held-out one."""
    if (out / "model" / "model.safetensors").exists():
        return
    scenes = [place.scene for place in PLACES.values() if place.scene != held_out]
    config = TrainingConfig(
        sources=[SourceConfig(path=str(images), where={"scene": scenes})], out=str(out), init_from=str(packaged_path()),
        seed=seed, steps=STEPS, batch_size=BATCH, learning_rate=3e-4, warmup_steps=20, max_tokens=128, num_workers=1,
        checkpoint_every=40, log_every=20, picture_every=STEPS,
    )  # fmt: skip
    if train(config) != "finished":
        raise KeyboardInterrupt


def _replay(
    table: EmbeddingsTable, truth: np.ndarray, regions: np.ndarray, pool: np.ndarray, test: np.ndarray
) -> list[dict]:
    codes, _ = encode_labels(truth)
    strategies = {
        "bandit": lambda s: CoverageBandit(seed=s),
        "stratified random": lambda s: StratifiedRandomSampling(seed=s),
        "random": lambda s: RandomSampling(seed=s),
    }
    return replay(
        table.vectors, codes, strategies, pool=pool, test=test, budgets=BUDGETS, seeds=SEEDS, regions=regions
    )  # fmt: skip


def _buy(
    table: EmbeddingsTable, y: np.ndarray, truth: np.ndarray, pool: np.ndarray, budget: int, out: Path, seed: int
) -> np.ndarray:
    """Buy labels of rows of `pool` in rounds, as a campaign would: suggest, label, suggest again -> y with them."""
    state = out / "campaign.safetensors"
    state.unlink(missing_ok=True)
    part, y = table.select(pool), y.copy()
    row_of = {name: row for row, name in enumerate(table.ids)}
    for _ in range(budget // ROUND):
        picks = suggest(part, y[pool], ROUND, seed=seed, state=state, out=out / "next.csv")
        for pick in picks:
            y[row_of[pick["id"]]] = truth[row_of[pick["id"]]]
    return y


def _write_labels(table: EmbeddingsTable, y: np.ndarray, path: Path) -> None:
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w", newline="") as handle:
        rows = [(name, label) for name, label in zip(table.ids, y, strict=True) if label is not None]
        csv.writer(handle).writerows([("id", "label"), *rows])
    os.replace(partial, path)


__all__ = ["HELD_OUT", "in_words", "run_demo"]
