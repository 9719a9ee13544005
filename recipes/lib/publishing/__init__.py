"""From a run to what others use: merged models, exports, cards, the Hub; each checked."""
