"""click: options with a type, and one that is a flag."""

import click


@click.command()
@click.option("--learning-rate", "-l", default=0.02, show_default=True)
@click.option("--amp/--no-amp", default=False)
@click.option("--seed", type=int, default=None)
def main(learning_rate, amp, seed):
    for iteration in range(1, 4):
        loss = learning_rate + 0.5 * amp + 1 / iteration
        click.echo(f"iter {iteration}: loss {loss:.5f}, time 1.5ms")


if __name__ == "__main__":
    main()
