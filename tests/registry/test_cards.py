"""Every card of the tree: well formed, counted right, and pointing at things that exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from alignbench.config.settings import known_options
from alignbench.registry.lookup import KINDS, Registry
from alignbench.registry.reward_spec import parse_spec, parse_terms
from alignbench.registry.schema import PolicyShape, Scalar, TokenizerShape
from alignbench.registry.tables import PublishedTable
from tests.conftest import ROOT

REGISTRY = Registry([("built-in", ROOT / "registry")])
MODELS = {name: REGISTRY.model(name) for name in REGISTRY.names("models")}
LLAMAGEN = [name for name, card in MODELS.items() if card.family == "llamagen"]
RECIPES = {name: REGISTRY.recipe(name) for name in REGISTRY.names("recipes")}
CLASS_MODELS = {
    f"llamagen-{size}": millions
    for size, millions in {"b": 111, "l": 343, "xl": 775, "xxl": 1411, "3b": 3097}.items()
}
ALIGNED = {f"{name}-cca": name for name in CLASS_MODELS}
"""{model that others aligned: what it was made from}."""
GENEVAL = ["position", "color", "attribute", "counting", "single", "two"]


def for_each(names: Iterable[str]) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """Make one test of a check of many cards; a failure is named with its card."""

    def decorate(check: Callable[[str], None]) -> Callable[[], None]:
        def test() -> None:
            for name in names:
                try:
                    check(name)
                except AssertionError as error:
                    raise AssertionError(f"{name}: {error}") from error

        return test

    return decorate


@for_each(f"{kind}/{name}" for kind in KINDS for name in REGISTRY.names(kind))
def test_cards_are_well_formed(card_name: str) -> None:
    kind, name = card_name.split("/")
    card = REGISTRY.card(kind, name)
    assert card.title and card.summary.endswith(".")
    assert re.fullmatch(r"|arXiv:\d{4}\.\d{5}", card.paper)
    assert re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*", name)


# --- every name resolves --------------------------------------------------------------------------


def references() -> Iterator[tuple[str, str, str | None]]:
    """(card that mentions, kind of the mentioned, name of the mentioned or nothing)."""
    for name, model in MODELS.items():
        yield f"models/{name}", "datasets", model.dataset
        for protocol_name in (model.protocol, model.reconstruction):
            yield f"models/{name}", "protocols", protocol_name
    for name, recipe in RECIPES.items():
        yield f"recipes/{name}", "methods", recipe.method
        for model_name in recipe.models:
            yield f"recipes/{name}", "models", model_name
        reward = str(recipe.values.get("method.perceptual", "none"))
        yield f"recipes/{name}", "rewards", reward.removeprefix("none")
    for name in REGISTRY.names("protocols"):
        protocol = REGISTRY.protocol(name)
        spec = protocol.reference
        yield f"protocols/{name}", "datasets", spec.dataset if spec else None
        for asset in (spec.statistics if spec else None, protocol.prompts):
            yield f"protocols/{name}", "assets", asset
        for evaluator in protocol.evaluators:
            yield f"protocols/{name}", "evaluators", evaluator
    for name in REGISTRY.names("evaluators"):
        for asset in REGISTRY.evaluator(name).assets:
            yield f"evaluators/{name}", "assets", asset
    for name in REGISTRY.names("published"):
        for item in REGISTRY.published(name).tables:
            for row in item.rows:
                yield f"published/{name}", "models", row.model
                yield f"published/{name}", "methods", row.run.removeprefix("base")
                yield f"published/{name}", "recipes", row.recipe
        for reward in {x for names in REGISTRY.published(name).rewards.values() for x in names}:
            yield f"published/{name}", "rewards", reward


def test_mentioned_names_exist() -> None:
    for card, kind, name in references():
        assert not name or name in REGISTRY.names(kind), f"{card} mentions {kind}/{name}"


@for_each(REGISTRY.names("protocols"))
def test_protocol_is_whole(name: str) -> None:
    """It ranks by what it computes; evaluators get what they need, and their defaults cannot drift."""
    protocol = REGISTRY.protocol(name)
    metrics = {metric for item in protocol.evaluators for metric in REGISTRY.evaluator(item).metrics}
    assert protocol.rank_by in metrics
    if protocol.task == "generation":
        assert (protocol.condition == "text") == (protocol.labels == "prompts") == bool(protocol.prompts)
    assert protocol.settings and protocol.seeds and set(protocol.options) <= set(protocol.evaluators)
    for evaluator in protocol.evaluators:
        card = REGISTRY.evaluator(evaluator)
        assert all(map(protocol.gives, card.needs)), evaluator
        options = protocol.options.get(evaluator, {})
        for key, value in options.items():
            assert card.options[key].check(value) == value
        # Protocols older than this field have the defaults they were published with.
        exempt = {"batch"} if evaluator != "distribution-digits" else set(card.options)
        assert set(card.options) - set(options) <= exempt, f"{name} leaves {evaluator}'s options open"


@for_each(REGISTRY.names("evaluators"))
def test_evaluator_card_is_whole(name: str) -> None:
    card = REGISTRY.evaluator(name)
    assert set(card.min_images) <= set(card.options)
    assert bool(card.packages) == bool(card.extra)
    for fact in card.metrics.values():
        assert fact.doc, "what the number is"


@for_each(REGISTRY.names("assets"))
def test_asset_is_pinned_or_says_why_not(name: str) -> None:
    card = REGISTRY.asset(name)
    assert card.licence, "say what is known of the licence, even if that is nothing"
    assert card.sha256 is None or re.fullmatch("[0-9a-f]{64}", card.sha256)
    assert not (card.url and card.repo)
    assert bool(card.files) <= (card.file == ".")


@for_each(MODELS)
def test_model_fits_its_data_and_protocol(name: str) -> None:
    model = MODELS[name]
    assert REGISTRY.dataset(model.dataset).condition == model.condition
    protocol = REGISTRY.protocol(model.protocol)
    assert protocol.condition == model.condition
    assert protocol.resize == "bicubic" or protocol.image_size == model.image_size


# --- recipes --------------------------------------------------------------------------------------


@for_each(RECIPES)
def test_recipe_sets_known_keys_to_allowed_values(name: str) -> None:
    recipe = RECIPES[name]
    for model in recipe.models:
        dataset = recipe.data or MODELS[model].dataset
        known = known_options(REGISTRY, method=recipe.method, model=model, dataset=dataset)
        for key, value in recipe.values.items():
            assert key in known, key
            known[key].check(value)
        assert MODELS[model].condition in REGISTRY.method(recipe.method).conditions


def test_one_default_recipe_at_most_for_each_pair() -> None:
    everything = {(recipe.method, model) for recipe in RECIPES.values() for model in recipe.models}
    pairs = [(card.method, model) for card in RECIPES.values() if card.default for model in card.models]
    assert set(pairs) == everything, "a pair with recipes has one that is used without --recipe"
    assert len(pairs) == len(set(pairs))
    without = {"llamagen-xl-t2i-512", "janus-pro-7b", "janus-tiny", *ALIGNED}
    assert {model for method, model in pairs if method == "vapi"} == set(MODELS) - without


def test_vapi_recipes_hold_the_published_settings() -> None:
    """Numbers printed in the paper or passed by its scripts, written out once more."""
    common: dict[str, Scalar] = {
        "method.group_size": 8,
        "method.prior_weight": 0.1,
        "method.clip_range": 0.2,
        "method.advantage_clip": 5.0,
        "method.temperature": 1.0,
        "train.images_per_step": 128,
        "train.beta1": 0.9,
        "train.beta2": 0.999,
        "train.weight_decay": 1e-4,
        "train.grad_clip": 1.0,
        "train.schedule": "constant",
        "train.warmup_steps": 0,
    }
    own: dict[str, dict[str, Scalar]] = {
        "vapi-llamagen-xxl": {"train.lr": 1e-6, "train.steps": 100, "method.noise": 0.0, "data.limit": 12800},
        "vapi-llamagen-xl": {"train.lr": 1e-6, "train.steps": 100, "method.noise": 0.0, "data.limit": 12800},
        "vapi-llamagen-xl-t2i": {"train.lr": 1e-6, "train.steps": 200, "method.noise": 0.5},
        "vapi-janus-pro-1b": {
            "train.lr": 1e-7, "train.steps": 100, "method.noise": 0.95, "data.limit": 50_000,
            "data.path": "LucasFang/FLUX-Reason-6M", "data.caption_column": "caption_original",
        },
    }  # fmt: skip
    for name, values in own.items():
        assert {key: RECIPES[name].values[key] for key in common | values} == common | values, name
    transferred = RECIPES["vapi-llamagen-transferred"]
    assert transferred.source.startswith("transferred")
    assert transferred.values == RECIPES["vapi-llamagen-xxl"].values


PASSES = {"robustok-llamagen-l-256": 10}


@for_each([name for name in RECIPES if name != "vapi-llamagen-tiny"])
def test_recipe_steps_divide_evenly(name: str) -> None:
    values = RECIPES[name].values
    assert values["train.images_per_step"] % values["train.micro_batch"] == 0  # type: ignore[operator]
    if "data.limit" in values and "data.path" not in values:
        seen = values["train.images_per_step"] * values["train.steps"]  # type: ignore[operator]
        assert values["data.limit"] * PASSES.get(name, 1) == seen, "whole passes over the subset"


# --- shapes ---------------------------------------------------------------------------------------


def policy_parameters(shape: PolicyShape, num_classes: int | None) -> int:
    """Count LlamaGen's GPT: two vocabulary tables, condition embedder, blocks, last norm."""
    dim = shape.dim
    condition = (num_classes + 1) * dim if num_classes else (shape.caption_dim or 0) * dim + dim**2
    block = 4 * dim**2 + 3 * dim * shape.ffn_hidden + 2 * dim
    return 2 * shape.vocab_size * dim + condition + shape.layers * block + dim


