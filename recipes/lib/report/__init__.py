"""One self-contained HTML page per run: numbers, curves, calibration and samples.

Import it late: it brings matplotlib, scipy and Jinja2 with it.
"""

from recipes.lib.report.page import write_quickstart_report, write_report

__all__ = ["write_quickstart_report", "write_report"]
