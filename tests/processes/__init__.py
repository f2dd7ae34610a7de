"""Several runners under one supervisor, and runners that reload."""
