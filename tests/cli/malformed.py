"""Malformed input: what is given, and what the sentence that refuses it must name."""

from __future__ import annotations

import json
import re
import types
import typing
from typing import Any, Literal, NamedTuple

from rlax_llm.cli.main import COMMANDS
from rlax_llm.cli.values import is_list_of_texts
from rlax_llm.commands.settings import keys


class Row(NamedTuple):
    """One input.

    Attributes:
        words: of the command line.
        named: what the last line must hold: a flag or a setting, a file, a line of it.
    """

    words: tuple[str, ...]
    named: str


# The flags and keys of every setting, by its type.

_WRONG: dict[Any, tuple[str, ...]] = {
    int: ("x", "", "1.5", "1e400", "nan", "inf", "-1", "0x10", "1:30", "99999999999999999999", "1e-5", "--"),
    float: ("x", "", "nan", "inf", "-inf", "1e400", "1e39", "1,5", "true"),
    bool: ("maybe", "2", ""),
    str: ("", " ", "a\0b"),
    tuple: ("x", "1.5", "-1", "1e400", "8,8"),
    list: ("", " ", "a\0b"),
}
_WRONG_IN_FILES: dict[Any, tuple[str, ...]] = {
    int: ("x", "1.5", ".nan", "true", "[1]", "{a: 1}", "2024-01-01", "!!int 5", "-3"),
    float: ("x", ".nan", "1e400", "[0.1]", "yes", "{}"),
    bool: ("maybe", "1", "[true]"),
    str: ("[a]", "{a: b}", "''", "!!python/name:os.system", "!!binary aGk="),
    tuple: ("8", "[8, x]", "[8.5]", "[[8]]", "{8: 8}"),
    list: ("[]", "[[a]]", "{a: b}", "''"),
}
_GOOD = {
    ("max_grad_norm", "inf"),  # no clipping
    ("max_grad_norm", "1e400"),
    ("stop", " "),  # blanks may end a completion
    ("step_separator", " "),  # or a step of one
    ("separator", " "),  # or an answer that is shown
    ("prompt", ""),
    ("prompt", " "),
    ("prompt", "''"),
}


def _options(hint: Any) -> tuple[Any, ...]:
    united = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return tuple(option for option in (typing.get_args(hint) if united else (hint,)) if option is not type(None))


def _kind(hint: Any) -> Any:
    """The type, with ``list`` for several texts."""
    if is_list_of_texts(hint):
        return list
    return typing.get_origin(_options(hint)[0]) or _options(hint)[0]


def _settings(command: str) -> list[tuple[str, Any]]:
    return [(name, key.hint) for name, key in keys(COMMANDS[command].settings).items()]


def words_of(command: str) -> list[str]:
    """The settings of a command that are words without a flag."""
    return [name for name, key in keys(COMMANDS[command].settings).items() if key.field.metadata.get("word")]


def flags_of(command: str) -> list[Row]:
    """Every flag of a command with values that it does not take, with none, and misspelled."""
    rows = []
    for name, hint in _settings(command):
        if name in words_of(command):
            continue
        flag, kind = f"--{name.replace('_', '-')}", _kind(hint)
        values = ("best", "", "0") if kind is Literal else _WRONG[kind]
        rows += [Row((f"{flag}={value}",), name) for value in values if (name, value) not in _GOOD]
        rows.append(Row((f"{flag}x", "1"), f"{flag}x"))
        if kind is not bool and kind is not tuple:
            rows += [Row((flag,), flag), Row((flag, "--seed", "1"), flag)]
    return rows


def keys_of(command: str) -> list[tuple[str, str]]:
    """Every key of a command's file with a value of a wrong type: the file's text, and what is named."""
    rows = []
    for name, hint in _settings(command):
        kind = _kind(hint)
        values = ("best", "true", "[a]") if kind is Literal else _WRONG_IN_FILES[kind]
        if name in ("config", "resume"):
            values = ("a",)
        named = [(f"{name}: {value}\n", name) for value in values if (name, value) not in _GOOD]
        rows += [(text, "line 1" if "!!" in text else name) for text, name in named]
        rows += [(f"{name}x: 1\n", f"{name}x"), (f"{name}: 1\n# and again\n{name}: 1\n", "line 3")]
    return rows


