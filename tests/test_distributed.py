"""What launchers say through the environment."""

from __future__ import annotations

import pytest

from alignbench.distributed import LAUNCHED, join_slurm
from alignbench.errors import UserError

STEP = {
    "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[003-004]",
}  # fmt: skip


def test_a_step_of_several_tasks_is_joined() -> None:
    environment = dict(STEP)
    join_slurm(environment)
    assert [environment[name] for name in LAUNCHED] == ["9", "16", "1", "gpu003", "24567"]


@pytest.mark.parametrize(
    "change", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"RANK": "0"}, {"WORLD_SIZE": "1"}]
)
def test_a_single_task_or_another_launcher_is_left_alone(change: dict[str, str]) -> None:
    environment = {**STEP, **change}
    join_slurm(environment)
    assert environment == {**STEP, **change}
    outside = {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}
    join_slurm(outside)  # a batch script, or a shell of salloc
    assert "RANK" not in outside


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("a[1,3-5]", "a1"), ("rack2-gpu[07-09]-ib,other[1-2]", "rack2-gpu07-ib"),
     ("x,y", "x"), ("a-b-3,c", "a-b-3")],
)  # fmt: skip
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    environment = {**STEP, "SLURM_STEP_NODELIST": nodes}
    join_slurm(environment)
    assert environment["MASTER_ADDR"] == first


@pytest.mark.parametrize("broken", ["SLURM_PROCID", "SLURM_JOB_NODELIST", "SLURM_JOB_ID"])
def test_what_is_missing_is_named(broken: str) -> None:
    with pytest.raises(UserError, match=f"one of 16 tasks of a SLURM step.*{broken}"):
        join_slurm({name: value for name, value in STEP.items() if name != broken})
