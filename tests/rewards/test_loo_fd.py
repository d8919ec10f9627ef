"""The leave-one-out Fréchet distance: published arithmetic by hand, scipy, splits, files, placements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods.policy_gradient import group_advantages
from alignbench.methods.sets.set_rewards import SetReward, SetRewards
from alignbench.nets import digits, dinov2, feature_networks, torchvision_inception
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import resolve
from alignbench.rewards.build import build, build_raw
from alignbench.rewards.remote import serve
from alignbench.rewards.sets.built import BuiltSet
from alignbench.rewards.sets.frechet import (
    Gaussian,
    RawMoments,
    SetMoments,
    diagonal_credit,
    diagonal_distance,
    full_credit,
    full_distance,
)
from alignbench.rewards.sets.loo_fd import LooFd
from tests.nets.test_dinov2 import metas_weights
from tests.rewards.test_remote import running

REGISTRY = Registry.default()
CPU = torch.device("cpu")
PUBLISHED = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [4.0, 4.0]], dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Correlated features with means away from 0."""
    numbers = np.random.default_rng(seed)
    mixing = np.eye(width) + 0.3 * numbers.normal(size=(width, width))
    return torch.from_numpy(numbers.normal(size=(count, width)) @ mixing + 1.5)


def drawn(
    features: Tensor, running: RawMoments | None = None, decay: float = 0.0, *, full: bool = False
) -> SetMoments:
    second = features.T @ features if full else features.square().sum(0)
    return SetMoments(
        features.new_tensor(float(len(features))), RawMoments(features.sum(0), second), running, decay
    )


# --- arithmetic -----------------------------------------------------------------------------------


def test_the_formula_on_four_points() -> None:
    """Worked out by hand from the published formula: one step by itself, then with a running pair."""
    real, step = Gaussian(ONES, ONES), drawn(PUBLISHED)
    assert diagonal_distance(real, step.whole).item() == pytest.approx(1.3667504192892004, abs=1e-12)
    credit = diagonal_credit(real, PUBLISHED, step)
    expected = [1.434610266622, 0.929360424005, 0.929360424005, -1.137986585617]
    assert credit.tolist() == pytest.approx(expected, abs=1e-11)
    advantages = group_advantages(credit[None], epsilon=1e-4)[0]
    expected = [0.783654121362, 0.341644125434, 0.341644125434, -1.466942372230]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-11)

    mean = torch.tensor([1.5, 0.5], dtype=torch.float64)
    step = drawn(PUBLISHED, RawMoments(mean, 1 + mean.square()), 0.5)
    assert diagonal_distance(real, step.whole).item() == pytest.approx(0.5959112650515193, abs=1e-12)
    expected = [0.471274191138, 0.201999940245, 0.435587756629, -0.411457506913]
    assert diagonal_credit(real, PUBLISHED, step).tolist() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_the_full_form_against_scipy_without_each_image(decay: float) -> None:
    """RawMoments worked out anew from the other images, the root of the product as it is written."""
    features, before, target = rows(40, 6), rows(50, 6, 1), rows(60, 6, 2).numpy()
    mean, covariance = target.mean(0), np.cov(target.T)
    real = Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance))
    running = RawMoments(before.mean(0), before.T @ before / 50)

    def distance(images: np.ndarray[Any, Any]) -> float:
        first = decay * running.first.numpy() + (1 - decay) * images.mean(0)
        second = decay * running.second.numpy() + (1 - decay) * images.T @ images / len(images)
        spread = second - np.outer(first, first)
        cross = np.trace(sqrtm(covariance @ spread)).real
        return float(((mean - first) ** 2).sum() + np.trace(covariance) + np.trace(spread) - 2 * cross)

    step = drawn(features, running if decay else None, decay, full=True)
    whole = distance(features.numpy())
    assert full_distance(real, step.whole).item() == pytest.approx(whole, abs=1e-10)
    expected = [distance(np.delete(features.numpy(), place, axis=0)) - whole for place in range(40)]
    assert full_credit(real, features, step).tolist() == pytest.approx(expected, abs=1e-10)
    assert max(map(abs, expected)) > 0.01


