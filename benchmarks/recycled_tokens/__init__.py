"""Whether the answer loses less if kept tokens stand for those that leave."""
