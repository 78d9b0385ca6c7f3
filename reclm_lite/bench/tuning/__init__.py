"""`reclm bench tune`: PPO beside TRL's PPOTrainer."""
