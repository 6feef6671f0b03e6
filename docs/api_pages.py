"""Pages of the API, written from `__all__` of the package and of its modules, so that no public name is left out."""

import importlib
import inspect
import pkgutil
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import croplem_hf

COMMANDS = ("cli", "demo", "demo_report", "info")
"""Modules behind the commands, beside those whose name says so: they are used from the shell."""


def modules() -> dict[str, list[str]]:
    """Name of every module or subpackage below croplem_hf that promises names -> those names."""
    found = {}
    for info in pkgutil.walk_packages(croplem_hf.__path__, "croplem_hf."):
        short = info.name.removeprefix("croplem_hf.")
        if short.startswith("_") or short in COMMANDS or short.endswith(("_verb", "_verbs")):
            continue
        names = getattr(importlib.import_module(info.name), "__all__", None)
        if names:
            found[info.name] = list(names)
    return found


def write_api_pages(folder: Path) -> None:
    """Write index.rst with the names of croplem_hf, and of each module a page with its text and the names it adds."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        old.unlink()
    names = [name for name in croplem_hf.__all__ if name != "__version__"]
    done = {id(getattr(croplem_hf, name)) for name in names}
    pages = []
    # A subpackage before its modules: what it gives away is documented under its name.
    for module, promised in sorted(modules().items(), key=lambda item: (item[0].count("."), item[0])):
        values = {name: getattr(importlib.import_module(module), name) for name in promised}
        new = [name for name, value in values.items() if not _is_code(value) or id(value) not in done]
        done |= {id(values[name]) for name in new}
        pages.append(module)
        about = f".. automodule:: {module}\n   :no-members:"
        package, _, last = module.rpartition(".")
        if last in getattr(importlib.import_module(package), "__all__", ()):
            about += "\n   :no-index:"  # a function of the package has the name of this module
        (folder / f"{module}.rst").write_text(_page(module, about, module, new))
    about = "What ``import croplem_hf`` gives. Further names stand in its :doc:`modules <modules>`.\n\n"
    about += ".. toctree::\n   :hidden:\n\n   modules"
    (folder / "index.rst").write_text(_page("API", about, "croplem_hf", names))
    lines = ["Modules", "=======", "", ".. toctree::", "   :titlesonly:", ""]
    lines += [f"   {module}" for module in sorted(pages)]
    (folder / "modules.rst").write_text("\n".join(lines) + "\n")


def _page(title: str, about: str, module: str, names: list[str]) -> str:
    lines = [title, "=" * len(title), "", about, "", f".. currentmodule:: {module}", ""]
    documented = ModuleAnalyzer.for_module(module).find_attr_docs()
    for name in names:
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value):
            lines += [f".. autoclass:: {name}", *["   :show-inheritance:"] * (value.__bases__ != (object,)), ""]
        elif inspect.isroutine(value):
            lines += [f".. autofunction:: {name}", ""]
        elif ("", name) in documented:
            lines += [f".. autodata:: {name}", "   :no-value:", ""]
        else:
            # autodoc would give the documentation of its type.
            text = repr(value)
            short = text if len(text) < 100 and "\n" not in text else f"{type(value).__name__} of {len(value)}"
            lines += [f".. py:data:: {name}", f"   :value: {short}", ""]
    return "\n".join(lines)


def _is_code(value: object) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)
