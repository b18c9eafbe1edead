"""Everything that is measured of one model, by public commands: ``make evidence MODEL=NAME``."""
