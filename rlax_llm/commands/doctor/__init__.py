"""What is wrong with a run that does not learn: one function for each diagnosis, from what the run left to words."""
