"""`reclm bench tune`: PPO against TRL's PPOTrainer."""
