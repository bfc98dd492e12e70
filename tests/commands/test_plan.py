"""``plan``: what is read from compiled programs, what is counted from shapes, and what is said."""

import dataclasses
import importlib.util
import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from rlax_llm.cli.main import main
from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.plan import machines
from rlax_llm.commands.plan.collectives import Sent, collectives
from rlax_llm.commands.plan.groups import group_programs, over_turns
from rlax_llm.commands.plan.machines import compiling_for, machine_of
from rlax_llm.commands.plan.models import SHAPES, shape_of
from rlax_llm.commands.plan.report import written
from rlax_llm.commands.plan.run import BUILD, make_plan
from rlax_llm.commands.plan.search import largest_that_fits
from rlax_llm.commands.plan.settings import (
    PlannedDistill,
    PlannedDpo,
    PlannedGrpo,
    PlannedKto,
    PlannedOnline,
    PlannedPpo,
    PlannedReward,
    PlannedSft,
)
from rlax_llm.commands.plan.work import Grid, Rows, Work, bytes_of, decoding, forward, grouped, learning, reads
from rlax_llm.commands.rollout_metrics import Tally
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import whole, windowed
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import greedy
from rlax_llm.models.adapter_files import write_adapter
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.lora import init_adapter, saved_parts, under_adapter
from rlax_llm.models.scalar import init_scalar, token_values
from rlax_llm.models.scoring import group_log_probs

CONFIG = DecoderConfig(
    vocab_size=40, hidden_size=12, intermediate_size=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4
)
WIDTH, LENGTH, GROUP, ROWS = 5, 6, 2, 8


