"""`croplem demo`: from generated imagery to embeddings, an index and a picture of similar patches."""

import os
from pathlib import Path

QUERIES = 4
NEIGHBOURS = 5


def run_demo(out: str | os.PathLike, *, seed: int = 0) -> str:
    """Generate a SEN12MS-like sample, embed it with the packaged checkpoint, index it and draw similar patches.

    Args:
        out: folder for all that is made; a later call reuses what is there.
        seed: of the generated sample.

    Returns:
        Text that says what was made and where.
    """
    from .cli import draw_similar
    from .data import generate_sen12ms, open_source
    from .embedding import Embedder
    from .index import EmbeddingIndex
    from .resolver import DEFAULT_CHECKPOINT, packaged_path

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    images = generate_sen12ms(out / "sen12ms", seed=seed)
    source = open_source(images)
    embedder = Embedder.from_pretrained(packaged_path())
    embedder.name = DEFAULT_CHECKPOINT
    table = embedder.embed_source(source, out / "embeddings.parquet")
    index = EmbeddingIndex.build(table)
    index.save(out / "index")
    step = max(1, len(table) // QUERIES)
    queries = [str(name) for name in table.ids[::step][:QUERIES]]
    draw_similar(source, queries, index.query(ids=queries, k=NEIGHBOURS), out / "similar.png")
    return "\n".join(
        [
            f"{len(table)} generated patches (no real place) of {len(set(table.metadata['scene'].to_pylist()))} scenes",
            f"  images      {images}",
            f"  embeddings  {out / 'embeddings.parquet'}  {table.vectors.shape[0]} x {table.vectors.shape[1]}",
            f"  index       {out / 'index'}",
            f"  picture     {out / 'similar.png'}  each row a patch and the {NEIGHBOURS} most like it",
            f"next: croplem similar {out / 'index'} --id {queries[0]}",
        ]
    )


__all__ = ["run_demo"]
