"""Crop type of Kenyan fields from 400 labels: which fields to visit, and what the head is worth where none was visited.

Each of the four tiles is left out in turn: 400 labels are bought in the other three, and a head is tested on the tile
that no label comes from. They are chosen by the bandit, by the bandit that is told of the tile (its embeddings without
labels, `croplem suggest --target`), and at random. At the end one head is fitted on labels of all tiles, and the crop
of the fields without a label is predicted.

As it stands it invents fields in the layout of the real data (some three minutes on one core; its figures mean
nothing). For your own copy of Kenya CV4A (doi 10.34911/RDNT.DW605X, CC-BY-SA-4.0, any of its three layouts) give its
folder: 4,688 fields, a quarter of an hour. OUT keeps the embeddings: name another for other data.

    python examples/kenya_400_labels.py [KENYA_FOLDER] [--labels 400] [--out kenya]
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from croplem_hf import CoverageBandit, Embedder, KenyaFields, fit_head, generate_kenya, read_table
from croplem_hf.active import RandomSampling, replay
from croplem_hf.active.suggest import suggest
from croplem_hf.labels import column_labels, encode_labels


def strategies(there: np.ndarray) -> dict:
    """By name; `there` are embeddings of the place to be predicted."""
    return {
        "bandit": lambda seed: CoverageBandit(seed=seed),
        "told": lambda seed: CoverageBandit(target=there, seed=seed),
        "random": lambda seed: RandomSampling(seed=seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="Kenya CV4A (default: an invented copy)")
    parser.add_argument("--out", type=Path, default=Path("kenya"), help="folder to write")
    parser.add_argument("--labels", type=int, default=400, help="how many fields may be visited")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions of the comparison")
    parser.add_argument("--fields", type=int, default=1200, help="how many to invent")
    args = parser.parse_args()
    if args.folder is None:
        args.folder = generate_kenya(args.out / "data", fields=args.fields, tile_size=(200, 300))

    file = args.out / "fields.parquet"
    embedder = Embedder.from_pretrained("croplem/mae-s1s2")
    table = read_table(file) if file.exists() else embedder.embed_source(KenyaFields(args.folder), file)
    labels = column_labels(table, "crop_type")
    codes, names = encode_labels(labels)
    tiles = np.array([f"tile {number}" for number in table.metadata["tile"].to_pylist()])
    known = codes >= 0

    print(f"{known.sum()} labelled fields of {len(names)} crops; macro-F1 x 100 on a tile that gave no label")
    print("tile left out    tested   labels   bandit     told   random")
    rows = []
    for tile in np.unique(tiles):
        pool, test = np.flatnonzero(known & (tiles != tile)), np.flatnonzero(known & (tiles == tile))
        budget, choosers = min(args.labels, len(pool)), strategies(table.vectors[tiles == tile])
        records = replay(
            table.vectors, codes, choosers, pool=pool, test=test, budgets=[budget // 4, budget // 2, budget],
            seeds=range(args.seeds), regions=tiles, progress=True,
        )  # fmt: skip
        last = [record for record in records if record["n_labels"] == budget]
        rows.append([100 * np.mean([r["macro_f1"] for r in last if r["strategy"] == name]) for name in choosers])
        print(f"{tile:13} {len(test):9} {budget:8}" + "".join(f"{value:9.1f}" for value in rows[-1]))
    print(f"{'mean':32}" + "".join(f"{value:9.1f}" for value in np.mean(rows, axis=0)))

    # The head that is kept learns from all tiles; what it is worth stands above.
    picks = {pick["id"] for pick in suggest(table.select(known), [None] * known.sum(), min(args.labels, known.sum()))}
    head = fit_head(table, [label if name in picks else None for name, label in zip(table.ids, labels, strict=True)])
    head.save(args.out / "crop.head")
    unknown = np.flatnonzero(~known)
    chances = head.predict_proba(table.vectors[unknown])
    told = [table.ids[row] for row in unknown], head.classes_[chances.argmax(axis=1)], chances.max(axis=1).round(2)
    with open(args.out / "crops.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("id", "crop_type", "probability"), *zip(*told, strict=True)])
    print(f"{len(unknown)} fields without a label are told in {args.out / 'crops.csv'}")


if __name__ == "__main__":
    main()
