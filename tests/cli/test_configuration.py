"""The command line: what wins over what, and what is said when something is wrong."""

import subprocess
import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import pytest
import yaml

from rlax_llm.cli import compilation_cache
from rlax_llm.cli.configuration import parse, read_yaml
from rlax_llm.cli.flags import read_flags
from rlax_llm.cli.main import COMMANDS, main
from rlax_llm.commands.chat.settings import ChatSettings
from rlax_llm.commands.control.settings import ControlSettings
from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.fields import Part, option, word
from rlax_llm.commands.generate.settings import GenerateSettings
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.places import whole_paths
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.settings import Settings, as_dict, keys, resolve
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.host.run_directory import RunDirectory


@pytest.fixture
def settings_file(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def _parse(kind, *words):
    return parse(kind, words, "")


def test_without_flags_the_defaults_hold():
    for kind, words in ((GrpoSettings, ()), (SftSettings, ()), (EvalSettings, ()), (GenerateSettings, ("hi",))):
        assert _parse(kind, *words) == kind.of(**dict(zip(("prompt",), words, strict=False)))


def test_flags_win_over_the_file_and_the_file_over_defaults(settings_file):
    path = settings_file(
        "command: grpo\nlearning_rate: 1e-5\nsteps: 7\nseed: 3\nremat: true\nkl_coef: 1\nrecipe: dapo\n"
    )
    config = _parse(GrpoSettings, "--config", path, "--steps", "9")
    want = GrpoSettings.of(learning_rate=1e-5, steps=9, seed=3, remat=True, kl_coef=1.0, recipe="dapo", config=path)
    assert config == want
    assert isinstance(config.objective.kl_coef, float)
    assert _parse(GrpoSettings, f"--config={path}", "--no-remat").model.remat is False


def test_a_saved_config_gives_the_same_run(settings_file):
    config = GrpoSettings.of(temperature=0.7, out="runs/a", data="d.jsonl", reward="m:f", max_grad_norm=float("inf"))
    path = settings_file(yaml.safe_dump(as_dict(config)))
    assert _parse(GrpoSettings, "--config", path) == config.changed(out=None, config=path)


def test_a_prompt_may_be_in_the_file(settings_file):
    assert _parse(GenerateSettings, "--config", settings_file("prompt: hello")).prompt.prompt == "hello"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte: 1", r"mine.yaml: grpo has no setting 'learning_rte'; did you mean 'learning_rate'\?"),
        ("learning-rate: 1", r"did you mean 'learning_rate'\?"),
        ("zzz: 1", "has no setting 'zzz'; rlax-llm grpo --help lists them"),
        ("resume: runs/a", "has no setting 'resume'"),
        ("steps: many", r"mine.yaml: steps is 'many', wanted a whole number\."),
        ("steps: 1.5", "steps is '1.5', wanted a whole number"),
        ("seed: true", "seed is 'true', wanted a whole number"),
        ("temperature: hot", "temperature is 'hot', wanted a number"),
        ("remat: 1", "remat is '1', wanted true or false"),
        ("model: [a]", r"model is \['a'\], wanted text"),
        ("seed: null", "seed is None, wanted a whole number"),
        ("kl_in: both", "kl_in is 'both', wanted one of loss, reward"),
        ("command: sft", "is of the command 'sft', not 'grpo'"),
        ("- a", "holds a list, wanted lines of 'setting: value'"),
        ("a: [", "mine.yaml is not YAML: .*line 1"),
        ("steps: 0", "grpo: steps is 0, wanted at least 1"),
    ],
)
def test_mistakes_in_a_file_are_named(settings_file, text, message):
    with pytest.raises(ValueError, match=message):
        _parse(GrpoSettings, "--config", settings_file(text))


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"there is no file none\.yaml"):
        _parse(SftSettings, "--config", "none.yaml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrpoSettings.of(temperature=0.0), "temperature is 0.0, wanted a number greater than 0"),
        (lambda: GrpoSettings.of(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: GrpoSettings.of(top_p=1.5), "top_p is 1.5"),
        (lambda: GrpoSettings.of(min_p=-0.1), "min_p is -0.1, wanted a number from 0 to 1"),
        (lambda: EvalSettings.of(min_p=1.5), "min_p is 1.5, wanted a number from 0 to 1"),
        (lambda: GenerateSettings.of(prompt="hi", min_new_tokens=-1), "min_new_tokens is -1, wanted at least 0"),
        (
            lambda: GenerateSettings.of(prompt="hi", min_new_tokens=257),
            "min_new_tokens is 257, wanted at most max_new_tokens, 256",
        ),
        (lambda: PpoSettings.of(logit_bias="3"), "logit_bias holds '3', wanted TOKEN_ID=BIAS; give pairs with commas"),
        (lambda: PpoSettings.of(logit_bias="3=1,x=2"), "logit_bias holds 'x=2', wanted TOKEN_ID=BIAS"),
        (lambda: GrpoSettings.of(data="a.jsonl"), "data is given without reward"),
        (lambda: EvalSettings.of(task=()), r"eval: task is \(\), wanted a list of texts"),
        (lambda: GrpoSettings.of(batch_size=8, micro_batch_size=3), "micro_batch_size is 3, wanted a divisor of the"),
        (lambda: SftSettings.of(batch_size=8, micro_batch_size=3), "micro_batch_size is 3, wanted a divisor"),
        (lambda: EvalSettings.of(samples=4), "samples is 4 at temperature 0, where all are the same"),
        (lambda: GenerateSettings.of(prompt="hi", max_new_tokens=0), "max_new_tokens is 0, wanted at least 1"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_resuming_keeps_the_settings_of_the_run(tmp_path):
    out = str(tmp_path / "run")
    RunDirectory.create(out, as_dict(SftSettings.of(steps=10, seed=4, batch_size=8)))
    resumed = SftSettings.of(steps=10, seed=4, batch_size=8, out=out, resume=out)
    assert _parse(SftSettings, "--resume", out) == resumed
    longer = _parse(SftSettings, "--resume", out, "--steps", "20", "--seed", "4")
    assert longer == resumed.changed(steps=20)
    with pytest.raises(ValueError, match=r"--batch-size 16 conflicts with the run in .*, where it is 8; only --steps"):
        _parse(SftSettings, "--resume", out, "--batch-size", "16")
    others = _parse(SftSettings, "--resume", out, "--max-hours", "2", "--keep-checkpoints", "5", "--profile", "2")
    assert (others.run.max_hours, others.run.keep_checkpoints, others.run.profile) == (2.0, 5, 2)
    with pytest.raises(ValueError, match="--out elsewhere conflicts"):
        _parse(SftSettings, "--resume", out, "--out", "elsewhere")
    with pytest.raises(ValueError, match="--config and --resume are both given"):
        _parse(SftSettings, "--resume", out, "--config", "a.yaml")
    with pytest.raises(ValueError, match="is of the command 'sft', not 'grpo'"):
        _parse(GrpoSettings, "--resume", out)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        _parse(SftSettings, "--resume", str(tmp_path))


def test_what_a_run_finds_of_its_settings_is_said_in_flags(tmp_path, capsys):
    words = ["--recipe", "rloo", "--replay", "8", "--correction", "none", "--out", str(tmp_path / "run")]
    assert main(["grpo", *words]) == 2
    said = capsys.readouterr().err
    assert "grpo: --replay gives" in said
    assert "--correction is none; leave --correction out" in said


def test_what_the_library_says_of_settings_is_said_in_flags(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    for words, told in (
        (["--stop-ids", "9999"], "grpo: --stop-ids has 9999, and the vocabulary has"),
        (["--lora-rank", "2", "--lora-targets", "w"], "--lora-targets: target 'w' is unknown."),
        (["--logit-bias", "1=500", "--sampler-url", "http://localhost:1"], "of token 1; change --logit-bias."),
    ):
        assert main(["grpo", *words, *out]) == 2
        assert told in capsys.readouterr().err


def test_a_prompt_that_a_flag_has_taken_is_said(capsys):
    assert main(["generate", "--stop", ".", "What is it?"]) == 2
    assert "there is no PROMPT; give one before the flags or behind --, since --stop takes" in capsys.readouterr().err
    assert main(["generate", "What is it?", "--stop-ids", "x"]) == 2
    assert "wanted a list of whole numbers, such as 64 64." in capsys.readouterr().err


def test_a_mistyped_flag_gets_a_hint(capsys):
    assert main(["grpo", "--stps", "3"]) == 2
    assert capsys.readouterr().err == "error: grpo has no flag --stps; did you mean --steps?\n"


@pytest.mark.parametrize(
    ("command", "earlier", "now"),
    [
        ("grpo", "groups", "batch-size"),
        ("grpo", "micro-batch-groups", "micro-batch-size"),
        ("ppo", "micro-batches", "micro-batch-size"),
        ("dpo", "clip-norm", "max-grad-norm"),
        ("grpo", "radius", "kl-radius"),
        ("control", "clip-eps", "eps"),
        ("control", "value-clip-eps", "value-eps"),
        ("control", "total-steps", "steps"),
        ("control", "anneal-learning-rate", "schedule"),
        ("control", "no-anneal-learning-rate", "schedule"),
    ],
)
def test_an_earlier_name_gets_the_one_it_has_now(command, earlier, now, tmp_path, capsys):
    assert main([command, f"--{earlier}", "3"]) == 2
    assert capsys.readouterr().err == f"error: {command} has no flag --{earlier}; did you mean --{now}?\n"
    setting, path = earlier.replace("-", "_"), tmp_path / "settings.yaml"
    path.write_text(f"{setting}: 3\n")
    told = rf"{command} has no setting '{setting}'; did you mean '{now.replace('-', '_')}'\?"
    with pytest.raises(ValueError, match=told):
        read_yaml(COMMANDS[command].settings, path)
    with pytest.raises(ValueError, match=told):
        COMMANDS[command].settings.of(**{setting: 3})


def test_a_mistyped_command_gets_a_hint(capsys):
    assert main(["gpro"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'gpro'; did you mean 'grpo'?\n"
    assert main(["zzz"]) == 2
    assert f"there are {', '.join([*COMMANDS, 'plan', 'completion'])}." in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_setting_with_words_of_its_own(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    for setting, key in keys(COMMANDS[name].settings).items():
        assert key.field.metadata["help"].endswith("."), setting
        alone = key.field.metadata.get("word")
        flag = key.field.metadata["metavar"] if alone else f"--{setting.replace('_', '-')}"
        assert flag in shown
    assert "Examples:" in shown
    assert "None" not in shown
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == shown
    assert main([]) == 0
    assert f"  {name} " in capsys.readouterr().out


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """In place of the modules that hold the commands: it does what the test gives it."""
    fake = types.ModuleType("rlax_llm.commands.grpo.run")
    for command in COMMANDS.values():
        monkeypatch.setitem(sys.modules, command.run.partition(":")[0], fake)
    monkeypatch.setattr(compilation_cache, "turn_on", lambda: None)
    monkeypatch.delenv("RLAX_LLM_TRACEBACK", raising=False)
    return fake


def test_a_command_runs_with_its_settings(runs):
    seen = []
    for name, command in COMMANDS.items():
        if "seed" not in keys(command.settings):
            continue
        setattr(runs, command.run.partition(":")[2], seen.append)
        needed = {"generate": ["hi"], "distill": ["--teacher", "t"]}
        assert main([name, "--seed", "5", *needed.get(name, [])]) == 0
    assert seen == [
        GrpoSettings.of(seed=5),
        SftSettings.of(seed=5),
        RewardSettings.of(seed=5),
        DpoSettings.of(seed=5),
        KtoSettings.of(seed=5),
        PpoSettings.of(seed=5),
        DistillSettings.of(seed=5, teacher="t"),
        OnlineSettings.of(seed=5),
        EvalSettings.of(seed=5),
        GenerateSettings.of(prompt="hi", seed=5),
        ChatSettings.of(seed=5),
        ControlSettings.of(seed=5),
    ]


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (ValueError("two\nlines"), "error: two lines (ValueError; RLAX_LLM_TRACEBACK=1 shows where)"),
        (FileNotFoundError(2, "No such file", "a.jsonl"), "error: No such file: a.jsonl (FileNotFoundError; "),
        (RuntimeError(), "error: RuntimeError"),
        (ImportError("no reasoning_gym"), "error: no reasoning_gym"),
    ],
)
def test_a_failed_run_is_one_line(runs, capsys, monkeypatch, failure, line):
    def fail(config):
        raise failure

    runs.run_sft = fail
    assert main(["sft"]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(line)
    assert written.err.count("\n") == 1
    monkeypatch.setenv("RLAX_LLM_TRACEBACK", "1")
    with pytest.raises(type(failure)):
        main(["sft"])


def test_what_is_said_of_a_server_names_flags(runs, capsys):
    def fail(config):
        raise ConnectionError("http://localhost:1/v1/models: no answer; give its address (sampler_url).")

    runs.run_grpo = fail
    assert main(["grpo"]) == 2
    assert "/v1/models: no answer; give its address (--sampler-url)." in capsys.readouterr().err


def test_our_own_errors_are_told_as_they_are(tmp_path, capsys):
    assert main(["sft", "--resume", str(tmp_path / "none")]) == 2
    message = f"error: {tmp_path / 'none'} is not a directory; give the directory that an earlier run wrote.\n"
    assert capsys.readouterr().err == message


def test_ctrl_c_is_130(runs, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    runs.run_eval = interrupted
    assert main(["eval"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help_imports_nothing_heavy():
    code = "import sys; from rlax_llm.cli.main import main; main(['grpo', '--help']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(out.splitlines()[-1].strip("[]").replace("'", "").split(", "))
    assert not loaded & {"jax", "transformers", "orbax", "matplotlib", "optax", "flax"}


def test_the_compilation_cache_is_the_users_or_the_one_given(monkeypatch, tmp_path):
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        directory = compilation_cache.turn_on()
        assert directory is not None and directory.is_dir()
        assert str(directory) == jax.config.jax_compilation_cache_dir
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
        assert compilation_cache.turn_on() == tmp_path / "mine"
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "x"))
        assert compilation_cache.turn_on() is None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_setting_of_infinity_survives_the_run_directory(tmp_path):
    out = str(tmp_path / "run")
    RunDirectory.create(out, as_dict(SftSettings.of(max_grad_norm=float("inf"))))
    assert _parse(SftSettings, "--resume", out).optimizer.max_grad_norm == float("inf")


@dataclass(frozen=True, kw_only=True)
class _FilePart(Part):
    files: tuple[str, ...] = word("Files.", "FILE")
    data: tuple[str, ...] | None = option(None, "Others.", "none", "FILE")
    size: int = option(1, "How many.")


@dataclass(frozen=True, kw_only=True)
class _Several(Settings):
    command: ClassVar[str] = "several"
    part: _FilePart


def test_a_setting_of_several_texts(tmp_path, capsys):
    """Each word is one, as are all words without a flag; a name may hold commas and blanks, and one alone is a list."""
    words = ["--data", "a,1", "b c", "--size", "3", "x", "--data=d e", "y"]
    found = resolve(_Several, read_flags(_Several, words)).part
    assert (found.files, found.data, found.size) == (("x", "y"), ("d e",), 3)
    assert capsys.readouterr().err == "several: --data is there twice; the last counts, alone.\n"
    assert read_flags(_Several, words[:5])["data"] == ("a,1", "b c")
    assert _Several.of(files="x", data=["a"]).part == _FilePart(files=("x",), data=("a",))
    (tmp_path / "here").touch()
    assert whole_paths({"data": ["no/file", str(tmp_path / "here")]}) == {"data": ("no/file", str(tmp_path / "here"))}
    for given, said in (((), "a list of texts"), (("",), "text that is not empty"), ((3,), "text")):
        with pytest.raises(ValueError, match=f"several: data is .* wanted {said}"):
            _Several.of(files="x", data=given)
