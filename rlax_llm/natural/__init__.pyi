"""Natural gradients on pytrees: Fisher products, conjugate gradients, TRPO; imports ``policy`` and below."""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.natural import fisher as fisher
from rlax_llm.natural import trpo as trpo
from rlax_llm.natural.fisher import Direction as Direction
from rlax_llm.natural.fisher import DirectionRule as DirectionRule
from rlax_llm.natural.fisher import Linearize as Linearize
from rlax_llm.natural.fisher import Matvec as Matvec
from rlax_llm.natural.fisher import Solution as Solution
from rlax_llm.natural.fisher import add_damping as add_damping
from rlax_llm.natural.fisher import conjugate_gradient as conjugate_gradient
from rlax_llm.natural.fisher import fisher_vector_product as fisher_vector_product
from rlax_llm.natural.fisher import linearize_by_reverse as linearize_by_reverse
from rlax_llm.natural.fisher import natural_direction as natural_direction
from rlax_llm.natural.fisher import natural_gradient as natural_gradient
from rlax_llm.natural.trpo import Accept as Accept
from rlax_llm.natural.trpo import NaturalStep as NaturalStep
from rlax_llm.natural.trpo import Problem as Problem
from rlax_llm.natural.trpo import Search as Search
from rlax_llm.natural.trpo import SearchRule as SearchRule
from rlax_llm.natural.trpo import Trial as Trial
from rlax_llm.natural.trpo import backtracking_search as backtracking_search
from rlax_llm.natural.trpo import full_step as full_step
from rlax_llm.natural.trpo import improves_within as improves_within
from rlax_llm.natural.trpo import line_search as line_search
from rlax_llm.natural.trpo import policy_problem as policy_problem
from rlax_llm.natural.trpo import trpo_step as trpo_step
