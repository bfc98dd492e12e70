from __future__ import annotations

import jax
import numpy as np
import pytest
from made_tokenizers import KINDS, metaspace

from rlax_llm.core.penalties import NONE, Penalties
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical, greedy, row_keys
from rlax_llm.generation.turns import Tool, calculate, calculator, first_call, with_tools
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs, row_log_probs
from rlax_llm.models.tokenizer import Tokenizer, fast_class

# Tags of one character each, so that a model of random weights calls the tool by itself.
FEW = Tokenizer.characters("12+[]{}")
SUM = Tool("sum", "[", "]", calculate)
GROUP, LIMIT = 8, 24
# Not a position more than the first turn needs: a later turn's batch of long and short rows is wider, no row is.
TINY = DecoderConfig(FEW.vocab_size, 16, 24, 1, 4, 2, 4, max_positions=8 + LIMIT)
PROMPTS = pad_prompts([FEW.encode(text) for text in ("1", "1+2", "2+[", "{1}22+11")], FEW.pad_id, FEW.vocab_size)
SAMPLERS = {
    "plain": Categorical(),
    "hot": Categorical(1.6, top_k=8, top_p=0.95),
    "penalties": Categorical(1.4, logit_bias=((5, 0.3),)),
}
PENALTIES = {"penalties": Penalties(1.2, 0.5, 0.3)}
TURNS = {"plain": 2, "hot": 3, "penalties": 2}


@pytest.fixture(scope="module")
def drawn():
    """What ``generate`` and the same with tools draw from one key, for each sampler."""
    params, key = decoder.init_decoder(TINY, jax.random.key(2)), jax.random.key(9)
    both = {}
    for name, sampler in SAMPLERS.items():
        request = Request(sampler, FEW.eos_ids, LIMIT, GROUP, penalties=PENALTIES.get(name, NONE))
        with_sums = with_tools(FEW, [SUM], TURNS[name], ("{", "}"))
        both[name] = (
            jax.device_get(generate(TINY, params, PROMPTS, key, request)),
            with_sums(TINY, params, PROMPTS, key, request),
        )
    return params, both


each = pytest.mark.parametrize("name", SAMPLERS)


def spans(mask: np.ndarray) -> int:
    """Runs of chosen tokens in a row: its turns."""
    return int((np.diff(mask.astype(int), prepend=0) == 1).sum())


@each
def test_the_learner_recomputes_every_turn(drawn, name):
    """Ratio 1 on all chosen tokens, behind a tool's answer as before it."""
    params, both = drawn
    completions, temperature = both[name][1], SAMPLERS[name].temperature
    given = (False, SAMPLERS[name].logit_bias, PENALTIES.get(name, NONE))
    log_probs, _ = jax.jit(group_log_probs(TINY, (GROUP, 8), temperature, *given))(params, completions)
    np.testing.assert_allclose(log_probs, completions.log_probs, rtol=0, atol=2e-5)
    if temperature == 1:
        log_probs, _ = jax.jit(row_log_probs(TINY))(params, completions)
        np.testing.assert_allclose(log_probs, completions.log_probs, rtol=0, atol=2e-5)
    turns = [spans(mask) for mask in completions.mask]
    assert turns.count(2) > 3
    assert max(turns) == TURNS[name]
    assert np.all(completions.log_probs[completions.mask] < 0)


@each
def test_the_conventions_of_completions_hold(drawn, name):
    plain, tools = drawn[1][name]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), plain) == jax.tree.map(lambda x: (x.shape, x.dtype), tools)
    for row in range(len(tools.tokens)):
        valid, mask = tools.valid[row, 8:], tools.mask[row, 8:]
        assert np.all(np.diff(valid.astype(int)) <= 0)
        assert not np.any(mask & ~valid)
        assert np.all(tools.tokens[row, 8:][~valid] == FEW.eos_ids[0])
        own = tools.tokens[row, 8:][mask]
        assert tools.truncated[row] == (own[-1] not in FEW.eos_ids)
        assert np.all(valid) or not tools.truncated[row]
        assert not np.any(np.isin(own[:-1], FEW.eos_ids))
    assert not tools.mask[:, :8].any()
    assert not np.any(tools.log_probs[~tools.mask])
    assert tools.kept is None or np.all(tools.kept[~tools.mask] == EVERY)
    np.testing.assert_array_equal(tools.tokens[:, :8], np.repeat(PROMPTS[0], GROUP, 0))


