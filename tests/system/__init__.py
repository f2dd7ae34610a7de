"""The demo, the deployment files and the benchmarks, as a user starts them."""
