"""The weight of the KL in the reward: fixed, or steered towards a target."""


class KLController:
    """Weight of the KL: fixed, or steered towards a target.

    Args:
        kl_coef: Weight at the start.
        target_kl: KL to steer to in nats per completion; None keeps the weight.
        horizon: Episodes over which the weight reacts.

    Source:
        Ziegler et al. 2019, section 2.2: the proportional error is clipped to 0.2.
    """

    def __init__(self, kl_coef: float, target_kl: float | None, horizon: int) -> None:
        self.value = kl_coef
        self.target_kl = target_kl
        self.horizon = horizon

    def update(self, kl: float, num_episodes: int) -> None:
        """Take note of a rollout's mean KL (nats per completion) over its episodes."""
        if self.target_kl is not None:
            error = min(max(kl / self.target_kl - 1.0, -0.2), 0.2)
            self.value *= 1.0 + error * num_episodes / self.horizon
