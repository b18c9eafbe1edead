"""Data sets by name: one YAML file each, and the code that reads their rows from the Hub."""
