"""The commands of `neural-tune`, one module per group. Each has `add(commands)`, which describes them to argparse and imports nothing heavy."""
