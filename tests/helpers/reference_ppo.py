"""PPO for language models written from the papers' equations, in float64 and without padding.

Nothing here comes from the package: completions are rows of different length, advantages are sums
over the future and not a recursion, and gradients are derived by hand. Shapes of one episode: T
tokens, V vocabulary.

Sources: Ziegler et al. 2019 (reward, equation 2), Schulman et al. 2016 (advantages, equation 16),
Schulman et al. 2017 (clipped objective, equation 7).
"""

from dataclasses import dataclass

import numpy as np

Row = np.ndarray


@dataclass
class Episode:
    """What was sampled and what each model said about it, before any update."""

    score: float
    tokens: list[int]
    old_logits: Row  # (T, V) of the policy that sampled
    ref_logits: Row  # (T, V)
    old_values: Row  # (T,)


@dataclass
class Settings:
    temperature: float
    kl_coef: float
    gamma: float
    lam: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    entropy_coef: float


@dataclass
class Targets:
    """What an update works with, one entry for each token."""

    old_logps: Row
    old_values: Row
    advantages: Row
    returns: Row


@dataclass
class Outcome:
    loss: float
    logit_gradients: list[Row]  # (T, V) of each episode
    value_gradients: list[Row]  # (T,)


def log_softmax(logits: Row, temperature: float) -> Row:
    scaled = logits.astype(np.float64) / temperature
    highest = scaled.max(axis=-1, keepdims=True)
    return scaled - highest - np.log(np.exp(scaled - highest).sum(axis=-1, keepdims=True))


def token_logps(logits: Row, tokens: list[int], temperature: float) -> Row:
    return log_softmax(logits, temperature)[np.arange(len(tokens)), tokens]


def advantages_of(rewards: Row, values: Row, gamma: float, lam: float) -> Row:
    """A_t = sum over k of (gamma lam)^k delta_{t+k}; nothing follows the last token."""
    after = np.append(values[1:], 0.0)
    deltas = rewards + gamma * after - values
    count = len(rewards)
    return np.array(
        [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)]
    )


def targets_of(episodes: list[Episode], settings: Settings) -> list[Targets]:
    """From scores to whitened advantages and to returns."""
    made = []
    for episode in episodes:
        logps = token_logps(episode.old_logits, episode.tokens, settings.temperature)
        ref_logps = token_logps(episode.ref_logits, episode.tokens, settings.temperature)
        rewards = -settings.kl_coef * (logps - ref_logps)
        rewards[-1] += episode.score
        values = episode.old_values.astype(np.float64)
        advantages = advantages_of(rewards, values, settings.gamma, settings.lam)
        made.append(Targets(logps, values, advantages, advantages + values))
    every = np.concatenate([target.advantages for target in made])
    mean, deviation = every.mean(), np.sqrt(((every - every.mean()) ** 2).mean() + 1e-8)
    for target in made:
        target.advantages = (target.advantages - mean) / deviation
    return made


def update(
    episodes: list[Episode],
    targets: list[Targets],
    logits: list[Row],
    values: list[Row],
    settings: Settings,
) -> Outcome:
    """Loss of one optimizer step over all episodes and its gradient by logits and values."""
    count = sum(len(episode.tokens) for episode in episodes)
    loss, logit_gradients, value_gradients = 0.0, [], []
    # the first rollout's own; later the spread of all returns so far
    scale = np.concatenate([target.returns for target in targets]).std()
    for episode, target, logits_TV, value_T in zip(episodes, targets, logits, values, strict=True):
        of_policy, logit_gradient = policy_term(episode, target, logits_TV, settings)
        of_value, value_gradient = value_term(target, value_T.astype(np.float64), scale, settings)
        loss += (of_policy + settings.vf_coef * of_value) / count
        logit_gradients.append(logit_gradient / count)
        value_gradients.append(settings.vf_coef * value_gradient / count)
    return Outcome(loss, logit_gradients, value_gradients)


def policy_term(
    episode: Episode, target: Targets, logits_TV: Row, settings: Settings
) -> tuple[float, Row]:
    """-min(r A, clip(r) A) and the entropy bonus, summed over tokens, and their gradient."""
    log_probs = log_softmax(logits_TV, settings.temperature)
    probs, places = np.exp(log_probs), np.arange(len(episode.tokens))
    ratio = np.exp(log_probs[places, episode.tokens] - target.old_logps)
    clipped = np.clip(ratio, 1 - settings.cliprange, 1 + settings.cliprange)
    gained = np.minimum(ratio * target.advantages, clipped * target.advantages)
    entropy = -(probs * log_probs).sum(axis=-1)
    # d log p(token) / d logit = (1[token] - p) / T; the ratio's own derivative is the ratio
    is_free = ratio * target.advantages <= clipped * target.advantages
    by_logp = -target.advantages * ratio * is_free
    one_hot = np.zeros_like(probs)
    one_hot[places, episode.tokens] = 1.0
    gradient = by_logp[:, None] * (one_hot - probs)
    # d H / d logit = -p (log p + H) / T
    gradient += settings.entropy_coef * probs * (log_probs + entropy[:, None])
    total = -gained.sum() - settings.entropy_coef * entropy.sum()
    return float(total), gradient / settings.temperature


def value_term(target: Targets, values: Row, scale: float, settings: Settings) -> tuple[float, Row]:
    """Half the larger of two squared errors over the scale, summed over tokens; its gradient."""
    reach = settings.cliprange_value * scale
    clipped = np.clip(values, target.old_values - reach, target.old_values + reach)
    error, clipped_error = values - target.returns, clipped - target.returns
    is_inside = np.abs(values - target.old_values) < reach
    takes_clipped = clipped_error**2 > error**2
    total = 0.5 * np.maximum(error**2, clipped_error**2).sum() / scale**2
    return float(total), np.where(takes_clipped & ~is_inside, 0.0, error) / scale**2
