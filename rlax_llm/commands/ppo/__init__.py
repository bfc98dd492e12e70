"""``rlax-llm ppo``: RLHF with policy, value model, reference and reward model; its settings, phase and run."""
