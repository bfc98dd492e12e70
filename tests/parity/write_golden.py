"""Write the golden files of the plain tests from the live peers. Run in the environment of `make parity`:

PYTHONPATH=tests python tests/parity/write_golden.py
"""

import json

from test_trl_policy import computed
from trl_policy_cases import CASES, GOLDEN, key_of


def main() -> None:
    cases = {}
    for name in CASES:
        for empty_row in (False, True):
            loss, gradient = computed(name, empty_row)
            cases[key_of(name, empty_row)] = {"loss": loss, "gradient": gradient.tolist()}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
