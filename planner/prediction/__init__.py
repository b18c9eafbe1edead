"""What a plan costs and what it is predicted to lose, from a profile alone."""
