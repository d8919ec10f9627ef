"""What TAB gives: by the protocol of typer's scripts, and in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.command import alignbench

VAPI = "run --method vapi --model llamagen-tiny --set"
KEYS = ["data.root=", "data.limit=", "data.subset_seed=", "data.class_index=", "data.names="]
GIVES: dict[str, list[str]] = {
    "run --method va": ["vapi"],
    "run -m vapi --model llamagen-xxl": ["llamagen-xxl", "llamagen-xxl-256", "llamagen-xxl-cca"],
    "run --recipe vapi-llamagen-xx": ["vapi-llamagen-xxl"],
    "run --protocol digits8-v": ["digits8-validation"],
    "run --data shap": ["shapes"],
    "evaluate --model shapes-t": ["shapes-tiny"],
    "bench --method st": ["ste"],
    "doctor --method nt": ["ntp"],
    "sample --model janus-t": ["janus-tiny"],
    "sweep table1-s": ["table1-shapes-tiny"],
    "fetch lpips-vgg": ["lpips-vgg16-trunk", "lpips-vgg"],
    "fetch lpips-vgg hpsv2.0": ["hpsv2.0"],
    "list me": ["methods"],
    "show geneval-sh": ["geneval-shapes"],
    "show trai": ["train"],
    "new m": ["method"],
    "pretrain ll": ["llamagen-tiny"],
    "figures runs --kind c": ["curves", "classes"],
    "compare a b --metric fd-p": ["fd-pixels"],
    "compare a b --metric hpsv2.1": ["hpsv2.1", "hpsv2.1-truncated"],
    "run --set train.s": ["train.steps=", "train.schedule=", "train.shard="],
    "run --set method.": [],
    f"{VAPI} method.noise_": [
        "method.noise_kernel=",
        "method.noise_kernel=exclusive",
        "method.noise_kernel=inclusive",
    ],
    f"{VAPI} method.fidelity=": ["exact", "official"],
    f"{VAPI} method.fidelity=o": ["official"],
    f"{VAPI} train.recompute=": ["true", "false"],
    f"{VAPI} train.steps=": ["120"],
    f"{VAPI} method.perceptual=lpips": ["lpips-alex", "lpips-vgg"],
    f"{VAPI} method.no_such=": [],
    f"{VAPI} protocol.settings=t1,cfg": ["t1,cfg2"],
    f"{VAPI}=train.schedule=co": ["constant", "cosine"],
    "run --method ar-grpo --set method.rewards=pixel-l1,hps": ["pixel-l1,hpsv2.1"],
    "run --model llamagen-xxl --set data.": KEYS,
    "sample --model llamagen-tiny --set t": [],
    "reference images --set assets.inception-2": ["assets.inception-2015-12-05="],
    "run --method=va": ["vapi"],
}
"""{line: what bash is given for its last word}."""


def under_bash(monkeypatch: pytest.MonkeyPatch, line: str) -> tuple[list[str], str]:
    """Ask as the script for bash does, which splits words at `=`; return the answers, and standard error."""
    words = ["alignbench", *line.replace("=", " = ").split(" ")]
    words = [word for word in words[:-1] if word] + ([words[-1]] if words[-1] or line[-1] == " " else [])
    monkeypatch.setenv("_ALIGNBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    done = alignbench()
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("line", GIVES)
def test_bash(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert under_bash(monkeypatch, line) == (GIVES[line], "")


def test_zsh_and_fish_keep_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"alignbench {VAPI} method.fidelity=o")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for shell in ("zsh", "fish"):
        monkeypatch.setenv("_ALIGNBENCH_COMPLETE", f"complete_{shell}")
        done = alignbench()
        assert "method.fidelity=official" in done.stdout and "exact" not in done.stdout and not done.stderr


def test_plug_ins_are_completed_and_broken_ones_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "vast.toml").write_text("not TOML")
    (tmp_path / "evaluators").mkdir()
    (tmp_path / "evaluators" / "mine.toml").write_text("title = 3")
    assert under_bash(monkeypatch, f"run --plugin {tmp_path} --method va") == (["vapi", "vast"], "")
    monkeypatch.setenv("ALIGNBENCH_PATH", str(tmp_path))
    assert under_bash(monkeypatch, "run --method va") == (["vapi", "vast"], "")
    assert under_bash(monkeypatch, "compare a b --metric fd-dig") == (["fd-digits"], "")
    assert under_bash(monkeypatch, "run --method vast --set train.st") == (
        ["train.steps=", "train.steps=100"],
        "",
    )
    (tmp_path / "methods" / "vapi.toml").write_text("")  # two cards of one name: no command works
    assert under_bash(monkeypatch, "run --method va") == (["vapi"], "")
    monkeypatch.setenv("ALIGNBENCH_PATH", "/nowhere")
    assert under_bash(monkeypatch, "run --method va") == (["vapi"], "")
    plugin = tmp_path / "mine.py"
    plugin.write_text("raise SystemExit('imported')")
    assert under_bash(monkeypatch, f"run --plugin {plugin} --method va") == (["vapi"], "")


def test_an_answer_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'numpy', 'scipy', 'PIL', 'matplotlib'}\n"
        "atexit.register(lambda: print(*(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from alignbench.__main__ import start\nstart()"
    )
    line = {"COMP_WORDS": f"alignbench {VAPI} method.", "COMP_CWORD": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **line, "_ALIGNBENCH_COMPLETE": "complete_bash"},
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert "method.group_size=" in done.stdout.split() and done.stderr == "\n"


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_a_real_bash(tmp_path: Path) -> None:
    """What stands on the line after TAB, with the script that `--show-completion bash` prints."""
    program = tmp_path / "alignbench"
    program.write_text(f"#!{sys.executable}\nfrom alignbench.__main__ import start\nstart()\n")
    program.chmod(0o755)
    typed = {
        "run --method va": "run --method vapi ",
        "run --method vapi --set method.fide": "run --method vapi --set method.fidelity=",
        "run --set train.recompute=t": "run --set train.recompute=true ",
        "run --method=va": "run --method=vapi ",
    }
    child, terminal = pty.fork()
    if not child:
        os.environ.update(PATH=f"{tmp_path}:{os.environ['PATH']}", PS1="", TERM="dumb", INPUTRC="/dev/null")
        os.execlp("bash", "bash", "--norc", "--noprofile", "-i")
    say(terminal, "stty cols 200; eval \"$(alignbench --show-completion bash)\"; echo rea''dy\n", "ready")
    for line, expected in typed.items():
        assert expected in say(terminal, f"alignbench {line}\t", expected)
        say(terminal, "\x15echo do''ne\n", "done")  # clears the line
    os.close(terminal)
    os.waitpid(child, 0)


def say(terminal: int, text: str, wanted: str) -> str:
    """Type a text; return what appears until what is wanted is there, or for half a minute."""
    os.write(terminal, text.encode())
    seen, end = "", time.monotonic() + 30
    while wanted not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace").replace("\a", "")
    return seen
