"""What a visual token is in its image: its place, and what the vision tower thought of it."""
