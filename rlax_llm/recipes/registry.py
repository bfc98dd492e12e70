"""The one table of named algorithms: the command line, its help and hints, and the pages of docs/ read it.

It names what makes an algorithm by MODULE:FUNCTION and imports that when it is asked for, so that ``--help`` costs no
import of JAX. An algorithm is one function and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, NamedTuple

from rlax_llm.core.names import did_you_mean
from rlax_llm.core.user_code import is_own, named_function, whole_path
from rlax_llm.recipes.marks import is_alone, read_by

Family = Literal["group", "control", "rlhf", "preference", "link", "unpaired", "distillation", "online"]


class Named(NamedTuple):
    """A named algorithm.

    Attributes:
        name: as the command line takes it; another trainer's variant as ``TRAINER:NAME``.
        family: ``group``, ``control`` and ``rlhf`` make an ``Objective`` (or a ``NaturalStep``, or a ``Penalized``),
            ``preference`` a ``Preference``, ``unpaired`` an ``Unpaired``, ``distillation`` a ``Distillation``,
            ``online`` an ``OnlinePairs`` or an ``OnlineGroups``; a ``link`` is itself the link of a ``Preference`` with
            the reward of dpo.
        place: MODULE:FUNCTION, of a user's own FILE.py:FUNCTION too.
        paper: arXiv number, or nothing.
        like: the algorithm that it resembles: in ``control`` whose tuned settings it has, in ``preference`` whose
            reward, so that their links can be added up; or nothing.
        reads: fields of ``Known`` that its advantage reads beside the scores; of a user's own see ``told``.
        alone: whether one completion of a prompt is enough, since no other is compared with it; the same.
        given: tokens that its loss reads and the policy did not choose: "demonstrations" beside a group, "members" of
            it that are demonstrations, the "answers" of tools; or nothing.
    """

    name: str
    family: Family
    place: str
    paper: str = ""
    like: str = ""
    reads: tuple[str, ...] = ()
    alone: bool = False
    given: Literal["", "demonstrations", "members", "answers"] = ""

    @property
    def make(self) -> Callable[..., Any]:
        """The function at ``place``.

        Raises:
            ValueError: as ``named_function``, for a user's own.
        """
        if self.is_own:
            try:
                return named_function("recipe", self.place)
            except ValueError as error:
                said = str(error)
                if not said.endswith("."):
                    raise
                # A trainer that is misspelled reads as a module that is not there.
                variants = [row.name for row in REGISTRY if ":" in row.name and row.family == self.family]
                raise ValueError(said[:-1] + did_you_mean(self.name, variants)) from error
        module, _, function = self.place.rpartition(":")
        return getattr(import_module(module), function)

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own, none of this table."""
        return self.name == self.place

    def told(self) -> Named:
        """With what a user's own function says of itself (``recipes.marks``), which is imported for it.

        Raises:
            ValueError: as ``named_function``, for a user's own.

        >>> find("grpo", "spo", "group").told().reads
        ('prompts',)
        """
        return self._replace(reads=read_by(self.make), alone=is_alone(self.make)) if self.is_own else self


_GROUP = "rlax_llm.recipes.group:"
_MIXED = "rlax_llm.recipes.mixed:"
_VARIANTS = "rlax_llm.recipes.variants:"
_CONTROL = "rlax_llm.recipes.control:"
_PREFERENCE = "rlax_llm.recipes.preference:"
_LINKS = "rlax_llm.preference.links:"
_UNPAIRED = "rlax_llm.preference.unpaired:"
_DISTILLATION = "rlax_llm.recipes.distillation:"
_ONLINE = "rlax_llm.recipes.online:"
_TRL = "rlax_llm.recipes.trl:"
_VERL = "rlax_llm.recipes.verl:"
_OPENRLHF = "rlax_llm.recipes.openrlhf:"
_PRIME_RL = "rlax_llm.recipes.prime_rl:"
_NEMO_RL = "rlax_llm.recipes.nemo_rl:"
_SLIME = "rlax_llm.recipes.slime:"
_AREAL = "rlax_llm.recipes.areal:"
_SKYRL = "rlax_llm.recipes.skyrl:"
_OPEN_INSTRUCT = "rlax_llm.recipes.open_instruct:"

