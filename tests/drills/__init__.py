"""What goes wrong in practice, many times over: `python -m tests.drills --kind flip --count 300 --seed 0`.

A trial is a real run of a tiny model to which one thing happens. It must end as the undisturbed run ends, or
say in one line what is wrong and end undisturbed when the command is repeated; anything else is lost. Prints
tried, survived and lost, and fails if anything was.
"""
