from __future__ import annotations

import numpy as np
import pytest

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.train.rollouts import Sampling, demonstrations

TOKENIZER = Tokenizer.characters("0123456789+=")
SAMPLING = Sampling(DecoderConfig(14, 16, 24, 1, 4, 2, 4), TOKENIZER, 8)


def test_completions_end_in_a_stop_token_within_columns_of_one_width():
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "90+10=", "completion": "100"}]
    batch = demonstrations(SAMPLING, rows, 6)
    assert batch.tokens.shape == (2, 8 + 6)
    for row, tokens, mask, valid in zip(
        rows, batch.tokens, np.asarray(batch.mask), np.asarray(batch.valid), strict=True
    ):
        assert TOKENIZER.decode(tokens[mask], skip_special=False) == row["completion"] + "<|eos|>"
        assert TOKENIZER.decode(tokens[valid]) == row["prompt"] + row["completion"]
        assert mask[8]
        assert not mask[:8].any()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1"}, "row 1 has no column 'completion'; supervised training needs one."),
        (
            {"prompt": "1", "completion": "1234"},
            "row 1 has a completion of more than 4 tokens; raise the limit, or leave the row out.",
        ),
        (
            {"prompt": "1+1=11111", "completion": "1"},
            "row 1 has a prompt of more than 8 tokens; raise the limit, or leave the row out.",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(row, said):
    with pytest.raises(ValueError, match="demonstrations") as caught:
        demonstrations(SAMPLING, [{"prompt": "1", "completion": "1"}, row], 4)
    assert str(caught.value) == f"demonstrations: {said}"
