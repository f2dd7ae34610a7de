"""One attempt: bad input and output, timeouts, cancellation, retries."""
