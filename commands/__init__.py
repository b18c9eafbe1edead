"""The commands, which parse options, call the library and print. Heavy imports come late."""
