"""Sphinx builds the site from this folder; it needs no network.

`make docs`, then open build/docs/index.html.
"""

import dataclasses
import inspect
import os
import re
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.typing import stringify_annotation

logger = logging.getLogger(__name__)
# The API pages import abft; nothing may be fetched meanwhile.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DOCS = Path(__file__).parent
ROOT = DOCS.parent
README_HEAD, END_OF_HEAD = "<!-- the head of README.md -->", "<!-- docs/index.md includes"
ROOT_PAGES = {"results": "RESULTS.md", "performance": "PERFORMANCE.md", "changelog": "CHANGELOG.md"}

project = "abft"
author = "The abft developers"
project_copyright = "The abft developers, Apache-2.0"
version = release = installed("abft")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["**.ipynb_checkpoints"]

nb_execution_mode = "off"  # notebooks are stored with their output
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
copybutton_selector = "div:not(.highlight-text) > div.highlight > pre"

default_role = "literal"  # docstrings write code between single backticks
add_module_names = False
smartquotes_action = "D"  # dashes only
python_maximum_signature_line_length = 88
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "abft"
html_static_path = ["_static"]
html_css_files = ["abft.css"]
html_show_sourcelink = False
html_copy_source = False

LINK = re.compile(
    r"(?P<text>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<path>[^()\s:#]+)(?P<anchor>#[^()\s]*)?\)"
)


def link_for_site(match: re.Match, folder: Path, page: Path) -> str:
    """Return a Markdown link of the repository as it has to be on the page that is built from
    `page`.

    RESULTS.md and the like become their pages; a file becomes a download; what else there is of the
    repository (folders) keeps its text and loses its link.
    """
    target = Path(os.path.normpath(folder / match["path"]))
    pages = {ROOT / name: DOCS / f"{docname}.md" for docname, name in ROOT_PAGES.items()}
    target = pages.get(target, target)
    if not target.exists():
        return match[0]  # Sphinx says that it is broken
    if target.is_dir():
        return match["text"][1:-1]
    return f"{match['text']}({os.path.relpath(target, page.parent)}{match['anchor'] or ''})"


def read_source(app, docname, source):
    """Give pages of the repository's root files their text; links are made to fit."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return
    folder, text = page.parent, source[0]
    if docname in ROOT_PAGES:
        original = ROOT / ROOT_PAGES[docname]
        app.env.note_dependency(str(original))
        folder, text = ROOT, original.read_text(encoding="utf-8")
    if docname == "notebooks/index":  # a glob would warn where there are none
        app.env.note_reread()
        names = "\n".join(sorted(path.stem for path in folder.glob("*.ipynb")))
        text += f"\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"
    if docname == "index":
        readme = ROOT / "README.md"
        app.env.note_dependency(str(readme))
        head = readme.read_text(encoding="utf-8").partition(END_OF_HEAD)[0]
        head = LINK.sub(lambda match: link_for_site(match, ROOT, page), head)
        text = text.replace(README_HEAD, head)
    source[0] = LINK.sub(lambda match: link_for_site(match, folder, page), text)


def list_fields(app, what, name, obj, options, lines):
    """Fields of dataclasses and named tuples, which say what they are in a comment or in their
    metadata.
    """
    if what != "class" or not (dataclasses.is_dataclass(obj) or hasattr(obj, "_field_defaults")):
        return
    if any(
        owner == obj.__name__
        for owner, _ in ModuleAnalyzer.for_module(obj.__module__).find_attr_docs()
    ):
        return  # autodoc lists fields with a docstring of their own
    if any(line.startswith(".. attribute::") for line in lines):
        return  # the docstring has a section of attributes
    help_texts = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(obj), re.MULTILINE))
    for field in dataclasses.fields(obj) if dataclasses.is_dataclass(obj) else ():
        help_texts |= {field.name: field.metadata["help"]} if "help" in field.metadata else {}
    annotations = inspect.get_annotations(obj)
    for field in dataclasses.fields(obj) if dataclasses.is_dataclass(obj) else ():
        if "setting" in field.metadata:  # also those that a class inherits
            annotations[field.name] = field.type
    for field_name, annotation in annotations.items():
        lines += [
            f".. py:attribute:: {field_name}",
            f"   :type: {stringify_annotation(annotation, 'smart')}",
        ]
        if isinstance(getattr(obj, field_name, None), bool | int | float | str):
            lines.append(f"   :value: {getattr(obj, field_name)!r}")
        text = help_texts.get(field_name, "").replace("\\", "\\\\")
        lines += ["", f"   {text}", ""]


_as_written: dict[str, list[str]] = {}


def keep_field(app, what, name, obj, options, lines):
    """Before napoleon, which would take the text before a colon of a field for a type. Backslashes
    outside of code stay.
    """
    lines[:] = [
        "`".join(
            part if i % 2 else part.replace("\\", "\\\\") for i, part in enumerate(line.split("`"))
        )
        for line in lines
    ]
    if what in ("attribute", "property"):
        _as_written[name] = list(lines)


def restore_field(app, what, name, obj, options, lines):
    """After napoleon. Words that follow code without a space (`Task`s) need an escape in
    reStructuredText.
    """
    lines[:] = [re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line) for line in _as_written.pop(name, lines)]


def every_export_is_documented(app, env):
    """A new name in abft.__all__ needs a place on an API page."""
    import abft

    documented = {name for name, _, _, _, _, _ in env.get_domain("py").get_objects()}
    for name in abft.__all__:
        if f"abft.{name}" not in documented:
            logger.warning("abft.%s is exported, but no page in docs/api shows it", name)


def setup(app):
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", keep_field, priority=400)
    app.connect("autodoc-process-docstring", restore_field, priority=600)
    app.connect("autodoc-process-docstring", list_fields, priority=700)
    app.connect("env-check-consistency", every_export_is_documented)
    return {"parallel_read_safe": True}
