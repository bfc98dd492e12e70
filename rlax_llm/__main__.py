"""``python -m rlax_llm COMMAND`` is ``rlax-llm COMMAND``."""

import sys

from rlax_llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