FLAGS = [
    Row(("gpro",), "gpro"),
    Row(("",), "''"),
    Row(("--steps", "3"), "--steps"),
    Row(("GRPO",), "GRPO"),
    Row(("grpo", "sft"), "'sft'"),
    Row(("grpo", "--stps", "3"), "--steps"),
    Row(("grpo", "-s", "3"), "'-s'"),
    Row(("grpo", "--", "--steps"), "'--steps'"),
    Row(("grpo", "--steps=-1"), "steps is -1"),
    Row(("grpo", "--steps", "-1"), "steps is -1"),
    Row(("grpo", "--no-steps"), "--no-steps"),
    Row(("grpo", "--no-remat=1"), "--no-remat"),
    Row(("grpo", "--remat", "true"), "'true'"),
    Row(("grpo", "--dtype", "float16"), "float32, bfloat16"),
    Row(("grpo", "--seed", str(2**32)), "from 0 to 4294967295"),
    Row(("grpo", "--seed", "-1"), "from 0 to 4294967295"),
    Row(("grpo", "--seed", "0.5"), "--seed"),
    Row(("grpo", "--seed", "9" * 5000), "--seed"),
    Row(("grpo", "--temperature", "1e-30"), "temperature"),
    Row(("grpo", "--temperature", "0"), "temperature"),
    Row(("grpo", "--eps", "1e-300"), "eps"),
    Row(("grpo", "--top-p", "0"), "top_p"),
    Row(("grpo", "--group-size", "1"), "group_size"),
    Row(("grpo", "--group-size", "10000000"), "group_size"),
    Row(("grpo", "--batch-size", "8", "--minibatches", "3"), "minibatches"),
    Row(("grpo", "--max-new-tokens", "100000"), "max_new_tokens"),
    Row(("grpo", "--max-prompt-tokens", "1e5"), "max_prompt_tokens"),
    Row(("ppo", "--max-new-tokens", "100000"), "max_new_tokens"),
    Row(("sft", "--max-new-tokens", "100000"), "max_new_tokens"),
    Row(("dpo", "--max-new-tokens", "100000"), "max_new_tokens"),
    Row(("kto", "--max-prompt-tokens", "126"), "max_prompt_tokens"),
    Row(("reward", "--max-prompt-tokens", "126"), "max_prompt_tokens"),
    Row(("sft", "--packed-tokens", "2e9"), "tokens of a row"),
    Row(("generate", "--samples", "1e9", "--temperature", "1", "hi"), "samples"),
    Row(("grpo", "--lora-rank", "1e9"), "lora_rank"),
    Row(("grpo", "--lora-rank", "513"), "lora_rank"),
    Row(("grpo", "--lora-rank", "2", "--lora-targets", ""), "lora_targets"),
    Row(("grpo", "--lora-rank", "2", "--lora-targets", ","), "targets"),
    Row(("grpo", "--lora-rank", "2", "--lora-targets", "q,q"), "targets"),
    Row(("grpo", "--lora-rank", "2", "--lora-targets", "query"), "target 'query'"),
    Row(("grpo", "--lora-alpha", "2"), "lora_alpha"),
    Row(("grpo", "--lora-rank", "2", "--lora-dropout", "0.1"), "lora_dropout is 0.1, and completions are drawn"),
    Row(("sft", "--lora-rank", "2", "--lora-dropout", "1"), "lora_dropout is 1.0, wanted"),
    Row(("sft", "--lora-rank", "2", "--lora-save", "norm"), "names 'norm', which is unknown; did you mean 'norms'?"),
    Row(("sft", "--lora-rank", "2", "--lora-save", "head"), "this model's head is the embedding; name embed"),
    Row(("reward", "--lora-rank", "2", "--lora-save", "head"), "a model of scores has none"),
    Row(("sft", "--lora-rank", "2", "--lora-tokens", "99"), "--lora-tokens is [99], wanted different ids from 0"),
    Row(("sft", "--lora-rank", "2", "--lora-tokens", "3", "--lora-save", "embed"), "leave one out"),
    Row(("grpo", "--recipe", "gropo"), "'gropo'"),
    Row(("grpo", "--recipe", "trl:nothing"), "'trl:nothing'"),
    Row(("grpo", "--recipe", "gspo", "--ceiling", "2"), "ceiling"),
    Row(("grpo", "--recipe", "trpo", "--eps", "0.1"), "eps"),
    Row(("grpo", "--kl-in", "loss"), "kl_in"),
    Row(("grpo", "--integer-answers"), "integer_answers"),
    Row(("ppo", "--discount", "1.5"), "discount"),
    Row(("ppo", "--recipe", "vappo"), "recipe"),
    Row(("ppo", "--recipe", "vapo", "--length-alpha", "0"), "length_alpha"),
    Row(("ppo", "--policy-lambda", "0.9", "--length-alpha", "0.1"), "policy_lambda"),
    Row(("ppo", "--nll-coef", "-1"), "nll_coef"),
    Row(("ppo", "--nll-threshold", "0.5"), "nll_threshold"),
    Row(("ppo", "--value-model", "reward"), "value_model"),
    Row(("online", "--recipe", "online-dppo"), "'online-dppo'"),
    Row(("online", "--group-size", "1"), "group_size"),
    Row(("online", "--rivals", "2"), "rivals"),
    Row(("online", "--recipe", "xpo", "--rivals", "3"), "rivals"),
    Row(("online", "--recipe", "nash-md", "--mixture", "1.5"), "mixture"),
    Row(("online", "--reference-mix", "0.5"), "reference_mix"),
    Row(("grpo", "--reference-every", "2", "--reference-mix", "0"), "reference_mix"),
    Row(("distill",), "there is no teacher"),
    Row(("distill", "--recipe", "gdk", "--teacher", "x"), "'gdk'"),
    Row(("distill", "--recipe", "sdft", "--teacher", "x"), "recipe sdft has no teacher but the student"),
    Row(("distill", "--teacher", "x", "--beta", "1.5"), "beta"),
    Row(("distill", "--teacher", "x", "--teacher-top-k", "-1"), "teacher_top_k"),
    Row(("distill", "--write-teacher", "x.parquet"), "write_teacher is given without a teacher"),
    Row(("distill", "--teacher", "x", "--write-teacher", "x.jsonl"), "write_teacher is 'x.jsonl'"),
    Row(("dpo", "--precompute-reference", "--reference-every", "2"), "precompute_reference"),
    Row(("dpo", "--recipe", "dppo"), "'dppo'"),
    Row(("dpo", "--recipe", "dpo:0.8,bco:inf"), "weight of recipe bco"),
    Row(("dpo", "--recipe", "dpo,dpo"), "recipe dpo"),
    Row(("dpo", "--label-smoothing", "0.5"), "label_smoothing"),
    Row(("generate",), "PROMPT"),
    Row(("generate", "one", "two"), "'two'"),
    Row(("generate", "--samples", "2", "hi"), "samples"),
    Row(("eval", "--data", "rows.jsonl"), "reward"),
    Row(("control", "--env", "Cartpole"), "'Cartpole'"),
    Row(("control", "--env", "os:system"), "'os:system'"),
    Row(("control", "--env", "probe:"), "'probe:'"),
    Row(("control", "--env", "brax:"), "'brax:'"),
    Row(("control", "--env", "CartPole-v1,gravity=x"), "'CartPole-v1,gravity=x'"),
    Row(("control", "--recipe", "trop"), "'trop'"),
    Row(("control", "--weight", "best"), "total_return, return_to_go"),
    Row(("control", "--seeds", "1e9"), "seeds"),
    Row(("control", "--steps", "1e18"), "steps"),
    Row(("control", "--hidden", "1e6", "1e6"), "hidden"),
    Row(("control", "--hidden", "0"), "hidden"),
    Row(("control", "--memory", "8", "--shared", "4"), "memory"),
    Row(("control", "--minibatches", "3"), "minibatches"),
    Row(("control", "--horizon-steps", "2e9", "--steps", "1e12"), "horizon_steps"),
]

