"""From tables and tasks to rows of tokens; imports ``models``, ``rewards``, ``preference`` and ``core``.

What cannot be used is left out, counted and named.
"""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.data import arithmetic as arithmetic
from rlax_llm.data import batches as batches
from rlax_llm.data import conversations as conversations
from rlax_llm.data import encoding as encoding
from rlax_llm.data import gym as gym
from rlax_llm.data import integers as integers
from rlax_llm.data import jsonl as jsonl
from rlax_llm.data import limits as limits
from rlax_llm.data import messages as messages
from rlax_llm.data import packing as packing
from rlax_llm.data import preferences as preferences
from rlax_llm.data import repeated as repeated
from rlax_llm.data import rows as rows
from rlax_llm.data import shapes as shapes
from rlax_llm.data import sifting as sifting
from rlax_llm.data import tables as tables
from rlax_llm.data import tasks as tasks
from rlax_llm.data import teacher_rows as teacher_rows
from rlax_llm.data.arithmetic import Problems as Problems
from rlax_llm.data.arithmetic import digit_rows as digit_rows
from rlax_llm.data.arithmetic import word_rows as word_rows
from rlax_llm.data.batches import demonstration_rows as demonstration_rows
from rlax_llm.data.batches import labeled_rows as labeled_rows
from rlax_llm.data.batches import pair_rows as pair_rows
from rlax_llm.data.batches import stepwise_rows as stepwise_rows
from rlax_llm.data.encoding import encode_demonstrations as encode_demonstrations
from rlax_llm.data.encoding import encode_labeled as encode_labeled
from rlax_llm.data.encoding import encode_pairs as encode_pairs
from rlax_llm.data.encoding import encode_stepwise as encode_stepwise
from rlax_llm.data.jsonl import read_rows as read_rows
from rlax_llm.data.packing import pack as pack
from rlax_llm.data.preferences import Demonstration as Demonstration
from rlax_llm.data.preferences import Labeled as Labeled
from rlax_llm.data.preferences import Pair as Pair
from rlax_llm.data.preferences import Stepwise as Stepwise
from rlax_llm.data.preferences import read_demonstrations as read_demonstrations
from rlax_llm.data.preferences import read_labeled as read_labeled
from rlax_llm.data.preferences import read_pairs as read_pairs
from rlax_llm.data.preferences import read_stepwise as read_stepwise
from rlax_llm.data.rows import DataError as DataError
from rlax_llm.data.rows import batch_indices as batch_indices
from rlax_llm.data.rows import split_rows as split_rows
from rlax_llm.data.tasks import Task as Task
from rlax_llm.data.tasks import file_task as file_task
from rlax_llm.data.tasks import load_task as load_task
