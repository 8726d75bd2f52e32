"""The report: folders in; frames for a notebook, or a page for people, out. Needs neither Ray nor torch.

folders -> load (`Report`, its frames) -> answer, tables, charts, gallery -> page (HTML, Markdown, CSV)
"""

from arc_ray.report.load import Report, load, load_many
from arc_ray.report.page import write_report

__all__ = ["Report", "load", "load_many", "write_report"]
