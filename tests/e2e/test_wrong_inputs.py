"""Wrong inputs through the command line: exit status 1 or 2, one line that names the thing, nothing begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.wrong_files import MAKERS, text
from tests.helpers.command import alignbench

SHORT = ["--steps", "1", "--set", "train.images_per_step=8", "--no-eval", "--out", "{}/run"]
RUN = ["run", "--method", "vapi", "--model", "llamagen-tiny", *SHORT]
GRPO = ["run", "--method", "ar-grpo", "--model", "llamagen-tiny", *SHORT]
TEXT = ["run", "--method", "vapi", "--model", "shapes-tiny", *SHORT]
GIVEN = ["evaluate", "--protocol", "digits8", "--set", "protocol.samples=20", "--out", "{}/run", "--samples"]
PROMPTED = ["evaluate", "--protocol", "shapes", "--out", "{}/run", "--samples"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the wrong files."""
    root = tmp_path_factory.mktemp("zoo")
    for name, make in MAKERS.items():
        (root / name).mkdir()
        make(root / name)
    text(root / "file", "a file")
    return root


def under(command: list[str], folder: str, names: str, *more: str) -> list[tuple[list[str], str]]:
    """The command with each of these files at its end; it must be named."""
    return [([*command[:-1], f"{command[-1]}{{}}/{folder}/{name}", *more], name) for name in names.split()]


def settings(command: list[str], *values: str) -> list[tuple[list[str], str]]:
    """The command with each of these assignments; its key is named."""
    return [([*command, "--set", value], value.partition("=")[0] or value) for value in values]


def words(command: list[str], *lines: str) -> list[tuple[list[str], str]]:
    """`arguments | what is said`, as one would type them."""
    pairs = [line.rpartition(" | ") for line in lines]
    return [([*command, *(word.replace("_", " ") for word in left.split())], said) for left, _, said in pairs]


