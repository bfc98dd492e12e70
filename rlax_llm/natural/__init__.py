"""Natural gradients on pytrees: Fisher products, conjugate gradients, TRPO; imports ``policy`` and below."""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "fisher": (
            "Direction",
            "DirectionRule",
            "Linearize",
            "Matvec",
            "Solution",
            "add_damping",
            "conjugate_gradient",
            "fisher_vector_product",
            "linearize_by_reverse",
            "natural_direction",
            "natural_gradient",
        ),
        "trpo": (
            "Accept",
            "NaturalStep",
            "Problem",
            "Search",
            "SearchRule",
            "Trial",
            "backtracking_search",
            "full_step",
            "improves_within",
            "line_search",
            "policy_problem",
            "trpo_step",
        ),
    },
)
