"""Print `docs/algorithms.md` from the objects themselves.

python docs/print_algorithms.py > docs/algorithms.md
"""

import inspect
import re
from typing import get_args, get_type_hints

import jax

from rlax_llm.commands.ppo.phase import objective_of, shaping_of
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.sft.run import paid_by
from rlax_llm.commands.sft.settings import SftSettings, SupervisedOptimizerSettings
from rlax_llm.credit.group_tokens import process_supervision, step_wise
from rlax_llm.credit.running import Remembering
from rlax_llm.credit.shaping import informative, overlong_filter, soft_overlong_punishment
from rlax_llm.credit.token_returns import length_adaptive_trace
from rlax_llm.loops.averages import averaging
from rlax_llm.loops.curriculum import by_pass_rate
from rlax_llm.loops.partial import partial_sampling
from rlax_llm.loops.process import process_loop
from rlax_llm.loops.references import moved
from rlax_llm.loops.replay import replayed
from rlax_llm.natural.trpo import NaturalStep
from rlax_llm.policy import corrections
from rlax_llm.policy.coupled import Coupled
from rlax_llm.policy.distillation import Distillation
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.proximal import log_linear
from rlax_llm.policy.terms import Term
from rlax_llm.policy.weightings import top_entropy
from rlax_llm.preference.implicit_rewards import divergence_reward
from rlax_llm.preference.ordering import OnlinePairs
from rlax_llm.preference.pairs import Preference, desensitize_length, on_policy
from rlax_llm.recipes.control import Penalized
from rlax_llm.recipes.preference import dpo
from rlax_llm.recipes.registry import PEERS, recipes

# What an algorithm cannot be made without, for the table.
NEEDED = {"reward_weights": (1.0,), "max_new_tokens": 1024, "kl_coef": 0.001, "ceiling": 5.0}
NEEDED |= {"group_size": 8, "prompts": 1, "roles": 1, "eps": 0.2}

HEADER = """# Algorithms

Printed from the objects by `docs/print_algorithms.py`; a test compares. A policy objective is a point in a product of
five functions, and further terms of the loss; a preference loss is *rewards × link*. A function stands with what its
factory was called with.
"""


def describe(choice):
    """A function's name, with what its factory was called with."""
    choice = inspect.unwrap(choice) if callable(choice) else choice  # vmap is the layout, no choice
    if isinstance(choice, Coupled | Remembering):
        return describe(choice[0] if isinstance(choice, Coupled) else choice.credit)
    if isinstance(choice, Term):
        return f"{choice.coef:g} {choice.name}"
    if isinstance(choice, tuple):
        return ", ".join(describe(part) for part in choice) or "none"
    if isinstance(choice, str):
        return choice.replace("\n", "\\n")
    if not callable(choice):
        return "none" if choice is None else f"{choice:g}" if isinstance(choice, float) else str(choice)
    if hasattr(choice, "func"):
        name, values = describe(choice.func), choice.keywords
    else:
        name, values = choice.__qualname__.split(".")[0], inspect.getclosurevars(choice).nonlocals
    wrapped = [values[inner] for inner in ("kept", "loss") if inner in values]
    if name.startswith("_") and wrapped:  # what is wrapped says more
        return describe(wrapped[0])
    values = {
        key: value for key, value in values.items() if not isinstance(value, jax.Array)
    }  # a random key says nothing
    # A function says what it is by its name, a number by its argument's.
    named = {key: not (callable(value) or isinstance(value, tuple)) for key, value in values.items()}
    texts = [f"{key}=" * named[key] + describe(value) for key, value in values.items()]
    name = name.lstrip("_")
    return f"{name}({', '.join(texts)})" if values else name


def made(named):
    """The algorithm with its defaults, and a stand-in for what has none."""
    if named.family == "link":
        return dpo()._replace(link=named.make)
    parameters = inspect.signature(named.make).parameters.values()
    algorithm = named.make(**{p.name: NEEDED[p.name] for p in parameters if p.default is p.empty})
    return algorithm.objective if isinstance(algorithm, Penalized) else algorithm


def algorithms(*families, peer="", kind=(Objective, Preference, Distillation)):
    """Row of the registry and object of each algorithm of these families, of this library or of a peer."""
    for named in recipes(*families).values():
        if named.name.rpartition(":")[0] == peer:
            algorithm = made(named)
            if isinstance(algorithm, kind):
                yield named, algorithm


