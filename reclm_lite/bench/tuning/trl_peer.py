"""TRL's PPOTrainer on a job of `reclm bench tune`: run as a file by the Python of an environment that has trl 1.12, its
last release with PPO.

    echo '{"base": "…", "prompts": [[5, 6, …], …], …}' | path/to/trl/bin/python -P trl_peer.py

It imports nothing of this project, which that environment lacks, so it measures time and memory itself; -P keeps its
folder off the path. The job comes on stdin, the result is one JSON line on stdout. copies: "adapter" gives the policy
LoRA and no reference model, so that three copies of the base remain; "full" is TRL's default of four.
"""

import json
import resource
import sys
import tempfile
import time


def main(job: dict) -> dict:
    """Run the steps; returns seconds of those after the first, and what the process took at its peak."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(job["n_threads"])
    torch.manual_seed(job["seed"])
    base = job["base"]
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    reference, adapter = None, None
    if job["copies"] == "adapter":
        from peft import LoraConfig

        adapter = LoraConfig(
            r=job["lora_r"], lora_alpha=2 * job["lora_r"], target_modules="all-linear", task_type="CAUSAL_LM"
        )
    else:
        reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.monotonic())

    data = Dataset.from_dict({"input_ids": job["prompts"]})
    with tempfile.TemporaryDirectory() as out:
        settings = PPOConfig(
            output_dir=out,
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=job["batch"] // job["micro_batch"],
            num_mini_batches=job["n_mini_batches"],
            num_ppo_epochs=job["epochs"],
            total_episodes=job["batch"] * job["steps"],
            response_length=job["max_new_tokens"],
            local_rollout_forward_batch_size=job["micro_batch"],
            num_sample_generations=0,
            stop_token="eos",
            missing_eos_penalty=1.0,
            temperature=1.0,
            learning_rate=1e-5,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            seed=job["seed"],
        )
        trainer = PPOTrainer(
            args=settings,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=data,
            eval_dataset=data.select(range(job["micro_batch"])),
            peft_config=adapter,
            callbacks=[Clock()],
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": [b - a for a, b in zip(ends, ends[1:], strict=False)],
        "peak_bytes": peak * unit,
        "loaded_bytes": before * unit,
        "version": trl.__version__,
    }


if __name__ == "__main__":
    result = main(json.load(sys.stdin))
    print(json.dumps(result))