FILES: dict[str, tuple[str | bytes, str]] = {
    "empty.yaml": ("", "empty.yaml is empty"),
    "blank.yaml": ("\n  \n", "blank.yaml is empty"),
    "list.yaml": ("- steps\n- 3\n", "list.yaml holds a list"),
    "word.yaml": ("steps", "word.yaml holds a str"),
    "deep.yaml": ("model: " + "[" * 1500 + "]" * 1500, "deep.yaml is nested too deep"),
    "deep_maps.yaml": ("{a: " * 1500 + "1" + "}" * 1500, "deep_maps.yaml is nested too deep"),
    "laughs.yaml": (
        "model: [&a [x, x], &b [*a, *a], &c [*b, *b], &d [*c, *c], &e [*d, *d], &f [*e, *e], [*f, *f]]\n",
        "laughs.yaml: model",
    ),
    "cycle.yaml": ("model: &a [*a]\n", "cycle.yaml"),
    "alias.yaml": ("model: *a\n", "line 1"),
    "open.yaml": ("steps: 3\nmodel: [\n", "line 3"),
    "quote.yaml": ('model: "a\nsteps: 3\n', "quote.yaml"),
    "tab.yaml": ("steps: 3\n\tseed: 1\n", "line 2"),
    "indent.yaml": ("steps: 3\n  seed: 1\n", "line 2"),
    "two.yaml": ("steps: 3\n---\nsteps: 4\n", "line 2"),
    "twice.yaml": ("steps: 3\nseed: 1\nsteps: 4\n", "line 3: 'steps' is given twice, first in line 1"),
    "inner.yaml": ("model: {a: 1, a: 2}\n", "line 1: 'a' is given twice"),
    "flag.yaml": ("--steps: 3\n", "'--steps'"),
    "dashes.yaml": ("learning-rate: 3\n", "did you mean 'learning_rate'"),
    "case.yaml": ("Learning_Rate: 3\n", "did you mean 'learning_rate'"),
    "number.yaml": ("3: 4\n", "'3'"),
    "null.yaml": ("~: 4\n", "'~'"),
    "listed.yaml": ("[steps]: 4\n", "line 1: a key is not text"),
    "merge.yaml": ("<<: {steps: 3}\n", "'<<'"),
    "command.yaml": ("command: sft\n", "command.yaml is of the command 'sft'"),
    "commands.yaml": ("command: [grpo]\n", "commands.yaml is of the command"),
    "call.yaml": ("model: !!python/object/apply:os.system ['true']\n", "line 1: the tag"),
    "own.yaml": ("model: !mine x\n", "line 1: the tag !mine"),
    "date.yaml": ("steps: 2024-01-01\n", "date.yaml: steps"),
    "octal.yaml": ("steps: 0o17\n", "octal.yaml: steps"),
    "sixty.yaml": ("steps: 1:30\n", "sixty.yaml: steps"),
    "norway.yaml": ("recipe: no\n", "'no'"),
    "seed.yaml": ("seed: 1e10\n", "seed is 10000000000"),
    "endless.yaml": ("seed: 1e999999999\n", "endless.yaml: seed"),
    "infinite.yaml": ("learning_rate: .inf\n", "learning_rate is inf"),
    "binary.yaml": (b"\x00\xff\xfe\x80" * 10, "binary.yaml"),
    "nul.yaml": ("model: a\0b\n", "nul.yaml"),
    "latin.yaml": ("model: é\n".encode("latin-1"), "latin.yaml"),
    "wide.yaml": ("steps: 3\n".encode("utf-16"), "wide.yaml"),
    "large.yaml": ("#" * 1_100_000, "large.yaml has more than"),
    "long.yaml": (f"model: [{'x' * 100_000}]\n", "long.yaml: model"),
    "broken.json": ('{"steps": 3,, "seed": 1}', "broken.json"),
}
"""What files of settings hold, and what is named."""