@each
def test_the_first_turn_is_what_generate_draws(drawn, name):
    """Token for token up to the call's end, and whole rows where nothing was called."""
    plain, tools = drawn[1][name]
    untouched = 0
    for row in range(len(tools.tokens)):
        own = plain.tokens[row, 8:][plain.mask[row, 8:]]
        # Not the same as the length of the text: the model may choose the padding token, which is no text.
        found = [end for end in range(len(own) + 1) if first_call(FEW.decode(own[:end]), [SUM])]
        if not found or found[0] == LIMIT:
            jax.tree.map(lambda one, other, row=row: np.testing.assert_array_equal(other[row], one[row]), plain, tools)
            untouched += 1
            continue
        end = 8 + found[0]
        for one, other in zip((*plain[:4], plain.kept), (*tools[:4], tools.kept), strict=True):
            if one is not None:
                np.testing.assert_array_equal(other[row, 8:end], one[row, 8:end])
        answer = SUM.answer(first_call(FEW.decode(own), [SUM])[1])
        read = FEW.encode("{" + "".join(c for c in answer if c in "12+[]{}") + "}")[: 8 + LIMIT - end]
        assert tools.tokens[row, end : end + len(read)].tolist() == read
        assert not tools.mask[row, end : end + len(read)].any()
        assert tools.valid[row, end : end + len(read)].all()
    assert 3 < untouched < len(tools.tokens)


def test_one_turn_is_generate_and_a_key_gives_the_same(drawn):
    params, both = drawn
    request = Request(SAMPLERS["plain"], FEW.eos_ids, LIMIT, GROUP)
    once = with_tools(FEW, [SUM], 1, ("{", "}"))(TINY, params, PROMPTS, jax.random.key(9), request)
    jax.tree.map(np.testing.assert_array_equal, once, both["plain"][0])
    again = with_tools(FEW, [SUM], TURNS["plain"], ("{", "}"))(TINY, params, PROMPTS, jax.random.key(9), request)
    jax.tree.map(np.testing.assert_array_equal, again, both["plain"][1])


# From here on a script takes the model's place: what is written is a function of the text so far.

TEXT = Tokenizer.characters("0123456789+-*/=<>abcdefghijklmnopqrstuvwxyz: ")
STOP = TEXT.eos_ids[0]
WORDS = DecoderConfig(TEXT.vocab_size, 8, 8, 1, 1, 1, 4, max_positions=400)


class Script:
    """``generate`` by heart: the continuation of each text; ``.`` is the stop token. Keeps what it was asked."""

    def __init__(self, *continuations: tuple[str, str], tokenizer: Tokenizer = TEXT):
        self.continuations, self.tokenizer = dict(continuations), tokenizer
        self.keys, self.shapes, self.least, self.limits = [], [], [], []

    def __call__(self, config, params, prompts, key, request, slots=None, limits=None):
        tokens, valid = (np.repeat(np.asarray(x), request.group_size, 0) for x in prompts)
        rows, width = tokens.shape
        columns = width + request.max_new_tokens
        assert columns <= config.max_positions
        self.keys.append(jax.random.key_data(key).tolist())
        self.shapes.append((rows, width, request.max_new_tokens, request.group_size))
        self.least.append(request.min_new_tokens)
        self.limits.append(limits)
        flags, numbers = np.zeros((2, rows, columns), bool), np.zeros((rows, columns), np.float32)
        padded = np.pad(tokens, ((0, 0), (0, columns - width)), constant_values=STOP)
        sets = np.full((rows, columns, 2), EVERY)
        out = Completions(padded, *flags, numbers, np.ones(rows, bool), sets)
        out.valid[:, :width] = valid
        for row in range(rows):
            text = self.continuations[self.tokenizer.decode(tokens[row][valid[row]])]
            ids = self.tokenizer.encode(text.removesuffix(".")) + [STOP] * text.endswith(".")
            end = width + min(len(ids), request.max_new_tokens)
            out.tokens[row, width:end] = ids[: end - width]
            out.valid[row, width:end] = out.mask[row, width:end] = True
            out.log_probs[row, width:end] = -1 - np.arange(width, end) / 100
            out.kept[row, width:end] = 5
            out.truncated[row] = STOP not in ids[: end - width]
        return out


