"""The settings of a foreign sampler: a server that draws the completions, and how it comes by the weights."""

from __future__ import annotations

from dataclasses import dataclass

from rlax_llm.commands.fields import Part, above_zero, at_least, option


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Part):
    """A server that draws the completions, instead of this program."""

    sampler_url: str | None = option(
        None,
        "Server that draws the completions instead: OpenAI's completions API with token ids and log-probabilities, as "
        "of vLLM and SGLang. --correction makes up for what its numbers differ by. With --resume it may be another.",
        "none",
        "URL",
    )
    sampler_every: int = option(1, "Steps after which the server is given the weights; each evaluation gives them too.")
    sampler_reload: str | None = option(
        None,
        "Command that makes the server read the weights in the directory {path}, for a server whose own way is not "
        "known. It is run by the shell, as config.yaml has it.",
        "what vLLM (with VLLM_SERVER_DEV_MODE=1) and SGLang have for it",
        "COMMAND",
    )
    sampler_directory: str | None = option(
        None,
        "Directory that the weights are written to, as a Hugging Face model; the server must see it by the same name.",
        "a temporary one",
        "DIR",
    )
    sampler_timeout: float = option(600.0, "Seconds that the server may take for an answer.")

    def check(self) -> None:
        """Check the ranges, and that there is a server to set up."""
        at_least(self, 1, "sampler_every")
        above_zero(self, "sampler_timeout")
        if self.sampler_url is not None:
            self._check_server(self.sampler_url)
            return
        plain = {"sampler_every": 1, "sampler_reload": None, "sampler_directory": None, "sampler_timeout": 600.0}
        for name, unused in plain.items():
            if getattr(self, name) != unused:
                raise ValueError(f"{name} is given without sampler_url; give both.")

    def _check_server(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"sampler_url is {url!r}, wanted the address of a server, as http://localhost:8000.")
        if self.sampler_reload is not None and "{path}" not in self.sampler_reload:
            raise ValueError(f"sampler_reload is {self.sampler_reload!r}, wanted a command with {{path}} in it.")
