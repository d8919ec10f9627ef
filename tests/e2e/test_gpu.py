"""What only a CUDA device can show. Skipped, with the reason printed, where there is none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench import randomness
from alignbench.api import Backbone, ClassLabels, Condition, ImageBatch, Reference, Sampling
from alignbench.backbones.generate import generate_steps
from alignbench.backbones.janus import model as janus
from alignbench.backbones.llamagen import model as llamagen
from alignbench.cli.main import main
from alignbench.evaluators.geneval import mask2former, mask2former_keys
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import verify_asset
from alignbench.registry.lookup import Registry
from alignbench.verify.golden import verify
from tests.backbones import test_cuda_graphs as test_graphs
from tests.backbones.test_janus import CAPTIONS, logits_matter
from tests.conftest import DATA
from tests.helpers.inception_toys import batch_of, evaluator, pictures, save_random
from tests.helpers.toys import Memory

pytestmark = pytest.mark.gpu
REGISTRY = Registry.default()
DEVICES = ("cpu", "cuda")
MODELS = {"llamagen-tiny": (), "shapes-tiny": (), "janus-tiny": ("model.weights=random",)}
PLAIN = {"perceptual": "none", "perceptual_weight": "0", "rewards": "shapes-detector"}
"""Options of methods on models without networks of their own for rewards."""


# --- the networks that train ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llamagen", "vapi", "metrics"])
def test_official_numbers_are_reproduced_on_the_gpu(name: str) -> None:
    folder = DATA / {"metrics": "golden-metrics"}.get(name, name)
    for report in verify(folder, device="cuda").values():
        assert report.ok, [row for row in report.checks if row.verdict not in ("ok", "info")]


def twins(model: str) -> dict[str, Backbone]:
    """The same random weights on both devices."""
    card = REGISTRY.model(model)
    built: dict[str, Backbone] = {}
    for device in DEVICES:
        twin: Any = (janus if model.startswith("janus") else llamagen).build(card, None, seed=3, device="cpu")
        if model.startswith("janus"):
            logits_matter(twin)
        twin.policy.to(device)
        twin.tokenizer.to(device)
        built[device] = twin
    return built


def conditions(backbone: Backbone, device: str) -> Condition:
    if isinstance(backbone, janus.Janus):
        return backbone.text_condition(CAPTIONS)
    return ClassLabels(torch.arange(3, device=device))


@pytest.mark.parametrize("model", ["llamagen-tiny", "janus-tiny"])
def test_logits_and_greedy_tokens_agree_with_the_cpu(model: str) -> None:
    built = twins(model)
    rows, length = 3, built["cpu"].num_tokens
    context = torch.from_numpy(randomness.generator(0, "gpu-test").integers(0, 128, (rows, length - 1)))
    uniforms = torch.from_numpy(randomness.uniforms(0, "gpu-test", 0, range(rows), (length,)))
    greedy = Sampling(greedy=True, cfg_scale=2.0)
    logits, tokens = {}, {}
    for device, backbone in built.items():
        condition = conditions(backbone, device)
        logits[device] = backbone.logits(condition, context.to(device)).detach().cpu()
        tokens[device] = backbone.generate(condition, uniforms.to(device), greedy).tokens.cpu()
    scale = float(logits["cpu"].abs().max())
    assert float((logits["cpu"] - logits["cuda"]).abs().max()) < 1e-5 * scale + 1e-5
    assert torch.equal(tokens["cpu"], tokens["cuda"])


def on_cuda(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code in (0, None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", REGISTRY.names("methods"))
def test_every_method_trains_every_family(method: str, model: str, precision: str, tmp_path: Path) -> None:
    options = REGISTRY.method(method).options
    given = [f"train.precision={precision}", "train.images_per_step=8", *MODELS[model]]
    if model == "janus-tiny":
        given += [f"method.{key}={value}" for key, value in PLAIN.items() if key in options]
    settings = [word for text in given for word in ("--set", text)]
    out = tmp_path / "run"
    on_cuda([
        "run", "--method", method, "--model", model, "--steps", "3", "--no-eval", "--out", str(out), *settings
    ])  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["train"]["device"] != "CPU" and record["train"]["peak_memory_gib"] > 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and np.isfinite([line["loss"] for line in lines]).all()
    deviations = [line["ratio_deviation"] for line in lines if "ratio_deviation" in line]
    # Rollout and update of teacher-forced methods run the same shapes: ratios stay close to 1 on policy.
    if method == "vapi":
        assert max(deviations) < 1e-2


def test_a_run_is_evaluated_and_continued(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        "run", "--method", "vapi", "--model", "shapes-tiny", "--steps", "2", "--out", str(out),
        "--set", "protocol.seeds=0", "--set", "protocol.settings=t1",
    ]  # fmt: skip
    on_cuda(command)
    results = json.loads((out / "run.json").read_text())["results"]
    assert {result["subject"] for result in results} == {"base", "method"}
    before = (out / "run.json").read_bytes()
    on_cuda(command)
    assert (out / "run.json").read_bytes() == before


# --- the networks that judge ----------------------------------------------------------------------


def test_inception_features_and_metrics_agree_with_the_cpu(tmp_path: Path) -> None:
    weights = tmp_path / "inception.pth"
    save_random(weights)
    sets = {"generated": pictures(24, seed=1, side=64), "real": pictures(20, seed=2, side=64, cells=6)}
    small = {"is_splits": 3, "bootstrap": 0, "kid_subsets": 4, "kid_subset_size": 8}
    found = {}
    for device in DEVICES:
        judge = evaluator(weights, device=device, **small)
        rows = {name: dict(judge.measure(batch_of(pixels))) for name, pixels in sets.items()}
        reference = Reference(digest="real", measured=Memory(rows["real"]))
        found[device] = (rows, judge.score(Memory(rows["generated"]), reference))
    for name in sets:
        for column, values in found["cpu"][0][name].items():
            other = found["cuda"][0][name][column]
            assert np.abs(values - other).max() < 1e-4 * np.abs(values).max(), column
    for ours, theirs in zip(found["cpu"][1], found["cuda"][1], strict=True):
        assert theirs.value == pytest.approx(ours.value, rel=1e-3, abs=1e-6, nan_ok=True), ours.name


def test_fréchet_and_manifolds_of_the_same_rows_agree_with_the_cpu() -> None:
    from alignbench.metrics.bootstrap import frechet_bootstrap
    from alignbench.metrics.frechet import frechet_distance
    from alignbench.metrics.moments import moments_of
    from alignbench.metrics.precision_recall import precision_recall

    numbers = np.random.default_rng(0)
    generated, real = numbers.normal(size=(900, 40)), numbers.normal(size=(700, 40)) * 1.1 + 0.1
    moments = {
        device: [moments_of(iter([rows]), torch.device(device)) for rows in (generated, real)]
        for device in DEVICES
    }
    distances = [
        frechet_distance(
            *(part for m in moments[device] for part in (m.mean, m.covariance)), device=torch.device(device)
        )
        for device in DEVICES
    ]
    assert distances[1] == pytest.approx(distances[0], rel=1e-10)
    shares = [precision_recall(generated, real, k=3, device=torch.device(device)) for device in DEVICES]
    assert (shares[0].inside_real == shares[1].inside_real).all()
    assert (shares[0].inside_generated == shares[1].inside_generated).all()
    target = (real.mean(axis=0), np.cov(real, rowvar=False))
    intervals = [
        frechet_bootstrap(generated, *target, replicates=10, seed=0, device=torch.device(device)).interval
        for device in DEVICES
    ]
    assert intervals[1] == pytest.approx(intervals[0], rel=1e-9)


def test_detections_agree_with_mmdetection_s() -> None:
    import transformers

    from tests.evaluators import test_mask2former as toys

    with np.load(DATA / "mask2former_mmdet.npz") as file:
        golden = {name: file[name] for name in file.files}
    network: Any = transformers.Mask2FormerForUniversalSegmentation(toys.tiny_config())
    network.load_state_dict(mask2former_keys.convert(toys.weights(golden), network.state_dict()))
    detector = mask2former.Mask2FormerDetector(
        network, identity="tiny", batch=1, device=torch.device("cuda"), class_names=toys.CLASSES
    )
    (found,) = detector.detect(torch.from_numpy(golden["picture"]).permute(2, 0, 1)[None], [0])
    ours = sorted(found, key=lambda item: (item.label, item.score))
    order = np.lexsort((golden["boxes"][:, 4], golden["labels"]))
    assert [item.label for item in ours] == golden["labels"][order].tolist()
    np.testing.assert_allclose([item.score for item in ours], golden["boxes"][order, 4], atol=1e-3)
    boxes = np.array([item.box for item in ours])
    assert np.abs(boxes - golden["boxes"][order, :4]).max() <= 1


def test_clip_scores_agree_with_the_cpu(tmp_path: Path) -> None:
    from alignbench.evaluation.evaluate import build_evaluators
    from tests.evaluators import test_text_image as toys
    from tests.helpers.tiny_open_clip import save_folder

    folder = save_folder(tmp_path / "quick", quick_gelu=True)
    protocol = REGISTRY.protocol("drawbench").model_copy(
        update={"evaluators": ["clip-score-l14"], "options": {}}
    )
    scores = []
    for device in DEVICES:
        (asset,) = REGISTRY.evaluator("clip-score-l14").assets
        card = REGISTRY.asset(asset)
        file = verify_asset(locate_asset(asset, card, str(folder)))
        judge = build_evaluators(REGISTRY, protocol, {asset: file}, torch.device(device))["clip-score-l14"]
        images = toys.pictures()
        batch: ImageBatch = toys.batch_of(images)
        scores.append(judge.measure(batch)["score"])
    assert np.abs(scores[0] - scores[1]).max() < 1e-2


# --- decoding as a graph --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [test_graphs.classes, test_graphs.captions, test_graphs.prompts])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(cfg_scale=2.5, top_k=20), Sampling(cfg_scale=2.5, cfg_interval=9)],
    ids=["plain", "guided", "guided at first"],
)
def test_a_graph_draws_what_plain_steps_draw(make: Any, sampling: Sampling, monkeypatch: Any) -> None:
    policy, condition = make()
    policy, condition = policy.cuda(), condition.to(torch.device("cuda"))
    uniforms = torch.from_numpy(randomness.uniforms(0, "gpu-test", 0, range(3), (25,))).cuda()
    replays = itertools.count()
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (next(replays), replay(graph)))
    graph = generate_steps(policy, condition, uniforms, sampling, keep_logits=True)
    again = generate_steps(policy, condition, uniforms, sampling)
    assert next(replays) >= 2 * (25 - 1 - 2 * 2) and torch.equal(graph.tokens, again.tokens)
    monkeypatch.setenv("ALIGNBENCH_CUDA_GRAPHS", "0")
    plain = generate_steps(policy, condition, uniforms, sampling, keep_logits=True)
    assert torch.equal(graph.tokens, plain.tokens)
    assert graph.logits is not None and plain.logits is not None
    scale = float(plain.logits.abs().max())
    torch.testing.assert_close(graph.logits, plain.logits, rtol=1e-4, atol=1e-4 * scale)


def test_codes_of_the_tokenizer_do_not_depend_on_the_device() -> None:
    model = llamagen.build(REGISTRY.model("llamagen-b"), None, seed=0, device="cpu").tokenizer
    noise = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(noise, (96, 96), mode="bicubic").clamp(0, 1) * 2 - 1
    with torch.no_grad():
        codes = model.encode(images)
        assert len(codes.unique()) > 20
        assert torch.equal(model.cuda().encode(images.cuda()).cpu(), codes)