def test_the_linear_form_is_off_by_the_square_of_an_image_s_share() -> None:
    real = Gaussian(rows(90, 6, 2).mean(0), torch.from_numpy(np.cov(rows(90, 6, 2).numpy().T)))
    relative = []
    for count in (50, 100, 200, 400):
        features = rows(count, 6, 3)
        step = drawn(features, full=True)
        exact, near = (full_credit(real, features, step, linear=linear) for linear in (False, True))
        relative.append(((exact - near).norm() / exact.norm()).item())
    assert relative[0] < 0.1 and relative[-1] < 0.02
    assert all(later < 0.75 * earlier for earlier, later in itertools.pairwise(relative))


def test_fewer_images_than_features_have_finite_credits() -> None:
    """A singular covariance: rounded zeros may not be taken for roots."""
    real = Gaussian(rows(90, 12, 2).mean(0), torch.from_numpy(np.cov(rows(90, 12, 2).numpy().T)))
    features = rows(7, 12)
    credit = full_credit(real, features, drawn(features, full=True))
    for place in range(7):
        others = features[torch.arange(7) != place]
        gone = full_distance(real, drawn(others, full=True).whole)
        assert credit[place].item() == pytest.approx(
            (gone - full_distance(real, drawn(features, full=True).whole)).item(), abs=1e-5
        )


# --- the reward -----------------------------------------------------------------------------------


@dataclass
class Real:
    """Real images in pieces; counts how often it is looked through."""

    pixels: Tensor
    digest: str = "sha256:real"
    looks: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        self.looks.append(len(self.pixels))
        yield from self.pixels.split(7)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def built(options: str = "", real: Real | None = None) -> BuiltSet:
    spec = f"loo-fd({options})" if options else "loo-fd"
    found: Any = build(spec, REGISTRY, CPU, image_size=8, real=real or Real(pictures(30, 1)))
    assert isinstance(found, BuiltSet) and isinstance(found, SetReward)
    return found


@pytest.mark.parametrize("options", ["", "decay=0", "covariance=full,decay=0.9", "covariance=full-linear"])
def test_a_step_in_parts_is_the_step_as_a_whole(options: str) -> None:
    """Credits, state and value over three steps: one piece, or five on two processes, to 1e-12."""
    spec = f"loo-fd({options})"
    both = [SetRewards({spec: built(options)}) for _ in range(2)]
    for step in range(3):
        features = both[0].features(pictures(60, step))[f"features/{spec}"]
        whole, parts = {spec: features}, [{spec: part} for part in features.split([10, 20, 3, 17, 10])]
        sums = both[0].sums(whole)
        pieces = [both[1].sums(part) for part in parts]
        added = {name: sum(piece[name] for piece in pieces) for name in sums}
        one = both[0].credits(whole, sums)[spec]
        other = torch.cat([both[1].credits(part, added)[spec] for part in parts])
        assert (one - other).abs().max() < 1e-12 < one.abs().max()
        assert abs(both[0].log(sums)["set/loo-fd"] - both[1].log(added)["set/loo-fd"]) < 1e-12
        both[0].advance(sums)
        both[1].advance(added)
    states = [one_of.state() for one_of in both]
    assert set(states[0]) == (set() if "decay=0," in f"{options}," else {f"{spec}/first", f"{spec}/second"})
    for name, value in states[0].items():
        assert (value - states[1][name]).abs().max() < 1e-12
    again = SetRewards({spec: built(options)})
    again.load_state(states[0])
    assert torch.equal(again.credits(whole, sums)[spec], both[0].credits(whole, sums)[spec])
    with pytest.raises(ValueError, match="is of no reward here"):
        again.load_state({"other/first": features})


