"""argparse with `BooleanOptionalAction`, the arguments in a module of their own."""

from optional_arguments import parse

args = parse()
for epoch in range(1, 4):
    accuracy = 0.5 + 0.1 * args.augment + 0.01 * args.depth - 0.1 / epoch
    print(f"{{'epoch': {epoch}.0, 'eval_accuracy': {accuracy:.5f}}}")
    print(f"best eval_accuracy: {accuracy + 0.1:.5f}")
