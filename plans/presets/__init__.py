"""Published schedules as plan files; `tpcal.load_preset` reads and scales them."""
