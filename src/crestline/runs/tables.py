"""Parquet tables in and out: columns of plain Python values.

Owns that equal columns give equal bytes. Knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crestline.runs.files import reading, write_atomic
from crestline.types import BadInput


def write_table(
    path: str | Path,
    columns: Mapping[str, Sequence[Any]],
    schema: Mapping[str, str] | None = None,
) -> None:
    """Writes columns as parquet, atomically; the same columns give the same bytes.

    columns: values by name, all of one length. schema: pyarrow's type names by column, such as
    {"update": "int64", "score": "float64", "prompt": "string"}; types of other columns are told
    from the values.
    Raises: BadInput where the disk refuses; ValueError for columns of different lengths, or
    values that do not fit.
    """
    import pyarrow  # 0.2 s: too long for those who write no parquet
    import pyarrow.parquet

    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}")
    types = schema or {}
    arrays = {
        name: pyarrow.array(
            list(values), type=pyarrow.type_for_alias(types[name]) if name in types else None
        )
        for name, values in columns.items()
    }
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())


def read_table(path: str | Path) -> dict[str, list[Any]]:
    """Columns of a parquet file as lists of Python values.

    Raises: BadInput where the file is missing or broken.
    """
    import pyarrow
    import pyarrow.parquet

    with reading(path):
        data = Path(path).read_bytes()
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).read()
        return {name: table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:  # broken bytes make pyarrow raise nearly anything
        said = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path}: not a readable parquet file ({said}); remove or restore it"
        ) from error
