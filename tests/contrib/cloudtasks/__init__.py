"""Google Cloud Tasks: its hints, the calls that they come back as, and Google's tokens."""
