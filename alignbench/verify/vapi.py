"""Check VA-π's arithmetic (and that of its straight-through baseline) against golden numbers.

Every `*_f64` tensor is computed in float64 by the functions that training uses. Sizes, group sizes,
temperatures and weights are read from tensors and their names, so other sets of the same form work too.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from alignbench.verify.golden_files import MissingTensor, Results, VapiFile
from alignbench.verify.report import ABSOLUTE, RELATIVE, Check, CheckReport, Verdict
from alignbench.verify.vapi_cases import INPUTS, SECTIONS

PATTERN = "vapi_golden*.safetensors"
FLOAT64_RELATIVE = 1e-9
"""Everything is float64 on both sides."""


def check(folder: Path) -> CheckReport:
    """Compare every tensor of every golden VA-π file in a folder.

    Raises:
        UserError: a file that is no safetensors file.
    """
    report = CheckReport()
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        report.missing(PATTERN, f"no such file in {folder}")
    sections = set[str]()
    for path in paths:
        sections |= _check_file(VapiFile(path), path.name, report)
    if paths:
        for section in sorted(SECTIONS.keys() - sections):
            report.missing(f"{section}/*", "no file has this group of tensors")
    return report


def _check_file(golden: VapiFile, file_name: str, report: CheckReport) -> set[str]:
    """Check one file; returns the sections it has."""
    rest = {name for name in golden.tensors if not INPUTS.fullmatch(name)}
    sections = {name.partition("/")[0] for name in golden.tensors} & SECTIONS.keys()
    for section in sorted(sections):
        cases = SECTIONS[section].cases(golden.tensors)
        if not cases:
            report.missing(f"{file_name}:{section}/*", "inputs without any result")
        for case in cases:
            try:
                results = SECTIONS[section].compute(golden, case)
            except (MissingTensor, RuntimeError, IndexError, ValueError) as error:
                rest -= _miss_case(rest, file_name, case[0], error, report)
            else:
                rest -= _compare_case(golden, file_name, case[0], results, report)
    for name in sorted(rest):
        report.unknown(f"{file_name}:{name}")
    return sections


def _miss_case(
    rest: set[str], file_name: str, prefix: str, error: Exception, report: CheckReport
) -> set[str]:
    """Miss every result of a case that cannot be computed; returns their names."""
    if isinstance(error, MissingTensor):
        note = f"{error} is missing"
        report.missing(f"{file_name}:{error}", f"needed by {prefix}*")
    else:
        note = f"inputs do not fit together: {error}".splitlines()[0]
    names = {name for name in rest if name.startswith(prefix)}
    report.checks += [Check(f"{file_name}:{name}", None, None, "MISS", note) for name in sorted(names)]
    return names


def _compare_case(
    golden: VapiFile, file_name: str, prefix: str, results: Results, report: CheckReport
) -> set[str]:
    """Compare one case; returns the names it has dealt with."""
    done = set[str]()
    for suffix, actual in results.items():
        name = prefix + suffix
        row, official = f"{file_name}:{name}", name.removesuffix("_f64") + "_official_f32"
        if name not in golden.tensors:
            report.missing(row)
            continue
        expected = golden[name]
        actual = actual.reshape(1) if actual.dim() == 0 else actual
        if "tripwire" in name:
            _compare_tripwire(row, actual, expected, report)
        elif expected.is_floating_point():
            report.close(row, actual, expected, relative=FLOAT64_RELATIVE)
        else:
            report.equal(row, actual, expected)
        if official in golden.tensors:
            error = float((golden[official] - expected).abs().max())
            report.info(f"{file_name}:{official}", f"official float32, {error:.0e} from the float64 value")
        done |= {name, official}
    return done


def _compare_tripwire(row: str, actual: Tensor, wrong: Tensor, report: CheckReport) -> None:
    """Our values must all differ from what a misaligned implementation gets."""
    distance = float((actual.detach() - wrong).abs().min())
    tolerance = ABSOLUTE + RELATIVE * float(wrong.abs().max())
    verdict: Verdict = "ok" if distance > tolerance else "MISS"
    report.checks.append(Check(row, distance, tolerance, verdict, "must differ by more than this"))
