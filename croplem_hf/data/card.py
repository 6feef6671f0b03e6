"""The card of a folder of shards: what the Hub and `datasets` read of it, and what people should know."""

from collections.abc import Mapping

import yaml

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

DECODE = """import numcodecs.blosc, numpy as np
s2 = np.frombuffer(numcodecs.blosc.decompress(row["s2"]), row["s2_dtype"]).reshape(row["s2_shape"])
"""
"""The lines that unpack a raster without this library."""

_SEN12MS = """
## Source

SEN12MS (Schmitt et al. 2019), CC-BY-4.0: Sentinel-1 sigma0 in dB (VV, VH), Sentinel-2 Level-1C digital numbers (13
bands, reflectance x 10000, no radiometric offset), and land cover of MODIS (IGBP and three LCCS schemes). Patches are
256 x 256 pixels of 10 m, neighbours share half of them. A date is the middle of a season's three-month window between
December 2016 and November 2017; seasons are those of the northern hemisphere everywhere.

**Land cover comes from MODIS at 500 m.** It is right for a place as a whole, noisy at 10 m, and blind to small fields.
`igbp` (1 to 17) is the majority of a patch, `land_cover` (1 to 10) the same in the simplified scheme of DFC2020,
`cropland_fraction` the share of the codes 12 and 14.

## Splits

By scene, never by patch. Test is the official list of 26 scenes. Train is the rest without the patch known as damaged,
less a validation part that is ours: scenes whose centres are closer than 60 km form a cluster, across seasons too;
about a tenth of the clusters without a test scene are validation, chosen by a hash of a scene's name.

## Citation

```bibtex
@article{schmitt2019sen12ms,
  author = {Schmitt, M. and Hughes, L. H. and Qiu, C. and Zhu, X. X.},
  title = {SEN12MS -- A Curated Dataset of Georeferenced Multi-Spectral Sentinel-1/2 Imagery
           for Deep Learning and Data Fusion},
  journal = {ISPRS Annals of the Photogrammetry, Remote Sensing and Spatial Information Sciences},
  volume = {IV-2/W7},
  pages = {153--160},
  year = {2019},
  doi = {10.5194/isprs-annals-IV-2-W7-153-2019}
}
```
"""
_OTHER = """
## Source

Built from a source of kind `{source}`. Say here where the imagery comes from and under which licence, and set `license`
at the head of this file.
"""
_GENERATED = """
> **Invented data.** These images were generated; they show no real place, and figures measured on them say nothing
> about the real ones.
"""


def dataset_card(manifest: Mapping) -> str:
    """README.md of the shards of a manifest: YAML that makes the folder a dataset of the Hub, and a text.

    Args:
        manifest: as in `manifest.json`.
    """
    real = manifest["source"] == "sen12ms"
    name = "SEN12MS in Parquet shards" if real else "Sentinel-1 and Sentinel-2 in Parquet shards"
    names = list(manifest["shards"])
    # A split or a season without a row is none to `datasets`.
    filled = [shard for shard, about in manifest["shards"].items() if about["rows"]]
    configs = [_config("default", "", filled)]
    configs[0]["default"] = True
    seasons = [season for season in manifest["seasons"] if any(f"-{season}-" in shard for shard in filled)]
    configs += [_config(season, f"-{season}", filled) for season in seasons]
    head = {
        "pretty_name": name,
        "license": "cc-by-4.0" if real else "other",
        "task_categories": ["image-classification", "image-segmentation", "feature-extraction"],
        "tags": ["remote-sensing", "earth-observation", "sentinel-1", "sentinel-2", "land-cover", "agriculture"],
        "size_categories": [next((label for most, label in _SIZES if manifest["samples"] < most), "n>1M")],
        "configs": configs,
    }
    megabytes = sum(shard["bytes"] for shard in manifest["shards"].values()) / 1e6
    version = manifest["croplem_version"]
    splits = "\n".join(f"| {split} | {count:,} |" for split, count in manifest["splits"].items())
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {name}
{_GENERATED if manifest["generated"] else ""}
{manifest["samples"]:,} samples of {" and ".join(manifest["sensors"])} in {len(names)} shards, {megabytes:,.0f} MB.
{manifest["skipped"]:,} items could not be used; `skipped.csv` names them. Made by croplem_hf {version}.

| split | samples |
|---|---:|
{splits}

## Use

```python
from croplem_hf import load_sen12ms

for sample in load_sen12ms("path/or/hub/name", "train", seed=0):
    sample["s1"], sample["s2"]          # float32 (1, 2, 256, 256) in dB; uint16 (1, 13, 256, 256)
```

Without this library:

```python
from datasets import load_dataset

row = next(iter(load_dataset("path/or/hub/name", split="train", streaming=True)))
```

```python
{DECODE.strip()}
```

Likewise `s1` and `lc`; a sensor that a place lacks is null. `s1_valid` and `s2_valid` are masks (dates, rows, columns)
of type bool, null where every pixel is valid. `s2_bands` says for each date and band whether it exists. The codec `raw`
means bytes that are not packed; `x_xxh3` is the XXH3 checksum of the bytes. `index.parquet` has all columns but the
rasters, and the place of every raster in its shard.
{_SEN12MS if real else _OTHER.format(source=manifest["source"])}"""


def _config(name: str, season: str, shards: list[str]) -> dict:
    splits = {shard.split("-")[0] for shard in shards if f"{season}-" in shard}
    files = [{"split": split, "path": f"data/{split}{season}-*.parquet"} for split in ("train", "validation", "test")
             if split in splits]  # fmt: skip
    return {"config_name": name, "data_files": files}


__all__ = ["DECODE", "dataset_card"]
