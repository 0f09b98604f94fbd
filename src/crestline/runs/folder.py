"""A run is a folder: its config, its lock, its files by name, and cutting it back to an update.

Owns the names inside the folder. Knows nothing of what training or the watch mean by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from crestline.runs.checkpoints import checkpoint_path, clean_temporary, remove_folder
from crestline.runs.files import (
    TEMPORARY,
    append_jsonl,
    read_jsonl,
    reading,
    sync_folder,
    truncate_jsonl,
    write_atomic,
    writing,
)
from crestline.runs.lock import LOCK_NAME, FolderLock
from crestline.types import BadInput

_NUMBERED = re.compile(r"(?:completions|evaluation)_(\d+)\.parquet")


class RunFolder:
    """The folder of one run or stage; paths can be asked for before it is opened.

    >>> RunFolder("runs/x/rl").completions_path(12).name
    'completions_00012.parquet'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: FolderLock | None = None
        self._made: list[Path] | None = None  # folders that a new run made; None: not new

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per update."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """One JSON object per kept checkpoint."""
        return self.path / "checkpoints.jsonl"

    def completions_path(self, update: int) -> Path:
        """What update `update` trained on."""
        return self.path / "completions" / f"completions_{update:05d}.parquet"

    def evaluation_path(self, update: int) -> Path:
        """The held-out prompts answered by checkpoint `update`."""
        return self.path / "evaluations" / f"evaluation_{update:05d}.parquet"

    def checkpoint_path(self, update: int) -> Path:
        """The state after `update` updates."""
        return checkpoint_path(self.path, update)

    def open_or_create(
        self,
        config: Mapping[str, Any],
        *,
        what: str,
        ignore: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> bool:
        """Takes the folder for this process, writes config.yaml or checks that it is the same run.

        Leftovers of killed writers are removed. Until `close`, no other process can open the
        folder.
        config: plain values, nested mappings and lists. what: the kind of run, for messages, such
        as "rl run".
        ignore: dotted keys that may change; config.yaml then gets their new values.
        defaults: what settings are that config.yaml lacks, because the version that wrote it did
        not know them yet; nested as `config` is. config.yaml then gets them. None: it lacks nothing.
        Returns: True if the run was there before (resume), False if it is new.
        Raises: BadInput for a foreign folder, other settings, a broken config, another process or
        a bad disk.
        """
        wanted = yaml.safe_load(_yaml(config))
        self._refuse_foreign(what)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        if self._lock is None:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
        try:
            self._refuse_foreign(what)
            resumed = self.config_path.exists()
            if resumed:
                found = self.read_config()
                self._refuse_difference(found, wanted, what, ignore, defaults or {})
            self._made = None if resumed else made
            if not resumed or found != wanted:
                write_atomic(self.config_path, _yaml(wanted))
                with writing(self.path):
                    sync_folder(self.path.absolute().parent)
            for name in ("", "data", "completions", "evaluations"):
                clean_temporary(self.path / name)
        except BaseException:
            self.close()
            raise
        return resumed

    def check(
        self,
        config: Mapping[str, Any],
        *,
        what: str,
        ignore: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> bool:
        """Raises what `open_or_create` would of the folder's contents, and touches nothing.

        Returns: True if the run is there (it would resume), False if it would be new.
        Raises: BadInput for a foreign folder, other settings or a broken config.
        """
        self._refuse_foreign(what)
        if not self.config_path.exists():
            return False
        wanted = yaml.safe_load(_yaml(config))
        self._refuse_difference(self.read_config(), wanted, what, ignore, defaults or {})
        return True

    def read_config(self) -> dict[str, Any]:
        """The config that the run was started with.

        Raises: BadInput where it is missing or broken.
        """
        with reading(self.config_path):
            data = self.config_path.read_bytes()
        try:
            config = yaml.safe_load(data.decode("utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:200]
            raise BadInput(
                f"{self.config_path}: broken YAML ({said}); restore it or choose another "
                "--output_dir"
            ) from error
        if not isinstance(config, dict):
            raise BadInput(
                f"{self.config_path}: expected settings such as 'seed: 0'; restore it or choose "
                "another --output_dir"
            )
        return config

    def close(self) -> None:
        """Lets other processes have the folder; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def abandon(self, *prepared: str) -> None:
        """Closes the folder; a new run that wrote nothing but its config leaves no trace.

        For bad input: whoever mends it can start again with other settings.
        prepared: names of folders that do not count either: their files are made from the config.
        Raises: BadInput where the disk refuses.
        """
        if self._lock is not None and self._made is not None:
            own = [self.config_path.name, LOCK_NAME]
            if {entry.name for entry in self.path.iterdir()} <= {*own, *prepared}:
                with writing(self.path):
                    for name in prepared:
                        remove_folder(self.path / name)
                    for name in own:
                        (self.path / name).unlink(missing_ok=True)
                    for folder in self._made:
                        folder.rmdir()
        self.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds the metrics of one update and waits until the disk has them.

        row: `update` and the metrics.
        Raises: BadInput where the disk refuses.
        """
        append_jsonl(self.metrics_path, [{"update": row["update"], **row}])

    def read_metrics(self) -> list[dict[str, Any]]:
        """Metrics of all updates so far; none if there are none yet."""
        return read_jsonl(self.metrics_path, missing_ok=True)

    def cut_to(self, update: int) -> None:
        """Drops what updates after `update` wrote, so that they can be done again.

        That is: rows of metrics.jsonl and checkpoints.jsonl, completions and evaluations.
        Checkpoint folders and answers stay. A kill in between leaves a folder that can be cut
        again.
        Raises: BadInput where a file is broken or the disk refuses.
        """

        def keep(row: dict[str, Any]) -> bool:
            number = row.get("update")
            return not isinstance(number, int | float) or number <= update

        truncate_jsonl(self.metrics_path, keep)
        truncate_jsonl(self.checkpoints_path, keep)
        for folder in (self.path / "completions", self.path / "evaluations"):
            if not folder.is_dir():
                continue
            with writing(folder):
                for entry in sorted(folder.iterdir()):
                    name = _NUMBERED.fullmatch(entry.name)
                    if name and int(name.group(1)) > update:
                        entry.unlink()
                sync_folder(folder)

    def _refuse_foreign(self, what: str) -> None:
        """Refuses a folder that holds anything but a run of ours."""
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise BadInput(
                f"{self.path} is not a folder; choose another --output_dir for the {what}"
            ) from error
        except OSError as error:
            with writing(self.path):
                raise error
        if "config.yaml" in names:
            return
        if LOCK_NAME in names:  # a start that was killed before it wrote its config
            names = {name for name in names if name != LOCK_NAME and not name.startswith(TEMPORARY)}
        if names:
            raise BadInput(
                f"{self.path} is not empty and holds no run (no config.yaml); "
                f"choose another --output_dir for the {what}"
            )

    def _refuse_difference(
        self,
        found: Mapping[str, Any],
        wanted: Mapping[str, Any],
        what: str,
        ignore: Sequence[str],
        defaults: Mapping[str, Any],
    ) -> None:
        whole = _completed(found, yaml.safe_load(_yaml(defaults)))
        there, here = dict(_flat(whole)), dict(_flat(wanted))
        added = there.keys() - dict(_flat(found)).keys()
        different = [
            key
            for key in {**here, **there}
            if (key in there, there.get(key)) != (key in here, here.get(key))
            and not any(key == name or key.startswith(f"{name}.") for name in ignore)
        ]
        if not different:
            return
        told = [
            f"{key} is {_told(there, key)}{' by default' if key in added else ''} there "
            f"and {_told(here, key)} here"
            for key in different
        ]
        more = f", and {len(told) - 3} more" if len(told) > 3 else ""
        raise BadInput(
            f"{self.path} was started with other settings than this {what}: "
            f"{', '.join(told[:3])}{more}; "
            "choose another --output_dir or give the same settings"
        )


def _yaml(config: Mapping[str, Any]) -> str:
    """The config as YAML, in readable letters where YAML can hold them (it loses U+0085)."""
    plain = _plain(config)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) == plain:
        return text
    escaped: str = yaml.safe_dump(plain, sort_keys=False)
    return escaped


def _plain(value: Any) -> Any:
    """Mappings, sequences and paths as YAML's own; new objects, so that no anchors are written."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _completed(found: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were found, and the defaults of those that were not, in nested ones too.

    >>> _completed({"seed": 3, "kl": {"beta": 1}}, {"seed": 0, "kl": {"beta": 0, "target": 2}, "n": 5})
    {'seed': 3, 'kl': {'beta': 1, 'target': 2}, 'n': 5}
    """
    whole = dict(found)
    for key, value in defaults.items():
        if key not in whole:
            whole[key] = value
        elif isinstance(value, Mapping) and isinstance(whole[key], Mapping):
            whole[key] = _completed(whole[key], value)
    return whole


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _told(config: Mapping[str, Any], key: str) -> str:
    text = repr(config[key]) if key in config else "not set"
    return text if len(text) <= 60 else text[:57] + "..."
