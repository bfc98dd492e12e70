"""Pages that are printed from the objects are up to date."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_algorithms_is_what_its_script_prints():
    page = runpy.run_path(str(DOCS / "print_algorithms.py"))["page"]()
    assert (DOCS / "algorithms.md").read_text(encoding="utf-8") == page, "run docs/print_algorithms.py again"


def test_the_page_of_the_doctor_is_what_its_script_prints():
    page = runpy.run_path(str(DOCS / "print_diagnoses.py"))["page"]()
    assert (DOCS / "guides" / "doctor.md").read_text(encoding="utf-8") == page, "run docs/print_diagnoses.py again"


def test_the_page_of_the_families_is_what_its_script_prints():
    page = runpy.run_path(str(DOCS / "print_families.py"))["page"]()
    assert (DOCS / "families.md").read_text(encoding="utf-8") == page, "run docs/print_families.py again"


def test_the_stubs_are_what_their_script_writes():
    script = runpy.run_path(str(DOCS / "write_stubs.py"))
    faces = script["faces"]()
    assert len(faces) > 10
    for face in faces:
        assert script["place"](face).read_text(encoding="utf-8") == script["stub"](face), (
            f"{face.__name__}: run docs/write_stubs.py again"
        )


def test_the_page_on_scaling_holds_the_plans_that_are_written_down():
    script = runpy.run_path(str(DOCS.parent / "benchmarks" / "plans.py"))
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert page == script["page"](), "run benchmarks/plans.py --table again"
    plans = json.loads(script["FILE"].read_text(encoding="utf-8"))
    assert plans.keys() >= {"0.6b", "1.7b-lora", "8b", "70b-lora", "70b"}
    assert all(plan["fits"] for plan in plans.values())
