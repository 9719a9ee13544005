"""From a command line and a YAML file to checked dataclasses."""