PEERS = {
    "trl": "TRL",
    "verl": "verl",
    "openrlhf": "OpenRLHF",
    "prime_rl": "prime-rl",
    "nemo_rl": "NeMo-RL",
    "slime": "slime",
    "areal": "AReaL",
    "skyrl": "SkyRL",
    "open_instruct": "open-instruct",
}
"""Other trainers, by the word before the colon."""

REGISTRY = (
    Named("grpo", "group", _GROUP + "grpo", "2402.03300"),
    Named("dr_grpo", "group", _GROUP + "dr_grpo", "2503.20783"),
    Named("dapo", "group", _GROUP + "dapo", "2503.14476"),
    Named("rloo", "group", _GROUP + "rloo", "2402.14740"),
    Named("gspo", "group", _GROUP + "gspo", "2507.18071"),
    Named("gspo_token", "group", _GROUP + "gspo_token", "2507.18071"),
    Named("luspo", "group", _GROUP + "luspo"),
    Named("gmpo", "group", _GROUP + "gmpo", "2507.20673"),
    Named("cispo", "group", _GROUP + "cispo", "2506.13585"),
    Named("sapo", "group", _GROUP + "sapo", "2511.20347"),
    Named("vespo", "group", _GROUP + "vespo", "2602.10693"),
    Named("dppo_tv", "group", _GROUP + "dppo_tv", "2602.04879"),
    Named("dppo_kl", "group", _GROUP + "dppo_kl", "2602.04879"),
    Named("lite_ppo", "group", _GROUP + "lite_ppo", "2508.08221"),
    Named("opo", "group", _GROUP + "opo", "2505.23585"),
    Named("gpg", "group", _GROUP + "gpg", "2504.02546"),
    Named("reinforce_plus_plus", "group", _GROUP + "reinforce_plus_plus", "2501.03262"),
    Named("reinforce_plus_plus_baseline", "group", _GROUP + "reinforce_plus_plus_baseline", "2501.03262"),
    Named("gdpo", "group", _GROUP + "gdpo", "2601.05242"),
    Named("maxrl", "group", _MIXED + "maxrl", "2602.02710"),
    Named("topr", "group", _MIXED + "topr", "2503.14286"),
    Named("kimi", "group", _MIXED + "kimi", "2602.02276"),
    Named("dro", "group", _MIXED + "dro", "2405.19107"),
    Named("chord", "group", _MIXED + "chord", "2508.11408", given="demonstrations"),
    Named("luffy", "group", _MIXED + "luffy", "2504.14945", given="members"),
    Named("echo", "group", _MIXED + "echo", "2605.24517", given="answers"),
    Named("clip_cov", "group", _VARIANTS + "clip_cov", "2505.22617"),
    Named("kl_cov", "group", _VARIANTS + "kl_cov", "2505.22617"),
    Named("pass_at_k", "group", _VARIANTS + "pass_at_k", "2503.19595"),
    Named("remax", "group", _VARIANTS + "remax", "2310.10505", reads=("baselines",), alone=True),
    Named("otb", "group", _VARIANTS + "otb", "2602.07078", reads=("collisions",)),
    Named("fipo", "group", _VARIANTS + "fipo", "2603.19835"),
    Named("real", "group", _VARIANTS + "real", "2602.05630"),
    Named("gfpo", "group", _VARIANTS + "gfpo", "2508.09726"),
    Named("gfpo_shortest", "group", _VARIANTS + "gfpo_shortest", "2508.09726"),
    Named("gigpo", "group", _VARIANTS + "gigpo", "2505.10978", reads=("turns", "anchors", "turn_returns")),
    Named("spo", "group", _VARIANTS + "spo", "2509.13232", reads=("prompts",), alone=True),
    Named("rae", "group", _VARIANTS + "rae", "2506.24119", reads=("roles",), alone=True),
    Named("raft", "group", _ONLINE + "raft", "2304.06767"),
    Named("raft_plus_plus", "group", _ONLINE + "raft_plus_plus", "2504.11343"),
    Named("gvpo", "group", _ONLINE + "gvpo", "2504.19599"),
    Named("trpo", "group", _GROUP + "trpo", "1502.05477"),
    Named("trl:grpo", "group", _TRL + "grpo"),
    Named("trl:grpo_corrected_kl", "group", _TRL + "grpo_corrected_kl"),
    Named("trl:grpo_sequence_mean", "group", _TRL + "grpo_sequence_mean"),
    Named("trl:dr_grpo", "group", _TRL + "dr_grpo"),
    Named("trl:gspo", "group", _TRL + "gspo"),
    Named("trl:luspo", "group", _TRL + "luspo"),
    Named("trl:sapo", "group", _TRL + "sapo"),
    Named("trl:cispo", "group", _TRL + "cispo"),
    Named("trl:vespo", "group", _TRL + "vespo"),
    Named("trl:rloo", "group", _TRL + "rloo"),
    Named("trl:gmpo", "group", _TRL + "gmpo"),
    Named("verl:grpo", "group", _VERL + "grpo"),
    Named("verl:dr_grpo", "group", _VERL + "dr_grpo"),
    Named("verl:rloo", "group", _VERL + "rloo"),
    Named("verl:reinforce_plus_plus", "group", _VERL + "reinforce_plus_plus"),
    Named("verl:reinforce_plus_plus_baseline", "group", _VERL + "reinforce_plus_plus_baseline"),
    Named("verl:opo", "group", _VERL + "opo"),
    Named("verl:gpg", "group", _VERL + "gpg"),
    Named("verl:gspo", "group", _VERL + "gspo"),
    Named("verl:cispo", "group", _VERL + "cispo"),
    Named("verl:gmpo", "group", _VERL + "gmpo"),
    Named("openrlhf:grpo", "group", _OPENRLHF + "grpo"),
    Named("openrlhf:dr_grpo", "group", _OPENRLHF + "dr_grpo"),
    Named("openrlhf:rloo", "group", _OPENRLHF + "rloo"),
    Named("openrlhf:reinforce_plus_plus", "group", _OPENRLHF + "reinforce_plus_plus"),
    Named("openrlhf:reinforce_plus_plus_baseline", "group", _OPENRLHF + "reinforce_plus_plus_baseline"),
    Named("openrlhf:gspo", "group", _OPENRLHF + "gspo"),
    Named("prime_rl:grpo", "group", _PRIME_RL + "grpo"),
    Named("prime_rl:max_rl", "group", _PRIME_RL + "max_rl"),
    Named("prime_rl:ipo", "group", _PRIME_RL + "ipo"),
    Named("nemo_rl:grpo", "group", _NEMO_RL + "grpo"),
    Named("nemo_rl:grpo_dual", "group", _NEMO_RL + "grpo_dual"),
    Named("nemo_rl:dr_grpo", "group", _NEMO_RL + "dr_grpo"),
    Named("nemo_rl:rloo", "group", _NEMO_RL + "rloo"),
    Named("nemo_rl:gspo", "group", _NEMO_RL + "gspo"),
    Named("nemo_rl:reinforce_plus_plus_baseline", "group", _NEMO_RL + "reinforce_plus_plus_baseline"),
    Named("slime:grpo", "group", _SLIME + "grpo"),
    Named("slime:dr_grpo", "group", _SLIME + "dr_grpo"),
    Named("slime:gspo", "group", _SLIME + "gspo"),
    Named("slime:opsm", "group", _SLIME + "opsm"),
    Named("slime:cispo", "group", _SLIME + "cispo"),
    Named("slime:reinforce_plus_plus", "group", _SLIME + "reinforce_plus_plus"),
    Named("slime:reinforce_plus_plus_baseline", "group", _SLIME + "reinforce_plus_plus_baseline"),
    Named("areal:grpo", "group", _AREAL + "grpo"),
    Named("areal:gspo", "group", _AREAL + "gspo"),
    Named("areal:sapo", "group", _AREAL + "sapo"),
    Named("areal:log_linear", "group", _AREAL + "log_linear"),
    Named("skyrl:grpo", "group", _SKYRL + "grpo"),
    Named("skyrl:dr_grpo", "group", _SKYRL + "dr_grpo"),
    Named("skyrl:rloo", "group", _SKYRL + "rloo"),
    Named("skyrl:maxrl", "group", _SKYRL + "maxrl"),
    Named("skyrl:gspo", "group", _SKYRL + "gspo"),
    Named("skyrl:cispo", "group", _SKYRL + "cispo"),
    Named("skyrl:sapo", "group", _SKYRL + "sapo"),
    Named("skyrl:dppo_tv", "group", _SKYRL + "dppo_tv"),
    Named("skyrl:clip_cov", "group", _SKYRL + "clip_cov"),
    Named("skyrl:kl_cov", "group", _SKYRL + "kl_cov"),
    Named("open_instruct:grpo", "group", _OPEN_INSTRUCT + "grpo"),
    Named("open_instruct:dr_grpo", "group", _OPEN_INSTRUCT + "dr_grpo"),
    Named("open_instruct:cispo", "group", _OPEN_INSTRUCT + "cispo"),
    Named("open_instruct:dppo_tv", "group", _OPEN_INSTRUCT + "dppo_tv"),
    Named("open_instruct:tvpo", "group", _OPEN_INSTRUCT + "tvpo"),
    Named("reinforce", "control", _CONTROL + "reinforce", like="a2c"),
    Named("q_actor_critic", "control", _CONTROL + "q_actor_critic", like="q_actor_critic"),
    Named("a2c", "control", _CONTROL + "a2c", "1602.01783", like="a2c"),
    Named("ppo", "control", _CONTROL + "ppo", "1707.06347", like="ppo"),
    Named("ppo_penalty", "control", _CONTROL + "steered_ppo_penalty", "1707.06347", like="ppo"),
    Named("dual_clip", "control", _CONTROL + "dual_clip", "1912.09729", like="ppo"),
    Named("cispo", "control", _CONTROL + "cispo", "2506.13585", like="ppo"),
    Named("sapo", "control", _CONTROL + "sapo", "2511.20347", like="ppo"),
    Named(
        "discovered_policy_optimization", "control", _CONTROL + "discovered_policy_optimization", "2210.05639", "ppo"
    ),
    Named("unclipped", "control", _CONTROL + "ppo_penalty", like="ppo"),
    Named("trpo", "control", _CONTROL + "trpo", "1502.05477", like="trpo"),
    Named("ppo", "rlhf", _CONTROL + "ppo", "1707.06347"),
    Named("vapo", "rlhf", _MIXED + "vapo", "2504.05118"),
    Named("dpo", "preference", _PREFERENCE + "dpo", "2305.18290", like="dpo"),
    Named("cdpo", "preference", _PREFERENCE + "cdpo", like="dpo"),
    Named("robust", "preference", _PREFERENCE + "robust", "2403.00409", like="dpo"),
    Named("exo", "preference", _PREFERENCE + "exo", "2402.00856", like="dpo"),
    Named("hinge", "link", _LINKS + "hinge", "2309.06657"),
    Named("nca", "link", _LINKS + "nca", "2402.05369"),
    Named("bco", "preference", _PREFERENCE + "bco", "2404.04656", like="dpo"),
    Named("apo_zero", "preference", _PREFERENCE + "apo_zero", "2408.06266", like="dpo"),
    Named("apo_down", "link", _LINKS + "apo_down", "2408.06266"),
    Named("discopop", "preference", _PREFERENCE + "discopop", "2406.08414", like="dpo"),
    Named("dpop", "preference", _PREFERENCE + "dpop", "2402.13228", like="dpo"),
    Named("aot_unpaired", "preference", _PREFERENCE + "aot_unpaired", "2406.05882", like="dpo"),
    Named("ipo", "preference", _PREFERENCE + "ipo", "2310.12036"),
    Named("dpo_norm", "preference", _PREFERENCE + "dpo_norm"),
    Named("sppo", "preference", _PREFERENCE + "sppo", "2405.00675"),
    Named("aot", "preference", _PREFERENCE + "aot", "2406.05882"),
    Named("simpo", "preference", _PREFERENCE + "simpo", "2405.14734"),
    Named("alpha_po", "preference", _PREFERENCE + "alpha_po", "2501.03884"),
    Named("cpo", "preference", _PREFERENCE + "cpo", "2401.08417"),
    Named("orpo", "preference", _PREFERENCE + "orpo", "2403.07691"),
    Named("tpo", "preference", _PREFERENCE + "tpo", "2405.16681"),
    Named("tpo_length", "preference", _PREFERENCE + "tpo_length", "2405.16681"),
    Named("trl:cpo", "preference", _TRL + "cpo"),
    Named("trl:simpo", "preference", _TRL + "simpo"),
    Named("openrlhf:dpo", "preference", _OPENRLHF + "dpo"),
    Named("openrlhf:ipo", "preference", _OPENRLHF + "ipo"),
    Named("kto", "unpaired", _UNPAIRED + "kto", "2402.01306"),
    Named("bco", "unpaired", _UNPAIRED + "bco", "2404.04656"),
    Named("apo_zero", "unpaired", _UNPAIRED + "kto", "2408.06266"),
    Named("opd", "distillation", _DISTILLATION + "opd"),
    Named("iw_opd", "distillation", _DISTILLATION + "iw_opd", "2606.22600"),
    Named("opd_grpo", "distillation", _DISTILLATION + "opd_grpo"),
    Named("gkd", "distillation", _DISTILLATION + "gkd", "2306.13649"),
    Named("forward_kl", "distillation", _DISTILLATION + "forward_kl", "1503.02531"),
    Named("reverse_kl", "distillation", _DISTILLATION + "reverse_kl"),
    Named("minillm", "distillation", _DISTILLATION + "minillm", "2306.08543"),
    Named("sdft", "distillation", _DISTILLATION + "sdft", "2601.19897"),
    Named("opsd", "distillation", _DISTILLATION + "opsd", "2601.18734"),
    Named("sdpo", "distillation", _DISTILLATION + "sdpo", "2601.20802"),
    Named("trl:distillation", "distillation", _TRL + "distillation"),
    Named("trl:iw_opd", "distillation", _TRL + "iw_opd"),
    Named("trl:sdpo", "distillation", _TRL + "sdpo"),
    Named("online_dpo", "online", _ONLINE + "online_dpo", "2402.04792"),
    Named("xpo", "online", _ONLINE + "xpo", "2405.21046"),
    Named("nash_md", "online", _ONLINE + "nash_md", "2312.00886"),
    Named("a_star_po", "online", _ONLINE + "a_star_po", "2505.20686"),
    Named("raft", "online", _ONLINE + "best_of_n", "2304.06767"),
)


