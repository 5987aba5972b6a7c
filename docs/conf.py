"""How Sphinx builds the site: `make docs`. Nothing is taken from the network, before or after."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE / "reference"))

project = "reluguard"
extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build", "**.ipynb"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True
suppress_warnings = ["myst.header"]  # the operations guide and the changelog come in one level down

html_theme = "furo"
html_title = "reluguard"
html_show_copyright = False
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_exclude = ".linenos, .gp"


def setup(app: "Sphinx") -> None:
    """Write the pages that the code itself tells, before Sphinx looks for pages."""
    del app
    import_module("write_pages").write_all()
    import_module("write_notebooks").write_notebooks()
