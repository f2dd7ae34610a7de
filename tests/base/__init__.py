"""What a task is made of: its payload, its policy."""
