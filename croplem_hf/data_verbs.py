"""Verbs of `croplem data`. Every one imports what it needs when it runs."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from .errors import DataError
from .label_verbs import seed_number


def add_verbs(verb: Callable, common: argparse.ArgumentParser) -> None:
    """Add `data` with its verbs; `verb(name, run, help, **kwargs)` adds a subparser, `common` are options of all."""
    data = verb("data", None, "Work with data: `download`, `check` and `build` SEN12MS, or invent a `sample`.")
    verbs = data.add_subparsers(dest="data_verb", metavar="WHAT", required=True)

    def data_verb(name: str, run: Callable, text: str, **kwargs) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, parents=[common], **kwargs)
        sub.set_defaults(run=run)
        return sub

    _add_sample(data_verb)
    _add_build(data_verb)
    _add_download(data_verb)
    _add_check(data_verb)


_SAMPLE_OPTIONS = {
    "sen12ms": {"scenes": 8, "patches": 16, "size": 256, "clouds": 0.0, "defects": False},
    "kenya": {"fields": 240, "clouds": 0.25, "defects": False},
    "eurosat": {"patches": 20, "size": 64},
}


def _add_sample(data_verb: Callable) -> None:
    text = "Write an invented data set in the layout of a real one, to try things out without a download."
    sample = data_verb("sample", _sample, text)
    sample.set_defaults(run=lambda args: _sample(args, sample.error))
    sample.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    sample.add_argument("--layout", choices=tuple(_SAMPLE_OPTIONS), default="sen12ms", help="default sen12ms")
    sample.add_argument("--scenes", type=int, help="sen12ms: how many places, 1 to 8 (default 8)")
    sample.add_argument("--patches", type=int, help="patches of each place (default 16), or class of eurosat (20)")
    sample.add_argument("--fields", type=int, help="kenya: how many fields (default 240)")
    sample.add_argument("--size", type=int, help="pixels along a side of a patch (default: sen12ms 256, eurosat 64)")
    text = "share under cloud: of every second place of sen12ms (default 0), of every date of kenya (default 0.25)"
    sample.add_argument("--clouds", type=float, help=text)
    sample.add_argument("--defects", action="store_true", default=None, help="plant damaged items (not eurosat)")
    sample.add_argument("--seed", type=seed_number, default=0, help="of all that is random (default 0)")


def _sample(args: argparse.Namespace, usage_error: Callable[[str], None]) -> None:
    options = _SAMPLE_OPTIONS[args.layout]
    for name in ("scenes", "patches", "fields", "size", "clouds", "defects"):
        if getattr(args, name) is not None and name not in options:
            usage_error(f"--{name} does not go with --layout {args.layout}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise DataError(f"{args.out}: exists and is not empty; give the name of a new folder")
    chosen = options | {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    published = None
    if args.layout == "sen12ms":
        from .data import SEN12MSFolder
        from .data.synthetic import DEFECTS, PUBLISHED_MEAN, PUBLISHED_STD, damaged_ids, generate_sen12ms

        chosen["patches_per_scene"] = chosen.pop("patches")
        chosen["defects"] = list(DEFECTS) if chosen["defects"] else False
        root = generate_sen12ms(args.out, seed=args.seed, **chosen)
        print(f"{len(SEN12MSFolder(root))} invented patches (no real place) in {root}, labels in {root / 'labels.csv'}")
        # What is damaged would drown the figures of the rest.
        source, published = SEN12MSFolder(root, skip=damaged_ids(root)), (PUBLISHED_MEAN, PUBLISHED_STD)
    elif args.layout == "eurosat":
        from .data.eurosat import EuroSATFolder
        from .data.synthetic_eurosat import PUBLISHED_MEAN, PUBLISHED_STD, generate_eurosat

        root = generate_eurosat(args.out, seed=args.seed, per_class=chosen["patches"], size=chosen["size"])
        source = EuroSATFolder(root)
        nan = (float("nan"),) * 2
        published = (*nan, *PUBLISHED_MEAN), (*nan, *PUBLISHED_STD)
        print(f"{len(source)} invented patches (no real place) of 10 classes in {root}")
    else:
        from .data.kenya import KenyaFields
        from .data.synthetic_kenya import generate_kenya

        root = generate_kenya(args.out, seed=args.seed, **chosen)
        source = KenyaFields(root)
        print(f"{len(source)} invented fields (no real place) in {root}; the published data has 4,688")
    if chosen.get("defects") and (root / "defects.csv").is_file():
        print(f"planted defects are listed in {root / 'defects.csv'}")
    _print_bands(source, published)
    if args.layout == "kenya":
        _print_fields(source)
    if args.layout == "sen12ms":
        print("published: SEN12MS; of B01, B09 and B10 SSL4EO-S12, as SEN12MS has none")


def _print_fields(source) -> None:
    """Share of the classes among labelled fields, withheld labels, and sizes of fields, beside the published ones."""
    import numpy as np

    from .data.kenya import CROPS
    from .data.synthetic_kenya import FIELD_COUNTS, PUBLISHED_FIELDS, PUBLISHED_PIXELS, TEST_SHARE

    columns = source.columns()
    crops, pixels = columns["crop_type"], columns["area_px"].astype(float)
    labelled = sum(crop is not None for crop in crops)
    print("class                     share   published")
    for crop, count in zip(CROPS.values(), FIELD_COUNTS, strict=True):
        share = sum(crops == crop) / max(labelled, 1)
        print(f"{crop:22}{100 * share:7.1f} %{100 * count / sum(FIELD_COUNTS):9.1f} %")
    print(f"{'label withheld':22}{100 * (1 - labelled / len(crops)):7.1f} %{100 * TEST_SHARE:9.1f} %")
    found, published = pixels.mean(), PUBLISHED_PIXELS / PUBLISHED_FIELDS
    print(f"pixels of a field: mean {found:.1f} (published {published:.1f}), median {np.median(pixels):g} (about 10)")


def _print_bands(source, published: tuple | None) -> None:
    """Mean and deviation of each band as measured, beside the published ones where there are some."""
    from .data.synthetic import measure_bands
    from .sensors import S1_BANDS, S2_BANDS

    found = measure_bands(source)
    print("band      mean       std" + ("   published mean, std" if published else ""))
    for k, band in enumerate((*S1_BANDS, *S2_BANDS)):
        if band in found:
            line = f"{band:4}{found[band][0]:10.1f}{found[band][1]:10.1f}"
            print(line + (f"{published[0][k]:17.1f}{published[1][k]:10.1f}" if published else ""))


def _add_build(data_verb: Callable) -> None:
    text = "Build Parquet shards, a dataset of the Hub as it lies there, from a SEN12MS tree or its archives."
    build = data_verb(
        "build", _build, text, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""A build that was cut off goes on where it stopped when the same command is given again, and seasons
can be added later. Items that cannot be used are listed in OUT/skipped.csv.

examples:
  croplem data build SEN12MS/ shards                                  # an unpacked tree
  croplem data build downloads/ shards --seasons summer --limit 10000 # the .tar.gz archives, not unpacked
  croplem data build SEN12MS/ shards --findings findings.parquet --verify""",
    )  # fmt: skip
    build.add_argument("src", metavar="SRC", help="a SEN12MS tree, a folder of its archives, or other images")
    build.add_argument("out", metavar="OUT", type=Path, help="folder of shards to write")
    build.add_argument("--seasons", type=_words, help="such as summer,fall (default: all that are there)")
    build.add_argument("--limit", type=int, metavar="N", help="only N samples, evenly over all scenes")
    build.add_argument("--sensors", type=_words, help="only these: s1, s2 or s1,s2")
    build.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    build.add_argument("--findings", type=Path, help="table of `croplem data check`; its errors are left out")
    text = "disk to use while archives are joined (default 50)"
    build.add_argument("--spill-gb", type=_gigabytes, default=50, metavar="GB", help=text)
    build.add_argument("--verify", action="store_true", help="then read everything back and compare the checksums")
    build.add_argument("--quiet", action="store_true", help="no progress bar")


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _build(args: argparse.Namespace) -> int:
    from .data.build import build_shards
    from .data.shards import verify_shards

    manifest = build_shards(
        args.src, args.out, seasons=args.seasons, limit=args.limit, sensors=args.sensors, findings=args.findings,
        workers=args.workers, spill_bytes=int(args.spill_gb * 2**30), progress=not args.quiet,
    )  # fmt: skip
    splits = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    skipped = f"; {manifest['skipped']} items skipped, listed in {args.out / 'skipped.csv'}"
    print(f"{splits} in {len(manifest['shards'])} shards in {args.out}{skipped if manifest['skipped'] else ''}")
    wrong = 0
    for name, problem in verify_shards(args.out) if args.verify else ():
        wrong += 1
        print(f"{name}: {problem}")
    if args.verify and not wrong:
        print("verified: every shard has its SHA-256, every raster its checksum")
    return 3 if wrong else 0


