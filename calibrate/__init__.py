"""MEASURE: runs a model over a small data set; samples -> probe -> profile."""
