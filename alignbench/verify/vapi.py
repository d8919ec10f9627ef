"""Check VA-π's arithmetic (and that of its straight-through baseline) against golden numbers.

Every `*_f64` tensor is computed in float64 by the functions that training uses. Sizes, group sizes,
temperatures and weights are read from tensors and their names, so other sets of the same form work too.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from alignbench.verify.golden_files import Golden, Missing, Results
from alignbench.verify.report import ABSOLUTE, Report, Row, Verdict
from alignbench.verify.report import RELATIVE as FLOAT32_RELATIVE
from alignbench.verify.vapi_cases import INPUTS, SECTIONS

PATTERN = "vapi_golden*.safetensors"
RELATIVE = 1e-9
"""Everything is float64 on both sides."""


def check(folder: Path) -> Report:
    """Compare every tensor of every golden VA-π file in a folder.

    Raises:
        UserError: a file that is no safetensors file.
    """
    report = Report()
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        report.missing(PATTERN, f"no such file in {folder}")
    found = set[str]()
    for path in paths:
        found |= _check_file(Golden(path), path.name, report)
    if paths:
        for section in sorted(SECTIONS.keys() - found):
            report.missing(f"{section}/*", "no file has this group of tensors")
    return report


def _check_file(golden: Golden, file_name: str, report: Report) -> set[str]:
    """Judge one file; returns the sections it has."""
    rest = {name for name in golden.tensors if not INPUTS.fullmatch(name)}
    sections = {name.partition("/")[0] for name in golden.tensors} & SECTIONS.keys()
    for section in sorted(sections):
        cases = SECTIONS[section].cases(golden.tensors)
        if not cases:
            report.missing(f"{file_name}:{section}/*", "inputs without any result")
        for case in cases:
            try:
                results = SECTIONS[section].compute(golden, case)
            except (Missing, RuntimeError, IndexError, ValueError) as error:
                rest -= _judge_broken(rest, file_name, case[0], error, report)
            else:
                rest -= _judge(golden, file_name, case[0], results, report)
    for name in sorted(rest):
        report.unknown(f"{file_name}:{name}")
    return sections


def _judge_broken(rest: set[str], file_name: str, prefix: str, error: Exception, report: Report) -> set[str]:
    """Miss every result of a case that cannot be computed; returns their names."""
    if isinstance(error, Missing):
        note = f"{error} is missing"
        report.missing(f"{file_name}:{error}", f"needed by {prefix}*")
    else:
        note = f"inputs do not fit together: {error}".splitlines()[0]
    names = {name for name in rest if name.startswith(prefix)}
    report.rows += [Row(f"{file_name}:{name}", None, None, "MISS", note) for name in sorted(names)]
    return names


def _judge(golden: Golden, file_name: str, prefix: str, results: Results, report: Report) -> set[str]:
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
            _judge_tripwire(row, actual, expected, report)
        elif expected.is_floating_point():
            report.close(row, actual, expected, relative=RELATIVE)
        else:
            report.equal(row, actual, expected)
        if official in golden.tensors:
            error = float((golden[official] - expected).abs().max())
            report.info(f"{file_name}:{official}", f"official float32, {error:.0e} from the float64 value")
        done |= {name, official}
    return done


def _judge_tripwire(row: str, actual: Tensor, wrong: Tensor, report: Report) -> None:
    """Our values must all differ from what a misaligned implementation gets."""
    distance = float((actual.detach() - wrong).abs().min())
    tolerance = ABSOLUTE + FLOAT32_RELATIVE * float(wrong.abs().max())
    verdict: Verdict = "ok" if distance > tolerance else "MISS"
    report.rows.append(Row(row, distance, tolerance, verdict, "must differ by more than this"))
