"""What a study consists of: axes, grids, names of runs, widths, and what is refused."""

from __future__ import annotations

import pytest
from study_helpers import TINY

from nvsubq.cli.main import main
from nvsubq.lazy_config import ConfigError, instantiate
from nvsubq.study.plan import Cell, compose_run, hydra_here, load, names
from nvsubq.study.runs import Folder, plan_runs
from nvsubq.study.width import find_width
from nvsubq.training.build import build_datamodule, complete_model


def test_grids_are_bounded_by_the_axes():
    cells = load("spatial_recall").cells()
    planes = [cell for cell in cells if cell.spatial_dims < 3]
    volumes = [cell for cell in cells if cell.spatial_dims == 3]
    assert len(planes) == 6 * 2 * 2
    assert len(volumes) == 2 * 2
    assert all(cells[cell] == [0, 1, 2] for cell in planes)
    assert all(cells[cell] == [0] for cell in volumes)
    few = load("spatial_recall", ["cores=[mamba,s5]", "seeds=[2]"]).cells()
    assert {cell.core for cell in few} == {"mamba", "s5"}
    assert not [cell for cell in few if cell.spatial_dims == 3]  # its only seed is 0
    assert set(map(tuple, few.values())) == {(2,)}


def test_cells_that_are_left_out_have_a_reason():
    study = load("spatial_recall_gpu")
    left = study.left_out()
    assert {cell for cell, _ in left} == {
        Cell(3, task, 1, "attention") for task in ("simple_copy", "color_conditioning")
    }
    assert all("32,768 cells" in reason for _, reason in left)
    assert not {cell for cell, _ in left} & set(study.cells())


@pytest.mark.parametrize("name", names())
def test_every_study_is_of_equal_steps_and_near_its_budget(name):
    planned = plan_runs(load(name, ["tasks=[color_conditioning]", "rates=[4e-3]"]))
    for cell, recipe in planned.recipes.items():
        assert recipe.config.trainer.max_steps == planned.study.steps >= 1500, cell
        assert abs(recipe.width.deviation) < 0.2, (cell, recipe.width)


def test_the_width_is_the_nearest_by_counting():
    with hydra_here():
        config = compose_run(["experiment=spatial_recall", "core=mamba", "data.spatial_dims=1"])
    complete_model(config, build_datamodule(config))

    def count(width: int) -> int:
        config.model.dims = [width]
        return sum(p.numel() for p in instantiate(config.model).parameters())

    found = find_width(config, 15000)
    assert found.parameters == count(found.width)
    for other in (found.width - 1, found.width + 1):
        assert abs(count(other) - 15000) >= abs(found.parameters - 15000)
    assert found.deviation == found.parameters / 15000 - 1


def test_an_id_says_what_is_learned(tmp_path):
    cell = Cell(1, "simple_copy", 1, "rglru")
    run = plan_runs(load("spatial_recall", TINY)).run(cell, 0, 1e-3)
    again = plan_runs(load("spatial_recall", [*TINY, "seeds=[0]"])).run(cell, 0, 1e-3)
    assert run.id == again.id
    assert run.name == f"rglru_1d_simple_copy_p1_lr0.001_seed0_{run.id}"
    other = plan_runs(load("spatial_recall", [*TINY, "steps=3"])).run(cell, 0, 1e-3)
    assert len({run.id, other.id, run.recipe.config.seed, type(run)(run.recipe, 1, 1e-3).id}) == 4
    assert Folder(tmp_path).state(run) == "new"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("corse=[mamba]", "no key 'corse' in the config"),
        ("cores=[mambo]", "Did you mean 'mamba'?"),
        ("cores=mamba", "must be a list of at least one value"),
        ("tasks=[simple_coyp]", "Did you mean 'simple_copy'?"),
        ("spatial_dims=[4]", "must be one of 1, 2, 3"),
        ("seeds=[0,0]", "must not name a value twice"),
        ("seeds=[-1]", "must be an integer of at least 0"),
        ("steps=0", "`steps` (=0) must be an integer of at least 1"),
        ("rates=[0]", "must be a list of numbers above 0"),
        ("grids.planes.corse=[s5]", "'corse'"),
        ("grids=null", "`grids` (=None) must be a mapping"),
        ("grids.planes=1", "`grids.planes` (=1) must be a mapping"),
        ("choose_on=null", "`choose_on` (=None) must be a mapping"),
        ("~choose_on.seed", "`choose_on.seed` (=None) must be an integer of at least 0"),
        ("absent=5", "`absent` (=5) must be a list"),
        ("overrides=3", "`overrides` (=3) must be a mapping"),
        ("overrides.all=[data.item]", "must be lists of KEY=VALUE"),
        ("overrides.all=['data.itme=4']", "no key 'itme'"),
        ("+overrides.core={s5: []}", "Did you mean 'cores'?"),
    ],
)
def test_what_is_refused(override, text, here, capsys):
    assert main(["study", "spatial_recall", override, "--dry-run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert text in said
    assert "Traceback" not in said
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["spatial_recal"], "Did you mean 'spatial_recall'?"),
        (["spatial_recall", "--jobs", "0"], "`--jobs` (=0) must be at least 1"),
        (["spatial_recall", "--minutes", "1"], "`--minutes` (=1) must be at least 2"),
        (["spatial_recall", "--page-only", "seeds=[0]", "cores=[s5]"], "holds no study"),
    ],
)
def test_what_is_refused_of_the_command_line(arguments, text, here, capsys):
    assert main(["study", *arguments]) == 1
    assert text in capsys.readouterr().err
    assert not list(here.iterdir())


def test_no_rate_is_chosen_of_an_absent_cell():
    with pytest.raises(ConfigError, match="choose_on"):
        load("spatial_recall", ["absent=[{cores: [s5], tasks: [simple_copy], reason: why}]"])
