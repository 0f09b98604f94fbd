"""Reading rows: every kind of file, every way it can be broken, and a fuzz of both."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crestline.data.formats import read_demonstrations, read_prompts
from crestline.data.rankings import read_all_rankings, read_rankings
from crestline.data.rows import read_rows
from crestline.types import BadInput

ROWS = [{"prompt": "a, b", "n": "1"}, {"prompt": 'say "ü"\nnow', "n": "2"}]


def refusal(path: Path, content: bytes | str, **options: str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput) as caught:
        read_rows(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message.replace(str(path), "FILE")


def in_kind(kind: str) -> bytes:
    if kind == "jsonl":
        return "\n\n".join(json.dumps(row) for row in ROWS).encode()
    if kind == "json":
        return json.dumps(ROWS, indent=2).encode()
    return 'prompt,n\r\n"a, b",1\r\n"say ""ü""\nnow",2\r\n'.encode()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_text_kinds_hold_the_same_rows(
    tmp_path: Path, kind: str, mark: bytes, packed: bool
) -> None:
    data = mark + in_kind(kind)
    path = tmp_path / (f"rows.{kind}.gz" if packed else f"rows.{kind}")
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    rows = read_rows(str(path))
    assert [row.values for row in rows] == ROWS
    lines = {"jsonl": (1, 3), "json": (2, 6), "csv": (2, 3)}[kind]
    assert [row.where for row in rows] == [f"{path}:{line}" for line in lines]


def test_parquet_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    rows = read_rows(str(path))
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == f"{path} row 2"


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    """What `datasets` itself writes: one split, and several."""
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "several")
    rows = read_rows(str(tmp_path / "one"))
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == f"{tmp_path / 'one' / 'data-00001-of-00002.arrow'} row 1"
    assert [row.values for row in read_rows(str(tmp_path / "several"), split="test")] == ROWS[1:]
    with pytest.raises(BadInput, match="no split 'dev'; found test, train"):
        read_rows(str(tmp_path / "several"), split="dev")


def test_folders_named_like_partitions_add_no_columns(tmp_path: Path) -> None:
    (tmp_path / "lang=en").mkdir()
    path = tmp_path / "lang=en" / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_rows(str(path))[0].values == ROWS[0]


def test_text_lines(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("one\u2028still one\r\n\n  two\n".encode())
    rows = read_rows(str(path))
    assert [row.values["text"] for row in rows] == ["one\u2028still one", "  two"]
    assert rows[1].where.endswith(":3")


def test_json_lines_under_the_ending_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert [row.values["a"] for row in read_rows(str(path))] == [1, 2]


def test_a_line_separator_inside_a_json_string_is_no_new_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert read_rows(str(path))[0].values == {"a": "x\u2028y\x85z"}


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert len(read_rows(str(path))[0].values["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": }\n', "FILE:3: broken JSON at column 7"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "FILE:2: found a list of 1, expected a JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "FILE:2: not UTF-8 (byte 0xff)"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "FILE:1: not UTF-8 (it looks like UTF-16)"),
        ("a.jsonl", "[" * 100_000, "FILE:1: unusable JSON"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "FILE:1: unusable JSON"),
        ("a.jsonl", "\n \n", "FILE: no rows"),
        ("a.json", '[{"a": 1},\n {"a": 2},\n 3]', "FILE:3: found number 3"),
        ("a.json", '[{"a": 1},\n {"a" 2}]', "FILE:2: broken JSON at column 7"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "FILE:2: broken JSON: expected ','"),
        ("a.json", '[{"a": 1}]\n x', "FILE:2: text after the end"),
        ("a.json", '{\n "data": []}', "FILE:1: expected a JSON list"),
        ("a.json", "[]", "FILE: no rows"),
        ("a.json", '[{"a": 1},', "FILE:1: broken JSON at column 11"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "FILE:3: 3 columns where the header has 2 (a, b)"),
        ("a.csv", 'a,b\n"x\ny",2\n1\n', "FILE:4: 1 columns"),
        ("a.csv", "a,b,a\n1,2,3\n", "FILE:1: column 'a' stands twice"),
        ("a.csv", 'a,b\n1,2\n"open,2\n', "FILE:3: broken CSV"),
        ("a.csv", "a,b\n", "FILE: no rows"),
        ("a.txt", "", "FILE: no rows"),
        ("a.txt.gz", b"not gzip", "FILE: not a complete gzip file"),
        ("a.txt.gz", gzip.compress(b"text" * 999, mtime=0)[:-9], "FILE: not a complete gzip file"),
        ("a.parquet", b"PAR1 broken PAR1", "FILE: not a readable parquet file"),
        ("a.parquet", b"", "FILE: not a readable parquet file"),
        ("a.arrow", b"ARROW1 broken", "FILE: not a readable Arrow file"),
        ("a.bin", b"x", "cannot read FILE: unknown ending; give one of .jsonl, .json"),
        ("a.parquet.gz", b"x", "cannot read FILE: unknown ending"),
    ],
)
def test_broken_files_are_told_in_one_line(
    tmp_path: Path, name: str, content: bytes | str, told: str
) -> None:
    assert refusal(tmp_path / name, content).startswith(told)


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "owner/missing.jsonl", "a/b/c", "x\0y", "x" * 999]
)
def test_missing_files(name: str) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        read_rows(name)


def test_no_source() -> None:
    with pytest.raises(BadInput, match="no data set given"):
        read_rows("")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    with pytest.raises(BadInput, match="not a regular file"):
        read_rows(str(path))


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder without data files"):
        read_rows(str(tmp_path))
    (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / ".hidden.jsonl").write_text("broken")
    (tmp_path / "README.md").write_text("words")
    assert [row.values["a"] for row in read_rows(str(tmp_path))] == [1, 2]
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b'{"a": 3}\n', mtime=0))
    assert [row.values["a"] for row in read_rows(str(tmp_path), split="test")] == [3]
    with pytest.raises(BadInput, match=r"no split 'train'; found test\.jsonl\.gz"):
        read_rows(str(tmp_path))
    (tmp_path / "train-00000-of-00001.jsonl").write_text('{"a": 4}\n')
    assert [row.values["a"] for row in read_rows(str(tmp_path))] == [4]


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["pairs_train.jsonl", "pairs_test.jsonl"], "train", [1]),
        (["pairs_train.jsonl", "pairs_test.jsonl"], "test", [0]),
        (["my_train_v2.jsonl", "my_train_v2_test.jsonl"], "train", [0]),
        (["train-v1.jsonl", "train-v1-test.jsonl"], "train", [1]),
        (["a-train-00000-of-00001.jsonl", "a-test-00000-of-00001.jsonl"], "train", [1]),
        (["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"], "train", [0, 1]),
        (
            ["train_sft-00000-of-00001-ab.jsonl", "train_gen-00000-of-00001-ab.jsonl"],
            "train",
            "found train",
        ),
        (["train_0.jsonl", "Test-1.jsonl", "train1.jsonl"], "train", [1, 2]),
        (["train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl"], "train_sft", [1]),
        (
            ["train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl"],
            "train",
            "found test",
        ),
        (["train.jsonl", "pre_train.jsonl"], "train", [1]),
        (["pairs_train.jsonl"], "test", "found pairs_train.jsonl"),
        (["latest.jsonl", "trains.jsonl"], "train", [0, 1]),
    ],
)
def test_files_of_folders_that_have_the_split_within_their_names(
    tmp_path: Path, names: list[str], split: str, found: Any
) -> None:
    for name in names:
        (tmp_path / name).write_text(json.dumps({"file": name}) + "\n")
    if isinstance(found, str):
        with pytest.raises(BadInput, match=f"no split '{split}'; {found}"):
            read_rows(str(tmp_path), split=split)
    else:
        rows = read_rows(str(tmp_path), split=split)
        assert [row.values["file"] for row in rows] == [sorted(names)[i] for i in found]


def test_no_permission(tmp_path: Path) -> None:
    """Root may read everything, so a child process gives its rights up first."""
    if os.getuid() != 0:
        pytest.skip("needs root to give up rights")
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    path = tmp_path / "secret.jsonl"
    path.write_text('{"a": 1}\n')
    path.chmod(0)
    code = (
        "import os, sys\n"
        "from crestline.data.rows import read_rows\n"
        "from crestline.types import BadInput\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: read_rows(sys.argv[1])\n"
        "except BadInput as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"cannot read {path}: no permission;")


def test_the_hub_offline_is_told_in_one_line() -> None:
    code = (
        "import sys, crestline.data\n"
        "assert not {'torch', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "from crestline.types import BadInput\n"
        "try: crestline.data.read_rows('nobody-here/no-such-data', split='test')\n"
        "except BadInput as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.count("\n") == 1
    assert "nobody-here/no-such-data" in done.stdout and "(split 'test') it failed" in done.stdout


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "a"]), inner, max_size=2)
    ),
    max_leaves=6,
)
FRAGMENTS = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b"\\", b",", b"\n", b"\r", b"NaN", b"\0"]
)
BYTES = st.lists(
    st.binary(max_size=8) | FRAGMENTS | JSON.map(lambda value: json.dumps(value).encode() + b"\n"),
    max_size=8,
).map(b"".join)


@pytest.mark.parametrize(
    "name", ["f.jsonl", "f.json", "f.csv", "f.txt", "f.txt.gz", "f.parquet", "f.arrow"]
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=BYTES)
def test_any_bytes_give_rows_or_bad_input(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    try:
        rows = read_rows(str(path))
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert rows and all(isinstance(row.values, dict) for row in rows)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_damaged_parquet_gives_rows_or_bad_input(tmp_path: Path, at: int, byte: int) -> None:
    path = tmp_path / "f.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 5), path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data)
    try:
        read_rows(str(path))
    except BadInput as error:
        assert "\n" not in str(error)


def test_caches_of_datasets_are_no_data(tmp_path: Path) -> None:
    from datasets import Dataset, load_from_disk

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    saved = load_from_disk(str(tmp_path / "saved"))
    mapped = saved.map(lambda row: {"n": row["n"] + "!"})
    mapped.filter(lambda row: row["n"] == "1!")
    assert len(list((tmp_path / "saved").glob("*.arrow"))) > 1
    assert [row.values for row in read_rows(str(tmp_path / "saved"))] == ROWS
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(BadInput, match=r"state\.json: does not say which files"):
        read_rows(str(tmp_path / "saved"))


def test_both_kinds_of_arrow_files(tmp_path: Path) -> None:
    table, path = pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.arrow"
    for opened in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        with opened(str(path), table.schema) as writer:
            writer.write_table(table)
        assert [row.values for row in read_rows(str(path))] == ROWS


PYTHON_CHATS = [
    "[{'role': 'user', 'content': 'Hi'}]",
    "[{'content': 'Hi', 'role': 'user'}\n {'role': 'assistant'}]",
    """ [ {'role': 'user', 'content': "it's"}] """,
]


@pytest.mark.parametrize("cell", PYTHON_CHATS)
@pytest.mark.parametrize(
    ("read", "header"),
    [
        (read_prompts, "n,prompt"),
        (read_demonstrations, "prompt,completion"),
        (read_demonstrations, "n,messages"),
        (read_rankings, "chosen,rejected"),
        (read_rankings, "rejected,chosen"),
        (read_rankings, "chosen,rejected,prompt"),
    ],
)
def test_chats_in_csv_that_are_no_json_are_refused(
    tmp_path: Path, read: Any, header: str, cell: str
) -> None:
    path, names = tmp_path / "rows.csv", header.split(",")
    write_csv(path, names, ["p"] * (len(names) - 1) + [cell])
    with pytest.raises(BadInput) as caught:
        read(str(path))
    told = f"{path}:2: {names[-1]} looks like chat messages and is no JSON; write them as JSON"
    assert str(caught.value).startswith(told)


def write_csv(path: Path, *rows: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize("cell", PYTHON_CHATS)
def test_chats_in_csv_that_nobody_reads_are_texts(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, ["prompt", "chosen", "rejected", "raw"], ["p", "a", "b", cell])
    reading = read_all_rankings(str(path))
    assert reading.rankings[0].completions == ("a", "b") and reading.unused == {"raw": 1}
    (found,) = read_prompts(str(path))
    assert found.columns["raw"] == cell and type(found.columns["raw"]) is str


@pytest.mark.parametrize(
    "cell",
    ['[{"role": "user", "content": "hi"}, ...] is the format', '[{"role": "user", "con', "[{a}]"],
)
def test_cells_that_only_begin_like_chats_are_texts(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, ["prompt", "chosen", "rejected"], [cell, cell, "b"])
    (found,) = read_rankings(str(path))
    assert (found.prompt, found.completions) == (cell, (cell, "b"))


def test_chats_in_csv_may_have_lines_of_their_own(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    write_csv(tmp_path / "rows.csv", ["prompt"], [json.dumps(chat, indent=2)])
    assert read_prompts(str(tmp_path / "rows.csv"))[0].text == chat


def test_chats_in_csv_may_say_more_than_role_and_content(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi", "name": "bob"}]
    path = tmp_path / "rows.csv"
    quoted = json.dumps(chat).replace('"', '""')
    path.write_text(f'prompt\n"{quoted}"\n"[{{x}}]"\n')
    assert [row.values["prompt"] for row in read_rows(str(path))] == [chat, "[{x}]"]
