"""Constants at the top, and no arguments."""

LR = 0.1
WIDTH = 32

for epoch in range(1, 4):
    print(f"epoch {epoch} val_acc={1 - LR - WIDTH / 1000 - 0.1 / epoch:.4f}")