def dots(jaxpr, times=1):
    """Products and sums of all matrix products of a program, those of a scanned body once for each turn."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        assert equation.primitive.name != "while"
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns"):
                    total += turns * dots(inner)
                elif hasattr(inner, "jaxpr"):
                    total += turns * dots(inner.jaxpr)
    return total * times


def completions():
    ones = jnp.ones((ROWS, WIDTH + LENGTH), bool)
    zeros = jnp.zeros(ones.shape)
    return Completions(zeros.astype(int), ones, ones.at[:, :WIDTH].set(False), zeros, ones[:, 0])


def whole_rows(scored):
    """All pairs, as short attention computes them: what is masked too."""
    prompts = ROWS // GROUP
    pairs = prompts * WIDTH**2 + ROWS * LENGTH * (WIDTH + LENGTH)
    return Rows(prompts * WIDTH + ROWS * LENGTH, pairs, ROWS * LENGTH if scored else 0)


@pytest.mark.parametrize("remat", [False, True])
def test_flops_of_learning_are_those_of_the_traced_products(remat):
    params = init_decoder(CONFIG, jax.random.key(0))
    log_probs = group_log_probs(CONFIG, (GROUP, WIDTH), remat=remat)
    rows = whole_rows(scored=True)
    traced = jax.make_jaxpr(lambda params: log_probs(params, completions())[0])(params)
    assert dots(traced.jaxpr) == forward(CONFIG, rows, Grid()).flops
    traced = jax.make_jaxpr(jax.grad(lambda params: log_probs(params, completions())[0].sum()))(params)
    assert dots(traced.jaxpr) == learning(CONFIG, params, rows, Grid(), remat=remat).flops


def test_a_head_that_is_trained_beside_adapters_has_a_slope_and_some_of_its_rows_have_not():
    config = replace(CONFIG, lora=Lora(2, 4.0))
    base = init_decoder(CONFIG, jax.random.key(0))
    adapter = init_adapter(config, jax.random.key(1))
    log_probs, rows = group_log_probs(config, (GROUP, WIDTH), remat=True), whole_rows(scored=True)
    whole = join_trees(adapter, saved_parts(config, base, ["embed"]))

    def loss(params):
        return log_probs(join_trees(params, under_adapter(config, base, whole)), completions())[0].sum()

    traced = jax.make_jaxpr(jax.grad(loss))(whole)
    found = learning(config, whole, rows, Grid())
    assert dots(traced.jaxpr) == found.flops
    slope = 2 * rows.scored * CONFIG.vocab_size * CONFIG.hidden_size
    for trained in (adapter, adapter | {"embed_rows": 0}):
        assert found.flops - learning(config, trained, rows, Grid()).flops == slope


@pytest.mark.parametrize("lora", [None, Lora(2, 4.0)])
def test_flops_of_a_value_model_are_those_of_the_traced_products(lora):
    config = CONFIG if lora is None else DecoderConfig(**(vars(CONFIG) | {"lora": lora}))
    base = init_scalar(init_decoder(CONFIG, jax.random.key(0)), jax.random.key(1))
    frozen = base if lora else None
    params = init_adapter(config, jax.random.key(2)) if lora else base
    values = token_values(config, (GROUP, WIDTH), True)

    def loss(params):
        return values(join_trees(params, frozen), completions()).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(params)
    assert dots(traced.jaxpr) == learning(config, params, whole_rows(scored=False), Grid()).flops


def test_flops_of_a_token_by_hand():
    # 2 per weight of the layers (q 12·16, k and v 12·8, o 16·12, three of 12·20) and of the head, once forward.
    layers = 2 * 12 * 16 + 2 * 12 * 8 + 3 * 12 * 20
    work = forward(CONFIG, Rows(7, 0, 5), Grid())
    assert work.flops == 2 * 7 * 3 * layers + 2 * 5 * 40 * 12
    # Two products of scores and mixtures with 4 heads of 4.
    assert forward(CONFIG, Rows(0, 11, 0), Grid()).flops == 3 * 2 * 2 * 11 * 16
    assert forward(CONFIG, Rows(8, 0, 8), Grid(4, 2)).flops == forward(CONFIG, Rows(8, 0, 8), Grid()).flops / 8


def test_a_long_completion_reads_half_of_the_square():
    rows = grouped(1, 1, 0, 1000)
    assert rows.pairs == pytest.approx(1000**2 / 2, rel=2e-3)


def test_decoding_reads_weights_and_caches_at_every_token():
    layers = 3 * (2 * 12 * 16 + 2 * 12 * 8 + 3 * 12 * 20)
    prompts, group, width, length = 2, 3, 5, 9
    steps = length - 1
    assert reads(length) == [(9, 8)]
    work = decoding(CONFIG, prompts, group, width, length, Grid())
    rows = prompts * group
    products = 2 * rows * steps * (layers + 40 * 12)
    scores = 2 * 2 * rows * steps * (width + 9) * 16 * 3
    assert work.flops == products + scores
    keys = 2 * 2 * 4 * 3 * 4  # keys and values of 2 heads of 4 in 3 layers, float32
    least = steps * (4 * (layers + 40 * 12) + keys * (prompts * width + rows * 9))
    assert least < work.bytes < 2 * least
    slides = replace(CONFIG, window=3, sliding=(True, False, True))  # two layers keep 8 of the 9 columns
    less = decoding(slides, prompts, group, width, length, Grid())
    assert work.flops - less.flops == 2 * 2 * rows * steps * 16 * 2
    assert work.bytes - less.bytes == steps * keys * rows * 2 / 3
    assert decoding(slides, prompts, group, width, length, Grid(), whole) == work


@pytest.mark.parametrize(
    ("given", "keeps"),
    [
        ({}, windowed),
        ({"tool": "calculator"}, whole),
        ({"tool": "calculator", "slots": 8}, windowed),
        ({"tool": "calculator", "speculate": "3"}, windowed),
    ],
)
def test_with_a_tool_all_keys_are_planned_for_where_they_are_held(given, keeps):
    settings = GrpoSettings.of(**given)
    request = Request(greedy, (0,), 8, 2, speculation=settings.sampling.speculation)
    drawing = Drawing(None, None, request, request, None, Tally())
    found = over_turns(settings, machine_of("here", None, [8]), drawing)
    assert found.request == request._replace(keeps=keeps)


def test_work_adds_up():
    assert Work(1, 2) + Work(3, 4).times(2) == Work(7, 10)
    assert Sent(1, 2.0) + Sent(3, 4.0).times(2) == Sent(7, 10.0)


# Texts of compiled programs.

LOOP = """
%condition (state: (s32[], f32[4])) -> pred[] {
  %bound = s32[] constant(5)
  %state = (s32[], f32[4]) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%at, %bound), direction=LT
}

