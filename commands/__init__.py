"""The commands: parse, one library call, print. They import heavy libraries late."""
