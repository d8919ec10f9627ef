"""Checkpoints are whole or absent."""

from __future__ import annotations

import os
import random
import stat
import threading
from pathlib import Path

import pytest
import torch

from alignbench.errors import RunFailed
from alignbench.training import checkpoint


def state(step: int, **method: torch.Tensor) -> checkpoint.State:
    module = {"w": torch.full((2,), float(step))}
    return checkpoint.State(step, module, {"state": {}}, {"seconds": 1.5}, method)


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step))
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["step-000002", "step-000003"]
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.module["w"].tolist(), loaded.totals) == (3, [3.0, 3.0], {"seconds": 1.5})
    assert loaded.method == {}


def test_what_a_method_remembers_is_a_file_of_its_own(tmp_path: Path) -> None:
    """In float64, to the bit; of a method that remembers nothing there is no file, as in old checkpoints."""
    plain = checkpoint.save(tmp_path / "plain", state(1))
    remembered = torch.rand(3, 3, dtype=torch.float64)
    more = checkpoint.save(tmp_path / "more", state(1, moments=remembered))
    names = [{path.name for path in folder.iterdir()} for folder in (plain, more)]
    assert names[1] - names[0] == {checkpoint.METHOD} and names[0] < names[1]
    loaded = checkpoint.load_latest(tmp_path / "more")
    assert loaded is not None and torch.equal(loaded.method["moments"], remembered)


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = checkpoint.save(tmp_path, state(1))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_unfinished_folders_do_not_count(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1))
    torn = tmp_path / "step-000002.tmp"
    torn.mkdir()
    (torn / "module.safetensors").write_bytes(b"half")
    (tmp_path / "step-000003").mkdir()  # renamed by hand, without a marker
    checkpoint.put_aside_damaged(tmp_path, pytest.fail)
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert not torn.exists()


@pytest.mark.parametrize("name", ["module.safetensors", "optimizer.pt", checkpoint.METHOD, checkpoint.MARKER])
def test_any_changed_bit_is_found(tmp_path: Path, name: str) -> None:
    """A flipped bit anywhere would otherwise load as other weights, or as another step."""
    path = checkpoint.save(tmp_path, state(1, moments=torch.ones(3))) / name
    content = path.read_bytes()
    for bit in random.Random(name).sample(range(8 * len(content)), 60):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(RunFailed, match="step-000001 is damaged"):
            checkpoint.load_latest(tmp_path)


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1))
    damaged = checkpoint.save(tmp_path, state(2))
    (damaged / "optimizer.pt").unlink()
    told: list[str] = []
    checkpoint.put_aside_damaged(tmp_path, told.append)
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert (tmp_path / "step-000002.damaged" / "module.safetensors").exists()
    assert len(told) == 1 and "step-000002 is damaged" in told[0] and "optimizer.pt" in told[0]


def test_a_full_disk_keeps_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, state(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunFailed, match="No space left"):
        checkpoint.save(tmp_path, state(2))
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "absent") is None


def test_what_is_written_behind_the_back_is_the_state_as_it_was(tmp_path: Path) -> None:
    """One at a time; what goes wrong is raised by the next call that waits."""
    writer, going, weights = checkpoint.Writer(), threading.Event(), torch.ones(2)

    def save(held: checkpoint.State) -> None:
        assert going.wait(10)
        checkpoint.save(tmp_path, held)

    moments = {"state": {0: {"step": weights}}, "param_groups": [{"lr": 1.0}]}
    writer.write(save, checkpoint.State(1, {"w": weights}, moments, {"seconds": 1.0}), behind=True)
    writer.wait(only_if_done=True)
    assert not checkpoint.complete(tmp_path)
    weights += 1
    going.set()
    with writer.finishing():
        pass
    held = checkpoint.load_latest(tmp_path)
    assert held is not None and held.module["w"].tolist() == [1.0, 1.0]
    assert held.optimizer["state"][0]["step"].tolist() == [1.0, 1.0]

    def full(_: checkpoint.State) -> None:
        raise RunFailed("no space left")

    writer.write(full, state(2), behind=True)
    with pytest.raises(RunFailed, match="no space left"), writer.finishing():
        pass
    writer.write(full, state(2), behind=True)
    with pytest.raises(ZeroDivisionError), writer.finishing():  # the first error is the reason
        1 / 0  # noqa: B018
    writer.wait()