def run(
    script: Script, texts: list[str], limit: int, max_turns: int = 4, group_size: int = 1, tools=(calculator,), least=0
):
    prompts = pad_prompts([script.tokenizer.encode(text) for text in texts], 0, WORDS.vocab_size)
    request = Request(greedy, (STOP,), limit, group_size, least)
    complete = with_tools(script.tokenizer, tools, max_turns, complete=script)
    return complete(WORDS, {}, prompts, jax.random.key(3), request), prompts[0].shape[1]


def texts(completions: Completions, width: int, row: int = 0) -> tuple[str, str]:
    """The whole completion, and the same with a ``_`` for every token that the model did not choose."""
    tokens, valid, mask = (x[row, width:] for x in completions[:3])
    letters = [TEXT.decode([token]) or "." for token in tokens[valid]]
    return "".join(letters), "".join(letter if own else "_" for letter, own in zip(letters, mask[valid]))


CALL, ANSWER = "so <calc>12*3</calc>", "<result>36</result>"


def test_a_call_is_cut_answered_and_read():
    script = Script(("q", CALL + " is thirty or so and the text goes on and on."), ("q" + CALL + ANSWER, " it is 36."))
    completions, width = run(script, ["q"], 80)
    whole, chosen = texts(completions, width)
    assert whole == CALL + ANSWER + " it is 36."
    assert chosen == CALL + "_" * len(ANSWER) + " it is 36."
    assert not completions.truncated[0]
    end, behind = width + len(CALL), width + len(CALL + ANSWER)
    assert np.all(completions.log_probs[0, width:end] == np.float32(-1 - np.arange(width, end) / 100))
    assert np.all(completions.log_probs[0, end:behind] == 0)
    assert np.all(completions.kept[0, end:behind] == EVERY)
    assert np.all(completions.log_probs[0, behind : behind + 10] < -1)
    assert np.all(completions.kept[0, behind : behind + 10] == 5)
    assert np.all(completions.tokens[0, behind + 11 :] == STOP)
    assert np.all(completions.log_probs[0, behind + 11 :] == 0)
    assert np.all(completions.kept[0, behind + 11 :] == EVERY)


@pytest.mark.parametrize(("least", "later"), [(0, 0), (7, 7), (60, 30)])
def test_a_minimum_of_new_tokens_is_of_each_turn_as_far_as_there_is_room(least, later):
    script = Script(("q", CALL), ("q" + CALL + ANSWER, "."))
    run(script, ["q"], 60, least=least)
    assert script.least == [least, later]


@pytest.mark.parametrize(
    "text",
    ["no call.", "<calc>1+1.", "1+1</calc>.", "<calc>1+<calc>2</calc></calc>.", "<calc>1</cal c>."]
    + ["<calc>1+1</find>.", "<find>1+<calc>1</calc></find>."],
)
def test_text_without_a_complete_call_is_left_alone(text):
    script = Script(("q", text))
    find = Tool("find", "<find>", "</find>", str.upper)
    completions, _ = run(script, ["q"], 60, tools=(calculator, find))
    alone = Script(("q", text))
    prompts = pad_prompts([TEXT.encode("q")], 0, WORDS.vocab_size)
    expected = alone(WORDS, {}, prompts, jax.random.key(3), Request(greedy, (STOP,), 60))
    jax.tree.map(np.testing.assert_array_equal, completions, expected)
    assert len(script.shapes) == 1


