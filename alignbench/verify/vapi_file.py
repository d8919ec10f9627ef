"""One file of golden VA-π numbers, and how the cases in it are found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from alignbench.methods import policy_gradient
from alignbench.verify.golden_files import GoldenFile
from alignbench.verify.report import CheckReport

CONSTANTS = {"clip_range": 0.2, "advantage_clip": 5.0}
"""Where a file's metadata name no others."""

Results = dict[str, Tensor]
"""What one case should hold, by the name after the case's prefix."""


class VapiFile(GoldenFile):
    """A file whose floats are taken as float64."""

    def __init__(self, path: Path, report: CheckReport) -> None:
        super().__init__(path, report)
        with safe_open(path, framework="pt") as stream:
            self.metadata = stream.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor; a copy in float64 if it holds floats."""
        tensor: Tensor = self.peek(name)
        return tensor.to(torch.float64, copy=True) if tensor.is_floating_point() else tensor

    def constant(self, name: str) -> float:
        return float(self.metadata.get(name, CONSTANTS[name]))

    def surrogate(self, new: Tensor, old: Tensor, advantage: Tensor) -> policy_gradient.Surrogate:
        clip_range, advantage_clip = self.constant("clip_range"), self.constant("advantage_clip")
        return policy_gradient.clipped_surrogate(new, old, advantage, clip_range, advantage_clip)


@dataclass(frozen=True)
class Section:
    """One group of tensors: how its cases are named and what each should hold."""

    pattern: re.Pattern[str]
    """Matches a case's prefix."""
    compute: Callable[[VapiFile, re.Match[str]], Results]
    always: tuple[str, ...] = ()
    """Prefixes that every file with this group has."""
    grid: str = ""
    """Prefix as a format string over the pattern's groups: every combination of values seen must be there."""

    def cases(self, names: Iterable[str]) -> list[re.Match[str]]:
        """Return the cases that a file with tensors of these names has or should have."""
        seen = [match for match in map(self.pattern.match, names) if match]
        prefixes = {match[0] for match in seen} | set(self.always)
        if self.grid:
            groups = self.pattern.groupindex
            values = [{match[group] for match in seen} - {None} for group in groups]
            for chosen in itertools.product(*values):
                prefixes.add(self.grid.format(**dict(zip(groups, chosen, strict=True))))
        return [match for match in map(self.pattern.match, sorted(prefixes)) if match]
