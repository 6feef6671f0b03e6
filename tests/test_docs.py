"""The documentation builds without a warning and tells every public name and every command."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

import croplem_hf
from croplem_hf import cli

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    for name in ("sphinx", "furo", "myst_parser", "sphinxarg"):
        pytest.importorskip(name, reason="needs croplem-hf[docs]")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-E", "-W", "--keep-going", "-q", ROOT / "docs", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_every_public_name_is_in_the_api(site):
    page = (site / "api" / "index.html").read_text()
    assert [n for n in croplem_hf.__all__ if f'id="croplem_hf.{n}"' not in page] == ["__version__"]
    # Of the modules, by two names that are given away nowhere else.
    assert 'id="croplem_hf.pictures.draw_similar"' in (site / "api" / "croplem_hf.pictures.html").read_text()
    assert 'id="croplem_hf.active.suggest.suggest"' in (site / "api" / "croplem_hf.active.suggest.html").read_text()


@pytest.mark.slow
def test_every_command_and_option_is_told(site):
    page = (site / "commands.html").read_text()
    actions = cli.make_parser()._actions
    verbs = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    assert len(verbs) > 10
    for name, parser in verbs.items():
        options = [option for action in parser._actions for option in action.option_strings if option != "--help"]
        assert f">{name}<a" in page and [option for option in options if option not in page] == [], name


@pytest.mark.slow
def test_the_site_has_the_figures_and_the_picture(site):
    assert "exact FAISS" in (site / "results.html").read_text()
    assert "radar does not find what optics saw" in (site / "limits.html").read_text()
    assert (site / "_images" / "similar.jpg").is_file()


PAGES = ["README.md", "benchmarks/RESULTS.md", "examples/cluster/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page):
    links = [link for link in LINK.findall((ROOT / page).read_text()) if "://" not in link]
    # Pages of the API are written when the site is built.
    gone = [link for link in links if not ((ROOT / page).parent / link).exists() and "api/" not in link]
    assert gone == []


def test_readme_is_short_and_its_set_up_is_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 170
    assert "```bash\nbash scripts/demo.sh\nbash scripts/test.sh\n```" in text
