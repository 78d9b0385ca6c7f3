"""`reclm bench profile`: the profile scheduler against llama-cpp-python, the text encoder against its peer."""
