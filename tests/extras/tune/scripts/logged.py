"""Gets its values by wandb.config and logs by wandb.log, without arguments."""

import wandb

run = wandb.init(project="demo", config={"epochs": 4})
for epoch in range(1, run.config.epochs + 1):
    wandb.log({"epoch": epoch, "train_loss": 2 / epoch})
    loss = abs(wandb.config.lr - 0.01) + wandb.config.layers[0] / 1000 + 1 / epoch / 3
    wandb.log({"epoch": epoch, "val_loss": loss})
run.finish()
