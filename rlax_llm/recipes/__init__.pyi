"""Every named algorithm by its difference from its parent, and the peers' variants; imports the equations."""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.recipes import control as control
from rlax_llm.recipes import group as group
from rlax_llm.recipes import openrlhf as openrlhf
from rlax_llm.recipes import papers as papers
from rlax_llm.recipes import preference as preference
from rlax_llm.recipes import trl as trl
from rlax_llm.recipes import trl_config as trl_config
from rlax_llm.recipes import verl as verl
from rlax_llm.recipes.control import a2c as a2c
from rlax_llm.recipes.control import ppo as ppo
from rlax_llm.recipes.control import ppo_penalty as ppo_penalty
from rlax_llm.recipes.control import q_actor_critic as q_actor_critic
from rlax_llm.recipes.control import reinforce as reinforce
from rlax_llm.recipes.group import cispo as cispo
from rlax_llm.recipes.group import dapo as dapo
from rlax_llm.recipes.group import dppo_kl as dppo_kl
from rlax_llm.recipes.group import dppo_tv as dppo_tv
from rlax_llm.recipes.group import dr_grpo as dr_grpo
from rlax_llm.recipes.group import gdpo as gdpo
from rlax_llm.recipes.group import gmpo as gmpo
from rlax_llm.recipes.group import gpg as gpg
from rlax_llm.recipes.group import grpo as grpo
from rlax_llm.recipes.group import gspo as gspo
from rlax_llm.recipes.group import gspo_token as gspo_token
from rlax_llm.recipes.group import lite_ppo as lite_ppo
from rlax_llm.recipes.group import luspo as luspo
from rlax_llm.recipes.group import opo as opo
from rlax_llm.recipes.group import reinforce_plus_plus as reinforce_plus_plus
from rlax_llm.recipes.group import reinforce_plus_plus_baseline as reinforce_plus_plus_baseline
from rlax_llm.recipes.group import rloo as rloo
from rlax_llm.recipes.group import sapo as sapo
from rlax_llm.recipes.group import vespo as vespo
from rlax_llm.recipes.preference import alpha_po as alpha_po
from rlax_llm.recipes.preference import aot as aot
from rlax_llm.recipes.preference import cpo as cpo
from rlax_llm.recipes.preference import dpo as dpo
from rlax_llm.recipes.preference import ipo as ipo
from rlax_llm.recipes.preference import orpo as orpo
from rlax_llm.recipes.preference import simpo as simpo
from rlax_llm.recipes.preference import sppo as sppo
