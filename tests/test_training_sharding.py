"""FSDP: two processes that hold half of the weights each, on CPUs, through accelerate's own wrapping."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from pretraining_runs import ENVIRONMENT, TINY
from safetensors.torch import load_file

from croplem_hf import CropLEMForPreTraining, generate_sen12ms
from croplem_hf.training_config import SourceConfig, TrainingConfig
from croplem_hf.training_files import config_record, read_state

# accelerate offers FSDP on accelerators only; what it does there works on CPUs too, once it is told to.
DRIVER = """
import os, signal, sys
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from croplem_hf import training, training_setup
kill, options, *arguments = sys.argv[1:]
class Sharded(Accelerator):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        plugin = FullyShardedDataParallelPlugin(**eval(options))
        for state in (AcceleratorState, PartialState):
            state._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
training_setup.Accelerator = Sharded
original = training.learning_rate_at
def learning_rate_at(number, config):
    if number == int(kill):
        os.killpg(0, signal.SIGKILL)
    return original(number, config)
training.learning_rate_at = learning_rate_at
sys.exit(training.main(arguments))
"""
FSDP2 = {"fsdp_version": 2, "reshard_after_forward": True, "cpu_ram_efficient_loading": False}


@pytest.fixture
def launch(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    sources = [{"path": str(generate_sen12ms(tmp_path / "tree", size=32))}]

    def launch(name, *, kill=-1, options=FSDP2, sharded=True, **changes):
        config = {
            "sources": sources, "out": str(tmp_path / name), "seed": 3, "batch_size": 4, "steps": 6, "warmup_steps": 2,
            "gradient_accumulation_steps": 2, "checkpoint_every": 2, "keep_checkpoints": 9, "log_every": 1,
            "learning_rate": 3e-3, "max_tokens": 16, "num_workers": 0, "ema_decay": 0.9, "picture_every": 6,
            "trackers": [], "model": TINY | {"agreement_weight": 0.1, "summary_weight": 0.1},
        } | changes  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        program = [str(tmp_path / "driver.py"), str(kill), repr(options)] if sharded else ["-m", "croplem_hf.training"]
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program,
             "--config", str(tmp_path / f"{name}.json")],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=300, start_new_session=True, check=False,
        )  # fmt: skip

    return launch


def tensors(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.name}:{key}": value for file in files for key, value in load_file(file).items()}


@pytest.mark.slow
def test_scattered_weights_train_as_whole_ones_and_resume_bit_by_bit(launch, tmp_path):
    done = launch("whole", sharded=False)
    assert done.returncode == 0, done.stderr
    done = launch("run")
    assert done.returncode == 0, done.stderr
    assert "FSDP" in done.stderr
    # The files are those of plain data parallelism, and the numbers too, but for the order of sums.
    for name in ("checkpoints/step-00000002", "checkpoints/step-00000006", "model"):
        one, other = tensors(tmp_path / "whole" / name), tensors(tmp_path / "run" / name)
        assert one.keys() == other.keys() and len(one) > 20
        assert all(torch.allclose(one[key], other[key], atol=2e-4) for key in one)
    loaded, report = CropLEMForPreTraining.from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert not any(report.values()) and loaded.config.architectures == ["CropLEMForPreTraining"]
    before = tensors(tmp_path / "run" / "model")
    done = launch("run")
    assert done.returncode == 0 and "step 6 of 6" in done.stderr, done.stderr
    after = tensors(tmp_path / "run" / "model")
    assert all(torch.equal(before[key], after[key]) for key in before), "the averaged weights, when it was finished"

    killed = launch("broken", kill=5)
    assert killed.returncode != 0
    assert sorted(p.name for p in (tmp_path / "broken/checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    shutil.copytree(tmp_path / "broken", tmp_path / "back")
    done = launch("broken")
    assert done.returncode == 0, done.stderr
    for name in ("checkpoints/step-00000006", "model"):
        one, other = tensors(tmp_path / "run" / name), tensors(tmp_path / "broken" / name)
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    # Without FSDP the run goes on too, and says so.
    done = launch("back", sharded=False)
    assert done.returncode == 0 and "written with FSDP" in done.stderr, done.stderr
    assert "finished: 6 steps" in done.stderr


def test_a_checkpoint_from_before_sharding_was_whole(tmp_path, caplog):
    config = TrainingConfig(sources=[SourceConfig(path="tree")], out=str(tmp_path))
    record = {"config": config_record(config), "data": "x", "mixed_precision": "no", "world_size": 2}
    (tmp_path / "state.json").write_text(json.dumps(record | {"step": 2, "loss_sum": 0.5, "loss_count": 1}))
    accelerator = SimpleNamespace(mixed_precision="no", num_processes=2, distributed_type=DistributedType.FSDP)
    assert read_state(tmp_path, config, "x", accelerator)[0].step == 2
    assert "the checkpoint was written without FSDP" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp_version": 1}, "set fsdp_version: 2"),
        (FSDP2 | {"activation_checkpointing": True}, "activation_checkpointing: true in the configuration"),
    ],
)
def test_kinds_of_fsdp_that_are_not_supported_are_refused(launch, options, message):
    done = launch("run", options=options)
    assert done.returncode != 0 and message in done.stderr
