"""The commands, called in this process and run in processes of their own."""