KINDS = {
    "a group's scores": (
        *("grpo", "dr_grpo", "dapo", "rloo", "opo", "maxrl", "pass_at_k", "otb", "gfpo", "gfpo_shortest", "real"),
        "gdpo",
    ),
    "the batch's scores": ("lite_ppo", "gpg", "reinforce_plus_plus", "reinforce_plus_plus_baseline"),
    "a baseline from elsewhere": ("remax", "spo", "rae"),
    "ratios of completions": ("gspo", "gspo_token", "luspo", "gmpo", "vespo", "topr"),
    "other trust regions": ("cispo", "sapo", "dppo_tv", "dppo_kl", "kimi", "dro", "fipo", "trpo"),
    "the entropy": ("clip_cov", "kl_cov"),
    "turns with tools": ("gigpo",),
    "the best, or regression on scores": ("raft", "raft_plus_plus", "gvpo"),
    "given tokens": ("chord", "luffy", "echo"),
}
"""The algorithms of groups by what they are about, in the order of the help."""


def by_kind() -> str:
    """The algorithms of groups, by kind and with their papers: what the help of ``--recipe`` says.

    >>> by_kind().split("; ")[2]
    'a baseline from elsewhere: remax (2310.10505), spo (2509.13232), rae (2506.24119)'
    """
    known = recipes("group")
    return "; ".join(f"{kind}: {', '.join(_told(known[name]) for name in names)}" for kind, names in KINDS.items())


