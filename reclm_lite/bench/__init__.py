"""Measurements that anyone can repeat: each figure beside its peers, taken in turns in the same process."""
