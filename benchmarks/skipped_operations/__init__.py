"""Whether visual tokens that skip operations lose less, at equal FLOPs, than tokens that leave."""
