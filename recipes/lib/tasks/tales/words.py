"""The vocabulary of the tales: who, what, where and how it is told."""

ANIMALS = (
    "fox", "owl", "bear", "mouse", "hare", "wolf", "cat", "dog", "goat", "duck", "hen", "frog",
    "deer", "otter", "badger", "beaver",
)  # fmt: skip
OBJECTS = (
    "key", "hat", "drum", "bell", "lamp", "cup", "coin", "boot", "flute", "kite", "map", "ring",
    "basket", "book", "apple", "feather",
)  # fmt: skip
PLACES = (
    "forest", "river", "hill", "mill", "market", "meadow", "lake", "cave", "bridge", "castle",
    "garden", "village",
)  # fmt: skip
DEEDS = tuple("lost found hid dropped wanted made bought broke painted carried".split())
HAPPY = ("happy", "glad", "merry", "cheerful", "joyful", "proud")
SAD = ("sad", "lonely", "afraid", "gloomy", "unhappy", "sorry")
WARM = ("kind", "gentle", "sweet", "lovely", "dear", "warm")
PLAIN = ("small", "old", "grey", "quick", "tall", "thin", "brown", "quiet")
GIFTS = ("thanks", "bread", "berries", "a song", "a smile", "a gift")
