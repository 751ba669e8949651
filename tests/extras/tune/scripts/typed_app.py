"""typer: parameters with annotations."""

from typing import Annotated

import typer


def main(
    lr: float = 0.003,
    hidden_size: Annotated[int, typer.Option(help="units")] = 32,
    dropout: float = typer.Option(0.1, "--drop"),
    bias: bool = True,
    seed: int = 0,
):
    for epoch in range(1, 4):
        accuracy = 0.9 - lr - dropout / 10 + hidden_size / 1e4 + 0.01 * bias - 0.1 / epoch
        print(f"Epoch {epoch}/3 - loss: {1 - accuracy:.4f} - val_accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    typer.run(main)