PLACES = [
    Row(("grpo", "--config", "none.yaml"), "none.yaml"),
    Row(("grpo", "--config", "."), ". cannot be read"),
    Row(("grpo", "--config", f"{'x' * 300}.yaml"), "cannot be read"),
    Row(("grpo", "--config", "/dev/zero"), "/dev/zero"),
    Row(("grpo", "--config", "steps.yaml/x"), "steps.yaml/x"),
    Row(("grpo", "--config", "steps.yaml", "--resume", "run"), "--resume"),
    Row(("grpo", "--resume", "none"), "none"),
    Row(("grpo", "--resume", "steps.yaml"), "steps.yaml"),
    Row(("grpo", "--resume", "."), "holds no run"),
]

_REQUIRED = {"distill": ("--teacher", "x"), "report": ("run",)}
_OUT = ("steps.yaml", "steps.yaml/x", "x" * 300)
OUTPUTS = [
    Row((name, *_REQUIRED.get(name, ()), "--out", out), "--out")
    for name, command in COMMANDS.items()
    if "out" in keys(command.settings)
    for out in ((".", "none/page.html", "steps.yaml/x") if name == "report" else _OUT)
]
OUTPUTS += [
    Row(("distill", "--teacher", "x", "--write-teacher", path), "--write-teacher")
    for path in ("folder.parquet", "none/x.parquet", "steps.yaml/x.parquet", f"{'x' * 300}.parquet")
]
"""Places that cannot be written: each is refused before models, data or devices are looked at."""

