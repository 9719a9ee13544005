"""Playing episodes of an environment: the policy writes, the environment answers.

With `context: all` an episode is one row, a conversation: the policy's turns are sampled behind
everything that was said, and the environment's answers stand between them. With `context: last`
each turn is a row of its own whose prompt is the newest observation alone. There every slot plays
one episode after another, and a rollout is as many turns of each, wherever an episode then is.

Shapes: B episodes, C completion tokens of a turn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recipes.lib.data.problems import PLACE
from recipes.lib.data.prompts import Prompt, Prompts, completion_text, context_length
from recipes.lib.environments.rendering import Rendering
from recipes.lib.environments.worlds import Answer, world_seed
from recipes.lib.errors import UserError
from recipes.lib.generation.sampling import Decoding, episode_uniforms
from recipes.lib.ppo.rollouts import Episode, Turn, prompt_index

OF_TURNS = ("context", "max_turns", "max_episode_length", "num_environments", "gamma_per")


@dataclass
class Game:
    """An episode that is being played.

    Args:
        row: Row of the data set.
        number: Number of the episode, which its noise and its world come from.
        told: What its world was begun with.
        observation: What the environment said last.
        texts: What the policy wrote.
        total: Sum of the rewards.
        episode: With `context: all`, what becomes of it.
    """

    row: int
    number: int
    told: dict[str, Any]
    observation: str = ""
    texts: list[str] = field(default_factory=list)
    total: float = 0.0
    episode: Episode | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; the world is played again from it."""
        return {name: getattr(self, name) for name in ("number", "observation", "texts", "total")}


