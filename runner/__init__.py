"""The runner: takes jobs from Redis and executes them in sandboxes. The only part with the Docker socket."""