def convolution(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + outputs


def residual(inputs: int, outputs: int) -> int:
    """Two norms and convolutions, and a 1×1 convolution where the width changes."""
    skip = convolution(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + convolution(inputs, outputs) + 2 * outputs + convolution(outputs, outputs) + skip


def attention(width: int) -> int:
    return 2 * width + 4 * convolution(width, width, 1)


def stage(inputs: int, outputs: int, blocks: int, *, attends: bool) -> int:
    mixing = blocks * attention(outputs) if attends else 0
    return residual(inputs, outputs) + (blocks - 1) * residual(outputs, outputs) + mixing


def tokenizer_parameters(shape: TokenizerShape) -> int:
    """Count the VQ tokenizer from its description: encoder, decoder, codebook, two 1×1 convolutions."""
    widths = [shape.base_channels * factor for factor in shape.multipliers]
    top, last = widths[-1], len(widths) - 1
    middle = 2 * residual(top, top) + attention(top)
    encoder = convolution(3, shape.base_channels) + middle + 2 * top + convolution(top, shape.z_channels)
    for level, (inputs, outputs) in enumerate(zip([shape.base_channels, *widths], widths, strict=False)):
        encoder += stage(inputs, outputs, shape.res_blocks, attends=level == last)
        encoder += convolution(outputs, outputs) if level < last else 0
    decoder = convolution(shape.z_channels, top) + middle
    down = widths[::-1]
    for level, (inputs, outputs) in enumerate(zip([top, *down], down, strict=False)):
        decoder += stage(inputs, outputs, shape.res_blocks + 1, attends=level == 0)
        decoder += convolution(outputs, outputs) if level < last else 0
    decoder += 2 * down[-1] + convolution(down[-1], 3)
    bridge = convolution(shape.z_channels, shape.code_dim, 1)
    bridge += convolution(shape.code_dim, shape.z_channels, 1)
    return encoder + decoder + shape.codebook_size * shape.code_dim + bridge


@for_each(LLAMAGEN)
def test_policy_parameters_follow_from_the_shape(name: str) -> None:
    model = MODELS[name]
    assert policy_parameters(model.policy, model.num_classes) == model.policy.parameters


@for_each(MODELS)
def test_tokenizer_parameters_follow_from_the_shape(name: str) -> None:
    shape = MODELS[name].tokenizer
    assert tokenizer_parameters(shape) == shape.parameters


@for_each([name for name in LLAMAGEN if not name.endswith("-tiny")])  # of ours there is no release
def test_released_llamagen_geometry_and_file_sizes(name: str) -> None:
    policy = MODELS[name].policy
    assert policy.ffn_hidden == -(-int(2 * 4 * policy.dim / 3) // 256) * 256
    assert policy.dim % policy.heads == 0 and (policy.dim // policy.heads) % 4 == 0
    rates = (policy.norm_eps, policy.rope_base, policy.dropout, policy.condition_dropout)
    assert rates == (1e-5, 1e4, 0.1, 0.1)
    assert policy.condition_tokens == (1 if MODELS[name].condition == "class" else 120)
    counts = {"policy": policy.parameters, "tokenizer": MODELS[name].tokenizer.parameters}
    for file in MODELS[name].files:  # float32
        if file.size is not None:
            assert 4 * counts[file.role] < file.size < 4 * counts[file.role] * 1.003


def test_published_sizes() -> None:
    """Parameter counts as the releases state them, in millions; the same shape at both resolutions."""
    others = {"llamagen-xl-t2i": 778, "llamagen-xl-t2i-512": 778, "janus-pro-1b": 1485, "janus-pro-7b": 6592}
    small = {f"{name}-256": size for name, size in CLASS_MODELS.items()}
    aligned = {name: CLASS_MODELS[base] for name, base in ALIGNED.items()}
    for name, size in (CLASS_MODELS | small | others | aligned).items():
        assert round(MODELS[name].policy.parameters / 1e6) == size
    tiny = {name for name in MODELS if name.endswith("-tiny")}
    assert {*CLASS_MODELS, *small, *others, *aligned, *tiny} == set(MODELS)
    for name in CLASS_MODELS:
        large, less = MODELS[name], MODELS[f"{name}-256"]
        assert (large.image_size, less.image_size) == (384, 256)
        assert large.policy.model_copy(update={"tokens": 256}) == less.policy


# --- files ----------------------------------------------------------------------------------------


@for_each(MODELS)
def test_files_are_pinned_or_say_why_not(name: str) -> None:
    card = MODELS[name]
    assert card.files, "a model has weights"
    for file in card.files:
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert not Path(file.path).is_absolute() and ".." not in Path(file.path).parts
        if not file.repo:
            assert file.shipped or any("bring your own" in note for note in card.notes)
            continue
        assert not file.shipped
        pinned = bool(re.fullmatch("[0-9a-f]{40}", file.revision))
        if not (pinned and file.size and file.sha256):
            assert any("found in no source" in note for note in card.notes)


def test_one_file_is_described_alike_everywhere() -> None:
    described: dict[tuple[str, str], Any] = {}
    for card in MODELS.values():
        for file in card.files:
            if file.repo:
                assert described.setdefault((file.repo, file.path), file) == file
    digests = [file.sha256 for file in described.values() if file.sha256]
    assert len(digests) == len(set(digests)), "two files with one digest"


# --- published numbers ----------------------------------------------------------------------------


def table(name: str, identifier: str) -> PublishedTable:
    return next(item for item in REGISTRY.published(name).tables if item.id == identifier)


def printed(identifier: str, method: str, model: str = "llamagen-xxl") -> dict[str, float]:
    rows = table("va-pi", identifier).rows
    return next(row.values for row in rows if (row.method, row.model) == (method, model))


def test_vapi_card_has_every_table() -> None:
    tables = {item.id: len(item.rows) for item in REGISTRY.published("va-pi").tables}
    sizes = {"T1": 3, "T2.nocfg": 7, "T2.cfg": 8, "T3.llamagen-xl": 3, "T3.janus-pro-1b": 2, "T4": 5, "T5": 5}
    assert tables == {**sizes, "F4": 4, "T7": 4}
    assert len(REGISTRY.published("va-pi").inconsistencies) == 12


@for_each(REGISTRY.names("published"))
def test_published_values_are_in_range(name: str) -> None:
    shares = {"precision", "recall", "clip", "hpsv2", "overall", "noise", "beta", "lr", "imagereward"}
    shares |= {*GENEVAL, *(f"compbench_{x}" for x in ("color", "shape", "texture", "spatial", "numeracy"))}
    above_zero = {"fid", "sfid", "rfid", "pfid", "is", "minutes", "cfg", "resolution", "steps", "images"}
    above_zero |= {"advantage_clip"}
    above_zero |= {f"tiif_{task}" for task in ("basic", "advanced", "designer", "overall")}
    for item in REGISTRY.published(name).tables:
        for row in item.rows:
            assert set(row.values) <= shares | above_zero
            assert all(0 <= value <= 1 for key, value in row.values.items() if key in shares)
            assert all(value > 0 for key, value in row.values.items() if key in above_zero)


@for_each(REGISTRY.names("published"))
def test_published_tables_name_what_measures_them(name: str) -> None:
    """Protocol, settings, metrics, options that exist; the rewards of a row are those of its recipe."""
    card = REGISTRY.published(name)
    for item, how in [(item, item.measured) for item in card.tables if item.measured]:
        assert how is not None
        protocol = REGISTRY.protocol(how.protocol)
        known = {metric for x in protocol.evaluators for metric in REGISTRY.evaluator(x).metrics}
        assert set(how.at.values()) <= set(protocol.settings) and set(how.metrics.values()) <= known
        assert set(how.scale) <= set(how.metrics) <= {key for row in item.rows for key in row.values}
        for row in (row for row in item.rows if row.run not in ("", "base")):
            method = REGISTRY.method(row.run)
            assert {key.removeprefix("method.") for key in row.changed} <= set(method.options)
            recipe = row.recipe or REGISTRY.recipe_for(row.run, row.model)
            assert recipe, row
            values = REGISTRY.recipe(recipe).values
            used = {str(values.get(f"method.{x}", "")) for x in method.reward_options} - {"", "none"}
            names = {parse_spec(spec).name for text in used for spec, _ in parse_terms(text)}
            pixels = (
                {f"pixel-{values.get('method.pixel_loss', 'mse')}"}
                if "pixel_loss" in method.options
                else set()
            )
            assert names | pixels == set(card.rewards[row.run]), row


def test_table_7_is_what_the_recipes_hold() -> None:
    keys = {"steps": "train.steps", "images": "train.images_per_step", "lr": "train.lr"}
    keys |= {
        "noise": "method.noise",
        "beta": "method.prior_weight",
        "advantage_clip": "method.advantage_clip",
    }
    for row in table("va-pi", "T7").rows:
        values = REGISTRY.recipe(f"vapi-{row.model}").values
        assert {key: values[keys[key]] for key in keys} == {key: row.values[key] for key in keys}
        assert REGISTRY.model(row.model).image_size == row.values["resolution"]


def test_claims_say_what_their_printed_numbers_say() -> None:
    """Both numbers stand in the published card, and the better one is better."""
    facts = REGISTRY.metric_facts()
    numbers = {x for t in REGISTRY.published("va-pi").tables for row in t.rows for x in row.values.values()}
    claims = [claim for name in REGISTRY.names("sweeps") for claim in REGISTRY.sweep(name).claims]
    printed = [(claim, re.search(r"([\d.]+) against ([\d.]+)$", claim.printed)) for claim in claims]
    assert len([claim for claim, found in printed if found]) > 60
    for claim, found in printed:
        if found:
            a, b = map(float, found.groups())
            assert {a, b} <= numbers and a != b, claim
            assert (a > b) == (facts[claim.metric].direction == "higher"), claim


@for_each(["T3.llamagen-xl", "T3.janus-pro-1b", "T5"])
def test_geneval_overall_is_the_mean_of_the_six_tasks(identifier: str) -> None:
    for row in table("va-pi", identifier).rows:
        mean = sum(row.values[task] for task in GENEVAL) / 6
        assert abs(mean - row.values["overall"]) < 1e-3, row.method


def test_numbers_printed_twice_agree_except_where_listed() -> None:
    base, aligned = printed("T2.nocfg", "base"), printed("T2.nocfg", "va-pi")
    assert printed("T4", "base") == base
    again = printed("T4", "va-pi")
    assert {key for key in again if again[key] != aligned[key]} == {"precision"}
    assert (aligned["precision"], again["precision"]) == (0.71, 0.68)
    assert printed("F4", "no regularisation")["fid"] == printed("T4", "reward: MSE + L_p")["fid"]
    assert printed("F4", "CE") == {"beta": 0.1, "fid": aligned["fid"], "is": aligned["is"]}
    tuned = printed("T5", "va-pi, noise 0.5", "llamagen-xl-t2i")
    assert tuned == {"noise": 0.5, **printed("T3.llamagen-xl", "va-pi", "llamagen-xl-t2i")}
    for method in ("va-pi", "ste", "posttrain-tokenizer", "posttrain-tokenizer-longer"):
        assert printed("T2.nocfg", method)["minutes"] == printed("T2.cfg", method)["minutes"]


def test_listed_inconsistencies_are_recomputed() -> None:
    listed = {item.what: " ".join(item.values) for item in REGISTRY.published("va-pi").inconsistencies}
    base, aligned = printed("T2.nocfg", "base"), printed("T2.nocfg", "va-pi")
    assert f"= {aligned['is'] - base['is']:.2f}" in listed["XXL IS gain"]
    assert f"{100 * (1 - aligned['fid'] / base['fid']):.1f} %" in listed["FID reduction"]
    assert f"{base['fid']} (abstract" in listed["XXL base FID"]
    assert f"{aligned['precision']} (Table 2)" in listed["precision, XXL VA-π without CFG"]
    janus = printed("T3.janus-pro-1b", "va-pi", "janus-pro-1b")
    mean = sum(janus[task] for task in GENEVAL) / 6
    assert f"{mean:.4f} mean" in listed["Janus overall, VA-π"]
    assert f"{janus['overall']} printed" in listed["Janus overall, VA-π"]
    assert round(mean, 3) != janus["overall"]
    cheapest = min(row.values.get("minutes", 1e9) for row in table("va-pi", "T2.nocfg").rows)
    assert cheapest < aligned["minutes"]
    assert f"{cheapest:g} min" in listed["claim of the lowest training cost"]


def test_llamagen_readme_rows_are_the_released_class_models() -> None:
    rows = table("llamagen", "README.fid").rows
    assert [row.values["fid"] for row in rows] == [5.46, 6.09, 3.80, 3.07, 2.62, 2.34, 2.18]
    released = {
        name
        for name, card in MODELS.items()
        if card.condition == "class" and any(x.repo.endswith("/LlamaGen") for x in card.files[:1])
    }
    assert {row.model for row in rows} == released


def test_aligned_weights_differ_from_their_base_in_one_file() -> None:
    """Same network, so the same keys; same tokenizer; each is published as it is and as a recipe's aim."""
    rows = table("cca", "README").rows
    fids = {row.model: row.values["fid"] for row in rows}
    for name, base in ALIGNED.items():
        own, others = MODELS[name], MODELS[base]
        same = {"policy", "tokenizer", "condition", "image_size", "num_classes", "target", "protocol"}
        assert own.model_dump(include=same) == others.model_dump(include=same)
        assert own.files[1] == others.files[1] and own.files[0].repo == "ChenDRAG/CCA_LlamaGen"
        size = others.files[0].path.split("_")[1]
        assert own.files[0].path == f"CCA_LlamaGen_Guidance_Free/c2i_{size}_384_CCA_0005000.pt"
        assert fids[name] == fids[base] and f"FID {fids[base]:.2f}" in own.notes[0]
        recipe = RECIPES[f"cca-{base}"].values
        note = next(row.note for row in rows if row.model == base)
        assert note == f"β {recipe['method.beta']:g}, λ {recipe['method.negative_weight']:g}"


# --- documentation --------------------------------------------------------------------------------


DOCUMENTED = {
    cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]]
    for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    if len(cells := line.split("|")[1:-1]) == 7 and cells[0].startswith(" `")
}


@for_each(MODELS)
def test_docs_list_every_model(name: str) -> None:
    card, cells = MODELS[name], DOCUMENTED[name]
    shown = [f"{card.policy.parameters:,}", f"{card.image_size} px", f"{card.policy.tokens}"]
    assert cells[:3] == shown
    policy = next(file for file in card.files if file.role == "policy")
    assert ("shipped" if policy.shipped else f"`{policy.path}`") in cells[3]
    assert policy.shipped or policy.size is None or cells[4] == f"{policy.size:,}"
    assert card.licence.split(";")[0] in cells[5]
