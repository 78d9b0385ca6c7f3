"""What a prompt shows and says: the choice of items, the wording of each prompt form, and the answer's format."""
