"""Files of any size through a model, on all cores, without a row lost or answered twice."""