def test_a_call_behind_an_odd_one_is_answered():
    first = "<calc>1+<calc>2</calc></calc> so <calc>1+2</calc>"
    completions, width = run(Script(("q", first), ("q" + first + "<result>3</result>", ".")), ["q"], 90)
    assert texts(completions, width)[0] == first + "<result>3</result>."


def fails(text: str) -> str:
    raise RuntimeError(f"cannot do {text}\nand more")


def nameless(text: str) -> str:
    raise KeyboardInterrupt if text == "stop" else LookupError


@pytest.mark.parametrize(
    ("call", "text", "read"),
    [
        (calculate, "1/0", "error: division by zero"),
        (calculate, "import os", "error: not an arithmetic expression"),
        (fails, "this", "error: cannot do this"),
        (nameless, "x", "error: ookuprror"),  # an alphabet without capitals
        (lambda text: 7, "x", "7"),
        (lambda text: "ok ÜÖ!", "x", "ok "),
        (lambda text: "", "x", ""),
    ],
)
def test_whatever_a_tool_does_the_model_reads_text(call, text, read):
    first, answer = f"<calc>{text}</calc>", f"<result>{read}</result>"
    tool = Tool("odd", "<calc>", "</calc>", call)
    completions, width = run(Script(("q", first), ("q" + first + answer, ".")), ["q"], 90, tools=(tool,))
    assert texts(completions, width) == (first + answer + ".", first + "_" * len(answer) + ".")


def test_who_stops_the_program_stops_it():
    with pytest.raises(KeyboardInterrupt):
        run(Script(("q", "<calc>stop</calc>")), ["q"], 60, tools=(Tool("odd", "<calc>", "</calc>", nameless),))


def several(turns: int) -> tuple[Script, str]:
    """A row that calls in each of ``turns`` turns and then stops, and all of its text."""
    continuations, text = [], ""
    for turn in range(turns):
        call = f"<calc>{turn}+1</calc>"
        continuations.append(("q" + text, call + "<calc>"))
        text += call + f"<result>{turn + 1}</result>"
    return Script(*continuations, ("q" + text, ".")), text + "."


def test_several_turns_each_with_a_key_of_its_own():
    script, text = several(3)
    completions, width = run(script, ["q"], 150)
    assert texts(completions, width)[0] == text
    assert spans(completions.mask[0]) == len(script.keys) == 4
    assert not completions.truncated[0]
    row = row_keys(jax.random.key(3), 1)[0]
    drawn_with = {tuple(jax.random.key_data(jax.random.fold_in(row, i)).tolist()) for i in range(150)}
    assert script.keys[0] == jax.random.key_data(row)[None].tolist()
    assert len({tuple(keys[0]) for keys in script.keys} - drawn_with) == 4


def test_a_row_has_the_keys_and_the_room_that_it_would_have_alone():
    """The first row answers at once; what the second draws with depends on it in no turn."""
    long, text = several(2)
    short = {"p": "."}
    script = Script(*short.items(), *long.continuations.items())
    together, width = run(script, ["p", "q"], 150)
    assert texts(together, width, 1)[0] == text
    of_rows = jax.random.key_data(row_keys(jax.random.key(3), 2)).tolist()
    assert script.keys[0] == of_rows
    later = jax.random.fold_in(row_keys(jax.random.key(3), 2)[1], 151)
    assert script.keys[1][0] == jax.random.key_data(later).tolist()
    assert script.limits[1][0] == 150 - len("<calc>0+1</calc><result>1</result>")


def test_in_the_last_turn_a_call_stays_text():
    completions, width = run(several(3)[0], ["q"], 150, max_turns=2)
    first = "<calc>0+1</calc><result>1</result>"
    assert texts(completions, width)[0] == first + "<calc>1+1</calc><calc>"
    assert completions.truncated[0]  # as the script says


