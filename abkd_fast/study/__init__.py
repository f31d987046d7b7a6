"""Studies: many runs under one protocol, from a TOML file (``abkd-fast study``)."""

from abkd_fast.study.runner import run_study as run_study
from abkd_fast.study.spec import Study as Study
from abkd_fast.study.spec import load_study as load_study
