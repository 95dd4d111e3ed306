"""How the documentation is built: ``sphinx-build -W -n -b html docs docs/_build/html``."""

import os
import sys
from pathlib import Path

from bs4 import BeautifulSoup

import sktorch_linreg

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
# for thumbnails.py
sys.path.insert(0, str(ROOT / "docs"))

project = "sktorch_linreg"
author = "The sktorch_linreg developers"
copyright = author
version = release = sktorch_linreg.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["colon_fence"]
# default="relu" is code, and so are its quotes
smartquotes = False
# in the list of what is on a page, methods without their class
toc_object_entries_show_parents = "hide"
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
myst_heading_anchors = 3
# links to files of the repository, which are not part of the site
suppress_warnings = ["myst.xref_missing"]

# scikit-learn's documentation is not looked up, which would need a network
nitpick_ignore_regex = [("py:obj", r"sklearn\..*"), ("py:obj", r"\w+_")]

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "image_scrapers": ("thumbnails.save_figures",),
    "thumbnail_size": (640, 448),
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,
    "abort_on_example_error": True,
}


def describe_thumbnails(app, pagename, templatename, context, doctree):
    """Give the gallery's pictures the titles of their examples as alternative text."""
    if "sphx-glr-thumbcontainer" in context.get("body", ""):
        soup = BeautifulSoup(context["body"], "html.parser")
        for box in soup.select(".sphx-glr-thumbcontainer"):
            box.img["alt"] = box.select_one(".sphx-glr-thumbnail-title").text
        context["body"] = str(soup)


def setup(app):
    app.connect("html-page-context", describe_thumbnails)


html_theme = "pydata_sphinx_theme"
html_title = f"sktorch_linreg {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {name: [] for name in ("index", "getting_started", "architecture")}
html_theme_options = {
    "show_prev_next": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
