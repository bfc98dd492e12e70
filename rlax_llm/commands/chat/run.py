"""The command ``chat`` as a function of its settings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import jax

from rlax_llm.commands.chat.settings import ChatSettings, TurnSettings
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.setup import build_model, build_request
from rlax_llm.commands.streaming import answer_pieces, padded_and_request
from rlax_llm.core.names import did_you_mean
from rlax_llm.core.processes import several
from rlax_llm.data.messages import Message
from rlax_llm.host.progress import say
from rlax_llm.models.loading import LanguageModel

_WORDS = {
    "/new": "forget the conversation",
    "/again": "draw the last answer anew",
    "/exit": "leave, as Ctrl-D does",
    "/help": "these words",
}


@on_machine
def run_chat(settings: ChatSettings) -> list[Message]:
    """Read lines and print answers until the lines end; Ctrl-C ends an answer that is being drawn.

    Args:
        settings: of the command.

    Returns:
        The conversation.

    Raises:
        ValueError: several processes, of which one alone has a terminal.
    """
    if several():
        raise ValueError("chat: there are several processes, wanted one; a terminal belongs to one of them.")
    model = build_model("chat", settings.model, settings.run.seed)
    chat = Chat(model, settings.sampling, settings.conversation.system, jax.random.key(settings.run.seed))
    if not model.tokenizer.has_chat_template:
        say(f"{settings.model.model} has no chat template: each line is a text that it goes on with, alone.")
    if sys.stdin.isatty():
        say(f"Talk with {settings.model.model}; Ctrl-C ends an answer, /help lists the words that begin with /.")
    for line in _lines():
        if line == "/exit":
            break
        if line.startswith("/"):
            _do(chat, line)
        else:
            chat.say(line)
    return chat.messages


def _lines() -> Iterator[str]:
    """Lines that say something, until there are no more."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, input() then knows earlier lines and arrow keys
    while True:
        try:
            line = input("> " if on_terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            # At the prompt as in a shell: the line is given up.
            print()
            continue
        if line:
            if not on_terminal:
                say(f"> {line}")
            yield line


def _do(chat: Chat, word: str) -> None:
    if word == "/new":
        chat.begin()
        say("The conversation is forgotten.")
    elif word == "/again":
        chat.again()
    elif word == "/help":
        say("\n".join(f"{name:<7} {what}" for name, what in _WORDS.items()))
    else:
        say(f"There is no word {word}{did_you_mean(word, _WORDS, '; /help lists them.')}")


class Chat:
    """A conversation with a model.

    Args:
        model: that answers.
        sampling: of its answers.
        system: text of the system's message, or None.
        key: of the draws.

    Attributes:
        messages: what was said.
    """

    def __init__(self, model: LanguageModel, sampling: TurnSettings, system: str | None, key: jax.Array):
        self.model, self.sampling, self.key = model, sampling, key
        vocabulary = model.config.vocab_size
        self._request = build_request(sampling, model.tokenizer, vocabulary, sampling.max_new_tokens)
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._drawn = 0
        self.messages: list[Message] = []
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        self.messages = list(self._system)

    def say(self, text: str) -> None:
        """Say a text, and print the answer as it is drawn.

        Args:
            text: of the user.
        """
        self.messages.append({"role": "user", "content": text})
        self._answer()

    def again(self) -> None:
        """Draw the last answer anew."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            say("There is no answer yet.")
            return
        self._answer()

    def _answer(self) -> None:
        ids = self._ids()
        if ids is None:
            return
        prompts, request = padded_and_request(self.model, ids, self._request)
        key = jax.random.fold_in(self.key, self._drawn)
        self._drawn += 1
        text, open_end = "", False
        try:
            for grown in answer_pieces(self.model, prompts, key, request, self.sampling.stops):
                print(grown.pieces[0], end="", flush=True)
                text, open_end = text + grown.pieces[0], grown.alive[0]
            print(f" … (cut at {request.max_new_tokens} tokens)" if open_end else "")
        except KeyboardInterrupt:
            print(" … (ended)")
        self.messages.append({"role": "assistant", "content": text})

    def _ids(self) -> list[int] | None:
        """The prompt's tokens, without the oldest turns where it is too long; None where the last alone cannot be."""
        longest = self.model.config.max_positions // 2
        first = len(self._system)
        try:
            # Alone first, so that no turn is given up for one that cannot be said.
            alone = self._encoded([*self._system, self.messages[-1]])
        except ValueError as error:
            say(f"That cannot be read: {error}")
            self.messages.pop()
            return None
        if len(alone) > longest:
            say(f"That has {len(alone)} tokens, more than the {longest} that the model reads here; say it in fewer.")
            self.messages.pop()
            return None
        while len(ids := self._encoded(self.messages)) > longest:
            del self.messages[first : first + 2]
            say("(The oldest turn is left out: the conversation is longer than the model reads.)")
        return ids

    def _encoded(self, messages: list[Message]) -> list[int]:
        tokenizer = self.model.tokenizer
        return tokenizer.encode_prompt(messages if tokenizer.has_chat_template else str(messages[-1]["content"]))