FOLDER = [*RUN, "--data", "folder", "--set"]
CLASSES = [*FOLDER, "data.root={}/data/ten", "--set"]
CASES = [
    *under([*RUN, "--set", "model.policy="], "weights", "lfs.safetensors page.pt empty.safetensors"
           " header.safetensors cut.safetensors numpy.pt scalars.pt list.pt index.json nowhere.pt"),
    *under([*TEXT, "--set", "model.text="], "weights", "words.safetensors"),
    *under([*GIVEN, ""], "samples", "array.npy channels.npz cut.npz empty.npz flipped.npz float.npz gray.npz"
           " none.npz labels-float.npz labels-short.npz objects.npz other.npz text.npz damaged hollow large"
           " transparent words nowhere"),
    *under([*PROMPTED, ""], "geneval", "altered tagged unknown nested surrogate number blank array no-utf8"
           " imageless"),
    ([*PROMPTED, "{}/geneval/doubled"], "metadata.jsonl is not one JSON object with a prompt"),
    *under([*FOLDER, "data.root="], "data", "one-class gappy many nowhere twice.txt"),
    *under([*CLASSES, "data.class_index="], "data", "twice.txt few.txt no-utf8.txt list.json nowhere"),
    *under([*TEXT, "--data", "text-images", "--set", "data.root="], "data", "lines.jsonl no-lines.jsonl"
           " no-tar.tar captionless.tar cut.tar nowhere ten"),
    *under(["evaluate", "--model", "shapes-tiny", "--out", "{}/run", "--set", "assets.shapes-prompts="],
           "prompts", "surrogate.jsonl nested.jsonl nothing.jsonl quote.tsv no-utf8.jsonl nowhere.jsonl"),
    *under([*RUN, "--plugin", ""], "plugins", "raises.py exits.py cancels.py syntax.py null.py no-utf8.py"
           " bare.py card.py kind.py keys.py number.py escapes.py words.txt nowhere.py"),
    *under(["show", "slip", "--plugin", ""], "plugins", "nested twice no-utf8 unknown-key dots"),
    *under(["leaderboard", ""], "records", "cut nested array no-utf8 future lacking typed hollow folder"
           " nowhere", "--out", "{}/board"),
    *under(["compare", "{}/records/whole", ""], "records", "cut nested array no-utf8 future lacking hollow"),
    *under(["evaluate", "--reconstruction", "--run", ""], "records", "cut nested array hollow nowhere"),
    *under(["sweep", ""], "records", "sweep.toml keys.toml nowhere.toml", "--out", "{}/sweep"),
    *under([*RUN[:-1], ""], "", "file file/x"),
    *settings(
        RUN, "train.lr=nan", "train.lr=inf", "train.lr=-1", "train.lr=1e39", "train.lr=fast", "train.lr",
        "=3", "trian.lr=1", "train.steps=1.5", "train.images_per_step=0", "train.failed_rewards=2",
        "train.eps=0", "train.beta1=1", "train.precision=fp8", "train.updates_per_collect=0",
        "train.warmup_steps=-1", "train.", "method.group_size=1", "method.perceptual=../../x",
        "method.perceptual=lpips-vg", "protocol.samples=-5", "protocol.samples=nan", "protocol.seeds=a",
        "protocol.seeds=1,,2", "protocol.seeds=0,0", "protocol.settings=t9", "protocol.name=x",
        "assets.nowhere=x", "data.root=x", "model.policy=", "seed=1", "model=x", "train.lr=1\ud800",
        "method.rewards=pixel-mse@1",
    ),
    *words(
        [*GRPO, "--set"],
        "method.rewards= | no reward is named", "method.rewards=none | named 'none'",
        "method.rewards=@ | rewards",
        "method.rewards=pixel-mse@1 | pixel-mse: compares with real images, ar-grpo has none",
        "method.rewards=digits@nan | digits", "method.rewards=class-logprob-digits@x | 'x'",
        "method.rewards=class-logprob-digits|scale() | scale",
        "method.rewards=class-logprob-digits|wat(1) | 'wat'",
        "method.rewards=class-logprob-digits|clip(2,1) | clip(2, 1)",
        "method.rewards=class-logprob-digits|quantise(0) | quantise(0)",
        "method.rewards=class-logprob-digits(batch=0) | batch",
        "method.rewards=class-logprob-digits( | digits(",
        "method.rewards=class-logprob-digits(placement=moon) | moon",
        "method.rewards=class-logprob-digits(placement=http://127.0.0.1:9) | http://127.0.0.1:9",
        "method.rewards=class-logprob-digits(placement=http://[::1) | http://[::1",
        "method.rewards=class-logprob-digits(timeout=nan) | timeout",
        "method.rewards=class-logprob-digits(retries=-1) | retries",
    ),
    *words(
        RUN,
        "--method vappi | 'vappi'. Did you mean vapi?", "--method ../vapi | '../vapi'",
        "--model /etc/passwd | passwd",
        "--data nope | 'nope'", "--data imagenet | data.root", "--data hub | --set data.path=PATH",
        "--recipe nope | 'nope'", "--recipe ntp-llamagen-tiny | ntp-llamagen-tiny",
        "--protocol ../x | '../x'",
        "--out {}/plugins | is not empty and holds no run", f"--out {'x' * 300} | file name too long",
        "--out a\udcff | the name is not UTF-8 → choose another folder",
    ),
    *words(
        [], "show nope | 'nope'", "list nope | 'nope'", "fetch ../x | '../x'", "sweep nope | 'nope'",
        "doctor --method vappi | 'vappi'. Did you mean vapi?", "new method a_b | 'a b'", "new nope x | nope",
        "verify --golden /nowhere | /nowhere", "bench --protocol nope | 'nope'",
        "compare {}/records/whole:nope {}/records/whole | nope", "sample --model nope | 'nope'",
        "sample --model shapes-tiny -n 1 --prompt \ud800 --out {}/s | half a character",
        "sample --model llamagen-tiny -n 1 --prompt x --out {}/s | draws classes, not texts",
        "sample --model llamagen-tiny --classes 3,10 --out {}/s | classes 0 to 9, not 10",
        "sample --model llamagen-tiny --set protocol.samples=1 | changes nothing here",
        "sample --model llamagen-tiny -n 1 --temperature inf --out {}/s | temperature",
        "sample --model llamagen-tiny -n 1 --cfg 1e38 --out {}/s | not numbers",
        "sample --model llamagen-tiny --run {}/records/whole --out {}/s | records/whole",
    ),
    *words(
        ["evaluate", "--out", "{}/run"], " | nothing given to evaluate → name one of",
        "--model llamagen-tiny --samples x | --model and --samples given",
        "--samples {}/samples/whole.npz | --samples needs --protocol",
        "--samples {}/samples/whole.npz --protocol digits9 | named 'digits9'. Did you mean digits8",
        "--samples {}/samples/whole.npz --protocol digits8 | --set protocol.samples=20",
        "--samples {}/samples/whole.npz --protocol digits8 --set protocol.samples=3 | needs at least 10",
        "--samples {}/samples/whole.npz --protocol digits8 --set train.lr=1 | train.lr changes nothing",
        "--samples {}/samples/whole.npz --protocol digits8 --set protocol.seeds=1 | are given",
        "--samples {}/samples/whole.npz --protocol digits8-reconstruction | need a tokenizer",
        "--samples {}/samples/whole.npz --protocol imagenet256-adm | 8×8",
        "--model llamagen-tiny --name x | --name names images that are given",
        "--model llamagen-tiny --set assets.inception-2015-12-05=x | does not read it",
        "--model llamagen-tiny --protocol geneval | is for text-conditioned models",
        "--model llamagen-tiny --protocol shapes | shapes: is for text-conditioned models",
        "--run /nowhere --reconstruction | --out changes nothing here",
        "--run /nowhere --reconstruction --dry-run | --run takes neither --dry-run nor",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=range(len(CASES)))
def test_one_line_names_what_is_wrong(
    zoo: Path, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    done = alignbench(
        *(word.replace("{}/run", str(here / "run")).replace("{}", str(zoo)) for word in arguments)
    )
    assert done.returncode in (1, 2) and done.stderr.count("alignbench: ") == 1, done.stderr
    assert said.replace("{}", str(zoo)) in done.stderr[done.stderr.index("alignbench: ") :]
    assert "Traceback" not in done.stderr
    assert done.returncode == 1 or list(here.iterdir()) == []  # the mended command may use the folder


def test_a_run_folder_of_another_plan(tmp_path: Path) -> None:
    command = [word.replace("{}", str(tmp_path)) for word in RUN]
    assert alignbench(*command).returncode == 0
    for change, said in ((["--seed", "1"], "seed"), (["--steps", "2"], "train.steps = 1 there, 2 here")):
        done = alignbench(*command, *change)
        assert done.returncode == 2 and "already holds another run" in done.stderr and said in done.stderr
