"""The code that runs inside sandboxes, one folder per language. It imports nothing of ours."""
