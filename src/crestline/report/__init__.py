"""What a person looks at: the page of a run and the model card."""

from crestline.report.card import facts_of, write_card
from crestline.report.page import write_report

__all__ = ["facts_of", "write_card", "write_report"]