@pytest.mark.parametrize("room", range(-4, 5))
def test_the_limit_holds_wherever_it_falls(room):
    """``room`` tokens behind the call, then behind its answer."""
    script = Script(("q", CALL + "x."), ("q" + CALL + ANSWER, "ab."))
    limit = len(CALL) + room
    completions, width = run(script, ["q"], limit)
    assert texts(completions, width)[0] == (CALL + ANSWER)[:limit]
    assert completions.truncated[0]
    assert completions.mask[0].sum() == min(limit, len(CALL))
    limit = len(CALL + ANSWER) + room
    completions, width = run(script, ["q"], limit)
    assert texts(completions, width)[0] == (CALL + ANSWER + "ab.")[:limit]
    assert completions.truncated[0] == (room < 3)
    assert completions.tokens.shape == (1, width + limit)


def test_a_tool_is_not_called_where_no_answer_fits():
    asked = []
    tool = Tool("kept", "<calc>", "</calc>", lambda text: asked.append(text) or "36")
    for room in (-1, 0, 1):
        run(Script(("q", CALL + "x.")), ["q"], len(CALL) + room, tools=(tool,))
    assert asked == ["12*3"]


def test_rows_of_a_batch_go_their_own_ways():
    """Two prompts in groups of two; a row that is done is not asked again."""
    long = "<calc>2*2</calc>"
    script = Script(
        ("a", "no."),
        ("bcdefghijk", "ab" + long + "cut"),
        ("bcdefghijkab" + long + "<result>4</result>", "four" + long),
        ("bcdefghijkab" + long + "<result>4</result>four" + long + "<result>4</result>", " again four."),
    )
    completions, width = run(script, ["a", "bcdefghijk"], 80, group_size=2)
    assert [texts(completions, width, row)[0] for row in range(2)] == ["no."] * 2
    whole = "ab" + long + "<result>4</result>four" + long + "<result>4</result> again"
    assert [texts(completions, width, row)[0] for row in (2, 3)] == [(whole + " four.")[:80]] * 2
    assert completions.truncated.tolist() == [False, False, True, True]
    assert script.shapes == [(4, 12, 80, 2), (4, 48, 60, 1), (4, 96, 20, 1)]


def test_later_turns_come_in_few_shapes():
    """Batches by halves to 8, limits in quarters, rows written back where they belong."""
    names = "abcdefghijklmnopqrstuvwxyz012345"
    continuations = [("x" + name, f"<calc>{i}+1</calc>" if i % 4 == 0 else ".") for i, name in enumerate(names)]
    continuations += [
        (f"x{name}<calc>{i}+1</calc><result>{i + 1}</result>", f" {i + 1}.") for i, name in enumerate(names)
    ]
    script = Script(*continuations)
    completions, width = run(script, ["x" + name for name in names], 100)
    assert script.shapes == [(32, 8, 100, 1), (8, 48, 75, 1)]
    for i in range(32):
        expected = f"<calc>{i}+1</calc><result>{i + 1}</result> {i + 1}." if i % 4 == 0 else "."
        assert texts(completions, width, i)[0] == expected
    assert not completions.truncated.any()


def test_two_tools():
    find = Tool("find", "<find>", "</find>", lambda text: text[::-1])
    first, second = "<find>abc</find>", "<calc>1+1</calc>"
    script = Script(
        ("q", first + second),
        ("q" + first + "<result>cba</result>", second + first),
        ("q" + first + "<result>cba</result>" + second + "<result>2</result>", "."),
    )
    completions, width = run(script, ["q"], 150, tools=(calculator, find))
    assert texts(completions, width)[0] == f"{first}<result>cba</result>{second}<result>2</result>."


