"""Options: values, backend, runner."""