class Player:
    """Plays episodes of an environment.

    Args:
        trainer: The PPOTrainer: its configuration, tokenizer and environment are used.
        sampler: Says what the policy writes.
        decoding: Length, temperature and the tokens at the end.
        limit: Most tokens that are read at once.
    """

    def __init__(self, trainer: Any, sampler: Any, decoding: Decoding, limit: float) -> None:
        self.args, self.tokenizer = trainer.args, trainer.processing_class
        self.worlds: Callable[..., list[Answer]] = trainer.worlds
        self.sampler, self.decoding, self.limit = sampler, decoding, limit
        own = (decoding.stop_token_id, trainer.template_kwargs, trainer.tools)
        self.rendering = Rendering(self.tokenizer, *own)
        # With context=last, where the episodes of all slots stand; behind this rollout, of this
        # process's.
        self.slots: list[dict[str, Any]] = []
        self.moved: list[dict[str, Any]] = []

    def whole(
        self,
        prompts: Prompts,
        rows: Sequence[int],
        numbers: Sequence[int],
        seed: int,
        *,
        is_greedy: bool = False,
    ) -> list[list[Episode]]:
        """Play episodes to their ends.

        Args:
            prompts: The rows.
            rows: Row of each episode.
            numbers: Number of each episode.
            seed: Of noise and worlds.
            is_greedy: Whether the most probable tokens are taken.

        Returns:
            The rows of each episode: one with `context: all`, else one for each turn.
        """
        played: list[list[Episode]] = []
        for start in range(0, len(rows), self.args.sampling_batch_size):
            some = slice(start, start + self.args.sampling_batch_size)
            games = self._begun(prompts, rows[some], numbers[some], seed)
            noise = None if is_greedy else seed
            if self.args.context == "last":
                played += self._turns(games, self.args.max_turns, noise, lambda _: None)
            else:
                played += [[episode] for episode in self._converse(games, noise)]
        return played

    def share(self, prompts: Prompts, slots: Sequence[int], num_turns: int) -> list[Episode]:
        """As many turns of each slot as a rollout has, from where its episode stands.

        Args:
            prompts: The rows.
            slots: The slots of this process; `moved` is where they stand behind it.
            num_turns: Turns of each.

        Returns:
            A row for each turn, those of a slot one after another.
        """
        args = self.args

        def begun(numbers: Sequence[int]) -> list[Game]:
            places = [number // args.num_generations for number in numbers]
            rows = [prompt_index(args.seed, place, len(prompts)) for place in places]
            return self._begun(prompts, rows, numbers, args.seed)

        if self.slots:
            games = [self._restored(prompts, self.slots[slot]) for slot in slots]
        else:
            games = begun(slots)
        step = args.num_environments
        played = self._turns(games, num_turns, args.seed, lambda g: begun([g.number + step])[0])
        self.moved = [game.state() for game in games]
        return flat(played)

    def _restored(self, prompts: Prompts, state: dict[str, Any]) -> Game:
        place = state["number"] // self.args.num_generations
        row = prompt_index(self.args.seed, place, len(prompts))
        told = self._told(prompts, row, state["number"], self.args.seed)
        return Game(row, told=told, **state | {"texts": list(state["texts"])})

    @staticmethod
    def _told(prompts: Prompts, row: int, number: int, seed: int) -> dict[str, Any]:
        columns = {name: value for name, value in prompts.data[row].items() if name != PLACE}
        if "seed" in columns:
            raise UserError(
                "the data set has a column seed, which is the episode's own; name it otherwise."
            )
        return columns | {"seed": world_seed(seed, number)}

    def _begun(
        self, prompts: Prompts, rows: Sequence[int], numbers: Sequence[int], seed: int
    ) -> list[Game]:
        games = [
            Game(row, number, self._told(prompts, row, number, seed))
            for row, number in zip(rows, numbers, strict=True)
        ]
        for game, answer in zip(games, self._asked(games), strict=True):
            game.observation = answer[0]
        return games

    def _asked(self, games: Sequence[Game]) -> list[Answer]:
        told, texts = [game.told for game in games], [game.texts for game in games]
        return self.worlds(rows=told, texts=texts) if games else []

    def _prompt(self, game: Game) -> tuple[Prompt, list[int]]:
        asked, ids = self.rendering.begin(game.told.get("prompt"), game.observation)
        if len(ids) > self.args.max_prompt_length:
            raise UserError(
                f"max_prompt_length={self.args.max_prompt_length}: an observation of the "
                f"environment makes a prompt of {len(ids)} tokens; raise the limit."
            )
        if len(ids) + self.args.max_completion_length > self.limit:
            raise UserError(
                f"max_completion_length={self.args.max_completion_length}: with an observation of "
                f"{len(ids)} tokens that is more than the {self.limit:g} that are read; lower it, "
                "or let the environment say less."
            )
        if self.rendering.role == "tool" and isinstance(asked, str):
            raise UserError("tools: a prompt is plain text; give prompts as messages.")
        return asked, ids

    def _noise(self, games: Sequence[Game], seed: int | None) -> Tensor | None:
        if seed is None:
            return None
        length = self.args.max_completion_length
        rows = [episode_uniforms(seed, [g.number], length, len(g.texts)) for g in games]
        return torch.cat(rows)

    def _answered(
        self, games: Sequence[Game], asked: list[list[int]], said: list[list[int]]
    ) -> list[Answer]:
        """Let the worlds read what was written, and note it."""
        ends = self.decoding.other_stop_token_ids
        for game, before, ids in zip(games, asked, said, strict=True):
            game.texts.append(completion_text(self.tokenizer, before, ids, ends))
        answers = self._asked(games)
        for game, (observation, reward, _, _) in zip(games, answers, strict=True):
            game.observation, game.total = observation, game.total + reward
        return answers

    def _turns(
        self,
        games: list[Any],
        num_turns: int,
        seed: int | None,
        renew: Callable[[Game], Game | None],
    ) -> list[list[Episode]]:
        """Play games turn by turn, each turn a row; one that ends is replaced in the list."""
        played: list[list[Episode]] = [[] for _ in games]
        for _ in range(num_turns):
            live = [place for place, game in enumerate(games) if game is not None]
            if not live:
                break
            now = [games[place] for place in live]
            prompts = [self._prompt(game) for game in now]
            before = [ids for _, ids in prompts]
            said = self.sampler.completions(before, self._noise(now, seed))
            answers = self._answered(now, before, said)
            for place, (asked, ids), said_ids, answer in zip(
                live, prompts, said, answers, strict=True
            ):
                game, (observation, reward, is_over, is_cut) = games[place], answer
                turn = Turn(0, len(said_ids), game.texts[-1], reward, observation)
                row = Episode(game.row, ids, said_ids, turn.text, asked=asked, turns=[turn])
                row.goes_on = not (is_over or is_cut or len(game.texts) >= self.args.max_turns)
                if not row.goes_on:
                    row.outcome = (game.total, len(game.texts))
                    row.following_ids = [] if is_over else self._following(game, row)
                    games[place] = renew(game)
                played[place].append(row)
        for game, rows in zip(games, played, strict=True):
            if rows and rows[-1].goes_on:  # the rollout ends and the episode does not
                rows[-1].goes_on = False
                rows[-1].following_ids = self._following(game, rows[-1])
        return played

    def _following(self, game: Game, row: Episode) -> list[int]:
        """The next prompt; where a limit left nothing to read, what was read and said last."""
        if game.observation:
            return self._prompt(game)[1]
        return self._valued([*row.prompt_ids, *row.completion_ids])

    def _valued(self, ids: list[int]) -> list[int]:
        """What the critic reads of a state: there has to be room for one token behind it."""
        return ids if len(ids) < self.limit else ids[: int(self.limit) - 1]

    def _converse(self, games: Sequence[Game], seed: int | None) -> list[Episode]:
        """Play games as conversations in view of all that was said, side by side."""
        episodes = []
        for game in games:
            asked, ids = self._prompt(game)
            game.episode = Episode(game.row, ids, [], asked=asked)
            episodes.append(game.episode)
        session = self.sampler.begin([episode.prompt_ids for episode in episodes])
        going_on = list(games)
        while going_on:
            said = session.say(self._noise(going_on, seed))
            before = [_view(game) for game in going_on]
            answers = self._answered(going_on, before, said)
            heard = [
                self._heard(game, ids, answer)
                for game, ids, answer in zip(going_on, said, answers, strict=True)
            ]
            kept = [place for place, ids in enumerate(heard) if ids]
            going_on = [going_on[place] for place in kept]
            if kept:
                session.hear(kept, [heard[place] for place in kept])
        return episodes

    def _heard(self, game: Game, said: list[int], answer: Answer) -> list[int]:
        """Note a turn; the tokens behind it, where the conversation goes on."""
        episode = game.episode
        assert episode is not None
        observation, reward, is_over, is_cut = answer
        start = len(episode.completion_ids)
        episode.completion_ids = [*episode.completion_ids, *said]
        end = len(episode.completion_ids)
        episode.turns.append(Turn(start, end, game.texts[-1], reward, observation))
        if is_over:
            episode.outcome = (game.total, len(game.texts))
            return []
        is_last = is_cut or len(game.texts) >= self.args.max_turns
        ids = self.rendering.answer_ids(
            observation,
            as_text=isinstance(episode.asked, str),
            has_ended=said[-1] in self.decoding.stops,
            is_last=is_last,
        )
        longest = len(_view(game)) + len(ids) + self.args.max_completion_length
        if is_last or longest > self.limit:
            episode.outcome = (game.total, len(game.texts))
            episode.following_ids = self._valued([*_view(game), *ids])
            return []
        episode.completion_ids = [*episode.completion_ids, *ids]
        return ids


def _view(game: Game) -> list[int]:
    """All tokens of a conversation until now."""
    assert game.episode is not None
    return [*game.episode.prompt_ids, *game.episode.completion_ids]


def flat(played: Sequence[Sequence[Episode]]) -> list[Episode]:
    """The rows of all episodes, one after another."""
    return [row for rows in played for row in rows]


def conversation(episode: Episode, role: str) -> Any:
    """What was said behind the prompt, as reward functions get it: text, or messages.

    Args:
        episode: The episode.
        role: Who answers.

    Returns:
        The turns of the policy, each with what was answered; the last answer, which the policy
        does not read, too, if there is one.
    """
    if isinstance(episode.asked, str):
        return "".join(f"{turn.text}{turn.answer}" for turn in episode.turns)
    messages = []
    for turn in episode.turns:
        messages.append({"role": "assistant", "content": turn.text})
        messages.append({"role": role, "content": turn.answer})
    return messages if episode.turns[-1].answer else messages[:-1]


def conversation_limit(args: Any, config: Any) -> float:
    """Most tokens that are read at once: what is asked for, or what the model reads.

    Raises:
        UserError: It is not known of conversations, is more than the model reads, or has no room.
    """
    context, asked = context_length(config), args.max_episode_length
    limit = asked or context
    if args.context == "last":
        if asked is not None:
            raise UserError(
                f"max_episode_length={asked}: with context=last no conversation is in view; leave "
                "it out, and set max_turns."
            )
        return math.inf if context is None else context
    if limit is None:
        raise UserError("the model does not say how much it reads; set max_episode_length.")
    if context is not None and limit > context:
        raise UserError(
            f"max_episode_length={asked} is more than the model's context of {context}; lower it."
        )
    if limit < 2 + args.max_completion_length:
        raise UserError(
            f"max_episode_length={limit} has no room for a prompt and "
            f"max_completion_length={args.max_completion_length}; raise it."
        )
    return int(limit)


def refuse_turns_alone(values: Mapping[str, Any], has_turns: bool) -> None:
    """Refuse keys without effect: of turns where nobody answers, of slots where there are none.

    Args:
        values: The keys that were given.
        has_turns: Whether there is an environment, or tools.

    Raises:
        UserError: One has none.
    """
    needed = dict.fromkeys(OF_TURNS, (has_turns, "name an environment or tools"))
    needed["num_environments"] = (values.get("context") == "last", "use context=last")
    for key, (is_used, remedy) in needed.items():
        if values.get(key) is not None and not is_used:
            raise UserError(f"{key}={values[key]} has no effect here; {remedy}, or leave it out.")


def check_environment(trainer: Any, functions: Any) -> None:
    """Refuse what does not go with an environment or with tools.

    Args:
        trainer: The PPOTrainer.
        functions: Reward, cost and held-out functions.

    Raises:
        UserError: vLLM samples, functions or tools need a conversation that is never in view, or
            slots do not divide among processes.
    """
    args = trainer.args
    if args.sampler == "vllm":
        raise UserError(
            "sampler=vllm does not go on after an environment's answer; use sampler=graph or "
            "transformers."
        )
    if args.context == "last" and (functions or trainer.tools):
        raise UserError(
            "context=last: reward functions and tools are about whole conversations, and here each "
            "turn is a row; let the environment's step give the reward, or use context=all."
        )
    if args.context == "last" and args.num_environments % args.world_size:
        raise UserError(
            f"num_environments={args.num_environments} does not divide among {args.world_size} "
            f"processes; use a multiple of {args.world_size}."
        )