%until_data (state: (s32[], f32[4])) -> pred[] {
  %bound = s32[] constant(5)
  %state = (s32[], f32[4]) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  %less = pred[] compare(%at, %bound), direction=LT
  %alive = pred[] fusion(%state), kind=kLoop, calls=%other
  ROOT %both = pred[] and(%less, %alive)
}

%start (own: f32[2,4]) -> f32[8,4] {
  %first = f32[8,4]{1,0} all-gather(%own), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%follow (own: f32[2,4]) -> f32[8,4] {
  %again = f32[8,4]{1,0} all-gather(%own), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = f32[8,4] fusion(%x), kind=kCustom, calls=%start
  %b = f32[8,4] fusion(%x), kind=kCustom, calls=%follow
  %c = bf16[16]{0} all-reduce(%y), channel_id=8, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum
}

%all-reduce-scatter.1 (own: f32[16]) -> f32[4] {
  %whole = f32[16]{0} all-reduce(%own), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %part = f32[4]{0} dynamic-slice(%whole, %at), dynamic_slice_sizes={4}
}

%left (x: f32[4]) -> f32[4] {
  ROOT %moved = f32[4]{0} collective-permute(%x), channel_id=10, source_target_pairs={{0,1}}
}

%right (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4] parameter(0)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %turned = (s32[], f32[4]) while(%state), condition=%CONDITION, body=%body
  %scattered = f32[4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %chosen = f32[4] conditional(%p, %x, %x), branch_computations={%left, %right}
}
"""


@pytest.mark.parametrize(("condition", "turns"), [("condition", 5), ("until_data", 3)])
def test_a_loops_collectives_count_once_for_each_turn(condition, turns):
    sends = collectives(LOOP.replace("CONDITION", condition), devices=8, turns=3)
    assert sends == {
        "all-gather": Sent(turns, turns * 8 * 4 * 4 * 3 / 4),  # the steps of one channel are one
        "all-reduce": Sent(turns, turns * 2 * 16 * 2 * 3 / 4),
        "reduce-scatter": Sent(1, 16 * 4 * 3 / 4),
        "collective-permute": Sent(1, 16.0),
    }


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("%x = (f32[2]{0}, f32[8]{0}) all-gather-start(%y), replica_groups={{0,1,2,3}}, dimensions={0}", 8 * 4 * 3 / 4),
        ("%x = f32[2]{0} reduce-scatter(%y), replica_groups={{0,1,2,3}}, dimensions={0}", 2 * 4 * 3),
        ("%x = (s8[4]{0}, s8[4]{0}) all-to-all(%y, %z), replica_groups={{0,1}}", 8 / 2),
        ("%x = f32[8]{0} all-reduce(%y), replica_groups={}, to_apply=%sum", 2 * 32 * 7 / 8),
    ],
)
def test_what_a_device_sends_around_a_ring(line, size):
    (sent,) = collectives("ENTRY %main (y: f32[2]) -> f32[2] {\n  " + line + "\n}", devices=8).values()
    assert sent == Sent(1, size)


@pytest.mark.parametrize("largest", [0, 8, 16, 24, 64])
def test_the_search_asks_for_few_sizes(largest):
    asked = []
    sizes = [8, 16, 24, 32, 48, 64]
    found = largest_that_fits(sizes, lambda size: asked.append(size) or size <= largest)
    assert found == (largest or None)
    assert len(asked) <= 3


# Plans of small models on this machine.


@pytest.fixture(scope="module")
def shape_only(tmp_path_factory):
    """A directory that holds a config.json alone."""
    directory = tmp_path_factory.mktemp("shape")
    fields = {"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16}
    fields |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    (directory / "config.json").write_text(json.dumps(fields))
    return str(directory)


SMALL = {"max_prompt_tokens": 4, "max_new_tokens": 4, "batch_size": 2, "remat": False}


@pytest.mark.parametrize(
    ("kind", "given", "names"),
    [
        (PlannedGrpo, {"group_size": 2, "kl_coef": 0.1, "top_k": 3}, ["prefill", "decode", "update"]),
        (PlannedGrpo, {"group_size": 2, "recipe": "otb"}, ["prefill", "decode", "update"]),
        (
            PlannedGrpo,
            {"group_size": 2, "sampler_dtype": "int8", "cache_dtype": "int8"},
            ["sampler's copy", "prefill", "decode", "update"],
        ),
        (
            PlannedPpo,
            {"lora_rank": 2, "reward_model": ""},
            ["sampler's copy", "prefill", "decode", "reward model", "update"],
        ),
        (
            PlannedOnline,
            {"recipe": "xpo", "reward_model": ""},
            [
                "prefill",
                "decode",
                "rivals' prefill",
                "rivals' decode",
                "reward model",
                "rivals' reward model",
                "update",
            ],
        ),
        (
            PlannedOnline,
            {"recipe": "nash_md", "lora_rank": 2},
            ["sampler's copy", "prefill", "decode", "rivals' mixture", "update"],
        ),
        (
            PlannedDistill,
            {"recipe": "gkd", "teacher": ""},
            ["prefill", "decode", "update", "update of given rows"],
        ),
        (PlannedDistill, {"recipe": "sdft"}, ["prefill", "decode", "update"]),
        (PlannedSft, {"packed_tokens": 16}, ["update"]),
        (PlannedReward, {}, ["update"]),
        (PlannedDpo, {"precompute_reference": True}, ["update"]),
        (PlannedKto, {}, ["update"]),
    ],
)
def test_the_programs_of_a_command_compile_from_its_shape_alone(shape_only, kind, given, names):
    given = {name: shape_only if value == "" else value for name, value in given.items()}
    plan = make_plan(kind.of(model=shape_only, **SMALL, **given))
    assert [program.name for program in plan.programs] == names
    assert plan.fits
    assert all(program.work.flops >= 0 and program.total > 0 for program in plan.programs)
    assert plan.seconds is None  # a CPU's rates are not known
    assert "fits" in written(plan)


def programs_of(kind, **given):
    """Programs by name, of which none is compiled."""
    settings = kind.of(**SMALL | given)
    machine = machine_of("here", None, settings.rows_together())
    return {program.name: program for program in BUILD[settings.command](settings, machine)}


def test_online_groups_without_rivals_take_what_those_of_grpo_do(shape_only):
    """The best of a group, by supervised steps, against leave-one-out by the score function: the same passes."""
    given = {"model": shape_only, "group_size": 4}
    online, grpo = programs_of(PlannedOnline, recipe="raft", **given), programs_of(PlannedGrpo, recipe="gpg", **given)
    assert list(online) == list(grpo) == ["prefill", "decode", "update"]
    for name, program in online.items():
        assert program.work == grpo[name].work
        assert {part: bytes_of(tree) for part, tree in program.parts.items()} == {
            part: bytes_of(tree) for part, tree in grpo[name].parts.items()
        }


def test_a_teacher_is_planned_as_it_is_held(shape_only, tmp_path):
    """A model in the dtype that is computed in, adapters once over the student's base, a file not at all."""
    given = {"model": shape_only, "lora_rank": 2, "lora_targets": "q,v"}
    shape = dataclasses.replace(shape_of(shape_only), lora=Lora(3, 4.0))
    adapter = init_adapter(shape, jax.random.key(0))
    write_adapter(tmp_path / "over", shape, adapter, shape_only)
    numbers = sum(map(math.prod, jax.tree.leaves(shape.parameter_shapes, is_leaf=lambda x: isinstance(x, tuple))))

    def taught(**more):
        programs = programs_of(PlannedDistill, **given | more)
        held = {name: bytes_of(tree) for name, tree in programs["update"].parts.items()}
        assert all(
            bytes_of(one.beside.get("teacher", one.parts.get("teacher"))) == held["teacher"]
            for one in programs.values()
        )
        return held, programs["update"].work

    whole, work = taught(teacher=shape_only)
    assert whole["teacher"] == 4 * numbers == whole["base"]
    assert taught(teacher=shape_only, dtype="bfloat16")[0]["teacher"] == 2 * numbers
    over, _ = taught(teacher=str(tmp_path / "over"))
    assert over["teacher"] == bytes_of(adapter) < whole["teacher"] and over["base"] == whole["base"]
    itself, _ = taught(recipe="sdft")
    assert itself["teacher"] == itself["parameters"]
    stored, alone = taught(teacher="said.parquet", recipe="forward_kl")
    assert stored["teacher"] == 0 and alone.flops < work.flops
    with pytest.raises(ValueError, match="write_teacher trains nothing, and a plan is of a training step"):
        PlannedDistill.of(teacher="some", write_teacher="said.parquet")


PARTS = ("caches", "sampler's layers")


def test_narrow_weights_and_keys_are_planned_as_what_they_hold(shape_only):
    given = {"model": shape_only, "group_size": 2} | SMALL | {"max_new_tokens": 60}
    plain, narrow = (
        {program.name: program for program in make_plan(PlannedGrpo.of(**given, **formats)).programs}
        for formats in ({}, {"sampler_dtype": "int8", "cache_dtype": "int8"})
    )
    share = {name: size / plain["decode"].held[name] for name, size in narrow["decode"].held.items() if name in PARTS}
    assert share["caches"] == (4 + 4) / (4 * 4)  # of a key's four numbers a byte each, and a scale of four
    assert 0.25 < share["sampler's layers"] < 0.6
    assert narrow["decode"].work.bytes < plain["decode"].work.bytes


def test_experts_in_blocks_are_planned_as_what_they_hold(tmp_path):
    fields = {"model_type": "mixtral", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 64}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 32}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 64}))
    given = SMALL | {"model": str(tmp_path), "lora_rank": 2, "lora_targets": "q,v", "lora_dropout": 0.1}
    wide, small = (make_plan(PlannedSft.of(base_dtype=name, **given)).programs[-1] for name in ("float32", "nf4"))
    experts = 3 * 32 * 64 * 64
    saved = wide.held["base"] - small.held["base"]
    assert saved == pytest.approx(experts * (32 - 4.127) / 8, rel=0.06)
    assert small.total < 0.3 * wide.total


