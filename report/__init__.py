"""The page of a run: what is on it, its figures, and the file.

`content` reduces a test or a training stage to lists, numbers and small pictures; `run_files` reads what a run has
written; `curves`, `results` and `figures` draw and count; `write` makes the page of a run, `compare` that of several.
It is handed arrays and objects, and imports nothing of the data sets, the model or the training.
"""
