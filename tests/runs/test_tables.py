"""Parquet tables come back as they were, and equal columns give equal bytes."""

import doctest
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crestline.runs import checkpoints, files, folder, lock, read_table, tables, write_table
from crestline.types import BadInput

SCHEMA = {"update": "int64", "completion": "string", "score": "float64"}


@pytest.mark.parametrize("module", [checkpoints, files, folder, lock, tables])
def test_the_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.none() | st.text(max_size=9),
            st.none() | st.floats(allow_nan=False),
        ),
        max_size=5,
    )
)
def test_columns_come_back(tmp_path: Path, rows: list[Any]) -> None:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(SCHEMA)}
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    write_table(one, columns, SCHEMA)
    write_table(two, columns, SCHEMA)
    assert read_table(one) == columns
    assert one.read_bytes() == two.read_bytes()


def test_types_are_told_from_values(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, {"a": [1, 2.5], "b": [None, None], "c": [math.nan, 1.0]})
    found = read_table(path)
    assert found["a"] == [1.0, 2.5] and found["b"] == [None, None]
    assert math.isnan(found["c"][0])


def test_columns_of_different_lengths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"differ in length: \{'a': 1, 'b': 0\}"):
        write_table(tmp_path / "t.parquet", {"a": [1], "b": []})
    assert not list(tmp_path.iterdir())


def test_broken_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, {"a": list(range(100))})
    whole = path.read_bytes()
    for data in (b"", b"x" * 50, whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match="not a readable parquet file") as caught:
            read_table(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="cannot read"):
        read_table(tmp_path / "none.parquet")


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, crestline.runs\n"
        "assert not {'torch', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
