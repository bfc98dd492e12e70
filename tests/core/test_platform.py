"""What programs are made for: this machine, or a named platform, which no compilation of another one serves."""

import jax
import pytest

from rlax_llm.core.platform import platform, targeting


def test_a_program_is_traced_again_for_each_platform():
    traced = []

    @jax.jit
    def program(x):
        traced.append(platform())
        return x + 1

    program(1.0)
    with targeting("tpu"):
        jax.eval_shape(program, 1.0)
        with targeting("gpu"):
            jax.eval_shape(program, 1.0)
        jax.eval_shape(program, 1.0)
    program(1.0)
    assert traced == [jax.default_backend(), "tpu", "gpu"]


def test_an_unknown_platform_is_told():
    with pytest.raises(ValueError, match="'tpus' is unknown; did you mean 'tpu'"):
        targeting("tpus")
