"""Every file format in and out, with line-numbered errors; splits."""

from crestline.data.columns import Keys
from crestline.data.formats import (
    demonstrations_as_rows,
    prompts_as_rows,
    read_demonstrations,
    read_prompts,
    read_samples,
    read_texts,
    samples_as_rows,
    texts_as_rows,
)
from crestline.data.parsers import Row
from crestline.data.rankings import (
    Reading,
    Skipped,
    rankings_as_rows,
    read_all_rankings,
    read_rankings,
    read_rankings_and_skipped,
    uninformative,
)
from crestline.data.rows import read_rows
from crestline.data.splits import canonical_prompt, side_of, split_by_prompt, split_by_text
from crestline.data.writers import Lost, write_rows

__all__ = [
    "Keys",
    "Lost",
    "Reading",
    "Row",
    "Skipped",
    "canonical_prompt",
    "demonstrations_as_rows",
    "prompts_as_rows",
    "rankings_as_rows",
    "read_all_rankings",
    "read_demonstrations",
    "read_prompts",
    "read_rankings",
    "read_rankings_and_skipped",
    "read_rows",
    "read_samples",
    "read_texts",
    "samples_as_rows",
    "side_of",
    "split_by_prompt",
    "split_by_text",
    "texts_as_rows",
    "uninformative",
    "write_rows",
]
