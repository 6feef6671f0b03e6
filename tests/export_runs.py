"""What the tests of bulk export share with the processes that they start: a small encoder, a source, and kills.

    export_runs.py OUT SEED ROUNDS

embeds the source in one unbroken run into OUT.whole, then ROUNDS times by one to three processes that are killed at
random points, then by two processes to the end, into OUT. Prints how each process of each round ended.
"""

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from croplem_hf import Embedder, embedding_inputs, make_sample
from croplem_hf.errors import CropLEMError, DataError
from croplem_hf.export import export_source
from croplem_hf.model import CropLEMConfig, CropLEMImageProcessor, CropLEMModel


def small_embedder() -> Embedder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = CropLEMModel(CropLEMConfig(**sizes, pooling="mean_std", initializer_range=0.3))
    model.embedding_centre.copy_(torch.randn(32))
    return Embedder(model, CropLEMImageProcessor(), name="small", device="cpu")


class Source:
    """Items of two shapes, some of which cannot be read."""

    kind, unit, s1_units = "test", "patch", "db"

    def __init__(self, count: int, bad: tuple[int, ...] = ()):
        self.ids, self.bad = [f"i{k}" for k in range(count)], bad

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, k: int) -> dict:
        if k in self.bad:
            raise DataError(f"/data/{k}.tif: cut short")
        rng = np.random.default_rng(k)
        dates = ["2019-01-03", "2019-02-03"][: 1 + k % 2]
        return make_sample(
            self.ids[k], s1=rng.normal(-14, 4, (len(dates), 2, 4, 4)), s1_dates=dates,
            s2=rng.integers(1, 6000, (1, 13, 4, 4)).astype(np.uint16), s2_dates=["2019-05-13"], s2_level="L1C", k=k,
        )  # fmt: skip


def export(out: Path, rank: int = 0, ranks: int = 1, kill: int | None = None) -> int:
    """Start a process that embeds its share, and is killed where it touches files for the `kill`th time -> its pid."""
    process = os.fork()
    if process:
        return process
    touches = 0

    def hook(event, arguments):
        nonlocal touches
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and any(
            isinstance(x, (str, os.PathLike)) and os.fspath(x).startswith(str(out)) for x in arguments
        ):
            touches += 1
            if touches == kill:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        export_source(small_embedder(), Source(60, (3, 17, 40)), out, rank=rank, ranks=ranks, progress=False, wait=1.5)
        os._exit(0)
    except CropLEMError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)


def ends(*processes: int) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def main(out: Path, seed: int, rounds: int) -> None:
    torch.set_num_threads(1)
    embedding_inputs.CHUNK = 2
    draw = random.Random(seed)
    print(ends(export(out.with_name("whole.parquet"))), flush=True)
    for _ in range(rounds):
        ranks = draw.randint(1, 3)
        print(ends(*(export(out, rank, ranks, draw.randint(3, 16)) for rank in range(ranks))), flush=True)
    print(ends(*(export(out, rank, 2) for rank in range(2))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
