"""Verbs of `croplem data`. Every one imports what it needs when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .cli_parts import Answer, Verbs, number, seed_number, share, whole_number
from .errors import DataError


def add_verbs(verbs: Verbs) -> None:
    """Add `data` with its verbs."""
    below = verbs.group("data", "get, check and build SEN12MS, or invent a sample",
                        "Work with data: `download`, `check` and `build` SEN12MS, or invent a `sample`.")
    _add_sample(below)
    _add_build(below)
    _add_download(below)
    _add_check(below)


_SAMPLE_OPTIONS = {
    "sen12ms": {"scenes": 8, "patches": 16, "size": 256, "clouds": 0.0, "defects": False},
    "kenya": {"fields": 240, "clouds": 0.25, "defects": False},
    "eurosat": {"patches": 20, "size": 64},
}


def _add_sample(verbs: Verbs) -> None:
    sample = verbs.add(
        "sample", None, "an invented data set in the layout of a real one",
        "Write an invented data set in the layout of a real one, to try things out without a download.",
        examples=["croplem data sample sample", "croplem data sample kenya --layout kenya --fields 50"],
        keys={"out": "folder", "layout": "as asked for", "items": "patches or fields in it",
              "labels": "CSV of their labels, or null", "defects": "CSV of the planted defects, or null",
              "bands": "mean and std of each band as measured, with the published ones, null where there are none"},
    )  # fmt: skip
    sample.set_defaults(run=lambda args: _sample(args, sample.error))
    sample.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    sample.add_argument("--layout", choices=tuple(_SAMPLE_OPTIONS), default="sen12ms", help="default sen12ms")
    sample.add_argument("--scenes", type=whole_number, help="sen12ms: how many places, 1 to 8 (default 8)")
    text = "patches of each place (default 16), or class of eurosat (20)"
    sample.add_argument("--patches", type=whole_number, help=text)
    sample.add_argument("--fields", type=whole_number, help="kenya: how many fields (default 240)")
    text = "pixels along a side of a patch (default: sen12ms 256, eurosat 64)"
    sample.add_argument("--size", type=whole_number, help=text)
    text = "share under cloud: of every second place of sen12ms (default 0), of every date of kenya (default 0.25)"
    sample.add_argument("--clouds", type=share, help=text)
    sample.add_argument("--defects", action="store_true", default=None, help="plant damaged items (not eurosat)")
    sample.add_argument("--seed", type=seed_number, default=0, help="of all that is random (default 0)")


def _sample(args: argparse.Namespace, usage_error: Callable[[str], None]) -> Answer:
    from .data.files import write_folder_aside

    options = _SAMPLE_OPTIONS[args.layout]
    for name in ("scenes", "patches", "fields", "size", "clouds", "defects"):
        if getattr(args, name) is not None and name not in options:
            usage_error(f"--{name} does not go with --layout {args.layout}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise DataError(f"{args.out}: exists and is not empty; give the name of a new folder")
    chosen = options | {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    root, published, labels, defects = args.out, None, None, None
    if args.layout == "sen12ms":
        from .data import SEN12MSFolder
        from .data.synthetic import DEFECTS, PUBLISHED_MEAN, PUBLISHED_STD, damaged_ids, generate_sen12ms

        chosen["patches_per_scene"] = chosen.pop("patches")
        chosen["defects"] = list(DEFECTS) if chosen["defects"] else False
        with write_folder_aside(root) as aside:
            generate_sen12ms(aside, seed=args.seed, **chosen)
        items, labels = len(SEN12MSFolder(root)), root / "labels.csv"
        lines = [f"{items} invented patches (no real place) in {root}, labels in {labels}"]
        # What is damaged would drown the figures of the rest.
        source, published = SEN12MSFolder(root, skip=damaged_ids(root)), (PUBLISHED_MEAN, PUBLISHED_STD)
    elif args.layout == "eurosat":
        from .data.eurosat import EuroSATFolder
        from .data.synthetic_eurosat import PUBLISHED_MEAN, PUBLISHED_STD, generate_eurosat

        with write_folder_aside(root) as aside:
            generate_eurosat(aside, seed=args.seed, per_class=chosen["patches"], size=chosen["size"])
        source = EuroSATFolder(root)
        items, nan = len(source), (float("nan"),) * 2
        published = (*nan, *PUBLISHED_MEAN), (*nan, *PUBLISHED_STD)
        lines = [f"{items} invented patches (no real place) of 10 classes in {root}"]
    else:
        from .data.kenya import KenyaFields
        from .data.synthetic_kenya import generate_kenya

        with write_folder_aside(root) as aside:
            generate_kenya(aside, seed=args.seed, **chosen)
        source = KenyaFields(root)
        items = len(source)
        lines = [f"{items} invented fields (no real place) in {root}; the published data has 4,688"]
    if chosen.get("defects") and (root / "defects.csv").is_file():
        defects = root / "defects.csv"
        lines.append(f"planted defects are listed in {defects}")
    bands = _bands(source, published)
    lines.append("band      mean       std" + ("   published mean, std" if published else ""))
    lines += [_band_line(name, band, published is not None) for name, band in bands.items()]
    if args.layout == "kenya":
        lines += _field_lines(source)
    if args.layout == "sen12ms":
        lines.append("published: SEN12MS; of B01, B09 and B10 SSL4EO-S12, as SEN12MS has none")
    facts = {"out": root, "layout": args.layout, "items": items, "labels": labels, "defects": defects, "bands": bands}
    return Answer(facts, "\n".join(lines))


def _field_lines(source) -> list[str]:
    """Share of the classes among labelled fields, withheld labels, and sizes of fields, beside the published ones."""
    import numpy as np

    from .data.kenya import CROPS
    from .data.synthetic_kenya import FIELD_COUNTS, PUBLISHED_FIELDS, PUBLISHED_PIXELS, TEST_SHARE

    columns = source.columns()
    crops, pixels = columns["crop_type"], columns["area_px"].astype(float)
    labelled = sum(crop is not None for crop in crops)
    lines = ["class                     share   published"]
    for crop, count in zip(CROPS.values(), FIELD_COUNTS, strict=True):
        share = sum(crops == crop) / max(labelled, 1)
        lines.append(f"{crop:22}{100 * share:7.1f} %{100 * count / sum(FIELD_COUNTS):9.1f} %")
    lines.append(f"{'label withheld':22}{100 * (1 - labelled / len(crops)):7.1f} %{100 * TEST_SHARE:9.1f} %")
    found, published = pixels.mean(), PUBLISHED_PIXELS / PUBLISHED_FIELDS
    middle = np.median(pixels)
    lines.append(f"pixels of a field: mean {found:.1f} (published {published:.1f}), median {middle:g} (about 10)")
    return lines


def _bands(source, published: tuple | None) -> dict[str, dict]:
    """Mean and deviation of each band as measured, and the published ones where there are some."""
    from .data.synthetic import measure_bands
    from .sensors import S1_BANDS, S2_BANDS

    found, bands = measure_bands(source), {}
    for k, band in enumerate((*S1_BANDS, *S2_BANDS)):
        if band in found:
            bands[band] = {"mean": found[band][0], "std": found[band][1]}
            bands[band] |= {f"published_{key}": published[n][k] if published else None
                            for n, key in enumerate(("mean", "std"))}  # fmt: skip
    return bands


def _band_line(name: str, band: dict, published: bool) -> str:
    line = f"{name:4}{band['mean']:10.1f}{band['std']:10.1f}"
    return line + (f"{band['published_mean']:17.1f}{band['published_std']:10.1f}" if published else "")


def _add_build(verbs: Verbs) -> None:
    build = verbs.add(
        "build", _build, "Parquet shards of a SEN12MS tree or its archives",
        "Build Parquet shards, a dataset of the Hub as it lies there, from a SEN12MS tree or its archives.",
        notes="A build that was cut off goes on where it stopped when the same command is given again, and seasons "
        "can be added later. Items that cannot be used are listed in OUT/skipped.csv.",
        examples=["croplem data build SEN12MS/ shards                                  # an unpacked tree",
                  "croplem data build downloads/ shards --seasons summer --limit 10000 # archives, not unpacked",
                  "croplem data build SEN12MS/ shards --findings findings.parquet --verify"],
        keys={"out": "folder", "shards": "how many", "splits": "samples by split", "skipped": "items left out",
              "skipped_list": "CSV that lists them, or null",
              "wrong": "what --verify found, each a `name` and a `problem`; null without it"},
    )  # fmt: skip
    build.add_argument("src", metavar="SRC", help="a SEN12MS tree, a folder of its archives, or other images")
    build.add_argument("out", metavar="OUT", type=Path, help="folder of shards to write")
    build.add_argument("--seasons", type=_words, help="such as summer,fall (default: all that are there)")
    build.add_argument("--limit", type=whole_number, metavar="N", help="only N samples, evenly over all scenes")
    build.add_argument("--sensors", type=_words, help="only these: s1, s2 or s1,s2")
    build.add_argument("--workers", type=whole_number, metavar="N", help="processes (default: one a core)")
    build.add_argument("--findings", type=Path, help="table of `croplem data check`; its errors are left out")
    text = "disk to use while archives are joined (default 50)"
    build.add_argument("--spill-gb", type=_gigabytes, default=50, metavar="GB", help=text)
    build.add_argument("--verify", action="store_true", help="then read everything back and compare the checksums")
    build.add_argument("--quiet", action="store_true", help="no progress bar")


def _gigabytes(text: str) -> float:
    if not (value := number(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _build(args: argparse.Namespace) -> Answer:
    from .data.build import build_shards
    from .data.shards import verify_shards

    manifest = build_shards(
        args.src, args.out, seasons=args.seasons, limit=args.limit, sensors=args.sensors, findings=args.findings,
        workers=args.workers, spill_bytes=int(args.spill_gb * 2**30), progress=not args.quiet,
    )  # fmt: skip
    splits = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    listed = args.out / "skipped.csv" if manifest["skipped"] else None
    skipped = f"; {manifest['skipped']} items skipped, listed in {listed}" if listed else ""
    lines, wrong = [f"{splits} in {len(manifest['shards'])} shards in {args.out}{skipped}"], None
    if args.verify:
        wrong = [{"name": name, "problem": problem} for name, problem in verify_shards(args.out)]
        lines += [f"{one['name']}: {one['problem']}" for one in wrong]
        lines += [] if wrong else ["verified: every shard has its SHA-256, every raster its checksum"]
    facts = {"out": args.out, "shards": len(manifest["shards"]), "splits": manifest["splits"]}
    facts |= {"skipped": manifest["skipped"], "skipped_list": listed, "wrong": wrong}
    return Answer(facts, "\n".join(lines), 3 if wrong else 0)


def _add_check(verbs: Verbs) -> None:
    check = verbs.add(
        "check", _check, "what is wrong with a data set",
        "Open every file of SRC, read every pixel, and say what is wrong: damage, units, grids, partners, clouds.",
        notes="An error is an item that cannot be used, a warning one to look at. `croplem data build --findings` and "
        "`load_sen12ms(findings=...)` leave out the items with errors.\n\n"
        "exit code: 0 no error (there may be warnings), 3 errors were found, 1 SRC cannot be checked, 130 interrupted",
        examples=["croplem data check SEN12MS/ --out findings.parquet",
                  "croplem data check shards                              # the checksums too"],
        keys={"source": "what was checked", "seasons": "as asked for", "version": "of the library",
              "time": "when", "seconds": "that it took", "items": "how many", "items_with_errors": "of them",
              "errors": "how many", "warnings": "how many", "kinds": "how many by kind, such as `error truncated`"},
    )  # fmt: skip
    check.add_argument("src", metavar="SRC", help="a SEN12MS tree, a folder of shards, or any other source")
    check.add_argument("--out", type=Path, metavar="FINDINGS", help="table of all findings to write (.parquet)")
    check.add_argument("--seasons", type=_words, help="such as summer,fall (default: all that are there)")
    check.add_argument("--workers", type=whole_number, metavar="N", help="processes (default: one a core)")
    check.add_argument("--quiet", action="store_true", help="no progress bar")


def _check(args: argparse.Namespace) -> Answer:
    from .data.check import about_findings, check_replaceable, check_source, summarise_findings, write_findings
    from .data.files import check_ending

    check_ending(args.out, ".parquet")
    if args.out:
        check_replaceable(args.out)
    table = check_source(args.src, workers=args.workers, seasons=args.seasons, progress=not args.quiet)
    if args.out:
        write_findings(table, args.out)
    about = about_findings(table)
    return Answer(about, summarise_findings(table), 3 if about["errors"] else 0)


def _add_download(verbs: Verbs) -> None:
    download = verbs.add(
        "download", _download, "the archives of SEN12MS, 510 GB in all",
        "Fetch the archives of SEN12MS into OUT: 12 files, 510 GB in all. Goes on where it was cut off, checks MD5.",
        notes="Another address than that of mediaTUM may stand in the environment variable CROPLEM_SEN12MS_URL. "
        "mediaTUM also offers rsync (rsync://m1474000@dataserv.ub.tum.de/m1474000, password m1474000); archives that "
        "it fetched are checked when this command is run on their folder.",
        examples=["croplem data download archives --seasons summer",
                  "croplem data download archives --seasons spring,fall --kinds s1,s2"],
        keys={"out": "folder", "files": "paths of the files, whole"},
    )  # fmt: skip
    download.add_argument("out", metavar="OUT", type=Path, help="folder for the archives")
    download.add_argument("--seasons", type=_words, help="such as summer,fall (default: all four)")
    download.add_argument("--kinds", type=_words, help="some of s1,s2,lc (default: all three)")
    download.add_argument("--url", metavar="BASE", help="what the name of a file is put behind")
    download.add_argument("--quiet", action="store_true", help="no progress bar")


def _download(args: argparse.Namespace) -> Answer:
    from .data.download import download_sen12ms

    paths = download_sen12ms(
        args.out, seasons=args.seasons, kinds=args.kinds, url=args.url, progress=not args.quiet
    )
    return Answer({"out": args.out, "files": paths}, f"{len(paths)} files, whole, in {args.out}")


__all__ = ["add_verbs"]
