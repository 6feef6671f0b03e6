"""Arguments that the verbs of `croplem` on labels share, and the labelled table that they mean."""

import argparse
from pathlib import Path


def table_arguments(parser: argparse.ArgumentParser, labels_required: bool = True) -> None:
    parser.add_argument("embeddings", metavar="EMBEDDINGS", type=Path, help="embeddings table (.parquet)")
    group = parser.add_mutually_exclusive_group(required=labels_required)
    text = "CSV or Parquet with columns id and label, such as a filled sheet; may be repeated"
    group.add_argument("--labels", type=Path, action="append", metavar="LABELS", help=text)
    group.add_argument("--label-column", metavar="COLUMN", help="take labels from this column of EMBEDDINGS instead")
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="only rows that fit; may be repeated"
    )


def region_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", metavar="COLUMN", help="column of regions (default: region)")


def block_argument(parser: argparse.ArgumentParser) -> None:
    text = "column of spatial blocks, which are never split (default: block)"
    parser.add_argument("--block", metavar="COLUMN", help=text)


def labelled_table(args: argparse.Namespace):
    """-> the rows of the table that are asked for, and their labels; fills in the default columns."""
    from .labels import column_labels, column_values, match_labels, read_label_files, select_where
    from .table import read_table

    table = select_where(read_table(args.embeddings), args.where)
    for name in ("region", "block"):
        # A table need not have the column that goes by default, but one that is named.
        if getattr(args, name, None) is not None:
            column_values(table, getattr(args, name))
        elif hasattr(args, name):
            setattr(args, name, name)
    if args.label_column:
        return table, column_labels(table, args.label_column)
    return table, match_labels(table, read_label_files(args.labels or ()))


__all__ = ["block_argument", "labelled_table", "region_argument", "table_arguments"]
