"""What can be promised of a plan, and on which samples."""
