"""Who answers as a judge: a server that speaks OpenAI's chat protocol, or a model loaded here."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from recipes.lib.config.fields import Field
from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.config.values import MismatchError, coerce
from recipes.lib.data.prompts import context_length
from recipes.lib.errors import UserError, one_sentence
from recipes.lib.models.folders import resolve_model
from recipes.lib.models.policies import load_policy
from recipes.lib.models.tokenizers import load_tokenizer

RUBRIC = (
    "Judge how well the completion does what the prompt asks for: whether it is correct, helpful "
    "and to the point. Its length is no merit."
)
BACKOFF = 1.0  # seconds before a request is sent again, doubled each time
LONGEST = 600.0  # seconds that a server may ask to wait
TRANSIENT = (408, 429)  # and everything from 500 on
LINE_TOKENS = 8  # of a verdict whose line a loaded model has begun
Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The keys of a judge's file.

    Args:
        model: Its name on the server; without a server a run, folder or Hub id.
        endpoint: Address of the server, up to and with /v1.
        rubric: What is good, in words.
        scale: Lowest and highest score.
        temperature: Of a server's sampling; 0 is greedy.
        max_tokens: Longest answer of a server.
        api_key_variable: Environment variable with the key of the server.
        price_in: Of a million tokens that it reads.
        price_out: Of a million tokens that it writes.
        cache: Folder of verdicts.
        retries: How often a request is sent again that was lost, refused for its number, or met a
            fault of the server: after 1, 2, 4 ... seconds, or when the server says.
        reasks: How often the judge is asked again whose answer has no verdict.
        max_unparsable: Share of questions without a verdict above which the run stops.
        unparsable_score: What a completion without a verdict gets; None for no reward.
        concurrency: Requests at a time.
        timeout: Seconds that a request may take.
        batch_size: Questions at a time of a loaded model.
        dtype: Of a loaded model.
    """

    model: str
    endpoint: str | None = None
    rubric: str = RUBRIC
    scale: tuple[float, float] = (1, 10)
    temperature: float = 0.0
    max_tokens: int = 512
    api_key_variable: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    cache: str = "runs/judge_cache"
    retries: int = 5
    reasks: int = 1
    max_unparsable: float = 0.1
    unparsable_score: float | None = None
    concurrency: int = 8
    timeout: float = 60.0
    batch_size: int = 8
    dtype: str = "auto"


def read_settings(name: str) -> JudgeSettings:
    """Read a judge's file.

    Args:
        name: Its path.

    Returns:
        Its keys, checked.

    Raises:
        UserError: It is not there, or a key or value is wrong.
    """
    if not Path(name).is_file():
        raise UserError(f"{name}: there is no such judge; write the file as docs/rewards.md says.")
    try:
        field = Field(name, JudgeSettings, None, True, None)
        settings = JudgeSettings(**coerce(field, read_yaml(Path(name)).values))
    except MismatchError as error:
        raise UserError(f"{name} {error}.") from error
    low, high = settings.scale
    endpoint, variable = settings.endpoint, settings.api_key_variable
    if low >= high:
        raise UserError(f"{name}: scale=[{low:g}, {high:g}]: give the lower score first.")
    if endpoint is None and (settings.temperature or variable):
        raise UserError(
            f"{name}: temperature and api_key_variable are a server's; give endpoint, or leave "
            "them out."
        )
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise UserError(f"{name}: endpoint={endpoint} is no address; begin with https://.")
    if variable and not os.environ.get(variable):
        raise UserError(f"{name}: api_key_variable={variable}: it is empty; export the key there.")
    return settings


