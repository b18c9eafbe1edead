"""Published schedules, and the words of other tools."""
