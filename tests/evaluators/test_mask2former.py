"""GenEval's detector against mmdetection 2.28.2 itself.

`data/mask2former_mmdet.npz` was written by mmdetection: a tiny Mask2Former-Swin from its official config with
smaller widths and random weights, its logits for an input, and what `inference_detector` found in a picture.
`data/opencv_linear.npz` was written by OpenCV 4.8.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.evaluators.geneval import mask2former
from alignbench.evaluators.geneval.mask2former_arrays import (
    detector_size,
    instances,
    prepare,
    resize_bytes,
    tight_boxes,
)
from alignbench.evaluators.geneval.mask2former_keys import convert
from alignbench.hub.verify import AssetFile
from tests.helpers.data_sets import refused

DATA = Path(__file__).parents[1] / "golden"
CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "mask2former_mmdet.npz") as file:
        return {name: file[name] for name in file.files}


def tiny_config() -> Any:
    import transformers

    library: Any = transformers
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    backbone = library.SwinConfig(
        embed_dim=4, depths=[2, 1, 2, 1], num_heads=[1, 1, 2, 4], window_size=7, out_features=stages
    )
    widths = dict.fromkeys(["feature_size", "mask_feature_size", "hidden_dim"], 32)
    layers = {"encoder_layers": 2, "decoder_layers": 4}  # one stands for the queries before the first layer
    heads = {"num_labels": 3, "num_queries": 5, "num_attention_heads": 2}
    feedforward = {"encoder_feedforward_dim": 24, "dim_feedforward": 40}
    return library.Mask2FormerConfig(backbone_config=backbone, **widths, **layers, **heads, **feedforward)


def weights(golden: dict[str, np.ndarray]) -> dict[str, Tensor]:
    start = "weight:"
    state = {k.removeprefix(start): torch.from_numpy(v) for k, v in golden.items() if k.startswith(start)}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


@pytest.fixture(scope="module")
def network(golden: dict[str, np.ndarray]) -> Any:
    import transformers

    model: Any = transformers.Mask2FormerForUniversalSegmentation(tiny_config())
    model.load_state_dict(convert(weights(golden), model.state_dict()))
    return model.eval()


# --- the whole network ----------------------------------------------------------------------------


def test_converted_weights_give_mmdetections_logits(golden: dict[str, np.ndarray], network: Any) -> None:
    with torch.no_grad():
        found = network(pixel_values=torch.from_numpy(golden["input"]).float())
    classes, masks = found.class_queries_logits.numpy(), found.masks_queries_logits.numpy()
    assert np.abs(golden["class_logits"]).max() > 1 and np.abs(golden["mask_logits"]).max() > 10
    np.testing.assert_allclose(classes, golden["class_logits"], atol=2e-4)
    np.testing.assert_allclose(masks, golden["mask_logits"], atol=2e-3)


def test_detections_in_a_picture_are_mmdetections(golden: dict[str, np.ndarray], network: Any) -> None:
    detector = mask2former.Mask2FormerDetector(
        network, identity="tiny", batch=2, device=CPU, class_names=CLASSES
    )
    picture = torch.from_numpy(golden["picture"]).permute(2, 0, 1)
    found = detector.detect(torch.stack([picture, picture.flip(2)]), [0, 1])
    assert len(found) == 2
    ours = sorted(found[0], key=lambda item: (item.label, item.score))
    masks = np.unpackbits(golden["masks"], axis=-1)[..., : picture.shape[2]].astype(bool)
    order = np.lexsort((golden["boxes"][:, 4], golden["labels"]))
    assert [item.label for item in ours] == golden["labels"][order].tolist()
    np.testing.assert_allclose([item.score for item in ours], golden["boxes"][order, 4], atol=1e-4)
    assert [item.box for item in ours] == [tuple(map(float, box[:4])) for box in golden["boxes"][order]]
    for item, row in zip(ours, order, strict=True):
        assert item.mask is not None and (item.mask == masks[row]).all()


# --- names and shapes -----------------------------------------------------------------------------


def parts(at: str, text: str, unit: int = 1) -> dict[str, tuple[int, ...]]:
    """`name sizes`: a weight and its bias; `=name sizes`: one tensor; sizes in units."""
    shapes = {}
    for name, *sizes in map(str.split, text.split(",")):
        shape = tuple(unit * int(size) for size in sizes)
        if name.startswith("="):
            shapes[f"{at}.{name[1:]}"] = shape
        else:
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
    return shapes


def official_shapes() -> dict[str, tuple[int, ...]]:
    """mmdetection's `SwinTransformer`, `MSDeformAttnPixelDecoder`, `Mask2FormerHead`, off its modules."""
    shapes = parts("backbone.patch_embed", "projection 96 3 4 4, norm 96")
    for stage, (depth, heads) in enumerate(zip([2, 2, 18, 2], [3, 6, 12, 24], strict=True)):
        width, at = 96 * 2**stage, f"backbone.stages.{stage}"
        for block in range(depth):
            own = f"{at}.blocks.{block}"
            shapes |= parts(f"{own}.attn.w_msa", "qkv 3 1, proj 1 1", width)
            bias = f"=relative_position_bias_table 169 {heads}, =relative_position_index 49 49"
            shapes |= parts(f"{own}.attn.w_msa", bias)
            shapes |= parts(own, "norm1 1, norm2 1, ffn.layers.0.0 4 1, ffn.layers.1 1 4", width)
        if stage < 3:
            shapes |= parts(f"{at}.downsample", "norm 4, =reduction.weight 2 4", width)
        shapes |= parts("backbone", f"norm{stage} 1", width)
    pixels = "panoptic_head.pixel_decoder"
    shapes |= parts(pixels, "=level_encoding.weight 3 256, mask_feature 256 256 1 1")
    shapes |= parts(f"{pixels}.lateral_convs.0", "=conv.weight 256 96 1 1, gn 256")
    shapes |= parts(f"{pixels}.output_convs.0", "=conv.weight 256 256 3 3, gn 256")
    for level, channels in enumerate([768, 384, 192]):
        shapes |= parts(f"{pixels}.input_convs.{level}", f"conv 256 {channels} 1 1, gn 256")
    for layer in range(6):
        at = f"{pixels}.encoder.layers.{layer}"
        shapes |= parts(f"{at}.attentions.0", "sampling_offsets 192 256, attention_weights 96 256")
        shapes |= parts(f"{at}.attentions.0", "value_proj 256 256, output_proj 256 256")
        shapes |= parts(at, "ffns.0.layers.0.0 1024 256, ffns.0.layers.1 256 1024, norms.0 256, norms.1 256")
    decoder = "panoptic_head.transformer_decoder"
    for layer in range(9):
        at = f"{decoder}.layers.{layer}"
        for own in (f"{at}.attentions.{number}.attn" for number in range(2)):
            shapes |= parts(own, "=in_proj_weight 768 256, =in_proj_bias 768, out_proj 256 256")
        shapes |= parts(f"{at}.ffns.0.layers", "0.0 2048 256, 1 256 2048")
        shapes |= parts(f"{at}.norms", "0 256, 1 256, 2 256")
    shapes |= parts(decoder, "post_norm 256")
    shapes |= parts("panoptic_head.mask_embed", "0 256 256, 2 256 256, 4 256 256")
    queries = "=query_embed.weight 100 256, =query_feat.weight 100 256, =level_embed.weight 3 256"
    return shapes | parts("panoptic_head", f"{queries}, cls_embed 81 256")


