"""Looking at learned splines."""
