"""Models, adapters and tokenizers: finding, loading, checking, their log-probabilities."""
