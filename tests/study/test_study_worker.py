"""What of a run that was begun can be gone on with."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from nvsubq.study.worker import as_begun, clear_unless_same
from nvsubq.training.unfinished import MARK, fingerprint


def begin(folder, **values):
    """A run folder with a checkpoint, and the config that it was begun with."""
    config = OmegaConf.create({"seed": 0, "threads": 1, "resume": True, **values})
    (folder / "config.yaml").write_text("# a header\n" + OmegaConf.to_yaml(config))
    (folder / MARK).write_text(fingerprint(config))
    (folder / "log.txt").write_text("")
    (folder / "checkpoints").mkdir()
    return config


@pytest.mark.parametrize("threads", [1, 2, None])
def test_a_run_keeps_its_threads_and_what_it_has(tmp_path, capsys, threads):
    config = begin(tmp_path)
    again = as_begun(tmp_path, OmegaConf.merge(config, {"threads": threads}))
    assert again == config
    clear_unless_same(tmp_path, again)
    assert (tmp_path / "checkpoints").is_dir()
    assert capsys.readouterr().out == ""


def test_another_config_begins_anew_and_says_so(tmp_path, capsys):
    config = begin(tmp_path)
    clear_unless_same(tmp_path, as_begun(tmp_path, OmegaConf.merge(config, {"seed": 1})))
    assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]
    assert "begins anew" in capsys.readouterr().out


def test_a_run_that_died_before_its_config_was_written_begins(tmp_path):
    config = OmegaConf.create({"seed": 0, "threads": 2})
    assert as_begun(tmp_path, config) == config
    (tmp_path / "config.yaml").touch()
    assert as_begun(tmp_path, config) == config
    clear_unless_same(tmp_path, config)
    assert not list(tmp_path.iterdir())
