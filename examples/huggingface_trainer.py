"""Hugging Face Trainer: one callback averages the weights, saves snapshots, and evaluates averages.

    python examples/huggingface_trainer.py RUN

trains a tiny GPT-2 with random weights (nothing is downloaded) on sequences that count with jumps,
rebuilds averages of other lengths from RUN, and prints the evaluation loss of each next to that of
the raw weights. The clock counts tokens here, in which the training of language models is planned.
"""

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

from edm2lite.ema import reconstruct
from edm2lite.integrations.transformers import EMACallback

VOCABULARY, LENGTH, STEPS, BATCH, ACCUMULATE = 32, 24, 200, 8, 2


def sequences(num: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Sequences that count up, each by its own step, with a random jump at one position in five."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCABULARY, (num, LENGTH), generator=generator)
    jumps = torch.rand(num, LENGTH, generator=generator) < 0.2
    step = torch.randint(1, 4, (num,), generator=generator)
    for k in range(1, LENGTH):
        rows[:, k] = torch.where(jumps[:, k], rows[:, k], (rows[:, k - 1] + step) % VOCABULARY)
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="new folder for the snapshots")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = GPT2Config(n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    config.vocab_size, config.bos_token_id, config.eos_token_id = VOCABULARY, 0, 0
    options = TrainingArguments(
        args.run,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=200,
        gradient_accumulation_steps=ACCUMULATE,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        GPT2LMHeadModel(config),
        options,
        train_dataset=sequences(BATCH * ACCUMULATE * STEPS, seed=1),
        eval_dataset=sequences(400, seed=2),
    )
    tokens = BATCH * ACCUMULATE * LENGTH
    callback = EMACallback(args.run, snapshot_steps=5, samples=tokens, evaluate_with=0.10)
    callback.attach(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()

    print(f"evaluated by the Trainer, with sigma_rel 0.10: {trainer.evaluate()['eval_loss']:.4f}")
    print("weights         evaluation loss")
    model, rows = trainer.model.eval(), torch.stack([row["labels"] for row in trainer.eval_dataset])
    print(f"raw             {model(rows, labels=rows).loss:15.4f}")
    for result in reconstruct(args.run, sigma_rel=[0.03, 0.05, 0.10]):
        model.load_state_dict(result.state_dict)
        print(f"sigma_rel {result.sigma_rel:.2f}  {model(rows, labels=rows).loss:15.4f}")


if __name__ == "__main__":
    main()
