"""A training with Hugging Face's Trainer as its tutorials write it. Studyloom's lines end in `# +`.

The model is of a configuration of its own, so that nothing is downloaded.
"""

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from waiting import wait

from studyloom.extras.integrations.transformers import StudyloomCallback  # +


class Sentences(torch.utils.data.Dataset):
    """Whether more of the words are from the second half of the vocabulary."""

    def __init__(self, part):
        words = torch.randint(0, 16, (96, 5), generator=torch.Generator().manual_seed(0))
        self.words = words[
            {"train": slice(48), "valid": slice(48, 72), "test": slice(72, 96)}[part]
        ]

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        words = self.words[index]
        return {"input_ids": words, "labels": (words > 7).float().mean().round().long()}


class Waiting(Trainer):
    def training_step(self, *args, **kwargs):
        wait(int(self.state.epoch or 0))
        return super().training_step(*args, **kwargs)


def build():
    sizes = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4}
    return BertForSequenceClassification(
        BertConfig(vocab_size=16, num_hidden_layers=1, max_position_embeddings=8, **sizes)
    )


def accuracy(prediction):
    return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


def train(config, run):
    arguments = TrainingArguments(
        output_dir="out",
        num_train_epochs=config.params.epochs,
        learning_rate=config.params.lr,
        per_device_train_batch_size=8,
        eval_strategy="epoch",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Waiting(
        model=build(),
        args=arguments,
        train_dataset=Sentences("train"),
        eval_dataset=Sentences("valid"),
        compute_metrics=accuracy,
        callbacks=[StudyloomCallback(run, "eval_loss")],  # +
    )
    trainer.train(resume_from_checkpoint=run.checkpoint)  # +
    return run.value  # +


def test(config, run, part):
    model = build()
    run.keep(model=model)
    arguments = TrainingArguments(output_dir=run.dir, use_cpu=True, report_to="none")
    trainer = Trainer(model=model, args=arguments)
    return {"loss": trainer.evaluate(Sentences("test"))["eval_loss"]}
