"""Tasks that come with the project, with their data and true rewards."""