class Server:
    """A judge on a server.

    Args:
        settings: Its keys.
        name: Its file, for messages.
        counts: Where requests and tokens are counted.
    """

    def __init__(self, settings: JudgeSettings, name: str, counts: Counter[str]) -> None:
        self.settings, self.name, self.counts = settings, name, counts
        self.identity = settings.model
        self.key = os.environ.get(settings.api_key_variable or "", "")

    def connect(self) -> Any:
        """A client for some questions, to be closed behind them."""
        from httpx2 import AsyncClient

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return AsyncClient(headers=headers, timeout=self.settings.timeout)

    async def answer(self, client: Any, messages: Sequence[Message]) -> str:
        """Ask until there is an answer.

        Args:
            client: What `connect` gave.
            messages: The conversation.

        Returns:
            The text, empty where the model gave none.

        Raises:
            UserError: The server refuses the request, or did not answer in the end.
        """
        settings = self.settings
        for attempt in range(settings.retries + 1):
            text, fault, pause = await self._ask(client, messages)
            if text is not None:
                return text
            if attempt < settings.retries:
                self.counts["retried"] += 1
                await asyncio.sleep(BACKOFF * 2**attempt if pause is None else pause)
        raise UserError(
            f"judge {self.name}: {settings.endpoint} failed {settings.retries + 1} times, at last: "
            f"{fault}; see to the server, or raise retries."
        )

    async def _ask(
        self, client: Any, messages: Sequence[Message]
    ) -> tuple[str | None, str, float | None]:
        """An answer; or what is wrong, and how many seconds the server wants to be left alone."""
        from httpx2 import HTTPError

        settings = self.settings
        asked: dict[str, Any] = {"model": settings.model, "messages": messages}
        asked |= {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        try:
            address = f"{str(settings.endpoint).rstrip('/')}/chat/completions"
            response = await client.post(address, json=asked)
        except HTTPError as error:
            return None, f"{type(error).__name__} {one_sentence(error)}", None
        status = response.status_code
        if status == 200:
            try:
                return self._read(response.json()), "", None
            except (ValueError, LookupError, TypeError, AttributeError):
                return None, f"its answer is none of the protocol: {self._quoted(response)}", None
        fault = f"status {status}: {self._quoted(response)}"
        if status not in TRANSIENT and status < 500:
            raise UserError(f"judge {self.name}: {settings.endpoint} refuses with {fault}.")
        pause = seconds_asked(response.headers.get("Retry-After"))
        if pause is not None and pause > LONGEST:
            raise UserError(
                f"judge {self.name}: {settings.endpoint} wants to be left alone for {pause:.0f} s "
                f"({fault}); go on then with --resume."
            )
        return None, fault, pause

    def _read(self, body: Any) -> str:
        text = body["choices"][0]["message"]["content"] or ""
        used = body.get("usage") or {}
        numbers = [int(used.get(f"{what}_tokens") or 0) for what in ("prompt", "completion")]
        if not isinstance(text, str):
            raise TypeError
        self.counts.update(asked=1, tokens_in=numbers[0], tokens_out=numbers[1])
        return text

    def _quoted(self, response: Any) -> str:
        said = " ".join(response.text.split())
        return (said.replace(self.key, "(hidden)") if self.key else said)[:200].rstrip(".")


def seconds_asked(header: str | None) -> float | None:
    """Seconds that a Retry-After header says, as a number or a date; None where it says none.

    Source: RFC 9110, section 10.2.3.
    """
    with suppress(ValueError):
        return max(0.0, float(header or ""))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header or "").timestamp() - time.time())
    return None


class LocalModel:
    """A judge that is loaded here. It answers greedily, with a last line that is begun for it.

    Args:
        settings: Its keys.
        name: Its file, for messages.
        counts: Where answers and tokens are counted.
        device: Where it runs.
        trust_remote_code: Whether code beside it may run.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        name: str,
        counts: Counter[str],
        device: Any,
        *,
        trust_remote_code: bool,
    ) -> None:
        from transformers import GenerationConfig
        from trl import ModelConfig

        self.name, self.counts, trusted = name, counts, trust_remote_code
        args = ModelConfig(model_name_or_path=settings.model, dtype=settings.dtype)
        self.model: Any = load_policy(args, trust_remote_code=trusted).eval().to(device)
        folder = resolve_model(settings.model)
        self.tokenizer: Any = load_tokenizer(folder, trust_remote_code=trusted)
        if not self.tokenizer.chat_template:
            raise UserError(
                f"judge {name}: {settings.model} has no chat template; name a model "
                "that was made to follow instructions."
            )
        self.tokenizer.padding_side = "left"
        stored = self.model.generation_config.eos_token_id
        # Nothing else of its own settings has a say, such as a penalty for repetition.
        self.model.generation_config = GenerationConfig(
            max_new_tokens=LINE_TOKENS,
            do_sample=False,
            eos_token_id=self.tokenizer.eos_token_id if stored is None else stored,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        files = sorted(Path(folder).glob("*.safetensors"))
        times = [file.stat().st_mtime_ns for file in files]
        self.identity = f"{Path(folder).absolute() if files else folder} {times}"

    def answers(self, conversations: Sequence[Sequence[Message]], starts: list[str]) -> list[str]:
        """The last line of its answer to each conversation.

        Args:
            conversations: One batch.
            starts: How the lines begin.

        Raises:
            UserError: A question is longer than the model's context.
        """
        import torch

        spoken = [
            self.tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True)
            for one in conversations
        ]
        texts = [one + start.rstrip() for one, start in zip(spoken, starts, strict=True)]
        given = self.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        width, context = given["input_ids"].shape[1], context_length(self.model.config)
        if context is not None and width + LINE_TOKENS > context:
            raise UserError(
                f"judge {self.name}: a question has {width} tokens and the model reads {context}; "
                "shorten rubric or completions, or name a model that reads more."
            )
        names = ("input_ids", "attention_mask")
        with torch.no_grad():
            ids = self.model.generate(**{n: given[n].to(self.model.device) for n in names})
        said = self.tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        pad = self.tokenizer.pad_token_id
        written = int((ids[:, width:] != pad).sum())
        self.counts.update(asked=len(said), tokens_out=written)
        self.counts["tokens_in"] += int(given["attention_mask"].sum())
        lines = [(one.strip().splitlines() or [""])[0] for one in said]
        return [start + line for start, line in zip(starts, lines, strict=True)]
