"""From texts to scores: reward functions, how they are called, what an answer means; imports ``core``."""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.rewards import calling as calling
from rlax_llm.rewards import comparing as comparing
from rlax_llm.rewards import final_answer as final_answer
from rlax_llm.rewards import functions as functions
from rlax_llm.rewards import golds as golds
from rlax_llm.rewards import loading as loading
from rlax_llm.rewards import mathematics as mathematics
from rlax_llm.rewards import measures as measures
from rlax_llm.rewards import notation as notation
from rlax_llm.rewards import pool as pool
from rlax_llm.rewards import readings as readings
from rlax_llm.rewards import steps as steps
from rlax_llm.rewards import units as units
from rlax_llm.rewards import voting as voting
from rlax_llm.rewards.calling import Batch as Batch
from rlax_llm.rewards.calling import Reward as Reward
from rlax_llm.rewards.calling import RewardError as RewardError
from rlax_llm.rewards.calling import Scores as Scores
from rlax_llm.rewards.calling import score as score
from rlax_llm.rewards.functions import exact_answer as exact_answer
from rlax_llm.rewards.functions import format_match as format_match
from rlax_llm.rewards.functions import integer_answer as integer_answer
from rlax_llm.rewards.functions import repetition as repetition
from rlax_llm.rewards.functions import word_limit as word_limit
from rlax_llm.rewards.loading import load_reward as load_reward
from rlax_llm.rewards.loading import load_rewards as load_rewards
from rlax_llm.rewards.mathematics import math_answer as math_answer
from rlax_llm.rewards.measures import best_of_k as best_of_k
from rlax_llm.rewards.measures import difference_interval as difference_interval
from rlax_llm.rewards.measures import majority as majority
from rlax_llm.rewards.measures import mean_interval as mean_interval
from rlax_llm.rewards.measures import share_interval as share_interval
from rlax_llm.rewards.measures import sign_flip_test as sign_flip_test
from rlax_llm.rewards.pool import RewardPool as RewardPool