_GRPO = ("grpo", "--reward", "exact_answer", "--data")
INPUTS = [
    Row((*_GRPO, "row.jsonl"), "--data is row.jsonl, and there is no such file; did you mean 'rows.jsonl'?"),
    Row((*_GRPO, "rows.jsonl", "quite-another.jsonl"), "--data is quite-another.jsonl, and there is no such file."),
    Row((*_GRPO, "sum.jsonl"), "--data is sum.jsonl, and there is no such file."),  # sums.log is no data
    Row((*_GRPO, "rows.jsonl", "--eval-data", "none/x.jsonl"), "--eval-data is none/x.jsonl, and there is no such"),
    Row(("distill", "--teacher", "said.parquet"), "--teacher is said.parquet, and there is no such file"),
    Row(("grpo", "--task", "reasoning-gym:"), "--task is 'reasoning-gym:', which is unknown"),
    Row(("eval", "--task", "arithmetic", "arithmetik"), "--task is 'arithmetik', which is unknown"),
]
"""What cannot be read, as it is not there: refused at once too."""

_ROWS = {"prompt": "1+1=", "completion": "2", "answer": "2"}
DATA: dict[str, tuple[str | bytes, str]] = {
    "empty.jsonl": ("", "empty.jsonl"),
    "one.jsonl": (json.dumps(_ROWS), "one.jsonl"),
    "open.jsonl": ('{"prompt": "1+1="}\n{"prompt": \n', "open.jsonl, line "),
    "list.jsonl": ("[1, 2]\n", "list.jsonl, row 1"),
    "word.jsonl": ('"prompt"\n', "line 1"),
    "column.jsonl": ('{"promt": "1+1=", "answer": 2}\n' * 2, "prompt"),
    "number.jsonl": ('{"prompt": 3, "answer": 2}\n' * 2, "line 1"),
    "null.jsonl": ('{"prompt": null, "answer": 2}\n' * 2, "line 1"),
    "binary.jsonl": (b"\x00\xff\xfe\x80" * 10, "binary.jsonl"),
    "deep.jsonl": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 1"),
    "broken.parquet": ("PAR1 and nothing else", "broken.parquet"),
    "broken.csv": (b"\x00\xff\xfe\x80" * 10, "broken.csv"),
}
"""Tables for ``--data``, and what is named."""

MODULES = {
    "raising.py": "1 / 0\n",
    "leaving.py": "import sys\nsys.exit(0)\n",
    "unreadable.py": "def (:\n",
    "silent.py": "class Silent(Exception):\n    def __str__(self): raise KeyError\nraise Silent\n",
    "loud.py": "raise ValueError('x' * 5000)\n",
    "mine.py": """LIMIT = 3
def score(prompts, completions, **columns): return [0.0] * len(prompts)
def narrow(prompts): return [0.0]
def none(schedule): return None
def fail(schedule): raise KeyError("a")
def leave(schedule): raise SystemExit(0)
""",
}
"""Files of a user's own functions."""

_NO_FUNCTION = ("nowhere:f", "mine:scores", "mine:LIMIT", "mine.py:LIMIT", "minee.py:f", "..:f", ".mine:f", "/etc:f")
_NO_FUNCTION += ("os:system", "builtins:exec", "raising:f", "raising.py:f", "leaving:f", "leaving.py:f", "a b:c")
_NO_FUNCTION += ("unreadable:f", "silent:f", "loud.py:f", ":f", "mine:", "mine", "\0:f", "/dev/null.py:f")
_NO_REWARD = ("exact_answr", "words=x", "words=1e999", "words=0", "format=(", "repetition=-1", "exact_answer=3", "0*")
_NO_REWARD += (
    "*",
    "+",
    "exact_answer + ",
    "nan*exact_answer",
    "inf*exact_answer",
    "mine:narrow",
    "format=a + format=b",
)
_NO_TASK = ("arithmetc", "arithmetic,largest", "arithmetic,largest=x", "arithmetic,largest=-1", "arithmetic,larges=3")
_NO_TASK += ("arithmetic,largest=1e400", "arithmetic,largest=3,largest=4", "arithmetic,operators=%", "arithmetic,")
_NO_TASK += ("arithmetic,largest=99999999999999999999", "arithmetic,most=1", "arithmetic,largest=[1", "arithmetic,=3")
_NO_TASK += ("reasoning-gym:", "reasoning-gym:chain_sums", "reasoning-gym:chain_sum,min=2", "reasoning-gym", ",")
_NO_TASK += ("arithmetic,smallest=9,largest=9", "arithmetic,operators=", "arithmetic,largest=True", "arithmetic:x")

