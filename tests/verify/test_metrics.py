"""The golden check passes on the golden numbers and on another set, and fails on everything it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.cli.main import main
from alignbench.errors import UserError
from alignbench.verify.golden import kinds_of, verify
from alignbench.verify.metrics import check
from alignbench.verify.report import Check, CheckReport

FOLDER = Path(__file__).parents[1] / "golden" / "golden-metrics"
Content = tuple[dict[str, np.ndarray], dict[str, Any]]


def row(report: CheckReport, name: str) -> Check:
    return next(row for row in report.checks if row.name == name)


def write(folder: Path, content: Content) -> Path:
    arrays, cases = content
    np.savez(folder / "arrays.npz", **dict[str, Any](arrays))
    (folder / "expected.json").write_text(json.dumps({"seed": 1, "cases": cases}), encoding="utf-8")
    return folder


# --- the golden set -------------------------------------------------------------------------------


def test_every_golden_number_is_reproduced() -> None:
    assert kinds_of(FOLDER) == ["metrics"]
    report = verify(FOLDER)["golden-metrics (metrics)"]
    assert report.ok
    cases = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))["cases"]
    compared = {row.name for row in report.checks if row.verdict == "ok"}
    for case, numbers in cases.items():
        assert any(name.split(":")[1].startswith((f"{case}/", f"{case}.")) for name in compared), case
        for k in numbers.get("pr", {}):
            assert f"expected.json:{case}/pr/{k}/precision" in compared
    informational = [row for row in report.checks if row.name.endswith("adm_fp16_emulated_informative")]
    assert len(informational) == 18
    assert {row.verdict for row in informational} == {"info"}
    names = [row.name for row in report.checks]
    assert len(names) == len(set(names))


# --- another set of the same form, from other people's code ---------------------------------------


def distance(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.linalg import sqrtm

    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def inside(rows: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    own = np.sort(((centres[:, None] - centres[None]) ** 2).sum(axis=2), axis=1)
    there = ((rows[:, None] - centres[None]) ** 2).sum(axis=2)
    return np.asarray((there <= own[:, k]).any(axis=1))


def pair(content: Content, case: str, real: np.ndarray, generated: np.ndarray, k: int) -> None:
    arrays, cases = content
    arrays |= {f"{case}.ref": real, f"{case}.gen": generated}
    near, far = inside(generated, real, k), inside(real, generated, k)
    arrays |= {f"{case}.inside_ref_manifold_k{k}": near, f"{case}.inside_gen_manifold_k{k}": far}
    cases[case] = {
        "n_ref": len(real),
        "fid": distance(generated, real),
        "note": "another case",
        "pr": {
            str(k): {
                "precision": float(near.mean()),
                "recall": float(far.mean()),
                "n_recalled": int(far.sum()),
                "torch_fidelity": [float(np.float32(near.mean())), float(np.float32(far.mean()))],
                "adm_fp16_emulated_informative": [0.0, 0.0],
                "all_agree": True,
            }
        },
    }


def score(content: Content, case: str, logits: np.ndarray, splits: int, seed: int, size: int) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    arrays, cases = content
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    arrays |= {f"{case}.logits": logits, f"{case}.probs": p}
    theirs = {
        name: isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=shuffle, rng_seed=seed)
        for name, shuffle in ((f"shuffled_seed{seed}", True), ("in_order", False))
    }
    chunks = [p[start : start + size] for start in range(0, len(p), size)]
    parts = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in chunks]
    cases[case] = {
        **{
            f"torch_fidelity_{splits}_{name}": {
                "mean": found["inception_score_mean"],
                "std": found["inception_score_std"],
            }
            for name, found in theirs.items()
        },
        "adm_split_size": size,
        "adm_chunks_in_order": {
            "mean": float(np.mean(parts)),
            "std_of_chunks": float(np.std(parts)),
            "n_chunks": len(parts),
        },
        f"adm_default_split_{len(p) + 5}": float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean())),
    }


def other_set() -> Content:
    rng = np.random.default_rng(77)
    content: Content = ({}, {})
    arrays, cases = content
    mix = rng.normal(size=(9, 9))
    real, generated = rng.normal(size=(70, 9)) @ mix, rng.normal(0.2, 1.1, size=(55, 9)) @ mix
    pair(content, "blobs.v2", real, generated, 2)
    pair(content, "copies", real, np.concatenate([np.repeat(real[:1], 30, axis=0), generated]), 4)
    arrays |= {"commuting.mu1": np.ones(3), "commuting.sigma1": np.diag([1.0, 4, 9])}
    arrays |= {"commuting.mu2": np.zeros(3), "commuting.sigma2": np.diag([4.0, 4, 1])}
    cases["commuting"] = {"dim": 3, "frechet": 3 + 1 + 0 + 4.0, "frechet_60_digits": "8.000000"}
    x = rng.normal(size=(100, 5)) + 3e3
    arrays |= {"pieces.x": x, "pieces.chunk_sizes": np.array([40, 1, 59])}
    arrays |= {"pieces.mu": x.mean(0), "pieces.sigma": np.cov(x.T)}
    cases["pieces"] = {"n": 100, "naive_float32_error": 1.0}
    score(content, "classes", 2 * rng.normal(size=(83, 6)), splits=4, seed=11, size=30)
    return content


@pytest.fixture(scope="module")
def other() -> Content:
    return other_set()


def test_another_set_is_reproduced(other: Content, tmp_path: Path) -> None:
    report = check(write(tmp_path, other))
    assert report.ok, [row for row in report.checks if row.verdict not in ("ok", "info")]
    compared = {row.name for row in report.checks if row.verdict == "ok"}
    assert {
        "expected.json:blobs.v2/pr/2/recall",
        "arrays.npz:copies.inside_gen_manifold_k4",
        "expected.json:commuting/frechet_60_digits",
        "arrays.npz:pieces.sigma",
        "expected.json:classes/torch_fidelity_4_shuffled_seed11/std",
        "expected.json:classes/adm_chunks_in_order/n_chunks",
        "expected.json:classes/adm_default_split_88",
    } <= compared


NUMBERS: list[tuple[str, ...]] = [
    ("blobs.v2", "n_ref"),
    ("blobs.v2", "fid"),
    ("copies", "pr", "4", "precision"),
    ("copies", "pr", "4", "n_recalled"),
    ("copies", "pr", "4", "torch_fidelity"),
    ("commuting", "dim"),
    ("commuting", "frechet"),
    ("pieces", "n"),
    ("classes", "torch_fidelity_4_shuffled_seed11", "mean"),
    ("classes", "torch_fidelity_4_in_order", "std"),
    ("classes", "adm_chunks_in_order", "std_of_chunks"),
    ("classes", "adm_chunks_in_order", "n_chunks"),
    ("classes", "adm_default_split_88"),
]


@pytest.mark.parametrize("path", NUMBERS, ids="/".join)
def test_a_wrong_number_is_a_miss(path: tuple[str, ...], other: Content, tmp_path: Path) -> None:
    arrays, cases = other
    changed = json.loads(json.dumps(cases))
    place = changed
    for key in path[:-1]:
        place = place[key]
    old = place[path[-1]]
    if isinstance(old, list):
        place[path[-1]] = [old[0], old[1] + 1e-4]
    else:
        place[path[-1]] = old + 1 if isinstance(old, int) else old * (1 + 1e-7)
    report = check(write(tmp_path, (arrays, changed)))
    assert [row.name for row in report.checks if row.verdict not in ("ok", "info")] == [
        f"expected.json:{'/'.join(path)}"
    ]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("copies.inside_ref_manifold_k4", lambda x: ~x),
        ("pieces.mu", lambda x: x + 1e-8),
        ("pieces.sigma", lambda x: x + 1e-6),
        ("pieces.mu", lambda x: x[:-1]),
        ("blobs.v2.inside_gen_manifold_k2", lambda x: x[:3]),
    ],
)
def test_a_wrong_array_is_a_miss(
    name: str, change: Callable[[np.ndarray], np.ndarray], other: Content, tmp_path: Path
) -> None:
    arrays, cases = other
    report = check(write(tmp_path, ({**arrays, name: change(arrays[name])}, cases)))
    assert row(report, f"arrays.npz:{name}").verdict == "MISS"
    assert not report.ok


def test_a_miss_is_printed_and_exits_with_1(
    other: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, cases = other
    wrong = {**cases, "commuting": {**cases["commuting"], "frechet": 8.1}}
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--golden", str(write(tmp_path, (arrays, wrong)))])
    assert stopped.value.code == 1
    assert "commuting/frechet" in capsys.readouterr().out


# --- damaged sets ---------------------------------------------------------------------------------


def test_every_array_that_is_gone_is_noticed(other: Content, tmp_path: Path) -> None:
    arrays, cases = other
    for name in arrays:
        report = check(write(tmp_path, ({key: x for key, x in arrays.items() if key != name}, cases)))
        optional = "inside" in name  # masks are there for some k only
        assert report.ok == optional, name


@pytest.mark.parametrize(
    ("case", "key", "left"),
    [
        ("copies", "fid", {"n_ref": 70}),
        ("commuting", "frechet", {"dim": 3}),
        ("classes", "torch_fidelity_*", {"adm_split_size": 30}),
        ("classes", "adm_split_size", {"adm_chunks_in_order": {"mean": 1.0}}),
    ],
)
def test_a_number_that_a_case_is_about_is_missed(
    case: str, key: str, left: dict[str, Any], other: Content, tmp_path: Path
) -> None:
    arrays, cases = other
    report = check(write(tmp_path, (arrays, {**cases, case: left})))
    assert row(report, f"expected.json:{case}/{key}").verdict == "MISSING"
    assert not report.ok


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("pieces.chunk_sizes", np.array([40, 1]), "pieces of 41 rows"),
        ("copies.gen", np.zeros((3, 2)), "cannot be computed"),
        ("copies.ref", np.zeros((3, 9)), "3 real images"),
        ("classes.probs", np.full((83, 6), 1 / 6), "is not the softmax"),
    ],
)
def test_inputs_that_do_not_fit_miss_the_whole_case(
    name: str, array: np.ndarray, words: str, other: Content, tmp_path: Path
) -> None:
    arrays, cases = other
    report = check(write(tmp_path, ({**arrays, name: array}, cases)))
    missed = [row for row in report.checks if row.verdict == "MISS"]
    assert missed and any(words in row.note for row in missed)
    assert all(name.split(".")[0] in row.name for row in missed)


def test_what_nothing_knows_is_reported(other: Content, tmp_path: Path) -> None:
    arrays, cases = other
    more = {**arrays, "copies.other": np.zeros(2), "alone.ref": np.zeros((4, 2))}
    numbers = {**cases, "copies": {**cases["copies"], "fid_new": 1.0}, "empty": {"fid": 1.0}}
    report = check(write(tmp_path, (more, numbers)))
    unknown = {row.name for row in report.checks if row.verdict == "UNKNOWN"}
    assert unknown == {
        "arrays.npz:copies.other",
        "arrays.npz:alone.ref",
        "expected.json:copies/fid_new",
    }
    assert row(report, "expected.json:empty/fid").verdict == "MISS"


@pytest.mark.parametrize("name", ["arrays.npz", "expected.json"])
def test_a_missing_or_broken_file(name: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "set")
    path = tmp_path / "set" / name
    path.unlink()
    report = check(tmp_path / "set")
    assert not report.ok
    assert row(report, name).verdict == "MISSING"
    path.write_bytes(b"not at all")
    with pytest.raises(UserError, match=name):
        check(tmp_path / "set")