def _add_check(data_verb: Callable) -> None:
    text = "Open every file of SRC, read every pixel, and say what is wrong: damage, units, grids, partners, clouds."
    check = data_verb(
        "check", _check, text, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""An error is an item that cannot be used, a warning one to look at. `croplem data build --findings` and
`load_sen12ms(findings=...)` leave out the items with errors.

exit code: 0 no error (there may be warnings), 3 errors were found, 1 SRC cannot be checked, 130 interrupted

examples:
  croplem data check SEN12MS/ --out findings.parquet
  croplem data check shards                              # the checksums too""",
    )  # fmt: skip
    check.add_argument("src", metavar="SRC", help="a SEN12MS tree, a folder of shards, or any other source")
    check.add_argument("--out", type=Path, metavar="FINDINGS", help="table of all findings to write (.parquet)")
    check.add_argument("--seasons", type=_words, help="such as summer,fall (default: all that are there)")
    check.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    check.add_argument("--json", action="store_true", help="print the counts as JSON instead of a summary")
    check.add_argument("--quiet", action="store_true", help="no progress bar")


def _check(args: argparse.Namespace) -> int:
    from .data.check import about_findings, check_source, summarise_findings, write_findings

    if args.out and args.out.is_dir():
        raise DataError(f"{args.out}: is a folder; give the name of a file to write, such as findings.parquet")
    table = check_source(args.src, workers=args.workers, seasons=args.seasons, progress=not args.quiet)
    if args.out:
        write_findings(table, args.out)
    about = about_findings(table)
    print(json.dumps(about, indent=1) if args.json else summarise_findings(table))
    return 3 if about["errors"] else 0



