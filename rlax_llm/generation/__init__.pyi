"""Sampling completions: samplers, the engine, a server in its place, turns; imports ``models`` and ``core``."""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.generation import automata as automata
from rlax_llm.generation import cache as cache
from rlax_llm.generation import draws as draws
from rlax_llm.generation import engine as engine
from rlax_llm.generation import enough as enough
from rlax_llm.generation import further as further
from rlax_llm.generation import histories as histories
from rlax_llm.generation import ladders as ladders
from rlax_llm.generation import mixture as mixture
from rlax_llm.generation import partial as partial
from rlax_llm.generation import patterns as patterns
from rlax_llm.generation import prompts as prompts
from rlax_llm.generation import reading as reading
from rlax_llm.generation import request as request
from rlax_llm.generation import rollout as rollout
from rlax_llm.generation import sampling as sampling
from rlax_llm.generation import served as served
from rlax_llm.generation import served_routes as served_routes
from rlax_llm.generation import server as server
from rlax_llm.generation import slots as slots
from rlax_llm.generation import speculation as speculation
from rlax_llm.generation import turns as turns
from rlax_llm.generation.engine import generate_at_once as generate_at_once
from rlax_llm.generation.further import begun_anew as begun_anew
from rlax_llm.generation.further import generate_further as generate_further
from rlax_llm.generation.further import goes_on as goes_on
from rlax_llm.generation.mixture import Two as Two
from rlax_llm.generation.mixture import generate_mixed as generate_mixed
from rlax_llm.generation.partial import generate_partly as generate_partly
from rlax_llm.generation.partial import not_begun as not_begun
from rlax_llm.generation.partial import unfinished as unfinished
from rlax_llm.generation.prompts import pad_prompts as pad_prompts
from rlax_llm.generation.request import Request as Request
from rlax_llm.generation.rollout import generate as generate
from rlax_llm.generation.rollout import stream as stream
from rlax_llm.generation.sampling import Categorical as Categorical
from rlax_llm.generation.sampling import Draw as Draw
from rlax_llm.generation.sampling import Sampler as Sampler
from rlax_llm.generation.sampling import greedy as greedy
from rlax_llm.generation.served import Served as Served
from rlax_llm.generation.server import Server as Server
from rlax_llm.generation.turns import Tool as Tool
from rlax_llm.generation.turns import calculator as calculator
from rlax_llm.generation.turns import with_tools as with_tools
