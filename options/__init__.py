"""What commands read from the command line: groups of options, and the values of options."""
