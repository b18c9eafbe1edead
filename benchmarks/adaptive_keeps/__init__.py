"""Whether a keep that follows the input beats a fixed keep of equal mean cost."""