def with_papers(*families: Family) -> str:
    """The names of these families with their papers, without other trainers' variants: what other helps say.

    Args:
        families: one or more.

    >>> with_papers("unpaired")
    'kto (2402.01306), bco (2404.04656), apo_zero (2408.06266)'
    """
    return ", ".join(_told(row) for name, row in recipes(*families).items() if ":" not in name)


def _told(named: Named) -> str:
    return f"{named.name} ({named.paper})" if named.paper else named.name


def recipes(*families: Family) -> dict[str, Named]:
    """The algorithms of these families by name, in the order of the table.

    Args:
        families: one or more.

    >>> list(recipes("unpaired"))
    ['kto', 'bco', 'apo_zero']
    """
    return {row.name: row for row in REGISTRY if row.family in families}


def homes() -> dict[str, tuple[str, ...]]:
    """The functions of this folder that make algorithms, by module: what ``rlax_llm.recipes`` shows.

    Of two that share a name the first in the table is shown: ``cispo`` is that of groups.

    >>> "dr_grpo" in homes()["group"], "cispo" in homes()["control"]
    (True, False)
    """
    shown: dict[str, str] = {}
    for row in REGISTRY:
        module, _, function = row.place.rpartition(":")
        if module.startswith("rlax_llm.recipes.") and ":" not in row.name:
            shown.setdefault(function, module.removeprefix("rlax_llm.recipes."))
    modules = dict.fromkeys(shown.values())
    return {module: tuple(sorted(name for name in shown if shown[name] == module)) for module in modules}


