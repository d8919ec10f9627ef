"""GenEval 2 (arXiv:2512.16853): a vision-language model is asked about each thing that a prompt names.

Soft-TIFA: the score of a question is the probability that the model begins with the right answer. An image's
scores are averaged arithmetically (AM, about single things) and geometrically (GM, about the whole prompt).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignbench.api import PROMPT, ImageBatch, Measured, Metric, Prompt, Reference
from alignbench.errors import UserError
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.metrics.clusters import resampled_interval
from alignbench.nets.vlm import Vlm, load_vlm
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of the arithmetic; part of the identity."""
SKILLS = ("object", "attribute", "count", "position", "verb")
MEANS = ("gm", "am")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTING = "How many"
"""What questions begin with whose answer is a number; that of all others is yes."""


@dataclass(frozen=True)
class Atom:
    """One thing that a prompt asks for, as a question."""

    question: str
    answer: str
    """`Yes`, or a number in words."""
    skill: str

    @property
    def spellings(self) -> list[str]:
        """How the right answer may be written."""
        number = self.answer.lower()
        forms = [number, number.capitalize()]
        if number in NUMBERS:
            forms.append(str(NUMBERS.index(number) + 1))
        return [blank + form for form in forms for blank in ("", " ")]


def atoms_of(prompt: Prompt) -> list[Atom]:
    """Read the questions of an entry of geneval2_data.jsonl.

    The entry has `vqa_list`, a list of pairs of question and answer, and `skills`, one of SKILLS for each.

    Raises:
        UserError: an entry of another form.
    """
    try:
        rows = zip(prompt.metadata["vqa_list"], prompt.metadata["skills"], strict=True)
        atoms = [Atom(str(question), str(answer), skill) for (question, answer), skill in rows]
    except (KeyError, TypeError, ValueError):
        atoms = []
    right = [
        atom.skill in SKILLS
        and (atom.answer.lower() in NUMBERS if atom.question.startswith(COUNTING) else atom.answer == "Yes")
        for atom in atoms
    ]
    if not atoms or not all(right):
        what = f"question {atoms[right.index(False)].question!r}" if atoms else "vqa_list or skills"
        raise UserError(
            f"prompt {prompt.text!r}: its {what} is not of GenEval 2's form",
            fix="use geneval2_data.jsonl: alignbench fetch geneval2-prompts",
        )
    return atoms


def soft_tifa(logprobs: Tensor) -> tuple[float, float]:
    """[A] log-probabilities of the right answers → their arithmetic and geometric mean, in [0, 1]."""
    return float(logprobs.exp().mean()), float(logprobs.mean().exp())


class GenEval2:
    """Asks a vision-language model about images; the options are those of `vqa_score.VqaScore`."""

    def __init__(
        self,
        card: EvaluatorCard,
        *,
        options: Mapping[str, Scalar],
        assets: Mapping[str, AssetFile],
        device: torch.device,
    ) -> None:
        (file,) = assets.values()
        self.identity = digest_of({"version": VERSION, "options": dict(options), "assets": file.sha256})
        self.vlm = Vlm(*load_vlm(file.path, device, str(options["precision"])))
        self.question = str(options["question"])

    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Ask each question in one forward pass.

        Returns float64 columns `gm` and `am` [n], 0 to 100; `total` and `atoms` [n, 5], for each of SKILLS
        the sum of the scores and the number of questions; `answers` [n] text, one line a question.

        Raises:
            UserError: images without prompts, or a prompt that is not GenEval 2's.
        """
        if len(batch.prompts) != len(batch):
            raise UserError("GenEval 2 asks about prompts; these images have none")
        asked = [atoms_of(prompt) for prompt in batch.prompts]
        rows = [self._row(image, atoms) for image, atoms in zip(batch.images, asked, strict=True)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return both means and the score of each skill, 0 to 100; a skill that nobody asked for has none.

        Intervals take prompts, not images or questions, for independent.
        """
        prompts, count = samples.column(PROMPT), len(samples)
        metrics = []
        for name in MEANS:
            values = samples.column(name)
            interval = resampled_interval(values, prompts)
            metrics.append(Metric(f"geneval2-{name}", float(values.mean()), count, interval))
        totals, atoms = samples.column("total"), samples.column("atoms").astype(int)
        for number, skill in enumerate(SKILLS):
            total, asked = totals[:, number], atoms[:, number]
            value, interval = math.nan, None
            if asked.any():
                value = float(total.sum() / asked.sum())
                # Every question stands for its image's mean: what is summed for a prompt is the same.
                single = np.repeat(total / np.maximum(asked, 1), asked)
                interval = resampled_interval(single, np.repeat(prompts, asked))
            metrics.append(Metric(f"geneval2-{skill}", value, int((asked > 0).sum()), interval))
        return metrics

    def _row(self, image: Tensor, atoms: list[Atom]) -> dict[str, np.ndarray]:
        logprobs = torch.stack([self._logprob(image.float() / 255, atom) for atom in atoms]).cpu()
        am, gm = soft_tifa(logprobs)
        scores = 100 * logprobs.exp().numpy()
        skill = np.array([SKILLS.index(atom.skill) for atom in atoms])
        lines = [f"{score:.1f} {a.question} {a.answer}" for score, a in zip(scores, atoms, strict=True)]
        return {
            "gm": np.array(100 * gm),
            "am": np.array(100 * am),
            "total": np.bincount(skill, weights=scores, minlength=len(SKILLS)),
            "atoms": np.bincount(skill, minlength=len(SKILLS)).astype(np.float64),
            "answers": np.array("\n".join(lines)),
        }

    def _logprob(self, image: Tensor, atom: Atom) -> Tensor:
        """[3, H, W] in [0, 1] → log-probability, float64, that the answer begins as a right one does."""
        said = self.vlm.first_token(image, self.question.replace("{}", atom.question)).double()
        return said[self.vlm.starts(atom.spellings)].logsumexp(dim=0)


build = GenEval2
