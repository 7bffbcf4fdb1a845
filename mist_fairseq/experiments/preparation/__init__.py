"""Public data sets to the files that training reads."""
