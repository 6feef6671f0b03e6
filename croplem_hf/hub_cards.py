"""Cards: README.md of what is pushed, from the templates in `hub/templates` and from what the files themselves say."""

import re
from pathlib import PurePath

from .data.card import dataset_card
from .errors import DataError
from .hub_figures import eval_results, tables
from .hub_parts import Part
from .resolver import packaged_files

CITATION = """```bibtex
@software{croplem_hf,
  title = {croplem\\_hf: embeddings of cropland from Sentinel-1 and Sentinel-2},
  author = {{The croplem\\_hf authors}},
  year = {2026},
  license = {Apache-2.0}
}
```"""
_TITLES = {
    "head": "Cropland classifier on embeddings", "embeddings": "Embeddings of Sentinel-1 and Sentinel-2 imagery",
    "index": "Nearest-neighbour index of embeddings", "report": "Evaluation of embeddings",
}  # fmt: skip
_TAGS = ["croplem", "remote-sensing", "earth-observation", "sentinel-1", "sentinel-2", "agriculture", "cropland"]
_DATASETS = {
    "sen12ms": "SEN12MS (Schmitt et al. 2019, doi 10.5194/isprs-annals-IV-2-W7-153-2019)",
    "dfc2020": "the data of the 2020 IEEE GRSS Data Fusion Contest", "eurosat": "EuroSAT-MS", "kenya": "Kenya CV4A",
}  # fmt: skip
"""Sources of tables by their kind; other kinds are layouts, which say nothing of where data come from."""
_SHOWN_SOURCES = 20
_EVALUATION = re.compile(r"\n*<!-- croplem evaluation -->.*?<!-- /croplem evaluation -->\n*", re.DOTALL)


def make_card(part: Part, repo: str, licence: str | None, figures: dict[str, dict], notes: str = "") -> str:
    """README.md of a push.

    A model or a dataset whose folder has a README.md keeps it, with the figures put in and its head completed.

    Args:
        part: what is pushed.
        repo: "owner/name".
        licence: as the owner said, None where the README of the folder or the data say it.
        figures: `named_figures`.
        notes: Markdown of the owner: on what it was trained, where data come from, what it took.

    Raises:
        DataError: no licence is known.
    """
    own = _own_card(part)
    if own is not None and part.kind == "model":
        return _with_figures(part, own, repo, licence, figures, notes)
    if part.kind == "dataset":
        return _shards(part, own, repo, licence, notes)
    facts = dict(part.facts) | {"repo": repo, "notes": notes.strip(), "citation": CITATION}
    facts["title"], facts["imagery"] = _TITLES.get(part.kind, repo), _imagery(part)
    if part.kind == "model":
        facts["largest_patch"] = 2 * facts["config"]["patch_size"]
    if part.kind == "report":
        figures = {part.path.resolve().name: part.facts["figures"]}
    facts["info"] = facts.get("info", (part.facts.get("figures") or {}).get("data", {}).get("embeddings", {}))
    facts["model"] = model_name(facts["info"])
    facts["evaluation"] = _render("evaluation", evaluations=[(n, of, tables(of)) for n, of in figures.items()])
    head = _head(part, repo, part.licence(licence), figures)
    return _render(part.kind, card_data=head.to_yaml(), **facts)


def model_name(info: dict) -> str:
    """What to call the model of a table: its name, or the last part of its folder, which is nobody's business."""
    name = str(info.get("model") or "unknown")
    local = "\\" in name or name.startswith(("/", ".", "~")) or name.count("/") > 1
    return PurePath(name.replace("\\", "/")).name if local else name


