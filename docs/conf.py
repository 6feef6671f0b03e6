"""The documentation: Sphinx with MyST, built by scripts/docs.sh. Pages of the API are written from the package."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from api_pages import write_api_pages  # noqa: E402

import croplem_hf  # noqa: E402

project, author = "croplem_hf", "The croplem_hf authors"
version = release = croplem_hf.__version__
copyright = "the croplem_hf authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxarg.ext"]
exclude_patterns = ["_build", "api_pages.py", "command_pages.py"]
html_theme = "furo"
html_title = f"croplem_hf {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "monokai"

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# In docstrings `this` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are almost reStructuredText: an indented block after a blank line is code, and classes_ is a name."""
    out = []
    for line in lines:
        before = next((text for text in reversed(out) if text.strip()), "")
        margin = len(before) - len(before.lstrip())
        if out and not out[-1].strip() and len(line) - len(line.lstrip()) >= margin + 4 and before.strip() != "::":
            out += [" " * margin + "::", ""]
        out.append(line)
    if what in ("data", "attribute", "property") and out:
        # Napoleon would take what stands before a colon in the first line for a type: a sign that looks like one.
        out[0] = out[0].replace(": ", "\N{RATIO} ")
    if "Attributes:" in out:
        # "a_, b_: text" would be b_ of type a_.
        start = out.index("Attributes:")
        several = re.compile(r"^ +\w+(?:, \w+)+:")
        out[start:] = [several.sub(lambda names: names[0].replace(", ", ","), line) for line in out[start:]]
    out = [re.sub(r"\*\*[^*]+\*\*", lambda bold: bold[0].replace("`", ""), line) for line in out]
    lines[:] = [re.sub(r"(?<![\w`\\])([A-Za-z]\w*)_(?![\w`])", r"\1\\_", line) for line in out]


def skip_member(app, what, name, obj, skip, options):
    """scikit-learn adds set_fit_request and the like to every estimator."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app):
    app.connect("builder-inited", lambda app: write_api_pages(Path(app.srcdir) / "api"))
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", as_rst, priority=400)
    app.connect("autodoc-skip-member", skip_member)
