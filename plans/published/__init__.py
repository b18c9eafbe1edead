"""Published schedules, and the notation of other tools."""