@pytest.fixture(scope="module")
def swin_s() -> dict[str, Tensor]:
    import transformers

    with torch.device("meta"):
        model: Any = transformers.Mask2FormerForUniversalSegmentation(mask2former.swin_s_config())
    return dict(model.state_dict())


def test_every_parameter_of_swin_s_comes_from_the_checkpoint(swin_s: dict[str, Tensor]) -> None:
    shapes = official_shapes()
    assert len(shapes) == 649  # counted in mmdetection 2.28.2; 24 of them are indices
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = convert(state, swin_s)
    assert set(converted) == set(swin_s)
    assert all(converted[name].shape == own.shape for name, own in swin_s.items())
    kept = {name for name, own in swin_s.items() if converted[name] is own}
    assert kept == {
        "model.pixel_level_module.encoder.swin.layernorm.weight",
        "model.pixel_level_module.encoder.swin.layernorm.bias",
        "criterion.empty_weight",
    }
    learned = sum(own.numel() for name, own in swin_s.items() if name not in kept)
    indices = sum(value.numel() for name, value in state.items() if name.endswith("_index"))
    assert learned == sum(value.numel() for value in state.values()) - indices == 68_739_547


def test_parts_that_do_not_fit_are_named(golden: dict[str, np.ndarray], network: Any) -> None:
    state, wanted = weights(golden), network.state_dict()
    query, classes = "panoptic_head.query_feat.weight", "panoptic_head.cls_embed.weight"
    for changed, message in (
        ({name: value for name, value in state.items() if name != query}, f"lacks {query}"),
        (state | {classes: torch.zeros(134, 32)}, f"{classes} is (134, 32), not (4, 32)"),
        (state | {"backbone.extra.weight": torch.zeros(1)}, "1 parts too many, e.g. backbone.extra.weight"),
    ):
        assert message in refused(convert, changed, wanted)
    message = refused(convert, state, {"model.new": torch.zeros(1)})
    assert "calls a part of Mask2Former model.new, which is not known here" in message


