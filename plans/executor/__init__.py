"""The executor: carries a plan out on a stock model, one forward pass at a time."""
