"""``python -m abkd_fast``, and ``torchrun -m abkd_fast`` for several processes."""

from abkd_fast.cli import main

main()
