"""The package: light to import, with the names it promises, and whole in its archives."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import croplem_hf

ROOT = Path(__file__).resolve().parents[1]

IMPORT = """
import json, sys, time
started = time.perf_counter()
import croplem_hf
seconds = time.perf_counter() - started
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {HEAVY})
names = dir(croplem_hf)
print(json.dumps([seconds, heavy, names]))
"""
HELP = """
import sys
from croplem_hf.cli import main
try:
    main(["--help"])
finally:
    assert not {HEAVY} & set(sys.modules)
"""
WITHOUT_GEO = """
import importlib, sys
sys.modules["shapely"] = sys.modules["pyogrio"] = None
from croplem_hf.errors import DataError
for name in ("data.polygons", "data.scene_fields", "evaluation.map_units"):
    try:
        importlib.import_module(f"croplem_hf.{name}")
    except DataError as error:
        print(error)
"""
HEAVY = {
    "torch", "transformers", "numpy", "pyarrow", "rasterio", "faiss", "sklearn", "pandas", "huggingface_hub",
}  # fmt: skip


def test_importing_is_quick_and_loads_nothing_heavy():
    script = IMPORT.replace("{HEAVY}", repr(HEAVY))
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", script])) for _ in range(3)]
    assert min(seconds for seconds, _, _ in runs) < 0.3
    assert runs[0][1] == [] and set(croplem_hf.__all__) <= set(runs[0][2])


def test_help_needs_nothing_heavy():
    script = HELP.replace("{HEAVY}", repr(HEAVY))
    assert "croplem demo --out" in subprocess.check_output([sys.executable, "-c", script], text=True)


@pytest.mark.parametrize("name", croplem_hf.__all__)
def test_every_public_name_resolves(name):
    value = getattr(croplem_hf, name)
    assert name == "__version__" or value.__name__ == name
    assert name == "__version__" or value.__doc__


def test_what_needs_polygons_tells_what_to_install():
    told = subprocess.check_output([sys.executable, "-c", WITHOUT_GEO], text=True)
    assert told.splitlines() == ["polygons need pyogrio and shapely: pip install 'croplem-hf[geo]'"] * 3


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'croplem_hf' has no attribute 'Cropper'"):
        croplem_hf.Cropper  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert importlib.metadata.version("croplem-hf") == croplem_hf.__version__


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Names and contents of the files in the sdist and the wheel, built from a copy of the working tree."""
    if not (ROOT / "setup.cfg").is_file():
        pytest.skip("not a source tree")
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source") / "croplem", tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "benchmarks")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        unpacked = tmp_path_factory.mktemp("sdist")
        archive.extractall(unpacked, filter="data")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed := tmp_path_factory.mktemp("wheel"))
    return next(unpacked.iterdir()), installed


def test_both_archives_hold_the_packaged_checkpoint(archives):
    sdist, wheel = archives
    packaged = croplem_hf.packaged_path()
    for folder in (sdist / "hub" / packaged.name, wheel / "croplem_hf" / "_hub" / packaged.name):
        for path in packaged.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert f"Version: {croplem_hf.__version__}\n" in next(wheel.glob("*.dist-info/METADATA")).read_text()
    assert "croplem = croplem_hf.cli:main" in next(wheel.glob("*.dist-info/entry_points.txt")).read_text()


def test_the_wheel_holds_every_module(archives):
    _, wheel = archives
    modules = {path.relative_to(ROOT) for path in (ROOT / "croplem_hf").rglob("*.py")}
    assert {path.relative_to(wheel) for path in wheel.rglob("*.py") if "_hub" not in path.parts} == modules


INSTALLED = """
import croplem_hf
from transformers import AutoModel
folder = croplem_hf.packaged_path()
print(croplem_hf.__file__, folder, type(AutoModel.from_pretrained(folder)).__name__)
"""


def test_the_wheel_works_on_its_own(archives):
    _, wheel = archives
    # -P and -S keep the working tree out; the site packages follow by hand.
    paths = [str(wheel), str(Path(pytest.__file__).parents[1])]
    command = [sys.executable, "-S", "-P", "-c", f"import sys; sys.path[:0] = {paths!r}\n{INSTALLED}"]
    found = subprocess.check_output(command, text=True, cwd=wheel).split()
    assert found == [str(wheel / "croplem_hf/__init__.py"), str(wheel / "croplem_hf/_hub/mae-s1s2"), "CropLEMModel"]
