"""Profiles of users and items: prompts, generation, storage, vectors."""
