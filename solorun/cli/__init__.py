"""The `solorun` command: one file per verb."""