SPECS = [Row(("grpo", "--reward", spec), "reward") for spec in (*_NO_FUNCTION, *_NO_REWARD)]
SPECS += [
    Row(("sft", "--task", "arithmetic,largest=9", "--eval-size", "8", "--optimizer", spec), "optimizer")
    for spec in (*_NO_FUNCTION, "adam", "mine:none", "mine:fail", "mine:leave", "optax:adamm")
]
SPECS += [Row(("grpo", "--task", spec), re.split("[,:]", spec)[0]) for spec in _NO_TASK]
SPECS += [
    Row((command, "--model", model), model)
    for model in ("smollm3", "none/at/all", "none.gguf", "steps.yaml", "nothing")
    for command in ("grpo", "eval")
]
SPECS += [Row(("distill", "--teacher", teacher), teacher) for teacher in ("none/at/all", "none.parquet", "steps.yaml")]
SPECS += [
    Row(("grpo", "--reward-model", "nothing"), "nothing"),
    Row(("ppo", "--reward-model", "nothing"), "nothing"),
    Row(("ppo", "--value-model", "nothing"), "nothing"),
]

_STEPS = "command: grpo\nsteps: 3\n"
RUNS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "config.yaml is empty"),
    "comments": ("# nothing\n", "config.yaml"),
    "command": ("steps: 3\n", "config.yaml"),
    "other": ("command: sft\nsteps: 3\n", "'sft'"),
    "cut": (_STEPS + "hidden: [", "line 3"),
    "tag": (_STEPS + "model: !!python/name:os.system\n", "line 3"),
    "binary": (b"\x00\xff\xfe\x80", "config.yaml"),
    "twice": (_STEPS + "steps: 4\n", "line 3"),
    "key": (_STEPS + "stepz: 4\n", "'stepz'"),
    "type": ("command: grpo\nsteps: many\n", "steps"),
    "range": ("command: grpo\nsteps: 0\n", "steps"),
}
"""What ``config.yaml`` of a directory given to ``--resume`` holds, and what is named."""

_SHAPE: dict[str, Any] = {"model_type": "llama", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 8}
_SHAPE |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}


def _shape(**changed: Any) -> str:
    return json.dumps(_SHAPE | changed)


MODELS: dict[str, tuple[str | bytes, str]] = {
    "m_empty": ("", "config.json"),
    "m_text": ("llama", "config.json"),
    "m_list": ("[]", "config.json"),
    "m_null": ("null", "config.json"),
    "m_cut": ('{"model_type": "llama", ', "config.json"),
    "m_binary": (b"\x00\xff\xfe\x80" * 10, "config.json"),
    "m_deep": ("[" * 200_000, "config.json"),
    "m_nothing": ("{}", "model_type"),
    "m_kind": (_shape(model_type="gpt2"), "gpt2"),
    "m_kinds": (_shape(model_type=["llama"]), "model_type"),
    "m_text_size": (_shape(hidden_size="8"), "hidden_size"),
    "m_no_size": (_shape(hidden_size=None), "hidden_size"),
    "m_negative": (_shape(num_hidden_layers=-1), "num_hidden_layers"),
    "m_layers": (_shape(num_hidden_layers=10**7), "m_layers"),
    "m_heads": (_shape(num_attention_heads=3, num_key_value_heads=2), "m_heads"),
    "m_scaling": (_shape(rope_scaling="linear"), "rope_scaling"),
    "m_scalings": (_shape(rope_scaling=["linear"]), "rope_scaling"),
    "m_factor": (_shape(rope_scaling={"rope_type": "linear", "factor": "x"}), "factor"),
    "m_no_factor": (_shape(rope_scaling={"rope_type": "linear", "factor": 0}), "factor"),
    "m_theta": (_shape(rope_theta=[1]), "rope_theta"),
    "m_theta_text": (_shape(rope_theta="abc"), "rope_theta"),
    "m_eps": (_shape(rms_norm_eps=None), "rms_norm_eps"),
    "m_layer_types": (_shape(layer_types=5), "layer_types"),
    "m_no_files": (_shape(), "m_no_files"),
}
"""What ``config.json`` of a directory given to ``--model`` holds, and what is named."""