def _add_download(data_verb: Callable) -> None:
    text = "Fetch the archives of SEN12MS into OUT: 12 files, 510 GB in all. Goes on where it was cut off, checks MD5."
    download = data_verb(
        "download", _download, text, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""Another address than that of mediaTUM may stand in the environment variable CROPLEM_SEN12MS_URL.
mediaTUM also offers rsync (rsync://m1474000@dataserv.ub.tum.de/m1474000, password m1474000); archives that it fetched
are checked when this command is run on their folder.

examples:
  croplem data download archives --seasons summer
  croplem data download archives --seasons spring,fall --kinds s1,s2""",
    )  # fmt: skip
    download.add_argument("out", metavar="OUT", type=Path, help="folder for the archives")
    download.add_argument("--seasons", type=_words, help="such as summer,fall (default: all four)")
    download.add_argument("--kinds", type=_words, help="some of s1,s2,lc (default: all three)")
    download.add_argument("--url", metavar="BASE", help="what the name of a file is put behind")
    download.add_argument("--quiet", action="store_true", help="no progress bar")


def _download(args: argparse.Namespace) -> None:
    from .data.download import download_sen12ms

    paths = download_sen12ms(
        args.out, seasons=args.seasons, kinds=args.kinds, url=args.url, progress=not args.quiet
    )
    print(f"{len(paths)} files, whole, in {args.out}")


__all__ = ["add_verbs"]
