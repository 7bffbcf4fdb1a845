"""The documentation site: ``bash scripts/build_docs.sh``."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import directives  # noqa: E402
import links  # noqa: E402

import mist_fairseq  # noqa: E402

project = "mist_fairseq"
author = copyright = "the mist_fairseq authors"
version = release = mist_fairseq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"mist_fairseq {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = [("Attributes", "params_style")]  # one line may name several

# Types of other packages, whose documentation is not at hand, and what is not part of ours.
nitpick_ignore_regex = [
    (r"py:class", rf"({'|'.join(sys.stdlib_module_names)})\..*"),
    (r"py:class", r"(fairseq|fastapi|numpy|omegaconf|pydantic|sacrebleu|starlette|torch|uvicorn)\..*"),
    (r"py:class", r"prometheus_client\..*"),
    (r"py:exc", r"ClientDisconnect|HTTPException"),
    (r"py:class", r"SentencePieceProcessor|tokenizers.Tokenizer|mist_fairseq(\.\w+)+\.C|Lengths"),
    (r"py:class", r"mist_fairseq(\.\w+)+\._\w+"),
]

# Files of the repository that are pages of the site, which include them.
PAGES = {
    ROOT / source: DOCS / page
    for source, page in {
        "README.md": "start.md",
        "results/README.md": "results/tables.md",
        "results/latency/README.md": "results/latency.md",
        "results/speed/README.md": "results/speed.md",
        "results/serving/README.md": "results/serving.md",
        "examples/README.md": "recipes.md",
        "examples/baselines/README.md": "baselines.md",
    }.items()
}


def _without_types(app, what, name, obj, options, lines):
    """Keep napoleon from taking what stands before a colon for a type: our docstrings leave types to signatures."""
    first = [0] if what in ("property", "attribute", "data") else []
    for i in first + [i + 1 for i, line in enumerate(lines[:-1]) if line.strip() == "Returns:"]:
        text = lines[i].lstrip()
        lines[i] = lines[i].removesuffix(text) + ": " + text


def _readable(app, what, name, obj, options, signature, return_annotation):
    """Signatures that Sphinx can parse: dataclasses' say ``<factory>``; pydantic's are left out."""
    if hasattr(obj, "model_fields"):
        return "", None
    return signature and signature.replace("<factory>", "..."), return_annotation


def _fit_page(app, docname, source):
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md":
        source[0] = links.fit_to_site(source[0], page, page, PAGES)


def _fit_included(app, relative_path, parent_docname, source):
    path = (DOCS / relative_path).resolve()
    source[0] = links.fit_to_site(source[0], path, PAGES[path], PAGES)


def setup(app):
    """Register the directives, and fit the links of each page to the site."""
    app.add_directive("options", directives.Options)
    app.add_directive("scripts", directives.Scripts)
    app.add_directive("modules", directives.Modules)
    app.connect("autodoc-process-docstring", _without_types, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _readable)
    app.connect("source-read", _fit_page)
    app.connect("include-read", _fit_included)
