#!/usr/bin/env bash
# The first hour with the package, in an empty folder: what a new user does, in order. The files that the README shows are there.
# tests/test_first_hour.py runs it with an installed wheel, and looks at what it leaves.
set -euo pipefail
quick=(trainer.max_epochs=2 "network.encoder.sizes=[16]")

# Rows of one's own.
python - << 'PYTHON'
import numpy as np
from sklearn.datasets import load_digits

digits, labels = load_digits(return_X_y=True)
np.save("digits.npy", (digits / 16).astype("float32"))
PYTHON
own=(data=table data.path=digits.npy data.dim=64 "data.shape=[1,8,8]")
lowerbound-train "${own[@]}" "${quick[@]}" hydra.run.dir=first

# A likelihood and an objective of one's own, chosen by their names; a folder that needs them is opened by whoever says that they are trusted.
lowerbound-train --config-dir conf likelihood=laplace objective=capacity latent_dim=2 "${quick[@]}" hydra.run.dir=mine
lowerbound-evaluate mine "trust=[my_likelihood,my_objective]" "num_samples=[1,5]" baselines=false annealing.num_data=0 num_data=50

# A sweep.
lowerbound-train --multirun sweep=sizes latent_dim=2,4 "${own[@]}" "${quick[@]}" "~callbacks.pictures"
lowerbound-sweep status outputs/sizes
lowerbound-predict first output=encode rows=digits.npy file=codes.csv

# A notebook.
python notebook.py
