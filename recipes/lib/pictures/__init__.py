"""Pictures of rows: opened, looked at, made small."""
