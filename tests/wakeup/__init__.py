"""How a runner learns of new rows before its next poll."""