def _imagery(part: Part) -> str:
    """A sentence on where the imagery of a table or an index comes from, as far as it knows; else nothing."""
    source = part.facts.get("info", {}).get("source") or {}
    known = [_DATASETS[source["kind"]]] if source.get("kind") in _DATASETS else []
    known += [f"the scene {source['scene']}"] if source.get("scene") else []
    rows = part.facts.get("sources", [])
    if rows:
        more = f" and {len(rows) - _SHOWN_SOURCES} more" if len(rows) > _SHOWN_SOURCES else ""
        known.append(f"what the column `source` names: {', '.join(rows[:_SHOWN_SOURCES])}{more}")
    if not known:
        return ""
    licences = f" Licences that are recorded: {', '.join(sorted(part.licences))}." if part.licences else ""
    return f"The imagery is that of {', and of '.join(known)}.{licences}"


def _own_card(part: Part) -> str | None:
    path = part.path / "README.md"
    return path.read_text(encoding="utf-8") if part.path.is_dir() and path.is_file() else None


def _with_figures(part: Part, text: str, repo: str, licence: str | None, figures: dict, notes: str) -> str:
    from huggingface_hub import ModelCard

    if notes:
        raise DataError(f"{part.path}: has a README.md already; put the notes there")
    card = ModelCard(text, ignore_metadata_errors=True)
    found = licence or card.data.license
    head = _head(part, repo, part.licence(found if isinstance(found, str) else None), figures)
    # What the owner wrote stands; the licence that was given and the measured figures replace what was there.
    wins = {"license"} | ({"eval_results", "model_name"} if figures else set())
    for key, value in head.__dict__.items():
        if value is not None and (key in wins or card.data.get(key) in (None, [])):
            setattr(card.data, key, value)
    body = card.text
    if figures:
        body = _EVALUATION.sub("\n\n", body).rstrip() + "\n"
        body += _render("evaluation", evaluations=[(n, of, tables(of)) for n, of in figures.items()])
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


def _shards(part: Part, own: str | None, repo: str, licence: str | None, notes: str) -> str:
    from huggingface_hub import DatasetCard

    manifest = part.facts["manifest"]
    made = dataset_card(manifest)
    card = DatasetCard(own or made, ignore_metadata_errors=True)
    # "other" of a generated card is a gap to be filled, not an answer.
    said = card.data.license if isinstance(card.data.license, str) and card.data.license != "other" else None
    card.data.license = part.licence(licence or said)
    # Shards were added or taken away since the owner wrote a card.
    card.data.configs = DatasetCard(made).data.configs
    body = card.text.replace("path/or/hub/name", repo)
    if notes:
        body = f"{body.rstrip()}\n\n## Notes\n\n{notes.strip()}\n"
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


def _head(part: Part, repo: str, licence: str, figures: dict[str, dict]):
    from huggingface_hub import DatasetCardData, ModelCardData, SpaceCardData

    tags = list(_TAGS)
    if part.kind in ("embeddings", "index"):
        extra = {}
        if part.kind == "embeddings":
            extra["configs"] = [{"config_name": "default", "data_files": "embeddings.parquet"}]
        else:
            # Else the viewer takes the metadata for the data set.
            extra["viewer"] = False
        return DatasetCardData(
            license=licence, pretty_name=_TITLES[part.kind], task_categories=["image-feature-extraction"],
            tags=[*tags, "embeddings"], **extra,
        )  # fmt: skip
    if part.kind == "report":
        return SpaceCardData(
            title=_TITLES["report"], sdk="static", app_file="report.html", license=licence, pinned=False, tags=tags
        )
    results = eval_results(figures) or None
    named = {"model_name": repo.rpartition("/")[2], "eval_results": results} if results else {}
    base = model_name(part.facts.get("info", {}))
    return ModelCardData(
        license=licence, tags=tags + (["masked-autoencoder"] if part.kind == "model" else []),
        library_name="transformers" if part.kind == "model" else "croplem_hf",
        pipeline_tag="image-feature-extraction" if part.kind == "model" else "image-classification",
        base_model=base if part.kind == "head" and base.count("/") == 1 else None, **named,
    )  # fmt: skip


def _render(template: str, **values) -> str:
    import jinja2

    folder = packaged_files() / "templates"
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(
        loader=loader, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(f"{template}.md").render(**values))


__all__ = ["make_card", "model_name"]
