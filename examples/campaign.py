"""A labelling campaign of several rounds: what is not chosen by chance cannot be tested on, so the test comes first.

A validation sample is drawn at random before anything else and its labels are fetched; then every round asks for the
next places, learns from the labels that came, and is tested on the sample. All state lies on disk: the sheets of the
rounds, the bandit's memory, the embeddings. Stop it anywhere; the same command goes on.

As it stands it labels an invented sample by its own truth, the "oracle"; half a minute on one core. For your own data
give SRC (anything that `croplem embed` takes), fill in the column `label` of the sheet that it asks for, and start it
again.

    python examples/campaign.py [SRC] [--rounds 4] [--batch 10] [--validation 40] [--out campaign]
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from croplem_hf import Embedder, fit_head, generate_sen12ms, match_labels, open_source, read_labels, read_table
from croplem_hf.active.suggest import draw_validation, suggest
from croplem_hf.data.files import write_aside
from croplem_hf.evaluation.design import read_design
from croplem_hf.labels import read_label_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("src", nargs="?", help="imagery, in any layout (default: an invented sample)")
    parser.add_argument("--out", type=Path, default=Path("campaign"), help="folder of the campaign")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=10, help="labels a round")
    parser.add_argument("--validation", type=int, default=40, help="places drawn at random to test on")
    args = parser.parse_args()
    oracle = {}
    if args.src is None:
        args.src = args.out / "sample"
        if not (args.src / "labels.csv").exists():
            generate_sen12ms(args.src, scenes=4, patches_per_scene=40, size=64)
        oracle = read_labels(args.src / "labels.csv")

    file = args.out / "embeddings.parquet"
    embedder = Embedder.from_pretrained("croplem/mae-s1s2")
    source = open_source(args.src)
    table = read_table(file) if file.exists() else embedder.embed_source(source, file)
    if not set(table.ids) <= set(source.ids):
        parser.error(f"{args.out} holds a campaign over other imagery; name another folder with --out")
    sample = args.out / "validation.csv"
    if not sample.exists():
        draw_validation(table, [None] * len(table), args.validation, out=sample)
    if not filled(sample, oracle):
        return
    truth, weights = match_labels(table, read_labels(sample)), read_design(sample, table.ids).weights
    test = np.array([label is not None for label in truth])

    sheets = []
    for number in range(1, args.rounds + 1):
        sheet = args.out / f"round{number}.csv"
        if not sheet.exists():
            y = match_labels(table, read_label_files(sheets)) if sheets else [None] * len(table)
            suggest(table, y, args.batch, exclude=read_labels(sample), state=args.out / "bandit.state", out=sheet)
        if not filled(sheet, oracle):
            return
        sheets.append(sheet)
        head = fit_head(table, match_labels(table, read_label_files(sheets)))
        right = np.average(head.predict(table.vectors[test]) == truth[test], weights=weights[test])
        print(f"round {number}: {head.n_labels_.sum()} labels, {right:.0%} of the region right")
    head.save(args.out / "head")
    print(f"head in {args.out / 'head'}, sheets in {args.out}")


def filled(sheet: Path, oracle: dict[str, str]) -> bool:
    """Whether the sheet has its labels; those that the oracle knows are written into it."""
    with open(sheet, newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows if oracle else ():
        row["label"] = oracle[row["id"]]
    if oracle:
        with write_aside(sheet) as aside, open(aside, "w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if not all(row["label"] for row in rows):
        print(f"fill in the column label of {sheet}, then start this again")
        return False
    return True


if __name__ == "__main__":
    main()
