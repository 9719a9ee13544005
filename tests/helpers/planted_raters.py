"""Labels of raters whose faults are known: good ones, spammers, and some who lean to one label."""

import random

# Probability of the right label; of what is left, and of a leaning rater always, the share of 0.
GOOD, SPAMMING, LEANING = (0.9, 0.5), (0.0, 0.5), (0.1, 0.9)
RATERS = [GOOD] * 4 + [SPAMMING] * 3 + [LEANING] * 3
NUM_UNITS, LABELS_PER_UNIT = 2000, 5


def planted(seed: int) -> tuple[list[int], list[tuple[int, int, int]]]:
    """True labels, and 10,000 of unit, rater and label."""
    draw = random.Random(seed)
    truth = [draw.randrange(2) for _ in range(NUM_UNITS)]
    found = []
    for unit, label in enumerate(truth):
        for rater in draw.sample(range(len(RATERS)), LABELS_PER_UNIT):
            right, share_of_zero = RATERS[rater]
            said = label if draw.random() < right else int(draw.random() >= share_of_zero)
            found.append((unit, rater, said))
    return truth, found


def accuracy(truth: list[int], labels: list[int]) -> float:
    """Share of units whose label is the true one."""
    return sum(one == other for one, other in zip(truth, labels, strict=True)) / len(truth)


def majority(found: list[tuple[int, int, int]]) -> list[int]:
    """The label that most say; five say one of two."""
    votes = [0] * NUM_UNITS
    for unit, _, label in found:
        votes[unit] += label
    return [int(2 * vote > LABELS_PER_UNIT) for vote in votes]
