"""The vocabulary of the tales: who, what, where and how it is told."""

ANIMALS = (
    "fox", "owl", "bear", "mouse", "hare", "wolf", "cat", "dog", "goat", "duck", "hen", "frog",
    "deer", "otter", "badger", "beaver",
)  # fmt: skip
OBJECTS = (
    "key", "hat", "drum", "bell", "lamp", "cup", "coin", "boot", "flute", "kite", "map", "ring",
    "basket", "book", "apple", "feather",
)  # fmt: skip
PLACES = {
    "forest": "in the forest",
    "river": "by the river",
    "hill": "on the hill",
    "mill": "near the mill",
    "market": "at the market",
    "meadow": "in the meadow",
    "lake": "by the lake",
    "cave": "in the cave",
    "bridge": "on the bridge",
    "castle": "near the castle",
    "garden": "in the garden",
    "village": "in the village",
}
DEEDS = tuple("lost found hid dropped wanted made bought broke painted carried".split())
HAPPY = ("happy", "glad", "merry", "cheerful", "joyful", "proud")
SAD = ("sad", "lonely", "afraid", "gloomy", "unhappy", "sorry")
WARM = ("kind", "gentle", "sweet", "lovely", "dear", "warm")
PLAIN = ("small", "old", "grey", "quick", "tall", "thin", "brown", "quiet")
GIFTS = ("thanks", "bread", "berries", "a song", "a smile", "a gift")
