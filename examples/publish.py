"""Publishing an index and a head on the Hugging Face Hub, with cards; by default it only shows what would be sent.

As it stands it invents imagery and publishes nothing; some 20 s on one core. For your own: put your table and labels in
the place of the sample, your name in --owner, your licence in --licence, log in (`hf auth login`) and give --send. A
push is private unless --public; data whose column `licence` forbids it is refused. The same on the command line:

    croplem push index patches.index OWNER/patches-index --licence cc-by-4.0 --dry-run

    python examples/publish.py [--owner me] [--licence cc-by-4.0] [--send] [--out publish]
"""

import argparse
from pathlib import Path

from croplem_hf import (
    Embedder,
    EmbeddingIndex,
    evaluate,
    fit_head,
    generate_sen12ms,
    match_labels,
    open_source,
    push,
    read_labels,
)
from croplem_hf.hub import prepare

NOTES = "Made of invented imagery by `examples/publish.py`, to show how things are published: no use otherwise."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--owner", default="me", help="your name or organisation on the Hub")
    parser.add_argument("--licence", default="cc-by-4.0", help="of what you publish")
    parser.add_argument("--send", action="store_true", help="do push; without it this is a dry run")
    parser.add_argument("--public", action="store_true", help="let all see it")
    parser.add_argument("--out", type=Path, default=Path("publish"), help="folder to write")
    args = parser.parse_args()

    images = generate_sen12ms(args.out / "sample", scenes=3, patches_per_scene=20, size=32)
    table = Embedder.from_pretrained("croplem/mae-s1s2").embed_source(open_source(images), args.out / "patches.parquet")
    labels = match_labels(table, read_labels(images / "labels.csv"))
    EmbeddingIndex.build(table).save(args.out / "patches.index")
    fit_head(table, labels).save(args.out / "cropland.head")
    # The card of a head takes its figures from a report; how well it does elsewhere belongs there.
    evaluate(table, labels, args.out / "report", seeds=0, n_bootstrap=200)

    figures = [f"invented={args.out / 'report'}"]
    for kind, path, evaluations in (("index", "patches.index", []), ("head", "cropland.head", figures)):
        repo = f"{args.owner}/example-{kind}"
        options = {"licence": args.licence, "notes": NOTES, "evaluations": evaluations}
        if args.send:
            print(f"{kind}: {push(kind, args.out / path, repo, public=args.public, **options)}")
        else:
            print(prepare(kind, args.out / path, repo, **options).describe())


if __name__ == "__main__":
    main()
