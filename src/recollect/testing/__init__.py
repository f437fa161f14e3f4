"""Harnesses that try to break a workspace, to be run on any machine, kernel and disk.

    python -m recollect.testing kills --count 5000             # writers and recoverers killed at any instruction
    python -m recollect.testing power --count 10000            # the power goes at any instruction, again in some cases
    python -m recollect.testing fuzz --count 1000000           # any byte of any file flipped, zeroed, cut off, added to
    python -m recollect.testing kills --seed 7 --case 12       # one case again

Each prints its seed, takes one from `--seed` or RECOLLECT_SEED, and ends with 1 when it found something.

    corpus       schemas, and steps whose every value follows from a number
    ledger       operations as data, and the model that follows them
    actor        carries operations out; makes up random workloads
    expected     what a workload that was cut short must have left: `expect`, `adopt`
    oracle       compares a workspace with that: `check_workspace`
    late         the part of it that concerns facts
    questions    what indexes and `verify` answer while a byte is wrong
    follow       compares views that grow with a ledger, and with what they said before
    instants     acting at a chosen instruction of the product
    disk         a disk that keeps only what was flushed
    cases        many cases with a seed each, in processes of their own
    strategies   Hypothesis strategies for schemas and steps (needs hypothesis)

To try a workload of your own, let an `Actor` carry out a list of operations and give what its journal holds to
`expected.expect` and `oracle.check_workspace`.
"""
