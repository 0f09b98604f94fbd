"""The run folder: new, resumed, refused, locked, cut."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crestline.runs import RunFolder, append_jsonl, new_folder, read_jsonl, write_table
from crestline.types import BadInput

CONFIG = {"seed": 0, "learning_rate": 1e-5, "data": {"source": None, "sizes": (1, 2)}}
HOLD = (
    "import sys, time\n"
    "from crestline.runs import RunFolder\n"
    "folder = RunFolder(sys.argv[1])\n"
    "folder.open_or_create({'seed': 0}, what='run')\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def opened(path: Path, config: Any, **options: Any) -> bool:
    with RunFolder(path) as folder:
        return folder.open_or_create(config, what="rl run", **options)


def test_new_then_resumed(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x"
    assert opened(path, CONFIG) is False
    assert names(path) == {".lock", "config.yaml"}
    assert opened(path, CONFIG) is True
    assert RunFolder(path).read_config() == {**CONFIG, "data": {"source": None, "sizes": [1, 2]}}


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    opened(path, CONFIG)
    before = (path / "config.yaml").read_bytes()
    other = {"seed": 0.0, "learning_rate": 2e-5, "data": {"sizes": [1, 3]}, "beta": 1}
    with pytest.raises(BadInput) as caught:
        opened(path, other)
    assert str(caught.value) == (
        f"{path} was started with other settings than this rl run: learning_rate is 1e-05 there "
        "and 2e-05 here, data.sizes is [1, 2] there and [1, 3] here, beta is not set there and "
        "1 here, and 1 more; choose another --output_dir or give the same settings"
    )
    assert (path / "config.yaml").read_bytes() == before
    changed = {**CONFIG, "learning_rate": 3e-5}
    assert opened(path, changed, ignore=("learning_rate",)) is True
    assert RunFolder(path).read_config()["learning_rate"] == 3e-5
    with pytest.raises(BadInput, match=r"data\.source is None there and 'a' here"):
        opened(path, {**changed, "data": {"source": "a", "sizes": [1, 2]}})
    assert opened(path, {**changed, "data": {"source": "a"}}, ignore=("data",)) is True


def test_settings_that_an_older_version_did_not_know_are_their_defaults(tmp_path: Path) -> None:
    path, now = tmp_path / "x", {**CONFIG, "sampler": "auto", "kl": {"beta": 0.1, "names": ("a",)}}
    now["data"] = {**CONFIG["data"], "shuffle": True}  # type: ignore[dict-item]
    defaults = {
        **{"seed": 7, "sampler": "auto", "kl": {"beta": 0.1, "names": ("a",)}},
        "data": {"source": "b", "shuffle": True},
    }
    opened(path, CONFIG)
    before = (path / "config.yaml").read_bytes()
    with pytest.raises(BadInput, match="sampler is not set there and 'auto' here"):
        opened(path, now)
    for name, value in (("sampler", "ours"), ("kl", {"beta": 0.2, "names": ("a",)})):
        with pytest.raises(BadInput) as caught:
            opened(path, {**now, name: value}, defaults=defaults)
        told = {"sampler": "sampler is 'auto' by default there and 'ours' here"}
        told["kl"] = "kl.beta is 0.1 by default there and 0.2 here"
        assert f"started with other settings than this rl run: {told[name]};" in str(caught.value)
    nested = {**now, "data": {"source": None, "sizes": (1, 2), "shuffle": False}}
    with pytest.raises(BadInput, match=r"data\.shuffle is True by default there and False here"):
        opened(path, nested, defaults=defaults)
    # what was set counts, whatever the default is; and what is not a setting any more is no addition
    with pytest.raises(BadInput, match="seed is 0 there and 7 here"):
        opened(path, {**now, "seed": 7}, defaults=defaults)
    with pytest.raises(BadInput, match="learning_rate is 1e-05 there and not set here"):
        opened(path, {n: v for n, v in now.items() if n != "learning_rate"}, defaults=defaults)
    assert (path / "config.yaml").read_bytes() == before
    assert RunFolder(path).check(now, what="rl run", defaults=defaults) is True
    assert (path / "config.yaml").read_bytes() == before
    assert opened(path, now, defaults=defaults) is True
    assert RunFolder(path).read_config()["data"]["shuffle"] is True
    assert opened(path, now) is True  # it knows them now


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [", "broken YAML"),
        (b"\xff\xfe", "broken YAML"),
        (b"", "expected settings"),
        (b"- 1", "expected settings"),
        (b"!!python/object:os.system {}", "broken YAML"),
    ],
)
def test_broken_configs(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(BadInput, match=told) as caught:
        opened(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="not empty and holds no run"):
        opened(tmp_path, CONFIG)
    assert names(tmp_path) == {"thesis.tex"}
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(BadInput, match="is not a folder"):
            opened(path, CONFIG)


def test_a_start_killed_before_its_config(tmp_path: Path) -> None:
    (tmp_path / ".tmp-config.yaml-0").write_text("half")
    with pytest.raises(BadInput, match="not empty"):
        opened(tmp_path, CONFIG)
    (tmp_path / ".lock").write_text("1")
    assert opened(tmp_path, CONFIG) is False
    assert names(tmp_path) == {".lock", "config.yaml"}


@pytest.mark.parametrize("place", ["", "data", "completions", "evaluations"])
def test_what_a_killed_writer_left_is_gone_when_it_goes_on(tmp_path: Path, place: str) -> None:
    opened(tmp_path, CONFIG)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / ".tmp-train.jsonl-0").write_text("half")
    (tmp_path / place / "train.jsonl").write_text("whole")
    assert opened(tmp_path, CONFIG) is True
    assert not list(tmp_path.rglob(".tmp-*"))
    assert (tmp_path / place / "train.jsonl").exists()


def test_a_kill_at_any_line_leaves_a_folder_that_resumes(
    killed_at_every_line: Callable[..., int],
) -> None:
    def act(folder: Path) -> None:
        with RunFolder(folder / "x") as run:
            run.open_or_create({"seed": 0}, what="run")
            run.append_metrics({"update": 1})
            run.append_metrics({"update": 2})
            run.cut_to(1)

    def check(folder: Path, ended: bool) -> None:
        with RunFolder(folder / "x") as run:
            run.open_or_create({"seed": 0}, what="run")
            run.cut_to(1)
            updates = [row["update"] for row in run.read_metrics()]
            assert updates == [1] if ended else updates in ([], [1])
        assert names(folder / "x") - {"metrics.jsonl"} == {".lock", "config.yaml"}

    killed_at_every_line(lambda folder: None, act, check)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    config=st.dictionaries(
        st.text(max_size=4),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
        max_size=4,
    )
)
@example(config={"\x85": "a\x85b", "\u2028": "\ufeff", "on": "1e-5", "no": "2020-01-01"})
def test_any_config_resumes(tmp_path: Path, config: dict[str, Any]) -> None:
    path = tmp_path / "x"
    (path / "config.yaml").unlink(missing_ok=True)
    assert opened(path, config) is False
    assert opened(path, config) is True
    assert yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")) == config


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "x"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(
        BadInput, match=rf"another crestline process \(pid {process.pid}\) is using"
    ):
        opened(path, {"seed": 0})
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert opened(path, {"seed": 0}) is True


def test_the_lock_goes_with_its_object(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "x")
    folder.open_or_create(CONFIG, what="run")
    assert folder.open_or_create(CONFIG, what="run") is True
    with pytest.raises(BadInput, match="another crestline process"):
        opened(folder.path, CONFIG)
    del folder
    assert opened(tmp_path / "x", CONFIG) is True
    with pytest.raises(BadInput, match="other settings"):
        opened(tmp_path / "x", {})
    assert opened(tmp_path / "x", CONFIG) is True


def test_cutting(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open_or_create(CONFIG, what="rl run")
    folder.cut_to(0)
    for update in range(1, 5):
        folder.append_metrics({"loss": 0.5, "update": update})
        write_table(folder.completions_path(update), {"update": [update]})
    (folder.completions_path(1).parent / ".tmp-completions_00009.parquet-0").write_text("half")
    append_jsonl(folder.checkpoints_path, [{"update": 0}, {"update": 2}, {"update": 4}])
    for update in (0, 2, 4):
        write_table(folder.evaluation_path(update), {"prompt_index": [0]})
    with open(folder.metrics_path, "a") as file:
        file.write('{"update": 5, "los')
    with new_folder(folder.checkpoint_path(2)) as checkpoint:
        (checkpoint / "a").write_text("x")
    for _ in range(2):
        folder.cut_to(2)
        assert [row["update"] for row in folder.read_metrics()] == [1, 2]
        assert [row["update"] for row in read_jsonl(folder.checkpoints_path)] == [0, 2]
        assert names(tmp_path / "evaluations") == {
            "evaluation_00000.parquet",
            "evaluation_00002.parquet",
        }
    assert folder.metrics_path.read_text().startswith('{"update": 1, "loss": 0.5}\n')
    assert folder.checkpoint_path(2).is_dir()
    folder.close()
    assert opened(tmp_path, CONFIG) is True
    assert names(tmp_path / "completions") == {
        "completions_00001.parquet",
        "completions_00002.parquet",
    }