# --- files ----------------------------------------------------------------------------------------


def official(path: Path) -> dict[str, AssetFile]:
    return {mask2former.OFFICIAL: AssetFile(mask2former.OFFICIAL, path, "0" * 64)}


def test_built_from_a_checkpoint_file(
    golden: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": weights(golden)}, path)
    monkeypatch.setattr(mask2former, "swin_s_config", tiny_config)
    monkeypatch.setattr(mask2former, "CLASS_NAMES", CLASSES)
    random = torch.random.get_rng_state()
    detector = mask2former.build_official(options={"batch": 3}, assets=official(path), device=CPU)
    assert torch.equal(random, torch.random.get_rng_state())
    assert detector.batch == 3 and detector.class_names == CLASSES
    picture = torch.from_numpy(golden["picture"]).permute(2, 0, 1)
    assert len(detector.detect(picture[None], [0])[0]) == 15


def test_built_from_a_folder_of_the_hub(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.save_pretrained(tmp_path)
    files = {mask2former.HUB: AssetFile(mask2former.HUB, tmp_path, "1" * 64)}
    message = refused(mask2former.build_hub, options={"batch": 1}, assets=files, device=CPU)
    assert "knows 3 classes, not 80" in message
    monkeypatch.setattr(mask2former, "CLASS_NAMES", CLASSES)
    detector = mask2former.build_hub(options={"batch": 1}, assets=files, device=CPU)
    loaded = dict(detector._network.state_dict())
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())


class Strange:
    """Something that only running code could read back."""


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    for content, message in (
        (b"", "broken.pth cannot be read as a checkpoint"),
        (b"not a checkpoint", "cannot be read as a checkpoint"),
        ({"state_dict": {"a": Strange()}}, "cannot be read as a checkpoint"),
        ([1], "holds no state_dict"),
        ({"model": {}}, "holds no state_dict"),
        ({"state_dict": {"a": 1}}, "holds no state_dict"),
    ):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        assert message in refused(mask2former.read_checkpoint, official(path)[mask2former.OFFICIAL])


# --- images in ------------------------------------------------------------------------------------


def test_resizing_equals_opencv_in_every_byte() -> None:
    with np.load(DATA / "opencv_linear.npz") as file:
        pairs = [(file[f"image_{number}"], file[f"resized_{number}"]) for number in range(6)]
    for image, resized in pairs:
        ours = resize_bytes(torch.from_numpy(image).permute(2, 0, 1), resized.shape[:2])
        assert (ours.permute(1, 2, 0).numpy() == resized).all(), (image.shape, resized.shape)


def test_detector_size() -> None:
    assert detector_size(256, 256) == detector_size(1600, 1600) == (800, 800)
    assert detector_size(384, 256) == (1200, 800)
    # The longer side binds: 1333 / 400 · 200 = 666.5, rounded up.
    assert detector_size(200, 400) == (667, 1333)


def test_the_padding_is_grey_before_normalising() -> None:
    pixels, size = prepare(torch.full((1, 3, 24, 36), 128, dtype=torch.uint8))
    assert size == (800, 1200) and pixels.shape == (1, 3, 800, 1216)
    expected = (128 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(pixels, expected[None, :, None, None].expand_as(pixels))


# --- detections out -------------------------------------------------------------------------------


def test_instances_by_hand() -> None:
    """Two queries, two classes; sizes all equal, so that nothing is resized."""
    masks = torch.full((2, 4, 6), -5.0)
    masks[0, 1:3, 2:5] = 2.0  # rows 1 to 2, columns 2 to 4
    masks[1] = -1.0  # nothing above 0
    classes = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    found = instances(classes, masks, padded=(4, 6), resized=(4, 6), original=(4, 6))
    assert len(found) == 4
    probability = classes.softmax(dim=-1)
    by_pair = {(item.label, item.box): item for item in found}
    first = by_pair[0, (2.0, 1.0, 5.0, 3.0)]
    inside = torch.tensor(2.0).sigmoid()
    assert first.score == pytest.approx(float(probability[0, 0] * inside), abs=1e-6)
    assert first.mask is not None and first.mask.sum() == 6
    empty = by_pair[1, (0.0, 0.0, 0.0, 0.0)]
    assert empty.score == 0


def test_masks_are_thresholded_after_resizing() -> None:
    """4 and -1, enlarged to four columns: 4, 2.75, 0.25, -1; thresholding first would give two columns."""
    masks = torch.tensor([4.0, -1.0]).view(1, 1, 2).expand(1, 2, 2)
    (found,) = instances(torch.zeros(1, 2), masks, padded=(2, 4), resized=(2, 4), original=(2, 4))
    assert found.box == (0, 0, 3, 2)


def test_the_padding_is_cut_off_before_resizing_back() -> None:
    masks = torch.full((1, 4, 4), 3.0)
    masks[:, :, 2:] = -3.0  # the padding
    (found,) = instances(torch.zeros(1, 2), masks, padded=(4, 4), resized=(4, 2), original=(8, 4))
    assert found.box == (0, 0, 4, 8) and found.mask is not None and found.mask.all()


def test_a_hundred_detections_at_most() -> None:
    numbers = torch.Generator().manual_seed(0)
    classes = torch.randn(30, 6, generator=numbers)
    found = instances(classes, torch.ones(30, 1, 1), padded=(1, 1), resized=(1, 1), original=(1, 1))
    assert len(found) == 100
    best = classes.softmax(dim=-1)[:, :-1].flatten().sort(descending=True).values[:100]
    inside = float(torch.tensor(1.0).sigmoid()) / (1 + 1e-6)
    scores = sorted((item.score for item in found), reverse=True)
    np.testing.assert_allclose(scores, (best * inside).numpy(), rtol=1e-5)


def test_boxes_are_tight() -> None:
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[1, 2:5, 3:4] = True
    masks[2] = True
    masks[3, 0, 8] = masks[3, 5, 0] = True
    assert tight_boxes(masks).tolist() == [[0, 0, 0, 0], [3, 2, 4, 5], [0, 0, 9, 6], [0, 0, 9, 6]]
    numbers = torch.rand(50, 7, 8, generator=torch.Generator().manual_seed(0)) > 0.93
    for mask, box in zip(numbers, tight_boxes(numbers).tolist(), strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        assert box == [float(edge) for edge in expected]