def listed(*families: Family) -> str:
    """The names of these families in one line, without other trainers' variants.

    Args:
        families: one or more.

    >>> listed("unpaired")
    'kto, bco, apo_zero'
    """
    return ", ".join(name for name in recipes(*families) if ":" not in name)


def spelled(text: str) -> str:
    """A recipe as it is written here: a ``-`` in a name is a ``_``; MODULE:FUNCTION stays as it is.

    >>> spelled("dr-grpo"), spelled("trl:dr-grpo"), spelled("my-losses.py:mine")
    ('dr_grpo', 'trl:dr_grpo', 'my-losses.py:mine')
    """
    return text if _is_own(text) else text.replace("-", "_")


def whole_places(text: str) -> str:
    """A recipe, or a sum of them, whose files are found from any directory.

    >>> whole_places("dpo:0.8,no_such_file.py:mine:0.2")
    'dpo:0.8,no_such_file.py:mine:0.2'
    """
    return ",".join(_whole_place(part) for part in text.split(","))


def _whole_place(text: str) -> str:
    name, colon, weight = text.rpartition(":")
    if _is_own(text):
        return whole_path(text)
    return f"{whole_path(name)}:{weight}" if colon and _is_own(name) else text


def find(command: str, text: str, *families: Family) -> Named:
    """The algorithm of a name; a user's own by MODULE:FUNCTION or FILE.py:FUNCTION, which is not imported yet.

    Args:
        command: that asks, for the message.
        text: a name, as ``spelled`` reads it.
        families: in which to look; a user's own is of the first.

    Raises:
        ValueError: there is none of that name; with the closest that there is.

    >>> find("grpo", "dr-grpo", "group").paper
    '2503.20783'
    >>> find("grpo", "gmppo", "group")
    Traceback (most recent call last):
    ValueError: grpo: there is no recipe 'gmppo'; did you mean 'gmpo'? There are grpo, dr_grpo, dapo, ...
    """
    name = spelled(text)
    known = recipes(*families)
    if name in known:
        return known[name]
    if _is_own(text):
        return Named(text, families[0], text)
    hint = did_you_mean(name, known)
    raise ValueError(
        f"{command}: there is no recipe {text!r}{hint} There are {listed(*families)}, or your own as FILE.py:FUNCTION."
    )


def _is_own(text: str) -> bool:
    return is_own(text) and text.partition(":")[0].replace("-", "_") not in PEERS
