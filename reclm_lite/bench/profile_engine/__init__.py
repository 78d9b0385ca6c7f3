"""`reclm bench profile`: the profile scheduler beside llama-cpp-python, and the text encoder beside its peer."""
