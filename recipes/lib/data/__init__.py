"""From a file, a folder or a Hub id to checked rows in TRL's formats."""
