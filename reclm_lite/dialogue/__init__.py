"""Dialogues to tune a language model with: which items are shown and hidden, questions, answers, and the files."""