def pairs() -> Tokenizer:
    """Bytes, and one token for ``>!`` and for each half of a tag."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(">", "!"), ("<", "c"), ("<", "/"), ("</", "c")]
    vocabulary = ["<|pad|>", "<|eos|>", *letters, *("".join(pair) for pair in merges)]
    backend = Backend(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(fast_class()(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|eos|>"))


def test_tokens_that_cross_a_tag_are_kept_as_they_were_drawn():
    """The cut is behind the token that ends the call; characters of several tokens stand before it."""
    tokenizer = pairs()
    tool = Tool("mark", "<c>", "</c>", lambda text: f"{text}é")
    script = Script(("q", "ü<c>é</c>! and <c>x</c>"), ("qü<c>é</c>!<result>éé</result>", "é."), tokenizer=tokenizer)
    prompts = pad_prompts([tokenizer.encode("q")], 0, tokenizer.vocab_size)
    config = DecoderConfig(tokenizer.vocab_size, 8, 8, 1, 1, 1, 4)
    complete = with_tools(tokenizer, [tool], 3, complete=script)
    completions = complete(config, {}, prompts, jax.random.key(0), Request(greedy, (STOP,), 60))
    own = completions.tokens[0, 8:][completions.mask[0, 8:]]
    assert own.tolist() == [*tokenizer.encode("ü<c>é</c>!"), *tokenizer.encode("é"), STOP]
    assert tokenizer.vocabulary()[">!"] in own
    assert tokenizer.decode(completions.tokens[0, 8:][completions.valid[0, 8:]]) == "ü<c>é</c>!<result>éé</result>é"


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_no_blank_before_it_that_nobody_wrote(kind):
    """Tokenizers of SentencePiece's make put one before a text; here the answer stands inside of one."""
    tokenizer = metaspace(kind)
    script = Script(("two", "<c>yes</c>"), ("two <c>yes</c><r>yes</r>", "is."), tokenizer=tokenizer)
    complete = with_tools(tokenizer, [Tool("same", "<c>", "</c>", str)], 2, ("<r>", "</r>"), complete=script)
    config = DecoderConfig(tokenizer.vocab_size, 8, 8, 1, 1, 1, 4)
    prompts = pad_prompts([tokenizer.encode("two")], 0, tokenizer.vocab_size)
    completions = complete(config, {}, prompts, jax.random.key(0), Request(greedy, (STOP,), 60))
    read = completions.valid[0] & ~completions.mask[0]
    assert tokenizer.decode(completions.tokens[0][read]) == "two<r>yes</r>"


def tag(opening: str, closing: str) -> Tool:
    return Tool("odd", opening, closing, str)


@pytest.mark.parametrize(
    ("tools", "max_turns", "tags", "message"),
    [
        ([SUM], 0, ("{", "}"), "with_tools: max_turns is 0, wanted a whole number of at least 1."),
        ([], 2, ("{", "}"), "with_tools: no tool was given; give at least one, or use generate."),
        ([calculator], 2, ("{", "}"), "Tokenizer.encode: '<' at position 0 is not in the alphabet '12+[]{}'; add it"),
        ([calculator], 2, ("{", "}"), "with_tools: the model cannot write the tag '<calc>' of calculator; choose"),
        ([SUM], 2, ("<", ">"), "Tokenizer.encode: '<' at position 0 is not in the alphabet '12+[]{}'; add it"),
        ([tag("[", "[")], 2, ("{", "}"), "with_tools: the tag '[' of odd is inside '[' of odd; choose tags that are"),
        ([SUM, tag("[[", "1")], 2, ("{", "}"), "with_tools: the tag '[' of sum is inside '[[' of odd; choose tags"),
        ([tag("", "]")], 2, ("{", "}"), "with_tools: the tag '' of odd reads '' once encoded and decoded, wanted text"),
    ],
)
def test_errors(tools, max_turns, tags, message):
    with pytest.raises(ValueError) as caught:
        with_tools(FEW, tools, max_turns, tags)
    assert message in str(caught.value)


def test_a_special_token_is_no_tag():
    with pytest.raises(ValueError, match=r"the tag '<\|eos\|>' of odd reads '' once encoded"):
        with_tools(pairs(), [tag("<c>", "<|eos|>")], 2)
