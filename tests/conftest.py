"""Fixtures shared by all tests: the real data where there is some, and a small invented SEN12MS tree."""

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pretraining_runs import TINY

# Readers touch files, and test machines are shared: time says nothing about a single example. Every run has the same
# examples, so that a failure is one of the code; `--hypothesis-profile=search` looks for new ones.
quiet = {"deadline": None, "max_examples": 25, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("croplem", derandomize=True, **quiet)
settings.register_profile("search", **quiet)
settings.load_profile("croplem")

# A background job of a shell ignores Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real data sets: CROPLEM_REAL_DATA, else ../shared/data/real next to the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
    folder = Path(os.environ.get("CROPLEM_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CROPLEM_REAL_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def sen12ms_tree(tmp_path_factory) -> Path:
    """Invented SEN12MS tree of four scenes with six patches of 64 px; read only."""
    from croplem_hf.data import generate_sen12ms

    return generate_sen12ms(tmp_path_factory.mktemp("sen12ms"), size=64)


@pytest.fixture
def single_thread():
    """Sums depend on the number of threads; and each run makes its own Accelerator."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def write(tmp_path, sen12ms_tree):
    """write(name, **changes) -> path of a configuration of a tiny run of 12 steps on the invented tree."""

    def write(name="config.json", **changes):
        given = {
            "sources": [{"path": str(sen12ms_tree)}], "out": str(tmp_path / "run"), "model": TINY, "steps": 12,
            "batch_size": 4, "warmup_steps": 3, "learning_rate": 3e-3, "max_tokens": 64, "num_workers": 0,
            "log_every": 3, "checkpoint_every": 4, "picture_every": 100,
        } | changes  # fmt: skip
        path = tmp_path / name
        path.write_text(json.dumps({key: value for key, value in given.items() if value is not None}))
        return path

    return write


@pytest.fixture
def answer(capsys):
    """answer(*argv, code=0) -> what a command prints with --json, held to the keys that its help names."""
    from croplem_hf.cli import main

    def answer(*argv, code=0):
        argv = [str(word) for word in argv]
        capsys.readouterr()
        assert main([*argv, "--json"]) == code
        found = json.loads(capsys.readouterr().out)
        verb = argv[:2] if argv[0] == "data" else argv[:1]
        with pytest.raises(SystemExit):
            main([*verb, "--help"])
        told = capsys.readouterr().out.partition("keys of --json:\n")[2]
        keys = {line.split()[0] for line in told.splitlines() if line[2:3].strip()}
        assert keys <= set(found) if verb == ["info"] else keys == set(found)
        return found

    return answer
