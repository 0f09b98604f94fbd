"""The converting verb: rankings of any format that we read become another, with account of what is lost. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crestline.data.columns import Keys
from crestline.data.rankings import Reading, read_all_rankings
from crestline.data.writers import Lost, csv_text, write_rows
from crestline.pipeline.configs import ConvertConfig
from crestline.runs.files import check_place, write_atomic, write_json, write_jsonl_atomic
from crestline.runs.tables import write_table
from crestline.training.configs import required
from crestline.types import BadInput

ENDINGS = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was read and what was written: rows of the file, rankings in them, rows of the new file."""

    path: Path
    format: str
    reading: Reading
    num_written: int
    lost: Lost

    def lines(self) -> list[str]:
        """The account for people."""
        reading = self.reading
        told = [
            f"read {reading.num_rows:,} rows: {len(reading.rankings):,} rankings",
            f"skipped: {reading.skipped}",
            f"wrote {self.num_written:,} rows to {self.path} as {self.format}",
            f"lost: {self.lost}",
        ]
        if reading.unused:
            columns = (f"{name} ({count:,} rows)" for name, count in reading.unused.items())
            told.append(f"not read: {', '.join(columns)}")
        return told


def convert(config: ConvertConfig) -> Converted:
    """Read rankings, write them in another format, whole or not at all.

    Raises: BadInput where nothing can be read or written, or the output exists and may not be replaced.
    """
    required(config, "dataset_name", "output_file")
    path = check_output(config)
    reading = read(config)
    rows, lost = write_rows(reading.rankings, config.format)
    if not rows:
        raise BadInput(
            f"{config.dataset_name}: nothing to write as {config.format} ({lost}); "
            "--format nemo holds every ranking"
        )
    write(path, rows)
    return Converted(
        path=path, format=config.format, reading=reading, num_written=len(rows), lost=lost
    )


def read(config: ConvertConfig) -> Reading:
    """The rankings that the config names, under the names that it gives."""
    keys = Keys(
        prompt=config.prompt_key,
        chosen=config.chosen_key,
        rejected=config.rejected_key,
        source=config.source_key,
        question=config.question,
        buckets=tuple(name.strip() for name in config.buckets.split(",") if name.strip()),
    )
    return read_all_rankings(
        config.dataset_name, split=config.dataset_train_split, keep_all=config.keep_all, keys=keys
    )


def check_output(config: ConvertConfig) -> Path:
    """The file to write. Raises BadInput for another ending, or if it exists and may not be replaced."""
    path = Path(config.output_file)
    if path.suffix not in ENDINGS:
        raise BadInput(f"--output_file {path}: expected the ending {', '.join(ENDINGS)}")
    if (path.suffix == ".csv") != (config.format == "csv"):
        raise BadInput(
            f"--output_file {path}: --format csv and the ending .csv go together; "
            f"--format is {config.format}"
        )
    if path.is_dir():
        raise BadInput(f"--output_file {path} is a folder; give a file")
    check_place("output_file", path)
    if path.exists() and not config.overwrite:
        raise BadInput(f"--output_file {path} exists; choose another, or --overwrite")
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows in the kind of file that the ending names, atomically."""
    if path.suffix == ".jsonl":
        write_jsonl_atomic(path, rows)
    elif path.suffix == ".json":
        write_json(path, rows)
    elif path.suffix == ".csv":
        write_atomic(path, csv_text(rows))
    else:
        names = dict.fromkeys(name for row in rows for name in row)
        try:
            write_table(path, {name: [row.get(name) for row in rows] for name in names})
        # pyarrow's, for texts beside chats and the like
        except (ValueError, TypeError, OverflowError) as error:
            raise BadInput(
                f"--output_file {path}: a parquet column holds values of one kind, and here are "
                "several, such as texts beside chats; write .jsonl"
            ) from error
