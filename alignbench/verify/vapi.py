"""Check VA-π's arithmetic (and that of its straight-through baseline) against golden numbers.

Every `*_f64` tensor is computed in float64 by the functions that training uses. Sizes, group sizes,
temperatures and weights are read from tensors and their names, so other sets of the same form work too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from alignbench.verify.report import FLOAT32, FLOAT64, Check, CheckReport, Verdict
from alignbench.verify.vapi_cases import INPUTS, SECTIONS
from alignbench.verify.vapi_file import VapiFile

PATTERN = "vapi_golden*.safetensors"


def check(folder: Path) -> CheckReport:
    """Compare every tensor of every golden VA-π file in a folder.

    Raises:
        UserError: a file that is no safetensors file.
    """
    report = CheckReport()
    files = [VapiFile(path, report) for path in sorted(folder.glob(PATTERN))]
    sections = set[str]()
    for golden in files:
        sections |= _check_file(golden)
    for section in sorted(SECTIONS.keys() - sections) if files else []:
        report.add("MISSING", f"{section}/*", "no file has this group of tensors")
    if not files:
        report.add("MISSING", PATTERN, f"no such file in {folder}")
    return report


def _check_file(golden: VapiFile) -> set[str]:
    """Check one file; returns the sections it has."""
    golden.open = {name for name in golden.values if not INPUTS.fullmatch(name)}
    sections = {name.partition("/")[0] for name in golden.values} & SECTIONS.keys()
    for section in sorted(sections):
        cases = SECTIONS[section].cases(golden.values)
        if not cases:
            golden.report.add("MISSING", golden.row(f"{section}/*"), "inputs without any result")
        for case in cases:
            with golden.report.part(f"{case[0]}*", partial(golden.left, case[0])):
                for suffix, actual in SECTIONS[section].compute(golden, case).items():
                    _compare(golden, case[0] + suffix, actual)
    golden.finish()
    return sections


def _compare(golden: VapiFile, name: str, actual: Tensor) -> None:
    official = name.removesuffix("_f64") + "_official_f32"
    if name not in golden.values:
        golden.report.add("MISSING", golden.row(name))
        return
    if "tripwire" in name:
        _compare_tripwire(golden, name, actual)
    else:
        golden.compare(name, actual, FLOAT64 if actual.is_floating_point() else None)
    if official in golden.values:
        error = float((golden[official] - golden[name]).abs().max())
        golden.info(official, f"official float32, {error:.0e} from the float64 value")


def _compare_tripwire(golden: VapiFile, name: str, actual: Tensor) -> None:
    """Our values must all differ from what a misaligned implementation gets."""
    wrong = golden.take(name)
    distance = float((actual.detach() - wrong).abs().min())
    tolerance = FLOAT32.absolute + FLOAT32.relative * float(wrong.abs().max())
    verdict: Verdict = "ok" if distance > tolerance else "MISS"
    note = "must differ by more than this"
    golden.report.checks.append(Check(golden.row(name), distance, tolerance, verdict, note))
