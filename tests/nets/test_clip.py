"""CLIP models out of files: what open_clip itself makes of them, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from alignbench.errors import UserError
from alignbench.nets import clip
from tests.helpers.tiny_open_clip import make_config, make_model, save_archive, save_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("open_clip") / "quick", quick_gelu=True)


@pytest.fixture
def tiny_names(tmp_path: Path) -> None:
    """Let open_clip know the tiny architecture by two names."""
    import open_clip

    for name, head in (("tiny-test", 8), ("tiny-openai", 64), ("tiny-openai-quickgelu", 64)):
        file = tmp_path / "configs" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(make_config(quick_gelu="quickgelu" in name, head=head)))
        open_clip.add_model_config(file)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:FutureWarning")  # open_clip's own
@pytest.mark.usefixtures("tiny_names")
def test_openai_archive_needs_its_own_activation(tmp_path: Path) -> None:
    import open_clip
    from open_clip.openai import load_openai_model

    path = save_archive(tmp_path / "ViT.pt", make_config(quick_gelu=True, head=64))
    ours = clip.load(path, "tiny-openai-quickgelu")
    theirs = load_openai_model(str(path), precision="fp32", device="cpu").eval().requires_grad_(False)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    tokens = ours.tokenizer(["a fox", "word " * 80])
    with torch.no_grad():
        assert torch.equal(ours.network.encode_image(images), theirs.encode_image(images))
        assert torch.equal(ours.network.encode_text(tokens), theirs.encode_text(tokens))
    assert ours.network.logit_scale.dtype == torch.float32
    with pytest.raises(UserError, match=r"QuickGELU; tiny-openai does not → .*tiny-openai-quickgelu"):
        clip.load(path, "tiny-openai")
    bytes_ = (torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(1)) * 255).byte()
    transform = open_clip.image_transform(28, is_train=False)  # OpenAI's
    prepared = [transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in bytes_]
    assert torch.equal(clip.pil_pictures(ours)(bytes_), torch.stack(prepared))


@pytest.mark.usefixtures("tiny_names")
def test_plain_and_training_checkpoints(tmp_path: Path) -> None:
    state = make_model(make_config(quick_gelu=False)).state_dict()
    parallel = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    for content in (state, parallel):
        torch.save(content, tmp_path / "x.pt")
        network = clip.load(tmp_path / "x.pt", "tiny-test").network
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not network.training


@pytest.mark.usefixtures("tiny_names")
def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    larger = make_model(make_config(quick_gelu=False, side=42)).state_dict()
    torch.save(larger, tmp_path / "larger.pt")
    (tmp_path / "broken.pt").write_bytes(b"no weights at all")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty").mkdir()
    for name, architecture, message in (
        # open_clip's own loader would stretch the position embedding and go on.
        ("larger.pt", "tiny-test", r"larger\.pt does not fit tiny-test: .*positional_embedding"),
        ("broken.pt", "tiny-test", r"broken\.pt cannot be read as weights"),
        ("list.pt", "tiny-test", r"list\.pt holds no weights but list"),
        ("list.pt", "ViT-Q-99", "knows no architecture 'ViT-Q-99'"),
        ("empty", "tiny-test", r"holds no open_clip_model\.safetensors or open_clip_pytorch_model"),
    ):
        with pytest.raises(UserError, match=message):
            clip.load(tmp_path / name, architecture)


def test_folders_with_another_configuration(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[str | dict[str, Any], str]] = [
        ("{", "is no configuration of open_clip"),
        ('{"preprocess_cfg": {}}', "is no configuration of open_clip: KeyError: 'model_cfg'"),
        ('{"model_cfg": {"embed_dim": 16}}', "is no plain CLIP: KeyError: 'text_cfg'"),
        ({"model_cfg": {"custom_text": True}}, "is no plain CLIP: TypeError"),
        ({"text_cfg": {"hf_tokenizer_name": "t5"}}, "only CLIP's own tokenizer"),
        ({"preprocess_cfg": {"resize_mode": "melt"}}, "preprocess_cfg is not understood"),
        ({"preprocess_cfg": {"colour": "more"}}, "preprocess_cfg is not understood"),
    ]
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    original = (copied / clip.CONFIG).read_text()
    for change, message in cases:
        config = json.loads(original)
        if isinstance(change, dict):
            ((table, values),) = change.items()
            (config["model_cfg"]["text_cfg"] if table == "text_cfg" else config[table]).update(values)
            change = json.dumps(config)
        (copied / clip.CONFIG).write_text(change)
        with pytest.raises(UserError, match=message):
            clip.pil_pictures(clip.load(copied, "tiny-test"))


def test_missing_package_names_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'alignbench\[rewards\]'"):
        clip.load(folder, "tiny-test")
