"""Environments of control: one at a time, pure, never resetting themselves; imports ``core``."""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.envs import brax_env as brax_env
from rlax_llm.envs import environment as environment
from rlax_llm.envs import gymnax_envs as gymnax_envs
from rlax_llm.envs import ids as ids
from rlax_llm.envs import probes as probes
from rlax_llm.envs import registry as registry
from rlax_llm.envs import rendering as rendering
from rlax_llm.envs import rock_paper_scissors as rock_paper_scissors
from rlax_llm.envs.brax_env import brax as brax
from rlax_llm.envs.environment import Box as Box
from rlax_llm.envs.environment import Discrete as Discrete
from rlax_llm.envs.environment import Environment as Environment
from rlax_llm.envs.environment import Step as Step
from rlax_llm.envs.gymnax_envs import gymnax as gymnax
from rlax_llm.envs.probes import PROBES as PROBES
from rlax_llm.envs.probes import Probe as Probe
from rlax_llm.envs.probes import diagnosis as diagnosis
from rlax_llm.envs.registry import make as make
from rlax_llm.envs.registry import names as names
from rlax_llm.envs.rock_paper_scissors import exploitability as exploitability