def reference(named):
    """The arXiv number of an algorithm."""
    return f"[{named.paper}](https://arxiv.org/abs/{named.paper})" if named.paper else ""


def row(*cells):
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def head(*cells):
    """A table's head."""
    return [row(*cells), row(*("---" for _ in cells))]


def policies(family):
    """The policy objectives of the papers."""
    yield from head("recipe", "reference", *(field.replace("_", " ") for field in Objective._fields))
    for named, objective in algorithms(family):
        yield row(f"`{named.name}`", reference(named), *(f"`{describe(choice)}`" for choice in objective))


def four_models():
    """What the recipes of ``rlax-llm ppo`` are by default."""
    names = (
        "recipe",
        "reference",
        "policy's λ",
        "value model's λ",
        "KL in the reward",
        "trust region",
        "weighting",
        "terms",
    )
    yield from head(*names)
    for named in recipes("rlhf").values():
        settings = PpoSettings.of(recipe=named.name).objective
        shaping, loss = shaping_of(settings), objective_of(settings)
        kl = f"{shaping.kl.coef:g} {describe(shaping.kl.estimator)}" if shaping.kl.charged else "none"
        parts = shaping.trace, shaping.value_trace, kl, loss.trust_region, loss.weighting, loss.terms
        yield row(f"`{named.name}`", reference(named), *(f"`{describe(part)}`" for part in parts))


def natural():
    """The algorithms of natural-gradient steps."""
    yield from head("command", "recipe", "reference", *NaturalStep._fields)
    for family in ("group", "control"):
        for named, step in algorithms(family, kind=NaturalStep):
            command = "grpo" if family == "group" else family
            yield row(command, f"`{named.name}`", reference(named), *(f"`{describe(choice)}`" for choice in step))


def fields(choice):
    """What each field of an algorithm is; of a distillation those of its objective too."""
    parts = choice._asdict()
    if isinstance(choice, Distillation):
        parts = parts.pop("objective")._asdict() | parts
    return {field: describe(part) for field, part in parts.items()}


def peers():
    """Where each peer's algorithm differs from the paper's."""
    yield from head("peer", "preset", "differs from the recipe in", "what it is there")
    for peer, title in PEERS.items():
        for parent, families in (("grpo", ("group",)), ("dpo", ("preference", "link")), ("gkd", ("distillation",))):
            own = {named.name: choice for named, choice in algorithms(*families)}
            for named, choice in algorithms(*families, peer=peer):
                name = named.name.rpartition(":")[2]
                here, there = fields(choice), fields(own.get(name, own[parent]))
                differs = [(field, part) for field, part in here.items() if part != there[field]]
                text = "<br>".join(f"{field.replace('_', ' ')}: `{part}`" for field, part in differs) or "nothing"
                what = " ".join(inspect.getdoc(named.make).split("\n\n")[0].split())
                yield row(title, f"`{name}`", text, what)


def preferences():
    """The preference losses."""
    yield from head("recipe", "reference", "rewards", "link", "likelihood", "of", "factors")
    for named, preference in algorithms("preference", "link"):
        yield row(f"`{named.name}`", reference(named), *(f"`{describe(choice)}`" for choice in preference))


def unpaired():
    """The losses of labels."""
    yield from head("recipe", "reference", "reward", "link")
    for named in recipes("unpaired").values():
        yield row(f"`{named.name}`", reference(named), *(f"`{describe(choice)}`" for choice in made(named)))


def online():
    """The ways to learn from completions that are compared as they are drawn."""
    yield from head("recipe", "reference", "compared by", "rivals", "loss")
    for named in recipes("online").values():
        way = made(named)
        paired = isinstance(way, OnlinePairs)
        compared, loss = (way.pairing, way.preference) if paired else (way.comparison, way.objective)
        parts = [describe(part) for part in loss if part not in (None, ())]
        rivals = "none" if way.rivals is None else f"share {way.rivals:g} of the reference"
        yield row(f"`{named.name}`", reference(named), f"`{describe(compared)}`", rivals, f"`{' · '.join(parts)}`")


