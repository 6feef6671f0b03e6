"""The examples run as they stand, on small data, and say what they promise; the quickstart is that of the README."""

import ast
import collections
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from croplem_hf import load_config, load_head, read_table
from croplem_hf.data import generate_kenya, generate_scene, generate_sen12ms
from croplem_hf.data.geotiff import read_geotiff

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error::UserWarning"}


def run(name, folder, *arguments):
    """Run an example in a folder -> what it printed."""
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run([str(part) for part in command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def readme_blocks():
    """The Python blocks of the README's quickstart."""
    part = (ROOT / "README.md").read_text().split("\n## Quickstart\n")[1].split("\n## ")[0]
    return [block.split("```")[0].rstrip("\n") for block in part.split("```python\n")[1:]]


def cells():
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and not any(cell["outputs"] for cell in code)
    return ["".join(cell["source"]) for cell in code]


def promised(code):
    """What the comments behind its prints say that it prints."""
    lines = [line.split("#")[1] for line in code.splitlines() if line.startswith("print(")]
    return [line.split(": ")[0].strip() for line in lines]


def test_quickstart_script_and_notebook_are_the_quickstart_of_the_readme():
    script = (EXAMPLES / "quickstart.py").read_text()
    docstring = ast.get_docstring(ast.parse(script), clean=False)
    blocks = readme_blocks()
    assert script == f'"""{docstring}"""\n\n' + "\n\n".join(blocks) + "\n"
    assert cells() == blocks


def test_quickstart_prints_what_the_readme_says(tmp_path):
    assert run("quickstart.py", tmp_path).splitlines() == promised("\n".join(readme_blocks()))


@pytest.mark.slow
def test_notebook_prints_what_the_readme_says(tmp_path, monkeypatch):
    """Cell by cell in one namespace; a kernel of Jupyter would bring thirty packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        for cell in cells():
            exec(compile(cell, "quickstart.ipynb", "exec"), names)
    assert out.getvalue().splitlines() == promised("\n".join(cells()))


def read(path):
    """The rows of a CSV."""
    return list(csv.DictReader(path.read_text().splitlines()))


def fill(sheet, truth):
    """Write the labels into an empty sheet -> its ids."""
    rows = read(sheet)
    assert not any(row["label"] for row in rows)
    with open(sheet, "w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(row | {"label": truth[row["id"]]} for row in rows)
    return [row["id"] for row in rows]


def test_campaign_asks_for_the_labels_to_test_with_first(tmp_path):
    images = generate_sen12ms(tmp_path / "images", scenes=2, patches_per_scene=6, size=32)
    said = run("campaign.py", tmp_path, images, "--validation", 6)
    assert said == "fill in the column label of campaign/validation.csv, then start this again\n"
    assert len(fill(tmp_path / "campaign" / "validation.csv", collections.defaultdict(str))) == 6
    assert not (tmp_path / "campaign" / "round1.csv").exists()


@pytest.mark.slow
def test_campaign_goes_on_as_labels_come(tmp_path):
    images = generate_sen12ms(tmp_path / "images", scenes=3, patches_per_scene=12, size=32)
    truth = {row["id"]: row["label"] for row in read(images / "labels.csv")}
    asked, out = [], tmp_path / "campaign"
    for name in ("validation", "round1", "round2"):
        said = run("campaign.py", tmp_path, images, "--rounds", 2, "--batch", 8, "--validation", 6)
        assert f"fill in the column label of campaign/{name}.csv" in said
        asked += fill(out / f"{name}.csv", truth)
    said = run("campaign.py", tmp_path, images, "--rounds", 2, "--batch", 8, "--validation", 6)
    assert "round 1: 8 labels" in said and "round 2: 16 labels" in said and len(set(asked)) == 22
    assert set(load_head(out / "head").classes_) == {"cropland", "other"}
    other = generate_sen12ms(tmp_path / "other", scenes=1, patches_per_scene=6, size=32)
    command = [sys.executable, str(EXAMPLES / "campaign.py"), str(other)]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "holds a campaign over other imagery" in done.stderr


@pytest.mark.slow
def test_campaign_with_an_oracle_learns(tmp_path):
    said = run("campaign.py", tmp_path)
    shares = [int(line.split("%")[0].split()[-1]) for line in said.splitlines() if line.startswith("round")]
    assert len(shares) == 4 and shares[-1] > 75
    assert run("campaign.py", tmp_path) == said


def test_similar_fields_draws_a_sheet(tmp_path):
    said = run("similar_fields.py", tmp_path, "--size", 96)
    table = read_table(tmp_path / "similar-fields" / "fields.parquet")
    assert table.info["unit"] == "field" and f"{len(table)} fields" in said and said.count("like field") == 4
    with Image.open(tmp_path / "similar-fields" / "similar.png") as sheet:
        assert sheet.width > 600


@pytest.mark.slow
def test_kenya_with_few_labels(tmp_path):
    data = generate_kenya(tmp_path / "data", fields=160, tile_size=(96, 96))
    said = run("kenya_400_labels.py", tmp_path, data, "--labels", 40, "--seeds", 2)
    scores = [float(text) for line in said.splitlines() if line.startswith(("tile ", "mean")) and "out" not in line
              for text in line.split()[-3:]]  # fmt: skip
    assert len(scores) == 15 and all(0 < score < 100 for score in scores)
    told = read(tmp_path / "kenya" / "crops.csv")
    assert told and {row["crop_type"] for row in told} <= set(load_head(tmp_path / "kenya" / "crop.head").classes_)
    assert load_head(tmp_path / "kenya" / "crop.head").n_labels_.sum() == 40


@pytest.mark.slow
def test_own_imagery_becomes_a_map_and_hectares(tmp_path):
    said = run("own_imagery_to_map.py", tmp_path, "--size", 96)
    assert read_geotiff(tmp_path / "own-map" / "map.tif")[0].shape == (3, 96, 96)
    right = float(said.splitlines()[-1].split()[2])
    assert right > 70 and "area, ha (95 %)" in said


@pytest.mark.slow
def test_own_imagery_needs_all_three(tmp_path):
    scene = generate_scene(tmp_path / "scene", "kenya", size=32)
    with pytest.raises(AssertionError, match="--scene, --points and --sample go together"):
        run("own_imagery_to_map.py", tmp_path, "--scene", scene)


@pytest.mark.slow
def test_publishing_is_a_dry_run(tmp_path):
    said = run("publish.py", tmp_path)
    assert "index to the dataset repository me/example-index" in said
    assert "head to the model repository me/example-head" in said and "<!-- croplem evaluation -->" in said


@pytest.mark.parametrize("name", ["one_node.sbatch", "many_nodes.sbatch", "until_done.sh", "try_small.sh"])
def test_scripts_of_the_cluster_are_shell(name):
    subprocess.run(["bash", "-n", EXAMPLES / "cluster" / name], check=True)


def test_configuration_of_the_cluster_is_one():
    config = load_config(EXAMPLES / "cluster" / "pretrain.yaml")
    limit = (EXAMPLES / "cluster" / "one_node.sbatch").read_text().split("--time=")[1].split("\n")[0]
    hours, minutes, _ = (int(part) for part in limit.split(":"))
    assert config.time_limit_minutes < 60 * hours + minutes and config.batch_size % 32 == 0


@pytest.mark.slow
def test_cluster_in_small_is_stopped_and_goes_on(tmp_path):
    command = ["bash", EXAMPLES / "cluster" / "try_small.sh", tmp_path / "small"]
    done = subprocess.run(command, env=ENVIRONMENT | {"PYTHON": sys.executable, "PYTHONWARNINGS": ""},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "start 2" in done.stdout and "resume from" in done.stderr
    assert (tmp_path / "small" / "run" / "model" / "model.safetensors").is_file()


def test_a_failed_job_is_not_put_into_the_queue_again(tmp_path):
    (tmp_path / "c.yaml").write_text(f"out: {tmp_path}/run  # here\n")
    script = f". {EXAMPLES}/cluster/until_done.sh; set -e; REQUEUE='echo again'; run_and_requeue {tmp_path}/c.yaml "
    said = {name: subprocess.run(["bash", "-c", script + name], capture_output=True, text=True).stdout
            for name in ("true", "false")}  # fmt: skip
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.safetensors").touch()
    said["done"] = subprocess.run(["bash", "-c", script + "false"], capture_output=True, text=True).stdout
    assert said == {"true": "again\n", "false": "", "done": f"{tmp_path}/run/model is there already\n"}
