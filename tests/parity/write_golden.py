"""Write the golden files of the plain tests from the live peers. Run in the environment of `make parity`:

PYTHONPATH=tests python tests/parity/write_golden.py
"""

import json
from pathlib import Path

import jax
import test_trl_policy
import test_trl_preferences
import trl_policy_cases
import trl_preference_cases


def write(file: Path, cases: dict) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        json.dumps({k: {"loss": v, "gradient": g.tolist()} for k, (v, g) in cases.items()}, indent=1) + "\n"
    )


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    policies = {
        trl_policy_cases.key_of(name, empty_row): test_trl_policy.computed(name, empty_row)
        for name in trl_policy_cases.CASES
        for empty_row in (False, True)
    }
    preferences = {name: test_trl_preferences.computed(name, 0) for name in trl_preference_cases.DPO}
    write(trl_policy_cases.GOLDEN, policies)
    write(trl_preference_cases.GOLDEN, preferences)


if __name__ == "__main__":
    main()
