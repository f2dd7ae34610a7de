"""The store: every write of a row, its guards, its plans, and a model of it all."""
