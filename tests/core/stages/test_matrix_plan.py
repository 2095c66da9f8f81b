"""Which pairs a matrix has, and what each cell audits."""

from pathlib import Path

import pytest

from mismatch_probe.config.load import load_config
from mismatch_probe.errors import ConfigError
from mismatch_probe.stages.matrix_plan import plan_cells


def config(**matrix):
    return load_config(
        overrides={"out": "runs/m", "sampling.top_p": 0.9, **{f"matrix.{k}": v for k, v in matrix.items()}}
    )


def test_every_rollout_engine_samples_and_every_engine_reads():
    cells = plan_cells(
        config(
            rollout=[{"engine": "vllm"}, {"name": "b", "engine": "vllm", "dtype": "float32"}],
            train=[{"scorer": "x"}],
        )
    )
    pairs = [(cell.source, cell.reader) for cell in cells]
    assert pairs == [
        (source, reader)
        for source in ("rollout/vllm", "rollout/b")
        for reader in ("train/x", "rollout/vllm", "rollout/b")
    ]
    assert len({cell.config.out for cell in cells}) == len(cells)
    assert cells[0].config.out == Path("runs/m") / cells[0].folder
    assert [cell.is_pair for cell in cells] == [True, False, False] * 2


def test_a_rollout_engine_reads_the_distribution_that_it_samples_from():
    cells = plan_cells(config(rollout=[{"engine": "vllm", "options": {"a": 1}}]))
    reader = cells[1].config
    assert reader.train.scorer == "rollout-engine"
    assert reader.train.options == {"a": 1, "engine": "vllm", "top_p": 0.9, "top_k": -1}
    assert reader.routing is False
    assert "train/replay" not in reader.legs


def test_defaults_of_a_cell_stay_defaults_so_that_a_dense_model_loses_replay():
    cell = plan_cells(config(rollout=[{"engine": "vllm"}]))[0]
    assert "legs" not in cell.config.model_fields_set
    assert cell.config.matrix.rollout == ()
    assert cell.config.sampling.top_p == 0.9


def test_two_entries_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="twice"):
        plan_cells(config(rollout=[{"engine": "vllm"}, {"engine": "vllm"}]))


def test_options_of_a_side_and_its_entries_exclude_each_other():
    with pytest.raises(ConfigError, match=r"rollout\.options"):
        load_config(overrides={"matrix.rollout": [{"engine": "vllm"}], "rollout.options.seed": 1})


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_names_cannot_leave_the_run_directory(name):
    with pytest.raises(ConfigError, match="name"):
        config(rollout=[{"engine": "vllm", "name": name}])
