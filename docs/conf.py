"""How is the site built? By `make docs`, from the Markdown in this folder and the dataclasses of the code."""

import sys
from pathlib import Path

# The reference is read from this checkout's code.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

project = "DistillFlow on Ray"
copyright = "the authors of DistillFlow on Ray"
html_title = project

extensions = ["myst_parser", "docs.make.reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["make"]
# Code in a sentence begins with two hyphens.
smartquotes = False

# Links such as method.md#deviations lead to headings, as they do on code hosts.
myst_heading_anchors = 4
# A page of measured results has no code to highlight, and a command line isn't Python.
highlight_language = "none"

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_depth": 3,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False