def test_moments_of_real_images_are_kept_and_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    real = Real(pictures(30, 1))
    features = digits.load("digits-features-b").double().penultimate(2 * real.pixels.double() - 1)
    first = built(real=real)
    assert (first.raw._real.mean - features.mean(0)).abs().max() < 1e-14
    assert (first.raw._real.covariance - features.var(0, correction=0)).abs().max() < 1e-13
    assert torch.equal(built(real=real).raw._real.mean, first.raw._real.mean) and real.looks == [30]
    built("covariance=full", real)
    built(real=Real(pictures(9, 4), digest="sha256:others", looks=real.looks))
    assert real.looks == [30, 30, 9]
    for path in (tmp_path / "cache" / "moments").iterdir():
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
    assert torch.equal(built(real=real).raw._real.mean, first.raw._real.mean) and len(real.looks) == 4


def test_files_give_what_images_give(tmp_path: Path) -> None:
    spread = rows(60, 48)
    full = {"mu": spread.mean(0).numpy(), "sigma": np.cov(spread.numpy().T)}
    np.savez(tmp_path / "full.npz", mu=full["mu"], sigma=full["sigma"])
    np.savez(tmp_path / "flat.npz", mu=full["mu"], sigma=full["sigma"].diagonal())
    features = built().features(pictures(8))
    credits = []
    for file in ("full", "flat"):
        path = tmp_path / f"{file}.npz"
        reward = built(f"reference={path},start={path}", Real(pictures(0)))
        credits.append(reward.credit(features, reward.sums(features), {}))
        real = Gaussian(*(torch.from_numpy(part) for part in (full["mu"], full["sigma"].diagonal().copy())))
        running = RawMoments(real.mean, real.covariance + real.mean.square())
        assert (
            credits[-1] - diagonal_credit(real, features, drawn(features, running, 0.5))
        ).abs().max() < 1e-12
    assert torch.equal(*credits)
    built(f"covariance=full,reference={tmp_path / 'full.npz'}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"mu": np.zeros(48)}, "cannot be read.*sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros(3)}, r"mu \[3\] and sigma \[3\], not \[48\]"),
        ({"mu": np.zeros(48), "sigma": -np.ones(48)}, "no moments"),
        ({"mu": np.full(48, np.nan), "sigma": np.ones(48)}, "no moments"),
    ],
    ids=str,
)
def test_files_that_do_not_fit_are_refused(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", allow_pickle=False, **content)
    with pytest.raises(UserError, match=said):
        built(f"reference={tmp_path / 'm.npz'}")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="moments of real images") as caught:
        build("loo-fd", REGISTRY, CPU, image_size=8)
    assert "reference=PATH.npz" in str(caught.value.fix)
    with pytest.raises(UserError, match=r"weights-inception.*is not in") as caught:
        built("network=inception-2015-12-05")
    assert "alignbench fetch inception-2015-12-05" in str(caught.value.fix)
    request = api.ScoreRequest(images=pictures(2), group=torch.arange(2))
    with pytest.raises(UserError, match="no score of one image"):
        built().score(request)  # what other methods ask


def test_features_are_the_same_in_any_company_batch_and_place() -> None:
    images, here = pictures(5), built()
    expected = here.features(images)
    assert expected.dtype == torch.float64 and expected.shape == (5, 48)
    assert (here.features(images[[3, 0]]) - expected[[3, 0]]).abs().max() < 1e-12
    assert here.features(images[:0]).shape == (0, 48)
    for options in ("batch=2", "placement=offload", "placement=cpu"):
        assert (built(options).features(images) - expected).abs().max() < 1e-12
    raw = build_raw(resolve("loo-fd", REGISTRY), CPU)
    server = serve(raw, "127.0.0.1", 0, name="loo-fd", options=resolve("loo-fd", REGISTRY).options)
    with running(server) as url:
        there = built(f"placement={url},retries=0")
        assert torch.equal(there.features(images), expected)
        assert there.raw is not raw, "only features are asked of the server"
    assert there.features(images).isnan().all(), "nobody answers any more"
    for wrong in (images.double(), images * 255, images[0]):
        with pytest.raises(ValueError, match="reward loo-fd: images"):
            here.features(wrong)


