"""The page on which people answer: server, who may answer, texts that cannot do anything."""
