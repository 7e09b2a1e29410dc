"""The documentation site: Sphinx reads these pages, the package's docstrings and the catalogues of what it declares."""

import sys
from pathlib import Path

import eqsat_deploy

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # `catalogues`

(HERE / "notebooks").mkdir(
    exist_ok=True
)  # Sphinx reads one folder, from which the pages are one step less away
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    (HERE / "notebooks" / notebook.name).write_text(notebook.read_text().replace("](../docs/", "](../"))

project = "eqsat-deploy"
author = "The eqsat-deploy authors"
release = version = eqsat_deploy.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "catalogues"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "eqsat-deploy"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"footer_icons": [], "source_repository": ""}
html_copy_source = html_show_sourcelink = html_show_copyright = False

nb_execution_mode = "off"  # notebooks are stored with the outputs that the tests reproduce
myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3

default_role = "code"  # what docstrings put between single backquotes
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_use_rtype = False
