"""Tuning a profile model: two-round SFT, a reward model, PPO or GRPO, over one copy of the base model.

    base.py        a causal model and its tokenizer, from a folder or a hub; scratch.py makes a new small one
    adapters.py    named LoRA adapters over the one base, and the folders they lie in
    rendering.py   dialogues to tokens, and which of them carry loss
    batches.py     tokens to batches: packed rows or padded ones
    run.py         a run's folder: settings, metrics, checkpoints; parallel.py: several processes
    losses.py      the equations
    sft.py, reward.py, ppo.py   the three stages; rollout.py, signals.py and ppo_*.py serve the third
    memory.py      what a stage will take, before it starts

The only part of the package that imports torch, transformers and peft (extra `[tune]`).
"""