def test_images_without_features_count_in_no_sum_and_a_single_one_has_no_credit() -> None:
    reward = built("decay=0")
    sets = SetRewards({"it": reward})
    features = reward.features(pictures(6))
    broken = torch.cat([features[:2], torch.full((1, 48), torch.nan, dtype=torch.float64), features[2:]])
    credits = sets.credits({"it": broken}, sets.sums({"it": broken}))["it"]
    assert credits.isnan().tolist() == [False, False, True, False, False, False, False]
    expected = reward.credit(features, reward.sums(features), {})
    assert torch.equal(credits[~credits.isnan()], expected)
    for covariance in ("diagonal", "full"):
        alone = built(f"decay=0,covariance={covariance}")
        assert alone.credit(features[:1], alone.sums(features[:1]), {}).isnan().all()


def test_transforms_and_weights_of_the_specification_reach_credits() -> None:
    features, plain = built().features(pictures(6)), built()
    scaled: Any = build("loo-fd|scale(-2)", REGISTRY, CPU, image_size=8, real=Real(pictures(30, 1)))
    one, other = (reward.credit(features, reward.sums(features), {}) for reward in (plain, scaled))
    assert torch.equal(-2 * one, other)


# --- networks -------------------------------------------------------------------------------------


def test_networks_of_the_card_are_those_that_can_be_loaded() -> None:
    card = REGISTRY.reward("loo-fd")
    assert set(card.options["network"].choices) == set(feature_networks.NETWORKS)
    assets = {name: network.asset for name, network in feature_networks.NETWORKS.items() if network.asset}
    assert {str(file.when["network"]): file.asset for file in card.files} == assets
    for name in card.options["network"].choices:
        assert resolve(f"loo-fd(network={name})", REGISTRY).networks == [name]


@pytest.mark.slow
@torch.no_grad()
def test_torchvision_s_inception_sees_images_as_its_own_preset_normalises_them(tmp_path: Path) -> None:
    """Against torchvision: resized, normalised by ImageNet's statistics, `transform_input` on."""
    from torchvision.models import inception_v3
    from torchvision.transforms.v2 import functional as official

    torch.manual_seed(0)
    theirs = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    theirs.fc = nn.Identity()
    images = torch.rand(2, 3, 40, 40)
    resized = official.resize(images, [299, 299], antialias=True)
    expected = theirs(official.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    found = feature_networks.NETWORKS["inception-v3-torchvision"].load(tmp_path / "w.pth").look(images)
    assert found.shape == (2, 2048) and math.isclose(found.norm(), expected.norm(), rel_tol=1e-3)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="no weights of torchvision's Inception"):
        torchvision_inception.load(tmp_path / "x.pth")


def test_dinov2_sees_what_its_metric_sees(tmp_path: Path) -> None:
    """A small one in Meta's form, whose features are compared with Meta's program in `test_dinov2`."""
    path, images = tmp_path / "dinov2_vitb14_pretrain.pth", pictures(3)
    torch.save(metas_weights(), path)
    metric = dinov2.load(path, CPU).features((255 * images).round().to(torch.uint8))
    spec = f"loo-fd(network=facebook/dinov2-base,weights={tmp_path})"
    reward: Any = build(spec, REGISTRY, CPU, image_size=8, real=Real(pictures(6, 1)))
    features = reward.features(images)
    assert torch.equal(features, metric.double())
    assert reward.credit(features, reward.sums(features), {}).isfinite().all()


def test_a_raw_reward_refuses_nothing_before_it_is_prepared() -> None:
    raw = build_raw(resolve("loo-fd", REGISTRY), CPU)
    assert isinstance(raw, LooFd)
    with pytest.raises(AssertionError, match="prepare"):
        raw.value(raw.sums(PUBLISHED), {})
