"""`python -m reclm_lite.cli`, for launchers that start modules: `accelerate launch -m reclm_lite.cli tune sft …`."""

from . import main

main(prog_name="reclm")
