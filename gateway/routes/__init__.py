"""The calls of docs/http-api.md, one module for each kind of thing: jobs, functions, operation."""
