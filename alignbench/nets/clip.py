"""CLIP models of the open_clip library out of files: OpenAI's archives, checkpoints, folders in the hub's
form.

open_clip's own loader is not used: given a file it builds whatever the name says without a look at the
weights (OpenAI's networks with the wrong activation, with a warning at most), and it stretches position
embeddings that do not fit. Here a file fits its architecture exactly or is refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from alignbench.errors import UserError
from alignbench.files import parse_json

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What repositories in open_clip's form call their weights."""
Pictures = Callable[[Tensor], Tensor]
"""[n, 3, H, W] uint8 on the CPU → [n, 3, side, side] float32 as the network takes them, anywhere."""
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep beside the weights."""


@dataclass(frozen=True)
class ClipModel:
    """A frozen network with its tokenizer."""

    network: Any
    """`open_clip.CLIP`, float32, eval mode, on the CPU."""
    tokenizer: Any
    """`open_clip.SimpleTokenizer`: texts → [N, context] int64, cut to the context."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """How a folder wants pictures prepared, in open_clip's words; empty: OpenAI's way."""

    @property
    def side(self) -> int:
        """Of the pictures it takes."""
        size = self.network.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    def is_cut(self, text: str) -> bool:
        """Whether the text is too long for the network."""
        marks = 2  # of beginning and end
        result: bool = len(self.tokenizer.encode(text)) + marks > self.tokenizer.context_length
        return result


def load(path: Path, architecture: str, *, names: Sequence[str] = WEIGHTS) -> ClipModel:
    """Read a model.

    Args:
        path: weights of that architecture, or a folder that holds one of `names` and, unless the architecture
            is meant, open_clip_config.json.
        architecture: open_clip's name of it.
        names: of weight files in a folder, the first that exists is taken.

    Raises:
        UserError: open_clip is not installed, no such architecture, or files that do not fit it.
    """
    weights = path if path.is_file() else next((path / n for n in names if (path / n).is_file()), None)
    if weights is None:
        raise UserError(f"{path} holds no {' or '.join(names)}")
    if weights != path and (path / CONFIG).is_file():
        return _build(weights, _read_config(path / CONFIG), CONFIG)
    return _build(weights, {"model_cfg": architecture_of(architecture)}, architecture)


def pil_pictures(model: ClipModel) -> Pictures:
    """Prepare images as a model wants them; see `pictures_through_pil`.

    Raises:
        UserError: a folder that asks for a preparation open_clip does not know.
    """
    wish = {key: value for key, value in model.preprocess.items() if key not in ("mode", "size")}
    try:
        return pictures_through_pil(model.side, **wish)
    except (TypeError, AssertionError) as error:
        raise UserError(f"{CONFIG}: preprocess_cfg is not understood: {error}") from error


def pictures_through_pil(side: int, **wish: Any) -> Pictures:
    """Prepare images as open_clip and OpenAI do: through PIL, bicubic on 8 bits, then the centre.

    Args:
        wish: mean, std and whatever else `open_clip.image_transform` takes; OpenAI's unless given.
    """
    prepare = library().image_transform(side, is_train=False, **wish)

    def pictures(images: Tensor) -> Tensor:
        arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.stack([prepare(Image.fromarray(array)) for array in arrays])

    return pictures


def library() -> Any:
    """Import open_clip, or raise UserError."""
    try:
        import open_clip
    except ImportError as error:
        fix = "pip install 'alignbench[rewards]'"
        raise UserError(f"open_clip cannot be imported: {error}", fix=fix) from error
    return open_clip


def architecture_of(name: str) -> dict[str, Any]:
    """Return the configuration that open_clip knows under a name."""
    config: dict[str, Any] | None = library().get_model_config(name)
    if config is None:
        raise UserError(f"open_clip knows no architecture {name!r}")
    return config


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
        return {**config, "model_cfg": dict(config["model_cfg"])}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} is no configuration of open_clip: {reason}") from error


def _build(weights: Path, config: Mapping[str, Any], source: str) -> ClipModel:
    """Build what open_clip_config.json or an architecture (`source`) says and fill it from a file."""
    clip, shape = library(), dict(config["model_cfg"])
    if _is_openai_archive(weights) and not shape.get("quick_gelu", False):
        # Nothing in the weights would contradict: scores would merely be wrong.
        raise UserError(
            f"{weights} is an archive of OpenAI, whose networks use QuickGELU; {source} does not",
            fix=f"the architecture named {source}-quickgelu",
        )
    try:
        context = int(shape["text_cfg"]["context_length"])
        if "hf_tokenizer_name" in shape["text_cfg"] or "tokenizer_kwargs" in shape["text_cfg"]:
            raise ValueError("only CLIP's own tokenizer is supported")
        network = clip.CLIP(**shape)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{source} is no plain CLIP: {type(error).__name__}: {error}") from error
    state = _read_state(weights)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{weights} does not fit {source}: {reason}") from error
    tokenizer = clip.SimpleTokenizer(context_length=context)
    network = network.float().eval().requires_grad_(False)
    return ClipModel(network, tokenizer, dict(config.get("preprocess_cfg", {})))


def _read_state(path: Path) -> dict[str, Any]:
    """Read {name: weight} without running anything that the file may hold."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if _is_openai_archive(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
                state = torch.jit.load(path, map_location="cpu").state_dict()
            return {key: value for key, value in state.items() if key not in _NOT_WEIGHTS}
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes suggest
        lines = str(error).strip().splitlines() or [""]
        raise UserError(f"{path} cannot be read as weights: {type(error).__name__}: {lines[0]}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no weights but {type(state).__name__}")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _is_openai_archive(path: Path) -> bool:
    """TorchScript: of all CLIP releases only OpenAI's are."""
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