def test_the_cache_is_wider_while_tokens_are_guessed(shape_only):
    """Beside the one before lies one of four rows with columns for the guesses too, of a key and a value of four."""

    def beside(**given):
        settings = PlannedGrpo.of(model=shape_only, group_size=2, **SMALL, **given)
        return next(x for x in group_programs(settings, machine_of("here", None, [8])) if x.name == "decode").least

    assert beside(speculate="off") == beside() == 0
    assert beside(speculate="3") == 4 * (4 + 3) * 2 * 4 * 4


def test_what_does_not_fit_is_told_with_the_largest_micro_batch_that_does(shape_only, monkeypatch):
    settings = PlannedSft.of(model=shape_only, **SMALL | {"batch_size": 16, "max_new_tokens": 16})
    whole = make_plan(settings)
    half = make_plan(settings.changed(micro_batch_size=8))
    between = (whole.programs[-1].total + half.programs[-1].total) / 2
    assert half.programs[-1].total < between
    monkeypatch.setattr("rlax_llm.commands.plan.machines._memory_here", lambda devices: between)
    plan = make_plan(settings)
    assert not plan.fits
    assert any("--micro-batch-size 8 fits, and no larger one." in line for line in plan.advice)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("plan grop", "did you mean 'grpo'"),
        ("plan control", "there are grpo, sft, reward, dpo, kto, online, distill, ppo"),
        ("plan grpo --onn v5e:2x4", "grpo has no flag --onn; did you mean --on?"),
        ("plan grpo --on v5x:2x4", "chip 'v5x' is unknown; did you mean 'v5p'?"),
        ("plan grpo --on h100:2x2", "h100 has no compiler that works without one"),
        ("plan grpo --on v5e", "wanted CHIP:TOPOLOGY"),
        ("plan grpo --on v5e:32x2", "a slice of v5e is at most 16x16"),
        ("plan sft --model qwen3-9b", "model 'qwen3-9b' is unknown; did you mean 'qwen3-8b'?"),
        ("plan sft --mesh fsdp=3", "fsdp 3 is 3 devices, and there are 1"),
        ("plan sft --model qwen3-8b --max-new-tokens 50000", "beyond the 40960 positions"),
    ],
)
def test_a_wrong_plan_is_told_in_a_sentence(capsys, words, told):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu, is not installed; run `pip install 'rlax-llm\[plan\]'`"):
        machine_of("v5e:2x4", None, (8,))