def distillations():
    """The ways to learn from a teacher."""
    names = "recipe", "reference", "advantage", "trust region", "divergence", "on policy", "follows", "teacher reads"
    yield from head(*names)
    for named, way in algorithms("distillation"):
        hints = "the prompt" if way.prompting is None else f"{describe(way.prompting.hints)}, the prompt"
        parts = way.objective.advantage, way.objective.trust_region, way.divergence, way.on_policy
        follows = "a model of its own" if way.follows is None else f"{way.follows:g}"
        yield row(f"`{named.name}`", reference(named), *(f"`{describe(part)}`" for part in parts), follows, hints)


def supervised():
    """What ``rlax-llm sft`` minimizes."""
    yield from head("loss", "reference", "trust region of log π", "KL from the start")
    references = {"dft": "2508.05629", "asft": "2509.23753"}
    for loss in get_args(get_type_hints(SupervisedOptimizerSettings)["loss"]):
        given = {"kl_coef": 0.1} if loss == "asft" else {}
        paid = paid_by(SftSettings.of(loss=loss, **given).optimizer)
        number = references.get(loss, "")
        paper = f"[{number}](https://arxiv.org/abs/{number})" if number else ""
        yield row(f"`{loss}`", paper, f"`{describe(paid.trust_region)}`", f"`{paid.kl_coef:g}`")


# What stands beside any of the above, its function, and the flag that gives it, or why it takes a program.
PARTS = {
    "TIS": (corrections.truncated_importance, "`grpo --correction token`"),
    "IcePop": (corrections.masked_importance, "`grpo --correction mask`"),
    "sequence rejection": (corrections.rejection, "`grpo --correction sequence`"),
    "M2PO": (corrections.second_moment_mask, "`grpo --correction moment`"),
    "log-linear proximal policy": (log_linear, "`grpo --correction log_linear`"),
    "off-policy sequence mask": (corrections.off_policy_mask, "`grpo --off-policy-mask`"),
    "tokens of high entropy": (top_entropy, "`grpo --top-entropy`"),
    "soft overlong punishment": (soft_overlong_punishment, "`grpo --overlong-buffer`"),
    "overlong filter": (overlong_filter, "`grpo --overlong-filter`"),
    "dynamic sampling": (informative, "`grpo --dynamic-rounds`"),
    "replay of informative groups": (replayed, "`grpo --replay`"),
    "curriculum by pass rate": (by_pass_rate, "`grpo --curriculum`"),
    "partial rollouts": (partial_sampling, "`grpo --partial-rollouts`"),
    "process supervision": (process_supervision, "`grpo --step-reward`"),
    "process reward model": (process_loop, "`reward --process`"),
    "GiGPO": (step_wise, "`grpo --recipe gigpo --tool calculator`"),
    "length-adaptive λ": (length_adaptive_trace, "`ppo --recipe vapo`"),
    "WPO": (on_policy, "`dpo --wpo`"),
    "LD-DPO": (desensitize_length, "`dpo --tail-coef`"),
    "f-DPO": (divergence_reward, "`dpo --divergence`"),
    "TR-DPO": (moved, "`online`, `grpo`, `dpo` `--reference-mix`"),
    "BEMA": (averaging, "`--average bema`"),
}


def parts():
    """What any of these may have beside it, by the first sentence of its function."""
    yield from head("what", "reference", "function", "what it does", "command line")
    for name, (function, flag) in PARTS.items():
        text = inspect.getdoc(function)
        number = re.search(r"arXiv\s(\d{4}\.\d{5})", text)
        paper = f"[{number[1]}](https://arxiv.org/abs/{number[1]})" if number else ""
        place = f"rl.{function.__module__.split('.')[1]}.{function.__name__}"
        yield row(name, paper, f"`{place}`", " ".join(text.split("\n\n")[0].split()), flag)


def page():
    """The whole page."""
    sections = {
        "Policy objectives": lambda: policies("group"),
        "The peers' variants": peers,
        "PPO of four models": four_models,
        "Control objectives": lambda: policies("control"),
        "Natural-gradient steps": natural,
        "Preference losses": preferences,
        "Losses of labels": unpaired,
        "Online preference": online,
        "Distillation": distillations,
        "Supervised training": supervised,
        "What stands beside them": parts,
    }
    lines = [HEADER]
    for title, section in sections.items():
        lines += [f"## {title}", "", *section(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
