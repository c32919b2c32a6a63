"""`nvsubq compare`: grouping, spread, formats, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from omegaconf import OmegaConf

from nvsubq.cli.main import main


def write(
    folder: Path, *, core="S5", seed=0, dice: float | None = 0.5, dims=(8,), lr=0.1, baselines=None, **more
) -> Path:
    """A run folder with what the command reads; without `dice` an unfinished one."""
    folder.mkdir(parents=True)
    target = f"nvsubq.cores.{core}"
    config = {
        "core": {"_target_": target, "d_state": 4 if core == "S5" else 16},
        "model": {"_target_": "nvsubq.models.NDUNet", "dims": list(dims), "mixer": {"core": "${core}"}},
        "task": {"lr": lr},
        "data": {"seed": "${seed}"},
        "seed": seed,
        "name": "toy",
        "paths": {"runs": str(folder.parent)},
        **more,
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "resolved.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config), resolve=True))
    if dice is not None:
        figures = {
            "name": "toy", "model": "NDUNet", "core": target, "core_name": core, "seed": seed, "train_s": 2.0,
            "parameters": 1234, "metrics": {"test/dice": dice, "test/loss": 0.1, "val/dice": 0.3},
            "baselines": baselines or {},
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(figures))
    return folder


def table(capsys, *arguments: object) -> list[dict[str, str]]:
    assert main(["compare", "--format", "csv", *map(str, arguments)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_seeds_are_one_line_with_mean_and_spread(tmp_path, capsys):
    for seed, dice in enumerate([0.5, 0.7]):
        write(tmp_path / "sweep" / f"s5_{seed}", seed=seed, dice=dice, baselines={"histogram": {"dice": 0.4}})
    write(tmp_path / "mamba", core="Mamba", dice=0.8)
    rows = table(capsys, tmp_path / "sweep", tmp_path / "mamba")
    assert [row["core"] for row in rows] == ["S5", "Mamba", "histogram"]
    assert list(rows[0]) == [
        "core",
        "runs",
        "parameters",
        "dice",
        "dice_std",
        "training",
    ]  # no d_state, no seed
    assert (rows[0]["runs"], rows[0]["dice"], rows[0]["dice_std"]) == ("2", "0.60", "0.14")
    assert (rows[1]["runs"], rows[1]["dice"], rows[1]["dice_std"]) == ("1", "0.8000", "")
    assert rows[2]["dice"] == "0.4000"


def test_what_differs_is_a_column(tmp_path, capsys):
    write(tmp_path / "a", dims=(8,))
    write(tmp_path / "b", dims=(16,))
    write(tmp_path / "c", dims=(16,), lr=0.2)
    rows = table(capsys, tmp_path)
    assert [(row["model.dims"], row["task.lr"]) for row in rows] == [
        ("[8]", "0.1"),
        ("[16]", "0.1"),
        ("[16]", "0.2"),
    ]


def test_each_run_is_a_line(tmp_path, capsys):
    for seed in (0, 1):
        write(tmp_path / str(seed), seed=seed)
    rows = table(capsys, "--each", tmp_path)
    assert [(row["name"], row["seed"], row["runs"]) for row in rows] == [("toy", "0", "1"), ("toy", "1", "1")]


def test_how_a_run_was_watched_is_no_setting(tmp_path, capsys):
    """Seeds are pooled, whatever shows them; what a run starts from is a setting."""
    watched = [
        {"resume": False, "threads": 2},
        {"callbacks": {"nan_watch": {"_target_": "x", "every": 2}}, "logger": {"csv": {"name": "a"}}},
        {"checkpoint": {"every_s": 1, "monitor": None}, "trainer": {"enable_progress_bar": False}},
        {"report": False, "metrics_csv": True},
    ]
    plain = {"checkpoint": {"every_s": 300, "monitor": None}, "ckpt_path": None}
    for seed, more in enumerate(watched):
        write(tmp_path / str(seed), seed=seed, dice=0.5 + seed / 10, **{**plain, **more})
    assert [(row["runs"], row["dice"]) for row in table(capsys, tmp_path)] == [("4", "0.65")]
    write(tmp_path / "tuned", seed=9, **{**plain, "ckpt_path": "elsewhere"})
    assert [(row["ckpt_path"], row["runs"]) for row in table(capsys, tmp_path)] == [
        ("None", "4"),
        ("elsewhere", "1"),
    ]


def test_of_two_runs_with_one_seed_the_newer_counts(tmp_path, capsys):
    write(tmp_path / "2026-01-03_00-00-00", seed=0, dice=0.7)
    old = write(tmp_path / "2026-01-02_00-00-00", seed=0, dice=0.1)
    write(tmp_path / "2026-01-01_00-00-00", seed=1, dice=0.5)
    assert main(["compare", "--format", "csv", str(tmp_path)]) == 0
    said = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert (row["runs"], row["dice"], row["dice_std"]) == ("2", "0.60", "0.14")
    assert said.err == f"left out, of the same setting and seed as a newer run: {old.resolve()}\n"
    assert len(table(capsys, "--each", tmp_path)) == 3


def test_copies_of_one_seed_have_no_spread(tmp_path, capsys):
    for name in "abc":
        write(tmp_path / name)
    (row,) = table(capsys, tmp_path)
    assert (row["runs"], row["dice"]) == ("1", "0.5000")
    assert "dice_std" not in row


def test_a_run_named_twice_counts_once(tmp_path, capsys):
    run = write(tmp_path / "a")
    (tmp_path / "latest").symlink_to(run)
    assert table(capsys, run, tmp_path, tmp_path / "latest")[0]["runs"] == "1"


def test_unfinished_runs(tmp_path, capsys):
    write(tmp_path / "sweep" / "a")
    broken = write(tmp_path / "sweep" / "b", seed=1, dice=None)
    assert main(["compare", str(tmp_path / "sweep")]) == 0
    assert f"left out, not finished: {broken.resolve()}" in capsys.readouterr().err
    assert main(["compare", str(broken)]) == 1
    assert "did not finish: it has no metrics.json" in capsys.readouterr().err


def test_markdown_and_table(tmp_path, capsys):
    write(tmp_path / "a", core="S5")
    write(tmp_path / "b", core="Mamba", dice=0.25)
    assert main(["compare", "--format", "markdown", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["| core | runs | parameters | dice | training |", "|---|--:|--:|--:|--:|"]
    assert lines[3] == "| Mamba | 1 | 1,234 | 0.2500 | 2.0 s |"
    assert main(["compare", str(tmp_path)]) == 0
    assert "0.2500" in capsys.readouterr().out


def test_settings_that_find_no_room_come_below(tmp_path, capsys, monkeypatch):
    """What was measured is never cut; what most runs share is said once."""
    for number in range(3):
        settings = {"a_setting_of_a_long_name": number // 2, "another_one_as_long": "x" * number}
        write(tmp_path / str(number), dice=0.5 + number / 10, **settings)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", str(tmp_path)]) == 0
    assert "a_setting_of_a_long_name" in capsys.readouterr().out.splitlines()[1]
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["compare", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "runs" in lines[1]
    assert "parameters" in lines[1]
    assert "a_setting" not in lines[1]
    assert "│ 3 │" in lines[5]
    assert "0.7000" in lines[5]
    below = " ".join(lines[7:])
    assert "all but those below: a_setting_of_a_long_name=0" in below
    assert "3: a_setting_of_a_long_name=1, another_one_as_long=xx" in below


def test_no_run_is_an_error(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["compare", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