def test_a_part_of_a_slice_is_refused(monkeypatch):
    monkeypatch.setattr(machines, "_slice", lambda on: jax.devices() * 4)
    with pytest.raises(ValueError, match="plan: the 4 devices of v5e:2x2 do not divide the 6 and 8 rows"):
        machine_of("v5e:2x2", None, (6, 8, 6))


def test_what_is_compiled_for_a_chip_that_is_not_here_is_not_kept_on_disk(tmp_path):
    given = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: jax.config.values[name] for name in given}
    for name, value in given.items():
        jax.config.update(name, value)
    try:
        with compiling_for("v5e:2x2"):
            jax.jit(lambda x: x + 1.25)(jnp.ones(3))
        assert not list(tmp_path.iterdir())
        with compiling_for("here"):
            jax.jit(lambda x: x + 2.25)(jnp.ones(3))
        assert list(tmp_path.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


def test_the_usage_lists_what_can_be_planned(capsys):
    assert main(["plan"]) == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in ("grpo",))
    assert main([]) == 0
    assert "plan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3-0.6b", 0.596), ("qwen3-1.7b", 1.72), ("qwen3-8b", 8.19), ("llama-3-70b", 70.55)]
)
def test_published_shapes_have_their_parameters(name, billions):
    shapes = SHAPES[name].parameter_shapes
    leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
    assert sum(map(math.prod, leaves)) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_the_smollm2_shape_is_that_of_its_file():
    from rlax_llm.models.loading import load_model

    model = load_model("smollm2")
    assert model.config == SHAPES["smollm2"]
    assert model.params["embed"].shape == (49_152, 576)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra plan")
def test_a_slice_of_tpus_is_planned_for_without_one(shape_only):
    settings = PlannedSft.of(model=shape_only, **SMALL | {"batch_size": 4}, on="v5e:2x2", mesh="fsdp=2")
    with pytest.raises(ValueError, match="fsdp 2 is 2 devices, and there are 4"):
        make_plan(settings)
    plan = make_plan(settings.changed(mesh="fsdp=2,tensor=1,data=2"))
    assert plan.fits
    assert plan.machine.chip.name == "v5e"
    assert plan.programs[0].sends["all-gather"].bytes > 0
    assert plan.seconds > 0
    with pytest.raises(ValueError, match="make no mesh"):
        make_plan(settings.changed(on="v4:2x2x1", mesh="fsdp=4,tensor=2"))
