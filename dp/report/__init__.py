"""The data of a privacy report, in plain words and numbers; the page is drawn floors above.

It holds what NIST SP 800-226, "How to DP-fy ML" (arXiv 2303.00654) and the OpenDP deployments
registry ask for, as far as a ledger can know it, and says what a ledger cannot know.

==================  ==============================================================
``data``            the structures
``build``           from an audited ledger to releases, costs and budget
``parameters``      a manifest's parameters with their meanings
``losses``          where devices were lost
``words``           who may have seen what, assumptions, what is not protected
``answers``         the reporting lists' questions, and which of them a ledger cannot answer
``reading``         how to read any report, and how to compute its figures again
==================  ==============================================================
"""

from dp.report.build import report_data
from dp.report.data import BudgetRow, ReleaseRow, ReportData, TaskReport

__all__ = ["BudgetRow", "ReleaseRow", "ReportData", "TaskReport", "report_data"]
